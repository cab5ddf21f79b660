// The review: one training image large, what stands behind it, the queue beside it, and keys.
//
// data: key, epoch, ack, items, verdicts, classes, keys (of the first classes), focus ({id, turn}: where
//       Python wants the cursor), pending (what waits here: "open" | "unsure" | "contested" |
//       "each"), settle (decisions settle a conflict), less, more (another page before, after),
//       place, chosen (the filters), share, progress, tally, evidence, reach (addresses), evidence_of (what
//       the evidence goes by), reviewer, remember (whether by a later visit), empty

const AHEAD = 3; // images whose evidence is fetched before they are shown
const KNOWN = 100; // images whose evidence is kept here; the browser keeps more
const YEAR = 31536000; // s
const HELP = [
  ["Enter", "accept the suggested label"],
  ["0–9", "it is this class"],
  ["L", "type the name of a class; of many, a digit its number"],
  ["K", "keep the label"],
  ["X", "drop the image"],
  ["S", "unsure, leave it open"],
  ["U", "undo, also Ctrl+Z"],
  ["Y", "redo, also Ctrl+Y"],
  ["← →", "previous, next"],
  ["↑ ↓", "a row up, down"],
  ["Shift+← →", "select several; also Ctrl or Shift and click, or draw a frame"],
  ["A", "select all that are shown"],
  ["Esc", "select none, close"],
  ["Space", "zoom"],
  ["W", "what a change would move"],
  ["?", "these keys"],
];

export default function (component) {
  const { data, setStateValue } = component;
  const [root, state] = mounted(component, () => {
    const kept = keptOf(data);
    return {
      kept,
      queue: kept.queue,
      at: kept.at ?? null,
      turn: kept.queue.epoch === data.epoch ? kept.turn : null, // of another session it is another
      awaits: kept.awaits ?? null,
      selected: new Set(),
      touched: new Set(),
      known: new Map(),
    };
  });
  state.queue.sync(data, setStateValue);
  state.data = data;
  if (!state.wired) {
    state.wired = true;
    root.addEventListener("click", (event) => onClick(event, root, state));
    onKeys(data, root, (event) => onKey(event, root, state));
  }
  // Not what was empty from the start: another tab may have a name.
  if (data.remember && data.reviewer !== (state.kept.reviewer ?? "")) remember(data.reviewer);
  state.kept.reviewer = data.reviewer;
  draw(root, state);
  if (state.framed) return;
  state.framed = true;
  framing(
    state.parts.tiles,
    () => [...state.parts.tiles.querySelectorAll(".tile")],
    (event) => (event.shiftKey || event.ctrlKey || event.metaKey ? [...state.selected] : []),
    (ids) => select(root, state, ids),
  );
}

// A later visit knows who decides on whichever page it begins: `reviewer.py` reads this.
function remember(name) {
  const about = `path=/; max-age=${name ? YEAR : 0}; samesite=lax`;
  const safe = location.protocol === "https:" ? "; secure" : "";
  document.cookie = `probable_cause_reviewer=${encodeURIComponent(name)}; ${about}${safe}`;
}

const verdictsOf = (state) => decided(state.data.verdicts, state.queue);
const itemOf = (state, id) => state.data.items.find((item) => item.id === id);

function draw(root, state) {
  const { data } = state;
  if (!state.parts) {
    state.parts = skeleton();
    root.replaceChildren(...state.parts.top);
  }
  const drawn = JSON.stringify([data.items, data.classes]);
  const changed = drawn !== state.drawn;
  if (changed) {
    state.drawn = drawn;
    state.selected.clear();
    state.touched.clear();
    state.parts.tiles.replaceChildren(...data.items.map((item) => tileOf(item, data)));
    state.parts.tiles.scrollTop = 0;
  }
  const ended = !changed && state.at === -1 && (!state.awaits || state.awaits.back === -1);
  if ((changed || state.at === -1) && !awaiting(state)) { // back and forth at once is the same page
    if (!itemOf(state, state.at)) state.at = null;
    const { enter, back } = state.awaits ?? {};
    if (state.at === null && enter != null) state.at = data.items.at(enter)?.id ?? null;
    if (state.at === null && itemOf(state, back)) state.at = back;
    state.awaits = null;
  }
  if (data.focus && data.focus.turn !== state.turn) {
    state.turn = data.focus.turn;
    if (itemOf(state, data.focus.id)) {
      state.at = data.focus.id;
      state.selected.clear();
    }
  }
  if (state.at === null) state.at = nextOpen(state, -1);
  // After the last one the cursor stays where it ended: a key too many decides nothing anew.
  if (state.at === null && data.items.length) state.at = ended ? -1 : data.items[0].id;
  show(root, state);
  if (state.parts.zoom.open && !awaiting(state)) fillZoom(state);
  // The keys are for the images, not for the link that led here.
  if (!state.entered && !typing(document.activeElement)) focusTile(state);
  state.entered = true;
}

// Made once: later only texts and addresses change, so that nothing flashes or moves.
function skeleton() {
  const part = (tag, className, ...inside) => {
    const node = make(tag, className);
    node.append(...inside);
    return node;
  };
  const stage = part("div", "stage");
  const file = part("div", "file");
  const labels = part("div", "labels");
  const acts = part("div", "acts");
  const classes = part("div", "classes");
  const find = make("input", "find");
  find.placeholder = "Class or number";
  find.setAttribute("aria-label", "Type the name or the number of a class");
  const tools = part("div", "tools");
  for (const [text, key, action] of [
    ["‹", "←", "previous"],
    ["›", "→", "next"],
    ["Undo", "U", "undo"],
    ["Redo", "Y", "redo"],
    ["Zoom", "␣", "zoom"],
    ["Keys", "?", "help"],
  ]) {
    const node = buttonOf(text, key, action, "act quietly");
    if (text.length === 1) node.setAttribute("aria-label", action);
    tools.append(node);
  }
  const card = part("div", "card", stage, file, labels, acts, part("div", "other", find, classes));
  const behind = part("div", "behind");
  const head = part("div", "head");
  const tiles = part("div", "tiles");
  tiles.setAttribute("role", "listbox");
  tiles.setAttribute("aria-label", "Images to review");
  tiles.setAttribute("aria-multiselectable", "true");
  const queue = part("div", "queue", head, tiles);
  const desk = part("div", "desk", card, behind, queue);
  const zoom = part("dialog", "zoom");
  const help = helpOf(HELP);
  const said = make("p");
  const empty = part("div", "empty", said);
  const live = part("div", "live");
  live.setAttribute("aria-live", "polite");
  const top = [desk, empty, zoom, help, live];
  return { top, desk, card, empty, said, tools, stage, file, labels, acts, find, classes, behind, head,
           tiles, zoom, help, live };
}

function buttonOf(text, key, action, className) {
  const node = make("button", className);
  node.append(make("span", "", text));
  if (key) node.append(make("kbd", "", key));
  node.dataset.action = action;
  return node;
}

function tileOf(item, data) {
  const tile = make("div", "tile");
  tile.dataset.id = item.id;
  tile.tabIndex = -1;
  tile.setAttribute("role", "option");
  tile.title = item.name;
  tile.setAttribute("aria-label", item.alt + (item.spot ? ", a spot check" : ""));
  const line = make("div", "line");
  line.append(make("span", "from", data.classes[item.given]));
  if (item.suggested !== item.given) {
    line.append(make("span", "quiet", "→"), make("b", "", data.classes[item.suggested]));
  }
  const pick = make("button", "pick", "✓");
  pick.dataset.action = "pick";
  pick.tabIndex = -1;
  pick.setAttribute("aria-label", `Select ${item.alt}`);
  tile.append(picture(item.src, item.alt, "thumb"), pick, line);
  if (item.spot) tile.append(make("span", "spot", "check"));
  return tile;
}

// Whether an image still waits for what this view is about.
function waits(state, item, verdicts) {
  const verdict = verdicts.get(item.id);
  const { pending } = state.data;
  if (state.touched.has(item.id)) return pending === "open" && !verdict; // undone: open again
  if (pending === "open") return !verdict;
  if (pending === "unsure") return verdict?.verdict === "unsure";
  return pending === "each" || Boolean(verdict?.contested);
}

function nextOpen(state, from) {
  const { items } = state.data;
  const verdicts = verdictsOf(state);
  const after = [...items.slice(from + 1), ...items.slice(0, from + 1)];
  return after.find((item) => waits(state, item, verdicts))?.id ?? null;
}

function show(root, state) {
  const { data, parts, at, turn, awaits } = state;
  Object.assign(state.kept, { at, turn, awaits }); // the next key is for the image that is in view
  const verdicts = verdictsOf(state);
  parts.desk.hidden = !data.items.length;
  parts.said.textContent = data.items.length ? "" : data.empty;
  const place = data.items.length ? parts.card : parts.empty;
  if (parts.tools.parentElement !== place) place.append(parts.tools);
  for (const tile of parts.tiles.children) {
    const id = Number(tile.dataset.id);
    const verdict = verdicts.get(id);
    const chosen = state.selected.has(id);
    tile.setAttribute("aria-selected", String(chosen || id === state.at));
    tile.tabIndex = id === state.at ? 0 : -1;
    tile.classList.toggle("at", id === state.at);
    tile.classList.toggle("chosen", chosen);
    tile.classList.toggle("done", Boolean(verdict));
    mark(tile, verdict, data.classes);
  }
  showHead(state);
  const item = itemOf(state, state.at);
  const several = chosenItems(state);
  const waiting = awaiting(state);
  parts.desk.classList.toggle("waiting", waiting);
  if (!data.items.length || waiting) return;
  if (several.length) showSeveral(state, several);
  else if (item) showOne(state, item, verdicts.get(item.id));
  else showEnd(state);
  const alone = several.length ? null : item;
  showClasses(state, alone);
  showBehind(state, alone);
}

function mark(box, verdict, classes) {
  const [text, kind] = verdict ? verdictMark(verdict, classes) : ["", ""];
  let node = box.querySelector(".mark");
  if (!verdict) node?.remove();
  else {
    if (!node) box.append((node = make("span", "mark")));
    node.className = `mark ${verdict.contested ? "contested" : kind}`;
    node.textContent = verdict.contested ? `≠ ${text}` : text;
  }
}

const chosenItems = (state) => state.data.items.filter((item) => state.selected.has(item.id));

function showHead(state) {
  const { data } = state;
  const line = make("div", "row");
  const words = make("div", "progress");
  words.append(make("b", "", data.progress), make("span", "quiet", data.tally));
  const track = make("div", "track");
  const fill = make("i");
  fill.style.width = `${100 * data.share}%`;
  track.append(fill);
  const pages = make("div", "row pages");
  const less = buttonOf("‹", "", "less", "act quietly");
  const more = buttonOf("›", "", "more", "act quietly");
  less.setAttribute("aria-label", "Page before");
  more.setAttribute("aria-label", "Page after");
  less.disabled = !data.less;
  more.disabled = !data.more;
  const size = state.selected.size;
  const about = make("span", "quiet grow", size ? `${size} selected` : data.chosen);
  const all = size
    ? buttonOf("Select none", "Esc", "none", "act quietly")
    : buttonOf("Select all", "A", "all", "act quietly");
  pages.append(all, about, make("span", "quiet", data.place), less, more);
  line.append(words);
  refill(state.parts.head, [line, track, pages]);
}

function showOne(state, item, verdict) {
  const { data, parts } = state;
  const name = (label) => data.classes[label];
  const same = item.suggested === item.given;
  stageFor(parts.stage, [item], "one");
  parts.file.textContent = `Training image ${item.id} · ${item.name}`;
  parts.file.title = item.name;
  mark(parts.stage, verdict, data.classes);
  parts.stage.querySelector(".spot")?.remove();
  if (item.spot) {
    const spot = make("span", "spot", "spot check");
    spot.title = "Drawn at random from the labels that nothing speaks against.";
    parts.stage.append(spot);
  }
  const label = (words, text, share, kind) => {
    const box = make("div", `label ${kind}`);
    const named = make("b", text.length > 10 ? "long" : "", text);
    named.title = text;
    box.append(make("span", "quiet", words), named, make("span", "quiet share", share));
    return box;
  };
  const labels = [label("labelled", name(item.given), item.probabilities[0], "")];
  if (!same) {
    labels.push(make("span", "arrow", "→"));
    labels.push(label("looks like", name(item.suggested), item.probabilities[1], "guess"));
  }
  labels.push(label("suspicion", item.suspicion, "", "doubt"));
  parts.labels.replaceChildren(...labels);
  const acts = [];
  if (!same) acts.push(buttonOf(`It is ${name(item.suggested)}`, "Enter", "accept", "act main"));
  const keep = buttonOf(`Keep ${name(item.given)}`, same ? "Enter" : "K", "keep", "act");
  keep.classList.toggle("main", same);
  acts.push(keep, buttonOf("Drop", "X", "drop", "act"), buttonOf("Unsure", "S", "unsure", "act"));
  refill(parts.acts, acts);
}

function showSeveral(state, items) {
  const { data, parts } = state;
  stageFor(parts.stage, items, "several");
  parts.file.textContent = "";
  const label = make("div", "label");
  label.append(make("span", "quiet", "all at once, one undo takes them back"),
               make("b", "", `${items.length} images`));
  parts.labels.replaceChildren(label);
  const to = new Set(items.map((item) => item.suggested));
  const same = to.size === 1 ? data.classes[items[0].suggested] : null;
  refill(parts.acts, [
    buttonOf(same ? `All are ${same}` : "Each as suggested", "Enter", "accept", "act main"),
    buttonOf("Keep all", "K", "keep", "act"),
    buttonOf("Drop all", "X", "drop", "act"),
    buttonOf("Unsure", "S", "unsure", "act"),
  ]);
}

function showEnd(state) {
  const { parts } = state;
  parts.stage.replaceChildren(make("div", "end", "Everything here is decided."));
  parts.stage.dataset.shown = "";
  parts.file.textContent = "";
  parts.labels.replaceChildren();
  parts.acts.replaceChildren();
}

// One image, or up to sixteen side by side.
function stageFor(stage, items, kind) {
  const shown = items.slice(0, 16);
  const ids = shown.map((item) => item.id).join();
  stage.dataset.kind = kind;
  if (stage.dataset.shown === ids) return;
  stage.dataset.shown = ids;
  stage.style.setProperty("--side", Math.ceil(Math.sqrt(shown.length)));
  const eager = (item) => {
    const image = picture(item.src, item.alt, "big");
    image.loading = "eager";
    image.decoding = "sync";
    return image;
  };
  stage.replaceChildren(...shown.map(eager));
}

// The classes that can be chosen: all where they are few, else the likely one, or those that hold
// what was typed.
function showClasses(state, item) {
  const { data, parts } = state;
  const typed = parts.find.value.trim();
  const many = data.classes.length > data.keys.length;
  parts.find.hidden = !many && !state.finding;
  const usual = many ? (item ? [item.suggested] : []) : data.classes.map((_, label) => label);
  const some = typed ? matching(data.classes, typed) : usual;
  const shown = some.slice(0, many ? WITHIN : some.length);
  const text = JSON.stringify([shown, item?.given, data.classes]);
  if (text === state.classes) return;
  state.classes = text;
  state.first = typed ? (shown[0] ?? null) : null;
  parts.classes.replaceChildren(...shown.map((label) => {
    const name = data.classes[label];
    const node = make("button", label === item?.given ? "given" : "");
    node.title = `It is ${name}`;
    const key = data.keys[label];
    // On digits the key is the name: once is enough.
    if (key !== undefined) node.append(make("kbd", "", key));
    if (key !== undefined) node.tabIndex = -1; // its key is quicker
    if (key !== name) node.append(make("span", "", name));
    node.dataset.action = "relabel";
    node.dataset.label = label;
    return node;
  }));
}

// What stands behind the image comes over HTTP; until then what was there stays, paler.
async function showBehind(state, item) {
  const { parts, data } = state;
  if (!item) {
    state.behind = state.fold = null;
    parts.behind.classList.remove("stale");
    parts.behind.replaceChildren(...summaryOf(chosenItems(state), data.classes));
    return;
  }
  const { id } = item;
  const said = verdictsOf(state).get(id)?.said ?? [];
  const key = JSON.stringify([id, data.evidence, said]);
  if (state.behind === key) return;
  state.behind = key;
  parts.behind.classList.add("stale");
  const at = data.items.findIndex((one) => one.id === id);
  const found = await behindOf(state, id);
  if (state.behind !== key) return; // the cursor went on
  parts.behind.classList.remove("stale");
  state.fold = foldOf(`${data.reach}${id}/`, data.classes, item.given, item.suggested);
  parts.behind.replaceChildren(...evidenceOf(item, found, said, state.fold));
  for (const next of data.items.slice(at + 1, at + 1 + AHEAD)) behindOf(state, next.id);
}

// Which labels the selected images have, and what they look like.
function summaryOf(items, classes) {
  const counts = new Map();
  for (const { given, suggested } of items) {
    const text = given === suggested ? classes[given] : `${classes[given]} → ${classes[suggested]}`;
    counts.set(text, (counts.get(text) ?? 0) + 1);
  }
  const most = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 12);
  const pairs = make("div", "pairs");
  for (const [text, count] of most) pairs.append(make("b", "", count), make("span", "", text));
  return items.length ? [make("p", "quiet", "Labelled → looks like"), pairs] : [];
}

function behindOf(state, id) {
  const url = `${state.data.evidence}${id}.json?${state.data.evidence_of}`;
  if (!state.known.has(url)) {
    const asked = fetch(url).then((answer) => (answer.ok ? answer.json() : null)).catch(() => null);
    state.known.set(url, asked);
    if (state.known.size > KNOWN) state.known.delete(state.known.keys().next().value);
    asked.then((found) => found || state.known.delete(url));
  }
  return state.known.get(url);
}

function evidenceOf(item, found, said, fold) {
  const nodes = [];
  if (said.length) nodes.push(make("p", "said", said.join(" · ")));
  nodes.push(make("p", "why", item.why), fold.box);
  if (!found) return [...nodes, make("p", "quiet", "The evidence could not be fetched.")];
  const signals = make("div", "signals");
  for (const signal of found.signals) {
    const track = make("div", "track");
    const fill = make("i", signal.votes ? "votes" : "");
    fill.style.width = `${100 * signal.value}%`;
    track.append(fill);
    const name = make("span", signal.votes ? "" : "quiet", signal.name);
    name.title = signal.about;
    signals.append(name, track, make("span", "quiet number", signal.text));
  }
  nodes.push(make("p", "quiet", found.votes), signals);
  nodes.push(...[...found.groups, found.feeds].map(linksOf));
  return nodes;
}

function verdictFor(item, name, label) {
  const choice = name === "accept" ? (item.suggested === item.given ? "keep" : "relabel") : name;
  const to = name === "accept" ? item.suggested : label;
  // To the label that it has is to keep it.
  const verdict = choice === "relabel" && to === item.given ? "keep" : choice;
  return { id: item.id, verdict, label: verdict === "relabel" ? to : null };
}

function decide(root, state, name, label = null) {
  const { data } = state;
  const several = chosenItems(state);
  const items = several.length ? several : data.items.filter((item) => item.id === state.at);
  if (!items.length) return;
  const each = items.map((item) => verdictFor(item, name, label));
  state.queue.push({ type: "decide", each, settle: data.settle });
  for (const item of items) state.touched.add(item.id);
  state.parts.live.textContent = several.length ? `${items.length} decided` : "";
  const at = data.items.indexOf(items.at(-1));
  const next = data.pending === "each" ? (data.items[at + 1]?.id ?? null) : nextOpen(state, at);
  if (next !== null) state.at = next;
  else if (data.more) leaf(state, "more");
  else state.at = -1;
  state.selected.clear();
  show(root, state);
  focusTile(state);
}

function act(root, state, name, label = null) {
  if (["keep", "drop", "unsure", "relabel", "accept"].includes(name)) {
    closeFind(state);
    decide(root, state, name, label);
  } else if (name === "undo" || name === "redo") {
    const { at, awaits } = state;
    leaf(state, name, null, at === -1 && awaits ? awaits.back : at);
    show(root, state);
  } else if (name === "less" || name === "more") state.queue.push({ type: name });
  else if (name === "previous") move(root, state, -1, false);
  else if (name === "next") move(root, state, 1, false);
  else if (name === "all") select(root, state, state.data.items.map((item) => item.id));
  else if (name === "none") select(root, state, []);
  else if (name === "find") openFind(root, state);
  else if (name === "zoom") toggleZoom(state);
  else if (name === "reach") state.fold?.toggle();
  else if (name === "help") state.parts.help.showModal();
  else if (name === "close") for (const box of [state.parts.help, state.parts.zoom]) box.close();
  if (state.parts.zoom.open && !awaiting(state)) fillZoom(state);
}

function select(root, state, ids) {
  state.selected = new Set(ids);
  show(root, state);
}

// To another page, or to what is undone. Until it is here the cursor is nowhere, so that a fast key
// hits no wrong image; then it is where Python says, on the `enter`-th image, `back` where it was, or
// on the first image that waits.
function leaf(state, type, enter = null, back = null) {
  state.at = -1;
  state.awaits = { action: state.queue.push({ type }), enter, back };
}

const awaiting = (state) => state.at === -1 && state.queue.waiting.includes(state.awaits?.action);

// The cursor goes `by` images on, at an end to the page beyond; with `extend` all it passes are
// selected.
function move(root, state, by, extend) {
  const { items, less, more } = state.data;
  if (awaiting(state)) return;
  const at = items.findIndex((item) => item.id === state.at);
  const next = at < 0 ? 0 : at + by;
  if (!items[next]) {
    if (extend || !(by < 0 ? less : more)) return;
    leaf(state, by < 0 ? "less" : "more", by < 0 ? -1 : 0);
    show(root, state);
    return;
  }
  if (extend) {
    const [low, high] = [Math.min(at, next), Math.max(at, next)];
    for (const item of items.slice(Math.max(low, 0), high + 1)) state.selected.add(item.id);
  } else state.selected.clear();
  state.at = items[next].id;
  show(root, state);
  focusTile(state);
}

function focusTile(state) {
  const tile = state.parts.tiles.querySelector(`.tile[data-id="${state.at}"]`);
  if (!tile) return;
  tile.focus({ preventScroll: true });
  const { tiles } = state.parts; // only the list scrolls, never the page
  const [top, bottom] = [tile.offsetTop - 4, tile.offsetTop + tile.offsetHeight + 4];
  if (top < tiles.scrollTop) tiles.scrollTop = top;
  else if (bottom > tiles.scrollTop + tiles.clientHeight) tiles.scrollTop = bottom - tiles.clientHeight;
}

function openFind(root, state, typed = "") {
  const { find, zoom } = state.parts;
  if (zoom.open) zoom.close(); // what is behind it cannot have the focus
  state.finding = true;
  find.value = typed;
  state.classes = null;
  showClasses(state, itemOf(state, state.at));
  find.hidden = false;
  find.focus({ preventScroll: true });
  if (find.wired) return;
  find.wired = true;
  const again = () => {
    state.classes = null;
    showClasses(state, itemOf(state, state.at));
  };
  find.addEventListener("input", again);
  find.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.isComposing) return;
    if (event.key === "Enter" && state.first !== null) act(root, state, "relabel", state.first);
    else if (event.key === "Escape") {
      closeFind(state);
      again();
      focusTile(state);
    }
  });
}

function closeFind(state) {
  state.parts.find.value = "";
  state.finding = false;
  state.classes = null;
}

function toggleZoom(state) {
  const { zoom } = state.parts;
  if (zoom.open) zoom.close();
  else zoom.showModal();
}

function fillZoom(state) {
  const item = itemOf(state, state.at);
  if (!item) return state.parts.zoom.close();
  const image = picture(item.src, item.alt, "full");
  image.loading = "eager";
  const names = state.data.classes;
  const words = make("div", "caption");
  words.append(make("span", "", `labelled ${names[item.given]}`));
  if (item.suggested !== item.given) {
    words.append(make("span", "", `looks like ${names[item.suggested]}`));
  }
  mark(words, verdictsOf(state).get(item.id), names);
  state.parts.zoom.replaceChildren(image, words);
}

function onClick(event, root, state) {
  const target = event.target;
  if (target === state.parts.find && !state.finding) return openFind(root, state);
  if (target.closest(".zoom")) return act(root, state, "close");
  const button = target.closest("[data-action]");
  const tile = target.closest(".tile");
  if (button && button.dataset.action === "pick") toggle(root, state, Number(tile.dataset.id));
  else if (button && button.dataset.action === "go") {
    state.queue.push({ type: "go", id: Number(button.dataset.id) });
  } else if (button) {
    const { action, label } = button.dataset;
    act(root, state, action, label === undefined ? null : Number(label));
  } else if (target.closest(".stage")) act(root, state, "zoom");
  else if (tile) {
    const id = Number(tile.dataset.id);
    const ids = state.data.items.map((item) => item.id);
    if (event.shiftKey) {
      const [a, b] = [Math.max(0, ids.indexOf(state.at)), ids.indexOf(id)];
      select(root, state, [...state.selected, ...ids.slice(Math.min(a, b), Math.max(a, b) + 1)]);
    } else if (event.ctrlKey || event.metaKey) toggle(root, state, id);
    else {
      state.selected.clear();
      state.at = id;
      show(root, state);
    }
    focusTile(state);
  }
}

function toggle(root, state, id) {
  if (!state.selected.delete(id)) state.selected.add(id);
  state.at = id;
  show(root, state);
  focusTile(state);
}

const PLAIN = { k: "keep", x: "drop", s: "unsure", u: "undo", y: "redo", a: "all", l: "find", w: "reach", "?": "help" };

function onKey(event, root, state) {
  const from = event.composedPath()[0];
  if (event.key === "Enter" && from instanceof Element && from.closest(".st-key-reviewer")) {
    setTimeout(() => focusTile(state)); // once the name is given, the keys are for the images
  }
  if (typing(from) || event.altKey || event.isComposing) return;
  const { zoom, help } = state.parts;
  const key = event.key.toLowerCase();
  const inside = event.composedPath().includes(root) || from === document.body;
  const command = event.ctrlKey || event.metaKey;
  let done = true;
  if (held(event)) ; // it is done already
  else if (help.open) {
    if (key === "?" || key === "escape") help.close();
    else done = key !== "tab" && key !== "enter" && key !== " ";
  } else if (command) {
    if (key === "z") act(root, state, event.shiftKey ? "redo" : "undo");
    else if (key === "y") act(root, state, "redo");
    else if (key === "a" && inside) act(root, state, "all");
    else done = false;
  } else if (PLAIN[key]) act(root, state, PLAIN[key]);
  else if (state.data.keys.includes(key)) act(root, state, "relabel", state.data.keys.indexOf(key));
  else if (!state.data.keys.length && /^[0-9]$/.test(key)) openFind(root, state, key);
  else if (!inside) done = false;
  else if (key === "escape") act(root, state, zoom.open ? "close" : "none");
  else if (key === "enter" || key === " ") {
    // A button's own click does it, unless the picture is in front of it.
    if (from instanceof Element && from.closest("button, a") && !zoom.open) done = false;
    else act(root, state, key === "enter" ? "accept" : "zoom");
  } else if (!alongLinks(from, event.key)) {
    const by = step(event.key, [...state.parts.tiles.children]);
    if (by === null) done = false;
    else {
      move(root, state, by, event.shiftKey);
      if (zoom.open) fillZoom(state);
    }
  }
  if (!done) return;
  event.preventDefault();
  event.stopPropagation();
}
