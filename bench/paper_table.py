"""Every kind of ensemble on one ground truth: fidelity (LDS) and what it costs.

MNIST-5k and the paper's MLP (arXiv 2405.17293, section 4): networks retrained on random halves of
the training set, never those that attribute. Every arm has its damping and power of q tuned alike,
on 100 test images kept apart; the LDS is of the other 400, with a 95 % interval over the halves.
What is computed stays in `--cache`, so a second run prints the table in minutes. `--seed` takes
other networks.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attribution import strategies
from attribution.data import dataset
from attribution.engine import Making, examples, mean_q, seconds, unique, whitened
from attribution.index import weights
from attribution.metrics import ceiling, interval, lds
from attribution.records import (
    LOSS,
    BuildSpec,
    EstimatorSpec,
    FeatureSpec,
    RunSpec,
    TruthSpec,
    silent,
)
from attribution.store import Store
from attribution.truth import Truth, truth

from .rows import Options, Row, row

SUBSETS, SEEDS = 100, 5
TUNED_ON = 100  # test images on which damping and power are chosen
DAMPINGS = (0.1, 0.3, 1.0)
POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
Size = tuple[int, int]  # networks, views of each
RANDOM = FeatureSpec(basis="random", ka=32, kg=16)
OWN = FeatureSpec(ka=64, kg=8)
WIDE = FeatureSpec(ka=128, kg=8)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One kind of ensemble, and the sizes of it that stand in the table."""

    name: str
    strategy: str
    features: FeatureSpec
    sizes: tuple[Size, ...]
    axes: Mapping[str, Any] = field(default_factory=dict)
    estimator: str = "trak"
    q: str = "members"
    powers: tuple[float, ...] = POWERS

    def spec(self, seed: int) -> BuildSpec:
        return BuildSpec(
            strategy=self.strategy,
            models=max(i for i, _ in self.sizes),
            **strategies.axes(self.strategy, self.axes),
            features=self.features,
            estimator=EstimatorSpec(name=self.estimator, q=self.q),
            seed=seed,
        )


def views(strategy: str, axis: str, most: int, **more: Any) -> dict[str, Any]:
    """The fields of an arm with 1 and 5 networks, and 1 to `most` views of each."""
    # One snapshot of five would be the first, which nobody would take.
    steps = [most] if axis == "snapshots" else [d for d in (1, 5, 20) if d <= most]
    sizes = tuple((i, d) for i in (1, 5) for d in steps)
    return {"strategy": strategy, "axes": {axis: most, **more}, "sizes": sizes}


NETWORKS = ((1, 1), (2, 1), (5, 1), (10, 1))
FIVE = ((1, 1), (5, 1))
REDRAWN = {"redraw": True}  # every member has random directions of its own, as in the paper
MASKED = {"p": 0.2, **REDRAWN}
ARMS = (
    Arm(name="naive", strategy="naive", features=RANDOM, sizes=NETWORKS, axes=REDRAWN),
    Arm(name="naive, the paper's q", strategy="naive", features=RANDOM, sizes=NETWORKS,
        axes=REDRAWN, powers=(1.0,)),
    Arm(name="dropout", features=RANDOM, **views("dropout", "masks", 20, **MASKED)),
    Arm(name="dropout, the paper's q", features=RANDOM, powers=(1.0,),
        **views("dropout", "masks", 20, **MASKED)),
    Arm(name="naive", strategy="naive", features=OWN, sizes=NETWORKS),
    Arm(name="naive, q of training", strategy="naive", features=OWN, sizes=NETWORKS, q="training"),
    Arm(name="naive, q of training", strategy="naive", features=WIDE, sizes=FIVE, q="training"),
    Arm(name="snapshots", features=OWN, **views("snapshots", "snapshots", 5)),
    Arm(name="snapshots, q of training", features=WIDE, q="training",
        **views("snapshots", "snapshots", 5)),
    Arm(name="naive, Grad-Dot", strategy="naive", features=OWN, sizes=FIVE, estimator="graddot"),
    Arm(name="naive, Grad-Cos", strategy="naive", features=OWN, sizes=FIVE, estimator="gradcos"),
    Arm(name="naive, EK-FAC", strategy="naive", features=OWN, sizes=FIVE, estimator="ekfac"),
    Arm(name="snapshots, TracIn", features=OWN, estimator="tracin",
        **views("snapshots", "snapshots", 5)),
    Arm(name="LoRA", features=OWN, **views("lora", "adapters", 5)),
    Arm(name="forward-only dropout", features=OWN, **views("forward", "masks", 20)),
    Arm(name="dropout", features=OWN, **views("dropout", "masks", 20)),
    Arm(name="dropout, q of training", features=OWN, q="training",
        **views("dropout", "masks", 20)),
    Arm(name="forward-only dropout", features=RANDOM, **views("forward", "masks", 20, **MASKED)),
    Arm(name="kernel blocks", features=FeatureSpec(basis="random", ka=64, kg=32),
        **views("blocks", "blocks", 5, **REDRAWN)),
    Arm(name="snapshots", features=RANDOM, **views("snapshots", "snapshots", 5, **REDRAWN)),
    Arm(name="short fine-tunes", features=RANDOM,
        **views("finetunes", "finetunes", 5, **REDRAWN)),
    Arm(name="LoRA", features=RANDOM, **views("lora", "adapters", 5, **REDRAWN)),
    Arm(name="dropout, one draw of directions", features=RANDOM,
        **views("dropout", "masks", 20, p=0.2)),
    Arm(name="draws without dropout", features=RANDOM, **views("draws", "draws", 20)),
    Arm(name="dropout, a mask a member", features=RANDOM,
        **views("dropout", "masks", 20, shared_masks=True, **MASKED)),
)  # fmt: skip


def measure(options: Options) -> list[Row]:
    store = Store(options.cache or Path("cache"))
    found = ground_truth(store, options)
    made = store.find("truth", found.id)
    parts = [store.find("retrained", name) for name in made.manifest["parts"]] if made else []
    minutes = seconds(p for p in parts if p) / 60 / found.margins_SRT.shape[1] * 3
    rows = [row(f"retraining {SUBSETS} halves x 3 networks", minutes, "min", at_most=12)]
    top = ceiling(found.margins_SRT)
    if top is not None:
        rows.append(row("ceiling: no attribution can be above", top, "LDS"))
    for arm in ARMS:
        making = Making(store, arm.spec(options.seed), data_of(store), silent)
        for size, tuned in tune(making, arm, found).items():
            rows.append(arm_row(making, arm, size, tuned))
            print(f"{rows[-1].value:.3f} {rows[-1].what}", file=sys.stderr, flush=True)
    return rows


def data_of(store: Store) -> Any:
    return dataset(store, BuildSpec().data)


def ground_truth(store: Store, options: Options) -> Truth:
    """Retrained networks on random halves."""
    blank, data = BuildSpec(), data_of(store)
    halves = (examples(blank, data, data.train), examples(blank, data, data.test))
    spec = TruthSpec(
        run=RunSpec(data_id=data.id, model=blank.model, epochs=blank.epochs),
        subsets=SUBSETS,
        seeds=options.times(SEEDS),
    )
    return truth(store, data, *halves, spec)


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The settings that are best on the images kept apart, and how they do on the others."""

    lds: float
    low: float
    high: float
    damping: float
    power: float


def tune(making: Making, arm: Arm, found: Truth) -> dict[Size, Tuned]:
    """For each size of an ensemble the best settings."""
    best: dict[Size, tuple[float, float, float, np.ndarray]] = {}
    dampings = DAMPINGS if arm.estimator in ("trak", "ekfac") else (0.0,)
    powers = (0.0,) if arm.estimator in LOSS else arm.powers
    for damping in dampings:
        predicted = predictions(making, arm, damping, powers, found.subsets_SN)
        for (size, power), predicted_TS in predicted.items():
            fit = lds(predicted_TS[:TUNED_ON], found.margins_ST[:, :TUNED_ON]).mean()
            if size not in best or fit > best[size][0]:
                best[size] = (float(fit), damping, power, predicted_TS[TUNED_ON:])
    out = {}
    for size, (_, damping, power, predicted_TS) in best.items():
        margins_ST = found.margins_ST[:, TUNED_ON:]
        low, high = interval(predicted_TS, margins_ST, np.random.default_rng(0))
        value = float(lds(predicted_TS, margins_ST).mean())
        out[size] = Tuned(lds=value, low=low, high=high, damping=damping, power=power)
    return out


def predictions(
    making: Making, arm: Arm, damping: float, powers: Sequence[float], subsets_SN: np.ndarray
) -> dict[tuple[Size, float], np.ndarray]:
    """Summed scores (T, S) of every size and power of q, in one pass over the members."""
    estimator = EstimatorSpec(name=arm.estimator, damping=damping)
    chosen_NS = torch.from_numpy(subsets_SN.T.copy()).float()
    count = len(making.members)
    total_TN = {size: torch.zeros(len(making.test), len(making.train)) for size in arm.sizes}
    for j, (w_NK, w_TK) in enumerate(whitened(making.members, making.blocks, estimator)):
        scores_TN = w_TK @ w_NK.mT
        for size in arm.sizes:
            if within(making, count, j, size):
                total_TN[size] += scores_TN
    out, ones_N = {}, torch.ones(len(chosen_NS))
    for size, scores_TN in total_TN.items():
        q_N = mean_q_of(making, arm, size)
        for power in powers:
            weight_N = weights(q_N, ones_N, EstimatorSpec(q_power=power))
            out[size, power] = (scores_TN @ (weight_N[:, None] * chosen_NS)).numpy()
    return out


def within(making: Making, count: int, j: int, size: Size) -> bool:
    """Whether the j-th of `count` members is in an ensemble of that size."""
    each = count // making.spec.models
    networks, most = size
    return j // each < networks and j % each < most


def mean_q_of(making: Making, arm: Arm, size: Size) -> torch.Tensor:
    if arm.q == "training":
        return making.training_q()
    beliefs = making.beliefs
    each = len(beliefs) // making.spec.models
    networks, most = size
    return mean_q([b for j, b in enumerate(beliefs) if j // each < networks and j % each < most])


def arm_row(making: Making, arm: Arm, size: Size, tuned: Tuned) -> Row:
    """One line of the table, with its share of what training and featurizing took."""
    networks, most = size
    share = networks / making.spec.models
    features = seconds(unique(making.blocks)) * share * min(1, most / views_of(making))
    training = seconds([*making.runs, *making.tuned, *making.adapters]) * share
    basis = f"{arm.features.basis} {arm.features.ka}x{arm.features.kg}"
    return row(
        f"{arm.name}, {networks} x {most}, {basis}: damping {tuned.damping:g}, q^{tuned.power:g}, "
        f"95 % {tuned.low:.3f} to {tuned.high:.3f}, training {training:.1f} s, "
        f"features {features:.1f} s",
        tuned.lds,
        "LDS",
    )


def views_of(making: Making) -> int:
    return len(making.members) // making.spec.models
