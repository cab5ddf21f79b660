"""Tiles selected by mouse and keys, and every page with 120 odd classes, in a real Chromium."""

import os
import re
from collections.abc import Iterator

import many
import pytest
from chromium import app_server, at_rest, chromium_path
from conftest import Tiny
from playwright.sync_api import Browser, Locator, Page, expect

from attribution.build import Build
from attribution.engine import Engine
from attribution.records import BuildSpec, DataSpec, FeatureSpec

pytestmark = pytest.mark.skipif(
    chromium_path() is None and "CI" not in os.environ,
    reason="no Chromium here: the grids were not tried in a browser",
)


@pytest.fixture(scope="module")
def engine(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(tiny.cache, tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def build(engine: Engine, tiny: Tiny) -> Build:
    return engine.open(tiny.build)


@pytest.fixture(scope="module")
def url(engine: Engine) -> Iterator[str]:
    with app_server(engine.cache, engine.workspace) as address:
        yield address


@pytest.fixture(scope="module")
def species(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A build with 120 classes of long and odd names."""
    root = tmp_path_factory.mktemp("many")
    made = Engine(root / "cache", root)
    made.build(
        BuildSpec(
            data=DataSpec(name=many.NAME), models=2, masks=1, epochs=8,
            features=FeatureSpec(ka=8, kg=4), index_dims=32,
        )
    )  # fmt: skip
    return made


@pytest.fixture(scope="module")
def species_url(species: Engine) -> Iterator[str]:
    with app_server(species.cache, species.workspace, program=(many.__file__,)) as address:
        yield address


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that must not complain on the console."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    said: list[str] = []
    opened.on("pageerror", lambda error: said.append(str(error)))
    yield opened
    shown = opened.inner_text("body")
    opened.close()
    assert said == [] and "Traceback" not in shown and "went wrong" not in shown


def predictions(page: Page) -> Locator:
    tiles = page.locator(".st-key-tests .tile")
    expect(tiles.nth(20)).to_be_attached()
    return tiles


def chosen(page: Page) -> list[int]:
    """Places of the selected tiles."""
    marked = "tiles => tiles.flatMap((t, n) => t.classList.contains('chosen') ? [n] : [])"
    return page.locator(".st-key-tests .tile").evaluate_all(marked)


def frame(page: Page, first: Locator, last: Locator) -> None:
    """Draw a frame from the middle of one tile to that of another."""
    at_rest(page)
    first.scroll_into_view_if_needed()
    a, b = first.bounding_box(), last.bounding_box()
    assert a and b
    page.mouse.move(a["x"] + a["width"] / 2, a["y"] + a["height"] / 2)
    page.mouse.down()
    page.mouse.move(b["x"] + b["width"] / 2, b["y"] + b["height"] / 2, steps=6)
    page.mouse.up()


def test_tiles_are_selected_by_click_range_frame_and_keys(page: Page, url: str) -> None:
    page.goto(f"{url}/explain?show=all")
    tiles = predictions(page)
    tiles.nth(2).click()
    assert chosen(page) == []  # a plain click picks
    expect(page).to_have_url(re.compile("test="))
    tiles.nth(5).click(modifiers=["Shift"])
    assert chosen(page) == [2, 3, 4, 5]
    tiles.nth(3).click(modifiers=["ControlOrMeta"])
    assert chosen(page) == [2, 4, 5]
    page.keyboard.press("Escape")
    assert chosen(page) == []
    across = tiles.evaluate_all("all => all.filter(t => t.offsetTop === all[0].offsetTop).length")
    frame(page, tiles.nth(1), tiles.nth(across + 2))
    assert chosen(page) == [1, 2, across + 1, across + 2]
    expect(page.locator(".st-key-tests").get_by_text("4 selected")).to_be_visible()
    page.locator(".st-key-tests .several .none").click()
    tiles.nth(0).focus()
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    assert chosen(page) == list(range(across + 2))
    page.keyboard.press("ControlOrMeta+a")
    assert chosen(page) == list(range(tiles.count()))


def test_keys_reach_no_tile_of_a_row_that_is_cut_off(page: Page, url: str) -> None:
    page.set_viewport_size({"width": 1000, "height": 900})
    page.goto(url)
    tiles = page.locator(".st-key-overview_wrong .tile")
    expect(tiles.nth(10)).to_be_attached()
    at_rest(page)
    high = tiles.evaluate_all("all => all.map((one) => one.offsetHeight)")
    seen = [n for n, height in enumerate(high) if height > 0]
    assert 0 < len(seen) < len(high)
    tiles.first.focus()
    for _ in high:
        page.keyboard.press("ArrowRight")
    expect(tiles.nth(seen[-1])).to_be_focused()
    page.keyboard.press("ControlOrMeta+a")
    marked = "all => all.flatMap((t, n) => t.classList.contains('chosen') ? [n] : [])"
    assert tiles.evaluate_all(marked) == seen


def test_a_bulk_correction_is_one_undo(page: Page, url: str, engine: Engine, build: Build) -> None:
    page.goto(f"{url}/explain?show=all")
    tiles = predictions(page)
    tiles.nth(1).click(modifiers=["ControlOrMeta"])
    tiles.nth(4).click(modifiers=["Shift"])
    ids = [int(tiles.nth(n).get_attribute("data-id") or "") for n in range(1, 5)]
    page.keyboard.press("3")
    expect(page.get_by_text(re.compile("^Test accuracy .* corrected"))).to_be_visible()
    stand = engine.decisions.in_force(build.test_half.id)
    assert set(stand) == {build.test_ids[t] for t in ids}
    for t in ids:  # to the label that it has is to keep it
        said = stand[build.test_ids[t]]
        kept = build.test_labels_T[t] == 3
        assert (said.verdict, said.label) == (("keep", None) if kept else ("relabel", 3))
    page.keyboard.press("u")
    expect(page.locator(".st-key-tests .mark")).to_have_count(0)
    assert not engine.decisions.in_force(build.test_half.id)


def test_a_test_label_is_decided_on_by_key_and_the_next_is_shown(
    page: Page, url: str, engine: Engine, build: Build
) -> None:
    page.goto(f"{url}/explain")
    tiles = predictions(page)
    ids = [int(tiles.nth(n).get_attribute("data-id") or "") for n in range(3)]
    tiles.nth(0).focus()
    for key in "xk":
        page.keyboard.press(key)
    expect(page.locator(".st-key-subject").get_by_text(f"Test image {ids[2]}")).to_be_visible()
    expect(tiles.nth(2)).to_be_focused()
    stand = engine.decisions.in_force(build.test_half.id)
    assert [stand[build.test_ids[t]].verdict for t in ids[:2]] == ["drop", "keep"]
    subject = page.locator(".st-key-subject")
    for t in reversed(ids[:2]):
        subject.get_by_role("button", name="Undo").click()
        expect(subject.get_by_text(f"Test image {t}", exact=True)).to_be_visible()
    expect(page.locator(".st-key-tests .mark")).to_have_count(0)


def test_the_pixels_are_shown_as_stored_and_as_the_network_sees_them(page: Page, url: str) -> None:
    page.goto(f"{url}/explain?test=17&target=predicted")
    expect(page.locator(".st-key-subject .big")).to_be_visible()
    page.keyboard.press("z")
    pictures = page.locator(".st-key-subject .pixels")
    expect(pictures).to_have_count(2)
    for n in range(2):
        expect(pictures.nth(n)).to_have_js_property("naturalWidth", 28)
        expect(pictures.nth(n)).to_have_css("image-rendering", "pixelated")
    page.keyboard.press("z")
    expect(pictures.first).to_be_hidden()


@pytest.mark.parametrize(
    "address",
    ["", "explain", "groups", "groups?pattern=one+class+rather+than+another", "groups?pattern=hubs",
     "review", "changes", "compare?view=side+by+side", "builds"],
)  # fmt: skip
def test_every_page_bears_120_classes(page: Page, species_url: str, address: str) -> None:
    page.goto(f"{species_url}/{address}")
    expect(page.locator("h1")).to_be_visible()
    expect(page.locator("[data-testid=stApp][data-test-script-state=notRunning]")).to_be_attached()
    wide = "document.querySelector('[data-testid=stMain]').scrollWidth - innerWidth"
    assert page.evaluate(wide) <= 0  # nothing sticks out
    assert page.locator("b[onclick]").count() == 0  # no name became an element


def test_a_class_of_many_is_typed_by_name_or_number(
    page: Page, species_url: str, species: Engine
) -> None:
    build = species.open(species.newest())
    assert build.classes[:2] == ("class 0", "class 1") and build.classes[2] == many.CLASSES[2]
    page.goto(f"{species_url}/explain")
    tiles = predictions(page)
    tiles.nth(0).click()
    card = page.locator(".st-key-subject")
    field = card.get_by_label("Type the name or the number of a class")
    wanted = {"<B O": 2, "strasse": 5, "猫": 4, "no. 77": 77, "113": 113, "class 1": 1, "12": 9}
    for typed, label in wanted.items():
        field.fill(typed)
        expect(card.locator(".classes button").first).to_have_text(
            " ".join(build.classes[label].split())
        )
    field.fill("no such class")
    expect(card.get_by_text("No class is called so.")).to_be_visible()
    field.fill("<b")
    field.press("Enter")
    expect(card.get_by_text(f"corrected to {many.CLASSES[2]}")).to_be_visible()
    (said,) = species.decisions.in_force(build.test_half.id).values()
    assert (said.verdict, said.label) == ("relabel", 2)
    hit = page.locator(".st-key-hits .tile").first
    hit.focus()
    page.keyboard.type("113")  # the first digit opens the field
    page.keyboard.press("Enter")
    expect(hit.locator(".mark.relabelled")).to_have_text(f"→ {build.classes[113]}")
    page.goto(f"{species_url}/review")
    deck = page.locator(".st-key-deck")
    expect(deck.locator(".tile").first).to_be_focused()
    first = deck.locator(".tile").first
    page.keyboard.type("77")
    page.keyboard.press("Enter")
    expect(first.locator(".mark.relabelled")).to_have_text(f"→ {build.classes[77]}")


def test_the_deck_is_selected_by_a_frame_too(page: Page, url: str) -> None:
    page.goto(f"{url}/review")
    tiles = page.locator(".st-key-deck .tile")
    expect(tiles.first).to_be_focused()
    frame(page, tiles.nth(1), tiles.nth(3))
    expect(page.locator(".st-key-deck").get_by_text("3 selected")).to_be_visible()


def test_a_decision_in_the_card_leaves_the_keyboard_where_it_is(page: Page, url: str) -> None:
    page.goto(f"{url}/explain")
    card = page.locator(".st-key-subject")
    card.get_by_role("button", name="It is right").focus()
    page.keyboard.press("Enter")
    expect(card.locator("button.is")).to_have_text("It is rightK")
    expect(card.get_by_role("button", name="It is right")).to_be_focused()
    page.keyboard.press("u")
    expect(card.locator("button.is")).to_have_count(0)


def test_a_key_that_is_held_down_decides_on_one_image(page: Page, url: str) -> None:
    page.goto(f"{url}/review")
    tiles = page.locator(".st-key-deck .tile")
    expect(tiles.first).to_be_focused()
    for _ in range(4):
        page.keyboard.down("s")
    page.keyboard.up("s")
    page.keyboard.press("k")
    expect(tiles.nth(1).locator(".mark.kept")).to_be_visible()
    expect(tiles.locator(".mark")).to_have_count(2)
    for _ in range(2):
        page.keyboard.press("u")
    expect(tiles.locator(".mark")).to_have_count(0)
