// Every image a point in the plane: pan, zoom, hover, click, and draw around many.
//
// data: key, epoch, ack, points (address of the bytes that points.py packs), train, test (how many of
//       each; the training images come first), labelled (whether test images are), thumbs (address of images), classes, hidden (class
//       numbers), colour ("class" | "suspicion" | "decision"), images ("both" | "training" |
//       "test"), label (a class number, or null for all), only ("everything" | "wrong predictions" |
//       "undecided suspects"), decided (base64 of uint32: position * 8 + verdict), selected (base64
//       of uint32: positions among all points)
//
// Tens of thousands of points are drawn by writing pixels: a stamp for each kind of mark, worked out
// once for a size, is laid down at every point. This needs no graphics card and is quicker here than
// as many calls of the canvas.

const VERDICT = ["", "keep", "relabel", "drop", "unsure"];
const VERDICT_WORDS = ["undecided", "kept", "relabelled", "dropped", "unsure"];
const VERDICT_COLOURS = [null, "#2c9a5b", "#5870ee", "#d8453a", "#b39b1f"];
const REACH = 9; // pixels from a point that still count as on it
const STILL = 4; // pixels that a click may move
const SIDE = 28; // cells each way in which the densest place of a class is looked for
const AROUND = 2; // cells around it that count too
const NAMED = 40; // classes named on the map
const RINGED = 300; // selected images that get a ring; more are told by the paleness of the others
const MOST_ZOOM = 80;
const MARKS = [
  ["training image", '<circle cx="9" cy="9" r="5" fill="currentColor"/>'],
  ["test image", '<path d="M9 3l6 6-6 6-6-6z" fill="currentColor"/>'],
  ["label probably wrong", '<circle cx="9" cy="9" r="3.2" fill="currentColor" opacity=".5"/><circle cx="9" cy="9" r="6.5" fill="none" stroke="currentColor" stroke-width="2"/>'],
  ["predicted wrong", '<path d="M4 4l10 10M14 4L4 14" stroke="currentColor" stroke-width="2.4" fill="none"/>'],
];

export default function (component) {
  const { data, setStateValue } = component;
  const [root, state] = mounted(component, () => ({
    queue: keptOf(data).queue,
    data,
    view: { x: 0, y: 0, zoom: 1 },
    lasso: false,
    drag: null,
    over: -1,
    selected: new Set(),
    stamps: new Map(),
  }));
  state.queue.sync(data, setStateValue);
  state.data = data;
  if (!state.parts) {
    state.parts = skeleton(root);
    wire(root, state);
  }
  if (state.address !== data.points) fetchPoints(root, state);
  refresh(root, state);
}

// --- the parts of the element

function skeleton(root) {
  const bar = make("div", "bar");
  bar.setAttribute("role", "toolbar");
  bar.setAttribute("aria-label", "Map");
  const button = (action, text, key, title) => {
    const node = make("button", "act", text);
    if (key) node.append(make("kbd", "", key));
    node.dataset.action = action;
    node.title = title;
    return node;
  };
  const buttons = {
    lasso: button("lasso", "Draw around", "L", "Select all images within a line that you draw"),
    reset: button("reset", "Whole map", "0", "Zoom out to all of it; also by a double click"),
    suspects: button("suspects", "", "", "Select every shown training image whose label is suspicious"),
    wrong: button("wrong", "", "", "Select every shown test image that is predicted wrong"),
    all: button("all", "", "", "Select everything that is shown"),
    clear: button("clear", "Select none", "Esc", "Forget the selection"),
  };
  bar.append(buttons.lasso, buttons.reset, make("span", "apart"), make("span", "quiet", "Select"));
  bar.append(buttons.suspects, buttons.wrong, buttons.all, buttons.clear);
  const said = make("span", "said");
  bar.append(said);
  const stage = make("div", "stage");
  stage.tabIndex = 0;
  stage.setAttribute("role", "application");
  stage.setAttribute(
    "aria-label",
    "Map of the images. Arrows move it, plus and minus zoom, L draws around images, Escape clears.",
  );
  const base = make("canvas");
  const above = make("canvas");
  const tip = make("div", "tip");
  tip.hidden = true;
  const empty = make("div", "empty", "Fetching the points …");
  const live = make("div", "live");
  live.setAttribute("aria-live", "polite");
  stage.append(base, above, tip, empty, live);
  const legend = make("div", "legend");
  root.replaceChildren(bar, stage, legend);
  return { bar, buttons, said, stage, base, above, tip, empty, live, legend };
}

function wire(root, state) {
  const { stage, bar, legend } = state.parts;
  stage.addEventListener("pointerdown", (event) => onDown(event, root, state));
  stage.addEventListener("pointermove", (event) => onMove(event, root, state));
  stage.addEventListener("pointerup", (event) => onUp(event, root, state));
  stage.addEventListener("pointercancel", () => endDrag(root, state));
  stage.addEventListener("pointerleave", () => hover(state, -1));
  stage.addEventListener("dblclick", () => reset(root, state));
  stage.addEventListener("wheel", (event) => onWheel(event, root, state), { passive: false });
  bar.addEventListener("click", (event) => {
    const button = event.target.closest("[data-action]");
    if (button) act(root, state, button.dataset.action);
  });
  legend.addEventListener("click", (event) => {
    const entry = event.target.closest("[data-label]");
    if (entry) toggleClass(root, state, Number(entry.dataset.label));
    else if (event.target.closest("[data-action=show-all]")) hide(root, state, []);
  });
  // Keys work wherever the focus is on this page, except in a field or what is open above it; arrows
  // only on the map.
  onKeys(state.data, root, (event) => onKey(event, root, state));
  new ResizeObserver(() => paint(root, state)).observe(stage);
}

// --- the points

function fetchPoints(root, state) {
  const { points: address, train, test } = state.data;
  state.address = address;
  fetch(address)
    .then((answer) => (answer.ok ? answer.arrayBuffer() : Promise.reject(answer.status)))
    .then((bytes) => {
      if (state.address !== address) return;
      state.points = unpacked(bytes, train, test);
      state.drawn = null;
      refresh(root, state);
    })
    .catch(() => {
      state.address = null;
      state.parts.empty.textContent = "The points could not be fetched. Reload the page.";
    });
}

function unpacked(bytes, train, test) {
  const count = train + test;
  const xy = new Uint16Array(bytes, 0, 2 * count);
  const points = {
    count,
    train,
    xy,
    given: new Uint16Array(bytes, 4 * count, count),
    other: new Uint16Array(bytes, 6 * count, count),
    chance: new Uint8Array(bytes, 8 * count, count),
    doubt: new Uint8Array(bytes, 9 * count, count),
    width: 1,
    height: 1,
  };
  for (let p = 0; p < count; p++) {
    points.width = Math.max(points.width, xy[2 * p]);
    points.height = Math.max(points.height, xy[2 * p + 1]);
  }
  // What stands out is drawn last: plain training images, plain test images, then the doubtful.
  const layer = (p) => 2 * points.doubt[p] + (p >= train ? 1 : 0);
  const layers = [[], [], [], []];
  for (let p = 0; p < count; p++) layers[layer(p)].push(p);
  points.order = Uint32Array.from(layers.flat());
  return points;
}

const decode = (text) => {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return new Uint32Array(bytes.buffer);
};

const encode = (numbers) => {
  const bytes = new Uint8Array(Uint32Array.from(numbers).buffer);
  let binary = "";
  for (let i = 0; i < bytes.length; i += 8192) {
    binary += String.fromCharCode(...bytes.subarray(i, i + 8192));
  }
  return btoa(binary);
};

// --- what is shown, in which colour

// Takes what Python says, unless something newer is on its way to it.
function refresh(root, state) {
  const { data, points, queue } = state;
  if (!points) return;
  const waiting = (type) => queue.waiting.filter((action) => action.type === type).at(-1);
  const selected = waiting("select")?.points ?? data.selected;
  if (selected !== state.selectedText) {
    state.selectedText = selected;
    state.selected = new Set([...decode(selected)].filter((p) => p < points.count));
  }
  state.hidden = new Set(waiting("hide")?.classes ?? data.hidden);
  const drawn = JSON.stringify([
    data.points, data.colour, data.images, data.label, data.only, data.decided, data.classes,
    [...state.hidden],
  ]);
  if (drawn !== state.drawn) {
    state.drawn = drawn;
    state.verdict = new Uint8Array(points.count);
    for (const one of decode(data.decided)) state.verdict[one >> 3] = one & 7;
    choose(state);
    state.theme = null; // colours anew
  }
  paint(root, state);
}

// 0: nothing is drawn, 1: only a shadow, 2: shown, and can be picked.
function choose(state) {
  const { data, points, hidden, verdict } = state;
  const shown = (state.shown = new Uint8Array(points.count));
  const counts = (state.counts = { shown: 0, suspects: 0, wrong: 0, pale: 0 });
  for (let p = 0; p < points.count; p++) {
    if (hidden.has(points.given[p])) continue;
    const test = p >= points.train;
    const passes =
      (data.images === "both" || (data.images === "test") === test) &&
      (data.label === null || points.given[p] === data.label) &&
      (data.only !== "wrong predictions" || (test && points.doubt[p])) &&
      (data.only !== "undecided suspects" || (!test && points.doubt[p] && !verdict[p]));
    shown[p] = passes ? 2 : 1;
    counts[passes ? "shown" : "pale"]++;
    if (!passes) continue;
    if (points.doubt[p]) counts[test ? "wrong" : "suspects"]++;
  }
  state.names = densest(state);
}

// Where the most shown images of each class are close together: its name goes there.
function densest({ data, points, shown }) {
  const sums = new Map(); // class -> count, sum of x, sum of y of each cell
  const cell = (value, most) => Math.floor((SIDE * value) / (most + 1));
  for (let p = 0; p < points.count; p++) {
    if (shown[p] !== 2 || points.doubt[p]) continue;
    const [x, y] = [points.xy[2 * p], points.xy[2 * p + 1]];
    if (!sums.has(points.given[p])) sums.set(points.given[p], new Float64Array(3 * SIDE * SIDE));
    const cells = sums.get(points.given[p]);
    const at = 3 * (cell(y, points.height) * SIDE + cell(x, points.width));
    cells[at]++;
    cells[at + 1] += x;
    cells[at + 2] += y;
  }
  return [...sums]
    .map(([label, cells]) => {
      let best = [0, 0, 0];
      for (let row = 0; row < SIDE; row++) {
        for (let column = 0; column < SIDE; column++) {
          const here = [0, 0, 0];
          for (let r = Math.max(0, row - AROUND); r <= Math.min(SIDE - 1, row + AROUND); r++) {
            for (let c = Math.max(0, column - AROUND); c <= Math.min(SIDE - 1, column + AROUND); c++) {
              for (const i of [0, 1, 2]) here[i] += cells[3 * (r * SIDE + c) + i];
            }
          }
          if (here[0] > best[0]) best = here;
        }
      }
      const [count, x, y] = best;
      return { text: data.classes[label], x: x / count, y: y / count, count };
    })
    .sort((a, b) => b.count - a.count)
    .slice(0, NAMED);
}

const pixel = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
// Any colour that CSS knows, as a number 0xBBGGRR.
function number(colour) {
  pixel.clearRect(0, 0, 1, 1);
  pixel.fillStyle = colour;
  pixel.fillRect(0, 0, 1, 1);
  const [r, g, b] = pixel.getImageData(0, 0, 1, 1).data;
  return (b << 16) | (g << 8) | r;
}

const css = (colour) => `#${[0, 8, 16].map((s) => ((colour >> s) & 255).toString(16).padStart(2, "0")).join("")}`;

const mix = (a, b, share) =>
  [0, 8, 16].reduce((sum, s) => {
    const one = ((a >> s) & 255) * (1 - share) + ((b >> s) & 255) * share;
    return sum | (Math.round(one) << s);
  }, 0);

// Hues all around, neighbours in number far apart in lightness too.
function classColours(count, dark) {
  const light = dark ? [0.74, 0.62, 0.84] : [0.6, 0.47, 0.72];
  return Array.from({ length: count }, (_, c) => {
    const hue = count <= 12 ? (360 * c) / count + 20 : (c * 137.508 + 20) % 360;
    return number(`oklch(${light[c % 3]} 0.155 ${hue})`);
  });
}

function themed(root, state) {
  const style = getComputedStyle(root);
  const text = style.color;
  const ground = style.getPropertyValue("--st-background-color").trim() || "#fff";
  const primary = style.getPropertyValue("--st-primary-color").trim() || "#3451b2";
  const key = [text, ground, primary].join();
  if (state.theme === key) return;
  state.theme = key;
  const { data, points, verdict } = state;
  const paper = number(ground);
  const ink = number(text);
  const dark = (paper & 255) + ((paper >> 8) & 255) + (paper >> 16) < 384;
  const grey = mix(paper, ink, dark ? 0.42 : 0.34);
  const hot = number(dark ? "#ff7a45" : "#d9480f");
  const classes = classColours(data.classes.length, dark);
  const ramp = Array.from({ length: 256 }, (_, i) => mix(grey, hot, Math.sqrt(i / 255)));
  const verdicts = VERDICT_COLOURS.map((colour) => (colour ? number(colour) : grey));
  const fill = new Uint32Array(points.count);
  for (let p = 0; p < points.count; p++) {
    if (data.colour === "class") fill[p] = classes[points.given[p]];
    else if (p >= points.train) fill[p] = grey;
    else if (data.colour === "suspicion") fill[p] = ramp[points.chance[p]];
    else fill[p] = verdicts[verdict[p]];
  }
  state.paint = { paper, ink, grey, hot, classes, ramp, verdicts, fill, primary: number(primary) };
  drawLegend(state);
}

// --- drawing

// The pixels of a mark, as steps from that of its point in rows of `stride`: those that it covers,
// and those at its edge, with how much of them from 0 to 256.
function stamp(state, kind, radius, stride) {
  const name = `${kind} ${radius} ${stride}`;
  if (state.stamps.has(name)) return state.stamps.get(name);
  const reach = Math.ceil(radius + 1);
  const solid = [];
  const soft = [];
  const alpha = [];
  const edge = (distance) => Math.max(0, Math.min(1, distance + 0.5));
  const strength = (x, y) => {
    const far = Math.hypot(x, y);
    const thick = Math.max(1.1, radius * 0.2);
    if (kind === "disc") return edge(radius - far);
    if (kind === "diamond") return edge((radius * 1.2 - Math.abs(x) - Math.abs(y)) / Math.SQRT2);
    if (kind === "ring") return edge(thick / 2 - Math.abs(far - radius + thick / 2));
    const across = Math.abs(Math.abs(x) - Math.abs(y)) / Math.SQRT2;
    const width = (kind === "halo" ? 2.2 : 1) * thick;
    const length = kind === "halo" ? radius : radius - thick / 2;
    return edge(width / 2 - across) * edge(length - Math.max(Math.abs(x), Math.abs(y)) * 1.25);
  };
  for (let y = -reach; y <= reach; y++) {
    for (let x = -reach; x <= reach; x++) {
      const value = Math.round(256 * strength(x, y));
      if (value === 256) solid.push(y * stride + x);
      else if (value) {
        soft.push(y * stride + x);
        alpha.push(value);
      }
    }
  }
  const [whole, rim, share] = [solid, soft, alpha].map((some) => Int32Array.from(some));
  const made = { solid: whole, soft: rim, alpha: share };
  if (state.stamps.size > 200) state.stamps.clear();
  state.stamps.set(name, made);
  return made;
}

const fit = (state) => {
  const { stage } = state.parts;
  const { points } = state;
  const [w, h] = [stage.clientWidth, stage.clientHeight];
  return Math.min((w - 48) / points.width, (h - 48) / points.height);
};

// From a point's numbers to pixels of the page: scale, and where (0, 0) is.
function projection(state) {
  const { stage } = state.parts;
  const { points, view } = state;
  const scale = fit(state) * view.zoom;
  return {
    scale,
    left: stage.clientWidth / 2 - (points.width / 2 + view.x) * scale,
    top: stage.clientHeight / 2 - (points.height / 2 + view.y) * scale,
  };
}

function paint(root, state) {
  if (!state.points || state.asked) return;
  state.asked = requestAnimationFrame(() => {
    state.asked = 0;
    if (!root.isConnected) return;
    themed(root, state);
    drawPoints(state);
    drawAbove(state);
    tell(state);
  });
}

function drawPoints(state) {
  const { points, shown, parts, paint: colours, view, selected } = state;
  const dpr = window.devicePixelRatio || 1;
  const width = Math.round(parts.stage.clientWidth * dpr);
  const height = Math.round(parts.stage.clientHeight * dpr);
  if (!width || !height) return;
  const { scale, left, top } = projection(state);
  const usual = points.count > 20000 ? 1.5 : points.count > 8000 ? 2 : 2.6;
  const radius = Math.round(4 * dpr * Math.min(7, usual * view.zoom ** 0.4)) / 4;
  const margin = Math.ceil(2 * radius + 6 * dpr); // so that no stamp needs to be clipped
  const stride = width + 2 * margin;
  const rows = height + 2 * margin;
  if (parts.base.width !== width || parts.base.height !== height) {
    parts.base.width = width;
    parts.base.height = height;
  }
  if (!state.image || state.image.width !== stride || state.image.height !== rows) {
    state.image = new ImageData(stride, rows);
    state.buffer = new Uint32Array(state.image.data.buffer);
  }
  const buffer = state.buffer;
  buffer.fill((0xff000000 | colours.paper) >>> 0);
  const blend = (to, rb, g, a) => {
    const under = buffer[to];
    buffer[to] =
      0xff000000 |
      (((Math.imul(rb, a) + Math.imul(under & 0xff00ff, 256 - a)) >>> 8) & 0xff00ff) |
      (((Math.imul(g, a) + Math.imul(under & 0x00ff00, 256 - a)) >>> 8) & 0x00ff00);
  };
  const put = ({ solid, soft, alpha }, at, colour, strength) => {
    const rb = colour & 0xff00ff;
    const g = colour & 0x00ff00;
    if (strength === 256) for (let i = 0; i < solid.length; i++) buffer[at + solid[i]] = 0xff000000 | colour;
    else for (let i = 0; i < solid.length; i++) blend(at + solid[i], rb, g, strength);
    for (let i = 0; i < soft.length; i++) blend(at + soft[i], rb, g, (alpha[i] * strength) >> 8);
  };
  const line = Math.round(4 * (radius + 2.2 * dpr)) / 4;
  const disc = stamp(state, "disc", radius, stride);
  const diamond = stamp(state, "diamond", Math.round(4 * (radius + 0.5 * dpr)) / 4, stride);
  const ring = stamp(state, "ring", line, stride);
  const chosen = stamp(state, "ring", line + 1.5 * dpr, stride);
  const halo = stamp(state, "halo", line + dpr, stride);
  const cross = stamp(state, "cross", line + dpr, stride);
  const small = stamp(state, "disc", Math.max(1, radius * 0.6), stride);
  const place = (p) => {
    const x = Math.round((points.xy[2 * p] * scale + left) * dpr) + margin;
    const y = Math.round((points.xy[2 * p + 1] * scale + top) * dpr) + margin;
    const inside = x >= margin / 2 && y >= margin / 2 && x < stride - margin / 2 && y < rows - margin / 2;
    return inside ? y * stride + x : -1;
  };
  for (const p of state.counts.pale ? points.order : []) {
    if (shown[p] !== 1) continue;
    const at = place(p);
    if (at >= 0) put(small, at, colours.ink, 26);
  }
  for (const p of points.order) {
    if (shown[p] !== 2) continue;
    const at = place(p);
    if (at < 0) continue;
    const test = p >= points.train;
    const pale = selected.size && !selected.has(p);
    put(test ? diamond : disc, at, colours.fill[p], pale ? 70 : 256);
    if (!points.doubt[p]) continue;
    if (test) {
      if (!pale) put(halo, at, colours.paper, 256);
      put(cross, at, colours.ink, pale ? 70 : 256);
    } else put(ring, at, colours.ink, pale ? 60 : 256);
  }
  for (const p of selected.size <= RINGED ? selected : []) {
    const at = shown[p] === 2 ? place(p) : -1;
    if (at >= 0) put(chosen, at, colours.primary, 256);
  }
  parts.base.getContext("2d").putImageData(state.image, -margin, -margin);
}

// The names of the classes, the point under the pointer, and the line being drawn.
function drawAbove(state) {
  const { parts, points, names, paint: colours, over, drag } = state;
  const dpr = window.devicePixelRatio || 1;
  const { base, above, stage } = parts;
  if (above.width !== base.width || above.height !== base.height) {
    above.width = base.width;
    above.height = base.height;
  }
  const pen = above.getContext("2d");
  pen.setTransform(dpr, 0, 0, dpr, 0, 0);
  pen.clearRect(0, 0, stage.clientWidth, stage.clientHeight);
  const { scale, left, top } = projection(state);
  pen.font = `650 15px ${getComputedStyle(stage).fontFamily}`;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.lineJoin = "round";
  pen.lineWidth = 4;
  pen.strokeStyle = css(colours.paper);
  pen.fillStyle = css(colours.ink);
  for (const { text, x, y } of names) {
    const name = text.length > 18 ? `${text.slice(0, 17)}…` : text;
    pen.strokeText(name, x * scale + left, y * scale + top);
    pen.fillText(name, x * scale + left, y * scale + top);
  }
  if (over >= 0) {
    pen.beginPath();
    pen.arc(points.xy[2 * over] * scale + left, points.xy[2 * over + 1] * scale + top, 9, 0, 7);
    pen.lineWidth = 2.5;
    pen.strokeStyle = css(colours.primary);
    pen.stroke();
  }
  if (drag?.line) {
    pen.beginPath();
    for (const [x, y] of drag.line) pen.lineTo(x, y);
    pen.closePath();
    pen.fillStyle = `${css(colours.primary)}22`;
    pen.fill();
    pen.lineWidth = 1.5;
    pen.strokeStyle = css(colours.primary);
    pen.stroke();
  }
}

function tell(state) {
  const { parts, counts, points, selected, data, lasso } = state;
  const { buttons } = parts;
  const many = (count) => count.toLocaleString("en");
  const label = (button, text, count) => {
    button.textContent = `${text} ${many(count)}`;
    button.disabled = count === 0;
  };
  label(buttons.suspects, "suspects", counts.suspects);
  label(buttons.wrong, "wrong predictions", counts.wrong);
  buttons.wrong.style.display = data.labelled ? "" : "none";
  label(buttons.all, "all shown", counts.shown);
  buttons.clear.disabled = selected.size === 0;
  buttons.lasso.setAttribute("aria-pressed", String(lasso));
  parts.stage.classList.toggle("lasso", lasso);
  parts.stage.classList.toggle("over", state.over >= 0 && !lasso);
  const chosen = selected.size ? ` · ${many(selected.size)} selected` : "";
  const said = `${many(counts.shown)} of ${many(points.count)} images${chosen}`;
  if (parts.said.textContent !== said) parts.said.textContent = parts.live.textContent = said;
  parts.empty.textContent = counts.shown ? "" : "No image is like that. Widen the choice above.";
  parts.stage.dataset.view = [data.points, state.view.zoom].join(" "); // that it is drawn
}

function drawLegend(state) {
  const { parts, data, points, hidden, verdict, paint: colours } = state;
  const nodes = [];
  const section = (title, ...children) => {
    const box = make("div");
    box.append(make("h3", "", title), ...children);
    nodes.push(box);
    return box;
  };
  const swatch = (colour) => {
    const dot = make("i");
    if (colour !== null) dot.style.background = css(colour);
    return dot;
  };
  if (data.colour === "suspicion") {
    const ramp = make("div", "ramp");
    const stops = [0, 32, 64, 128, 192, 255].map((i) => `${css(colours.ramp[i])} ${(100 * i) / 255}%`);
    ramp.style.background = `linear-gradient(90deg, ${stops.join()})`;
    const ends = make("div", "ends");
    ends.append(make("span", "", "0 %"), make("span", "", "100 %"));
    section("How probably the label is wrong", ramp, ends);
  }
  if (data.colour === "decision") {
    const tally = VERDICT_WORDS.map(() => 0);
    for (let p = 0; p < points.train; p++) tally[verdict[p]]++;
    const entries = make("div", "marks");
    VERDICT_WORDS.forEach((text, v) => {
      const entry = make("div", "entry");
      entry.append(swatch(colours.verdicts[v]), make("span", "", text));
      entry.append(make("em", "", tally[v].toLocaleString("en")));
      entries.append(entry);
    });
    section("Training images by decision", entries);
  }
  const tally = new Map();
  for (let p = 0; p < points.count; p++) tally.set(points.given[p], (tally.get(points.given[p]) ?? 0) + 1);
  const entries = make("div", "entries");
  data.classes.forEach((name, label) => {
    const entry = make("button", "entry");
    entry.dataset.label = label;
    entry.title = `${name}: click to hide or show`;
    entry.setAttribute("aria-pressed", String(!hidden.has(label)));
    entry.append(swatch(data.colour === "class" ? colours.classes[label] : null));
    entry.append(make("span", "", name), make("em", "", (tally.get(label) ?? 0).toLocaleString("en")));
    entries.append(entry);
  });
  const title = data.labelled ? "Labelled (click to hide)" : "Labelled, or called (click to hide)";
  const box = section(title, entries);
  box.style.cssText = "display: flex; flex-direction: column; min-height: 0;";
  if (hidden.size) {
    const all = make("button", "entry quiet", "Show all classes");
    all.dataset.action = "show-all";
    box.append(all);
  }
  const marks = make("div", "marks");
  for (const [text, drawing] of MARKS.slice(0, data.labelled ? 4 : 3)) {
    const entry = make("div", "entry");
    const icon = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    icon.setAttribute("viewBox", "0 0 18 18");
    icon.setAttribute("aria-hidden", "true");
    icon.innerHTML = drawing; // ours, never a name
    entry.append(icon, make("span", "", text));
    marks.append(entry);
  }
  section("Marks", marks);
  const held = parts.legend.getRootNode().activeElement?.dataset?.label;
  const scrolled = parts.legend.querySelector(".entries")?.scrollTop ?? 0;
  parts.legend.replaceChildren(...nodes);
  entries.scrollTop = scrolled;
  if (held !== undefined) entries.querySelector(`[data-label="${held}"]`)?.focus();
}

// --- what a person does

const at = (event, state) => {
  const { stage } = state.parts;
  const box = stage.getBoundingClientRect(); // with its border, which the canvas lies within
  return [
    event.clientX - box.left - stage.clientLeft,
    event.clientY - box.top - stage.clientTop,
  ];
};

// The shown point nearest to a place on the page, if it is near enough.
function nearest(state, x, y) {
  const { points, shown } = state;
  const { scale, left, top } = projection(state);
  const [px, py] = [(x - left) / scale, (y - top) / scale];
  let best = -1;
  let least = (REACH / scale) ** 2;
  for (let p = 0; p < points.count; p++) {
    if (shown[p] !== 2) continue;
    const dx = points.xy[2 * p] - px;
    const dy = points.xy[2 * p + 1] - py;
    const far = dx * dx + dy * dy;
    if (far <= least) {
      least = far;
      best = p;
    }
  }
  return best;
}

function hover(state, p) {
  if (state.over === p) return;
  state.over = p;
  const { parts, points, data } = state;
  if (p >= 0) {
    const { tip, stage } = parts;
    const test = p >= points.train;
    const position = test ? p - points.train : p;
    const name = (label) => data.classes[label];
    const percent = Math.round((100 * points.chance[p]) / 255);
    const words = make("div");
    words.append(make("b", "", `${test ? "Test" : "Training"} image ${position}`));
    if (!test || data.labelled) words.append(make("div", "", `labelled ${name(points.given[p])}`));
    const second = test
      ? `called ${name(points.other[p])}, ${percent} % sure`
      : points.doubt[p]
        ? `probably wrong, ${percent} %: looks like ${name(points.other[p])}`
        : `${percent} % that the label is wrong`;
    words.append(make("div", points.doubt[p] ? "bad" : "quiet", second));
    if (state.verdict[p]) words.append(make("div", "", VERDICT_WORDS[state.verdict[p]]));
    const src = `${data.thumbs}${test ? "test" : "train"}/${position}.png`;
    tip.replaceChildren(picture(src, `${test ? "Test" : "Training"} image ${position}`, ""), words);
    tip.hidden = false;
    const { scale, left, top } = projection(state);
    const [x, y] = [points.xy[2 * p] * scale + left, points.xy[2 * p + 1] * scale + top];
    const [w, h] = [tip.offsetWidth, tip.offsetHeight];
    tip.style.left = `${x + 18 + w > stage.clientWidth ? Math.max(4, x - 18 - w) : x + 18}px`;
    tip.style.top = `${Math.max(4, Math.min(stage.clientHeight - h - 4, y - h / 2))}px`;
  } else parts.tip.hidden = true;
  parts.stage.classList.toggle("over", p >= 0 && !state.lasso);
  drawAbove(state);
}

function onDown(event, root, state) {
  if (!state.points || event.button !== 0) return;
  const [x, y] = at(event, state);
  const draws = state.lasso || event.shiftKey;
  state.drag = { x, y, from: { ...state.view }, moved: false, adds: event.shiftKey };
  if (draws) state.drag.line = [[x, y]];
  state.parts.stage.setPointerCapture(event.pointerId);
}

function onMove(event, root, state) {
  if (!state.points) return;
  const [x, y] = at(event, state);
  const { drag } = state;
  if (!drag) {
    hover(state, nearest(state, x, y));
    return;
  }
  if (Math.hypot(x - drag.x, y - drag.y) > STILL) drag.moved = true;
  if (!drag.moved) return;
  hover(state, -1);
  if (drag.line) {
    const all = event.getCoalescedEvents?.() ?? [];
    drag.line.push(...(all.length ? all : [event]).map((one) => at(one, state)));
    drawAbove(state);
    return;
  }
  const { scale } = projection(state);
  state.view.x = drag.from.x - (x - drag.x) / scale;
  state.view.y = drag.from.y - (y - drag.y) / scale;
  paint(root, state);
}

function onUp(event, root, state) {
  const { drag } = state;
  endDrag(root, state);
  if (!drag) return;
  if (drag.moved) {
    if (drag.line) select(root, state, within(state, drag.line), drag.adds);
    return;
  }
  const p = nearest(state, drag.x, drag.y);
  if (p < 0) return;
  if (drag.adds && state.selected.has(p)) {
    const rest = new Set(state.selected);
    rest.delete(p);
    select(root, state, [...rest], false);
  } else select(root, state, [p], drag.adds);
}

function endDrag(root, state) {
  state.drag = null;
  paint(root, state);
}

// The shown points inside a closed line: those from which a ray crosses it an odd number of times.
function within(state, line) {
  const { points, shown } = state;
  const { scale, left, top } = projection(state);
  const corners = line.map(([x, y]) => [(x - left) / scale, (y - top) / scale]);
  const found = [];
  for (let p = 0; p < points.count; p++) {
    if (shown[p] !== 2) continue;
    const [x, y] = [points.xy[2 * p], points.xy[2 * p + 1]];
    let odd = false;
    for (let i = 0, j = corners.length - 1; i < corners.length; j = i++) {
      const [ax, ay] = corners[i];
      const [bx, by] = corners[j];
      if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) odd = !odd;
    }
    if (odd) found.push(p);
  }
  return found;
}

function select(root, state, some, adds) {
  const all = new Set(adds ? [...state.selected, ...some] : some);
  const points = encode([...all].sort((a, b) => a - b));
  state.queue.push({ type: "select", points });
  refresh(root, state);
}

const shownOf = (state, test) => {
  const { points, shown } = state;
  const found = [];
  for (let p = 0; p < points.count; p++) if (shown[p] === 2 && test(p)) found.push(p);
  return found;
};

function act(root, state, action) {
  if (!state.points) return;
  const { points } = state;
  if (action === "lasso") state.lasso = !state.lasso;
  else if (action === "reset") return reset(root, state);
  else if (action === "clear") {
    if (state.selected.size) select(root, state, [], false);
  } else {
    const test = {
      suspects: (p) => p < points.train && points.doubt[p],
      wrong: (p) => p >= points.train && points.doubt[p],
      all: () => true,
    }[action];
    select(root, state, shownOf(state, test), false);
  }
  paint(root, state);
}

function toggleClass(root, state, label) {
  const hidden = new Set(state.hidden);
  if (!hidden.delete(label)) hidden.add(label);
  hide(root, state, [...hidden].sort((a, b) => a - b));
}

function hide(root, state, classes) {
  hover(state, -1);
  state.queue.push({ type: "hide", classes });
  refresh(root, state);
}

function reset(root, state) {
  state.view = { x: 0, y: 0, zoom: 1 };
  hover(state, -1);
  paint(root, state);
}

// Zoom so that what is at (x, y) of the stage stays there.
function zoom(root, state, factor, x, y) {
  const { points, view } = state;
  const { scale, left, top } = projection(state);
  const [px, py] = [(x - left) / scale, (y - top) / scale];
  view.zoom = Math.max(0.7, Math.min(MOST_ZOOM, view.zoom * factor));
  const next = fit(state) * view.zoom;
  view.x = px - (x - state.parts.stage.clientWidth / 2) / next - points.width / 2;
  view.y = py - (y - state.parts.stage.clientHeight / 2) / next - points.height / 2;
  hover(state, -1);
  paint(root, state);
}

function onWheel(event, root, state) {
  if (!state.points || event.ctrlKey) return;
  event.preventDefault();
  const lines = event.deltaMode === 1 ? 30 : 1;
  zoom(root, state, Math.exp(-event.deltaY * lines * 0.0016), ...at(event, state));
}

function onKey(event, root, state) {
  const from = event.composedPath()[0];
  if (event.altKey || event.metaKey || event.ctrlKey || typing(from) || !state.points) return;
  if (from instanceof Element && from.closest("dialog, [role=dialog], [data-baseweb=popover]")) return;
  const { stage } = state.parts;
  const middle = [stage.clientWidth / 2, stage.clientHeight / 2];
  const key = event.key.toLowerCase();
  const move = { arrowleft: [-1, 0], arrowright: [1, 0], arrowup: [0, -1], arrowdown: [0, 1] }[key];
  if (key === "l") act(root, state, "lasso");
  else if (key === "escape") {
    if (state.drag) endDrag(root, state);
    else {
      state.lasso = false;
      act(root, state, "clear");
    }
  } else if (key === "0") reset(root, state);
  else if (key === "+" || key === "=") zoom(root, state, 1.3, ...middle);
  else if (key === "-") zoom(root, state, 1 / 1.3, ...middle);
  else if (move && from === stage) {
    const { scale } = projection(state);
    state.view.x += (60 * move[0]) / scale;
    state.view.y += (60 * move[1]) / scale;
    hover(state, -1);
    paint(root, state);
  } else return;
  event.preventDefault();
  event.stopPropagation();
}
