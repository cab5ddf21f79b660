"""Four hundred real digits under a name of their own, and builds on them that take a second."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import sklearn  # noqa: F401  # so that what is forked need not import it, as the next
import torch._dynamo  # noqa: F401
from PIL import Image

from attribution import data, engine, export, imports  # noqa: F401
from attribution.__main__ import main
from attribution.data import mnist5k

from .rows import ROOT

NAME = "digits400"
EACH = {"train": 32, "test": 8}  # images of a digit
TINY = (
    "--data", NAME, "--noise", "0.1", "--models", "2", "--masks", "2", "--epochs", "2",
    "--dims", "8x4", "--index-dims", "32",
)  # fmt: skip


@cache
def digits() -> dict[str, np.ndarray]:
    """The first of each digit in the embedded data."""
    whole = mnist5k()
    found = {"classes": whole["classes"]}
    for half, each in EACH.items():
        labels = whole[f"{half}_labels"]
        some = np.sort(np.concatenate([np.flatnonzero(labels == d)[:each] for d in range(10)]))
        found |= {f"{half}_{what}": whole[f"{half}_{what}"][some] for what in ("images", "labels")}
    return found


data.DATASETS[NAME] = digits


def drawn(folder: Path, each: int = 24) -> None:
    """Some digits as a person's own pictures; one of them twice, and one file that is none."""
    some = digits()
    for label in range(10):
        place = folder / f"digit {label}"
        place.mkdir(parents=True)
        for n in np.flatnonzero(some["train_labels"] == label)[:each]:
            Image.fromarray(some["train_images"][n]).save(place / f"{n}.png")
    shutil.copy(place / f"{n}.png", place / "twin.png")
    (place / "none.png").write_bytes(b"no picture")


def in_order(commands: Sequence[Sequence[str | Path]]) -> None:
    """These commands one after the other, in a process that is no fork: nothing ran before it."""
    given = json.dumps([list(map(str, words)) for words in commands])
    subprocess.run(
        [sys.executable, "-m", "bench.small"],
        input=given,
        text=True,
        check=True,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def forked(work: Callable[[], object]) -> int:
    """The number of a process that does `work` and nothing else, its words unheard.

    A fork has all imports behind it, so that many processes cost little more than what they do. Not
    for a process that has computed something already, whose threads a fork would wait for.
    """
    pid = os.fork()
    if pid:
        return pid
    code: object = 1
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        work()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        os._exit(code if isinstance(code, int) else 1)


def ended(pid: int) -> int:
    """Waits for a process: its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def attribution(*words: str | Path) -> None:
    """``python -m attribution`` with these words, in this very process; it ends by SystemExit."""
    sys.argv = ["attribution", *map(str, words)]
    main()


def answered(*words: str | Path) -> Any:
    """What a command prints with ``--json``, done by a process of its own."""
    read, write = os.pipe()

    def work() -> None:
        said = StringIO()
        try:
            with redirect_stdout(said):
                attribution(*words, "--json")
        finally:
            with os.fdopen(write, "w") as file:
                file.write(said.getvalue())

    pid = forked(work)
    os.close(write)
    with os.fdopen(read) as file:
        text = file.read()
    if ended(pid):
        raise RuntimeError(f"{' '.join(map(str, words))}: did not end well")
    return json.loads(text)


if __name__ == "__main__":
    for given in json.load(sys.stdin):
        try:
            attribution(*given)
        except SystemExit as ended_so:
            if ended_so.code:
                raise
