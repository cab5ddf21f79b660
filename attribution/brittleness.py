"""Brittleness: how many of its strongest proponents must go before a prediction flips.

Networks are retrained without the top k proponents of a test example, for growing k; the smallest
k at which the example is no longer classified as it was (arXiv 2303.14186, section 5.2). An
ensemble that finds the right examples flips predictions with few.

Axes: Q test examples, N train, k a number of removals.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from .data import Dataset
from .features import Examples
from .records import Report, RunSpec, silent, within
from .store import Store
from .train import probabilities
from .truth import FIRST_SEED, PART, retrain
from .weights import begun

BEYOND = 2 * FIRST_SEED  # seeds of no network that attributes, nor of the ground truth


@dataclass(frozen=True, kw_only=True)
class BrittlenessSpec:
    """What is retrained."""

    tests: int = 10  # test examples, drawn among those classified right
    most: int = 180  # removals
    step: int = 60

    @property
    def removals(self) -> list[int]:
        """0 first: how often another seed alone flips the prediction."""
        return list(range(0, self.most + 1, self.step))


def check(spec: BrittlenessSpec, train: int) -> None:
    """Raise `UserError` for numbers that make no sense."""
    within(
        [
            ("--tests", spec.tests, 1, 10_000),
            ("--most", spec.most, 1, train // 2),
            ("--step", spec.step, 1, spec.most),
        ]
    )


def flips(
    store: Store,
    data: Dataset,
    train_examples: Examples,
    test_examples: Examples,
    test_ids: Sequence[int],
    orders: Sequence[np.ndarray],
    recipe: RunSpec,
    removals: Sequence[int],
    report: Report = silent,
) -> np.ndarray:
    """Whether each test example is misclassified without its first k, bool (Q, len(removals)).

    `orders` has for each of `test_ids` its training examples, the strongest proponent first.
    """
    total = len(removals) * len(test_ids)
    flipped = np.zeros((len(test_ids), len(removals)), bool)
    for r, k in enumerate(removals):
        for first in range(0, len(test_ids), PART):
            chunk = range(first, min(first + PART, len(test_ids)))
            kept = [np.delete(np.arange(len(train_examples)), orders[q][:k]) for q in chunk]
            seeds = [BEYOND + recipe.seed + q for q in chunk]
            recipes = [replace(recipe, seed=seed) for seed in seeds]
            networks = [begun(store, data, each) for each in recipes]
            done = r * len(test_ids) + first

            def further(
                stage: str, at: int, of: int, done: int = done, n: int = len(chunk)
            ) -> None:
                report("brittleness", done * of + at * n, total * of)

            rows_Qn = torch.from_numpy(np.stack(kept))
            retrain(networks, train_examples, rows_Qn, recipes, further)
            for q, made in zip(chunk, networks, strict=True):
                one = test_examples[slice(test_ids[q], test_ids[q] + 1)]
                said = int(probabilities(made, one.x_N).argmax())
                flipped[q, r] = said != int(one.target_N)
    report("brittleness", total, total)
    return flipped


def summary(flipped_QR: np.ndarray, removals: Sequence[int]) -> dict[str, Any]:
    """The share flipped after each number of removals, and the median of the smallest that flips.

    None where less than half of the examples flip at all.
    """
    most = flipped_QR.shape[1]
    first_Q = np.where(flipped_QR.any(1), flipped_QR.argmax(1), most)
    middle = int(np.sort(first_Q)[(len(first_Q) - 1) // 2])
    return {
        "removed": list(removals),
        "flipped": [float(v) for v in (first_Q[:, None] <= np.arange(most)).mean(0)],
        "median": removals[middle] if middle < most else None,
    }
