"""The pages on data that are not the demo's: numbers as names, few images, two data sets."""

import gc
import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from apptest import act, at_place, element, fine, items, page
from conftest import Tiny
from pictures import CLASSES, photos, written
from streamlit.runtime.state.common import WidgetMetadata

from attribution.build import Build
from attribution.engine import Engine
from attribution.records import BuildSpec, FeatureSpec, UserError
from pages.parts.opened import engine

SPEC = BuildSpec(
    model="cnn", width=0.2, models=1, masks=2, epochs=2, features=FeatureSpec(ka=4, kg=2),
    index_dims=8,
)  # fmt: skip


class Two(NamedTuple):
    """A cache with two builds: few images, and more of classes that are called by numbers."""

    place: Tiny
    few: str
    numbers: str


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Two:
    root = tmp_path_factory.mktemp("two")
    numbers = dict(zip(CLASSES, "234", strict=True))
    more = {
        re.sub("cat|dog|emu", lambda found: numbers[found[0]], path): content
        for path, content in photos(train=12, test=4).items()
    }
    made = Engine(root / "cache", root)
    ids = [
        made.build(replace(SPEC, data=made.read(str(written(root / name, files)))))["build"]
        for name, files in (("few", photos(train=2, test=1)), ("more", more))
    ]
    return Two(Tiny(root / "cache", root, ids[1]), *ids)


@pytest.fixture
def there(two: Two, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Two:
    at_place(two.place._replace(workspace=tmp_path), monkeypatch)
    return two


@pytest.fixture
def numbers(there: Two) -> Build:
    return engine().open(there.numbers)


def ids(app, key: str) -> list[int]:
    return [one["id"] for group in element(app, key)["groups"] for one in group["items"]]


def of(answer) -> list[int]:
    """The hits as pages show them: of few images the strongest of either side may be all."""
    sides = (
        [h for h in answer.proponents if h.score > 0],
        [h for h in answer.opponents if h.score < 0],
    )
    return [hit.train_id for side in sides for hit in side]


def test_a_number_is_a_position_and_a_text_a_name_first(numbers: Build) -> None:
    assert numbers.classes == ("2", "3", "4")
    assert [numbers.class_named(name) for name in numbers.classes] == [0, 1, 2]
    assert [numbers.class_named(position) for position in range(3)] == [0, 1, 2]
    assert numbers.class_named("0") == 0  # no class is called so
    for nothing in (3, -1, "5"):
        with pytest.raises(UserError, match="target"):
            numbers.class_named(nothing)


def test_classes_called_by_numbers_are_asked_about_as_themselves(numbers: Build) -> None:
    test_id = 0
    for asked in range(3):
        answer = numbers.query(test_id, 12, asked)
        assert answer.target == asked
        at = {"build": numbers.id, "test": str(test_id), "target": str(asked), "show": "all"}
        app = fine(page("explain", **at))
        assert ids(app, "hits") == of(answer)
        if asked not in (answer.predicted, answer.label):
            assert app.query_params["target"] == str(asked)
        other = next(c for c in range(3) if c not in (asked, answer.predicted))
        question = app.button_group(key="question")
        fine(question.set_value(other).run())
        assert ids(app, "hits") == of(numbers.query(test_id, 12, other))
    app = fine(page("groups", build=numbers.id, pattern="one class rather than another"))
    app.number_input(key="contrast_test").set_value(test_id).run()
    app.selectbox(key="rather").set_value("4").run()
    app.selectbox(key="than").set_value("2").run()
    assert ids(fine(app), "group_hits") == of(numbers.contrast(test_id, 2, 0, 18))


def test_the_digit_that_a_class_is_called_relabels_to_it(numbers: Build, there: Two) -> None:
    for name in ("explain", "review"):
        app = fine(page(name, build=numbers.id, show="all"))
        assert element(app, "hits" if name == "explain" else "deck")["keys"] == ["2", "3", "4"]
    few = fine(page("review", build=there.few))
    assert element(few, "deck")["keys"] == ["0", "1", "2"]


@pytest.mark.parametrize("about", ["a confusion", "one class rather than another", "hubs",
                                   "no steady proponent"])  # fmt: skip
def test_patterns_of_few_images(there: Two, about: str) -> None:
    fine(page("groups", build=there.few, pattern=about))


@pytest.mark.parametrize("name", ["overview", "explain", "review", "compare", "changes"])
def test_pages_of_few_images(there: Two, name: str) -> None:
    app = page(name, build=there.few, show="all")
    assert not any("choose a" in one.value for one in (*fine(app).warning, *app.info))


def test_what_else_would_change_among_few_images(there: Two) -> None:
    app = page("explain", build=there.few, show="all", count="1")
    app.session_state["reach"] = True
    assert len(element(fine(app.run()), "reached")["groups"]) >= 1
    assert not app.warning and len(ids(app, "hits")) == 6  # each on one side


def test_what_was_chosen_on_other_data_is_forgotten(there: Two, numbers: Build) -> None:
    app = page("review", build=there.numbers, picked="0-2")
    assert {one["id"] for one in items(fine(app), "deck")} == {0, 1, 2}
    app.selectbox(key="chosen").set_value(there.few).run()
    assert len(items(fine(app), "deck")) == 6 and "picked" not in app.query_params
    app = page("explain", build=there.numbers, show="all", test="11", target="2")
    assert element(fine(app), "subject")["id"] == 11
    app.selectbox(key="chosen").set_value(there.few).run()
    assert element(fine(app), "subject")["id"] < 3
    assert not any("target" in one.value for one in app.warning)
    assert app.query_params["target"] == "predicted"


def test_an_undo_says_what_it_undid(numbers: Build) -> None:
    app = fine(page("explain", build=numbers.id, show="all"))
    first = ids(app, "hits")[0]
    act(app, "hits", {"type": "decide", "each": [{"id": first, "verdict": "drop"}]})
    assert not fine(app).toast
    act(app, "hits", {"type": "undo"})
    assert [one.value for one in fine(app).toast] == [
        f"The decision on training image {first} is undone."
    ]
    act(app, "hits", {"type": "redo"})
    assert "is made again" in app.toast[0].value and not app.warning
    assert engine().decisions.in_force(numbers.data_id)


def test_a_session_keeps_no_more_the_more_images_it_has_seen(numbers: Build) -> None:
    """Streamlit never forgets a widget that it was once asked for."""

    def kept() -> int:
        gc.collect()
        return sum(type(one) is WidgetMetadata for one in gc.get_objects())

    app = fine(page("explain", build=numbers.id, show="all"))
    act(app, "tests", {"type": "pick", "id": 1})
    before = kept()
    assert before > 5
    for test_id in (2, 5, 9):
        act(app, "tests", {"type": "pick", "id": test_id})
        answer = numbers.query(test_id)
        assert fine(app).button_group(key="question").value == answer.predicted
        other = next(c for c in range(3) if c != answer.predicted)
        app.button_group(key="question").set_value(other).run()
        assert ids(fine(app), "hits") == of(numbers.query(test_id, 12, other))
    assert kept() == before
    app = fine(page("groups", build=numbers.id, pattern="one class rather than another"))
    before = kept()
    for test_id in (2, 5, 9):
        app.number_input(key="contrast_test").set_value(test_id).run()
        app.selectbox(key="rather").set_value("4").run()
    assert kept() == before
