"""Killed by SIGKILL in the middle of everything: what was acknowledged, what is read, what ends.

Each command works on some hundred digits and is killed at moments spread evenly over all that it
asks of the system below its folder (opening, renaming, making and removing of files, each statement
to SQLite), and at moments of the clock. Beside it another process decides, told one by one that its
decisions stand, and is killed with it. Then everything in the cache is read, the command is given
again, and what it leaves is compared bit by bit with what it leaves when nobody kills it.
A kill ends a process, not the machine: what a loss of power takes is not measured here.
"""

import hashlib
import itertools
import os
import shutil
import signal
import sqlite3
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attribution.decisions import Decisions, integrity
from attribution.engine import Engine
from attribution.records import UserError, Verdict
from attribution.store import Store

from .rows import Options, Row, row
from .small import TINY, answered, attribution, ended, forked

MOMENTS, LAST, TIMED = 14, 4, 4  # kills of each command: evenly over what it asks, at the last
# things that it asks, where most is put in place, and by the clock
FEWEST = 80  # decisions of the process beside before the command begins
TOGETHER = 6  # pairs of equal builds, one of the two killed
DECIDED = 24  # decisions that are applied, exported and imported
ITSELF, BESIDE = "a" * 12, "b" * 12  # the data that what is killed decides on, and who is beside
ACKNOWLEDGED = struct.Struct("<QQ12s")  # number of the event, of the example, data
RUN_OF_ACTS = 60  # decisions of the command that only decides
ASKS = (
    "open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "tempfile.mkdtemp",
    "sqlite3.connect",
)  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """A command to be killed: what lies there before, its words, and the file it writes if any."""

    name: str
    before: Path
    words: Callable[[Path], tuple[str | Path, ...]]
    output: str = ""


@dataclass(frozen=True)
class Found:
    """What was there after a kill."""

    killed: bool  # else it had ended before its moment came
    acknowledged: int
    lost: int  # of these
    half: int  # artifacts that could be opened and are not whole
    broken: bool  # an output that is neither what was there before nor what was to be written
    differs: bool  # the same command, given again, ended otherwise than undisturbed


class Fuse:
    """Counts what a process asks of the system below a folder, and kills it at one of these."""

    def __init__(self, root: Path, at: int) -> None:
        self.root, self.at, self.count = str(root), at, 0
        sys.addaudithook(self)
        connect = sqlite3.connect

        def connected(*args: Any, **options: Any) -> sqlite3.Connection:
            db = connect(*args, **options)
            db.set_trace_callback(self.step)
            return db

        sqlite3.connect = connected  # type: ignore[assignment]

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event in ASKS and any(str(a).startswith(self.root) for a in args):
            self.step()

    def step(self, statement: str = "") -> None:
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def measure(options: Options) -> list[Row]:
    spread = options.times(MOMENTS)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        stages = list(prepared(root / "before"))
        found: dict[str, list[Found]] = {}
        for stage in stages:
            wanted, asked, seconds = undisturbed(stage, root / "whole")
            even = [1 + asked * (2 * k + 1) // (2 * spread) for k in range(spread)]
            moments = [(at, 0.0) for at in (*even, *range(asked - LAST + 1, asked + 1))]
            moments += [(0, seconds * (k + 0.5) / TIMED) for k in range(TIMED)]
            found[stage.name] = [
                one
                for at, after in moments
                if (one := disturbed(stage, root / "killed", at, after, wanted)).killed
            ]
        pairs = [pair(stages[0], root, k) for k in range(TOGETHER)]
    return rows(found, pairs)


def rows(found: dict[str, list[Found]], pairs: list[bool]) -> list[Row]:
    every = [one for some in found.values() for one in some]

    def none(what: str, count: int) -> Row:
        return row(what, count, "", at_most=0)

    return [
        *(row(f"kills inside {name}", len(some), "", at_least=5) for name, some in found.items()),
        row("kills in all", len(every), "", at_least=100),
        row("decisions acknowledged", sum(f.acknowledged for f in every), "", at_least=10_000),
        none("acknowledged decisions lost", sum(f.lost for f in every)),
        none("half artifacts read", sum(f.half for f in every)),
        none("outputs neither old nor new", sum(f.broken for f in every)),
        none("ends that differ from an undisturbed one", sum(f.differs for f in every)),
        row("pairs of equal builds at once, one of them killed", len(pairs), ""),
        none("of these, ends that differ", sum(pairs)),
    ]


# --- what is killed --------------------------------------------------------------------------


def prepared(root: Path) -> Iterator[Stage]:
    """The commands, and what each finds: nothing, a build, a build with decisions or an export."""
    empty, built, decided = (root / name for name in ("empty", "built", "decided"))
    empty.mkdir(parents=True)
    build = answered("build", *TINY, "--cache", built / "cache")["build"]
    shutil.copytree(built, decided)
    decide_some(decided, build)
    where = ("--workspace", decided, "--cache", decided / "cache")
    for output, form in (("old.csv", "csv"), ("old", "folder")):
        answered("export", build, "-o", decided / output, "--format", form, *where)
    shutil.copy(decided / "old.csv", built / "brought.csv")
    decide_some(decided, build, more=1)  # so that what is exported now is not what was before

    def at(place: Path) -> tuple[str | Path, ...]:
        return ("--workspace", place, "--cache", place / "cache")

    def export(output: str, form: str) -> Callable[[Path], tuple[str | Path, ...]]:
        return lambda p: (
            "export", build, "-o", p / output, "--format", form, "--force", *at(p)
        )  # fmt: skip

    yield Stage("build", empty, lambda p: ("build", *TINY, "--cache", p / "cache"))
    yield Stage("apply", decided, lambda p: ("apply", build, *at(p)))
    yield Stage(
        "verify",
        decided,
        lambda p: ("verify", build, "3", "--top", "20", "--seeds", "5", "--cache", p / "cache"),
    )
    yield Stage("export of a file", decided, export("old.csv", "csv"), "old.csv")
    yield Stage("export of a folder", decided, export("old", "folder"), "old")
    yield Stage("import", built, lambda p: ("import", build, p / "brought.csv", *at(p)))
    yield Stage("decide", built, lambda p: ())


def decide_some(place: Path, build_id: str, more: int = 0) -> None:
    """Decisions on a build's data, each kind of them."""
    engine = Engine(place / "cache", place)
    build = engine.open(build_id)
    verdicts: tuple[Verdict, ...] = ("relabel", "drop", "keep")
    for n in range(DECIDED * more, DECIDED * (more + 1)):
        verdict = verdicts[n % 3]
        label = (int(build.train_labels_N[n]) + 1) % 10 if verdict == "relabel" else None
        engine.decisions.decide(
            build.data_id, build.train_ids[n], verdict, label=label, reviewer="ada"
        )


def run(stage: Stage, place: Path, told: int) -> None:
    """What the process that is to be killed does."""
    if words := stage.words(place):
        attribution(*words)
    deciding(place, ITSELF, told, RUN_OF_ACTS)


def deciding(place: Path, data_id: str, told: int, count: int | None = None) -> None:
    """Decide, without an end or `count` times, and tell of each decision once it stands."""
    for n in itertools.islice(itertools.count(), count):
        made = log(place).decide(data_id, f"{n:012x}", "relabel", label=n % 10)
        os.write(told, ACKNOWLEDGED.pack(made.seq, n, data_id.encode()))


def nowhere() -> int:
    return os.open(os.devnull, os.O_WRONLY)


def log(place: Path) -> Decisions:
    return Decisions(place / "decisions.sqlite")


# --- with and without a kill -----------------------------------------------------------------


def undisturbed(stage: Stage, place: Path) -> tuple[dict[str, Any], int, float]:
    """What a command leaves, what it asked of the system, and its seconds."""
    fresh(stage, place)
    read, write = os.pipe()

    def work() -> None:
        fuse = Fuse(place, 0)
        try:
            run(stage, place, nowhere())
        finally:
            os.write(write, struct.pack("<Q", fuse.count))

    began = time.perf_counter()
    if ended(forked(work)):
        raise RuntimeError(f"{stage.name}: did not end well though nobody disturbed it")
    seconds = time.perf_counter() - began
    (asked,) = struct.unpack("<Q", os.read(read, 8))
    os.close(read)
    os.close(write)
    return left(stage, place), asked, seconds


def disturbed(stage: Stage, place: Path, at: int, after: float, wanted: dict[str, Any]) -> Found:
    """Kill a command at its `at`-th asking, or `after` so many seconds; look, and go on."""
    fresh(stage, place)
    before = written(place, stage.output)
    read, write = os.pipe()
    beside = forked(lambda: deciding(place, BESIDE, write))
    early = b""
    while len(early) < FEWEST * ACKNOWLEDGED.size:
        early += os.read(read, FEWEST * ACKNOWLEDGED.size - len(early))

    def work() -> None:
        if at:
            Fuse(place, at)
        run(stage, place, write)

    pid = forked(work)
    os.close(write)
    if after:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)  # not waited for yet, so the number is still its own
    killed = ended(pid) == -signal.SIGKILL
    os.kill(beside, signal.SIGKILL)
    ended(beside)
    with os.fdopen(read, "rb") as file:
        told = list(ACKNOWLEDGED.iter_unpack(early + file.read()))
    stand = {
        (d.seq, int(d.example_id, 16), data_id.encode())
        for data_id in (ITSELF, BESIDE)
        for d in log(place).history(data_id)
    }
    whole = not integrity(place / "decisions.sqlite")
    lost = sum(not whole or one not in stand for one in told)
    half = unwhole(place / "cache")
    there = written(place, stage.output)
    broken = there not in ({}, before, wanted["written"])
    again = ended(forked(lambda: run(stage, place, nowhere())))
    now = left(stage, place)
    differing = [what for what in wanted if now[what] != wanted[what]]
    if again or differing:
        how = f"asking {at}" if at else f"{after:.2f} s"
        print(f"{stage.name} at {how}: exit {again}, differs in {differing}", file=sys.stderr)
    return Found(
        killed=killed,
        acknowledged=len(told),
        lost=lost,
        half=half,
        broken=broken,
        differs=bool(again or differing),
    )


def pair(stage: Stage, root: Path, k: int) -> bool:
    """Two builds of the same at once, one of them killed: whether the other ended otherwise."""
    wanted, asked, _ = undisturbed(stage, root / "whole")
    place = root / "killed"
    fresh(stage, place)

    def work() -> None:
        Fuse(place, 1 + asked * (2 * k + 1) // (2 * TOGETHER))
        run(stage, place, nowhere())

    pids = [forked(work), forked(lambda: run(stage, place, nowhere()))]
    ends = [ended(pid) for pid in pids]
    return ends[1] != 0 or left(stage, place) != wanted


def fresh(stage: Stage, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(stage.before, place)


def unwhole(cache: Path) -> int:
    """How many artifacts the store would open that are not what their manifests say."""
    count = 0
    for kind, name in Store(cache).names():
        try:
            Store(cache).check(kind, name)
        except UserError:
            count += 1
    return count


def left(stage: Stage, place: Path) -> dict[str, Any]:
    """What is there when a command has ended, but for what tells times."""
    cache = place / "cache"
    artifacts = {
        file.relative_to(cache).as_posix(): "" if file.name == "manifest.json" else digest(file)
        for file in sorted(cache.glob("*/[0-9a-f]*/*"))
        if file.parent.parent.name != "jobs"
    }
    acts = Counter(
        (data_id, d.example_id, d.verdict, d.label, d.reviewer)
        for data_id in log(place).counts()
        if data_id not in (ITSELF, BESIDE)
        for d in log(place).history(data_id)
    )
    standing = {e: d.label for e, d in log(place).in_force(ITSELF).items()}
    return {
        "artifacts": artifacts,
        "half": unwhole(cache),
        "acts": acts,
        "standing": standing,
        "written": written(place, stage.output),
    }


def written(place: Path, output: str) -> dict[str, str]:
    """The files of an output, by path."""
    if not output:
        return {}
    path = place / output
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {file.relative_to(place).as_posix(): digest(file) for file in files}


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
