// Grids of thumbnails: test predictions to pick from, or hits with their scores.
//
// data: key, epoch, ack, kind ("pick" | "hit"), tile (px), rows (0: all), selected, verdicts, classes,
//       keys (of the classes, where they are few), scale (largest |score| + error), groups,
//       left_out (ids that a what-if leaves out; null where there is none to be asked),
//       split ("train" | "test": whose labels are decided on here, of several at once too; "" for
//       none), follow (after a decision the next image is picked), reach (address of what a change
//       of a training image would move)
// item of a "pick": id, src, alt, caption, correct, note, shaky (paler)
// group: label, title (whether the label is shown), tone ("for" | "against"), items, empty (said
//       when there are none)

const ACTS = {
  train: { keep: "Keep", drop: "Drop" },
  test: { keep: "Right", drop: "Exclude" },
};
const HELP = [
  ["← → ↑ ↓", "another image; with Shift several"],
  ["Tab", "the other side, then what follows"],
  ["Enter", "open it, close it; also Space"],
  ["0–9", "it is this class"],
  ["L", "type the class"],
  ["K", "keep the label"],
  ["X", "drop the image"],
  ["U Y", "undo and redo"],
  ["Ctrl+A", "select all; Escape clears"],
  ["W", "what a change would move"],
  ["?", "these keys"],
  ["O", "what if it had not been there"],
];

export default function (component) {
  const { data, setStateValue } = component;
  const [root, state] = mounted(component, () => ({
    queue: keptOf(data).queue,
    drawn: null,
    open: null,
    tiles: new Map(),
    chosen: new Set(),
    anchor: null,
  }));
  state.queue.sync(data, setStateValue);
  state.data = data;
  if (!state.wired) {
    state.wired = true;
    root.addEventListener("keydown", (event) => onKey(event, root, state));
    root.addEventListener("click", (event) => onClick(event, root, state));
    framing(
      root,
      () => (state.data.split ? shownOf(root) : []),
      (event) => (event.shiftKey || event.ctrlKey || event.metaKey ? [...state.chosen] : []),
      (ids) => choose(root, state, ids),
    );
  }
  draw(root, state);
}

const tilesOf = (root) => [...root.querySelectorAll(".tile")];
// Without those of the rows that are cut off, of which nobody can tell what a key does.
const shownOf = (root) => tilesOf(root).filter((tile) => tile.offsetHeight > 0);
const idOf = (tile) => Number(tile.dataset.id);

function draw(root, state) {
  const { data, queue } = state;
  root.style.setProperty("--tile", `${data.tile}px`);
  root.dataset.kind = data.kind;
  root.classList.toggle("clipped", data.rows > 0);
  root.style.setProperty("--rows", data.rows || 1);
  const drawn = JSON.stringify([data.groups, data.kind, data.scale]);
  if (drawn !== state.drawn) {
    const held = root.getRootNode().activeElement;
    const at = held && held.classList.contains("tile") ? tilesOf(root).indexOf(held) : -1;
    state.drawn = drawn;
    state.open = null;
    state.items = new Map(data.groups.flatMap((group) => group.items).map((i) => [i.id, i]));
    const tiles = new Map();
    const groups = data.groups.map((group) => groupOf(group, data, state.tiles, tiles));
    for (const box of root.querySelectorAll(":scope > .group")) box.remove();
    root.prepend(...groups); // what is typed for those selected goes on
    state.tiles = tiles;
    const all = tilesOf(root);
    if (at >= 0 && all.length) all[Math.min(at, all.length - 1)].focus({ preventScroll: true });
    choose(root, state, [...state.chosen].filter((id) => state.items.has(id)));
  }
  // What Python last said it shows, unless a newer pick is on its way.
  const picks = queue.waiting.filter((action) => action.type === "pick");
  const selected = picks.length ? picks.at(-1).id : data.selected;
  mark(root, state, data.kind === "hit" ? state.open : selected);
  showVerdicts(root, state);
  showLeftOut(root, state);
}

// Tiles that are as they were before (`old`) are used again: of many only what changed is drawn.
function groupOf(group, data, old, made) {
  const box = make("section", `group ${group.tone || ""}`);
  if (group.title) box.append(make("h2", "", group.label));
  const tiles = make("div", "tiles");
  tiles.setAttribute("role", "listbox");
  tiles.setAttribute("aria-label", group.label);
  if (data.split) tiles.setAttribute("aria-multiselectable", "true");
  const drawn = data.kind === "hit" ? hitTile : pickTile;
  for (const item of group.items) {
    const text = JSON.stringify([item, data.scale, data.kind]);
    const known = old.get(item.id);
    const tile = known?.text === text ? known.tile : drawn(item, data);
    made.set(item.id, { text, tile });
    tiles.append(tile);
  }
  box.append(group.items.length ? tiles : make("div", "empty", group.empty));
  return box;
}

function pickTile(item, data) {
  const tile = tileFor(item);
  tile.classList.toggle("shaky", Boolean(item.shaky));
  tile.title = item.alt;
  tile.append(picture(item.src, item.alt, "thumb"));
  const line = make("div", "line");
  line.append(make("span", item.correct ? "truth" : "truth wrong", item.caption));
  if (item.note) line.append(make("span", "quiet", item.note));
  tile.append(line);
  if (item.title) tile.title = item.title;
  return tile;
}

function hitTile(item, data) {
  const tile = tileFor(item);
  tile.classList.toggle("shaky", item.shaky);
  tile.append(picture(item.src, item.alt, "thumb"));
  const line = make("div", "line");
  const chip = make("span", "chip", item.caption);
  if (item.doubt !== null) {
    chip.classList.add("doubt");
    chip.textContent = `${item.caption}→${data.classes[item.doubt]}?`;
    chip.title = "The label itself looks wrong.";
  }
  line.append(chip, make("span", "score", item.score_text));
  tile.append(line, bar(item, data.scale));
  const agree = make("div", "line foot");
  agree.append(make("span", "quiet", item.agreement_text));
  if (data.left_out) {
    const leave = make("button", "leave", "−");
    leave.tabIndex = -1; // the key O on the tile does the same
    leave.setAttribute("aria-label", `Leave out training image ${item.id}`);
    leave.title = "What if it had not been there? (O)";
    agree.append(leave);
  }
  tile.append(agree);
  if (item.shaky) tile.append(make("span", "badge", "shaky"));
  tile.title = item.title;
  return tile;
}

function tileFor(item) {
  const tile = make("div", "tile");
  tile.dataset.id = item.id;
  tile.tabIndex = -1;
  tile.setAttribute("role", "option");
  tile.setAttribute("aria-label", item.alt);
  return tile;
}

// The score as a dot on a line whose ends are the same for all hits shown; its error as a band.
function bar(item, scale) {
  const box = make("div", "bar");
  const place = (value) => 50 + (50 * Math.max(-scale, Math.min(scale, value))) / scale;
  const band = make("i", "band");
  const low = place(item.score - 2 * item.stderr);
  band.style.left = `${low}%`;
  band.style.width = `${Math.max(1, place(item.score + 2 * item.stderr) - low)}%`;
  const dot = make("i", "dot");
  dot.style.left = `${place(item.score)}%`;
  box.append(make("i", "zero"), band, dot);
  return box;
}

function mark(root, state, selected) {
  state.current = selected;
  const held = root.getRootNode().activeElement;
  for (const group of root.querySelectorAll("[role=listbox]")) {
    const tiles = tilesOf(group);
    let current = null;
    for (const tile of tiles) {
      const id = idOf(tile);
      const is = id === selected;
      tile.setAttribute("aria-selected", String(is || state.chosen.has(id)));
      tile.tabIndex = -1;
      if (is) current = tile;
    }
    // One stop a group; arrows go on from it.
    const stop = (held && tiles.includes(held) && held) || current || tiles[0];
    if (stop) stop.tabIndex = 0;
  }
}

function showVerdicts(root, state) {
  const { data, queue } = state;
  const verdicts = decided(data.verdicts, queue);
  for (const tile of tilesOf(root)) {
    tile.querySelector(".mark")?.remove();
    const verdict = verdicts.get(idOf(tile));
    if (!verdict) continue;
    const [text, kind] = verdictMark(verdict, data.classes);
    tile.append(make("span", `mark ${kind}`, text));
  }
}

// What Python says is left out, changed by the toggles still on their way.
function showLeftOut(root, state) {
  if (!state.data.left_out) return;
  const out = new Set(state.data.left_out);
  for (const { type, id } of state.queue.waiting) {
    if (type === "leave" && !out.delete(id)) out.add(id);
  }
  for (const tile of tilesOf(root)) {
    const is = out.has(idOf(tile));
    tile.classList.toggle("out", is);
    tile.querySelector(".leave")?.setAttribute("aria-pressed", String(is));
  }
}

function leave(root, state, id) {
  state.queue.push({ type: "leave", id });
  showLeftOut(root, state);
}

function pick(root, state, tile) {
  const id = idOf(tile);
  if (state.data.kind === "hit") {
    openHit(root, state, state.open === id ? null : id);
  } else {
    mark(root, state, id);
    state.queue.push({ type: "pick", id });
  }
}

// The decisions on one training image, under the grid that it is in.
function openHit(root, state, id) {
  state.open = id;
  root.querySelector(".panel")?.remove();
  mark(root, state, id);
  if (id === null) return;
  const item = state.items.get(id);
  const panel = make("div", "panel");
  panel.append(picture(item.src, item.alt, "large"));
  const side = make("div", "side");
  side.append(make("div", "", item.title));
  const acts = make("div", "acts");
  for (const [verdict, text, key] of [
    ["keep", `Keep ${item.caption}`, "K"],
    ["drop", "Drop", "X"],
    ["undo", "Undo", "U"],
  ]) {
    const button = make("button", "act", text);
    button.append(make("kbd", "", key));
    button.dataset.verdict = verdict;
    acts.append(button);
  }
  const line = make("div", "line");
  line.append(make("span", "quiet", "It is"), finderFor(root, state, [id]));
  state.fold = foldOf(`${state.data.reach}${id}/`, state.data.classes, item.given, item.doubt);
  side.append(acts, line, state.fold.box);
  panel.append(side);
  // Below the row of its tile.
  const tile = root.querySelector(`.tile[data-id="${id}"]`);
  const row = tilesOf(tile.parentElement).filter((one) => one.offsetTop === tile.offsetTop);
  row.at(-1).after(panel);
  panel.scrollIntoView({ block: "nearest" });
}

// These and no others are selected.
function choose(root, state, ids) {
  state.chosen = new Set(ids);
  if (state.chosen.size !== 1) state.alone = false;
  for (const tile of tilesOf(root)) {
    const id = idOf(tile);
    const is = state.chosen.has(id);
    if (tile.classList.contains("chosen") === is) continue;
    tile.classList.toggle("chosen", is);
    tile.setAttribute("aria-selected", String(is || id === state.current));
  }
  showSeveral(root, state);
}

// What can be done to those selected, at the lower edge of what is in view.
function showSeveral(root, state) {
  const ids = [...state.chosen];
  let box = root.querySelector(".several");
  if (!ids.length) return box?.remove();
  const text = JSON.stringify(ids.toSorted());
  if (box?.dataset.of === text) return;
  const fresh = make("div", "several");
  fresh.dataset.of = text;
  const acts = make("div", "acts");
  acts.append(make("b", "", `${ids.length} selected`));
  const words = ACTS[state.data.split];
  for (const [name, text, key] of [
    ["keep", words.keep, "K"],
    ["drop", words.drop, "X"],
    ["undo", "Undo", "U"],
    ["none", "✕", ""],
  ]) {
    const button = make("button", "act", text);
    if (key) button.append(make("kbd", "", key));
    else {
      button.classList.add("none");
      button.title = "Select none (Esc)";
    }
    button.dataset.several = name;
    acts.append(button);
  }
  const line = make("div", "line");
  line.append(make("span", "quiet", ids.length > 1 ? "They are" : "It is"));
  line.append((state.finder = finderFor(root, state, ids)));
  fresh.append(acts, line);
  if (box) box.replaceWith(fresh);
  else root.append(fresh);
}

function finderFor(root, state, ids) {
  const { classes, keys } = state.data;
  const items = ids.map((id) => state.items.get(id));
  const guesses = items.map((item) => item.doubt ?? item.guess).filter((label) => label != null);
  const leave = () => {
    if (state.alone) choose(root, state, []); // it was selected only for its class to be typed
    focusOn(root, ids[0]);
  };
  const first = [...new Set([...guesses, ...items.flatMap((item) => item.likely ?? [])])];
  return finder({
    classes,
    keys,
    first,
    guess: new Set(guesses).size === 1 ? guesses[0] : null,
    pick: (label) => {
      decide(root, state, ids, "relabel", label);
      leave();
    },
    leave,
  });
}

const tileOf = (root, id) => root.querySelector(`.tile[data-id="${id}"]`);
const focusOn = (root, id) => tileOf(root, id)?.focus({ preventScroll: true });

function decide(root, state, ids, verdict, label = null) {
  const each = ids.map((id) => {
    // To the label that it has is to keep it.
    const same = verdict === "relabel" && label === state.items.get(id).given;
    return { id, verdict: same ? "keep" : verdict, label: same ? null : label };
  });
  state.queue.push({ type: "decide", each });
  showVerdicts(root, state);
}

function onClick(event, root, state) {
  const button = event.target.closest("button[data-verdict], button[data-several]");
  if (button) {
    const { verdict, several } = button.dataset;
    act(root, state, several ? [...state.chosen] : [state.open], several ?? verdict);
    return;
  }
  const tile = event.target.closest(".tile");
  if (!tile) {
    const gone = !event.target.isConnected; // a class that was chosen is drawn anew
    if (!gone && !event.target.closest(".several, .panel")) choose(root, state, []);
    return;
  }
  const id = idOf(tile);
  if (event.target.closest(".leave")) {
    leave(root, state, id);
    return;
  }
  tile.focus({ preventScroll: true });
  if (state.data.split && event.shiftKey) extend(root, state, tile);
  else if (state.data.split && (event.ctrlKey || event.metaKey)) {
    const ids = new Set(state.chosen);
    if (!ids.delete(id)) ids.add(id);
    state.anchor = id;
    choose(root, state, ids);
  } else {
    state.anchor = id;
    choose(root, state, []);
    pick(root, state, tile);
  }
}

// From the tile where the selection began to this one, beside what is selected.
function extend(root, state, tile) {
  const ids = shownOf(root).map(idOf);
  const to = ids.indexOf(idOf(tile));
  const begun = [state.anchor, state.current].map((id) => ids.indexOf(id));
  const from = begun.find((at) => at >= 0) ?? to; // the others are of another page
  choose(root, state, [...state.chosen, ...ids.slice(Math.min(from, to), Math.max(from, to) + 1)]);
}

// What a key or a button does to these images; false for what it does not know.
function act(root, state, ids, name) {
  if (name === "keep" || name === "drop") decide(root, state, ids, name);
  else if (name === "undo" || name === "redo") state.queue.push({ type: name });
  else if (name === "none") {
    if (!state.chosen.size && state.open !== null) openHit(root, state, null);
    choose(root, state, []);
  } else return false;
  return true;
}

const PLAIN = { k: "keep", x: "drop", u: "undo", y: "redo", escape: "none" };
const COMMANDS = { z: "undo", y: "redo", a: "all" };

function onKey(event, root, state) {
  if (event.altKey) return;
  const tile = event.target.closest(".tile");
  if (!tile) {
    if (event.key === "Escape" && state.chosen.size) choose(root, state, []);
    if (alongLinks(event.target, event.key)) event.preventDefault();
    return;
  }
  const tiles = shownOf(tile.parentElement);
  const at = tiles.indexOf(tile);
  if (at < 0) return; // it went out of view
  const move = event.ctrlKey || event.metaKey ? null : step(event.key, tiles);
  const { split } = state.data;
  if (move !== null) {
    const next = tiles[at + move];
    if (next) {
      if (split && event.shiftKey) {
        if (!state.chosen.size) state.anchor = idOf(tile);
        extend(root, state, next);
      }
      go(tiles[at], next);
    }
  } else if (held(event)) ; // it is done already
  else if (event.key === "Enter" || event.key === " ") {
    pick(root, state, tiles[at]);
  } else if (event.key === "?" && state.data.kind === "hit") {
    root.append((state.help ??= helpOf(state.data.left_out ? HELP : HELP.slice(0, -1))));
    state.help.showModal();
  } else if (!split || !onActKey(event, root, state, tiles, at)) {
    return;
  }
  event.preventDefault();
  event.stopPropagation();
}

function go(from, to) {
  from.tabIndex = -1;
  to.tabIndex = 0;
  to.focus();
  to.scrollIntoView({ block: "nearest" });
}

// A key on a tile that decides: on all that are selected, else on this one.
function onActKey(event, root, state, tiles, at) {
  const key = event.key.toLowerCase();
  const { data } = state;
  const id = idOf(tiles[at]);
  const ids = state.chosen.size ? [...state.chosen] : [id];
  if (event.ctrlKey || event.metaKey) {
    const name = key === "z" && event.shiftKey ? "redo" : COMMANDS[key];
    if (name === "all") choose(root, state, shownOf(root).map(idOf));
    return name === "all" || (name !== undefined && act(root, state, ids, name));
  }
  const label = data.keys.indexOf(key);
  if (key === "o" && data.left_out) leave(root, state, id);
  else if (key === "w" && data.reach) {
    if (state.open !== id) openHit(root, state, id);
    state.fold.toggle();
  } else if (key === "l" || (!data.keys.length && /^[0-9]$/.test(key))) {
    state.alone = !state.chosen.size;
    if (state.alone) choose(root, state, ids);
    state.finder.open(key === "l" ? "" : key);
  } else if (label >= 0) decide(root, state, ids, "relabel", label);
  else if (PLAIN[key] === undefined || !act(root, state, ids, PLAIN[key])) return false;
  const decided = label >= 0 || key === "k" || key === "x";
  if (decided && data.follow && !state.chosen.size && tiles[at + 1]) {
    go(tiles[at], tiles[at + 1]);
    pick(root, state, tiles[at + 1]);
  }
  return true;
}
