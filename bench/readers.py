"""The readers of what users bring, each with the inputs that `fuzz` draws for it.

An input is a folder of files; a reader gets that folder and one of its own to write in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hypothesis import strategies as st

from .datasets import (
    folders,
    idx_files,
    manifests,
    parquets,
    pictures,
    read_folder,
    read_one,
    read_picture,
)
from .inputs import (
    Case,
)
from .packed import archives, checkpoints, read_archive, read_artifact, read_weights, stored
from .questions import Demo, addresses, decisions, visits


@dataclass(frozen=True)
class Reader:
    """A reader under test: `read(folder of the input, folder to write in)`."""

    name: str
    inputs: Callable[[], st.SearchStrategy[Case]]
    read: Callable[[Path, Path], object]
    batch: int = 500  # inputs in one process


def readers(folder: Path, threads: int) -> list[Reader]:
    """All of them; what they need beside their inputs is made in `folder` when it is first used."""
    demo = Demo(folder / "demo", threads)
    return [
        Reader("pictures", pictures, read_picture),
        Reader("folder", folders, read_folder),
        Reader("parquet", parquets, read_one("data.parquet")),
        Reader("csv", manifests, read_one("list.csv")),
        Reader("idx", idx_files, read_folder),
        # Hypothesis keeps what it draws, megabytes each: many would take a reader's room.
        Reader("archives", archives, read_archive, 100),
        Reader("weights", checkpoints, read_weights),
        Reader("artifacts", stored, read_artifact),
        Reader("decisions", partial(decisions, demo), demo.import_decisions),
        Reader("addresses", partial(addresses, demo), demo.ask, 2000),
        Reader("pages", partial(visits, demo), demo.visit, 60),
    ]
