"""Hostile input to each reader of what users bring: no traceback, no write elsewhere, no program.

Inputs are drawn by hypothesis: structured ones, and valid files with changes. Each reader gets its
minutes (30, or --minutes), one after the other (all, or those of --only, as in pictures,idx).
A reader must return or refuse in one sentence, with at most `ROOM` bytes more of memory and
`CPU` seconds of the processor an input; it writes into its own folder alone, starts no program,
opens no connection and unpickles nothing. A child reads a batch under these limits; inputs follow
from --seed, reader and batch. What fails is kept in a folder that is told (in --cache, if given),
with the reason, one input for each place that raised.
"""

import faulthandler
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import FlakyStrategyDefinition

from attribution.pictures import Aside
from attribution.records import UserError

from .inputs import Case, Link, Pipe
from .readers import Reader, readers
from .rows import ROOT, Options, Row, commit, machine, row

MINUTES = 30.0
ROOM = 3 * 2**30  # bytes of address space that a batch may take; a picture of 10^8 pixels needs 2
CPU = 30  # seconds of the processor for an input
WALL = 60  # seconds, on a machine that may be busy
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
NEVER = (
    "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "pty.spawn",
    "subprocess.Popen", "pickle.find_class", "socket.connect", "socket.getaddrinfo",
)  # fmt: skip
CHANGES = (
    "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.chmod",
    "os.truncate", "os.utime", "shutil.rmtree", "shutil.move",
)  # fmt: skip
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
LONGEST = 7000  # characters of a sentence
ACCEPTED, REFUSED, FAILED = b"a", b"r", b"f"


@dataclass
class Found:
    """What became of a reader's inputs."""

    counts: Counter[bytes]
    minutes: float = 0.0
    processor: float = 0.0  # minutes of it, less where other programs want it too
    memory: int = 0  # bytes that a batch took at most, what was there before included

    @property
    def tried(self) -> int:
        return sum(self.counts.values())


def measure(options: Options) -> list[Row]:
    minutes = options.minutes or MINUTES
    if options.cache:
        options.cache.mkdir(parents=True, exist_ok=True)
    kept = Path(tempfile.mkdtemp(prefix="fuzz-", dir=options.cache))
    print(f"what fails is kept in {kept}", file=sys.stderr)
    rows = []
    fast = Path("/dev/shm")  # of memory, where there is one: artifacts are flushed to the disk
    with tempfile.TemporaryDirectory(dir=fast if fast.is_dir() else None) as folder:
        place = Path(folder) / "case"
        every = {one.name: one for one in readers(options.cache or place.parent, options.threads)}
        for name in options.parts("reader", tuple(every)):
            found = fuzzed(every[name], options.seed, 60 * minutes, kept, place)
            rows += of_reader(name, found)
            print(f"{name}: {dict(found.counts)}", file=sys.stderr)
    return [*rows, row("load average of the machine at the end", os.getloadavg()[0], "")]


def of_reader(name: str, found: Found) -> list[Row]:
    return [
        row(f"{name}: minutes", found.minutes, "min"),
        row(f"{name}: minutes of the processor", found.processor, "min"),
        row(f"{name}: inputs", found.tried, ""),
        row(f"{name}: refused in a sentence", found.counts[REFUSED], ""),
        row(f"{name}: accepted", found.counts[ACCEPTED], ""),
        row(f"{name}: failed", found.counts[FAILED], "", at_most=0),
        row(f"{name}: most memory of a batch", found.memory / 2**20, "MB"),
    ]


def show(rows: Sequence[Row]) -> str:
    """A line a reader."""
    lines: dict[str, list[str]] = {}
    for one in rows:
        name, _, what = one.what.partition(": ")
        verdict = " MISSED" if one.ok is False else ""
        if what:
            lines.setdefault(name, []).append(f"{one.value:,.6g}{verdict}")
    head = [
        "reader",
        "minutes",
        "of the processor",
        "inputs",
        "refused",
        "accepted",
        "failed",
        "most memory, MB",
    ]
    table = [head, ["---"] * len(head), *([name, *cells] for name, cells in lines.items())]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in table)
    return f"{text}\n\n{rows[-1].what}: {rows[-1].value:.1f}; {machine()}; commit {commit()}"


def fuzzed(reader: Reader, seed: int, seconds: float, kept: Path, place: Path) -> Found:
    """Batches until the time is up."""
    inputs = reader.inputs()  # some are of a build, which is made for them
    found, began, turn = Found(Counter()), time.monotonic(), 0
    while time.monotonic() < began + seconds:
        number = int.from_bytes(sha256(f"{seed} {reader.name} {turn}".encode()).digest()[:8])
        one = batch(reader, inputs, number, kept, place, began + seconds)
        found.counts.update(one.counts)
        found.memory = max(found.memory, one.memory)
        found.processor += one.processor
        turn += 1
    found.minutes = (time.monotonic() - began) / 60
    return found


def batch(
    reader: Reader, inputs: st.SearchStrategy[Case], number: int, kept: Path, place: Path,
    ends: float,
) -> Found:  # fmt: skip
    """Inputs that follow from `number`, read in a child, until a time of the monotonic clock."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(out)
        try:
            tried_all(reader, inputs, number, kept, place, into, ends)
        except BaseException as error:  # in drawing, whose notes would be very long
            print(*traceback.format_tb(error.__traceback__), repr(error)[:2000], file=sys.stderr)
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as told:
        counts = Counter(bytes([one]) for one in told.read())
    _, status, used = os.wait4(child, 0)
    if status:
        counts[FAILED] += 1
        ended = os.waitstatus_to_exitcode(status)
        word = signal.Signals(-ended).name if ended < 0 else f"exit {ended}"
        said = errors(place).read_text(errors="replace")[-10_000:]
        keep(kept, reader.name, word, f"ended by {word}\n{said}", place)
    spent = (used.ru_utime + used.ru_stime) / 60
    return Found(counts, processor=spent, memory=used.ru_maxrss * 1024)


# --- in the child ---


def tried_all(
    reader: Reader, inputs: st.SearchStrategy[Case], number: int, kept: Path, place: Path,
    into: int, ends: float,
) -> None:  # fmt: skip
    """A batch of inputs; a letter to the pipe for each."""
    work = place.with_name("work")
    watch = bounded(place, work)

    @hypothesis.seed(number)
    @settings(
        max_examples=reader.batch,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def one(case: Case) -> None:
        if time.monotonic() > ends:
            os._exit(0)
        fresh(place)
        fresh(work)
        write(case, place)
        signal.setitimer(signal.ITIMER_PROF, CPU)
        signal.alarm(WALL)
        outcome, why, where = tried(reader, place, work, watch)
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if outcome == FAILED:
            keep(kept, reader.name, where, why, place)
        os.write(into, outcome)

    with suppress(FlakyStrategyDefinition):  # of the drawing, not of a reader: the batch ends here
        one()


def errors(place: Path) -> Path:
    """Where a child's standard error goes."""
    return place.with_name("errors")


def bounded(place: Path, work: Path) -> "Watch":
    """Put the limits on this process."""
    handle = os.open(errors(place), os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    faulthandler.disable()
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.dont_write_bytecode = True
    tempfile.tempdir = str(work)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + ROOM, now + ROOM))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    watch = Watch(work)
    sys.addaudithook(watch)
    return watch


class Watch:
    """Notes what a reader may not do, by Python's audit events, and stops it."""

    def __init__(self, work: Path) -> None:
        self.work = os.path.realpath(work)
        self.on = False
        self.seen: list[str] = []

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in NEVER or (event in CHANGES and self.outside(event, args)):
            self.stop(event, args)
        if event == "open" and args[2] & WRITES and not isinstance(args[0], int):
            if self.out(args[0]):
                self.stop(event, args)

    def outside(self, event: str, args: tuple[Any, ...]) -> bool:
        below = event not in ("os.truncate", "shutil.move") and isinstance(args[-1], int)
        if below and args[-1] >= 0:  # in a folder that is open, and was found fit to be
            return False
        named = args[:2] if event in ("os.rename", "os.link", "shutil.move") else args[:1]
        named = args[1:2] if event == "os.symlink" else named
        return any(self.out(one) for one in named)

    def out(self, path: Any) -> bool:
        if isinstance(path, int):
            return False
        real = os.path.realpath(os.fsdecode(path))
        return not (real == "/dev/null" or real == self.work or real.startswith(f"{self.work}/"))

    def stop(self, event: str, args: tuple[Any, ...]) -> None:
        self.seen.append(f"{event} {args!r}"[:500])
        raise PermissionError(f"{event} is not for a reader")


def tried(reader: Reader, place: Path, work: Path, watch: Watch) -> tuple[bytes, str, str]:
    """What became of an input, and of one that failed why and where."""
    watch.seen.clear()
    watch.on = True
    try:
        reader.read(place, work)
        outcome, wrong, where = ACCEPTED, "", ""
    except (UserError, Aside) as error:
        outcome, wrong, where = REFUSED, faults(error), "a sentence"
    except BaseException as error:
        outcome, wrong, where = FAILED, traceback.format_exc(), inner(error)
    finally:
        watch.on = False
    if watch.seen:
        wrong, where = "\n".join([*watch.seen, wrong]), watch.seen[0].split()[0]
    return (FAILED, wrong, where) if wrong else (outcome, "", "")


def faults(error: Exception) -> str:
    """What is wrong with a refusal: no single sentence, or one for want of memory or of room."""
    text, chain = str(error), [*causes(error)]
    if CONTROL.search(text) or len(text) > LONGEST:
        return f"no single sentence: {text[:LONGEST]!r}"
    if "cannot be written" in text:
        return f"a disk that is not full is blamed: {text}"
    # Of what others say, not of our own words, in which a name may be anything; of that the first
    # line, as C++ names its allocator below it.
    others = [one for one in chain if not isinstance(one, (UserError, Aside))]
    lines = [str(one).partition("\n")[0] for one in others]
    if any(isinstance(one, MemoryError) for one in chain) or any("alloc" in one for one in lines):
        return "".join(traceback.format_exception(error))
    return ""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def inner(error: BaseException) -> str:
    """The last line of ours that an error came through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if str(ROOT) in f.filename]
    ours = [f for f in frames if "/.venv/" not in f.filename and "/bench/" not in f.filename]
    last = (ours or frames)[-1]
    return f"{type(error).__name__} {Path(last.filename).name} {last.lineno}"


# --- files ---


def fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def write(case: Case, place: Path) -> None:
    """The files of an input; a name that no file can have is left out."""
    for name, content in case.items():
        path = place / name
        try:
            if ".." in path.parts or not path.is_relative_to(place):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Link):
                path.symlink_to(content.to)
            elif isinstance(content, Pipe):
                os.mkfifo(path)
            else:
                path.write_bytes(content)
        except (OSError, ValueError):
            continue


def keep(kept: Path, name: str, where: str, why: str, place: Path) -> None:
    """An input that failed, unless a smaller one is kept that failed in the same place."""
    folder = kept / f"{name}-{re.sub(r'[^A-Za-z0-9]+', '-', where)}"
    new = size(place)
    if folder.exists():
        if size(folder / "input") <= new:
            return
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    shutil.copytree(place, folder / "input", symlinks=True, copy_function=copied)
    (folder / "why.txt").write_text(why, errors="replace")


def copied(source: str, to: str) -> None:
    if Path(source).is_fifo():
        os.mkfifo(to)
    else:
        shutil.copyfile(source, to, follow_symlinks=False)


def size(folder: Path) -> int:
    return sum(p.lstat().st_size for p in folder.rglob("*") if p.is_file())
