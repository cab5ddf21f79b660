"""The main path in a real Chromium, against the server that the command line starts."""

import csv
import os
import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from zipfile import ZipFile

import pytest
from chromium import app_server, chromium, chromium_path
from conftest import Tiny
from playwright.sync_api import Browser, Page, expect

from attribution.engine import Build, Engine

pytestmark = pytest.mark.skipif(
    chromium_path() is None and "CI" not in os.environ,
    reason="no Chromium here: the main path was not tried in a browser",
)

expect.set_options(timeout=20_000)  # a busy machine is slow, not wrong


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def place(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tiny.cache, tmp_path_factory.mktemp("workspace"), tiny.build)


@pytest.fixture(scope="module")
def engine(place: Tiny) -> Engine:
    return Engine(place.cache, place.workspace)


@pytest.fixture(scope="module")
def build(engine: Engine, place: Tiny) -> Build:
    return engine.open(place.build)


@pytest.fixture(scope="module")
def url(place: Tiny) -> Iterator[str]:
    with app_server(place.cache, place.workspace) as address:
        yield address


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that must not complain on the console, show a traceback or call other servers."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    said: list[str] = []
    # Streamlit looks for its own base address below a page's before it finds it at the root.
    opened.on(
        "console",
        lambda m: (
            said.append(f"{m.text} {m.location}")
            if m.type == "error" and "/_stcore/" not in m.location.get("url", "")
            else None
        ),
    )
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on(
        "request",
        lambda r: (
            said.append(f"asked {r.url}")
            if not re.match(r"(http|ws)://localhost:|data:|blob:", r.url)
            else None
        ),
    )
    yield opened
    shown = opened.inner_text("body")
    opened.close()
    assert said == []
    assert "Traceback" not in shown and "Error:" not in shown


def shown_ids(page: Page, label: str) -> list[int]:
    tiles = page.get_by_role("listbox", name=re.compile(f"^{label}")).locator(".tile")
    return [int(i) for i in tiles.evaluate_all("tiles => tiles.map((t) => t.dataset.id)")]


def expect_hits(page: Page, build: Build, test_id: int, target: str) -> None:
    """The hits on the page become those of the engine."""
    answer = build.query(test_id, 12, target)
    first = page.get_by_role("listbox", name=re.compile("^Pushed towards")).locator(".tile").first
    expect(first).to_have_attribute("data-id", str(answer.proponents[0].train_id), timeout=15_000)
    assert shown_ids(page, "Pushed towards") == [hit.train_id for hit in answer.proponents]
    assert shown_ids(page, "Pushed away") == [hit.train_id for hit in answer.opponents]


def test_main_path(page: Page, url: str, engine: Engine, build: Build) -> None:
    """Open, filter, click a prediction, see hits, go to review, relabel, undo, export."""
    page.goto(url)
    page.get_by_role("button", name="Explain predictions").click()
    tests = build.tests()
    wrong = tests[~tests.correct].sort_values("confidence", ascending=False)
    expect_hits(page, build, int(wrong.index[0]), "predicted")

    # filter: the cell of the confusion matrix with the most mistakes
    cells = wrong.groupby(["label", "predicted"]).size()
    label, predicted = cells.idxmax()
    cell = page.locator("[data-testid=stVegaLiteChart] .mark-rect path")
    cell.nth(int(label) * len(build.classes) + int(predicted)).click()
    here = wrong[(wrong.label == label) & (wrong.predicted == predicted)]
    expect(page.get_by_text(f"{len(here)} of {len(tests)} test images")).to_be_visible()
    expect(page.locator(".st-key-tests .tile")).to_have_count(len(here))
    assert shown_ids(page, "Test predictions") == [int(i) for i in here.index]

    # click
    test_id = int(here.index[-1])
    page.locator(f".st-key-tests .tile[data-id='{test_id}']").click()
    expect(page.get_by_text(f"Test image {test_id}", exact=True)).to_be_visible()
    expect_hits(page, build, test_id, "predicted")
    page.get_by_text("Why not").click()
    expect_hits(page, build, test_id, "label")
    expect(page).to_have_url(re.compile(f"test={test_id}.*target=label"))

    # the link restores it, in another session
    address = page.url
    page.goto("about:blank")
    page.goto(address)
    expect_hits(page, build, test_id, "label")
    expect(page.locator(".st-key-tests .tile")).to_have_count(len(here))
    assert shown_ids(page, "Test predictions") == [int(i) for i in here.index]

    # review
    page.get_by_role("link", name="Review").click()
    deck = page.locator(".st-key-deck")
    expect(deck.locator(".tile").first).to_be_visible()
    suspects = build.mislabels()
    first, second = int(suspects.index[0]), int(suspects.index[1])
    page.keyboard.press("Enter")  # accepts the suggestion
    page.keyboard.press("x")
    expect(deck.locator(f".tile[data-id='{second}'] .mark.dropped")).to_be_visible()
    expect(page.get_by_text("1 relabelled, 1 dropped")).to_be_visible()
    page.keyboard.press("u")
    expect(page.get_by_text("1 relabelled, 0 dropped")).to_be_visible()
    expect(deck.locator(f".tile[data-id='{second}']")).to_have_attribute("aria-selected", "true")
    (made,) = engine.decisions.in_force(build.data_id).values()
    assert made.example_id == build.train_ids[first]
    assert (made.verdict, made.label) == ("relabel", int(suspects.suggested_label.iloc[0]))

    # export
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
        page.get_by_role("button", name="Download").click()
    rows = list(csv.DictReader(StringIO(Path(download.value.path()).read_text())))
    assert len(rows) == len(build.train_ids)
    assert [row["example_id"] for row in rows if row["decision"]] == [made.example_id]
    page.get_by_label("Format").click()
    page.get_by_role("option", name="Image folder").click()
    expect(page.get_by_text("a folder of PNGs a class")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    with ZipFile(Path(download.value.path())) as archive:
        names = archive.namelist()
    assert f"train/{build.classes[made.label]}/{made.example_id}.png" in names
    page.keyboard.press("Escape")

    # it survives a new session
    page.reload()
    expect(page.get_by_text("1 relabelled, 0 dropped")).to_be_visible()
    expect(deck.locator(".tile").first).to_be_visible()  # which takes the keys
    page.keyboard.press("u")
    expect(page.get_by_text("0 relabelled, 0 dropped")).to_be_visible()


def test_twenty_fast_keys_are_all_counted(
    page: Page, url: str, engine: Engine, build: Build
) -> None:
    before = len(engine.decisions.history(build.data_id))
    page.goto(f"{url}/review")
    expect(page.locator(".st-key-deck .tile").first).to_be_visible()
    for key in "kx3k5k1xk7" * 2:
        page.keyboard.press(key)
    expect(page.get_by_text(re.compile(r"^20 of \d+ suspicious"))).to_be_visible()
    made = engine.decisions.history(build.data_id)[before:]
    order = build.mislabels().head(20)
    assert [d.example_id for d in made] == order.example_id.tolist()
    for decision, key, given in zip(made, "kx3k5k1xk7" * 2, order.given_label, strict=True):
        label = int(key) if key.isdigit() and int(key) != given else None
        verdict = "drop" if key == "x" else "keep" if label is None else "relabel"
        assert (decision.verdict, decision.label) == (verdict, label)
    for _ in range(20):
        page.keyboard.press("Control+z")
    expect(page.get_by_text(re.compile(r"^0 of \d+ suspicious"))).to_be_visible()
    assert engine.decisions.in_force(build.data_id) == {}


def test_the_grid_is_walked_with_the_keyboard(page: Page, url: str, build: Build) -> None:
    page.goto(f"{url}/explain")
    tiles = page.locator(".st-key-tests .tile")
    tiles.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press(" ")
    chosen = shown_ids(page, "Test predictions")[1]
    expect(tiles.nth(1)).to_have_attribute("aria-selected", "true")
    expect_hits(page, build, chosen, "predicted")


def test_a_hit_is_decided_in_place(page: Page, url: str, engine: Engine, build: Build) -> None:
    page.goto(f"{url}/explain")
    hits = page.get_by_role("listbox", name=re.compile("^Pushed towards")).locator(".tile")
    hits.nth(1).click()
    page.locator(".panel").get_by_text("Drop").click()
    expect(hits.nth(1).locator(".mark.dropped")).to_be_visible()
    expect(hits.nth(1).locator(".mark.dropped")).to_be_visible()
    page.locator(".panel").get_by_text("Undo").click()
    expect(hits.nth(1).locator(".mark")).to_have_count(0)
    assert engine.decisions.in_force(build.data_id) == {}


def test_a_wrong_address_is_a_notice(page: Page, url: str) -> None:
    page.goto(f"{url}/explain?test=99999")
    expect(page.get_by_text("test id 99999")).to_be_visible()
    expect(page.locator(".st-key-hits .tile").first).to_be_visible()
    page.goto(f"{url}/?build=nonsense")
    expect(page.get_by_text("no build 'nonsense'")).to_be_visible()


def test_a_build_is_started_and_cancelled_from_the_browser(
    page: Page, url: str, engine: Engine
) -> None:
    page.goto(f"{url}/builds")
    page.get_by_role("button", name="Start build").click()
    expect(page.get_by_text("running", exact=True)).to_be_visible()
    page.goto("about:blank")  # it goes on without the tab
    (job,) = engine.jobs()
    assert job.state == "running"
    page.goto(f"{url}/builds")
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("cancelled", exact=True)).to_be_visible(timeout=20_000)
    assert engine.jobs()[0].state == "cancelled"


def test_ensembles_are_compared_and_the_picture_taken_away(page: Page, url: str) -> None:
    page.goto(f"{url}/compare?build=nonsense")
    expect(page.get_by_text("no build 'nonsense'")).to_be_visible()
    page.goto(f"{url}/compare?view=side+by+side")
    chart = page.get_by_test_id("stVegaLiteChart")
    expect(chart).to_be_visible()
    page.locator(".st-key-tests .tile").nth(3).click()
    expect(page).to_have_url(re.compile("view=side.*test="))
    chart.hover()
    with page.expect_download() as download:
        page.get_by_role("button", name=re.compile("^Download as PNG")).click()
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")
