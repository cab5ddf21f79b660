"""What an edit would change, on the pages: the same as the engine says, on demand and by key."""

import json
import os
import re
from pathlib import Path

import pytest
from apptest import act, at_place, element, fine, items, page
from chromium import app_server, chromium, chromium_path
from conftest import Tiny
from playwright.sync_api import expect

from attribution.build import Build
from attribution.engine import Engine
from attribution.whatif import Moved
from pages.parts import opened
from pages.parts.reach import SHOWN, item, lines


@pytest.fixture
def engine(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Engine:
    at_place(tiny, monkeypatch)
    return opened.engine()


@pytest.fixture
def build(engine: Engine, tiny: Tiny) -> Build:
    return engine.open(tiny.build)


def told(build_id: str, train_id: int, to: str) -> list[dict]:
    return [json.loads(line) for line in lines(build_id, train_id, to)]


def shown(groups: list[dict]) -> list[int]:
    return [one["id"] for group in groups for one in group["items"]]


@pytest.mark.parametrize("to", ["drop", "3"])
def test_the_answer_is_the_engines_with_progress_where_gradients_are_needed(
    engine: Engine, build: Build, to: str
) -> None:
    *progress, last = told(build.id, 7, to)
    members = len(build.members)
    assert progress == [{"done": m, "total": members} for m in range(members) if to != "drop"]
    rows = engine.blast(build.id, [7], None if to == "drop" else 3, SHOWN, each=True)
    found = last["found"]
    assert shown(found["groups"]) == [r.test_id for r in rows]
    assert [len(g["items"]) for g in found["groups"]] == [SHOWN, SHOWN]
    better, clear = sum(r.better for r in rows), sum(not r.shaky for r in rows)
    assert f"{better} move for the better" in found["words"]
    assert f"{clear} by more than the noise" in found["words"]
    assert (
        "In order only" in found["units"] and "5 removals are verified (0 so far)" in found["units"]
    )
    assert found["measured"]["href"] == ""
    for one, row in zip([i for g in found["groups"] for i in g["items"]], rows, strict=True):
        assert one["note"] == "" and one["shaky"] == row.shaky
        assert one["href"] == f"/explain?build={build.id}&test={row.test_id}&target=predicted"


def test_with_a_scale_the_change_and_its_interval_are_told(build: Build) -> None:
    row = Moved(
        test_id=3, label=1, predicted=1, move=0.1, stderr=0.2, share=1,
        change=0.84, low=-0.2, high=1.9,
    )  # fmt: skip
    one = item(build, row)
    assert one["note"] == "+0.8"
    assert "by +0.84 (-0.20 to +1.90), within its noise" in one["alt"]


@pytest.mark.parametrize(
    ("build_id", "train_id", "to", "said"),
    [
        ("nonsense", 3, "drop", "no build 'nonsense'"),
        ("", 99999, "drop", "train id 99999"),
        ("", 3, "10", "'10'"),
        ("", 3, "keep", "change 'keep'"),
    ],
)
def test_what_is_not_there_is_one_sentence(
    build: Build, build_id: str, train_id: int, to: str, said: str
) -> None:
    (one,) = told(build_id or build.id, train_id, to)
    assert said in one["error"] and "\n" not in one["error"]


def test_what_else_a_removal_changes_is_worked_out_when_it_is_opened(
    engine: Engine, build: Build
) -> None:
    app = fine(page("explain"))
    test_id = element(app, "tests")["selected"]
    assert not [e for e in app.get("bidi_component") if "-reached" in e.proto.id]
    app.session_state["reach"] = True
    fine(app.run())
    rows = engine.blast(build.id, build.strongest(test_id, 20), k=SHOWN, each=True)
    assert shown(element(app, "reached")["groups"]) == [r.test_id for r in rows]
    other = items(app, "reached", 1)[2]["id"]
    fine(act(app, "reached", {"type": "pick", "id": other}))
    assert element(app, "tests")["selected"] == other


@pytest.mark.skipif(chromium_path() is None and "CI" not in os.environ, reason="no Chromium here")
def test_the_fold_opens_by_key_and_leads_to_the_predictions(
    engine: Engine, build: Build, tiny: Tiny, tmp_path: Path
) -> None:
    first = build.mislabels().iloc[0]
    train_id, label = int(first.name), int(first.suggested_label)
    with chromium() as browser, app_server(tiny.cache, tmp_path) as url:
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        said: list[str] = []
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.goto(f"{url}/review")
        fold = tab.locator(".st-key-deck .reach")
        expect(fold.get_by_role("button")).to_have_attribute("aria-expanded", "false")
        tab.keyboard.press("w")
        links = fold.locator("a.other")
        expect(links).to_have_count(2 * SHOWN)

        def expect_moves(new: int | None) -> None:
            rows = engine.blast(build.id, [train_id], new, SHOWN, each=True)
            for at, row in enumerate(rows):
                expect(links.nth(at)).to_have_attribute("href", re.compile(f"test={row.test_id}&"))

        expect_moves(label)
        links.first.focus()
        tab.keyboard.press("ArrowRight")
        expect(links.nth(1)).to_be_focused()
        fold.locator("select").select_option("drop")
        expect_moves(None)
        with tab.context.expect_page() as opening:
            links.first.click()
        opening.value.wait_for_url(re.compile("/explain"))
        tab.locator(".st-key-deck .tile.at").focus()
        tab.keyboard.press("ArrowRight")  # the next image has a fold of its own, closed
        expect(fold.locator("a.other")).to_have_count(0)

        tab.goto(f"{url}/explain")
        tile = tab.locator(".st-key-hits .tile").nth(1)
        expect(tile).to_be_visible()
        tile.focus()
        tab.keyboard.press("w")
        links = tab.locator(".panel .reach a.other")
        expect(links).to_have_count(2 * SHOWN)
        links.first.focus()  # the arrows go on from the one that Tab reaches
        tab.keyboard.press("ArrowRight")
        expect(links.nth(1)).to_be_focused()
        assert said == []
