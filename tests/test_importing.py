"""Decisions read back: what was exported comes back equal, what is foreign is told and left out."""

import copy
import csv
import json
from io import StringIO
from pathlib import Path

import pytest
from conftest import Tiny
from hostile import HOSTILE, decisions_on, hostile

from attribution.build import Build
from attribution.decisions import Decisions
from attribution.exchange import legible
from attribution.export import COLUMNS, exported
from attribution.imports import LARGEST, entries_of, imported, made, planned
from attribution.records import Decision, UserError


@pytest.fixture(scope="module")
def build(tiny: Tiny) -> Build:
    return hostile(tiny)


@pytest.fixture(scope="module")
def decided(build: Build, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Decision]:
    return decisions_on(build, tmp_path_factory.mktemp("log"))


@pytest.fixture
def log(tmp_path: Path) -> Decisions:
    return Decisions(tmp_path / "new.sqlite")


def in_force(log: Decisions, build: Build) -> dict[str, tuple]:
    stand = log.in_force(build.data_id)
    return {name: (one.verdict, one.label, one.reviewer) for name, one in stand.items()}


def known(build: Build, decided: dict) -> dict[str, tuple]:
    """The decisions of the fixture that an import can place."""
    return {
        name: (one.verdict, one.label, legible(one.reviewer))
        for name, one in decided.items()
        if name in build.train_ids and one.verdict != "later"
    }


@pytest.mark.parametrize(("form", "later"), [("csv", ["later"]), ("label-studio", [])])
def test_what_was_exported_comes_back_and_a_second_time_changes_nothing(
    build, decided, log, tmp_path, form, later
):
    path = tmp_path / "exported"
    path.write_bytes(exported(build, decided, form))
    told = imported(build, log, path, form)
    assert in_force(log, build) == known(build, decided)
    assert told.decided == {"keep": 1, "relabel": 10, "drop": 1}
    assert told.unknown_decisions == later
    assert not told.unknown_examples and not told.unknown_labels
    assert told.undecided + len(later) == len(build.train_ids) - 12
    made = log.history(build.data_id)
    assert {one.build_id for one in made} == {build.id}
    assert {json.loads(one.evidence)["imported"] for one in made} == {form}
    again = imported(build, log, path, form)
    assert (again.decided, again.already) == ({}, 12)
    assert log.history(build.data_id) == made


def test_a_csv_that_a_spreadsheet_has_saved_is_read(build, decided, log, tmp_path):
    path = tmp_path / "saved.csv"
    table = list(csv.reader(StringIO(exported(build, decided, "csv").decode(), newline="")))
    out = StringIO(newline="")
    csv.writer(out, delimiter=";").writerows(table)
    path.write_bytes(b"\xef\xbb\xbf" + out.getvalue().encode())
    imported(build, log, path, "csv")
    assert in_force(log, build) == known(build, decided)


def row(build: Build, at: int, decision: str, new: str = "", reviewer: str = "") -> dict:
    return {
        "example_id": build.train_ids[at], "decision": decision, "new_label": new,
        "reviewer": reviewer,
    }  # fmt: skip


def written(path: Path, *rows: dict) -> Path:
    with path.open("w", newline="") as file:
        out = csv.DictWriter(file, ["example_id", "decision", "new_label", "reviewer"])
        out.writeheader()
        out.writerows(rows)
    return path


def test_what_cannot_be_placed_is_told_and_the_rest_kept(build, log, tmp_path):
    rows = [
        row(build, 0, "Keep ", reviewer="Anna"),
        row(build, 1, "relabel", "dog"),
        row(build, 2, "relabel", ""),
        row(build, 3, "maybe"),
        row(build, 4, ""),
        row(build, 5, "drop"),
        row(build, 6, "relabel", "Cat"),
        *({"example_id": f"gone-{n}", "decision": "drop"} for n in range(7)),
        row(build, 5, "relabel", "=cmd()"),  # as a person writes it; the last row counts
    ]
    path = written(tmp_path / "mixed.csv", *rows)
    told = imported(build, log, path, "csv")
    ids = build.train_ids
    assert in_force(log, build) == {
        ids[0]: ("keep", None, "Anna"),
        ids[5]: ("relabel", 1, ""),
        ids[6]: ("relabel", 6, ""),
    }
    assert told.unknown_examples == [f"gone-{n}" for n in range(7)]
    assert told.unknown_labels == ["dog", ""] and told.unknown_decisions == ["maybe"]
    assert told.undecided == 1
    first, *rest = told.sentences()
    assert first.startswith("Decisions made: 3 (1 keep, 2 relabel)")
    assert rest == [
        "Left out, examples that this data does not have: 7 ('gone-0', 'gone-1', 'gone-2', "
        "'gone-3', 'gone-4', ...).",
        "Left out, labels that are none of its classes: 2 ('dog', '').",
        "Left out, decisions of unknown kind: 1 ('maybe').",
    ]


def test_what_several_reviewers_decided_comes_in_whole_or_not_at_all(
    build, log, tmp_path, monkeypatch
):
    path = written(
        tmp_path / "two.csv", *(row(build, n, "keep", reviewer=who) for n, who in enumerate("AABB"))
    )
    append, seen = Decisions._append, []

    def cut_short(self, db, act, made):
        seen.append(made.reviewer)
        if made.reviewer == "B":
            raise KeyboardInterrupt
        return append(self, db, act, made)

    monkeypatch.setattr(Decisions, "_append", cut_short)
    with pytest.raises(KeyboardInterrupt):
        imported(build, log, path, "csv")
    assert seen == ["A", "A", "B"] and in_force(log, build) == {}
    monkeypatch.undo()
    imported(build, log, path, "csv")
    stand = {build.train_ids[n]: ("keep", None, who) for n, who in enumerate("AABB")}
    assert in_force(log, build) == stand
    assert len(log.undo(build.data_id, "A")) == 2
    assert set(in_force(log, build)) == set(build.train_ids[2:4])


def test_a_reviewer_that_is_named_is_the_reviewer(build, log, tmp_path):
    path = written(tmp_path / "some.csv", row(build, 0, "keep", reviewer="Anna"))
    imported(build, log, path, "csv", reviewer="Ben")
    assert [one.reviewer for one in log.in_force(build.data_id).values()] == ["Ben"]


def test_a_name_that_two_classes_share_in_a_file_is_no_guess(build, log, tmp_path):
    twins = copy.copy(build)
    twins.classes = ("=x", "'=x", *HOSTILE[2:])
    names = ("=x", "'=x")  # as a person writes them; in our CSV the first is the second
    path = written(
        tmp_path / "twins.csv", *(row(twins, i, "relabel", one) for i, one in enumerate(names))
    )
    told = imported(twins, log, path, "csv")
    assert in_force(log, twins) == {twins.train_ids[0]: ("relabel", 0, "")}
    assert told.unknown_labels == ["'=x"]


def task(build: Build, at: int, *annotations: dict) -> dict:
    """As Label Studio exports a task (JSON): our data, its own fields around it."""
    return {
        "id": 100 + at, "inner_id": at, "project": 1, "total_annotations": len(annotations),
        "data": {"example_id": build.train_ids[at], "image": "data:,", "reviewer": "Ours"},
        "annotations": list(annotations), "drafts": [], "predictions": [7], "meta": {},
        "created_at": "2026-11-25T10:00:00.0Z", "updated_at": "2026-11-25T10:00:00.0Z",
    }  # fmt: skip


def annotation(control: str, *choices: str, user: object = 3, when: int = 0, **more) -> dict:
    result = {
        "id": "aBc", "type": "choices", "origin": "manual", "to_name": "image",
        "from_name": control, "value": {"choices": list(choices)},
    }  # fmt: skip
    return {
        "id": when, "completed_by": user, "was_cancelled": False, "ground_truth": False,
        "result": [result] if choices else [], "lead_time": 1.5,
        "updated_at": f"2026-11-25T11:{when:02}:00.123Z", **more,
    }  # fmt: skip


def test_what_label_studio_exports_becomes_decisions(build, log, tmp_path):
    given = [HOSTILE[label] for label in build.train_labels_N]
    other = [HOSTILE[(label + 1) % 9] for label in build.train_labels_N]
    anna = {"id": 4, "email": "anna@example.org", "first_name": "A", "last_name": ""}
    tasks = [
        task(build, 0, annotation("label", given[0], user=anna)),
        task(build, 1, annotation("label", other[1])),
        task(build, 2, annotation("drop", "drop")),
        task(build, 3, annotation("label", other[3], was_cancelled=True)),
        task(build, 4, annotation("label", other[4], when=9), annotation("label", given[4])),
        task(build, 5, annotation("label")),
        task(build, 6),
        task(build, 7, annotation("label", "dog")),
        task(build, 8, annotation("label", given[8], other[8])),
        task(build, 9, annotation("label", other[9], user=None)),
        {"id": 55, "data": {"image": "http://example.org/1.png"}, "annotations": []},
        task(build, 4, annotation("label", given[4], when=5)),  # a copy, older
    ]
    path = tmp_path / "project-1.json"
    path.write_text(json.dumps(tasks))
    told = imported(build, log, path, "label-studio")
    ids, labels = build.train_ids, build.train_labels_N
    assert in_force(log, build) == {
        ids[0]: ("keep", None, "anna@example.org"),
        ids[1]: ("relabel", (labels[1] + 1) % 9, "Label Studio user 3"),
        ids[2]: ("drop", None, "Label Studio user 3"),
        ids[4]: ("relabel", (labels[4] + 1) % 9, "Label Studio user 3"),
        ids[9]: ("relabel", (labels[9] + 1) % 9, "Ours"),
    }
    assert told.undecided == 3 and told.unknown_examples == ["task 55"]
    assert told.unknown_labels == ["dog", f"{given[8]} + {other[8]}"]
    again = imported(build, log, path, "label-studio")
    assert (again.decided, again.already) == ({}, 5)


def test_values_that_are_nested_deep_or_half_a_letter_break_nothing(build, log, tmp_path):
    given = [HOSTILE[label] for label in build.train_labels_N]
    path = tmp_path / "deep.json"
    for depth in range(900, 1000, 3):  # as far as JSON is read, its parts can be told
        deep = "[" * depth + "]" * depth
        path.write_text(
            json.dumps([
                task(build, 0, annotation("label", given[0], user={"id": "deep"})),
                task(build, 1, annotation("label", given[1], "deep", user="\ud800\n")),
            ]).replace('"deep"', deep)
        )  # fmt: skip
        try:
            imported(build, log, path, "label-studio")
        except UserError as error:
            assert "not readable as JSON" in str(error)
    ids = build.train_ids
    assert in_force(log, build)[ids[0]] == ("keep", None, "Ours")
    path.write_text(json.dumps([task(build, 1, annotation("label", given[1], user="\ud800\n"))]))
    imported(build, log, path, "label-studio")
    assert in_force(log, build)[ids[1]] == ("keep", None, "\\xd800\n")


FOREIGN = {
    "nothing": ("csv", b"", "no column decision, example_id, new_label"),
    "another table": ("csv", b"a,b\n1,2\n", "no column decision, example_id, new_label"),
    "a cut quote": ("csv", b'example_id,decision,new_label\n"a', "not readable as CSV"),
    "an image": ("csv", b"\x89PNG\r\n\x1a\n\xff\xfe", "not text in UTF-8"),
    "no example": (
        "csv",
        b"example_id,decision,new_label\n",
        "none of the 60 examples of this data",
    ),
    "others": (
        "csv",
        b"example_id,decision,new_label\nx,drop,\n",
        "none of the 60 examples of this data",
    ),
    "a table": ("label-studio", b"a,b", "not readable as JSON"),
    "cut": ("label-studio", b'[{"data": {"exa', "not readable as JSON"),
    "an object": ("label-studio", b"{}", "not a list of tasks"),
    "numbers": ("label-studio", b"[1, 2]", "not a list of tasks"),
    "JSON-MIN": ("label-studio", b'[{"id": 1, "label": "x"}]', "as in JSON-MIN"),
    "no tasks": ("label-studio", b"[]", "none of the 60 examples of this data"),
    "deep": ("label-studio", b"[" * 200_000, "not readable as JSON"),
    "a long number": ("label-studio", b"[" + b"9" * 10_000 + b"]", "not readable as JSON"),
    "odd types": (
        "label-studio",
        b'[{"data": {"example_id": ["x"]}, "annotations": {"result": 3}},'
        b' {"data": {"example_id": "x"}, "annotations": [3, {"result": [4, {"value": 5}]}]}]',
        "none of the 60 examples of this data",
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_or_damaged_file_is_one_sentence(build, log, tmp_path, kind):
    form, content, found = FOREIGN[kind]
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        imported(build, log, path, form)
    assert found in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert log.history(build.data_id) == []


def test_a_file_that_is_missing_endless_or_too_large_is_one_sentence(build, log, tmp_path):
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(LARGEST + 1)
    for path, found in (
        (tmp_path / "missing", "cannot be read (no such file"),
        (tmp_path, "is no file"),
        (Path("/dev/zero"), "is no file"),
        (large, "bytes; wanted at most"),
    ):
        with pytest.raises(UserError) as error:
            imported(build, log, path, "csv")
        assert found in str(error.value)
    with pytest.raises(UserError, match="unknown format 'cvat'; wanted one of csv, label-studio"):
        imported(build, log, large, "cvat")


def test_the_columns_that_are_read_are_those_that_are_written():
    assert {"example_id", "decision", "new_label", "reviewer", "decided_at"} <= set(COLUMNS)


def test_a_plan_decides_nothing_and_leaves_what_stands_unless_told(build, log, tmp_path):
    ids = build.train_ids
    log.decide(build.data_id, ids[0], "drop", reviewer="Anna")
    path = written(tmp_path / "some.csv", row(build, 0, "keep"), row(build, 1, "drop"))
    entries = entries_of(path.read_bytes(), "some.csv", "csv")
    for replace, decided in ((False, {"drop": 1}), (True, {"drop": 1, "keep": 1})):
        plan = planned(build, log, entries, "some.csv", "csv", "Ben", replace)
        assert plan.told.decided == decided and plan.told.differing == {ids[0]: ("keep", None)}
        assert f"Decided otherwise so far: 1 ('{ids[0]}')." in plan.told.sentences()
    assert len(log.history(build.data_id)) == 1
    made(build, log, plan)
    assert in_force(log, build) == {ids[0]: ("keep", None, "Ben"), ids[1]: ("drop", None, "Ben")}
    log.undo(build.data_id, "Ben")
    assert in_force(log, build) == {ids[0]: ("drop", None, "Anna")}
