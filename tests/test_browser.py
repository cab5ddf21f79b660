"""The main path in a real Chromium, against the server that the command line starts."""

import csv
import os
import re
from collections.abc import Iterable, Iterator
from io import StringIO
from pathlib import Path
from urllib.parse import urlencode
from zipfile import ZipFile

import pytest
from chromium import at_rest, chromium_path
from conftest import Tiny, copied
from playwright.sync_api import Browser, Locator, Page, expect

from attribution.build import Build
from attribution.engine import Engine
from attribution.evidence import evidence
from attribution.records import Decision
from pages.parts.opened import DOUBT
from pages.parts.reviewer import COOKIE

pytestmark = pytest.mark.skipif(
    chromium_path() is None and "CI" not in os.environ,
    reason="no Chromium here: the main path was not tried in a browser",
)


@pytest.fixture(scope="module")
def place(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """In a cache of its own: a build that is cancelled leaves in it what it had begun."""
    root = tmp_path_factory.mktemp("browser")
    return Tiny(copied(tiny, root / "cache"), root, tiny.build)


@pytest.fixture(scope="module")
def engine(place: Tiny) -> Engine:
    return Engine(place.cache, place.workspace)


@pytest.fixture(scope="module")
def build(engine: Engine, place: Tiny) -> Build:
    return engine.open(place.build)


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
    expect(first).to_have_attribute("data-id", str(answer.proponents[0].train_id))
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
    at_rest(page)  # each run gives what is to be downloaded another name
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
        page.get_by_role("button", name="Download").click()
    rows = list(csv.DictReader(StringIO(Path(download.value.path()).read_text())))
    assert len(rows) == len(build.train_ids)
    assert [row["example_id"] for row in rows if row["decision"]] == [made.example_id]
    page.get_by_label("Format").click()
    page.get_by_role("option", name="Image folder").click()
    expect(page.get_by_text("a folder of PNGs a class")).to_be_visible()
    at_rest(page)
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


def review(page: Page, url: str, **query: str) -> Locator:
    """The review, with its first image shown and taking the keys."""
    page.goto(f"{url}/review?{urlencode(query)}")
    deck = page.locator(".st-key-deck")
    expect(deck.locator(".tile.at")).to_be_visible()
    return deck


def type_fast(page: Page, keys: Iterable[str]) -> None:
    for key in keys:
        page.keyboard.press(key)
        page.wait_for_timeout(30)


def stand(engine: Engine, build: Build) -> list[Decision]:
    return list(engine.decisions.standing(build.data_id).acts)


def test_forty_fast_keys_are_forty_decisions_and_back_and_forth(
    page: Page, url: str, engine: Engine, build: Build
) -> None:
    before = len(engine.decisions.history(build.data_id))
    deck = review(page, url)
    order = build.mislabels().loc[shown_ids(page, "Images to review")[:40]]
    keys = [*"kx3ks5k1xk", *"k7sx0"] + ["Enter"] * 5
    keys = keys * 2
    type_fast(page, keys)
    expect(deck.locator(".tile .mark")).to_have_count(40)
    expect(deck.get_by_text(f"{keys.count('x')} dropped, {keys.count('s')} unsure")).to_be_visible()
    # Marks are drawn before the log is written; the text above says nothing of the last key.
    for _ in range(1200):
        made = engine.decisions.history(build.data_id)[before:]
        if len(made) >= 40:
            break
        page.wait_for_timeout(100)
    assert [d.example_id for d in made] == order.example_id.tolist()
    for decision, key, one in zip(made, keys, order.itertuples(), strict=True):
        believed = one.suggested_probability > one.given_probability
        label = int(key) if key.isdigit() else None
        if key == "Enter" and believed:
            label = one.suggested_label
        label = None if label == one.given_label else label
        plain = {"k": "keep", "x": "drop", "s": "unsure"}
        verdict = plain.get(key, "keep" if label is None else "relabel")
        assert (decision.verdict, decision.label) == (verdict, label)
    type_fast(page, ["Control+z", "u"] * 20)
    expect(deck.locator(".tile .mark")).to_have_count(0)
    assert stand(engine, build) == []
    type_fast(page, ["y", "Control+y", "Control+Shift+Z", "y"] * 10)
    expect(deck.locator(".tile .mark")).to_have_count(40)
    assert stand(engine, build) == made
    type_fast(page, ["u"] * 40)
    expect(deck.locator(".tile .mark")).to_have_count(0)
    assert (
        stand(engine, build) == [] and len(engine.decisions.history(build.data_id)) == before + 40
    )


def test_the_review_is_done_without_a_mouse(
    page: Page, url: str, engine: Engine, build: Build
) -> None:
    deck = review(page, url)
    ids = shown_ids(page, "Images to review")
    press = page.keyboard.press
    press("?")
    expect(deck.get_by_text("accept the suggested label")).to_be_visible()
    press("k")  # is for reading, not for deciding
    press("Escape")
    expect(deck.get_by_text("accept the suggested label")).to_be_hidden()
    press(" ")
    expect(deck.locator(".zoom img")).to_be_visible()
    press("k")  # decides, and shows the next
    expect(deck.locator(".zoom img")).to_have_attribute("src", re.compile(f"/{ids[1]}.png"))
    press(" ")
    expect(deck.locator(".zoom img")).to_be_hidden()
    expect(deck.get_by_text("1 kept, 0 relabelled, 0 dropped")).to_be_visible()

    press("Shift+ArrowRight")
    press("Shift+ArrowRight")
    expect(deck.get_by_text("3 selected")).to_be_visible()
    press("x")
    expect(deck.get_by_text("1 kept, 0 relabelled, 3 dropped")).to_be_visible()
    expect(deck.locator(f".tile[data-id='{ids[4]}']")).to_have_class(re.compile(r"\bat\b"))
    press("u")  # the whole of it
    expect(deck.get_by_text("1 kept, 0 relabelled, 0 dropped")).to_be_visible()
    press("y")
    expect(deck.get_by_text("1 kept, 0 relabelled, 3 dropped")).to_be_visible()
    press("a")
    expect(deck.get_by_text("48 selected")).to_be_visible()
    press("Escape")
    expect(deck.get_by_text("selected")).to_have_count(0)

    press("ArrowRight")
    press("ArrowLeft")
    expect(deck.locator(f".tile[data-id='{ids[1]}']")).to_have_class(re.compile(r"\bat\b"))
    other = next(c for c in range(10) if c != build.train_labels_N[ids[1]])
    press("l")  # a class by its name
    page.keyboard.type(build.classes[other])
    press("Enter")
    expect(deck.locator(f".tile[data-id='{ids[1]}'] .mark")).to_have_text(f"→ {other}")

    focused = "document.activeElement.textContent.trim()"
    for key in ["Shift+Tab"] * 30 + ["ArrowLeft"] * 4:  # back to the views, and along them
        if page.evaluate(focused) == "decided":
            break
        if key == "ArrowLeft" or page.evaluate(focused) != "conflicts":
            press(key)
    press(" ")
    expect(deck.locator(".tile")).to_have_count(4)
    expect(page).to_have_url(re.compile("which=decided"))
    for _ in range(3):
        press("u")
    expect(deck.locator(".tile .mark")).to_have_count(0)
    assert stand(engine, build) == []


def test_the_arrows_lead_from_page_to_page(page: Page, url: str) -> None:
    deck = review(page, url)
    first = shown_ids(page, "Images to review")
    deck.locator(".tile").last.click()
    page.keyboard.press("ArrowRight")
    expect(deck.get_by_text("49–96 of")).to_be_visible()
    second = shown_ids(page, "Images to review")
    expect(deck.locator(".tile.at")).to_have_attribute("data-id", str(second[0]))
    page.keyboard.press("ArrowLeft")
    expect(deck.get_by_text("1–48 of")).to_be_visible()
    expect(deck.locator(".tile.at")).to_have_attribute("data-id", str(first[-1]))
    deck.locator(".tile").first.click()
    page.keyboard.press("ArrowLeft")  # there is nothing before
    expect(deck.locator(".tile.at")).to_have_attribute("data-id", str(first[0]))


def test_everything_in_the_review_has_a_button(
    page: Page, url: str, engine: Engine, build: Build
) -> None:
    deck = review(page, url)
    ids = shown_ids(page, "Images to review")
    tile = {i: deck.locator(f".tile[data-id='{i}']") for i in ids}
    deck.locator("[data-action=keep]").click()
    expect(tile[ids[0]].locator(".mark.kept")).to_be_visible()
    expect(deck.get_by_text("1 kept")).to_be_visible()  # this is from the server
    deck.locator("[data-action=unsure]").click()
    expect(tile[ids[1]].locator(".mark.unsure")).to_be_visible()
    expect(deck.get_by_text("1 unsure")).to_be_visible()
    deck.locator("[data-action=next]").click()
    deck.locator("[data-action=previous]").click()
    deck.locator("[data-action=zoom]").click()
    deck.locator(".zoom img").click()
    deck.locator("[data-action=help]").click()
    deck.locator("[data-action=close]").click()
    tile[ids[2]].click()
    tile[ids[5]].click(modifiers=["Shift"])
    tile[ids[4]].click(modifiers=["ControlOrMeta"])
    tile[ids[7]].hover()
    tile[ids[7]].locator("[data-action=pick]").click()
    expect(deck.get_by_text("4 images")).to_be_visible()
    deck.get_by_role("button", name="Drop all").click()
    expect(deck.get_by_text("1 kept, 0 relabelled, 4 dropped, 1 unsure")).to_be_visible()
    dropped = {build.train_ids[ids[n]] for n in (2, 3, 5, 7)}
    assert {d.example_id for d in stand(engine, build) if d.verdict == "drop"} == dropped
    deck.locator("[data-action=undo]").click()
    expect(deck.locator(".tile .mark.dropped")).to_have_count(0)
    deck.locator("[data-action=redo]").click()
    expect(deck.locator(".tile .mark.dropped")).to_have_count(4)
    deck.get_by_role("button", name="Page after").click()
    expect(deck.get_by_text("49–96 of")).to_be_visible()
    deck.get_by_role("button", name="Page before").click()
    expect(deck.get_by_text("1–48 of")).to_be_visible()
    for _ in range(3):
        deck.locator("[data-action=undo]").click()
    expect(deck.locator(".tile .mark")).to_have_count(0)


def test_keys_decide_on_nothing_but_what_is_in_view(
    page: Page, url: str, engine: Engine, build: Build
) -> None:
    deck = review(page, url)
    first = shown_ids(page, "Images to review")[0]
    page.keyboard.press(" ")
    expect(deck.locator(".zoom")).to_be_visible()
    page.keyboard.press("l")  # a class is typed, and that is not behind the picture
    expect(deck.locator(".zoom")).to_be_hidden()
    page.keyboard.type("ak")
    expect(deck.locator("input.find")).to_have_value("ak")
    page.keyboard.press("Escape")
    page.keyboard.press("k")
    expect(deck.locator(f".tile[data-id='{first}'] .mark.kept")).to_be_visible()
    expect(deck.get_by_text("1 kept")).to_be_visible()
    assert [d.example_id for d in stand(engine, build)] == [build.train_ids[first]]
    for key in "ux":  # the image that is undone is not there yet
        page.keyboard.press(key)
    expect(deck.get_by_text("0 kept, 0 relabelled, 0 dropped")).to_be_visible()
    expect(deck.locator(".tile.at")).to_have_attribute("data-id", str(first))
    assert stand(engine, build) == []


def test_a_key_too_many_at_the_end_decides_nothing_anew(
    page: Page, url: str, engine: Engine, build: Build
) -> None:
    page.goto(f"{url}/review?picked=0-2")
    deck = page.locator(".st-key-deck")
    expect(deck.locator(".tile")).to_have_count(3)
    expect(deck.locator(".tile.at")).to_be_focused()
    for _ in range(3):
        page.keyboard.press("x")
    expect(deck.get_by_text("3 dropped")).to_be_visible()
    page.keyboard.press("k")
    page.keyboard.press("u")
    expect(deck.get_by_text("2 dropped")).to_be_visible()
    expect(deck.locator(".tile .mark")).to_have_count(2)
    for _ in range(2):
        page.keyboard.press("u")
    expect(deck.locator(".tile .mark")).to_have_count(0)
    assert stand(engine, build) == []


def test_evidence_is_shown_and_leads_on(page: Page, url: str, build: Build) -> None:
    deck = review(page, url)
    behind = deck.locator(".behind")
    first = int(build.mislabels().index[0])
    found = evidence(build, first, DOUBT)
    expect(behind.get_by_text("signals count it")).to_be_visible()
    groups = behind.locator(".group")
    for group, some in ((0, found.neighbours), (1, found.proponents), (2, found.opponents)):
        ids = groups.nth(group).locator("button").evaluate_all("all => all.map(b => b.dataset.id)")
        assert [int(i) for i in ids] == [one.train_id for one in some]
    near = found.neighbours[0].train_id
    groups.nth(0).locator("button").first.click()
    expect(deck.locator(f".tile[data-id='{near}']")).to_have_class(re.compile(r"\bat\b"))


def test_filters_are_in_the_address_and_come_back(page: Page, url: str, build: Build) -> None:
    deck = review(page, url)
    page.get_by_role("button", name="Filter").click()
    page.locator(".st-key-labelled input").click()
    page.get_by_role("option", name="4", exact=True).click()
    page.keyboard.press("Escape")
    expect(page).to_have_url(re.compile("labelled=4"))
    expect(deck.get_by_text("labelled 4", exact=True)).to_be_visible()
    suspects = build.mislabels()
    wanted = [int(i) for i in suspects.index[suspects.given_label == 4][:48]]
    assert shown_ids(page, "Images to review") == wanted
    page.reload()
    expect(deck.get_by_text("labelled 4", exact=True)).to_be_visible()
    assert shown_ids(page, "Images to review") == wanted


def until_remembered(page: Page, names: list[str]) -> None:
    """Wait until these are the reviewers that the browser would tell the server of."""
    for _ in range(3000):
        if [c["value"] for c in page.context.cookies() if c["name"] == COOKIE] == names:
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"{names} not remembered")


def test_two_reviewers_see_each_other_and_settle_what_they_disagree_on(
    browser: Browser, url: str, engine: Engine, build: Build
) -> None:
    places = [browser.new_context() for _ in range(2)]
    anna, ben = (place.new_page() for place in places)
    decks = []
    for page, name in ((anna, "Anna"), (ben, "Ben")):
        deck = review(page, url)
        page.get_by_placeholder("Your name").fill(name)
        page.get_by_placeholder("Your name").press("Enter")
        decks.append(deck)
    first, second = shown_ids(anna, "Images to review")[:2]
    tiles = [deck.locator(f".tile[data-id='{first}']") for deck in decks]
    expect(tiles[0]).to_be_focused()  # the keys are no longer for her name
    anna.keyboard.press("x")
    expect(tiles[1].locator(".mark.dropped")).to_be_visible()  # Ben touched nothing
    tiles[1].click()
    ben.keyboard.press("k")
    ben.keyboard.press("x")
    for tile, page in zip(tiles, (anna, ben), strict=True):
        expect(tile.locator(".mark.contested")).to_be_visible()
        expect(page.get_by_text("1 to settle")).to_be_visible()
    expect(decks[0].locator(f".tile[data-id='{second}'] .mark.dropped")).to_be_visible()
    anna.keyboard.press("u")  # takes back her own, not Ben's, which is newer
    expect(tiles[1].locator(".mark.kept")).to_be_visible()
    anna.keyboard.press("y")
    expect(tiles[1].locator(".mark.contested")).to_be_visible()
    assert {(d.reviewer, d.example_id) for d in stand(engine, build)} == {
        ("Anna", build.train_ids[first]),
        ("Ben", build.train_ids[first]),
        ("Ben", build.train_ids[second]),
    }
    ben.get_by_role("radio", name="conflicts").click()
    expect(decks[1].locator(".tile")).to_have_count(1)
    expect(decks[1].get_by_text("Ben: keep · Anna: drop")).to_be_visible()
    decks[1].locator(".tile").click()
    ben.keyboard.press("x")
    for page in (anna, ben):
        expect(page.get_by_text("1 to settle")).to_have_count(0)
    expect(tiles[0].locator(".mark.dropped")).to_be_visible()
    ben.reload()  # the browser remembers who it was
    expect(ben.get_by_placeholder("Your name")).to_have_value("Ben")
    ben.get_by_placeholder("Your name").fill("")
    ben.get_by_placeholder("Your name").press("Enter")
    until_remembered(ben, [])
    ben.reload()  # nor does a name come back that was taken away
    expect(ben.locator("[data-action=undo]")).to_be_visible()
    expect(ben.get_by_placeholder("Your name")).to_have_value("")
    ben.get_by_placeholder("Your name").fill("Ben")
    ben.get_by_placeholder("Your name").press("Enter")
    until_remembered(ben, ["Ben"])
    for page, count in ((ben, 3), (anna, 1)):
        for _ in range(count):  # Ben's view is empty by now, and has its button all the same
            # At once: his view fills again meanwhile, and the button goes to another place.
            page.locator("[data-action=undo]").dispatch_event("click")
    expect(decks[0].locator(".tile .mark")).to_have_count(0)
    assert stand(engine, build) == []
    for place in places:
        place.close()


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
    page.locator(".panel").get_by_role("button", name="Drop").click()
    expect(hits.nth(1).locator(".mark.dropped")).to_be_visible()
    expect(hits.nth(1).locator(".mark.dropped")).to_be_visible()
    page.locator(".panel").get_by_role("button", name="Undo").click()
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
    expect(page.get_by_text("cancelled", exact=True)).to_be_visible()
    assert engine.jobs()[0].state == "cancelled"


def test_ensembles_are_compared_and_the_picture_taken_away(page: Page, url: str) -> None:
    page.goto(f"{url}/compare?build=nonsense")
    expect(page.get_by_text("no build 'nonsense'")).to_be_visible()
    page.goto(f"{url}/compare?view=side+by+side")
    chart = page.get_by_test_id("stVegaLiteChart")
    expect(chart).to_be_visible()
    tile = page.locator(".st-key-tests .tile").nth(3)
    wanted = tile.get_attribute("data-id")
    tile.click()
    expect(page).to_have_url(re.compile(rf"view=side.*test={wanted}\b"))
    at_rest(page)  # the chart is another
    chart.hover()
    with page.expect_download() as download:
        page.get_by_role("button", name=re.compile("^Download as PNG")).click()
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")
