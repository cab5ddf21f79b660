"""Names and notes that people give to builds.

A person's work, so they are in the workspace and not in the cache. As with decisions nothing is
ever changed: the newest word on a build counts, and the file is opened anew for each act. Each word
has a checksum, as each event has that the log of decisions keeps.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .decisions import brief, sealed, version, written
from .records import UserError

VERSION = 1  # of the file: `PRAGMA user_version`
TABLE = """
CREATE TABLE IF NOT EXISTS notes (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    build_id TEXT NOT NULL,
    name TEXT NOT NULL,
    note TEXT NOT NULL,
    time REAL NOT NULL
)
"""
SEALED = (  # from version 0
    "ALTER TABLE notes ADD COLUMN seal TEXT NOT NULL DEFAULT ''",
    "UPDATE notes SET seal = seal(seq, build_id, name, note, time)",
    "PRAGMA user_version = 1",
)
WORDS = "SELECT seq, build_id, name, note, time, {} FROM notes ORDER BY seq"
NAME, NOTE = 60, 2000  # characters at most
PATIENCE = 30  # seconds to wait for another writer


@dataclass(frozen=True)
class Note:
    """What a person says of a build."""

    name: str = ""
    note: str = ""


class Notes:
    """The file `path`, made at the first word."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def all(self) -> dict[str, Note]:
        """The newest word on each build."""
        if not self.path.exists():
            return {}
        with self._open() as db:
            if not self.path.stat().st_size:  # a kill before the first word was there
                return {}
            checked = version(db) > 0
            rows = db.execute(WORDS.format("seal" if checked else "''")).fetchall()
            last = written(db, "notes")
        if [row[0] for row in rows] != list(range(1, last + 1)):
            raise self._damaged("a word is missing")
        for *row, seal in rows:
            if checked and seal != sealed(*row):
                raise self._damaged(f"word {row[0]} is not what was written")
        return {build_id: Note(name, note) for _, build_id, name, note, *_ in rows}

    def _damaged(self, how: str) -> UserError:
        return UserError(
            found=f"the names and notes {self.path} are damaged ({how})",
            wanted="every word as it was written",
            next_step="put back a copy of that file, or move it away to begin afresh",
        )

    def of(self, build_id: str) -> Note:
        return self.all().get(build_id, Note())

    def say(self, build_id: str, note: Note) -> None:
        """Append a word on a build. Raises `UserError` for a name that another build has."""
        name, text = " ".join(note.name.split()), note.note.strip()
        for what, words, most in (("a name", name, NAME), ("a note", text, NOTE)):
            if len(words) > most:
                raise UserError(
                    found=f"{what} of {len(words)} characters",
                    wanted=f"{most} at most",
                    next_step="shorten it",
                )
        taken = [other for other, said in self.all().items() if name and said.name == name]
        if taken and taken != [build_id]:
            raise UserError(
                found=f"the name {name!r}, which build {taken[0]} has",
                wanted="a name of its own for each build",
                next_step="choose another",
            )
        with self._open(write=True) as db:
            row = written(db, "notes") + 1, build_id, name, text, time.time()
            db.execute("INSERT INTO notes VALUES (?, ?, ?, ?, ?, ?)", (*row, sealed(*row)))

    @contextmanager
    def _open(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(self.path, timeout=PATIENCE)
            try:
                had = version(db)
                if had > VERSION:
                    raise UserError(
                        found=f"the names and notes {self.path} were written by a newer version "
                        f"({had})",
                        wanted=f"a file of version {VERSION}",
                        next_step="update the program, or choose another folder with --workspace",
                    )
                db.execute("BEGIN IMMEDIATE" if write else "BEGIN")  # one state of it for a reader
                if write and version(db) == 0:
                    db.create_function("seal", -1, sealed, deterministic=True)
                    for statement in (TABLE, *SEALED):
                        db.execute(statement)
                with db:
                    yield db
            finally:
                db.close()
        except (sqlite3.Error, OSError, UnicodeError) as error:  # of damaged text, the last
            raise UserError(
                found=f"{self.path} cannot be used ({brief(error)})",
                wanted="a file of names and notes that may be read and written",
                next_step="mend it, or choose another folder with --workspace",
            ) from error
