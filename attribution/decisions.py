"""What reviewers decided: an append-only log in SQLite, and the decisions in force.

Nothing is ever changed or removed. An undo is an event that names the decision it takes back, a
redo one that names it again; the decisions in force are a fold over the log. The file is opened
anew for each act, so that several pages, processes and reviewers can use one; what was read of it
is kept, as it never changes, and only newer events are read.

SQLite has no checksums of what is in its pages, so each event has one of its own, its seal, and
they are numbered without a gap. Both are verified when an event is first read.
"""

import hashlib
import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from numbers import Integral
from pathlib import Path
from typing import get_args

from .records import Decision, UserError, Verdict, known

VERSION = 2  # of the file: `PRAGMA user_version`
TABLE = """
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    act TEXT NOT NULL CHECK (act IN ('decide', 'undo', 'redo')),
    of INTEGER REFERENCES events (seq),  -- the decision that an undo or a redo is about
    data_id TEXT NOT NULL,
    example_id TEXT NOT NULL,
    verdict TEXT NOT NULL,
    label INTEGER,
    reviewer TEXT NOT NULL,
    time TEXT NOT NULL,
    build_id TEXT NOT NULL,
    evidence TEXT NOT NULL
)
"""
STEPS = (  # from each version of the file to the next
    (
        "ALTER TABLE events ADD COLUMN batch TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE events ADD COLUMN settles INTEGER NOT NULL DEFAULT 0",
    ),
    (
        "ALTER TABLE events ADD COLUMN seal TEXT NOT NULL DEFAULT ''",
        "UPDATE events SET seal = seal(act, of, seq, data_id, example_id, verdict, label, reviewer,"
        " time, build_id, evidence, batch, settles)",
    ),
)
PATIENCE = 30  # seconds to wait for other writers
COLUMNS = (
    "seq, data_id, example_id, verdict, label, reviewer, time, build_id, evidence, batch, settles"
)
EVENTS = f"SELECT act, of, {COLUMNS}, seal FROM events"
NUMBER, OF_DATA, SEAL = 2, 3, -1  # of an event, their places in a row of `EVENTS`
ACCEPTED = "accepted"  # the seal of an event that a person took as it stood
UNSURE = "unsure"  # looked at and left open: it decides nothing about the label


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a reviewer wants of one example."""

    example_id: str
    verdict: Verdict
    label: int | None = None  # the new label of a relabel
    evidence: str = "{}"


@dataclass(frozen=True)
class Standing:
    """The acts that were not taken back, oldest first, and what follows from them.

    Shared by its readers, who change nothing in it.
    """

    acts: tuple[Decision, ...] = ()
    newest: int = 0  # number of the log's newest event about this data, 0 for none
    _latest: dict[str, Decision] = field(default_factory=dict)
    _in_force: dict[str, Decision] = field(default_factory=dict)
    _conflicts: dict[str, tuple[Decision, ...]] = field(default_factory=dict)

    def latest(self) -> dict[str, Decision]:
        """The newest act on each example, unsure ones too."""
        return self._latest

    def in_force(self) -> dict[str, Decision]:
        """The decision on each example whose newest act is one."""
        return self._in_force

    def conflicts(self) -> dict[str, tuple[Decision, ...]]:
        """Examples that reviewers decided differently: each one's newest, oldest first."""
        return self._conflicts


class Fold:
    """What the events so far come to, of one data set; events are taken in one by one.

    A long log is read once: afterwards a read costs what was added since, by any process.
    """

    def __init__(self) -> None:
        self.last: tuple = ()  # the newest event taken in, as the file has it
        self.undone: dict[str, dict[int, Decision]] = {}  # by reviewer, could be put back
        self._acts: dict[int, Decision] = {}
        self._about: dict[str, dict[int, Decision]] = {}  # the acts on each example
        self._latest: dict[str, Decision] = {}
        self._in_force: dict[str, Decision] = {}
        self._conflicts: dict[str, tuple[Decision, ...]] = {}
        self.standing = Standing()

    def take(self, rows: Sequence[tuple]) -> None:
        """Take in the next events, rows of `EVENTS`."""
        touched = set()
        for row in rows:
            act, of, *rest, _ = row
            made = _decision(rest)
            taken = self.undone.setdefault(made.reviewer, {})
            if act == "decide":
                self._acts[made.seq] = made
                self._about.setdefault(made.example_id, {})[made.seq] = made
                taken.clear()
                touched.add(made.example_id)
                continue
            here, there = (self._acts, taken) if act == "undo" else (taken, self._acts)
            one = here.pop(of, None)
            if one is None:  # the event it is about was damaged, and is taken as it stands
                continue
            there[of] = one
            about = self._about.setdefault(one.example_id, {})
            if act == "undo":
                about.pop(of, None)
            else:
                about[of] = one
            touched.add(one.example_id)
        if not rows:
            return
        for key in touched:
            self._reckon(key)
        self.last = rows[-1]
        self.standing = Standing(
            tuple(self._acts.values()),
            self.last[NUMBER],
            self._latest.copy(),
            self._in_force.copy(),
            self._conflicts.copy(),
        )

    def _reckon(self, key: str) -> None:
        """What follows for an example from the acts on it that stand."""
        for found in (self._latest, self._in_force, self._conflicts):
            found.pop(key, None)
        about = list(self._about[key].values())
        if not about:
            del self._about[key]
            return
        self._latest[key] = about[-1]
        if about[-1].verdict != UNSURE:
            self._in_force[key] = about[-1]
        if some := contradicting(about):
            self._conflicts[key] = some


def contradicting(about: Iterable[Decision]) -> tuple[Decision, ...]:
    """Each reviewer's newest act on an example, oldest first, where they are not the same.

    A decision that settles closes what was said before it. Unsure contradicts nobody.
    """
    by: dict[str, Decision] = {}
    for d in about:
        if d.settles:
            by.clear()
        by.pop(d.reviewer, None)  # to the end
        by[d.reviewer] = d
    some = tuple(d for d in by.values() if d.verdict != UNSURE)
    return some if len({(d.verdict, d.label) for d in some}) > 1 else ()


class Decisions:
    """The log in the file `path`; made at the first act."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folds: dict[str, Fold] = {}  # by data set
        self._last: tuple = ()  # the newest event that was read, of any data
        self._seen = False  # whether there was a file
        self._lock = threading.Lock()  # of the folds; never waited for by who holds it

    def decide(
        self,
        data_id: str,
        example_id: str,
        verdict: Verdict,
        *,
        label: int | None = None,
        reviewer: str = "",
        build_id: str = "",
        evidence: str = "{}",
        settles: bool = False,
    ) -> Decision:
        """Append a decision; it stands once this returns. A relabel needs its new label."""
        choice = Choice(example_id=example_id, verdict=verdict, label=label, evidence=evidence)
        return self.decide_all(
            data_id, [choice], reviewer=reviewer, build_id=build_id, settles=settles
        )[0]

    def decide_all(
        self,
        data_id: str,
        choices: Sequence[Choice],
        *,
        reviewer: str = "",
        build_id: str = "",
        settles: bool = False,
    ) -> tuple[Decision, ...]:
        """Append a decision for each choice, all or none; one undo takes them all back.

        With `settles` they close what reviewers disagreed on.
        """
        some = {reviewer: choices}
        return self.decide_each(data_id, some, build_id=build_id, settles=settles)

    def decide_each(
        self,
        data_id: str,
        choices: Mapping[str, Sequence[Choice]],
        *,
        build_id: str = "",
        settles: bool = False,
    ) -> tuple[Decision, ...]:
        """`decide_all` of several reviewers, all or none; an undo takes back what is one's own."""
        for some in choices.values():
            for choice in some:
                check(choice)
        with self._open(write=True) as db:
            made = []
            for reviewer, some in choices.items():
                batch = secrets.token_hex(4) if len(some) > 1 else ""
                made += [
                    Decision(
                        seq=0,
                        data_id=data_id,
                        example_id=choice.example_id,
                        verdict=choice.verdict,
                        label=None if choice.label is None else int(choice.label),
                        reviewer=reviewer,
                        time=now(),
                        build_id=build_id,
                        evidence=choice.evidence,
                        batch=batch,
                        settles=settles,
                    )
                    for choice in some
                ]
            return tuple(self._append(db, "decide", d) for d in made)

    def undo(self, data_id: str, reviewer: str = "") -> tuple[Decision, ...]:
        """Take back the reviewer's newest act that stands; empty where there is none."""
        with self._open(write=True) as db:
            with self._lock:
                acts = self._read(db, data_id).standing.acts
            mine = [d for d in acts if d.reviewer == reviewer]
            return tuple(self._append(db, "undo", d) for d in last_act(mine))

    def redo(self, data_id: str, reviewer: str = "") -> tuple[Decision, ...]:
        """Put back the newest act that the reviewer took back since their last new one."""
        with self._open(write=True) as db:
            with self._lock:
                undone = list(self._read(db, data_id).undone.get(reviewer, {}).values())
            return tuple(self._append(db, "redo", d) for d in last_act(undone))

    def standing(self, data_id: str) -> Standing:
        """What stands, unsure ones and what reviewers disagree on included."""
        if self._empty():
            return Standing()
        # The lock first: a reader that began before what is known would have to begin anew.
        with self._lock, self._open() as db:
            return self._read(db, data_id).standing

    def newest(self, data_id: str) -> int:
        """Number of the newest event, by which a reader sees whether something happened."""
        if self._none_yet():
            return 0
        with self._open() as db:
            return newest(db, data_id)

    def in_force(self, data_id: str) -> dict[str, Decision]:
        """For each decided example the decision about its label that stands."""
        return self.standing(data_id).in_force()

    def history(self, data_id: str) -> list[Decision]:
        """Every decision ever made, oldest first, those taken back included."""
        if self._empty():
            return []
        with self._lock, self._open() as db:
            self._read(db, data_id)
            rows = db.execute(
                f"SELECT {COLUMNS} FROM events WHERE act = 'decide' AND data_id = ? ORDER BY seq",
                (data_id,),
            )
            return [_decision(row) for row in rows]

    def counts(self) -> dict[str, int]:
        """How many decisions were ever made, for each data set (or test half) by its id."""
        if self._empty():
            return {}
        with self._lock, self._open() as db:
            self._read(db, "")
            return dict(
                db.execute(
                    "SELECT data_id, count(*) FROM events WHERE act = 'decide' GROUP BY data_id"
                ).fetchall()
            )

    def _read(self, db: sqlite3.Connection, data_id: str) -> Fold:
        """The log up to the newest event of this transaction, verified. The lock is held.

        What was read before is read again where the file is not the one it was read from, or has
        been put back to an earlier state: then the newest event known is not in it.
        """
        if self._last:
            same = db.execute(f"{EVENTS} WHERE seq = ?", (self._last[NUMBER],)).fetchone()
            if same != self._last:
                self._folds, self._last = {}, ()
        after = self._last[NUMBER] if self._last else 0
        rows = db.execute(f"{EVENTS} WHERE seq > ? ORDER BY seq", (after,)).fetchall()
        self._verify(rows, after, written(db))
        some: dict[str, list[tuple]] = {}
        for row in rows:
            some.setdefault(row[OF_DATA], []).append(row)
        try:
            for name, newer in some.items():
                self._folds.setdefault(name, Fold()).take(newer)
        except BaseException:
            self._folds, self._last = {}, ()  # half taken in
            raise
        self._last = rows[-1] if rows else self._last
        return self._folds.setdefault(data_id, Fold())

    def _verify(self, rows: Sequence[tuple], after: int, last: int) -> None:
        """Raise `UserError` unless these are the events from `after` to `last`, as written."""
        found = [row[NUMBER] for row in rows]
        if found != list(range(after + 1, last + 1)):
            gone = sorted(set(range(after + 1, last + 1)) - set(found)) or [last]
            raise self._damaged(f"event {gone[0]} is missing", "")
        for row in rows:
            if row[SEAL] not in (sealed(*row[:SEAL]), ACCEPTED):
                n = row[NUMBER]
                accept = f"UPDATE events SET seal = '{ACCEPTED}' WHERE seq = {n}"
                raise self._damaged(
                    f"event {n} is not what was written",
                    f', or take it as it stands with `sqlite3 {self.path} "{accept}"`',
                )

    def _damaged(self, how: str, otherwise: str) -> UserError:
        return UserError(
            found=f"the decisions {self.path} are damaged ({how})",
            wanted="every event as it was written",
            next_step=f"put back a copy of that file{otherwise}",
        )

    def _empty(self) -> bool:
        """Whether there is no file yet. One of an older version is brought up to date before the
        lock is taken, which somebody who is just writing may wait for.
        """
        if self._none_yet():
            return True
        if not self._seen:
            with self._open():
                pass
        return False

    def _none_yet(self) -> bool:
        """Whether there is no file yet. Raises `UserError` where there was one."""
        if self.path.exists():
            return False
        if self._seen:  # to begin afresh would part the log in two once the old one is back
            raise UserError(
                found=f"the decisions {self.path} have gone",
                wanted="the file that was there",
                next_step="bring it back (a disk that is not mounted?), or start the program "
                "again to begin afresh",
            )
        return True

    def _append(self, db: sqlite3.Connection, act: str, about: Decision) -> Decision:
        """Append an event; a decision comes back with the number it got."""
        number = written(db) + 1
        values = asdict(about) | {"seq": number, "settles": int(about.settles)}
        if act != "decide":  # when it was taken back or put back
            values["time"] = now()
        values |= {"act": act, "of": None if act == "decide" else about.seq}
        row = [values[name] for name in ("act", "of", *COLUMNS.split(", "))]
        marks = ", ".join("?" * (len(row) + 1))
        db.execute(
            f"INSERT INTO events (act, of, {COLUMNS}, seal) VALUES ({marks})", (*row, sealed(*row))
        )
        return replace(about, seq=number) if act == "decide" else about

    def _begun(self, write: bool) -> sqlite3.Connection:
        """A connection inside a transaction.

        SQLite waits for other writers by itself, but not while another connection turns the
        write-ahead log on or, as the last one, puts it away.
        """
        until = time.monotonic() + PATIENCE
        while True:
            db = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)
            try:
                # To its end: one that is left with its answer unread stands in the way of a commit.
                db.execute("PRAGMA journal_mode = WAL").fetchall()
                db.execute("PRAGMA synchronous = FULL")
                self._up_to_date(db)
                db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                return db
            except sqlite3.OperationalError as error:
                db.close()
                if not busy(error) or time.monotonic() > until:
                    raise
                time.sleep(0.01)
            except BaseException:
                db.close()
                raise

    def _up_to_date(self, db: sqlite3.Connection) -> None:
        """Bring the file to this version, keeping every event; all or nothing."""
        if version(db) == VERSION:
            return
        db.execute("BEGIN IMMEDIATE")
        had = version(db)  # another process may have been quicker
        if had > VERSION:
            raise UserError(
                found=f"the decisions {self.path} were written by a newer version ({had})",
                wanted=f"a file of version {VERSION} or older",
                next_step="update the program, or choose another folder with --workspace",
            )
        db.execute(TABLE)
        db.create_function("seal", -1, sealed, deterministic=True)
        for statement in (s for step in STEPS[had:] for s in step):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute("COMMIT")

    @contextmanager
    def _open(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        """A connection in write-ahead mode, inside one transaction, flushed to disk at its end."""
        try:
            self._none_yet()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            db = self._begun(write)
            self._seen = True
            try:
                yield db
                db.execute("COMMIT")
            finally:
                db.close()
        except (sqlite3.Error, OSError, UnicodeError) as error:  # of damaged text, the last
            raise UserError(
                found=f"the decisions {self.path} cannot be used ({brief(error)})",
                wanted="a readable and writable file with room on its disk",
                next_step="mend that, or choose another folder with --workspace",
            ) from error


def integrity(path: Path) -> str:
    """What SQLite finds wrong with a file, in words; "" where nothing is, or no file."""
    if not path.exists():
        return ""
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=PATIENCE)
        try:
            (found,) = db.execute("PRAGMA integrity_check(1)").fetchone()
        finally:
            db.close()
    except (sqlite3.Error, UnicodeError) as error:
        return brief(error)
    return "" if found == "ok" else " ".join(found.split())


def brief(error: Exception) -> str:
    """What went wrong in a line; SQLite quotes a damaged table's whole definition."""
    return " ".join(str(error).split())[:200]


def check(choice: Choice) -> None:
    """Raise `UserError` for a choice that makes no sense."""
    known("verdict", choice.verdict, get_args(Verdict), "keep, relabel, drop or unsure")
    label: object = choice.label
    if label is not None and (isinstance(label, bool) or not isinstance(label, Integral)):
        raise UserError(
            found=f"the label {label!r} to relabel with",
            wanted="the number of a class, or none",
            next_step="give it as an int",
        )
    if (choice.verdict == "relabel") != (choice.label is not None):
        raise UserError(
            found=f"a {choice.verdict} with label {choice.label}",
            wanted="a new label for a relabel, and for nothing else",
            next_step="choose the class it should have",
        )


def last_act(some: list[Decision]) -> list[Decision]:
    """The last of these decisions, with all that were made in one act with it."""
    if not some or not some[-1].batch:
        return some[-1:]
    return [d for d in some if d.batch == some[-1].batch]


def sealed(*values: object) -> str | None:
    """The checksum of an event, of all that `EVENTS` selects but itself.

    None for one that holds what no event has, bytes.
    """
    try:
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]
    except TypeError:
        return None


def written(db: sqlite3.Connection, table: str = "events") -> int:
    """Number of the newest row that was ever written, by SQLite's own account."""
    found = db.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
    return found[0] if found else 0


def newest(db: sqlite3.Connection, data_id: str) -> int:
    (found,) = db.execute("SELECT max(seq) FROM events WHERE data_id = ?", (data_id,)).fetchone()
    return found or 0


def version(db: sqlite3.Connection) -> int:
    return db.execute("PRAGMA user_version").fetchone()[0]


def busy(error: sqlite3.OperationalError) -> bool:
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _decision(row: tuple | list) -> Decision:
    fields = dict(zip(COLUMNS.split(", "), row, strict=True))
    return Decision(**{**fields, "settles": bool(fields["settles"])})
