"""Many queries as one, one query against another, and what comes back for everybody.

Queries are vectors and scores inner products, so sums and differences of queries are queries.

Axes: G queries of a group, C candidates, M members, d index dimensions, T test examples.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .records import Answer, Hit

CANDIDATES = 20  # times as many as asked for are looked at


@dataclass(frozen=True, kw_only=True)
class GroupHit:
    """A training example that a group of queries has in common."""

    hit: Hit  # of the mean query
    without_loudest: float  # mean score without the query that it is largest for
    support: float  # share of the queries that it pushes the same way
    loudest: int  # position, in the group, of the query it is largest for


@dataclass(frozen=True, kw_only=True)
class GroupAnswer:
    """What a group of test examples has in common."""

    test_ids: tuple[int, ...]
    proponents: tuple[GroupHit, ...]
    opponents: tuple[GroupHit, ...]
    noise: str


def without_loudest(scores_GC: np.ndarray) -> np.ndarray:
    """Mean over the queries but the one with the largest magnitude in the mean's direction, (C,).

    Leaving one out, the worst case: an example keeps its place only if it does not hang on a
    single loud query. Of a single query, its score.
    """
    if len(scores_GC) == 1:
        return scores_GC[0]
    sign_C = np.sign(scores_GC.sum(0))
    loudest_C = sign_C * (sign_C * scores_GC).max(0)
    return (scores_GC.sum(0) - loudest_C) / (len(scores_GC) - 1)


def supported(
    scores_GC: np.ndarray, hits: tuple[Hit, ...], k: int, sign: int
) -> tuple[GroupHit, ...]:
    """The k candidates that are strongest in a direction without their loudest query."""
    rest_C = without_loudest(scores_GC)
    order = np.argsort(-sign * rest_C, kind="stable")[:k]
    return tuple(
        GroupHit(
            hit=hits[c],
            without_loudest=float(rest_C[c]),
            support=float((np.sign(scores_GC[:, c]) == sign).mean()),
            loudest=int((sign * scores_GC[:, c]).argmax()),
        )
        for c in order
        if sign * rest_C[c] > 0
    )


def most_confused(counts_CC: np.ndarray, most: int, always: Iterable[int] = ()) -> np.ndarray:
    """The classes of a confusion matrix with the most mistakes, at most so many, in their order.

    Those of `always` are among them.
    """
    off_CC = counts_CC - np.diag(np.diag(counts_CC))
    mistakes_C = (off_CC.sum(0) + off_CC.sum(1)).astype(float)
    mistakes_C[list(always)] = np.inf
    return np.sort(np.argsort(-mistakes_C, kind="stable")[:most])


def hubs(top_Tk: np.ndarray, labels_N: np.ndarray) -> pd.DataFrame:
    """How many test examples have each training example among their strongest proponents.

    Index train_id, columns label, tests and share; only those that any has, most tests first.
    """
    count_N = np.bincount(top_Tk.ravel(), minlength=len(labels_N))
    found = pd.DataFrame(
        {"label": labels_N, "tests": count_N, "share": count_N / len(top_Tk)},
        index=pd.RangeIndex(len(labels_N), name="train_id"),
    )
    return found[found.tests > 0].sort_values("tests", ascending=False, kind="stable")


def steady(answer: Answer) -> int:
    """How many of an answer's proponents are told apart from zero."""
    return sum(not hit.shaky for hit in answer.proponents)
