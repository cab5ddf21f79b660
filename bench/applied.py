"""Test accuracy before and after a review: the demo's first 500 suspects, decided by the truth.

Five networks on the demo's data (10 % of the labels flipped); the 500 most suspicious training
images are kept or relabelled as a reviewer who makes no mistake would; the same five networks are
trained again. Each repeat has other flips and other networks.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from attribution.data import clean_labels
from attribution.engine import Engine
from attribution.records import BuildSpec, DataSpec
from attribution.strategies import axes

from .rows import Options, Row, row

REVIEWED = 500


def measure(options: Options) -> list[Row]:
    accuracies, mended, broken, wrong = [], [], [], []
    for seed in range(options.times(3)):
        with tempfile.TemporaryDirectory() as folder:
            place = options.cache or Path(folder) / "cache"
            engine = Engine(place, Path(folder))
            data = DataSpec(noise=0.1, noise_seed=seed)
            spec = BuildSpec(data=data, strategy="naive", **axes("naive", {}), seed=seed)
            build_id = engine.build(spec)["build"]
            wrong.append(reviewed(engine, build_id))
            made = engine.revise(build_id)
            then = engine.build(engine.revised_spec(build_id, made.id))["build"]
            found = engine.changes(build_id, then).summary
            clean = replace(spec, data=DataSpec())
            accuracies.append((found.before, found.after, engine.build(clean)["accuracy"]))
            mended.append(found.mended)
            broken.append(found.broken)
    was, now, best = zip(*accuracies, strict=True)
    what = f"demo, first {REVIEWED} reviewed by the truth"
    return [
        row(f"{what}: wrong labels among them", wrong, ""),
        row(f"{what}: test accuracy before", was, ""),
        row(f"{what}: test accuracy after", now, ""),
        row(f"{what}: the same networks without a wrong label", best, ""),
        row(f"{what}: mistakes mended", mended, "of 500"),
        row(f"{what}: new mistakes", broken, "of 500"),
    ]


def reviewed(engine: Engine, build_id: str) -> int:
    """Decide on the most suspicious by the labels before noise; how many were wrong."""
    build = engine.open(build_id)
    clean_N = clean_labels(engine.store, build.data_id)
    assert clean_N is not None
    first = build.mislabels().index[:REVIEWED].to_numpy()
    for n in first:
        right = int(clean_N[n])
        same = right == build.train_labels_N[n]
        engine.decisions.decide(
            build.data_id,
            build.train_ids[n],
            "keep" if same else "relabel",
            label=None if same else right,
            build_id=build_id,
        )
    return int(np.sum(clean_N[first] != build.train_labels_N[first]))
