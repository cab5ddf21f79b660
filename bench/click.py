"""From the click on a prediction to its hits, and the first paint of each page, in Chromium.

On the demo's build. A click counts until the training images that the engine names for that
prediction are on the page, in order, with their pictures loaded.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attribution.build import Build
from attribution.engine import Engine
from attribution.records import UserError

from .rows import Options, Row, row
from .running import DEMO, VIEW, app, command

CLICKS = 20
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PAGES = ("overview", "explain", "review", "builds")

# Shadow roots are looked into, because our elements live in them.
SCRIPT = """
const roots = (root) => [root, ...[...root.querySelectorAll("*")]
  .flatMap((e) => e.shadowRoot ? roots(e.shadowRoot) : [])];
const all = (selector) => roots(document).flatMap((r) => [...r.querySelectorAll(selector)]);
const list = (label) => all("[role=listbox]").find((e) => e.ariaLabel.startsWith(label));
window.clickToHits = ([id, wanted]) => new Promise((done) => {
  const tile = list("Test predictions").querySelector(`[data-id="${id}"]`);
  const began = performance.now();
  tile.click();
  const look = () => {
    const hits = [...(list("Pushed towards")?.querySelectorAll(".tile") ?? [])];
    const same = hits.map((e) => Number(e.dataset.id)).join() === wanted.join();
    const loaded = hits.every((e) => e.querySelector("img").complete);
    if (same && loaded) done(performance.now() - began);
    else requestAnimationFrame(look);
  };
  look();
});
window.hitsThere = () => {
  const hits = all(".group.for .tile img");
  return hits.length > 0 && hits.every((e) => e.complete);
};
window.testIds = () => [...(list("Test predictions")?.querySelectorAll(".tile") ?? [])]
  .map((e) => Number(e.dataset.id));
"""


def browser_path() -> str:
    """Where a Chromium is. Raises `UserError` where there is none."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise UserError(
            found="no Chromium", wanted=f"one of {', '.join(BROWSERS)}", next_step="install one"
        )
    return found


def measure(options: Options) -> list[Row]:
    browser = browser_path()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        cache = Path(folder) / "cache"
        made = json.loads(command(cache, options.threads, "build", *DEMO))
        build = Engine(cache).open(made["build"])
        with app(cache) as address:
            chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
            page = chromium.new_page(**VIEW)
            page.add_init_script(SCRIPT)
            rows = [*click_rows(page, address, build), *paint_rows(page, address, options)]
            chromium.close()
    return rows


def click_rows(page: Any, address: str, build: Build) -> Iterator[Row]:
    """Milliseconds of clicks on different wrong predictions."""
    page.goto(f"{address}/explain?build={build.id}")
    page.wait_for_function("testIds().length > 1", timeout=30_000)
    ids = page.evaluate("testIds()")[1 : CLICKS + 1]
    found = []
    for test_id in ids:
        wanted = [h.train_id for h in build.query(test_id, 12, "predicted").proponents]
        found.append(page.evaluate("clickToHits", [test_id, wanted]))
        page.wait_for_timeout(300)  # a person looks; the page comes to rest
    median = sorted(found)[len(found) // 2]
    yield row(f"click to hits, median of {len(found)}", median, "ms", at_most=300)
    yield row("click to hits, slowest", max(found), "ms")


def paint_rows(page: Any, address: str, options: Options) -> Iterator[Row]:
    """Seconds from a page's address to its title, in a session of its own."""
    for name in PAGES:
        found = []
        for _ in range(options.times(3)):
            page.goto("about:blank")
            began = page.evaluate("Date.now()")
            page.goto(f"{address}/{'' if name == 'overview' else name}", wait_until="commit")
            page.wait_for_selector("h1", timeout=30_000)
            found.append((page.evaluate("Date.now()") - began) / 1000)
        yield row(f"first paint of {name}", found, "s", at_most=2)
