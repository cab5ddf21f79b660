"""How well flipped labels are found: fused, by each signal alone, and by cleanlab's ranking.

The demo's networks on MNIST-5k (5 networks, 4 masks each instead of 20), with 5, 10 and 20 % of the
training labels flipped, uniformly or by class, another seed of noise and networks each time. The
truth is read only here. cleanlab ranks by self-confidence on the out-of-fold probabilities of the
very networks behind the signal "unseen": those at the end of training, as is usual, and for
comparison their mean over the epochs. `expected` is the sum of the fused probabilities, to be
compared with the number flipped. With --cifar10, a narrow ResNet-9 on its first images with labels
flipped by class, too. --cache keeps the builds; a second run is quick.
"""

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from cleanlab.rank import get_label_quality_scores
from sklearn.metrics import average_precision_score

from attribution.build import Build
from attribution.data import DATASETS, clean_labels
from attribution.engine import Engine
from attribution.folds import folds_id
from attribution.mislabels import fused
from attribution.records import BuildSpec, DataSpec
from attribution.strategies import ONE_LOW_RATE

from .images import cifar10_start
from .rows import Options, Row, row

NOISES = [(kind, noise) for kind in ("uniform", "class") for noise in (0.1, 0.2, 0.05)]
REACH = 0.975  # of the fused score, 10 % uniform
BINS = 10
IMAGES, TESTS = 10_000, 1000  # of CIFAR-10


def measure(options: Options) -> list[Row]:
    with kept(options.cache) as cache:
        engine, rows = Engine(cache), []
        for kind, noise in NOISES:
            specs = [
                BuildSpec(
                    data=DataSpec(noise=noise, noise_kind=kind, noise_seed=seed),
                    seed=seed,
                    masks=4,
                )
                for seed in range(options.times(3))
            ]
            reach = REACH if (kind, noise) == ("uniform", 0.1) else None
            rows += cell(engine, f"{noise:.0%} {kind}", specs, reach)
        if options.cifar10 is not None:
            images = cifar10_start(options.cifar10, IMAGES, TESTS)
            DATASETS["cifar10"] = lambda: images
            spec = BuildSpec(
                data=DataSpec(name="cifar10", noise=0.1, noise_kind="class"),
                model="resnet9",
                width=0.125,
                epochs=10,
                **ONE_LOW_RATE,
                models=3,
                masks=2,
            )
            rows += cell(engine, f"CIFAR-10, {IMAGES:,} images, 10% class", [spec], None)
        return rows


@contextmanager
def kept(cache: Path | None) -> Iterator[Path]:
    """The folder given, or one for the time being."""
    if cache is not None:
        yield cache
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "cache"


def cell(engine: Engine, name: str, specs: list[BuildSpec], reach: float | None) -> list[Row]:
    """Rows of one kind of noise, over its seeds."""
    found: dict[str, list[float]] = defaultdict(list)
    expected, off, best = [], [], []
    for spec in specs:
        build = engine.open(engine.build(spec)["build"])
        engine.folds(build.id)
        clean_N = clean_labels(engine.store, build.data_id)
        assert clean_N is not None
        wrong_N = clean_N != build.train_labels_N
        precision = {
            ranking: float(average_precision_score(wrong_N, score_N))
            for ranking, score_N in rankings(engine, build).items()
        }
        for ranking, value in precision.items():
            found[ranking].append(value)
        alone_N = fused(build.train_labels_N, replace(build.evidence(), unseen_NC=None))
        found["fused, without folds"].append(float(average_precision_score(wrong_N, alone_N)))
        best.append(precision.pop("fused") - max(precision.values()))
        score_N = build.mislabels().sort_index()["score"].to_numpy()
        expected.append(float(score_N.sum() / wrong_N.sum()))
        off.append(calibration(score_N, wrong_N))
    count = f"{len(specs)} seed{'s' if len(specs) > 1 else ''}"
    what = f"{name}, {count}"
    rows = [
        row(
            f"{what}: {ranking}, average precision",
            values,
            "",
            at_least=reach if ranking == "fused" else None,
        )
        for ranking, values in found.items()
    ]
    return [
        *rows,
        row(f"{what}: fused, less the best of the others", best, "", at_least=0),
        row(f"{what}: wrong labels expected, of those flipped", expected, ""),
        row(f"{what}: calibration error in {BINS} bins", off, ""),
    ]


def rankings(engine: Engine, build: Build) -> dict[str, np.ndarray]:
    """Every ranking to compare, high where the label is suspicious, (N,)."""
    frame = build.mislabels().sort_index()
    made = engine.store.find("folds", folds_id(build.folds_spec))
    assert made is not None
    ends = {"cleanlab": "probs", "cleanlab on means over the epochs": "belief"}
    return {
        "fused": frame["score"].to_numpy(),
        **{c.removeprefix("signal_"): frame[c].to_numpy() for c in frame if "signal_" in str(c)},
        **{
            name: 1 - get_label_quality_scores(build.train_labels_N, whole(made.array(array)))
            for name, array in ends.items()
        },
    }


def whole(probs_NC: np.ndarray) -> np.ndarray:
    """Probabilities that sum to one in float64."""
    exact_NC = probs_NC.astype(np.float64)
    return exact_NC / exact_NC.sum(1, keepdims=True)


def calibration(score_N: np.ndarray, wrong_N: np.ndarray) -> float:
    """Expected calibration error: |probability - share wrong|, mean over equal bins by size."""
    bin_N = np.minimum((score_N * BINS).astype(int), BINS - 1)
    gaps = [abs(float((score_N - wrong_N)[bin_N == b].sum())) for b in range(BINS)]
    return sum(gaps) / len(score_N)
