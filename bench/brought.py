"""What people bring: 10,000 training and 2,000 test pictures in Parquet, 3 networks x 10 masks.

CIFAR-10's first images (--cifar10) in Hugging Face's layout, given to the command line as a user
gives them: ResNet-9 of 1/8 of its width, 10 epochs, 32 x 8 directions a layer. Minutes are of the
whole command, from reading the files to the index; memory is the peak of its process; disk is the
whole cache after it.
"""

import tempfile
import time
from pathlib import Path

import pyarrow.parquet as parquet

from attribution.engine import Engine

from .images import named
from .rows import Options, Row, row
from .running import command

TRAIN, TEST = 10_000, 2_000
ENSEMBLE = (
    "--model", "resnet9", "--width", ".125", "--models", "3", "--masks", "10", "--epochs", "10",
    "--dims", "32x8",
)  # fmt: skip


def measure(options: Options) -> list[Row]:
    cifar10 = named(options.cifar10)
    with tempfile.TemporaryDirectory() as folder:
        place, cache = Path(folder) / "pictures", options.cache or Path(folder) / "cache"
        place.mkdir()
        for half, count in (("train", TRAIN), ("test", TEST)):
            some = parquet.read_table(cifar10 / f"{half}.parquet").slice(0, count)
            parquet.write_table(some, place / f"{half}.parquet")
        began = time.perf_counter()
        command(cache, options.threads, "build", "--data", str(place), *ENSEMBLE)
        minutes = (time.perf_counter() - began) / 60
        (made,) = Engine(cache).builds()
        disk = sum(p.stat().st_size for p in cache.rglob("*") if p.is_file())
    what = f"{TRAIN:,} training and {TEST:,} test pictures in Parquet, 3 x 10 members"
    return [
        row(f"{what}: the whole build", minutes, "min", at_most=30),
        *(row(f"of it: {stage}", s, "s") for stage, s in made["seconds"].items()),
        row(f"{what}: peak memory", made["peak_memory"] / 1e9, "GB", at_most=3),
        row(f"{what}: disk", disk / 1e9, "GB", at_most=3),
        row(f"{what}: test accuracy of the ensemble", made["accuracy"], "", at_least=0.65),
    ]
