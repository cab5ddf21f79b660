"""Builds in a real Chromium: an archive, a path that is typed, a name that must not be run."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from chromium import TRAINED, app_server, at_rest, chromium, chromium_path
from pictures import encoded, noise, photos, written
from playwright.sync_api import Page, expect
from test_archives import zipped

from attribution.engine import Engine

pytestmark = pytest.mark.skipif(
    chromium_path() is None and "CI" not in os.environ,
    reason="no Chromium here: builds were not started in a browser",
)

FILES = photos(train=5, test=2)


class Site(NamedTuple):
    """The app on an empty cache."""

    root: Path
    url: str
    engine: Engine


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("builds")
    with app_server(root / "cache", root) as url:
        yield Site(root, url, Engine(root / "cache", root))


@pytest.fixture
def page(site: Site) -> Iterator[Page]:
    with chromium() as browser:
        opened = browser.new_page(viewport={"width": 1280, "height": 1300})
        opened.goto(f"{site.url}/builds")
        yield opened


def typed(page: Page, label: str, text: str) -> None:
    """A new option in a list."""
    field = page.get_by_role("combobox", name=label)
    field.fill(text)
    field.press("Enter")


def test_an_archive_is_dropped_built_cancelled_and_resumed(page: Page, site: Site) -> None:
    expect(page.get_by_text("500MB per file")).to_be_visible()
    drop = page.locator("input[type=file]")
    bad = {"name": "bad.zip", "mimeType": "application/zip", "buffer": b"PK\x03\x04 cut"}
    drop.set_input_files(bad)
    expect(page.get_by_text("bad.zip is damaged")).to_be_visible()
    expect(drop).to_have_count(1)  # the one that took it is gone
    good = zipped(FILES).getvalue()
    drop.set_input_files({"name": "my <b>.zip", "mimeType": "application/zip", "buffer": good})
    words = page.get_by_text("15 training and 6 test images of 3 classes")
    expect(words).to_be_visible()
    (folder,) = (p for p in (site.root / "data").iterdir() if p.is_dir())
    assert folder.name.startswith("my-b-")
    at_rest(page)
    for label, value in (("Networks", 1), ("Masks of each", 1), ("Epochs", 500)):
        page.get_by_label(label, exact=True).fill(str(value))
    page.get_by_role("button", name="Start build").click()
    for _ in range(2):
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("button", name="Resume").click()
    page.get_by_text("done", exact=True).wait_for(timeout=TRAINED)
    expect(page.get_by_role("button", name="Resume")).to_have_count(0)
    newest, *before = site.engine.jobs()
    assert newest.state == "done" and [job.state for job in before] == ["cancelled"] * 2
    assert site.engine.open(newest.build or "").summary["data"] == folder.name


def test_a_path_is_typed_and_looked_at(page: Page, site: Site) -> None:
    folder = written(site.root / "mine", FILES | {"train/cat/broken.png": b"no picture"})
    typed(page, "Data", str(folder))
    page.get_by_role("button", name="Look at these images").click()
    expect(page.get_by_text("cnn sees shapes and is quick")).to_be_visible()
    expect(page.get_by_text("15 training and 6 test images")).to_be_visible()
    written(folder, {"train/cat/broken.png": encoded(noise(9))})  # it is mended
    page.get_by_role("button", name="Look again").click()
    expect(page.get_by_text("16 training and 6 test images")).to_be_visible()
    expect(page.get_by_text("Set aside")).to_have_count(0)
    typed(page, "Data", str(site.root / "nowhere"))
    page.get_by_role("button", name="Look at these images").click()
    expect(page.get_by_test_id("stAlert").get_by_text("nowhere")).to_be_visible()


def test_no_file_of_code_is_run_from_the_browser(page: Page, site: Site) -> None:
    ran, code = site.root / "ran", site.root / "x.py"
    code.write_text(f"open({str(ran)!r}, 'w')")
    count = len(site.engine.jobs())
    typed(page, "Network", f"{code}:make")
    for button in ("Start build", "Estimate"):
        page.get_by_role("button", name=button).click()
        expect(page.get_by_text("asked for in the browser")).to_be_visible()
    assert len(site.engine.jobs()) == count and not ran.exists()
