"""The advisor's forecast for twice the members against what is then measured.

On the ground truth of `paper_table`: ensembles of some networks (or masks of one network) are drawn
out of a larger one, the LDS of twice as many is forecast from the variance between them, and the
twice as many are measured. "No change" is the forecast that a larger ensemble gains nothing.
"""

from pathlib import Path

import numpy as np
import torch

from attribution.compare import forecast, variance
from attribution.data import dataset
from attribution.fit import totals
from attribution.index import weights
from attribution.making import Making
from attribution.metrics import lds
from attribution.records import EstimatorSpec, silent
from attribution.store import Store
from attribution.stored import read, stored
from attribution.truth import Truth

from .arms import Arm
from .paper_table import MNIST, OWN, ground_truth
from .rows import Options, Row, row

DRAWS = 20
ESTIMATOR = EstimatorSpec(q="training", q_power=0.75)
NAIVE = Arm(name="networks", strategy="naive", features=OWN, sizes=((10, 1),))
MASKS = Arm(name="masks of one network", strategy="dropout", features=OWN, sizes=((1, 20),))


def measure(options: Options) -> list[Row]:
    store = Store(options.cache or Path("cache"))
    data = dataset(store, MNIST.blank.data)
    found = ground_truth(store, MNIST, data)
    rows = []
    for arm, sizes in ((NAIVE, (2, 5)), (MASKS, (2, 5, 10))):
        making = Making(store, arm.spec(MNIST, arm.sizes[0], options.seed), data, silent)
        sums_MTS = sums(making, found)
        for few in sizes:
            errors, stays = twice(sums_MTS, found, few, arm is NAIVE)
            what = f"{few} to {2 * few} {arm.name}"
            rows.append(
                row(f"{what}: LDS forecast - measured, mean size", errors, "", at_most=0.03)
            )
            rows.append(row(f"{what}: the same of no change", stays, ""))
    return rows


def sums(making: Making, found: Truth) -> np.ndarray:
    """Each member's scores summed over the subsets, float32 (M, T, S)."""
    chosen_NS = torch.from_numpy(found.subsets_SN.T.copy()).float()
    q_N = making.training_q()
    weighted_NS = weights(q_N, torch.ones(()), ESTIMATOR)[:, None] * chosen_NS
    blocks = read(stored(making.members, making.blocks, ESTIMATOR))
    each = (totals(blocks, ESTIMATOR, m, weighted_NS) for m in range(blocks.members))
    return np.stack([sums_TS.numpy() for sums_TS in each])


def twice(
    sums_MTS: np.ndarray, found: Truth, few: int, networks: bool
) -> tuple[list[float], list[float]]:
    """Sizes of the errors of the forecast, and of the forecast of no change."""
    errors, stays = [], []
    draw = np.random.default_rng(0)
    for _ in range(DRAWS):
        chosen = draw.permutation(len(sums_MTS))[: 2 * few]
        small_MTS, large_MTS = sums_MTS[chosen[:few]], sums_MTS[chosen]
        now_T, then_T = (lds(some.mean(0), found.margins_ST) for some in (small_MTS, large_MTS))
        between = variance(small_MTS, few if networks else 1)
        assert between is not None
        told = forecast(now_T, between, *((2 * few, 1) if networks else (1, 2 * few)))
        errors.append(abs(told - float(then_T.mean())))
        stays.append(abs(float(now_T.mean() - then_T.mean())))
    return errors, stays
