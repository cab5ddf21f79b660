"""Two workers of a Ray cluster against one, featurizing: the same members, from nothing.

Two local clusters one after the other in turns, of one processor and of two, a task on one thread.
Networks and directions are made before, and the workers have done a task, so that features alone
are timed.
"""

import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from attribution.cluster import Ray, opened
from attribution.data import dataset
from attribution.making import Making, side_by_side
from attribution.records import BuildSpec, silent
from attribution.store import Store

from .rows import Options, Row, ratios, row

SPEC = BuildSpec(models=4, masks=16, epochs=2)
WORKERS = (1, 2)


def measure(options: Options) -> list[Row]:
    torch.set_num_threads(1)
    spec = replace(SPEC, seed=options.seed)
    seconds: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        making = Making(Store(root), spec, dataset(Store(root), spec.data), silent)
        making.places()
        for _ in range(options.times(3)):
            for workers in WORKERS:
                seconds[workers].append(featurizing(root, spec, workers))
    tasks = len(list(side_by_side(making.members)))
    what = f"MNIST-5k, MLP, {spec.models} networks x {spec.masks} masks, {tasks} tasks"
    return [
        row(
            f"features by one Ray worker / by two ({what})",
            ratios(seconds[1], seconds[2]),
            "x",
            at_least=1.7,
        ),
        *(row(f"features by {w} Ray workers", seconds[w], "s") for w in WORKERS),
    ]


def featurizing(root: Path, spec: BuildSpec, workers: int) -> float:
    """Seconds for the features of all members by so many workers, which are up before."""
    shutil.rmtree(root / "features", ignore_errors=True)
    with opened("ray", "", root, workers) as who:
        assert isinstance(who, Ray)
        store = Store(root)
        making = Making(store, spec, dataset(store, spec.data), silent, who)
        # A worker reads the data set at its first task, which takes it longer than the others wait.
        list(who.map(making, "sites", [(making.members[0].checkpoint, 0)] * workers))
        began = time.perf_counter()
        assert len(making.blocks) == len(making.members)
        return time.perf_counter() - began
