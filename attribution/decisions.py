"""What reviewers decided: an append-only log in SQLite, and the decisions in force.

Nothing is ever changed or removed. An undo is an event that names the decision it takes back, a
redo one that names it again; the decisions in force are a fold over the log. Opened anew for each
act, so that several pages, processes and reviewers can use one file.
"""

import secrets
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from .records import Decision, UserError, Verdict, known

VERSION = 1  # of the file: `PRAGMA user_version`
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
)
PATIENCE = 30  # seconds to wait for other writers
COLUMNS = (
    "seq, data_id, example_id, verdict, label, reviewer, time, build_id, evidence, batch, settles"
)
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
    """The acts that were not taken back, oldest first."""

    acts: tuple[Decision, ...]
    newest: int  # number of the log's newest event about this data, 0 for none

    def latest(self) -> dict[str, Decision]:
        """The newest act on each example, unsure ones too."""
        return {d.example_id: d for d in self.acts}

    def in_force(self) -> dict[str, Decision]:
        """The decision on each example whose newest act is one."""
        return {key: d for key, d in self.latest().items() if d.verdict != UNSURE}

    def conflicts(self) -> dict[str, tuple[Decision, ...]]:
        """Examples that reviewers decided differently: each one's newest, oldest first.

        A decision that settles closes what was said before it. Unsure contradicts nobody.
        """
        said: dict[str, dict[str, Decision]] = {}
        for d in self.acts:
            by = said.setdefault(d.example_id, {})
            if d.settles:
                by.clear()
            by.pop(d.reviewer, None)  # to the end
            by[d.reviewer] = d
        found = {
            key: tuple(d for d in by.values() if d.verdict != UNSURE) for key, by in said.items()
        }
        return {
            key: some
            for key, some in found.items()
            if len({(d.verdict, d.label) for d in some}) > 1
        }


class Decisions:
    """The log in the file `path`; made at the first act."""

    def __init__(self, path: Path) -> None:
        self.path = path

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
        for choice in choices:
            check(choice)
        batch = secrets.token_hex(4) if len(choices) > 1 else ""
        with self._open(write=True) as db:
            made = [
                Decision(
                    seq=0,
                    data_id=data_id,
                    example_id=choice.example_id,
                    verdict=choice.verdict,
                    label=choice.label,
                    reviewer=reviewer,
                    time=now(),
                    build_id=build_id,
                    evidence=choice.evidence,
                    batch=batch,
                    settles=settles,
                )
                for choice in choices
            ]
            return tuple(self._append(db, "decide", d) for d in made)

    def undo(self, data_id: str, reviewer: str = "") -> tuple[Decision, ...]:
        """Take back the reviewer's newest act that stands; empty where there is none."""
        with self._open(write=True) as db:
            standing, _ = self._stacks(db, data_id)
            mine = [d for d in standing if d.reviewer == reviewer]
            return tuple(self._append(db, "undo", d) for d in last_act(mine))

    def redo(self, data_id: str, reviewer: str = "") -> tuple[Decision, ...]:
        """Put back the newest act that the reviewer took back since their last new one."""
        with self._open(write=True) as db:
            _, undone = self._stacks(db, data_id)
            return tuple(self._append(db, "redo", d) for d in last_act(undone.get(reviewer, [])))

    def standing(self, data_id: str) -> Standing:
        """What stands, unsure ones and what reviewers disagree on included."""
        if not self.path.exists():
            return Standing((), 0)
        with self._open() as db:
            return Standing(tuple(self._stacks(db, data_id)[0]), newest(db, data_id))

    def newest(self, data_id: str) -> int:
        """Number of the newest event, by which a reader sees whether something happened."""
        if not self.path.exists():
            return 0
        with self._open() as db:
            return newest(db, data_id)

    def in_force(self, data_id: str) -> dict[str, Decision]:
        """For each decided example the decision about its label that stands."""
        return self.standing(data_id).in_force()

    def history(self, data_id: str) -> list[Decision]:
        """Every decision ever made, oldest first, those taken back included."""
        if not self.path.exists():
            return []
        with self._open() as db:
            rows = db.execute(
                f"SELECT {COLUMNS} FROM events WHERE act = 'decide' AND data_id = ? ORDER BY seq",
                (data_id,),
            )
            return [_decision(row) for row in rows]

    def _stacks(
        self, db: sqlite3.Connection, data_id: str
    ) -> tuple[list[Decision], dict[str, list[Decision]]]:
        """Decisions that stand, and by reviewer those that could be put back; newest last."""
        rows = db.execute(
            f"SELECT act, of, {COLUMNS} FROM events WHERE data_id = ? ORDER BY seq", (data_id,)
        )
        made: dict[int, Decision] = {}
        standing: dict[int, Decision] = {}
        undone: dict[str, dict[int, Decision]] = {}
        for act, of, *rest in rows:
            if act == "decide":
                made[rest[0]] = standing[rest[0]] = _decision(rest)
                undone.pop(made[rest[0]].reviewer, None)
                continue
            taken = undone.setdefault(made[of].reviewer, {})
            here, there = (standing, taken) if act == "undo" else (taken, standing)
            there[of] = here.pop(of)
        return list(standing.values()), {who: list(some.values()) for who, some in undone.items()}

    def _append(self, db: sqlite3.Connection, act: str, about: Decision) -> Decision:
        """Append an event; a decision comes back with the number it got."""
        values = asdict(about)
        del values["seq"]
        if act != "decide":  # when it was taken back or put back
            values["time"] = now()
        values |= {"act": act, "of": None if act == "decide" else about.seq}
        names = ", ".join(values)
        marks = ", ".join("?" * len(values))
        cursor = db.execute(
            f"INSERT INTO events ({names}) VALUES ({marks})", tuple(values.values())
        )
        return replace(about, seq=cursor.lastrowid or 0) if act == "decide" else about

    def _begun(self, write: bool) -> sqlite3.Connection:
        """A connection inside a transaction.

        SQLite waits for other writers by itself, but not while another connection turns the
        write-ahead log on or, as the last one, puts it away.
        """
        until = time.monotonic() + PATIENCE
        while True:
            db = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)
            try:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")
                self._up_to_date(db)
                db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                return db
            except sqlite3.OperationalError as error:
                db.close()
                if not busy(error) or time.monotonic() > until:
                    raise
                time.sleep(0.01)
            except (sqlite3.Error, UserError):
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
        for statement in (s for step in STEPS[had:] for s in step):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute("COMMIT")

    @contextmanager
    def _open(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        """A connection in write-ahead mode, inside one transaction, flushed to disk at its end."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            db = self._begun(write)
            try:
                yield db
                db.execute("COMMIT")
            finally:
                db.close()
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                found=f"the decisions {self.path} cannot be used ({error})",
                wanted="a readable and writable file with room on its disk",
                next_step="mend that, or choose another folder with --workspace",
            ) from error


def check(choice: Choice) -> None:
    """Raise `UserError` for a choice that makes no sense."""
    known("verdict", choice.verdict, get_args(Verdict), "keep, relabel, drop or unsure")
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
