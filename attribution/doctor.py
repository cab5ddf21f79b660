"""What is wrong with an installation, a cache and a workspace, and what of it can be repaired.

Damaged artifacts are removed, because the next build makes them; so is what killed writers left.
What a person did, decisions and notes, is only looked at.
"""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from . import archives, jobs
from .decisions import integrity
from .engine import KIND_OF, Engine
from .making import spec_from
from .quantities import size
from .records import FORMAT, Report, UserError, silent
from .store import Damaged, Store, may_write
from .strategies import options

OLDEST = (3, 11)  # Python
LITTLE = 500 * 10**6  # bytes; the demo takes about half
PIN = re.compile(r"([\w.-]+)==([\w.]+)")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing looked at."""

    about: str  # environment, cache or workspace
    said: str
    trouble: bool = False
    done: str = ""  # how it was repaired

    @property
    def open(self) -> bool:
        """Whether it is trouble that is still there."""
        return self.trouble and not self.done


def examine(engine: Engine, repair: bool = False, report: Report = silent) -> Iterator[Finding]:
    """Look at everything, one finding after another; with `repair` mend what can be mended."""
    yield from environment(pins())
    yield from places(engine)
    yield from artifacts(engine, repair, report)
    yield from left_behind(engine, repair)
    yield from parts(engine)
    yield from work(engine)


def environment(pinned: dict[str, str]) -> Iterator[Finding]:
    """Python, the libraries, threads."""
    about, version = "environment", ".".join(map(str, sys.version_info[:3]))
    old = sys.version_info[:2] < OLDEST
    wanted = f"; {OLDEST[0]}.{OLDEST[1]} or newer is needed" if old else ""
    yield Finding(about=about, said=f"Python {version}{wanted}.", trouble=old)
    others = []
    for name, pin in pinned.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = "not installed"
        if found.partition("+")[0] != pin:
            others.append(f"{name} {found} (tested with {pin})")
    told = f"{', '.join(others)}: run `pip install -r requirements.txt`"
    right = f"The {len(pinned)} libraries have the versions that were tested"
    yield Finding(about=about, said=f"{told if others else right}.", trouble=bool(others))
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding(about=about, said=f"{torch.get_num_threads()} threads on {cores} cores.")


def pins() -> dict[str, str]:
    """The libraries and versions that this was tested with."""
    try:
        lines = metadata.requires("probable-cause") or []
    except metadata.PackageNotFoundError:
        listed = Path(__file__).parent.parent / "requirements.txt"
        lines = listed.read_text().splitlines() if listed.exists() else []
    return {m[1]: m[2] for line in lines if (m := PIN.fullmatch(line.strip()))}


def places(engine: Engine) -> Iterator[Finding]:
    """Whether cache and workspace can be written, and have room."""
    for what, folder in (("cache", engine.cache), ("workspace", engine.workspace)):
        try:
            may_write(folder, what)
        except UserError as error:
            yield Finding(about=what, said=str(error), trouble=True)
            continue
        if not folder.exists():
            yield Finding(about=what, said=f"{folder} is not there yet.")
            continue
        room = shutil.disk_usage(folder).free
        little = " is little: free some, or a build may end for want of it" * (room < LITTLE)
        said = f"{folder} can be written; {size(room)} free{little}."
        yield Finding(about=what, said=said, trouble=bool(little))


def artifacts(engine: Engine, repair: bool, report: Report) -> Iterator[Finding]:
    """Every manifest and checksum of the cache."""
    store, about = Store(engine.cache), "cache"
    names = store.names()
    foreign = sound = 0
    for done, (kind, name) in enumerate(names):
        report("check", done, len(names))
        try:
            store.check(kind, name)
            sound += 1
        except Damaged as error:
            done_ = ""
            if repair:
                store.remove(kind, name)
                done_ = "Removed; the same `build` makes it again."
            yield Finding(about=about, said=f"{error.found}.", trouble=True, done=done_)
        except UserError:
            foreign += 1
    report("check", len(names), len(names))
    yield Finding(about=about, said=f"{sound:,} artifacts are whole, every checksum right.")
    if foreign:
        said = f"{foreign:,} artifacts of another format than {FORMAT}, which other versions read."
        yield Finding(about=about, said=said)


def left_behind(engine: Engine, repair: bool) -> Iterator[Finding]:
    """What killed processes left: half artifacts, half archives, jobs without an end."""
    store, data = Store(engine.cache), engine.workspace / "data"
    for kind, name in store.abandoned():
        if repair:
            store.sweep(kind, name)
        said = f"What a killed writer left of {kind} {name}."
        yield Finding(about="cache", said=said, trouble=True, done="Removed." * repair)
    for name in archives.abandoned(data):
        if repair:
            archives.sweep_left(data, name)
        said = f"What was left of an archive, {data / name}."
        yield Finding(about="workspace", said=said, trouble=True, done="Removed." * repair)
    for job in jobs.dead(engine.cache):
        if repair:
            jobs.bury(engine.cache, job)
        said = f"The {job.command} that was job {job.id} ended without saying so ({job.error})."
        yield Finding(about="cache", said=said, trouble=True, done="Written down." * repair)
    if now := store.writing():
        yield Finding(about="cache", said=f"Being written now: {', '.join(now)}.")


def parts(engine: Engine) -> Iterator[Finding]:
    """Whether builds have what they are made of, here or on the remote."""
    for build in engine.store.all("build"):
        lacks = [
            f"{KIND_OF[kind]} {name}"
            for kind, names in build.manifest["parts"].items()
            for name in names
            if not engine.store.has(KIND_OF[kind], name)
        ]
        if lacks:
            more = f" and {len(lacks) - 3} more" if len(lacks) > 3 else ""
            again = shlex.join(["build", *options(spec_from(build.manifest["summary"]["spec"]))])
            said = (
                f"Build {build.manifest['id']} lacks {', '.join(lacks[:3])}{more}: run `{again}`."
            )
            yield Finding(about="cache", said=said, trouble=True)


def work(engine: Engine) -> Iterator[Finding]:
    """Decisions, names and notes: whole, of a version that can be read, about something known."""
    about = "workspace"
    for what, path in (("decisions", engine.decisions.path), ("notes", engine.notes.path)):
        if wrong := integrity(path):
            said = (
                f"{path} is damaged ({wrong}): put back a copy, or try `sqlite3 {path} .recover`."
            )
            yield Finding(about=about, said=said, trouble=True)
            continue
        try:
            counts = engine.decisions.counts() if what == "decisions" else {}
            noted = engine.notes.all() if what == "notes" else {}
        except UserError as error:
            yield Finding(about=about, said=str(error), trouble=True)
            continue
        if what == "decisions":
            yield Finding(about=about, said=f"{sum(counts.values()):,} decisions, whole.")
            if unknown := counts.keys() - engine.known_data():
                said = f"Decisions on data that is not in this cache: {', '.join(sorted(unknown))}."
                yield Finding(about=about, said=said)
        else:
            builds = {b.manifest["id"] for b in engine.store.all("build")}
            gone = f", {len(noted.keys() - builds)} of them on builds that are gone"
            said = f"Names and notes on {len(noted):,} builds{gone * bool(noted.keys() - builds)}."
            yield Finding(about=about, said=said)
