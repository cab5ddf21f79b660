"""The map with 50,000 images: milliseconds to pan, to zoom and to hover, in Chromium.

The element itself, in a page of its own, on points drawn at random. A frame counts from the event
of the mouse until the browser has painted what follows from it; a hover until the image's card is
in its place, its picture asked for; moves to where no image is do not count.
"""

from typing import Any

import numpy as np

from .click import browser_path
from .rows import ROOT, Options, Row, row

TRAIN, TEST, CLASSES = 45_000, 5_000, 10
EVENTS = 60

# What Streamlit does: it gives the element its data and a place in the page.
PAGE = """<!doctype html><style>body { margin: 0; font-family: sans-serif; color: #1c2024;
--st-background-color: #fff; --st-text-color: #1c2024; --st-primary-color: #3451b2; }
%(css)s</style><div id="host"><div class="pc"></div></div>
<script type="module">%(js)s
window.mountMap = mountMap;
window.after = () => new Promise((done) => requestAnimationFrame(() => {
  const channel = new MessageChannel();
  channel.port1.onmessage = done;
  channel.port2.postMessage(0);
}));
window.timed = async (events, kind, make) => {
  const stage = document.querySelector(".stage");
  const box = stage.getBoundingClientRect();
  const took = [];
  for (let i = 0; i < events; i++) {
    const place = { clientX: box.left + box.width * (0.3 + (0.4 * i) / events),
                    clientY: box.top + box.height * (0.3 + (0.4 * ((7 * i) %% events)) / events),
                    bubbles: true, cancelable: true };
    const began = performance.now();
    stage.dispatchEvent(make(place, i));
    if (kind === "frame") await after();
    const spent = performance.now() - began;
    if (kind === "frame" || !document.querySelector(".tip").hidden) took.push(spent);
    await after();
  }
  return took;
};
</script>"""
SCRIPTS = {
    "pan": """async (n) => {
  const stage = document.querySelector(".stage");
  stage.setPointerCapture = () => {};
  const box = stage.getBoundingClientRect();
  const start = { clientX: box.left + box.width / 2, clientY: box.top + box.height / 2, button: 0 };
  stage.dispatchEvent(new PointerEvent("pointerdown", start));
  const took = await timed(n, "frame", (place) => new PointerEvent("pointermove", place));
  stage.dispatchEvent(new PointerEvent("pointerup", start));
  return took;
}""",
    "zoom": """(n) => timed(n, "frame", (place, i) =>
  new WheelEvent("wheel", { ...place, deltaY: i < n / 2 ? -60 : 60 }))""",
    "hover": """async (n) => {
  document.querySelector(".stage").dispatchEvent(new MouseEvent("dblclick")); // the whole map
  await after();
  return timed(4 * n, "card", (place) => new PointerEvent("pointermove", place));
}""",
}


def measure(options: Options) -> list[Row]:
    browser = browser_path()
    from playwright.sync_api import sync_playwright

    rows = []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for density in (1, 2):
            context = chromium.new_context(
                viewport={"width": 1400, "height": 900}, device_scale_factor=density
            )
            page = context.new_page()
            page.route("http://map/**", served)
            page.goto("http://map/")
            page.evaluate("data => mountMap({ data, parentElement: document.querySelector('#host'),"
                          " setStateValue() {} })", data())  # fmt: skip
            page.wait_for_selector(".stage[data-view]")
            for name, script in SCRIPTS.items():
                took = page.evaluate(script, EVENTS)
                median, worst = np.quantile(took, (0.5, 0.95)).tolist()
                what = (
                    f"{TRAIN + TEST:,} points, {name}, {density} pixel{'s' * (density > 1)} a point"
                )
                bound = 16 if name == "hover" else 50
                rows.append(row(f"{what}, median of {len(took)}", median, "ms", at_most=bound))
                rows.append(row(f"{what}, 95th percentile", worst, "ms"))
            context.close()
        chromium.close()
    return rows


def data() -> dict[str, Any]:
    return {
        "epoch": "bench", "ack": 0, "points": "/points.bin", "train": TRAIN, "test": TEST,
        "labelled": True, "thumbs": "/thumb/", "classes": [str(c) for c in range(CLASSES)],
        "hidden": [],
        "colour": "class", "images": "both", "label": None, "only": "everything", "decided": "",
        "selected": "",
    }  # fmt: skip


def served(route: Any) -> None:
    """The page, its points, and a picture for every image."""
    path = route.request.url.removeprefix("http://map")
    if path == "/":
        parts = ROOT / "pages" / "parts"
        texts = {
            kind: "\n".join((parts / f"{n}.{kind}").read_text("utf-8") for n in ("common", "plane"))
            for kind in ("css", "js")
        }
        texts["js"] = texts["js"].replace("export default function", "function mountMap")
        route.fulfill(content_type="text/html", body=PAGE % texts)
    elif path == "/points.bin":
        route.fulfill(content_type="application/octet-stream", body=points())
    else:
        route.fulfill(content_type="image/png", path=ROOT / "pages" / "parts" / "icon.png")


def points() -> bytes:
    """Ten clouds, a tenth of the labels suspicious, as `pages/parts/points.py` packs them."""
    draw = np.random.default_rng(0)
    count = TRAIN + TEST
    label_P = draw.integers(0, CLASSES, count)
    centre_C2 = draw.uniform(12_000, 54_000, (CLASSES, 2))
    xy_P2 = np.clip(centre_C2[label_P] + draw.normal(0, 4_000, (count, 2)), 0, 65_535)
    doubt_P = draw.random(count) < 0.1
    other_P = np.where(doubt_P, (label_P + 1) % CLASSES, label_P)
    columns = (
        (xy_P2, "<u2"),
        (label_P, "<u2"),
        (other_P, "<u2"),
        (np.where(doubt_P, 230, 5), "u1"),
        (doubt_P, "u1"),
    )
    return b"".join(values.astype(kind).tobytes() for values, kind in columns)
