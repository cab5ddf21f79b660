"""The exported CSV, read back by pandas: what was decided, and text that stays text."""

import copy
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from conftest import Tiny

from attribution.build import Build
from attribution.decisions import Decisions
from attribution.engine import Engine
from attribution.export import COLUMNS, decisions_csv, harmless


@pytest.fixture(scope="module")
def build(tiny: Tiny) -> Build:
    return Engine(tiny.cache, tiny.workspace).open(tiny.build)


@pytest.fixture
def log(tmp_path: Path) -> Decisions:
    return Decisions(tmp_path / "decisions.sqlite")


def named(build: Build, *classes: str) -> Build:
    """The build, its first classes under other names."""
    other = copy.copy(build)
    other.classes = classes + build.classes[len(classes) :]
    return other


def exported(build: Build, log: Decisions) -> pd.DataFrame:
    """The CSV as a reader sees it, every cell as text."""
    text = decisions_csv(build, log.in_force(build.data_id)).decode()
    return pd.read_csv(StringIO(text), dtype=str, keep_default_na=False, index_col="train_id")


def test_every_training_example_is_there_with_its_id_and_given_label(build, log):
    found = exported(build, log)
    assert found.index.astype(int).tolist() == list(range(4500))
    assert [found.index.name, *found.columns] == [
        "train_id",
        *(c for c in COLUMNS if c != "train_id"),
    ]
    assert tuple(found["example_id"]) == build.train_ids
    assert found["given_label"].astype(int).tolist() == build.train_labels_N.tolist()
    assert (found["final_label"] == found["given_label"]).all()
    for column in ("decision", "new_label", "reviewer", "decided_at"):
        assert (found[column] == "").all()
    assert (found["build"] == build.id).all()
    ranked = build.mislabels().sort_index()
    assert found["suggested_label"].astype(int).tolist() == ranked["suggested_label"].tolist()
    assert found["suspicion"].astype(float).to_numpy() == pytest.approx(ranked["score"], abs=1e-6)


def test_decisions_are_there_with_their_verdict_label_and_reviewer(build, log):
    ids, labels = build.train_ids, build.train_labels_N
    log.decide(build.data_id, ids[7], "keep", reviewer="Anna")
    made = log.decide(build.data_id, ids[8], "relabel", label=(labels[8].item() + 1) % 10)
    log.decide(build.data_id, ids[9], "drop")
    log.decide(build.data_id, ids[10], "drop")
    log.undo(build.data_id)
    log.decide("other data", ids[11], "drop")
    found = exported(build, log)
    assert found.loc["7", ["decision", "new_label", "reviewer"]].tolist() == ["keep", "", "Anna"]
    assert found.loc["7", "final_label"] == found.loc["7", "given_label"]
    wanted = ["relabel", str(made.label), str(made.label)]
    assert found.loc["8", ["decision", "new_label", "final_label"]].tolist() == wanted
    assert found.loc["9", ["decision", "new_label", "final_label"]].tolist() == ["drop", "", ""]
    assert (found["decision"] != "").sum() == 3
    times = {d.example_id: d.time for d in log.in_force(build.data_id).values()}
    assert found.loc["8", "decided_at"] == times[ids[8]]
    clean = found[found["decision"] != "drop"]
    assert len(clean) == 4499 and (clean["final_label"] != "").all()


AWKWARD = {
    "comma": "cat, dog",
    "quotes": 'the "best" one',
    "newline": "two\nlines",
    "both": "two\r\nlines",
    "blanks": "  between  ",
    "other alphabets": "猫 é “dog”",
    "semicolon and tab": "a;b\tc",
    "missing": "NA",
    "quote alone": '"',
    "apostrophe": "it's",
}


@pytest.mark.parametrize("name", AWKWARD.values(), ids=AWKWARD)
def test_names_survive(build, log, name):
    classes = named(build, name)
    example = int((build.train_labels_N != 0).argmax())
    log.decide(build.data_id, build.train_ids[example], "relabel", label=0, reviewer=name)
    found = exported(classes, log)
    assert len(found) == 4500
    given = [classes.classes[c] for c in build.train_labels_N]
    assert found["given_label"].tolist() == given
    row = found.loc[str(example)]
    assert [row["new_label"], row["final_label"], row["reviewer"]] == [name] * 3


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t"])
def test_no_cell_is_a_formula_to_a_spreadsheet(build, log, start):
    name = f"{start}HYPERLINK(1)"
    log.decide(build.data_id, build.train_ids[0], "relabel", label=0, reviewer=name)
    found = exported(named(build, name), log)
    cells = pd.concat([found[c] for c in found])
    assert not cells.str.startswith(("=", "+", "-", "@", "\t", "\r")).any()
    assert found.loc["0", ["new_label", "final_label", "reviewer"]].tolist() == [f"'{name}"] * 3


@pytest.mark.parametrize("value", ["cat", "", "a=b", "1-2", "'=", 3, -3, 0.5, None])
def test_what_is_no_formula_is_left_alone(value):
    assert harmless(value) is value


@pytest.mark.parametrize("name", ["two\rlines", "\rHYPERLINK(1)"])
def test_names_with_a_carriage_return_survive(build, log, name):
    found = exported(named(build, name), log)
    assert len(found) == 4500
    assert found["given_label"].str.removeprefix("'").tolist().count(name) == (
        (build.train_labels_N == 0).sum()
    )
