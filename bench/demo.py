"""The demo as `make demo` builds it: seconds to the open app, index size, fidelity, accuracy.

A real build into an empty cache, by the command line, then the app until it answers, both timed
from outside. The whole is repeated, so the seconds have a spread. One dropout member against
training one network is measured apart, in turns.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from attribution.build import Build
from attribution.data import Dataset
from attribution.engine import Engine
from attribution.features import block, projected
from attribution.making import examples
from attribution.models import network
from attribution.records import BuildSpec, DataSpec, RunSpec
from attribution.train import train

from .rows import Options, Row, interleaved, ratios, row
from .running import DEMO, app, command

SPEC = BuildSpec(data=DataSpec(noise=0.1))
TOP = 20


def measure(options: Options) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        caches = [Path(folder) / str(r) for r in range(options.times(3))]
        timed = [timed_demo(cache, options.threads) for cache in caches]
        build_id = json.loads(command(caches[0], options.threads, "list"))[0]["build"]
        build = Engine(caches[0]).open(build_id)
        return [
            row(
                "make demo after installation, to the open app",
                [sum(t.values()) for t in timed],
                "s",
                at_most=180,
            ),
            *(row(f"of it: {stage}", [t[stage] for t in timed], "s") for stage in timed[0]),
            *stage_rows(caches),
            *fidelity_rows(build),
            *size_rows(build),
            *member_rows(options, build.data),
        ]


def timed_demo(cache: Path, threads: int) -> dict[str, float]:
    """Seconds of the build, and of the app until it answers."""
    began = time.perf_counter()
    command(cache, threads, "build", *DEMO)
    built = time.perf_counter()
    with app(cache):
        return {"build": built - began, "start of the app": time.perf_counter() - built}


def stage_rows(caches: list[Path]) -> Iterator[Row]:
    """What the build itself notes of its stages."""
    noted = [Engine(cache).builds()[0]["seconds"] for cache in caches]
    for stage in noted[0]:
        yield row(f"of the build: {stage}", [n[stage] for n in noted], "s")


def fidelity_rows(build: Build) -> Iterator[Row]:
    """Accuracy, and how many of the exact scores' hits the squeezed index finds."""
    exact_TN = build.scores()
    order_TN = np.argsort(-exact_TN, axis=1, kind="stable")
    proponents, opponents = [], []
    for t, order_N in enumerate(order_TN):
        answer = build.query(t, TOP, "label")
        proponents.append(overlap(order_N[:TOP], [h.train_id for h in answer.proponents]))
        opponents.append(overlap(order_N[-TOP:], [h.train_id for h in answer.opponents]))
    yield row(f"top-{TOP} overlap with the exact scores, {len(order_TN)} tests",
              float(np.mean(proponents)), "", at_least=0.8)  # fmt: skip
    yield row(f"bottom-{TOP} overlap with the exact scores", float(np.mean(opponents)), "")
    yield row("test accuracy of the ensemble", build.summary["accuracy"], "")


def overlap(wanted: np.ndarray, found: list[int]) -> float:
    return len(set(wanted.tolist()) & set(found)) / len(wanted)


def size_rows(build: Build) -> Iterator[Row]:
    stored = build.summary["bytes"]
    count, members = build.summary["train"], build.summary["members"]
    yield row(
        f"index of {members} members", stored["index"] / count, "bytes an example", at_most=4096
    )
    for name in ("queries", "features", "checkpoints"):
        yield row(f"beside it: {name}", stored[name] / 1e6, "MB")


def member_rows(options: Options, data: Dataset) -> Iterator[Row]:
    """One dropout member's features of the training set against training one network."""
    half = examples(SPEC, data, data.train)
    fresh = network(SPEC.model, data, SPEC.width, SPEC.seed)
    recipe = RunSpec(data_id=data.id, model=SPEC.model, epochs=SPEC.epochs)
    made = projected(fresh, half, SPEC.features)
    seconds = interleaved(
        options.times(3),
        {
            "train": lambda: train(fresh, half.x_N, half.target_N, recipe),
            "member": lambda: block(made.view(0, SPEC.p), half, made.projections),
        },
        warm=False,
    )
    yield row(
        f"features of one dropout member ({len(half):,} examples) / training one network",
        ratios(seconds["member"], seconds["train"]),
        "x",
        at_most=0.2,
    )
    yield row("training one network", seconds["train"], "s")
