"""What stands behind a suspect: the signals that vote, its neighbours, and the errors it feeds.

A training row of the index is r_i = sum_m V_m' w_m(i), which is also M times the query of that very
example, so what supports and what contradicts its label costs one search, and no gradient.

Axes: N training examples, W test examples called wrong, d index dimensions.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .index import Rows, search
from .mislabels import SIGNALS

if TYPE_CHECKING:
    from .build import Build

NEAR = 50  # hits each way among which neighbours are looked for
TOP = 50  # a test's strongest proponents and opponents


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """Another training example; a positive score supports the label of the first.

    Scores are shares of what the first one does to itself.
    """

    train_id: int
    score: float
    cosine: float  # between their rows
    label: int


@dataclass(frozen=True, kw_only=True)
class Fed:
    """A test example called wrong, and the place that a training example has in it."""

    test_id: int
    label: int
    predicted: int
    place: int  # 1: its strongest
    side: str  # "for" the wrong class, or "against" the right one


@dataclass(frozen=True, kw_only=True)
class Vote:
    """A signal in 0..1, and whether it counts the example among the most suspicious."""

    name: str
    about: str  # what it says, in a sentence
    value: float
    votes: bool


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that speaks for or against a training label."""

    train_id: int
    given: int
    given_probability: float
    suggested: int
    suggested_probability: float
    votes: tuple[Vote, ...]
    neighbours: tuple[Neighbour, ...]  # the most similar gradients, of either sign
    proponents: tuple[Neighbour, ...]
    opponents: tuple[Neighbour, ...]
    feeds: tuple[Fed, ...]


def evidence(build: "Build", train_id: int, suspicious: float, k: int = 6) -> Evidence:
    """The evidence on a training example of a build, `k` of each kind at most.

    A signal votes if it ranks the example among as many as the queue calls suspicious.
    """
    suspects = build.mislabels()
    row = suspects.loc[train_id]
    count = int((suspects.score > suspicious).sum())
    votes = tuple(
        Vote(
            name=name,
            about=SIGNALS.get(name, ""),
            value=float(row[name]),
            votes=bool((suspects[name] > row[name]).sum() < count),
        )
        for name in suspects.columns
        if name.startswith("signal_")
    )
    around = near(build.compressed.rows, build.train_labels_N, train_id)
    by_score = sorted(around, key=lambda one: -one.score)
    return Evidence(
        train_id=train_id,
        given=int(row.given_label),
        given_probability=float(row.given_probability),
        suggested=int(row.suggested_label),
        suggested_probability=float(row.suggested_probability),
        votes=votes,
        neighbours=tuple(sorted(around, key=lambda one: -abs(one.cosine))[:k]),
        proponents=tuple(one for one in by_score[:k] if one.score > 0),
        opponents=tuple(one for one in by_score[: -k - 1 : -1] if one.score < 0),
        feeds=feeds(build, train_id, k),
    )


def near(rows: Rows, labels_N: np.ndarray, train_id: int) -> list[Neighbour]:
    """The strongest proponents and opponents of a training example's own label, unsorted."""
    own_d = np.asarray(rows.reconstruct(train_id))
    own = float(own_d @ own_d)
    k = min(NEAR + 1, len(labels_N))
    found = {int(i) for way in (False, True) for i in search(rows, own_d[None], k, way)[1][0]}
    ids = np.array(sorted(found - {train_id}), np.int64)
    if not own or not len(ids):  # a row of zeros moves nothing
        return []
    rows_Hd = rows.reconstruct_batch(ids)
    score_H = rows_Hd @ own_d / own
    length_H = np.linalg.norm(rows_Hd, axis=1).clip(1e-30) / own**0.5
    return [
        Neighbour(train_id=int(i), score=float(s), cosine=float(s / n), label=int(labels_N[i]))
        for i, s, n in zip(ids, score_H, length_H, strict=True)
    ]


def feeds(build: "Build", train_id: int, k: int) -> tuple[Fed, ...]:
    """Wrong predictions that have the example among their strongest hits, those it weighs most in.

    Among the proponents of the wrong class, or the opponents of the right one.
    """
    tests_W, called_Wd, label_Wd = build.mistakes
    own_d = build.compressed.rows.reconstruct(train_id)
    found: dict[int, Fed] = {}
    sides: tuple[tuple[str, np.ndarray, int], ...] = (
        ("against", label_Wd, -1),
        ("for", called_Wd, 1),
    )
    for side, u_Wd, sign in sides:
        push_W = sign * (u_Wd @ own_d)
        most = [int(w) for w in (-push_W).argsort(kind="stable")[: 2 * k] if push_W[w] > 0]
        if not most:
            continue
        hits = min(TOP, len(build.train_labels_N))
        ids_wk = search(build.compressed.rows, u_Wd[most], hits, opponents=sign < 0)[1]
        for w, ids_k in zip(most, ids_wk, strict=True):
            if train_id in ids_k:
                test = int(tests_W[w])
                fed = Fed(
                    test_id=test,
                    label=int(build.test_labels_T[test]),
                    predicted=int(build.predicted_T[test]),
                    place=int(np.flatnonzero(ids_k == train_id)[0]) + 1,
                    side=side,
                )
                if test not in found or fed.place <= found[test].place:
                    found[test] = fed
    return tuple(sorted(found.values(), key=lambda fed: fed.place)[:k])
