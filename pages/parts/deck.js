// The review queue: one training image large, the others of the page beside it, and keys.
//
// data: epoch, ack, items, verdicts, classes, keys (of the first classes), focus ({id, turn}: where
//       Python wants the cursor), more (another page follows), empty

export default function (component) {
  const { data, parentElement, setStateValue } = component;
  const root = parentElement.querySelector(".pc");
  const state = mounted(parentElement, () => ({ queue: new Queue(), at: null, turn: null }));
  state.queue.sync(data, setStateValue);
  state.data = data;
  if (!state.wired) {
    state.wired = true;
    root.addEventListener("click", (event) => onClick(event, root, state));
    // Keys work wherever the focus is on this page, except in a field.
    const listen = (event) => {
      if (!root.isConnected) document.removeEventListener("keydown", listen, true);
      else onKey(event, root, state);
    };
    document.addEventListener("keydown", listen, true);
  }
  draw(root, state);
}

const verdictsOf = (state) => decided(state.data.verdicts, state.queue);

function draw(root, state) {
  const { data } = state;
  const drawn = JSON.stringify([data.items, data.classes]);
  if (drawn !== state.drawn) {
    state.drawn = drawn;
    const tiles = make("div", "tiles");
    tiles.setAttribute("role", "listbox");
    tiles.setAttribute("aria-label", "Images to review");
    for (const item of data.items) {
      const tile = make("div", "tile");
      tile.dataset.id = item.id;
      tile.tabIndex = -1;
      tile.setAttribute("role", "option");
      tile.setAttribute("aria-label", item.alt);
      const line = make("div", "line");
      line.append(make("span", "from", data.classes[item.given]));
      if (item.suggested !== item.given) {
        line.append(make("span", "quiet", "→"), make("b", "", data.classes[item.suggested]));
      }
      tile.append(picture(item.src, item.alt, "thumb"), line);
      tiles.append(tile);
    }
    root.replaceChildren(make("div", "card"), tiles);
    if (!data.items.length) root.replaceChildren(make("div", "empty", data.empty));
    if (!data.items.some((item) => item.id === state.at)) state.at = null;
  }
  if (data.focus && data.focus.turn !== state.turn) {
    state.turn = data.focus.turn;
    if (data.items.some((item) => item.id === data.focus.id)) state.at = data.focus.id;
  }
  if (state.at === null) state.at = nextOpen(state, -1);
  if (state.at === null && data.items.length) state.at = data.items[0].id;
  show(root, state);
  // The keys are for the images, not for the link that led here.
  if (!state.entered && !typing(document.activeElement)) focusTile(root, state);
  state.entered = true;
}

function nextOpen(state, from) {
  const { items } = state.data;
  const verdicts = verdictsOf(state);
  const after = [...items.slice(from + 1), ...items.slice(0, from + 1)];
  const next = after.find((item) => !verdicts.has(item.id));
  return next ? next.id : null;
}

function show(root, state) {
  const verdicts = verdictsOf(state);
  for (const tile of root.querySelectorAll(".tile")) {
    const id = Number(tile.dataset.id);
    const verdict = verdicts.get(id);
    tile.setAttribute("aria-selected", String(id === state.at));
    tile.tabIndex = id === state.at ? 0 : -1;
    tile.classList.toggle("done", Boolean(verdict));
    tile.querySelector(".mark")?.remove();
    if (verdict) {
      const [text, kind] = verdictMark(verdict, state.data.classes);
      tile.append(make("span", `mark ${kind}`, text));
    }
  }
  const card = root.querySelector(".card");
  const item = state.data.items.find((one) => one.id === state.at);
  if (card && item) card.replaceChildren(...cardOf(item, verdicts.get(item.id), state.data));
}

function cardOf(item, verdict, data) {
  const name = (label) => data.classes[label];
  const stage = make("div", "stage");
  stage.append(picture(item.src, item.alt, "big"));
  if (verdict) {
    const [text, kind] = verdictMark(verdict, data.classes);
    stage.append(make("span", `mark ${kind}`, text));
  }
  const labels = make("div", "labels");
  const given = make("div", "label");
  given.append(make("span", "quiet", "labelled"), make("b", "", name(item.given)));
  labels.append(given);
  if (item.suggested !== item.given) {
    const guess = make("div", "label guess");
    guess.append(make("span", "quiet", "looks like"), make("b", "", name(item.suggested)));
    labels.append(make("span", "arrow", "→"), guess);
  }
  const doubt = make("div", "label doubt");
  doubt.append(make("span", "quiet", "suspicion"), make("span", "", item.suspicion));
  labels.append(doubt);
  const why = make("p", "why", item.why);
  const signals = make("div", "signals");
  for (const [title, value, text] of item.signals) {
    const track = make("div", "track");
    const fill = make("i");
    fill.style.width = `${100 * value}%`;
    track.append(fill);
    signals.append(make("span", "quiet", title), track, make("span", "quiet number", text));
  }
  const button = (text, key, action, main = false) => {
    const node = make("button", main ? "act main" : "act", text);
    node.append(make("kbd", "", key));
    node.dataset.action = action;
    return node;
  };
  const acts = make("div", "acts");
  const same = item.suggested === item.given;
  if (!same) acts.append(button(`It is ${name(item.suggested)}`, "Enter", "accept", true));
  acts.append(button(`Keep ${name(item.given)}`, "K", "keep", same));
  acts.append(button("Drop", "X", "drop"), button("Undo", "U", "undo"));
  const classes = make("div", "classes");
  data.classes.forEach((text, label) => {
    const node = make("button", label === item.given ? "given" : "");
    node.title = `It is ${text}`;
    const key = data.keys[label];
    // On digits the key is the name: once is enough.
    if (key !== undefined) node.append(make("kbd", "", key));
    if (key !== text) node.append(make("span", "", text));
    node.dataset.action = "relabel";
    node.dataset.label = label;
    classes.append(node);
  });
  const other = make("div", "other");
  other.append(make("span", "quiet", "or another class"), classes);
  return [stage, labels, acts, why, signals, other];
}

function act(root, state, name, label = null) {
  if (name === "undo") {
    state.queue.push({ type: "undo" });
    return;
  }
  const at = state.data.items.findIndex((item) => item.id === state.at);
  const item = state.data.items[at];
  if (!item) return;
  const choice = name === "accept" ? (item.suggested === item.given ? "keep" : "relabel") : name;
  const to = name === "accept" ? item.suggested : label;
  // To the label that it has is to keep it.
  const verdict = choice === "relabel" && to === item.given ? "keep" : choice;
  state.queue.push({ type: "decide", id: item.id, verdict, label: verdict === "relabel" ? to : null });
  const next = nextOpen(state, at);
  if (next !== null) state.at = next;
  else if (state.data.more) {
    state.at = -1; // nothing until the next page is here, so that a fast key hits no wrong image
    state.queue.push({ type: "more" });
  }
  show(root, state);
  focusTile(root, state);
}

function focusTile(root, state) {
  const tile = root.querySelector(`.tile[data-id="${state.at}"]`);
  if (!tile) return;
  tile.focus({ preventScroll: true });
  tile.scrollIntoView({ block: "nearest" });
}

function onClick(event, root, state) {
  const button = event.target.closest("button[data-action]");
  if (button) {
    const { action, label } = button.dataset;
    act(root, state, action, label === undefined ? null : Number(label));
    return;
  }
  const tile = event.target.closest(".tile");
  if (!tile) return;
  state.at = Number(tile.dataset.id);
  show(root, state);
  focusTile(root, state);
}

function onKey(event, root, state) {
  const inside = event.composedPath().includes(root);
  if (typing(event.composedPath()[0]) || event.altKey || event.metaKey) return;
  const key = event.key.toLowerCase();
  if (key === "u" && !event.ctrlKey) act(root, state, "undo");
  else if (key === "z" && event.ctrlKey && !event.shiftKey) act(root, state, "undo");
  else if (event.ctrlKey || event.shiftKey) return;
  else if (key === "k") act(root, state, "keep");
  else if (key === "x") act(root, state, "drop");
  else if (state.data.keys.includes(key)) act(root, state, "relabel", state.data.keys.indexOf(key));
  else if (!inside && event.target !== document.body) return;
  else if (key === "enter") {
    const button = event.composedPath()[0];
    if (button instanceof Element && button.closest("button")) return; // its own click does it
    act(root, state, "accept");
  } else {
    const tiles = [...root.querySelectorAll(".tile")];
    const move = step(event.key, tiles);
    if (move === null) return;
    const at = tiles.findIndex((tile) => Number(tile.dataset.id) === state.at);
    const next = tiles[at + move];
    if (next) state.at = Number(next.dataset.id);
    show(root, state);
    focusTile(root, state);
  }
  event.preventDefault();
  event.stopPropagation();
}
