// Grids of thumbnails: test predictions to pick from, or hits with their scores.
//
// data: epoch, ack, kind ("pick" | "hit"), tile (px), rows (0: all), selected, verdicts, classes,
//       keys (of the first classes), scale (largest |score| + error), groups, left_out (ids that a
//       what-if leaves out; null where there is none to be asked), reach (address of what a change
//       of a training image would move)
// item of a "pick": id, src, alt, caption, correct, note, shaky (paler)
// group: label, title (whether the label is shown), tone ("for" | "against"), items, empty (said
//       when there are none)

const HELP = [
  ["← → ↑ ↓", "another image"],
  ["Tab", "the other side, then what follows"],
  ["Enter", "open it, close it; also Space"],
  ["0–9", "it is this class"],
  ["K", "keep the label"],
  ["X", "drop the image"],
  ["U", "undo, also Ctrl+Z"],
  ["W", "what a change would move"],
  ["?", "these keys"],
  ["O", "what if it had not been there"],
];

export default function (component) {
  const { data, parentElement, setStateValue } = component;
  const root = parentElement.querySelector(".pc");
  const state = mounted(parentElement, () => ({ queue: new Queue(), drawn: null, open: null }));
  state.queue.sync(data, setStateValue);
  state.data = data;
  if (!state.wired) {
    state.wired = true;
    root.addEventListener("keydown", (event) => onKey(event, root, state));
    root.addEventListener("click", (event) => onClick(event, root, state));
  }
  draw(root, state);
}

const tilesOf = (root) => [...root.querySelectorAll(".tile")];

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
    root.replaceChildren(...data.groups.map((group) => groupOf(group, data)));
    const tiles = tilesOf(root);
    if (at >= 0 && tiles.length) tiles[Math.min(at, tiles.length - 1)].focus({ preventScroll: true });
  }
  // What Python last said it shows, unless a newer pick is on its way.
  const picks = queue.waiting.filter((action) => action.type === "pick");
  const selected = picks.length ? picks.at(-1).id : data.selected;
  mark(root, state, data.kind === "hit" ? state.open : selected);
  showVerdicts(root, state);
  showLeftOut(root, state);
}

function groupOf(group, data) {
  const box = make("section", `group ${group.tone || ""}`);
  if (group.title) box.append(make("h2", "", group.label));
  const tiles = make("div", "tiles");
  tiles.setAttribute("role", "listbox");
  tiles.setAttribute("aria-label", group.label);
  const tileOf = data.kind === "hit" ? hitTile : pickTile;
  tiles.append(...group.items.map((item) => tileOf(item, data)));
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
  const held = root.getRootNode().activeElement;
  for (const group of root.querySelectorAll("[role=listbox]")) {
    const tiles = tilesOf(group);
    let current = null;
    for (const tile of tiles) {
      const is = Number(tile.dataset.id) === selected;
      tile.setAttribute("aria-selected", String(is));
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
    const verdict = verdicts.get(Number(tile.dataset.id));
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
    const is = out.has(Number(tile.dataset.id));
    tile.classList.toggle("out", is);
    tile.querySelector(".leave")?.setAttribute("aria-pressed", String(is));
  }
}

function leave(root, state, id) {
  state.queue.push({ type: "leave", id });
  showLeftOut(root, state);
}

function pick(root, state, tile) {
  const id = Number(tile.dataset.id);
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
  const classes = make("div", "classes");
  classes.append(make("span", "quiet", "It is"));
  state.data.classes.forEach((name, label) => {
    if (name === item.caption) return;
    const button = make("button", label === item.doubt ? "guess" : "", name);
    button.dataset.verdict = "relabel";
    button.dataset.label = label;
    classes.append(button);
  });
  const label = state.data.classes.indexOf(item.caption);
  state.fold = foldOf(`${state.data.reach}${id}/`, state.data.classes, label, item.doubt);
  side.append(acts, classes, state.fold.box);
  panel.append(side);
  // Below the row of its tile.
  const tile = root.querySelector(`.tile[data-id="${id}"]`);
  const row = tilesOf(tile.parentElement).filter((one) => one.offsetTop === tile.offsetTop);
  row.at(-1).after(panel);
  panel.scrollIntoView({ block: "nearest" });
}

function decide(root, state, id, verdict, label) {
  if (verdict === "undo") {
    state.queue.push({ type: "undo" });
    return;
  }
  state.queue.push({ type: "decide", id, verdict, label });
  showVerdicts(root, state);
}

function onClick(event, root, state) {
  const button = event.target.closest("button[data-verdict]");
  if (button) {
    const label = button.dataset.label === undefined ? null : Number(button.dataset.label);
    decide(root, state, state.open, button.dataset.verdict, label);
    return;
  }
  const tile = event.target.closest(".tile");
  if (!tile) return;
  if (event.target.closest(".leave")) {
    leave(root, state, Number(tile.dataset.id));
    return;
  }
  tile.focus({ preventScroll: true });
  pick(root, state, tile);
}

function onKey(event, root, state) {
  if (event.altKey || event.metaKey) return;
  const held = event.target.closest(".tile");
  if (!held) return;
  const tiles = tilesOf(held.parentElement);
  const at = tiles.indexOf(held);
  const move = step(event.key, tiles);
  if (move !== null) {
    const next = tiles[at + move];
    if (next) {
      tiles[at].tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
      next.scrollIntoView({ block: "nearest" });
    }
  } else if (event.key === "Enter" || event.key === " ") {
    pick(root, state, tiles[at]);
  } else if (event.key === "?" && state.data.kind === "hit") {
    root.append((state.help ??= helpOf(state.data.left_out ? HELP : HELP.slice(0, -1))));
    state.help.showModal();
  } else if (state.data.kind === "hit" && !onHitKey(event, root, state, Number(tiles[at].dataset.id))) {
    return;
  } else if (state.data.kind !== "hit") {
    return;
  }
  event.preventDefault();
  event.stopPropagation();
}

function onHitKey(event, root, state, id) {
  const key = event.key.toLowerCase();
  const label = state.data.keys.indexOf(key);
  if (key === "u" || (key === "z" && event.ctrlKey)) decide(root, state, id, "undo", null);
  else if (event.ctrlKey) return false;
  else if (label >= 0) {
    const given = state.items.get(id).caption;
    const same = state.data.classes[label] === given; // to the label that it has is to keep it
    decide(root, state, id, same ? "keep" : "relabel", same ? null : label);
  }
  else if (key === "k") decide(root, state, id, "keep", null);
  else if (key === "x") decide(root, state, id, "drop", null);
  else if (key === "w") {
    if (state.open !== id) openHit(root, state, id);
    state.fold.toggle();
  } else if (key === "o" && state.data.left_out) leave(root, state, id);
  else return false;
  return true;
}
