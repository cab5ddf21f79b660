"""Scores of scores: how good a mislabel ranking is where the truth is known. Pure arithmetic."""

from collections.abc import Sequence
from typing import Any

import numpy as np


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
