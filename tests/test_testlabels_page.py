"""Test labels and the search on the pages: everything that shows accuracy follows the decisions."""

import json

import numpy as np
from apptest import act, element, fine, items, page
from starlette.applications import Starlette
from starlette.testclient import TestClient
from streamlit.dataframe_util import convert_arrow_bytes_to_pandas_df
from streamlit.testing.v1 import AppTest

from attribution.build import Build
from attribution.engine import Engine
from attribution.groups import most_confused
from pages.parts import opened
from pages.parts.thumbs import ROUTES
from pages.parts.words import literal, percent


def mistakes(build: Build) -> list[int]:
    tests = build.tests()
    wrong = tests[~tests.correct].sort_values("confidence", ascending=False)
    return [int(t) for t in wrong.index]


def accuracy(app: AppTest) -> str:
    (told,) = [c.value for c in app.caption if c.value.startswith("Test accuracy")]
    return told


def test_a_label_is_corrected_where_it_is_seen_and_taken_back(engine: Engine, build: Build) -> None:
    app = page("explain")
    shown = [one["id"] for one in items(app, "tests")]
    first, second = mistakes(build)[:2]
    said = int(build.predicted_T[first])
    relabel = {"type": "decide", "id": first, "verdict": "relabel", "label": said}
    act(app, "subject", relabel)
    act(app, "tests", {"type": "decide", "each": [{"id": second, "verdict": "drop"}]})
    stand = engine.decisions.in_force(build.test_half.id)
    assert {d.example_id for d in stand.values()} == {build.test_ids[t] for t in (first, second)}
    assert "score" in json.loads(stand[build.test_ids[first]].evidence)
    assert not engine.decisions.in_force(build.data_id)
    labels = engine.test_labels(build.id)
    words = labels.accuracy(build.predicted_T).words
    assert accuracy(fine(app)) == f"Test accuracy {words}."
    assert words.endswith("with 1 test label corrected, 1 excluded)")
    assert [one["id"] for one in items(app, "tests")] == shown  # nothing moves under the keys
    marks = element(app, "tests")["verdicts"]
    assert marks[str(first)]["label"] == said and marks[str(second)]["verdict"] == "drop"
    facts = dict(element(app, "subject")["facts"])
    assert (
        f"corrected to {build.classes[said]}" in facts and element(app, "subject")["given"] != said
    )
    again = page("explain")  # but a list that is made anew leaves them out
    assert [one["id"] for one in items(again, "tests")] == [t for t in mistakes(build)[2:122]]
    (chart,) = again.get("vega_lite_chart") or again.get("arrow_vega_lite_chart")
    counts = convert_arrow_bytes_to_pandas_df(chart.proto.data.data)["count"]
    assert counts.tolist() == build.confusion_CC(labels).ravel().tolist() and counts.sum() == 499
    for _ in range(2):
        act(app, "subject", {"type": "undo"})
    assert not engine.decisions.in_force(build.test_half.id)
    assert element(fine(app), "tests")["selected"] == first  # where the eye should be
    act(app, "tests", {"type": "redo"})
    assert len(engine.decisions.in_force(build.test_half.id)) == 1


def test_the_doubtful_are_ranked_with_their_probability(engine: Engine, build: Build) -> None:
    app = fine(page("explain", show="doubtful label"))
    frame = build.doubtful_tests
    some = frame[frame.score > 0.01]
    shown = items(app, "tests")
    assert [one["id"] for one in shown] == some.index[:120].tolist()
    assert [one["note"] for one in shown] == [percent(p) for p in some.score[:120]]
    assert any(f"{(some.score > 0.5).sum()} of them with a label" in c.value for c in app.caption)
    act(app, "tests", {"type": "decide", "each": [{"id": shown[0]["id"], "verdict": "keep"}]})
    app = fine(page("explain", show="doubtful label"))
    assert [one["id"] for one in items(app, "tests")] == some.index[1:121].tolist()
    app.toggle(key="decided").set_value(True).run()
    assert [one["id"] for one in items(fine(app), "tests")] == [some.index[0]]


def test_accuracy_and_mistakes_follow_on_the_other_pages(engine: Engine, build: Build) -> None:
    first, second, third = mistakes(build)[:3]
    app = page("overview")
    said = int(build.predicted_T[first])
    act(app, "overview_wrong", {"type": "decide", "each": [
        {"id": first, "verdict": "relabel", "label": said}, {"id": second, "verdict": "drop"},
    ]})  # fmt: skip
    told = engine.test_labels(build.id).accuracy(build.predicted_T)
    assert accuracy(fine(app)) == f"Test accuracy {told.words}."
    assert [one["id"] for one in items(app, "overview_wrong")][0] == third
    table = app.dataframe[0].value
    assert table["test labels corrected"].tolist() == [told.restated]
    app = fine(page("groups", group_label=str(build.test_labels_T[first]),
                    group_predicted=str(said)))  # fmt: skip
    assert first not in [one["id"] for one in items(app, "group_tests")]


def test_a_decision_on_no_image_is_a_notice(engine: Engine, build: Build) -> None:
    app = page("explain")
    act(app, "tests", {"type": "decide", "each": [{"id": 500, "verdict": "drop"}]})
    (notice,) = [w.value for w in app.warning]
    assert "test image 500" in notice
    assert not engine.decisions.in_force(build.test_half.id)
    act(app, "tests", {"type": "undo"})
    assert "on test images to undo" in app.warning[0].value


def test_images_are_found_by_number_and_by_name(build: Build) -> None:
    app = fine(page("explain", find="17"))
    assert [one["id"] for one in items(app, "tests")] == [17]
    name = build.test_ids[40]
    app.text_input(key="find").set_value(name[3:9].upper()).run()
    found = [t for t, one in enumerate(build.test_ids) if name[3:9] in one]
    assert [one["id"] for one in items(fine(app), "tests")] == found and 40 in found
    assert element(app, "subject")["name"] == build.test_ids[found[0]]
    app.text_input(key="find").set_value("no such <b>").run()
    assert not fine(app).exception and items(app, "tests") == []
    app = fine(page("review", find_train=build.train_ids[7]))
    (one,) = items(app, "deck")
    assert one["id"] == 7 and one["name"] == build.train_ids[7] and not one["spot"]
    assert element(app, "deck")["chosen"] == f"called {build.train_ids[7]}"


def test_what_the_network_sees_is_served_beside_the_image(build: Build) -> None:
    client = TestClient(Starlette(routes=ROUTES))
    for address in (opened.seen(build, "test", 3), opened.thumb(build, "test", 3)):
        assert client.get(address).content.startswith(b"\x89PNG")
    np.testing.assert_array_equal(build.seen("test", 3), build.image("test", 3))
    assert client.get("/seen/../x").status_code == 404
    assert client.get(f"/seen/{build.id}/test/99999.png").status_code == 404


def test_the_matrix_of_many_classes_is_of_the_most_confused() -> None:
    counts = np.diag(np.arange(100, 130))
    counts[3, 7] = counts[20, 3] = 2
    counts[11, 12] = 1
    assert most_confused(counts, 3).tolist() == [3, 7, 20]
    assert most_confused(counts, 4, [29]).tolist() == [3, 7, 20, 29]
    assert most_confused(counts, 99).tolist() == list(range(30))


def test_no_probability_is_told_as_certain() -> None:
    assert [percent(p) for p in (0, 0.01, 0.424, 0.99, 0.996)] == [
        "<1%", "1%", "42%", "99%", ">99%",
    ]  # fmt: skip


def test_markdown_in_a_name_stays_as_it_is() -> None:
    assert literal("a*b*\n:red[x]") == r"a\*b\* \:red\[x\]"
