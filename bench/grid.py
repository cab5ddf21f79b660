"""Many thumbnails at once, the next image of the review, and a folder of 10,000, in Chromium.

A grid counts from the call that mounts it until its 600 tiles are there and those in view have
their pictures, from the app's own route; the next image from the key or the click until its picture
is painted. With --cifar10 also the page Explain on a build of 10,000 training and 2,000 test
pictures of 32 x 32 in folders: what it takes to open and to click does not depend on how well the
networks were trained, so one network is, for one epoch.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attribution.build import Build
from attribution.engine import Engine

from .click import SCRIPT, browser_path, click_rows
from .images import pictures
from .rows import ROOT, Options, Row, row
from .running import DEMO, VIEW, app, command

TILES = 600
NEXT = 40
TRAIN, TEST = 10_000, 2_000
QUICK = (
    "--model", "resnet9", "--width", ".125", "--models", "1", "--masks", "2", "--epochs", "1",
    "--dims", "16x4",
)  # fmt: skip

PAGE = """<!doctype html><style>body { margin: 0; font-family: sans-serif; color: #1c2024;
--st-background-color: #fff; --st-text-color: #1c2024; --st-primary-color: #3451b2; }
%(css)s</style><div id="host"><div class="pc"></div></div>
<script type="module">%(js)s
window.painted = (data) => new Promise((done) => {
  const parentElement = document.querySelector("#host");
  const began = performance.now();
  mountGrid({ data, parentElement, setStateValue() {} });
  const look = () => {
    const images = [...document.querySelectorAll(".tile img")];
    const seen = images.filter((i) => i.getBoundingClientRect().top < innerHeight);
    const there = images.length === data.groups[0].items.length && seen.length > 0;
    const loaded = seen.every((i) => i.complete && i.naturalWidth);
    if (!there || !loaded) requestAnimationFrame(look);
    else requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)));
  };
  look();
});
</script>"""

# Shadow roots are looked into, because our elements live in them; `all` is of click.SCRIPT.
NEXT_SCRIPT = """
const large = () => all(".stage img")[0];
window.isThere = () => Boolean(large()?.complete);
window.arm = (kind) => {
  const before = large().src;
  window.next = new Promise((done, fail) => document.addEventListener(kind, () => {
    setTimeout(() => fail(new Error(`no image follows on a ${kind}`)), 30_000);
    const began = performance.now();
    const look = () => {
      const now = large();
      if (!now || now.src === before || !now.complete) requestAnimationFrame(look);
      else requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)));
    };
    look();
  }, { capture: true, once: true }));
};
window.buttonAt = (action) => {
  const box = all(`[data-action="${action}"]`)[0].getBoundingClientRect();
  return [box.x + box.width / 2, box.y + box.height / 2];
};
"""


def measure(options: Options) -> list[Row]:
    path = browser_path()
    from playwright.sync_api import sync_playwright

    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        workspace = Path(folder) / "workspace"
        workspace.mkdir()
        cache = options.cache or Path(folder) / "cache"
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        made = json.loads(command(cache, options.threads, "build", *DEMO))
        build = Engine(cache).open(made["build"])
        with app(cache, workspace) as address:
            rows += grid_rows(chromium, address, build, options)
            rows += next_rows(chromium, address, build)
        if options.cifar10 is not None:
            place = Path(folder) / "pictures"
            pictures(options.cifar10, place, TRAIN, TEST)
            words = ("--data", str(place), *QUICK)
            made = json.loads(command(cache, options.threads, "build", *words))
            build = Engine(cache).open(made["build"])
            with app(cache, workspace) as address:
                rows += folder_rows(chromium, address, build, options)
        chromium.close()
    rows.append(row("load average of the machine at the end", os.getloadavg()[0], ""))
    return rows


def grid_rows(chromium: Any, address: str, build: Build, options: Options) -> Iterator[Row]:
    """Seconds until a grid is painted, each time in a browser that has seen none of it."""
    found = []
    for _ in range(options.times(5)):
        context = chromium.new_context(**VIEW)
        page = context.new_page()
        page.route(f"{address}/bench", served)
        page.goto(f"{address}/bench")
        page.wait_for_function("Boolean(window.painted)")
        found.append(page.evaluate("data => painted(data)", data(build)) / 1000)
        context.close()
    yield row(f"a grid of {TILES} images, to its paint", found, "s", at_most=1.5)


def data(build: Build) -> dict[str, Any]:
    """What grid.js takes."""
    items = [
        {
            "id": i, "src": f"/thumb/{build.id}/train/{i}.png", "alt": f"Training image {i}",
            "caption": build.classes[build.train_labels_N[i]], "correct": True, "note": "50%",
        }
        for i in range(TILES)
    ]  # fmt: skip
    return {
        "epoch": "bench", "ack": 0, "kind": "pick", "tile": 66, "rows": 0, "selected": None,
        "verdicts": {}, "classes": [], "keys": [], "left_out": None, "split": "", "reach": "",
        "groups": [{"label": "Images", "items": items, "empty": ""}],
    }  # fmt: skip


def served(route: Any) -> None:
    """A page with the grid's own code, at the app's address so that pictures come from there."""
    parts = ROOT / "pages" / "parts"
    texts = {
        kind: "\n".join((parts / f"{n}.{kind}").read_text("utf-8") for n in ("common", "grid"))
        for kind in ("css", "js")
    }
    texts["js"] = texts["js"].replace("export default function", "function mountGrid")
    route.fulfill(content_type="text/html", body=PAGE % texts)


def next_rows(chromium: Any, address: str, build: Build) -> Iterator[Row]:
    """Milliseconds from a decision by key, and from a click on the arrow, to the next image."""
    page = chromium.new_page(**VIEW)
    page.add_init_script(SCRIPT + NEXT_SCRIPT)
    for kind, what in (("keydown", "key, a decision"), ("click", "click on the arrow")):
        page.goto(f"{address}/review?build={build.id}")
        page.wait_for_function("isThere()", timeout=120_000)
        page.wait_for_timeout(2000)  # the page comes to rest
        found = []
        for _ in range(NEXT):
            page.evaluate("kind => arm(kind)", kind)
            if kind == "keydown":
                page.keyboard.press("k")
            else:
                page.mouse.click(*page.evaluate("buttonAt('next')"))
            found.append(page.evaluate("window.next"))
            page.wait_for_timeout(300)  # a person looks
        median = sorted(found)[len(found) // 2]
        yield row(f"{what} to the next image, median of {NEXT}", median, "ms", at_most=200)
        yield row(f"{what} to the next image, slowest", max(found), "ms")
    page.close()


def folder_rows(chromium: Any, address: str, build: Build, options: Options) -> Iterator[Row]:
    """Seconds until Explain is there with its hits, and milliseconds of clicks on it."""
    title, hits = [], []
    for _ in range(options.times(5)):
        page = chromium.new_page(**VIEW)
        page.add_init_script(SCRIPT)
        page.goto("about:blank")
        began = page.evaluate("Date.now()")
        page.goto(f"{address}/explain?build={build.id}", wait_until="commit")
        page.wait_for_selector("h1", timeout=120_000)
        title.append((page.evaluate("Date.now()") - began) / 1000)
        page.wait_for_function("hitsThere()", timeout=120_000)
        hits.append((page.evaluate("Date.now()") - began) / 1000)
        page.close()
    size = f"{TRAIN:,} pictures in folders"
    # The first opens the build, as the first visitor after a start does.
    yield row(f"{size}: first paint of explain after the app's start", title[0], "s", at_most=2)
    yield row(f"{size}: the same, to its first hits", hits[0], "s")
    yield row(f"{size}: first paint of explain", title[1:] or title, "s", at_most=2)
    yield row(f"{size}: the same, to its first hits", hits[1:] or hits, "s")
    page = chromium.new_page(**VIEW)
    page.add_init_script(SCRIPT)
    for one in click_rows(page, f"{address}", build):
        yield Row(**{**vars(one), "what": f"{size}: {one.what}"})
    page.close()
