"""How background jobs end: done, failed, cancelled, or killed and noticed, each kind of them.

Each command that pages start in the background is started as they do it, on some hundred pictures
of digits: once on a build that is not there, once to be killed by SIGKILL when it has told of its
first progress, once to be cancelled then, and once to its end. A job that has no end after
`PATIENCE` seconds counts for none of these.
"""

import os
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from attribution import jobs
from attribution.engine import Engine
from attribution.jobs import COMMANDS, Job

from .rows import Options, Row, row
from .small import TINY, drawn

PATIENCE = 300  # seconds
LOOK = 0.02  # seconds between two looks
ENDS = {"failed": "failed", "killed": "failed", "cancelled": "cancelled", "done": "done"}


@dataclass(frozen=True)
class Ended:
    """A job, whether it was met in the middle, and the seconds from then to its end."""

    job: Job
    met: bool
    seconds: float


def measure(options: Options) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        drawn(root / "pictures")
        data = ["--data", str(root / "pictures"), *TINY[2:]]
        cache = root / "cache"
        first = waited(cache, jobs.start(cache, data))
        if first.build is None:
            raise RuntimeError(f"no build to work on: {first.error}")
        ways: dict[str, list[str]] = {command: [first.build] for command in COMMANDS}
        ways |= {
            "build": data,
            "truth": [first.build, "--subsets", "8", "--seeds", "1"],
            "study": [first.build, "--subsets", "8", "--seeds", "1"],
            "verify": [first.build, "3", "--top", "20", "--seeds", "5"],
        }
        found: dict[str, list[Ended]] = {end: [] for end in ENDS}
        for command, words in ways.items():
            for end, some in found.items():
                some.append(tried(cache, command, words, end))
    return rows(found)


def rows(found: dict[str, list[Ended]]) -> list[Row]:
    told = []
    for end, state in ENDS.items():
        right = [one.met and one.job.state == state for one in found[end]]
        what = f"kinds of jobs {end}, of {len(COMMANDS)}"
        told.append(row(what, sum(right), "", at_least=len(COMMANDS)))
    reasons = [one.job.error for end in ("failed", "killed") for one in found[end]]
    noticed, cancelled = ([one.seconds for one in found[e]] for e in ("killed", "cancelled"))
    return [
        *told,
        row("failed or killed without a reason", reasons.count(""), "", at_most=0),
        row("from SIGKILL to failed, the slowest", max(noticed), "s", at_most=10),
        row("from cancel to cancelled, the slowest", max(cancelled), "s", at_most=10),
    ]


def tried(cache: Path, command: str, words: list[str], end: str) -> Ended:
    """A job of this command, brought to that end if it lives so long."""
    if end == "failed":
        words = ["--noise", "7"] if command == "build" else ["0" * 12, *words[1:]]
    elif end != "done" and command == "build":  # what is done already would be over at once
        words = [*words, "--seed", "9"]
    name = jobs.start(cache, words, command)
    if end in ("killed", "cancelled"):
        until(lambda: job_of(cache, name).total > 0 or job_of(cache, name).state != "running")
    met, began = job_of(cache, name).state == "running", time.monotonic()
    if end == "cancelled":
        jobs.cancel(cache, name)
    elif end == "killed" and met:
        os.kill(jobs.read(cache / "jobs" / name / "process.json")["pid"], signal.SIGKILL)
    return Ended(waited(cache, name), met, time.monotonic() - began)


def waited(cache: Path, name: str) -> Job:
    """A job when it is over, or as it is when nobody waits longer."""
    until(lambda: job_of(cache, name).state != "running")
    return job_of(cache, name)


def job_of(cache: Path, name: str) -> Job:
    return next(job for job in Engine(cache).jobs() if job.id == name)


def until(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not ready() and time.monotonic() < end:
        time.sleep(LOOK)
