"""The page of patterns on a real build: its hits are the engine's, its picks lead on."""

import numpy as np
import pytest
from apptest import APP, PATIENCE, act, at_place, element, fine, items
from conftest import Tiny
from streamlit.testing.v1 import AppTest

from attribution.build import Build
from pages.parts import opened


@pytest.fixture
def build(tiny: Tiny, tmp_path, monkeypatch: pytest.MonkeyPatch) -> Build:
    at_place(Tiny(tiny.cache, tmp_path, tiny.build), monkeypatch)
    return opened.engine().open(tiny.build)


def visit(**address: str) -> AppTest:
    app = AppTest.from_file(APP, default_timeout=PATIENCE)
    app.switch_page("pages/groups.py")
    for key, value in address.items():
        app.query_params[key] = value
    return app.run()


def test_the_largest_confusion_comes_first_and_its_hits_are_the_engines(build: Build) -> None:
    app = fine(visit())
    matrix = build.confusion_CC()
    np.fill_diagonal(matrix, 0)
    label, predicted = np.unravel_index(matrix.argmax(), matrix.shape)
    tests = build.tests()
    wanted = tests.index[(tests.label == label) & (tests.predicted == predicted)]
    assert {i["id"] for i in items(app, "group_tests")} == set(wanted)
    some = tests.loc[wanted].sort_values("confidence", ascending=False).index
    answer = build.query_group([int(t) for t in some], 18)
    for group, hits in enumerate((answer.proponents, answer.opponents)):
        assert [i["id"] for i in items(app, "group_hits", group)] == [h.hit.train_id for h in hits]
    share = answer.proponents[0].support
    assert items(app, "group_hits")[0]["agreement_text"] == f"{share * len(some):.0f}/{len(some)}"


def test_a_cell_is_chosen_in_the_address_and_an_empty_one_says_so(build: Build) -> None:
    matrix = build.confusion_CC()
    label, predicted = np.argwhere(matrix == 0)[0]
    app = visit(group_label=str(label), group_predicted=str(predicted))
    assert "Choose another cell" in fine(app).info[0].value
    label, predicted = np.argwhere(matrix == 1)[0]
    app = fine(visit(group_label=str(label), group_predicted=str(predicted)))
    assert len(items(app, "group_tests")) == 1


def test_a_cell_that_was_clicked_before_is_in_the_address(build: Build) -> None:
    matrix = build.confusion_CC()
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    a, b = np.unravel_index(wrong.argmax(), wrong.shape)
    cells = np.argwhere(matrix == 1)
    label, predicted = next((str(x), str(y)) for x, y in cells if x != a and y != b)
    app = AppTest.from_file(APP, default_timeout=PATIENCE)
    app.switch_page("pages/groups.py")
    app.session_state["group_label"], app.session_state["group_predicted"] = label, predicted
    app = fine(app.run())
    assert len(items(app, "group_tests")) == 1
    assert [app.query_params[k] for k in ("group_label", "group_predicted")] == [label, predicted]


def test_a_cell_is_asked_about_as_a_whole(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pages.parts.asked.PAGE", 5)
    app = fine(visit(group_label="1", group_predicted="1"))
    tests = build.tests()
    cell = tests[(tests.label == 1) & (tests.predicted == 1)]
    cell = cell.sort_values("confidence", ascending=False)
    assert len(items(app, "group_tests")) == 5
    label = element(app, "group_tests")["groups"][0]["label"]
    assert label == f"Its test images · {len(cell)}, 5 shown"
    answer = build.query_group([int(t) for t in cell.index], 18)
    assert [i["id"] for i in items(app, "group_hits")] == [
        h.hit.train_id for h in answer.proponents
    ]


def test_what_is_no_mistake_by_the_labels_in_force_is_not_asked_about(build: Build) -> None:
    tests = build.tests()
    wrong = tests[~tests.correct].sort_values("confidence", ascending=False)
    first, second, third = (int(t) for t in wrong.index[:3])
    log, half = opened.engine().decisions, build.test_half.id
    log.decide(half, build.test_ids[first], "relabel", label=int(build.predicted_T[first]))
    log.decide(half, build.test_ids[second], "drop")
    app = fine(visit(pattern="one class rather than another"))
    assert app.number_input(key="contrast_test").value == third
    shaky = int(build.unsteady(5).index[0])
    right = build.predicted_T[shaky] == build.test_labels_T[shaky]
    label = (build.predicted_T[shaky] + right) % 10  # wrong by the new one where it was right
    log.decide(half, build.test_ids[shaky], "relabel", label=int(label))
    app = fine(visit(pattern="no steady proponent"))
    assert items(app, "unsteady")[0]["id"] == shaky
    assert items(app, "unsteady")[0]["correct"] is not bool(right)


def test_a_contrast_shows_both_sides(build: Build) -> None:
    app = fine(visit(pattern="one class rather than another", contrast_test="7"))
    one = build.tests().loc[7]
    target = int(one.predicted)
    other = int(one.label) if one.label != target else next(c for c in range(10) if c != target)
    answer = build.contrast(7, str(target), str(other), 18)
    for group, hits in enumerate((answer.proponents, answer.opponents)):
        assert [i["id"] for i in items(app, "group_hits", group)] == [h.train_id for h in hits]


def test_hubs_lead_to_the_review(build: Build) -> None:
    app = fine(visit(pattern="hubs"))
    found = build.hubs(10)
    shown = items(app, "hubs")
    assert [i["id"] for i in shown] == found.index[: len(shown)].tolist()
    assert shown[0]["note"] == f"{found.tests.iloc[0]} tests"
    act(app, "hubs", {"type": "pick", "id": shown[3]["id"]})
    assert fine(app).title[0].value == "Review"


def test_predictions_without_a_steady_proponent_lead_to_explain(build: Build) -> None:
    app = fine(visit(pattern="no steady proponent"))
    found = build.unsteady(5)
    shown = items(app, "unsteady")
    assert [i["id"] for i in shown] == found.index[: len(shown)].tolist()
    assert f"**{(found.steady == 0).sum()}** of 500" in app.markdown[0].value
    act(app, "unsteady", {"type": "pick", "id": shown[0]["id"]})
    assert element(fine(app), "tests")["selected"] == shown[0]["id"]


def test_a_hit_is_decided_here_and_taken_back(build: Build) -> None:
    app = fine(visit())
    first = items(app, "group_hits")[0]["id"]
    act(app, "group_hits", {"type": "decide", "id": first, "verdict": "drop", "label": None})
    stand = opened.engine().decisions.in_force(build.data_id)
    assert stand[build.train_ids[first]].verdict == "drop"
    act(app, "group_hits", {"type": "undo"})
    assert not opened.engine().decisions.in_force(build.data_id)


@pytest.mark.parametrize(
    "address", [{"pattern": "x"}, {"group_label": "cat"}, {"contrast_test": "-"}]
)
def test_a_bad_address_is_the_usual_page(build: Build, address: dict) -> None:
    app = visit(**address)
    assert not app.exception
