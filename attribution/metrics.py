"""Scores of scores: is a mislabel ranking right, does an attribution predict retraining?

Pure arithmetic. Axes: N train, T test, S subsets, R seeds of retraining.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


def lds(predicted_TS: np.ndarray, margins_ST: np.ndarray) -> np.ndarray:
    """Linear datamodelling score of each test example, (T,) in -1..1.

    Spearman correlation over the subsets between what is predicted, the sum of an example's scores
    in a subset, and its margin after retraining on it (arXiv 2303.14186, section 2).
    """
    return correlation(ranks(predicted_TS), ranks(margins_ST.T))


def interval(
    predicted_TS: np.ndarray,
    margins_ST: np.ndarray,
    draw: np.random.Generator,
    repeats: int = 200,
) -> tuple[float, float]:
    """95 % interval of the mean LDS: a bootstrap over subsets, which all test examples share.

    A subset drawn twice is a tie, which lowers rank correlations, so the interval is moved to lie
    around the LDS itself.
    """
    count = len(margins_ST)
    means = []
    for _ in range(repeats):
        s = draw.integers(0, count, count)
        means.append(correlation(ranks(predicted_TS[:, s]), ranks(margins_ST[s].T)).mean())
    low, high = np.quantile(means, (0.025, 0.975)) - np.mean(means)
    value = float(lds(predicted_TS, margins_ST).mean())
    return value + float(low), value + float(high)


def ceiling(margins_SRT: np.ndarray) -> float | None:
    """The mean LDS that a perfect attribution could reach, or None with a single seed.

    Retraining is noisy: the mean over R seeds has a reliability, the split-half correlation over
    subsets stepped up to all seeds (Spearman-Brown), and no prediction correlates with it better
    than its square root.
    """
    seeds = margins_SRT.shape[1]
    if seeds < 2:
        return None
    halves = [np.roll(np.arange(seeds), r) for r in range(seeds)]
    found = []
    for order in halves:
        a, b = (margins_SRT[:, h].mean(1).T for h in np.split(order[: seeds // 2 * 2], 2))
        found.append(correlation(ranks(a), ranks(b)).mean())
    half = float(np.mean(found))
    factor = seeds / (seeds // 2)
    reliability = factor * half / (1 + (factor - 1) * half)
    return float(np.sqrt(max(reliability, 0.0)))


def ranks(values_TS: np.ndarray) -> np.ndarray:
    """Ranks along the last axis, ties sharing their mean."""
    from scipy.stats import rankdata  # half a second to import

    return rankdata(values_TS, axis=-1)


def correlation(a_TS: np.ndarray, b_TS: np.ndarray) -> np.ndarray:
    """Pearson correlation along the last axis, (T,); 0 where one side does not vary."""
    a, b = (v - v.mean(-1, keepdims=True) for v in (a_TS, b_TS))
    size = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    return np.divide((a * b).sum(-1), size, out=np.zeros_like(size), where=size > 0)


def detection(
    wrong_N: np.ndarray, score_N: np.ndarray, at: Sequence[int] = (50, 100, 200, 450)
) -> dict[str, Any]:
    """AUC, average precision and precision among the k most suspicious.

    `wrong_N` bool, `score_N` high where suspicious; both over all training examples.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score  # takes a second to import

    order = np.argsort(-score_N, kind="stable")
    return {
        "auc": float(roc_auc_score(wrong_N, score_N)),
        "ap": float(average_precision_score(wrong_N, score_N)),
        "precision_at_k": {
            str(k): float(wrong_N[order[:k]].mean()) for k in at if k <= len(wrong_N)
        },
    }


def spread_of(scores_QMH: np.ndarray, networks: int) -> np.ndarray:
    """Standard deviation (Q, H) between networks, or with one network between its members."""
    if networks > 1:
        queries, members, hits = scores_QMH.shape
        by_network = scores_QMH.reshape(queries, networks, members // networks, hits)
        scores_QMH = by_network.mean(2)
    return scores_QMH.std(1, ddof=1)
