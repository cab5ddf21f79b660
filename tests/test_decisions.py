"""The log of decisions against a plain model of it, several writers at once, and kills."""

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution.decisions import TABLE, VERSION, Choice, Decisions, Standing
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
    """What a log should say, kept in plain lists of acts, each of one or more decisions."""

    def __init__(self) -> None:
        self.history: list[Decision] = []
        self.stands: list[list[Decision]] = []
        self.undone: dict[str, list[list[Decision]]] = {}

    def decide(self, made: list[Decision]) -> None:
        self.history += made
        self.stands.append(made)
        self.undone[made[0].reviewer] = []

    def undo(self, reviewer: str) -> tuple[Decision, ...]:
        mine = [act for act in self.stands if act[0].reviewer == reviewer]
        if not mine:
            return ()
        self.stands.remove(mine[-1])
        self.undone.setdefault(reviewer, []).append(mine[-1])
        return tuple(mine[-1])

    def redo(self, reviewer: str) -> tuple[Decision, ...]:
        if not self.undone.get(reviewer):
            return ()
        self.stands.append(self.undone[reviewer].pop())
        return tuple(self.stands[-1])

    def latest(self) -> dict[str, Decision]:
        return {d.example_id: d for act in self.stands for d in act}

    def in_force(self) -> dict[str, Decision]:
        return {key: d for key, d in self.latest().items() if d.verdict != "unsure"}

    def conflicts(self) -> set[str]:
        """Pairs of reviewers whose last words since the last settlement contradict each other."""
        found = set()
        for example in {d.example_id for act in self.stands for d in act}:
            about = [d for act in self.stands for d in act if d.example_id == example]
            settled = [n for n, d in enumerate(about) if d.settles]
            about = about[settled[-1] if settled else 0 :]
            last = {d.reviewer: (d.verdict, d.label) for d in about}
            words = {word for word in last.values() if word[0] != "unsure"}
            if len(words) > 1:
                found.add(example)
        return found


ACTS = st.tuples(
    st.sampled_from(["keep", "relabel", "drop", "unsure", "undo", "undo", "redo", "redo"]),
    st.sampled_from(["one", "two"]),  # data sets
    st.sampled_from(["", "Anna"]),  # reviewers
    st.sets(st.integers(0, 2), min_size=1),  # examples
    st.integers(0, 9),  # labels
    st.booleans(),  # whether it settles
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(ACTS, max_size=14))
def test_any_sequence_of_acts_only_appends_and_agrees_with_the_model(tmp_path_factory, acts):
    path = tmp_path_factory.mktemp("log") / "decisions.sqlite"
    models = {"one": Model(), "two": Model()}
    before: list[tuple] = []
    for act, data, who, examples, label, settles in acts:
        log, model = Decisions(path), models[data]
        if act == "undo":
            assert log.undo(data, who) == model.undo(who)
        elif act == "redo":
            assert log.redo(data, who) == model.redo(who)
        else:
            chosen = label if act == "relabel" else None
            choices = [Choice(example_id=f"e-{i}", verdict=act, label=chosen) for i in examples]
            made = log.decide_all(data, choices, reviewer=who, settles=settles)
            assert [(d.example_id, d.verdict, d.label, d.reviewer, d.settles) for d in made] == [
                (c.example_id, act, chosen, who, settles) for c in choices
            ]
            model.decide(list(made))
        after = rows(log)
        assert after[: len(before)] == before
        before = after
    for data, model in models.items():
        log = Decisions(path)
        stand = log.standing(data)
        assert log.in_force(data) == stand.in_force() == model.in_force()
        assert stand.latest() == model.latest()
        assert set(stand.conflicts()) == model.conflicts()
        assert log.history(data) == model.history
        mine = [row[0] for row in before if row[3] == data]
        assert stand.newest == log.newest(data) == max(mine, default=0)


def test_an_undo_takes_back_the_newest_of_its_data_set_and_says_which(log):
    first, other = decided(log, DATA, "e-0", "keep"), decided(log, "other", "e-0", "drop")
    assert log.undo(DATA) == (first,)
    assert log.undo(DATA) == ()
    assert log.in_force(DATA) == {} and log.in_force("other") == {"e-0": other}
    assert log.redo(DATA) == (first,)
    assert log.redo(DATA) == ()
    log.undo(DATA)
    log.decide(DATA, "e-1", "keep")
    assert log.redo(DATA) == ()  # a new decision closes the way back


def test_an_undo_takes_back_only_what_its_reviewer_decided(log):
    anna = decided(log, DATA, "e-0", "drop", reviewer="Anna")
    ben = decided(log, DATA, "e-0", "keep", reviewer="Ben")
    assert log.undo(DATA, "Anna") == (anna,)
    assert log.in_force(DATA) == {"e-0": ben}
    log.decide(DATA, "e-1", "keep", reviewer="Ben")  # closes nobody else's way back
    assert Decisions(log.path).redo(DATA, "Anna") == (anna,)
    assert log.in_force(DATA)["e-0"] == anna  # put back last
    assert log.undo(DATA, "Cleo") == ()


def test_one_undo_takes_back_a_whole_bulk_act_and_one_redo_puts_it_back(log):
    single = decided(log, DATA, "e-9", "keep")
    choices = [Choice(example_id=f"e-{i}", verdict="relabel", label=i) for i in range(5)]
    made = log.decide_all(DATA, choices)
    assert len({d.batch for d in made}) == 1 and made[0].batch
    assert log.undo(DATA) == made
    assert log.in_force(DATA) == {"e-9": single}
    assert log.redo(DATA) == made
    assert len(log.in_force(DATA)) == 6
    assert log.undo(DATA) == made and log.undo(DATA) == (single,)


def test_a_bulk_act_with_one_mistake_in_it_decides_nothing(log):
    log.decide(DATA, "e-0", "keep")
    before = rows(log)
    choices = [
        Choice(example_id="e-1", verdict="drop"),
        Choice(example_id="e-2", verdict="relabel"),
    ]
    with pytest.raises(UserError):
        log.decide_all(DATA, choices)
    assert rows(log) == before


def test_unsure_is_no_decision_about_the_label_and_reopens_an_earlier_one(log):
    log.decide(DATA, "e-0", "unsure")
    assert log.in_force(DATA) == {}
    assert log.standing(DATA).latest()["e-0"].verdict == "unsure"
    log.decide(DATA, "e-0", "drop")
    log.decide(DATA, "e-0", "unsure")
    assert log.in_force(DATA) == {}
    log.undo(DATA)
    assert log.in_force(DATA)["e-0"].verdict == "drop"


def test_reviewers_who_contradict_each_other_are_a_conflict_until_it_is_settled(log):
    for who, verdict in (("Anna", "drop"), ("Ben", "drop"), ("Cleo", "unsure")):
        log.decide(DATA, "e-0", verdict, reviewer=who)
    assert log.standing(DATA).conflicts() == {}
    ben = decided(log, DATA, "e-0", "keep", reviewer="Ben")
    (anna, other) = log.standing(DATA).conflicts()["e-0"]
    assert (anna.reviewer, anna.verdict, other) == ("Anna", "drop", ben)
    settled = log.decide(DATA, "e-0", "relabel", label=3, reviewer="Cleo", settles=True)
    assert log.standing(DATA).conflicts() == {}
    assert log.in_force(DATA) == {"e-0": settled}
    log.undo(DATA, "Cleo")
    assert set(log.standing(DATA).conflicts()) == {"e-0"}


def test_a_file_of_the_first_version_keeps_every_decision(log):
    """As version 0 wrote it: no version number, no column for bulk acts."""
    db = sqlite3.connect(log.path)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute(TABLE)
    old = [
        (1, "decide", None, DATA, "e-0", "keep", None, "", "2026-01-01T00:00:00", "b", "{}"),
        (2, "decide", None, DATA, "e-1", "relabel", 4, "Zoë", "2026-01-01T00:00:01", "b", "{}"),
        (3, "decide", None, DATA, "e-2", "drop", None, "", "2026-01-01T00:00:02", "b", "{}"),
        (4, "undo", 3, DATA, "e-2", "drop", None, "", "2026-01-01T00:00:03", "b", "{}"),
    ]
    db.executemany(f"INSERT INTO events VALUES ({', '.join('?' * 11)})", old)
    db.commit()
    db.close()
    assert {k: (d.verdict, d.label, d.reviewer) for k, d in log.in_force(DATA).items()} == {
        "e-0": ("keep", None, ""), "e-1": ("relabel", 4, "Zoë"),
    }  # fmt: skip
    assert [row[:11] for row in rows(log)] == old
    assert [d.example_id for d in log.redo(DATA)] == ["e-2"]
    db = sqlite3.connect(log.path)
    assert db.execute("PRAGMA user_version").fetchone() == (VERSION,)
    db.close()


def test_a_file_of_a_newer_version_is_left_alone(log):
    log.decide(DATA, "e-0", "keep")
    db = sqlite3.connect(log.path)
    db.execute(f"PRAGMA user_version = {VERSION + 1}")
    db.commit()
    db.close()
    before = rows(log)
    with pytest.raises(UserError, match="newer version"):
        log.decide(DATA, "e-1", "keep")
    with pytest.raises(UserError, match="newer version"):
        log.in_force(DATA)
    assert rows(log) == before


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
        ("relabel", True, "label True"),
        ("relabel", 2.0, "label 2.0"),
        ("relabel", "2", "label '2'"),
    ],
)
def test_a_verdict_or_label_that_makes_no_sense_is_a_users_mistake(log, verdict, label, word):
    with pytest.raises(UserError) as told:
        log.decide(DATA, "e-0", verdict, label=label)
    assert word in told.value.found
    assert "relabel" in told.value.wanted + told.value.found
    assert told.value.next_step
    assert not log.path.exists()


def test_a_label_of_numpy_is_a_label(log):
    log.decide(DATA, "e-0", "relabel", label=np.int64(3))
    assert Decisions(log.path).in_force(DATA)["e-0"].label == 3


def test_the_log_is_sqlite_in_write_ahead_mode(log):
    log.decide(DATA, "e-0", "keep")
    db = sqlite3.connect(log.path)
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


@pytest.mark.parametrize("act", ["decide", "undo", "redo", "in_force", "history", "newest"])
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
# after every so many it takes its newest one back.
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
        assert log.undo("d" * 12, who)
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
    log.undo(DATA, "anna")
    assert decided(log, DATA, "e-0", "keep").seq == len(found) + 2  # and the log goes on


def test_decide_returns_the_decision_that_the_log_keeps(tmp_path):
    log = Decisions(tmp_path / "decisions.sqlite")
    made = log.decide(DATA, "e-0", "relabel", label=4)
    assert log.history(DATA) == [made]  # its time too
    assert log.in_force(DATA) == {"e-0": made}


# Another process that acts when told, and says what it sees after every line: (act, data, reviewer,
# examples) in JSON.
OTHER = """
import json, sys
from pathlib import Path
from attribution.decisions import Choice, Decisions

log = Decisions(Path(sys.argv[1]))
print("ready", flush=True)
for line in sys.stdin:
    path, act, data, who, examples = json.loads(line)
    if Path(path) != log.path:
        log = Decisions(Path(path))
    if act in ("undo", "redo"):
        getattr(log, act)(data, who)
    elif act != "look":
        log.decide_all(data, [Choice(example_id=e, verdict=act) for e in examples], reviewer=who)
    print(repr(log.standing(data)), flush=True)
"""

TURNS = st.lists(
    st.tuples(
        st.booleans(),  # whose turn it is
        st.sampled_from(["keep", "drop", "unsure", "undo", "undo", "redo", "look"]),
        st.sampled_from(["one", "two"]),
        st.sampled_from(["", "Anna"]),
        st.lists(st.sampled_from(["e-0", "e-1", "e-2"]), min_size=1, max_size=3),
    ),
    max_size=16,
)


def test_what_two_processes_have_read_bit_by_bit_is_what_is_read_anew(tmp_path_factory):
    start = tmp_path_factory.mktemp("log") / "start.sqlite"
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(start)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert other.stdin is not None and other.stdout is not None
    assert other.stdout.readline() == "ready\n"

    def told(*words) -> Standing:
        other.stdin.write(json.dumps(words) + "\n")
        other.stdin.flush()
        return eval(other.stdout.readline(), {"Standing": Standing, "Decision": Decision})

    @settings(max_examples=12, deadline=None, derandomize=True)
    @given(TURNS)
    def turns(some):
        path = tmp_path_factory.mktemp("log") / "decisions.sqlite"
        mine = Decisions(path)
        for here, act, data, who, examples in some:
            if not here:
                told(str(path), act, data, who, examples)
            elif act in ("undo", "redo"):
                getattr(mine, act)(data, who)
            elif act != "look":
                choices = [Choice(example_id=e, verdict=act) for e in examples]
                mine.decide_all(data, choices, reviewer=who)
            theirs = told(str(path), "look", data, who, examples)
            fresh = Decisions(path).standing(data)
            assert mine.standing(data) == fresh and theirs == fresh
            assert mine.standing(data).newest == mine.newest(data)

    try:
        turns()
    finally:
        other.kill()
        other.communicate()


def test_a_reader_keeps_what_it_was_given(log):
    log.decide(DATA, "e-0", "keep")
    before = log.standing(DATA)
    kept = before.latest().copy()
    assert log.standing(DATA) is before  # nothing happened: nothing is made anew
    log.decide(DATA, "e-0", "drop", reviewer="Anna")
    assert log.standing(DATA).conflicts() and log.standing(DATA).latest() != kept
    assert before.latest() == kept and before.conflicts() == {}


def test_a_file_that_is_put_back_or_replaced_is_read_anew(log, tmp_path):
    log.decide(DATA, "e-0", "keep")
    early = tmp_path / "early.sqlite"
    with closing(sqlite3.connect(log.path)) as db, closing(sqlite3.connect(early)) as copy:
        db.backup(copy)
    log.decide(DATA, "e-1", "drop")
    log.undo(DATA)
    assert set(log.in_force(DATA)) == {"e-0"} and log.standing(DATA).newest == 3
    for name in ("", "-wal", "-shm"):
        Path(f"{log.path}{name}").unlink(missing_ok=True)
    shutil.copy(early, log.path)
    assert set(log.in_force(DATA)) == {"e-0"} and log.standing(DATA).newest == 1
    log.path.unlink()
    Decisions(log.path).decide(DATA, "e-7", "drop")  # has the number that the first had
    assert set(log.in_force(DATA)) == {"e-7"}


@pytest.mark.parametrize("act", ["decide", "undo", "redo", "in_force", "history", "newest"])
def test_a_log_that_has_gone_is_a_sentence_and_no_second_one_is_begun(log, act):
    """As when a disk is no longer there: what was decided on it is not lost, nor forgotten."""
    log.decide(DATA, "e-0", "keep")
    away = log.path.parent.rename(log.path.parent.with_name("away"))
    with pytest.raises(UserError, match="have gone") as told:
        log.decide(DATA, "e", "keep") if act == "decide" else getattr(log, act)(DATA)
    assert str(log.path) in told.value.found and "bring it back" in told.value.next_step
    assert not log.path.parent.exists()
    away.rename(log.path.parent)
    log.decide(DATA, "e-1", "drop")
    assert set(log.in_force(DATA)) == {"e-0", "e-1"}


def test_no_flipped_byte_of_the_log_is_read(log):
    for n in range(12):
        log.decide(DATA, f"e-{n}", "relabel", label=n % 10, reviewer="Zoë", evidence='{"a": 0.5}')
    log.undo(DATA, "Zoë")
    wanted, content = log.standing(DATA), log.path.read_bytes()
    draw, named = np.random.default_rng(0), 0
    used = [n for n, byte in enumerate(content) if byte]  # most of a small file is empty
    for at in draw.choice(used, 150, replace=False):
        harmed = bytearray(content)
        harmed[at] ^= 1 << int(draw.integers(8))
        log.path.write_bytes(harmed)
        try:
            assert Decisions(log.path).standing(DATA) == wanted
        except UserError as error:
            assert str(log.path) in error.found and "\n" not in str(error)
            named += 1
    assert named > 100


def test_an_event_that_was_changed_is_named_and_may_be_taken_as_it_stands(log):
    for n in range(3):
        log.decide(DATA, f"e-{n}", "relabel", label=n)
    with closing(sqlite3.connect(log.path)) as db, db:
        db.execute("UPDATE events SET label = 7 WHERE seq = 2")
    with pytest.raises(UserError, match="event 2 is not what was written") as told:
        Decisions(log.path).in_force(DATA)
    command = told.value.next_step.split('"')[1]
    assert command.startswith("UPDATE events SET seal")
    with closing(sqlite3.connect(log.path)) as db, db:
        db.execute(command)
    assert Decisions(log.path).in_force(DATA)["e-1"].label == 7


@pytest.mark.parametrize("act", ["undo", "redo"])
@pytest.mark.parametrize("column", ["data_id", "reviewer", "example_id", "seq"])
def test_an_act_that_is_about_what_was_accepted_damaged_ends_nothing(log, column, act):
    log.decide(DATA, "e-0", "keep")
    log.decide(DATA, "e-1", "keep")
    log.undo(DATA)
    if act == "redo":
        log.redo(DATA)
    with closing(sqlite3.connect(log.path)) as db, db:
        if column == "seq":
            db.execute("UPDATE events SET of = 1, seal = 'accepted' WHERE seq > 2")
        else:
            db.execute(f"UPDATE events SET {column} = 'x', seal = 'accepted' WHERE seq = 2")
    again = Decisions(log.path)
    for data_id in (DATA, "x"):
        assert again.standing(data_id).newest >= 0
    assert ("e-0" in again.in_force(DATA)) == (column != "seq" or act == "redo")
    again.decide(DATA, "e-1", "drop")
    assert Decisions(log.path).in_force(DATA)["e-1"].verdict == "drop"


@pytest.mark.parametrize("gone", [1, 2, 3])
def test_an_event_that_is_missing_is_named(log, gone):
    for n in range(3):
        log.decide(f"data {n}", "e", "keep")  # whatever data it was about
    with closing(sqlite3.connect(log.path)) as db, db:
        db.execute("DELETE FROM events WHERE seq = ?", (gone,))
    with pytest.raises(UserError, match=f"event {gone} is missing"):
        Decisions(log.path).in_force("data 0")


def test_two_reviewers_who_decide_one_example_at_once_are_both_kept(log):
    together = Barrier(8)

    def decide(n: int) -> Decision:
        together.wait()
        verdict = "keep" if n % 2 else "drop"
        return Decisions(log.path).decide(DATA, "e-0", verdict, reviewer=f"r{n}")

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(decide, range(8)))
    assert sorted(d.seq for d in made) == list(range(1, 9))
    stand = log.standing(DATA)
    assert len(stand.acts) == 8 and stand.latest()["e-0"].seq == 8
    assert {d.reviewer for d in stand.conflicts()["e-0"]} == {f"r{n}" for n in range(8)}


def test_an_example_named_twice_in_one_act_has_the_last_word_and_one_undo(log):
    log.decide_all(DATA, [Choice(example_id="e", verdict=v) for v in ("keep", "drop")])
    assert log.in_force(DATA)["e"].verdict == "drop"
    log.undo(DATA)
    assert log.in_force(DATA) == {} and log.standing(DATA).acts == ()


def test_what_the_interpreter_has_not_let_go_of_stops_no_commit(tmp_path, monkeypatch):
    """As a debugger, or a look at all objects by another thread, keeps what was asked last."""
    held = []

    class Slow(sqlite3.Connection):
        def execute(self, *what):
            held.append(super().execute(*what))
            return held[-1]

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Slow))
    log = Decisions(tmp_path / "decisions.sqlite")
    for n in range(3):
        log.decide(DATA, f"e-{n}", "keep")
    log.undo(DATA)
    assert len(log.standing(DATA).acts) == 2 and len(held) > 10
