"""One kind of ensemble at several sizes, read on a ground truth: fidelity (LDS) and what it costs.

Damping and power of q are chosen on test images kept apart, alike for every arm; the LDS is of the
others. Each arm is read three ways: with the paper's q (the members' own, to the power 1), with the
members' q and its power chosen, and with q of training and its power chosen.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attribution import strategies
from attribution.data import Dataset
from attribution.estimators import whitening
from attribution.index import weights
from attribution.making import Making
from attribution.metrics import correlation, interval, lds, ranks
from attribution.records import (
    LOSS,
    BuildSpec,
    EstimatorSpec,
    FeatureSpec,
    TruthSpec,
    content_id,
    silent,
)
from attribution.store import Artifact, Draft, Store
from attribution.stored import mean_q, phi_of, unique
from attribution.truth import Truth

DAMPINGS = (0.1, 0.3, 1.0)
POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
READINGS = ("q^1", "q", "q of training")
Size = tuple[int, int]  # networks, views of each


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A data set, a network with its recipe, and the ground truth."""

    name: str
    blank: BuildSpec
    subsets: int
    seeds: int
    tuned_on: int  # test images on which damping and power are chosen

    def truth_spec(self, recipe: Any) -> TruthSpec:
        return TruthSpec(run=recipe, subsets=self.subsets, seeds=self.seeds)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One kind of ensemble, and the sizes of it that stand in the table."""

    name: str
    strategy: str
    features: FeatureSpec
    sizes: tuple[Size, ...]
    axes: Mapping[str, Any] = field(default_factory=dict)
    estimator: str = "trak"
    control: bool = False  # read with the first seed only

    def boxes(self) -> dict[Size, list[Size]]:
        """Ensembles that have to be made, and the sizes that are read off each."""
        largest = [
            (i, d)
            for i, d in self.sizes
            if not any(i <= a and d <= b and (i, d) != (a, b) for a, b in self.sizes)
        ]
        found: dict[Size, list[Size]] = {box: [] for box in largest}
        for size in self.sizes:
            box = next(b for b in largest if size[0] <= b[0] and size[1] <= b[1])
            found[box].append(size)
        return found

    def spec(self, setting: Setting, box: Size, seed: int) -> BuildSpec:
        axis = next(iter(strategies.STRATEGIES[self.strategy]), None)
        given = {**self.axes, **({axis: box[1]} if axis else {})}
        return replace(
            setting.blank,
            strategy=self.strategy,
            models=box[0],
            **strategies.axes(self.strategy, given),
            features=self.features,
            estimator=EstimatorSpec(name=self.estimator),
            seed=seed,
        )


@dataclass(frozen=True, eq=False)
class Read:
    """What an arm of one size reaches with one reading of q, and its costs."""

    lds: float
    low: float  # 95 % over the halves
    high: float
    damping: float
    power: float
    predicted_TS: np.ndarray
    costs: Mapping[str, float]  # seconds of training, features and a query; bytes


def read(
    store: Store, data: Dataset, setting: Setting, arm: Arm, found: Truth, seed: int
) -> dict[tuple[Size, str], Read]:
    """Every size and reading of an arm, computed once and kept."""
    out = {}
    for box, sizes in arm.boxes().items():
        spec = arm.spec(setting, box, seed)

        def fill(draft: Draft, spec: BuildSpec = spec, sizes: list[Size] = sizes) -> None:
            making = Making(store, spec, data, silent)
            _fill(draft, making, arm, sizes, found, setting.tuned_on)
            for features in unique(making.blocks):  # gigabytes, and made again in seconds
                shutil.rmtree(features.place)

        name = content_id("reading", data.id, spec, sizes, found.id, DAMPINGS, POWERS)
        made = store.make("reading", name, fill, {"arm": arm.name, "seed": seed})
        for size in sizes:
            for reading in READINGS:
                if (key := _key(size, reading)) in made.manifest["lds"]:
                    out[size, reading] = _read(made, key, _key(size, "costs"))
    return out


def _key(size: Size, what: str) -> str:
    return f"{size[0]}x{size[1]} {what}"


def _read(made: Artifact, key: str, costs: str) -> Read:
    fields = made.manifest["lds"][key]
    place = made.manifest["order"].index(key)
    predicted_TS = made.array("predicted", memory_map=True)[place]
    return Read(**fields, predicted_TS=predicted_TS, costs=made.manifest["costs"][costs])


def _fill(
    draft: Draft, making: Making, arm: Arm, sizes: list[Size], found: Truth, tuned_on: int
) -> None:
    best: dict[str, tuple[float, float, float, np.ndarray]] = {}
    for key, damping, power, predicted_TS in predictions(making, arm, sizes, found.subsets_SN):
        fit = float(lds(predicted_TS[:tuned_on], found.margins_ST[:, :tuned_on]).mean())
        if key not in best or fit > best[key][0]:
            best[key] = (fit, damping, power, predicted_TS[tuned_on:])
    rows = {}
    for key, (_, damping, power, predicted_TS) in best.items():
        margins_ST = found.margins_ST[:, tuned_on:]
        low, high = interval(predicted_TS, margins_ST, np.random.default_rng(0), 60)
        value = float(lds(predicted_TS, margins_ST).mean())
        rows[key] = {"lds": value, "low": low, "high": high, "damping": damping, "power": power}
    draft.array("predicted", np.stack([b[3] for b in best.values()]))
    serving = median(making.serving() for _ in range(3)) / len(unique(making.blocks))
    costs = {_key(size, "costs"): _costs(making, size, serving) for size in sizes}
    draft.note(lds=rows, order=list(rows), costs=costs)


def predictions(
    making: Making, arm: Arm, sizes: Sequence[Size], subsets_SN: np.ndarray
) -> Iterator[tuple[str, float, float, np.ndarray]]:
    """Summed scores (T, S) of every size and reading, damping and power; one pass over members."""
    dampings = DAMPINGS if arm.estimator in ("trak", "ekfac") else (0.0,)
    chosen_NS = torch.from_numpy(subsets_SN.T.copy()).float()
    total_TN = {
        (size, damping): torch.zeros(len(making.test), len(making.train))
        for size in sizes
        for damping in dampings
    }
    estimator = EstimatorSpec(name=arm.estimator)
    each = len(making.members) // making.spec.models
    for j, (member, made) in enumerate(zip(making.members, making.blocks, strict=True)):
        phi_NK, phi_TK = (phi_of(made, half, member, estimator) for half in ("train", "test"))
        for damping, scores_TN in scores(phi_NK, phi_TK, arm.estimator, dampings):
            for size in sizes:
                if within(j, each, size):
                    total_TN[size, damping] += scores_TN
    for (size, damping), scores_TN in total_TN.items():
        for reading, q_N, powers in _readings(making, arm, size):
            for power in powers:
                weight_N = weights(q_N, torch.ones(len(q_N)), EstimatorSpec(q_power=power))
                predicted_TS = (scores_TN @ (weight_N[:, None] * chosen_NS)).numpy()
                yield _key(size, reading), damping, power, predicted_TS


def scores(
    phi_NK: Tensor, phi_TK: Tensor, name: str, dampings: Sequence[float]
) -> Iterator[tuple[float, Tensor]]:
    """One member's scores (T, N) without q for each damping; TRAK's kernel is summed once."""
    if name != "trak":
        for damping in dampings:
            white = whitening(phi_NK, EstimatorSpec(name=name, damping=damping))
            yield damping, white(phi_TK) @ white(phi_NK).mT
        return
    kernel_KK = phi_NK.mT @ phi_NK
    ridge = kernel_KK.diagonal().mean()
    for damping in dampings:
        L = torch.linalg.cholesky(kernel_KK + damping * ridge * torch.eye(len(kernel_KK)))
        yield damping, torch.cholesky_solve(phi_TK.mT, L).mT @ phi_NK.mT


def _readings(
    making: Making, arm: Arm, size: Size
) -> Iterator[tuple[str, Tensor, Sequence[float]]]:
    """Name, q of the training examples and the powers tried."""
    own_N = _q_of(making, size)
    if arm.estimator in LOSS:
        yield "q", own_N, (0.0,)
        return
    yield "q^1", own_N, (1.0,)
    yield "q", own_N, POWERS
    if not making.spec.forward_only:  # its masks are for q of the members alone
        yield "q of training", making.training_q(size[0]), POWERS


def _q_of(making: Making, size: Size) -> Tensor:
    """Mean 1 - p over the members of an ensemble of that size."""
    each = len(making.beliefs) // making.spec.models
    return mean_q([b for j, b in enumerate(making.beliefs) if within(j, each, size)])


def within(j: int, each: int, size: Size) -> bool:
    """Whether the j-th of the members, `each` of every network, is in an ensemble of that size."""
    return j // each < size[0] and j % each < size[1]


def _costs(making: Making, size: Size, serving: float) -> dict[str, float]:
    """Of so many networks and views; a network, an adapter or a view costs the mean of all."""
    networks, views = size
    spec = making.spec
    training = networks * fmean(r.manifest["seconds"] for r in making.runs)
    stored = networks * fmean(_weights(r) for r in making.runs) * max(1, spec.snapshots)
    added = [*making.tuned, *making.adapters]
    if added:
        training += networks * views * fmean(a.manifest["seconds"] for a in added)
        stored += networks * views * fmean(_weights(a) for a in added)
    if making.tuned:  # they stand for the network they started from
        stored -= networks * fmean(_weights(r) for r in making.runs)
    blocks = unique(making.blocks)
    count = len(blocks) // spec.models * networks
    count = count if spec.forward_only or spec.blocks > 1 else networks * views
    return {
        "training": training,
        "features": count * fmean(b.manifest["seconds"] for b in blocks),
        "query": count * serving,
        "checkpoints": stored,
        "feature bytes": count * fmean(b.size for b in blocks),
    }


def _weights(artifact: Artifact) -> int:
    """Bytes of the weights in a run or an adapter."""
    files = artifact.manifest["files"]
    return sum(f["bytes"] for name, f in files.items() if name in WEIGHTS)


WEIGHTS = ("weights.safetensors", "adapter_model.safetensors")


def difference(
    one: Read, other: Read, margins_ST: np.ndarray, repeats: int = 200
) -> tuple[float, float, float]:
    """Mean LDS of `one` less that of `other`, and its 95 % interval over the halves, paired."""
    draw = np.random.default_rng(0)
    count, found = len(margins_ST), []
    for _ in range(repeats):
        s = draw.integers(0, count, count)
        truth = ranks(margins_ST[s].T)
        pair = [
            correlation(ranks(np.asarray(r.predicted_TS)[:, s]), truth).mean() for r in (one, other)
        ]
        found.append(pair[0] - pair[1])
    low, high = np.quantile(found, (0.025, 0.975))
    return one.lds - other.lds, float(low), float(high)
