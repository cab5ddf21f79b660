"""The map in a real Chromium: what lies under the pointer, inside a line, behind a key."""

import os
import re
from collections.abc import Iterator

import numpy as np
import pytest
from chromium import app_server, at_rest, chromium_path
from conftest import Tiny
from playwright.sync_api import Browser, Locator, Page, expect

from attribution.build import Build
from attribution.engine import Engine
from pages.parts import picked
from pages.parts.opened import DOUBT

pytestmark = pytest.mark.skipif(
    chromium_path() is None and "CI" not in os.environ,
    reason="no Chromium here: the map was not tried in a browser",
)

MARGIN = 24  # pixels around the whole map


@pytest.fixture(scope="module")
def url(mapped: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with app_server(mapped.cache, tmp_path_factory.mktemp("workspace")) as address:
        yield address


@pytest.fixture(scope="module")
def build(mapped: Tiny) -> Build:
    return Engine(mapped.cache).open(mapped.build)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1280, "height": 900}, device_scale_factor=2)
    said: list[str] = []
    opened.on("pageerror", lambda error: said.append(str(error)))
    yield opened
    opened.close()
    assert said == []


def visit(page: Page, address: str) -> Locator:
    """The map, drawn."""
    page.goto(address)
    stage = page.locator(".st-key-map .stage[data-view]")
    expect(stage).to_be_visible()
    return stage


def on_screen(build: Build, stage: Locator) -> np.ndarray:
    """Where each image is on the page, (P, 2): all of the map in the middle of its frame."""
    at_rest(stage.page)
    left, top, width, height = stage.evaluate(
        "s => { const b = s.getBoundingClientRect();"
        "return [b.left + s.clientLeft, b.top + s.clientTop, s.clientWidth, s.clientHeight]; }"
    )
    xy_P2 = build.map.array("xy").astype(float)
    xy_P2 -= xy_P2.min(0)
    extent_2 = xy_P2.max(0)
    scale = min((width - 2 * MARGIN) / extent_2[0], (height - 2 * MARGIN) / extent_2[1])
    return np.array([left + width / 2, top + height / 2]) + (xy_P2 - extent_2 / 2) * scale


def winding(xy_P2: np.ndarray, corners_K2: np.ndarray) -> np.ndarray:
    """How often a closed line goes around each place: the sum of the angles it is seen under."""
    toward_PK = (corners_K2 - xy_P2[:, None]) @ np.array([1, 1j])
    turn_PK = np.angle(np.roll(toward_PK, -1, 1) / toward_PK)
    return np.rint(turn_PK.sum(1) / (2 * np.pi))


def star(xy_P2: np.ndarray) -> np.ndarray:
    """Corners of a line that is not convex, on whole pixels, and goes through no image."""
    angle_K = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    around_K2 = np.stack([np.cos(angle_K), np.sin(angle_K)], 1)
    for size in range(90, 150):
        reach_K = np.where(np.arange(14) % 2, 45, size)
        corners_K2 = np.round(np.median(xy_P2, 0) + reach_K[:, None] * around_K2)
        side_K2 = np.roll(corners_K2, -1, 0) - corners_K2
        from_PK2 = xy_P2[:, None] - corners_K2
        along_PK = ((from_PK2 * side_K2).sum(2) / (side_K2**2).sum(1)).clip(0, 1)
        far_PK = np.linalg.norm(from_PK2 - along_PK[..., None] * side_K2, axis=2)
        if far_PK.min() > 0.02:
            return corners_K2
    raise AssertionError("every such line goes through an image")


def expect_said(page: Page, text: str) -> None:
    expect(page.locator(".st-key-map .said")).to_have_text(text)


def test_what_a_line_goes_around_is_selected(page: Page, url: str, build: Build) -> None:
    stage = visit(page, f"{url}/map")
    xy_P2 = on_screen(build, stage)
    corners_K2 = star(xy_P2)
    page.keyboard.press("l")
    page.mouse.move(*corners_K2[0])
    page.mouse.down()
    for corner in corners_K2[1:]:
        page.mouse.move(*corner)
    page.mouse.up()
    inside = np.flatnonzero(winding(xy_P2, corners_K2))
    count = len(build.train_labels_N)
    tests = inside[inside >= count] - count
    assert len(tests) > 1
    expect_said(page, f"{len(xy_P2):,} of {len(xy_P2):,} images · {len(inside):,} selected")
    expect(page.locator(".st-key-map_tests .tile")).to_have_count(min(60, len(tests)))
    page.get_by_role("button", name="Explain these together").click()
    expect(page.get_by_text("What pushed the")).to_be_visible()
    address = picked.words(tests.tolist()).replace(",", "(,|%2C)")
    expect(page).to_have_url(re.compile(f"picked={address}(&|$)"))
    page.get_by_role("link", name="Map").click()  # it is still there
    expect_said(page, f"{len(xy_P2):,} of {len(xy_P2):,} images · {len(inside):,} selected")


def test_the_image_under_the_pointer_is_shown_and_a_click_selects_it(
    page: Page, url: str, build: Build
) -> None:
    stage = visit(page, f"{url}/map?build={build.id}")
    xy_P2 = on_screen(build, stage)
    count = len(build.train_labels_N)
    far_PP = np.linalg.norm(xy_P2[:, None] - xy_P2[None], axis=2)
    np.fill_diagonal(far_PP, np.inf)
    alone_P = far_PP.min(1)
    for split, some in (("train", np.arange(count)), ("test", np.arange(count, len(xy_P2)))):
        p = int(some[alone_P[some].argmax()])
        i = p if split == "train" else p - count
        page.mouse.move(*xy_P2[p])
        image = stage.locator(".tip img")
        expect(image).to_have_attribute("src", f"/thumb/{build.id}/{split}/{i}.png")
        expect(image).to_have_js_property("naturalWidth", build.image(split, i).shape[1])
        page.mouse.click(*xy_P2[p])
        word = "Training" if split == "train" else "Test"
        card = page.locator(".st-key-map_one").get_by_text(f"{word} image {i}")
        expect(card).to_be_visible()
    card.click()
    page.keyboard.press("z")
    expect(page.locator(".st-key-map_one dialog")).to_be_visible()
    page.keyboard.press("Escape")  # closes the picture, and nothing else
    expect(page.locator(".st-key-map_one dialog")).to_be_hidden()
    expect_said(page, f"{len(xy_P2):,} of {len(xy_P2):,} images · 1 selected")


def test_the_map_is_used_without_a_mouse_and_comes_back(page: Page, url: str, build: Build) -> None:
    images = len(build.train_labels_N) + len(build.test_labels_T)
    stage = visit(page, f"{url}/map?map_label=4")
    suspects = build.mislabels()
    fours = suspects[suspects.given_label == 4]
    tests = build.tests()
    shown = len(fours) + int((tests.label == 4).sum())
    expect_said(page, f"{shown} of {images:,} images")
    page.locator("[data-action=suspects]").focus()
    page.keyboard.press("Enter")
    likely = fours.index[fours.score > DOUBT]
    expect_said(page, f"{shown} of {images:,} images · {len(likely)} selected")
    expect(page.locator(".st-key-map_trains .tile")).to_have_count(min(60, len(likely)))
    page.get_by_role("button", name="Review these").focus()
    page.keyboard.press("Enter")
    deck = page.locator(".st-key-deck")
    expect(deck.locator(".tile")).to_have_count(min(48, len(likely)))
    page.get_by_role("link", name="Map").click()
    expect(stage).to_be_visible()
    page.keyboard.press("Escape")
    expect_said(page, f"{shown} of {images:,} images")

    entry = page.locator(".st-key-map .legend [data-label='4']")
    entry.focus()
    page.keyboard.press("Enter")
    expect_said(page, f"0 of {images:,} images")
    expect(page.get_by_text("Widen the choice above")).to_be_visible()
    expect(page).to_have_url(re.compile("map_hidden=4"))
    page.reload()
    expect_said(page, f"0 of {images:,} images")

    stage.focus()
    for key, zoom in (("+", 1.3), ("+", 1.69), ("-", 1.3), ("0", 1)):
        page.keyboard.press(key)
        expect(stage).to_have_attribute("data-view", re.compile(rf" {zoom:g}\d*$"))
    lasso = page.locator("[data-action=lasso]")
    page.keyboard.press("l")
    expect(lasso).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")
    expect(lasso).to_have_attribute("aria-pressed", "false")
