"""What a benchmark gives back: rows with their spread, the machine and the commit."""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from attribution.records import known

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Options:
    """What the command line may set; a benchmark reads those that it understands."""

    threads: int = os.cpu_count() or 1
    repeats: int = 0  # 0: the benchmark's own number
    cifar10: Path | None = None  # a folder with train.parquet of CIFAR-10 images
    cache: Path | None = None  # where a benchmark that takes long keeps what it computed
    seed: int = 0
    minutes: float = 0.0  # of the whole or of each part; 0: the benchmark's own number
    only: tuple[str, ...] = ()  # names of its parts; none: all

    def times(self, default: int) -> int:
        """How often to repeat."""
        return self.repeats or default

    def parts(self, kind: str, every: Sequence[str]) -> Sequence[str]:
        """Those asked for with --only, or all; raises UserError on a name that is not there."""
        for name in self.only:
            known(kind, name, tuple(every), "--only")
        return self.only or every


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured figure; `reach` is the bound it is held to, "" when it is only information."""

    what: str
    value: float  # mean over the repeats
    spread: float | None  # sample standard deviation over them; None with one
    unit: str
    reach: str
    ok: bool | None

    def document(self) -> dict[str, Any]:
        """The row as `--json` prints it."""
        return {**asdict(self), "machine": machine(), "commit": commit()}


def row(
    what: str,
    values: float | Sequence[float],
    unit: str,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
) -> Row:
    """A row from one value or the values of several repeats, held to at most one bound."""
    found = [float(v) for v in values] if isinstance(values, Sequence) else [float(values)]
    value = statistics.fmean(found)
    reach, ok = "", None
    if at_most is not None:
        reach, ok = f"<= {at_most:g}", value <= at_most
    if at_least is not None:
        reach, ok = f">= {at_least:g}", value >= at_least
    spread = statistics.stdev(found) if len(found) > 1 else None
    return Row(what=what, value=value, spread=spread, unit=unit, reach=reach, ok=ok)


LEAST = 0.5  # seconds; a shorter piece of work is repeated until it has filled them


def interleaved(
    repeats: int, work: Mapping[str, Callable[[], object]], *, warm: bool = True
) -> dict[str, list[float]]:
    """Seconds of each piece of `work`, taken in turns so that a busy machine slows all of them.

    Divide within one turn, by `ratios`, rather than means by means. With `warm`, one turn more
    goes first and is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeats + warm):
        for name, run in work.items():
            start, count, taken = time.perf_counter(), 0, 0.0
            while taken < LEAST:
                run()
                count, taken = count + 1, time.perf_counter() - start
            if turn >= warm:
                seconds[name].append(taken / count)
    return seconds


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """above / below of each turn."""
    return [a / b for a, b in zip(above, below, strict=True)]


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, as the README quotes them."""
    lines = ["| what | value | reach | |", "| --- | --- | --- | --- |"]
    for r in rows:
        spread = "" if r.spread is None else f" ± {r.spread:.2g}"
        verdict = {None: "", True: "ok", False: "MISSED"}[r.ok]
        lines.append(f"| {r.what} | {r.value:.4g}{spread} {r.unit} | {r.reach} | {verdict} |")
    return "\n".join([*lines, "", f"{machine()}; commit {commit()}"])


def machine() -> str:
    """Processor, cores, threads in use and versions."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return (
        f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def commit() -> str:
    """Short hash of the commit, with a "+" when files differ from it; "" outside a repository."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    found = git("rev-parse", "--short", "HEAD")
    return found + "+" if found and git("status", "--porcelain") else found
