"""Names and notes that people give to builds.

A person's work, so they are in the workspace and not in the cache. As with decisions nothing is
ever changed: the newest word on a build counts, and the file is opened anew for each act.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .records import UserError

VERSION = 0  # of the file: `PRAGMA user_version`
TABLE = """
CREATE TABLE IF NOT EXISTS notes (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    build_id TEXT NOT NULL,
    name TEXT NOT NULL,
    note TEXT NOT NULL,
    time REAL NOT NULL
)
"""
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
            rows = db.execute("SELECT build_id, name, note FROM notes ORDER BY seq").fetchall()
        return {build_id: Note(name, note) for build_id, name, note in rows}

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
        with self._open() as db:
            db.execute(TABLE)
            db.execute(
                "INSERT INTO notes (build_id, name, note, time) VALUES (?, ?, ?, ?)",
                (build_id, name, text, time.time()),
            )

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(self.path, timeout=PATIENCE)
            try:
                (had,) = db.execute("PRAGMA user_version").fetchone()
                if had > VERSION:
                    raise UserError(
                        found=f"the names and notes {self.path} were written by a newer version "
                        f"({had})",
                        wanted=f"a file of version {VERSION}",
                        next_step="update the program, or choose another folder with --workspace",
                    )
                with db:
                    yield db
            finally:
                db.close()
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                found=f"{self.path} cannot be used ({error})",
                wanted="a file of names and notes that may be read and written",
                next_step="mend it, or choose another folder with --workspace",
            ) from error
