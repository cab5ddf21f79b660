"""Peak memory and disk of a build by numbers of examples and members, each in its own process.

An MLP on 28 x 28 digits with 1,344 features a member and 1,024 dimensions in the index. Examples
beyond the 4,500 at hand are drawn from them again, with noise on every pixel. The peak is that of
the whole process, which holds the images as the network takes them (3 KB each), the libraries
(given as "nothing") and what the build needs. Disk is told by the estimate before it starts.
"""

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from attribution.data import DATASETS, dataset, mnist5k
from attribution.engine import Engine
from attribution.records import BuildSpec, DataSpec, FeatureSpec
from attribution.store import Store

from .rows import ROOT, Options, Row, row

CASES = ((5_000, 4), (20_000, 4), (20_000, 16), (50_000, 4), (50_000, 50))
NETWORKS = 2  # of the members; the others are masks
BOUND = 2.0  # GB
NOISE = 12  # standard deviation, of 255


def measure(options: Options) -> list[Row]:
    rows = [row("peak memory of nothing but the libraries", child(0, 0, Path())["peak"], "GB")]
    for count, members in CASES:
        with folder(options, count, members) as cache:
            made = child(count, members, cache)
        what = f"{count:,} x {members} members of {made['features']:,}"
        rows += [
            row(f"peak memory of a build, {what}", made["peak"], "GB", at_most=BOUND),
            row(f"disk told before, {what}", made["told"], "GB"),
            row(f"disk kept after, {what}", made["kept"], "GB"),
            row(f"seconds of features and fit, {what}", made["seconds"], "s"),
        ]
    return rows


@contextmanager
def folder(options: Options, count: int, members: int) -> Iterator[Path]:
    """A cache that has the data already, so that making them is not measured; gone at the end."""
    with tempfile.TemporaryDirectory(dir=options.cache) as made:
        named(count)
        dataset(Store(Path(made)), spec(count, members).data)
        yield Path(made)


def child(count: int, members: int, cache: Path) -> dict[str, Any]:
    """What `build` measures, in a process of its own."""
    words = [sys.executable, "-m", "bench.memory", str(count), str(members), str(cache.absolute())]
    done = subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    return dict(json.loads(done.stdout))


def spec(count: int, members: int) -> BuildSpec:
    return BuildSpec(
        data=DataSpec(name=f"resampled-{count}"),
        models=NETWORKS,
        masks=members // NETWORKS,
        epochs=2,
        features=FeatureSpec(ka=32, kg=16),
    )


def named(count: int) -> None:
    """Let `--data` know the data."""
    DATASETS[f"resampled-{count}"] = partial(resampled, count)


def resampled(count: int) -> dict[str, np.ndarray]:
    """So many training examples, of real ones with noise; the test examples are the real ones."""
    whole, draw = mnist5k(), np.random.default_rng(0)
    chosen = draw.integers(0, len(whole["train_labels"]), count)
    images = whole["train_images"][chosen]
    for n in range(0, count, 4096):
        some = images[n : n + 4096]
        noise = (NOISE * draw.standard_normal(some.shape, np.float32)).astype(np.int16)
        images[n : n + 4096] = np.clip(some + noise, 0, 255)
    return {**whole, "train_images": images, "train_labels": whole["train_labels"][chosen]}


def build(count: int, members: int, cache: Path) -> dict[str, Any]:
    """Peak memory of this process in GB after a build, and its disk told before and kept after."""
    found: dict[str, Any] = {"stages": {}}

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    def report(stage: str, done: int, total: int) -> None:
        found["stages"][stage] = round(peak(), 3)
        print(f"{count} x {members}: {stage} {done}/{total}, {peak():.3f} GB", file=sys.stderr)

    if count:
        named(count)
        engine, asked = Engine(cache), spec(count, members)
        told = engine.estimate(asked)
        summary = engine.build(asked, report)
        kept = sum(p.stat().st_size for p in cache.rglob("*") if p.is_file())
        pixels = sum(p.stat().st_size for p in cache.glob("pixels/*/*"))
        features = np.load(next(cache.glob("features/*/train_phi.npy")), mmap_mode="r").shape[1]
        found |= {
            "told": (told.room + told.scratch) / 1e9,
            "kept": (kept - pixels) / 1e9,
            "features": features,
            "seconds": summary["seconds"]["features"] + summary["seconds"]["fit"],
        }
    return {**found, "peak": peak()}


if __name__ == "__main__":
    print(json.dumps(build(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))))
