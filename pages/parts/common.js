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

// Images that lead on: to another page where they have an address, else by their number.
const linksOf = (group) => {
  const box = make("section", "group");
  box.append(make("h3", "", group.title));
  const some = make("div", "some");
  for (const one of group.items) {
    const link = make(one.href ? "a" : "button", "other");
    link.classList.toggle("odd", Boolean(one.odd));
    link.classList.toggle("shaky", Boolean(one.shaky));
    link.title = one.alt;
    link.tabIndex = some.children.length ? -1 : 0; // one stop a group; arrows go on from it
    if (one.href) Object.assign(link, { href: one.href, target: "_blank", rel: "noopener" });
    else Object.assign(link.dataset, { action: "go", id: one.id });
    link.append(picture(one.src, one.alt, "mini"), make("span", "", one.caption));
    if (one.note) link.append(make("span", "", one.note));
    some.append(link);
  }
  box.append(group.items.length ? some : make("span", "quiet", group.empty));
  return box;
};

// Lines of JSON from the server: how far it is, then the answer.
async function answered(url, progress) {
  const answer = await fetch(url);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ; ) {
    const { value, done } = await reader.read();
    if (done) throw new Error("cut short");
    const lines = (text + value).split("\n");
    text = lines.pop();
    for (const one of lines.map((line) => JSON.parse(line))) {
      if (!("done" in one)) return one;
      progress(one.done / one.total);
    }
  }
}

// What a change of one training image would move: a fold that asks the server when it is opened.
const foldOf = (address, classes, given, suggested) => {
  const box = make("section", "reach");
  const head = make("button", "fold", "What would change");
  head.append(make("kbd", "", "W"));
  const asked = make("label", "asked");
  const select = make("select");
  const others = classes.map((_, label) => label).filter((label) => label !== given);
  const likely = (label) => label === suggested;
  for (const to of [...others.filter(likely), "drop", ...others.filter((label) => !likely(label))]) {
    select.add(new Option(to === "drop" ? "dropped" : `labelled ${classes[to]}`, to));
  }
  asked.append(make("span", "quiet", "if it were"), select);
  const told = make("div", "told");
  told.setAttribute("aria-live", "polite");
  const known = new Map();
  const show = (open) => {
    head.setAttribute("aria-expanded", String(open));
    asked.hidden = told.hidden = !open;
  };
  const ask = async () => {
    const to = select.value;
    const track = make("div", "track");
    const fill = make("i");
    track.append(fill);
    told.replaceChildren(make("span", "quiet", "Working it out"), track);
    const progress = (share) => (fill.style.width = `${100 * share}%`);
    const one = known.get(to) ?? await answered(address + to, progress)
      .catch(() => ({ error: "It could not be fetched: close this and open it again." }));
    if (one.found) known.set(to, one);
    if (select.value !== to) return;
    told.replaceChildren(...(one.found ? movesOf(one.found) : [make("p", "", one.error)]));
  };
  const toggle = () => {
    const open = head.getAttribute("aria-expanded") !== "true";
    show(open);
    if (open) ask();
  };
  head.addEventListener("click", toggle);
  select.addEventListener("change", ask);
  show(false);
  box.append(head, asked, told);
  return { box, toggle };
};

const movesOf = (found) => {
  const groups = found.groups.map((group) => linksOf({ ...group, title: group.label }));
  const nodes = [make("p", "", found.words), ...groups, make("p", "quiet", found.units)];
  if (found.measured.href) {
    const link = make("a", "", found.measured.words);
    Object.assign(link, { href: found.measured.href, target: "_blank", rel: "noopener" });
    nodes.push(link);
  }
  return nodes;
};

// The keys and what they do, in a dialog that is closed by Esc, by "?" or by its button.
const helpOf = (pairs) => {
  const help = make("dialog", "help");
  const keys = make("div", "keys");
  for (const [key, text] of pairs) keys.append(make("kbd", "", key), make("span", "", text));
  const close = make("button", "act", "Close");
  close.append(make("kbd", "", "Esc"));
  close.dataset.action = "close";
  close.addEventListener("click", () => help.close());
  help.addEventListener("keydown", (event) => event.key === "?" && help.close());
  help.append(make("h2", "", "Keys"), keys, close);
  return help;
};

// Streamlit puts an open popover at the end of the page: Tab on its button leads into it.
const intoPopover = (event) => {
  if (event.key !== "Tab" || event.shiftKey) return;
  if (!event.target.closest?.("[data-testid=stPopoverButton][aria-expanded=true]")) return;
  const first = "[data-testid=stPopoverBody] :is(input, button, a, select, textarea)";
  const inside = document.querySelector(first);
  if (!inside) return;
  event.preventDefault();
  event.stopPropagation();
  inside.focus();
};
if (!document.intoPopover) {
  document.intoPopover = true; // each of our elements has this file
  document.addEventListener("keydown", intoPopover, true);
}
