// Shared by our elements. Names from data are set as text, never as HTML.

const make = (tag, className = "", text = null) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== null) node.textContent = text;
  return node;
};

const picture = (src, alt, className) => {
  const image = make("img", className);
  image.loading = "lazy";
  image.decoding = "async";
  image.draggable = false;
  image.alt = alt;
  image.src = src;
  // Enlarged pixels stay sharp; photographs are smoothed.
  image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth < 64));
  return image;
};

// A Streamlit run that is under way swallows triggers, so actions wait here, numbered, and go to
// Python as state until Python says that it has seen them. `epoch` names the Python session: a
// new one (server restarted) gets again what the old one had not acknowledged, and nothing twice.
class Queue {
  constructor() {
    this.epoch = null;
    this.seq = 0;
    this.waiting = [];
  }

  sync(data, setStateValue) {
    this.set = setStateValue;
    if (data.epoch !== this.epoch) {
      this.epoch = data.epoch;
      this.seq = data.ack;
      for (const action of this.waiting) action.seq = ++this.seq;
      if (this.waiting.length) this.send();
    } else {
      this.waiting = this.waiting.filter((action) => action.seq > data.ack);
      this.seq = Math.max(this.seq, data.ack);
    }
  }

  push(action) {
    this.waiting.push({ ...action, seq: ++this.seq });
    this.send();
  }

  send() {
    this.set("queue", { epoch: this.epoch, actions: this.waiting });
  }
}

// State that outlives re-rendering: Streamlit calls the default export again with new data.
const MOUNTED = new WeakMap();
const mounted = (parent, create) => {
  if (!MOUNTED.has(parent)) MOUNTED.set(parent, create());
  return MOUNTED.get(parent);
};

// Decisions that Python has, overlaid by those still on their way.
const decided = (verdicts, queue) => {
  const all = new Map(Object.entries(verdicts).map(([id, v]) => [Number(id), v]));
  for (const action of queue.waiting) {
    if (action.type !== "decide") continue;
    for (const one of action.each ?? [action]) all.set(one.id, one);
  }
  return all;
};

const verdictMark = (verdict, classes) => {
  if (verdict.verdict === "keep") return ["✓", "kept"];
  if (verdict.verdict === "drop") return ["✕", "dropped"];
  if (verdict.verdict === "unsure") return ["?", "unsure"];
  return [`→ ${classes[verdict.label]}`, "relabelled"];
};

// How far to go for an arrow key in a wrapping grid of tiles; null for another key.
const step = (key, tiles) => {
  if (key === "ArrowLeft") return -1;
  if (key === "ArrowRight") return 1;
  if (key !== "ArrowUp" && key !== "ArrowDown") return null;
  const top = tiles[0] ? tiles[0].offsetTop : 0;
  const columns = Math.max(1, tiles.filter((tile) => tile.offsetTop === top).length);
  return key === "ArrowUp" ? -columns : columns;
};

const typing = (target) =>
  target instanceof Element &&
  target.closest("input, textarea, select, [contenteditable], [role=combobox], [role=slider]");
