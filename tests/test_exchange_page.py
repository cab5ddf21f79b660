"""Import and report on the pages: a file is previewed, taken with one click, and one undo."""

import csv
import json
from io import StringIO
from pathlib import Path

import pytest
from apptest import act, element, fine, page
from streamlit.testing.v1 import AppTest

from attribution import report
from attribution.build import Build
from attribution.decisions import Decisions
from attribution.engine import Engine
from attribution.export import exported
from attribution.records import Decision
from pages.parts.words import literal


def table(*rows: tuple[str, str, str, str]) -> bytes:
    out = StringIO()
    csv.writer(out).writerows([("example_id", "decision", "new_label", "reviewer"), *rows])
    return out.getvalue().encode()


def upload(app: AppTest, name: str, content: bytes) -> AppTest:
    return app.file_uploader[0].upload(name, content).run()


def said(app: AppTest) -> str:
    return " ".join(one.value for one in (*app.markdown, *app.warning))


def standing(engine: Engine, build: Build) -> dict[str, tuple]:
    found: dict[str, Decision] = engine.decisions.in_force(build.data_id)
    return {name: (d.verdict, d.label, d.reviewer) for name, d in found.items()}


def mixed(build: Build) -> bytes:
    ids = build.train_ids
    return table(
        (ids[0], "keep", "", "Zoë"),
        (ids[1], "drop", "", "Ben"),
        (ids[2], "relabel", build.classes[(build.train_labels_N[2] + 1) % 10], ""),
        (ids[3], "drop", "", ""),
        (ids[4], "relabel", "cat", ""),
        (ids[5], "maybe", "", ""),
        ("gone", "drop", "", ""),
    )


def test_a_file_is_previewed_imported_and_undone_as_one_act(engine: Engine, build: Build) -> None:
    ids = build.train_ids
    engine.decisions.decide(build.data_id, ids[3], "keep", reviewer="Anna")
    app = fine(page("review"))
    app.text_input(key="reviewer").set_value("Me").run()
    upload(app, "some.csv", mixed(build))
    assert "**3 new decisions** (1 drop, 1 keep, 1 relabel)" in said(app)
    rows = app.dataframe[0].value
    assert rows.what.tolist() == ["training image 3", "gone", "cat", "maybe"]
    assert rows.why[0] == "keep in force, file: drop"
    before = standing(engine, build)
    assert before == {ids[3]: ("keep", None, "Anna")}  # a preview decides nothing
    fine(app.button(key="import").click().run())
    new = int(build.train_labels_N[2] + 1) % 10
    mine = {
        ids[0]: ("keep", None, "Me"),
        ids[1]: ("drop", None, "Me"),
        ids[2]: ("relabel", new, "Me"),
    }
    assert standing(engine, build) == before | mine
    evidence = engine.decisions.in_force(build.data_id)[ids[0]].evidence
    assert json.loads(evidence)["decided_by"] == "Zoë"
    assert app.file_uploader[0].value is None and literal("Decisions made: 3") in said(app)
    fine(act(app, "deck", {"type": "undo"}))
    assert standing(engine, build) == before
    fine(act(app, "deck", {"type": "redo"}))
    assert standing(engine, build) == before | mine


def test_what_differs_is_replaced_only_where_that_is_asked_for(
    engine: Engine, build: Build
) -> None:
    engine.decisions.decide(build.data_id, build.train_ids[3], "keep")
    app = upload(fine(page("review")), "some.csv", mixed(build))
    app.checkbox(key="replace").check().run()
    assert "**4 new decisions**" in said(fine(app))
    app.button(key="import").click().run()
    assert standing(engine, build)[build.train_ids[3]] == ("drop", None, "")


def test_our_own_export_comes_back_equal(engine: Engine, build: Build, tmp_path: Path) -> None:
    other = Decisions(tmp_path / "other.sqlite")
    for at, verdict in enumerate(("keep", "drop", "unsure")):
        other.decide(build.data_id, build.train_ids[at], verdict)
    wanted = other.in_force(build.data_id)
    app = fine(page("review"))
    for name, form in (("tasks.json", "label-studio"), ("labels.CSV", "csv")):
        upload(app, name, exported(build, wanted, form))
        fine(app.button(key="import").click().run())
        assert {k: v[:2] for k, v in standing(engine, build).items()} == {
            k: (d.verdict, d.label) for k, d in wanted.items()
        }
        fine(act(app, "deck", {"type": "undo"}))
        assert standing(engine, build) == {}


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", b"", "a.csv is no export of decisions (no column"),
        ("a.csv", b"\x89PNG\xff", "a.csv is not text in UTF-8"),
        ("a.json", b'[{"data"', "a.json is no export of decisions (not readable as JSON)"),
        ("a.json", b"[" * 100_000, "not readable as JSON"),
        ("../../etc/a.csv", table(("x", "drop", "", "")), "has none of the 4500 examples"),
        ("a.csv", b"example_id,decision,new_label\n", "has none of the 4500 examples"),
        ("a.pkl", b"\x80\x04.", "wanted a .csv or .json file"),
    ],
)
def test_a_bad_file_is_one_sentence_and_decides_nothing(
    engine: Engine, build: Build, name: str, content: bytes, sentence: str
) -> None:
    app = fine(page("review"))
    before = len(app.warning)
    upload(app, name, content)
    (notice,) = [w.value for w in app.warning[before:]]
    assert sentence in notice and "\n" not in notice
    assert not fine(app).button or "import" not in [b.key for b in app.button]
    assert engine.decisions.history(build.data_id) == []
    assert len(element(app, "deck")["items"]) == 48


def test_the_report_is_one_press_away(engine: Engine, build: Build) -> None:
    app = fine(page("explain", test="12", target="label"))
    (button,) = [b for b in app.get("download_button") if b.label == "Report"]
    assert app.query_params["test"] == ["12"] or app.query_params["test"] == "12"
    assert button.proto.deferred_file_id
    app = fine(page("review"))
    assert [b.label for b in app.get("download_button")] == ["Report", "Download"]
    assert "What was decided" in report.review(build, {})
