"""The log of decisions against a plain model of it, several writers at once, and kills."""

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution.decisions import Decisions
from attribution.records import Decision, UserError

DATA = "d" * 12


@pytest.fixture
def log(tmp_path: Path) -> Decisions:
    return Decisions(tmp_path / "decisions.sqlite")


def rows(log: Decisions) -> list[tuple]:
    """The raw log, as any other program would read it."""
    db = sqlite3.connect(log.path)
    try:
        return db.execute("SELECT * FROM events ORDER BY seq").fetchall()
    finally:
        db.close()


def decided(log: Decisions, *what, **more) -> Decision:
    """A decision made, as the log keeps it."""
    made = log.decide(*what, **more)
    kept = log.history(made.data_id)[-1]
    assert kept == replace(made, time=kept.time)
    return kept


def test_a_decision_is_kept_as_it_was_made_and_survives_reopening(log):
    before = datetime.now(UTC)
    made = decided(
        log,
        DATA, "e-0", "relabel", label=4, reviewer="Zoë, “R&D”", build_id="b" * 12,
        evidence='{"signal_masks": 0.5}',
    )  # fmt: skip
    after = datetime.now(UTC)
    assert made == Decision(
        seq=1, data_id=DATA, example_id="e-0", verdict="relabel", label=4, reviewer="Zoë, “R&D”",
        time=made.time, build_id="b" * 12, evidence='{"signal_masks": 0.5}',
    )  # fmt: skip
    stamp = datetime.fromisoformat(made.time)
    assert stamp.utcoffset() is not None
    assert before.replace(microsecond=0) <= stamp <= after
    again = Decisions(log.path)
    assert again.in_force(DATA) == {"e-0": made} and again.history(DATA) == [made]


def test_the_newest_decision_about_an_example_is_in_force(log):
    first = decided(log, DATA, "e-0", "drop")
    other = decided(log, DATA, "e-1", "keep")
    second = decided(log, DATA, "e-0", "relabel", label=0)
    assert log.in_force(DATA) == {"e-0": second, "e-1": other}
    log.undo(DATA)
    assert log.in_force(DATA) == {"e-0": first, "e-1": other}
    assert log.history(DATA) == [first, other, second]


class Model:
    """What a log should say, kept in two lists: what stands and what may be put back."""

    def __init__(self) -> None:
        self.history: list[Decision] = []
        self.stands: list[Decision] = []
        self.undone: list[Decision] = []

    def decide(self, made: Decision) -> None:
        self.history.append(made)
        self.stands.append(made)
        self.undone.clear()

    def undo(self) -> Decision | None:
        if not self.stands:
            return None
        self.undone.append(self.stands.pop())
        return self.undone[-1]

    def redo(self) -> Decision | None:
        if not self.undone:
            return None
        self.stands.append(self.undone.pop())
        return self.stands[-1]

    def in_force(self) -> dict[str, Decision]:
        return {d.example_id: d for d in self.stands}


ACTS = st.tuples(
    st.sampled_from(["keep", "relabel", "drop", "undo", "undo", "redo", "redo"]),
    st.sampled_from(["one", "two"]),  # data sets
    st.integers(0, 2),  # examples
    st.integers(0, 9),  # labels
)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.lists(ACTS, max_size=14))
def test_any_sequence_of_acts_only_appends_and_agrees_with_the_model(tmp_path_factory, acts):
    path = tmp_path_factory.mktemp("log") / "decisions.sqlite"
    models = {"one": Model(), "two": Model()}
    before: list[tuple] = []
    for act, data, example, label in acts:
        log, model = Decisions(path), models[data]
        if act == "undo":
            assert log.undo(data) == model.undo()
        elif act == "redo":
            assert log.redo(data) == model.redo()
        else:
            chosen = label if act == "relabel" else None
            model.decide(decided(log, data, f"e-{example}", act, label=chosen))
        after = rows(log)
        assert after[: len(before)] == before
        before = after
    for data, model in models.items():
        assert Decisions(path).in_force(data) == model.in_force()
        assert Decisions(path).history(data) == model.history


def test_an_undo_takes_back_the_newest_of_its_data_set_and_says_which(log):
    first, other = decided(log, DATA, "e-0", "keep"), decided(log, "other", "e-0", "drop")
    assert log.undo(DATA) == first
    assert log.undo(DATA) is None
    assert log.in_force(DATA) == {} and log.in_force("other") == {"e-0": other}
    assert log.redo(DATA) == first
    assert log.redo(DATA) is None
    log.undo(DATA)
    log.decide(DATA, "e-1", "keep")
    assert log.redo(DATA) is None  # a new decision closes the way back


def test_reading_makes_no_file(log):
    assert log.in_force(DATA) == {} and log.history(DATA) == []
    assert not list(log.path.parent.iterdir())
    deeper = Decisions(log.path.parent / "new" / "decisions.sqlite")
    deeper.history(DATA)
    assert not deeper.path.parent.exists()
    deeper.decide(DATA, "e-0", "keep")
    assert deeper.path.exists()


@pytest.mark.parametrize(
    ("verdict", "label", "word"),
    [
        ("maybe", None, "'maybe'"),
        ("", None, "''"),
        ("Relabel", 3, "'Relabel'"),
        ("relabel", None, "None"),
        ("keep", 3, "keep with label 3"),
        ("drop", 0, "drop with label 0"),
    ],
)
def test_a_verdict_or_label_that_makes_no_sense_is_a_users_mistake(log, verdict, label, word):
    with pytest.raises(UserError) as told:
        log.decide(DATA, "e-0", verdict, label=label)
    assert word in told.value.found
    assert "relabel" in told.value.wanted
    assert told.value.next_step
    assert not log.path.exists()


def test_the_log_is_sqlite_in_write_ahead_mode(log):
    log.decide(DATA, "e-0", "keep")
    db = sqlite3.connect(log.path)
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


@pytest.mark.parametrize("act", ["decide", "undo", "redo", "in_force", "history"])
def test_a_file_that_is_no_log_is_one_sentence_and_stays_as_it_is(log, act):
    log.path.write_bytes(b"not a database, but somebody's notes " * 50)
    before = log.path.read_bytes()
    with pytest.raises(UserError) as told:
        log.decide(DATA, "e", "keep") if act == "decide" else getattr(log, act)(DATA)
    assert str(log.path) in told.value.found and "--workspace" in told.value.next_step
    assert "\n" not in str(told.value)
    assert log.path.read_bytes() == before


def test_a_workspace_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot be used"):
        Decisions(tmp_path / "file" / "decisions.sqlite").decide(DATA, "e-0", "keep")


# A process that waits for a line, then decides and says the number of each decision it made;
# after every so many it takes one back, the newest then, whosever it is.
WRITER = """
import sys
from pathlib import Path
from attribution.decisions import Decisions

log, who = Decisions(Path(sys.argv[1])), sys.argv[2]
count, undo = (int(n) for n in sys.argv[3:])
print("ready", flush=True)
sys.stdin.readline()
for i in range(count):
    print(log.decide("d" * 12, f"{who}-{i}", "drop", reviewer=who).seq, flush=True)
    if i % undo == undo - 1:
        assert log.undo("d" * 12)
"""


@contextmanager
def writer(log: Decisions, who: str, count: int, undo: int) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(log.path), who, str(count), str(undo)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def go(process: subprocess.Popen) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_writers_in_several_processes_lose_nothing(log):
    count, undo = 30, 3
    with (
        writer(log, "anna", count, undo) as one,
        writer(log, "ben", count, undo) as two,
        writer(log, "cleo", count, undo) as three,
    ):
        processes = {"anna": one, "ben": two, "cleo": three}
        for process in processes.values():
            go(process)
        said = {who: [int(n) for n in p.stdout.read().split()] for who, p in processes.items()}
        assert [p.wait() for p in processes.values()] == [0, 0, 0]
    found = log.history(DATA)
    for who, numbers in said.items():
        mine = [d for d in found if d.reviewer == who]
        assert [d.example_id for d in mine] == [f"{who}-{i}" for i in range(count)]
        assert [d.seq for d in mine] == numbers
    undone = 3 * count // undo
    assert [row[0] for row in rows(log)] == list(range(1, 3 * count + undone + 1))
    assert len(log.in_force(DATA)) == 3 * count - undone


def test_a_killed_writer_loses_no_decision_that_it_was_told_of(log):
    with writer(log, "anna", 100_000, 200_000) as process:
        go(process)
        told = [int(process.stdout.readline()) for _ in range(25)]
        process.kill()
        told += [int(n) for n in process.stdout.read().split("\n") if n]
        assert process.wait() == -9
    found = log.history(DATA)
    assert told == list(range(1, len(told) + 1))
    assert [d.seq for d in found][: len(told)] == told
    assert [d.example_id for d in found] == [f"anna-{i}" for i in range(len(found))]
    assert len(told) <= len(found) <= len(told) + 1  # at most the one it was about to tell
    log.undo(DATA)
    assert decided(log, DATA, "e-0", "keep").seq == len(found) + 2  # and the log goes on


def test_decide_returns_the_decision_that_the_log_keeps(tmp_path):
    log = Decisions(tmp_path / "decisions.sqlite")
    made = log.decide(DATA, "e-0", "relabel", label=4)
    assert log.history(DATA) == [made]  # its time too
    assert log.in_force(DATA) == {"e-0": made}
