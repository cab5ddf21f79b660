"""The page of the map on a real build: what is selected, where it leads, what the address has."""

import shutil
from base64 import b64decode, b64encode
from pathlib import Path

import numpy as np
import pytest
from apptest import APP, PATIENCE, act, at_place, element, fine, items
from conftest import Tiny
from streamlit.testing.v1 import AppTest

from attribution.build import Build
from attribution.engine import Engine
from pages.parts import opened, picked


@pytest.fixture
def build(mapped: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    at_place(Tiny(mapped.cache, tmp_path, mapped.build), monkeypatch)
    return opened.engine().open(mapped.build)


def visit(page: str = "map", **address: str) -> AppTest:
    app = AppTest.from_file(APP, default_timeout=PATIENCE)
    app.switch_page(f"pages/{page}.py")
    for key, value in address.items():
        app.query_params[key] = value
    return app.run()


def select(app: AppTest, build: Build, trains: list[int], tests: list[int]) -> AppTest:
    """As the browser says it."""
    count = len(build.train_labels_N)
    points = np.array([*trains, *(count + t for t in tests)], "<u4")
    return act(app, "map", {"type": "select", "points": b64encode(points.tobytes()).decode()})


def numbers(text: str) -> list[int]:
    return np.frombuffer(b64decode(text), "<u4").tolist()


def test_without_a_map_there_is_a_sentence_and_a_button(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(tiny.cache, cache, ignore=shutil.ignore_patterns("map"))
    at_place(Tiny(cache, tmp_path, tiny.build), monkeypatch)
    started = []
    monkeypatch.setattr(Engine, "start", lambda self, *words: started.append(words) or "job")
    app = fine(visit())
    assert "not laid out yet" in app.markdown[0].value
    assert any(f"attribution map {tiny.build}" in code.value for code in app.code)
    app.button(key="make_map").click().run()
    assert started == [([tiny.build], "map")]


def test_test_images_are_explained_together(build: Build) -> None:
    some = [3, 4, 5, 17, 80]
    app = fine(select(visit(), build, [], some))
    assert {i["id"] for i in items(app, "map_tests")} == set(some)
    app.button(key="to_groups").click().run()
    assert fine(app).title[0].value == "Patterns"
    assert dict(app.query_params)["picked"] in ("3-5,17,80", ["3-5,17,80"])
    answer = build.query_group(some, 18)
    for group, hits in enumerate((answer.proponents, answer.opponents)):
        assert [i["id"] for i in items(app, "group_hits", group)] == [h.hit.train_id for h in hits]
    again = fine(visit("groups", pattern="a selection", picked="3-5,17,80"))
    assert items(again, "group_hits") == items(app, "group_hits")
    labelled = visit("groups", pattern="a selection", picked="3-5", group_asked="labelled so")
    answer = build.query_group([3, 4, 5], 18, "label")
    shown = [i["id"] for i in items(fine(labelled), "group_hits")]
    assert shown == [h.hit.train_id for h in answer.proponents]


def test_training_images_are_reviewed_and_nothing_else(build: Build) -> None:
    suspects = build.mislabels()
    some = [int(i) for i in suspects.index[[0, 7, 30, 900]]]
    app = fine(select(visit(), build, some, []))
    assert [i["id"] for i in items(app, "map_trains")] == some  # the most suspicious first
    app.button(key="to_review").click().run()
    assert fine(app).title[0].value == "Review"
    assert [one["id"] for one in items(app, "deck")] == some
    assert element(app, "deck")["chosen"] == "chosen on the map"
    again = fine(visit("review", picked=picked.words(some)))
    assert [one["id"] for one in items(again, "deck")] == some
    act(again, "deck", {"type": "decide", "id": some[0], "verdict": "drop"})
    assert [one["id"] for one in items(fine(again), "deck")] == some
    again.button(key="unpick").click().run()
    assert len(items(fine(again), "deck")) == 48 and "picked" not in dict(again.query_params)
    # and back on the map it is seen
    assert numbers(element(fine(visit()), "map")["decided"]) == [8 * some[0] + 3]


def test_a_single_image_leads_on(build: Build) -> None:
    app = fine(select(visit(), build, [], [9]))
    assert element(app, "map_one")["title"] == "Test image 9"
    app.button(key="map_act").click().run()
    assert element(fine(app), "tests")["selected"] == 9
    likely = int(build.mislabels().index[5])
    app = fine(select(visit(), build, [likely], []))
    assert element(app, "map_one")["title"] == f"Training image {likely}"
    app.button(key="map_act").click().run()
    assert element(fine(app), "deck")["focus"]["id"] == likely


def test_thumbnails_lead_on_too(build: Build) -> None:
    app = fine(select(visit(), build, [11, 12], [1, 2]))
    act(app, "map_tests", {"type": "pick", "id": 2})
    assert element(fine(app), "tests")["selected"] == 2
    app = fine(select(visit(), build, [11, 12], [1, 2]))
    act(app, "map_trains", {"type": "pick", "id": 12})
    assert element(fine(app), "deck")["focus"]["id"] == 12


def test_what_is_shown_is_in_the_address(build: Build) -> None:
    app = visit(
        map_colour="suspicion", map_images="training", map_label="4", map_only="undecided suspects",
        map_hidden="7,2,x,99",
    )  # fmt: skip
    data = element(fine(app), "map")
    assert (data["colour"], data["images"], data["label"]) == ("suspicion", "training", 4)
    assert data["only"] == "undecided suspects" and data["hidden"] == [2, 7]
    act(app, "map", {"type": "hide", "classes": [1, 3]})
    assert dict(app.query_params)["map_hidden"] in ("1,3", ["1,3"])
    act(app, "map", {"type": "hide", "classes": []})
    assert "map_hidden" not in dict(app.query_params)
    assert element(fine(app), "map")["hidden"] == []


def test_a_selection_of_too_many_says_so(build: Build) -> None:
    app = fine(select(visit(), build, list(range(picked.MOST + 1)), [0, 1]))
    button = app.button(key="to_review")
    assert button.disabled and f"{picked.MOST:,}" in button.help
    assert not app.button(key="to_groups").disabled
    assert len(items(app, "map_trains")) == 60


@pytest.mark.parametrize("points", ["/////w==", "no base64", "AAA=", None])
def test_a_selection_that_makes_no_sense_is_a_notice(build: Build, points: object) -> None:
    app = act(visit(), "map", {"type": "select", "points": points})
    (said,) = [w.value for w in fine(app).warning]
    assert "not there" in said and "reload" in said
    assert element(app, "map")["selected"] == ""


@pytest.mark.parametrize("page", ["groups", "review"])
@pytest.mark.parametrize("text", ["99999", "x", "<b>", "5-1"])
def test_a_bad_selection_in_the_address_is_a_sentence(build: Build, page: str, text: str) -> None:
    app = fine(visit(page, picked=text, **({"pattern": "a selection"} if page == "groups" else {})))
    assert any("Map" in w.value for w in app.warning)


@pytest.mark.parametrize(
    "address", [{"map_colour": "x"}, {"map_label": "cat"}, {"map_hidden": "-"}]
)
def test_a_bad_address_is_the_usual_map(build: Build, address: dict) -> None:
    data = element(fine(visit(**address)), "map")
    assert (data["colour"], data["label"], data["hidden"]) == ("class", None, [])
