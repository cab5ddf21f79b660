"""A pretrained network, fine-tuned and attributed: EfficientNet-Lite0 with its ImageNet weights.

The first images of CIFAR-10 (--cifar10) at 128 x 128 pixels, 10 % of the training labels flipped;
trained on from the weights that `bench.lite0` takes out of a package, and without them. Needs that
package (requirements-dev.txt).
"""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attribution.build import Build
from attribution.data import DATASETS
from attribution.engine import Engine
from attribution.records import BuildSpec, DataSpec, EstimatorSpec, FeatureSpec, LoraSpec

from . import lite0
from .images import cifar10_start, named
from .rows import Options, Row, row

TRAIN, TEST = 200, 60
CODE = str(Path(lite0.__file__))
SPEC = BuildSpec(
    data=DataSpec(name="cifar10", noise=0.1),
    model=f"{CODE}:network",
    preprocess=f"{CODE}:larger",
    models=1,
    masks=0,
    strategy="naive",
    epochs=15,
    features=FeatureSpec(ka=16, kg=2),  # of a hundred layers
    lora=LoraSpec(targets=("conv_pw", "conv_pwl", "classifier"), epochs=2),
    estimator=EstimatorSpec(q="training", q_power=0.75),
    index_dims=128,
)
ENSEMBLES: Mapping[str, dict[str, Any]] = {
    "1 network": {},
    "1 network × 3 masks": {"strategy": "dropout", "masks": 3},
    "1 network × 2 LoRA adapters": {"strategy": "lora", "adapters": 2},
}
HITS = 10


def measure(options: Options) -> list[Row]:
    images = cifar10_start(named(options.cifar10), TRAIN, TEST)
    DATASETS["cifar10"] = lambda: images
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(options.cache or Path(folder) / "cache", Path(folder))
        torch.save(lite0.state(), Path(folder) / "lite0.pt")
        started = engine.brought(SPEC, (), str(Path(folder) / "lite0.pt"), False)
        plain = engine.build(SPEC)
        rows.append(row("test accuracy without pretrained weights", plain["accuracy"], ""))
        for name, axes in ENSEMBLES.items():
            summary = engine.build(replace(started, **axes))
            build, seconds = engine.open(summary["build"]), summary["seconds"]
            if name == "1 network":
                rows.append(row("test accuracy with them", summary["accuracy"], ""))
                rows.append(row("parameters covered", summary["coverage"], "", at_least=0.95))
                rows.append(row("fine-tuning", seconds["train"], "s"))
            rows.append(
                row(f"{name}: basis and features", seconds["basis"] + seconds["features"], "s")
            )
            rows.append(row(f"{name}: of the top {HITS}, with the query's label", alike(build), ""))
            known: Any = build.known()
            rows.append(row(f"{name}: flipped labels, average precision", known["ap"], ""))
    return rows


def alike(build: Build) -> float:
    """Share of the strongest proponents of every test label that have that label."""
    labels_TH = build.train_labels_N[build.top(HITS)]
    return float(np.mean(labels_TH == build.test_labels_T[:, None]))
