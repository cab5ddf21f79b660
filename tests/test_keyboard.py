"""The whole way without a mouse: from a wrong prediction to a fix that is measured and exported."""

import csv
import os
import re
import shutil
from io import StringIO
from pathlib import Path

import pytest
from chromium import TRAINED, app_server, chromium, chromium_path
from conftest import Tiny
from playwright.sync_api import Page, expect

from attribution.engine import Engine

pytestmark = pytest.mark.skipif(
    chromium_path() is None and "CI" not in os.environ, reason="no Chromium here"
)
HELD = """() => {
  let held = document.activeElement;
  while (held.shadowRoot?.activeElement) held = held.shadowRoot.activeElement;
  const whole = ["BODY", "MAIN"].includes(held.tagName);
  return whole ? "" : (held.getAttribute("aria-label") || held.textContent || "").trim();
}"""


def tab_to(page: Page, name: str, at_most: int = 80) -> None:
    """Press Tab until what is called so has the focus."""
    passed = [page.evaluate(HELD)]
    while not re.search(name, passed[-1]):
        assert len(passed) <= at_most, f"{name} is not reached: {passed}"
        page.keyboard.press("Tab")
        passed.append(page.evaluate(HELD))


def settled(page: Page) -> None:
    page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]")
    page.wait_for_timeout(300)


def test_from_a_wrong_prediction_to_a_measured_and_exported_fix(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny.cache, tmp_path / "cache", ignore=shutil.ignore_patterns("locks", "jobs"))
    engine = Engine(tmp_path / "cache", tmp_path)
    build = engine.open(tiny.build)
    with chromium() as browser, app_server(tmp_path / "cache", tmp_path) as url:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        said: list[str] = []
        page.on("pageerror", lambda error: said.append(str(error)))
        press = page.keyboard.press
        page.goto(url)
        expect(page.locator(".st-key-overview_wrong .tile").first).to_be_visible()

        # a wrong prediction, its explanation, and what a change of a training image would move
        tab_to(page, "^Test image")
        press("ArrowRight")
        press("Enter")
        expect(page).to_have_url(re.compile("explain.*test="))
        expect(page.locator(".st-key-hits .tile").first).to_be_visible()
        settled(page)
        tab_to(page, "^Training image")
        press("?")
        expect(page.get_by_text("what a change would move")).to_be_visible()
        press("Escape")
        press("w")
        expect(page.locator(".panel .reach a.other").first).to_be_visible()
        press("x")
        expect(page.locator(".st-key-hits .mark.dropped")).to_be_visible()
        tab_to(page, "^Training image .* labelled")  # its own, then the other side
        press("u")
        expect(page.locator(".st-key-hits .mark")).to_have_count(0)

        tab_to(page, "^Pairs of networks")
        tab_to(page, "Verify by retraining", at_most=2)

        # the review: two labels mended
        tab_to(page, "^Review$")
        press("Enter")
        expect(page.locator(".st-key-deck .tile.at")).to_be_focused()
        press("Enter")
        press("Enter")
        expect(page.get_by_text("2 relabelled")).to_be_visible()
        tab_to(page, "Export & import")
        press(" ")
        expect(page.get_by_role("button", name="Download")).to_be_visible()
        settled(page)
        tab_to(page, "Download", at_most=3)  # what has opened comes next, wherever it is
        with page.expect_download() as download:
            press("Enter")
        press("Escape")
        rows = list(csv.DictReader(StringIO(Path(download.value.path()).read_text())))
        ids = build.mislabels().example_id[:2].tolist()
        assert sorted(r["example_id"] for r in rows if r["decision"] == "relabel") == sorted(ids)

        # networks trained again with them, and what that did
        tab_to(page, "^Before & after$")
        press("Enter")
        expect(page.get_by_role("button", name="Train again")).to_be_visible()
        settled(page)
        tab_to(page, "^Train again")
        press(" ")
        expect(page.get_by_text(re.compile("^Right now, wrong before"))).to_be_visible(
            timeout=TRAINED
        )
        assert said == [] and "Traceback" not in page.inner_text("body")
    assert len(engine.revised(build.id)) == 1
