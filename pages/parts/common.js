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
  let tries = 0; // a server that starts anew is back in seconds
  image.addEventListener("error", () => {
    if (tries++ < 6) setTimeout(() => (image.src = src), 1000 * 2 ** tries);
  });
  // Enlarged pixels stay sharp; photographs are smoothed.
  image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth < 64));
  return image;
};

// Put nodes into a place unless what is there is the same: a button that is drawn anew between press
// and release never hears of the click.
const refill = (place, nodes) => {
  const there = [...place.children];
  const same = there.length === nodes.length && nodes.every((node, n) => node.isEqualNode(there[n]));
  if (!same) place.replaceChildren(...nodes);
};

// A Streamlit run that is under way swallows triggers, so actions wait here, numbered, and go to
// Python as state until Python says that it has seen them. `epoch` names the Python session: a
// new one (server restarted) gets again what the old one had not acknowledged, and nothing twice.
class Queue {
  constructor(name) {
    this.name = name;
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
      if (this.again && this.waiting.length) this.send(); // the element's state went with it
    }
    this.again = false;
  }

  push(action) {
    const numbered = { ...action, seq: ++this.seq };
    this.waiting.push(numbered);
    this.send();
    return numbered;
  }

  send() {
    this.set("queue", { name: this.name, epoch: this.epoch, actions: this.waiting });
  }
}

// Streamlit puts an element in place anew when a run that another cut short had left it out. What
// was on its way then goes on, by the queue's name, which is another for another build. Each of our
// elements has this file, so the document keeps it.
document.pcKept ??= new Map();
const keptOf = ({ queue }) => {
  if (!document.pcKept.has(queue)) document.pcKept.set(queue, { queue: new Queue(queue) });
  const kept = document.pcKept.get(queue);
  kept.queue.again = true;
  return kept;
};

// Keys work wherever the focus is on the page, except in a field. Those that come while the element
// is out of place reach it once it is back; on another build they mean nothing.
const AWAY = 2000; // ms
const MISSED = 50;
document.pcMissed ??= new Map();
const onKeys = ({ key, queue }, root, handle) => {
  const here = location.pathname;
  const missed = [];
  const listen = (event) => {
    if (event.pcFor && event.pcFor !== key) return; // missed by another
    if (root.isConnected) return handle(event);
    if (location.pathname !== here) stop();
    else if (!typing(event.composedPath()[0]) && missed.push(event) > MISSED) missed.shift();
  };
  const stop = () => {
    document.removeEventListener("keydown", listen, true);
    return missed.filter((event) => event.timeStamp > performance.now() - AWAY);
  };
  const before = document.pcMissed.get(key);
  const late = before?.stop() ?? [];
  const meant = before?.queue === queue;
  document.pcMissed.set(key, { queue, stop });
  document.addEventListener("keydown", listen, true);
  // After the element is drawn; as new events, since those that are over have no way any more.
  setTimeout(() => {
    for (const event of meant ? late : []) {
      const again = new KeyboardEvent("keydown", event);
      document.body.dispatchEvent(Object.assign(again, { pcFor: key }));
    }
  });
};

// Root and state, which outlive re-rendering: Streamlit calls the default export again with new
// data. On another build both are new, and whatever listened to the old root hears nothing more.
const MOUNTED = new WeakMap();
const mounted = ({ data, parentElement }, create) => {
  const before = MOUNTED.get(parentElement);
  if (before && before.queue === data.queue) return [before.root, before.state];
  const root = before ? make("div", "pc") : parentElement.querySelector(".pc");
  before?.root.replaceWith(root);
  const state = create();
  MOUNTED.set(parentElement, { queue: data.queue, root, state });
  return [root, state];
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

// A key that is held down goes on through images and through what was done, but decides on one only.
const held = (event) => event.repeat && /^[a-z0-9?]$|^Enter$|^ $/i.test(event.key) && !/^[uyz]$/i.test(event.key);

// Case, accents and width make no difference to what is typed.
const folded = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toUpperCase().trim();

// The classes that hold what was typed, those first that are most likely meant: its name, its
// number, the start of its name, of a word in it, any part.
const matching = (classes, typed) => {
  const wanted = folded(typed);
  const rank = (name, label) => {
    const known = folded(name);
    if (known === wanted) return 0;
    if (String(label) === wanted) return 1;
    const at = known.indexOf(wanted);
    if (at < 0) return null;
    return at === 0 ? 2 : /[\p{L}\p{N}]/u.test(known[at - 1]) ? 4 : 3;
  };
  return classes
    .map((name, label) => [rank(name, label), label])
    .filter(([place]) => place !== null)
    .sort((a, b) => a[0] - b[0] || a[1] - b[1])
    .map(([, label]) => label);
};

// Buttons that say which class it is: all of them where they are few; else the `first`, or those
// that hold what is typed, of which Enter takes the first. `pick(label)`, `leave()` on Escape.
const WITHIN = 12;
const finder = ({ classes, keys, first, guess, pick, leave }) => {
  const many = classes.length > keys.length; // than have a key of their own
  const box = make("div", "finder");
  const list = make("div", "classes");
  const field = make("input", "find");
  field.placeholder = "Type a class or its number";
  field.setAttribute("aria-label", "Type the name or the number of a class");
  let shown = [];
  const take = (label) => {
    const at = [...list.children].indexOf(box.getRootNode().activeElement);
    field.value = "";
    draw();
    if (at >= 0) (many ? field : list.children[at])?.focus({ preventScroll: true });
    pick(label);
  };
  const draw = () => {
    const typed = field.value.trim();
    const some = typed ? matching(classes, typed) : many ? first : classes.map((_, label) => label);
    shown = typed ? some : [];
    const buttons = some.slice(0, WITHIN).map((label) => {
      const button = make("button", label === guess ? "guess" : "");
      button.title = `It is ${classes[label]}`;
      if (keys[label] !== undefined) button.append(make("kbd", "", keys[label]));
      // On digits the key is the name: once is enough.
      if (keys[label] !== classes[label]) button.append(make("span", "name", classes[label]));
      button.addEventListener("click", () => take(label));
      return button;
    });
    const rest = some.length - buttons.length;
    if (typed && rest) buttons.push(make("span", "quiet", `and ${rest} more`));
    if (typed && !some.length) buttons.push(make("span", "quiet", "No class is called so."));
    list.replaceChildren(...buttons);
  };
  field.addEventListener("input", draw);
  field.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.isComposing) return;
    if (event.key === "Enter" && shown.length) take(shown[0]);
    else if (event.key === "Escape") {
      field.value = "";
      draw();
      leave();
    }
  });
  draw();
  if (many) box.append(field);
  box.append(list);
  // To where a class is named: `typed` is what the key that led here says.
  box.open = (typed = "") => {
    if (!many) return list.querySelector("button")?.focus();
    field.value = typed;
    draw();
    field.focus({ preventScroll: true });
  };
  return box;
};

// A frame drawn with the mouse over the tiles in `box`. `start(event)` gives what is selected
// before, `change(ids)` is told of each tile more or less. A click without a way is left alone.
const ENDS = ["pointerup", "pointercancel"];
const framing = (box, tilesOf, start, change) => {
  box.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || event.pointerType !== "mouse") return;
    if (event.target.closest("button, input, a, .panel, .several")) return;
    const here = (e) => {
      const { left, top } = box.getBoundingClientRect();
      return [e.clientX - left + box.scrollLeft, e.clientY - top + box.scrollTop];
    };
    const from = here(event);
    let frame = null;
    let before = null;
    let places = [];
    let told = "";
    const move = (e) => {
      const to = here(e);
      if (!frame) {
        if (Math.hypot(to[0] - from[0], to[1] - from[1]) < 6) return;
        before = start(event);
        frame = make("div", "frame");
        box.append(frame);
        const at = box.getBoundingClientRect();
        places = tilesOf().map((tile) => { // measured once, however many there are
          const { left, top, width, height } = tile.getBoundingClientRect();
          const [x, y] = [left - at.left + box.scrollLeft, top - at.top + box.scrollTop];
          return [Number(tile.dataset.id), x, y, x + width, y + height];
        });
      }
      const [x0, y0] = [Math.min(from[0], to[0]), Math.min(from[1], to[1])];
      const [x1, y1] = [Math.max(from[0], to[0]), Math.max(from[1], to[1])];
      Object.assign(frame.style, { left: `${x0}px`, top: `${y0}px`, width: `${x1 - x0}px`,
                                   height: `${y1 - y0}px` });
      const inside = places.filter(([, l, t, r, b]) => l < x1 && r > x0 && t < y1 && b > y0);
      const ids = inside.map(([id]) => id);
      if (String(ids) === told) return;
      told = String(ids);
      change([...before, ...ids]);
    };
    const end = () => {
      document.removeEventListener("pointermove", move);
      for (const kind of ENDS) document.removeEventListener(kind, end);
      if (!frame) return;
      frame.remove();
      // The click that ends it picks nothing.
      const swallow = (e) => e.stopPropagation();
      box.addEventListener("click", swallow, { capture: true });
      setTimeout(() => box.removeEventListener("click", swallow, { capture: true }));
    };
    document.addEventListener("pointermove", move);
    for (const kind of ENDS) document.addEventListener(kind, end);
  });
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

// Moves the focus along them by an arrow key; whether the key was one, on one of them.
const alongLinks = (from, key) => {
  const some = from instanceof Element ? from.closest(".some") : null;
  const links = some ? [...some.children] : [];
  const by = some ? step(key, links) : null;
  if (by !== null) links[links.indexOf(from) + by]?.focus();
  return by !== null;
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
