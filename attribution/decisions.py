"""What reviewers decided: an append-only log in SQLite, and the decisions in force.

Nothing is ever changed or removed. An undo is an event that names the decision it takes back, a
redo one that names the undo; the decisions in force are a fold over the log. Opened anew for each
act, so that several pages, processes and reviewers can use one file.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from .records import Decision, UserError, Verdict, known

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
PATIENCE = 30  # seconds to wait for other writers
COLUMNS = "seq, data_id, example_id, verdict, label, reviewer, time, build_id, evidence"


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
    ) -> Decision:
        """Append a decision; it stands once this returns. A relabel needs its new label."""
        known("verdict", verdict, get_args(Verdict), "keep, relabel or drop")
        if (verdict == "relabel") != (label is not None):
            raise UserError(
                found=f"a {verdict} with label {label}",
                wanted="a new label for a relabel, and for nothing else",
                next_step="choose the class it should have",
            )
        made = Decision(
            seq=0,
            data_id=data_id,
            example_id=example_id,
            verdict=verdict,
            label=label,
            reviewer=reviewer,
            time=now(),
            build_id=build_id,
            evidence=evidence,
        )
        with self._open(write=True) as db:
            return self._append(db, "decide", made)

    def undo(self, data_id: str) -> Decision | None:
        """Take back the newest decision that stands; None where there is none."""
        with self._open(write=True) as db:
            standing = self._stacks(db, data_id)[0]
            return self._append(db, "undo", standing[-1]) if standing else None

    def redo(self, data_id: str) -> Decision | None:
        """Put back the newest decision taken back since the last new one."""
        with self._open(write=True) as db:
            undone = self._stacks(db, data_id)[1]
            return self._append(db, "redo", undone[-1]) if undone else None

    def in_force(self, data_id: str) -> dict[str, Decision]:
        """For each decided example the decision that stands."""
        if not self.path.exists():
            return {}
        with self._open() as db:
            return {d.example_id: d for d in self._stacks(db, data_id)[0]}

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
    ) -> tuple[list[Decision], list[Decision]]:
        """Decisions that stand, and those that could be put back; newest last."""
        rows = db.execute(
            f"SELECT act, of, {COLUMNS} FROM events WHERE data_id = ? ORDER BY seq", (data_id,)
        )
        made: dict[int, Decision] = {}
        standing: list[Decision] = []
        undone: list[Decision] = []
        for act, of, *rest in rows:
            if act == "decide":
                made[rest[0]] = _decision(rest)
                standing.append(made[rest[0]])
                undone = []
            elif act == "undo":
                standing.remove(made[of])
                undone.append(made[of])
            else:
                undone.remove(made[of])
                standing.append(made[of])
        return standing, undone

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
                db.execute(TABLE)
                db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                return db
            except sqlite3.OperationalError as error:
                db.close()
                if not busy(error) or time.monotonic() > until:
                    raise
                time.sleep(0.01)
            except sqlite3.Error:
                db.close()
                raise

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


def busy(error: sqlite3.OperationalError) -> bool:
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _decision(row: tuple | list) -> Decision:
    names = [c.strip() for c in COLUMNS.split(",")]
    return Decision(**dict(zip(names, row, strict=True)))
