"""How well the demo's flipped labels are found, against out-of-fold self-confidence.

The demo's build (10 % of the training labels flipped uniformly) with another seed of noise and
networks each time; the truth is read only here. Out-of-fold self-confidence, the baseline: five
networks of the same kind and recipe, each trained on four fifths, and 1 - p of the given label on
the fifth it did not see. Both train five networks.
"""

import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedKFold

from attribution.data import clean_labels
from attribution.engine import Build, Engine, examples
from attribution.metrics import detection
from attribution.models import network
from attribution.records import BuildSpec, DataSpec, RunSpec
from attribution.train import probabilities, train

from .rows import Options, Row, row

FOLDS = 5
FLIPPED = 450


def measure(options: Options) -> list[Row]:
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    seeds = range(options.times(3))
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            engine = Engine(Path(folder) / "cache")
            spec = BuildSpec(data=DataSpec(noise=0.1, noise_seed=seed), seed=seed)
            build = engine.open(engine.build(spec)["build"])
            clean_N = clean_labels(engine.store, build.data_id)
            assert clean_N is not None
            wrong_N = clean_N != build.train_labels_N
            for name, score_N in rankings(build, seed).items():
                scores = detection(wrong_N, score_N, at=(FLIPPED,))
                found[name, "average precision"].append(scores["ap"])
                found[name, "AUC"].append(scores["auc"])
                found[name, f"precision at {FLIPPED}"].append(
                    scores["precision_at_k"][str(FLIPPED)]
                )
    return [
        row(
            f"{name}: {metric}, {len(seeds)} seeds",
            values,
            "",
            at_least=0.95 if (name, metric) == ("mislabels", "average precision") else None,
        )
        for (name, metric), values in found.items()
    ]


def rankings(build: Build, seed: int) -> dict[str, np.ndarray]:
    """Every ranking to compare, high where the label is suspicious, (N,)."""
    frame = build.mislabels().sort_index()
    signals = [c for c in frame.columns if c.startswith("signal_")]
    return {
        "mislabels": frame["score"].to_numpy(),
        "out-of-fold self-confidence": out_of_fold(build, seed),
        **{f"alone, {c.removeprefix('signal_')}": frame[c].to_numpy() for c in signals},
    }


def out_of_fold(build: Build, seed: int) -> np.ndarray:
    """1 - p of the given label by a network that did not train on the example, (N,)."""
    spec, whole = build.spec, examples(build.spec, build.data, build.data.train)
    doubt_N = np.empty(len(whole))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    for fold, (seen, held) in enumerate(folds.split(doubt_N, build.train_labels_N)):
        run = RunSpec(
            data_id=build.data_id,
            model=spec.model,
            width=spec.width,
            epochs=spec.epochs,
            seed=1000 * seed + fold,
        )
        fresh = network(spec.model, build.data, spec.width, run.seed)
        some = whole[seen]
        train(fresh, some.x_N, some.target_N, run)
        probs_HC = probabilities(fresh, whole.x_N[held]).numpy()
        doubt_N[held] = 1 - probs_HC[np.arange(len(held)), build.train_labels_N[held]]
    return doubt_N
