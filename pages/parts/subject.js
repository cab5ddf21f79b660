// The chosen test image, large, beside the probabilities of its classes; whether its label is right.
//
// data: key, epoch, ack, id, src, alt, title, name (of the file), facts ([text, tone]), bars ({name,
//       value, text, tone}), doubt (of its label, in words), verdict (the decision on its label, null for none), given (its label),
//       classes, keys, likely (classes to offer); without these three nothing is decided), original, seen (addresses of its pixels and of
//       those that the network gets), about ([of the original, of the seen])

export default function (component) {
  const { data, setStateValue } = component;
  const [root, state] = mounted(component, () => ({ queue: keptOf(data).queue, drawn: null }));
  state.queue.sync(data, setStateValue);
  state.data = data;
  if (!state.wired) {
    state.wired = true;
    state.zoom = make("dialog", "zoom");
    state.zoom.addEventListener("click", () => state.zoom.close());
    onKeys(data, root, (event) => onKey(event, root, state));
  }
  const { epoch, ack, ...shown } = data;
  const drawn = JSON.stringify(shown);
  if (drawn === state.drawn) return;
  state.drawn = drawn;
  draw(root, state);
}

function draw(root, state) {
  const { data } = state;
  const image = picture(data.src, data.alt, "big");
  image.title = "Enlarge (Z)";
  image.addEventListener("click", () => zoom(state));
  const name = make("span", "file", data.name);
  name.title = data.name;
  const title = make("div", "title");
  title.append(make("span", "", data.title), name);
  const words = make("div", "words");
  const facts = make("div", "facts");
  for (const [text, tone] of data.facts) facts.append(make("span", `fact ${tone}`, text));
  const bars = make("div", "bars");
  for (const one of data.bars) {
    const track = make("div", "track");
    const fill = make("i", one.tone);
    fill.style.width = `${100 * one.value}%`;
    track.append(fill);
    const label = make("span", `name ${one.tone}`, one.name);
    label.title = one.name;
    bars.append(label, track, make("span", "value", one.text));
  }
  const at = acts(root).indexOf(root.getRootNode().activeElement);
  words.append(title, facts, bars);
  if (data.doubt) words.append(make("div", "quiet", data.doubt));
  // The zoom stays: an open dialog that is taken out and put back is none any more.
  for (const node of [...root.children]) if (node !== state.zoom) node.remove();
  root.prepend(image, words, ...(data.classes ? [decisions(state)] : []));
  if (!state.zoom.isConnected) root.append(state.zoom);
  if (state.zoom.open) fillZoom(state);
  if (at >= 0) acts(root).at(Math.min(at, acts(root).length - 1))?.focus({ preventScroll: true });
}

// What can have the focus, in order; drawn anew it has it where it was.
const acts = (root) => [...root.querySelectorAll("button, input")];

function decisions(state) {
  const { data } = state;
  const box = make("div", "ask");
  const line = make("div", "acts");
  line.append(make("span", "quiet", "Is the label wrong?"));
  for (const [name, text, key] of [
    ["keep", "It is right", "K"],
    ["drop", "Exclude the image", "X"],
    ["undo", "Undo", "U"],
    ["redo", "Redo", "Y"],
  ]) {
    const button = make("button", data.verdict?.verdict === name ? "act is" : "act", text);
    button.append(make("kbd", "", key));
    button.addEventListener("click", () => act(state, name));
    line.append(button);
  }
  const other = make("div", "acts");
  state.finder = finder({
    classes: data.classes,
    keys: data.keys,
    first: data.likely,
    guess: data.verdict?.label ?? null,
    pick: (label) => act(state, "relabel", label),
    leave: () => line.querySelector("button").focus({ preventScroll: true }),
  });
  other.append(make("span", "quiet", "It is"), state.finder);
  box.append(line, other);
  return box;
}

function act(state, name, label = null) {
  const { id, given } = state.data;
  if (name === "undo" || name === "redo") return state.queue.push({ type: name });
  // To the label that it has is to keep it.
  const same = name === "relabel" && label === given;
  const verdict = same ? "keep" : name;
  state.queue.push({ type: "decide", id, verdict, label: same ? null : label });
}

// The pixels as stored beside those that the network gets, neither smoothed.
function zoom(state) {
  fillZoom(state);
  state.zoom.showModal();
}

function fillZoom(state) {
  const { data } = state;
  const pair = make("div", "pair");
  for (const [title, src, about] of [
    ["As stored", data.original, data.about[0]],
    ["As the network sees it", data.seen, data.about[1]],
  ]) {
    const figure = make("figure");
    const image = picture(src, `${data.alt}, ${title.toLowerCase()}`, "pixels");
    image.loading = "eager";
    const caption = make("figcaption", "", title);
    caption.append(make("span", "quiet", about));
    figure.append(image, caption);
    pair.append(figure);
  }
  const words = make("p", "caption");
  words.append(make("span", "", data.title), make("span", "file", data.name));
  state.zoom.replaceChildren(pair, words);
}

const PLAIN = { k: "keep", x: "drop", u: "undo", y: "redo" };

function onKey(event, root, state) {
  const from = event.composedPath()[0];
  if (typing(from) || event.altKey || event.ctrlKey || event.metaKey || event.isComposing) return;
  const key = event.key.toLowerCase();
  const { keys } = state.data;
  if (key === "z") {
    if (state.zoom.open) state.zoom.close();
    else zoom(state);
  } else if (!keys || !event.composedPath().includes(root) || state.zoom.open) return;
  else if (PLAIN[key]) act(state, PLAIN[key]);
  else if (keys.includes(key)) act(state, "relabel", keys.indexOf(key));
  else if (key === "l" || (!keys.length && /^[0-9]$/.test(key))) {
    state.finder.open(key === "l" ? "" : key);
  } else return;
  event.preventDefault();
  event.stopPropagation();
}
