"""Wrong test labels: which ones probably are, what reviewers decided, and accuracy told both ways.

A decision on a test image is an event of the same log as one on a training image, under the id of
the test half in place of the data's. So neither is taken for the other where the same picture is in
both halves, and all builds on the same test images share it, whatever became of the training
labels. Attribution and LDS go by the labels as given.

Axes: T test examples, C classes, I networks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from .data import Dataset
from .mislabels import FLOOR, SHARPNESS
from .records import Decision, content_id

EXPECTED = (0.5, 20)  # wrong and right labels that are counted beside those there are


class Half(NamedTuple):
    """The test half of a data set."""

    id: str  # in the log of decisions
    ids: tuple[str, ...]
    given_T: np.ndarray
    classes: int


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Share of right predictions by the test labels as given, and with the decisions in force."""

    given: float | None  # None where the test images have no labels
    restated: float | None  # None where every image is excluded
    corrected: int  # test labels
    excluded: int  # test images

    @property
    def changed(self) -> str:
        """What the decisions did, as in "6 test labels corrected, 2 excluded"; "" for nothing."""
        labels = f"{self.corrected} test label{'s' if self.corrected > 1 else ''} corrected"
        images = f"{self.excluded} excluded"
        if not self.corrected:
            images = f"{self.excluded} test image{'s' if self.excluded > 1 else ''} excluded"
        counted = ((labels, self.corrected), (images, self.excluded))
        return ", ".join(text for text, count in counted if count)

    @property
    def note(self) -> str:
        """The accuracy with the decisions in words, "" where there are none."""
        share = "nothing left" if self.restated is None else f"{self.restated:.1%}"
        return f"{share} with {self.changed}" if self.changed else ""

    @property
    def words(self) -> str:
        if self.given is None:
            return "not known"
        return f"{self.given:.1%}" + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True, eq=False)
class Labels:
    """The test labels as given, and with the decisions in force."""

    given_T: np.ndarray
    labels_T: np.ndarray
    kept_T: np.ndarray  # bool: not excluded
    decisions: Mapping[int, Decision]  # by position
    labelled: bool = True  # else what images are called stands in place of their labels

    def accuracy(self, predicted_T: np.ndarray) -> Accuracy:
        if not self.labelled:
            return Accuracy(given=None, restated=None, corrected=0, excluded=0)
        right_T = (predicted_T == self.labels_T)[self.kept_T]
        return Accuracy(
            given=float((predicted_T == self.given_T).mean()),
            restated=float(right_T.mean()) if len(right_T) else None,
            corrected=int((self.labels_T != self.given_T)[self.kept_T].sum()),
            excluded=int((~self.kept_T).sum()),
        )


def half(data: Dataset) -> Half:
    """The test half of `data`; its id is that of the images and the classes, not of the labels."""
    name = content_id("test half", data.classes, data.test.ids)
    return Half(name, data.test.ids, data.test.labels_N, len(data.classes))


def untouched(given_T: np.ndarray) -> Labels:
    """Labels on which nothing is decided."""
    return Labels(given_T, given_T, np.ones(len(given_T), bool), {})


def in_force(some: Half, decisions: Mapping[str, Decision]) -> Labels:
    """The labels with these decisions, by example id. Those on other images change nothing."""
    labels_T, kept_T = some.given_T.copy(), np.ones(len(some.ids), bool)
    found = {}
    for position, example in enumerate(some.ids) if decisions else ():
        decision = decisions.get(example)
        if decision is None:
            continue
        found[position] = decision
        if decision.verdict == "drop":
            kept_T[position] = False
        elif decision.label is not None and 0 <= decision.label < some.classes:
            labels_T[position] = decision.label
    return Labels(some.given_T, labels_T, kept_T, found)


def suspects(labels_T: np.ndarray, probs_ITC: np.ndarray) -> pd.DataFrame:
    """All test examples, the most suspicious label first, indexed by test_id.

    `score` is the probability that the label is wrong, `suggested` the class that the networks
    believe most of the others, `networks` how many of them believe one more than the given.
    """
    at, probs_TC = np.arange(len(labels_T)), probs_ITC.mean(0, dtype=np.float64)
    others_TC = probs_TC.copy()
    others_TC[at, labels_T] = -1
    frame = pd.DataFrame(
        {
            "given": labels_T,
            "suggested": others_TC.argmax(1),
            "given_probability": probs_TC[at, labels_T],
            "suggested_probability": others_TC.max(1),
            "networks": (probs_ITC.argmax(2) != labels_T).sum(0),
            "score": wrong(labels_T, probs_TC),
        },
        index=pd.RangeIndex(len(labels_T), name="test_id"),
    )
    return frame.sort_values("score", ascending=False, kind="stable")


def wrong(labels_T: np.ndarray, probs_TC: np.ndarray) -> np.ndarray:
    """The probability that each label is wrong by networks that did not train on it, (T,).

    A share of the labels is drawn from all other classes alike, the rest is right. How large a
    share, and by which power networks are too sure or too timid, is what makes the given labels
    most likely. Of a few hundred labels a table of which class is mistaken for which, as
    `mislabels.doubted` has it, would take the networks' own confusions for the labels'.
    """
    at, others = np.arange(len(labels_T)), probs_TC.shape[1] - 1
    likeliest, best_T = -np.inf, np.zeros(len(labels_T))
    if not others:
        return best_T
    for power in SHARPNESS:
        belief_TC = (probs_TC.astype(np.float64) + FLOOR / 10) ** power
        right_T = belief_TC[at, labels_T] / belief_TC.sum(1)
        share = EXPECTED[0] / sum(EXPECTED)
        for _ in range(200):
            flipped_T = share * (1 - right_T) / others
            likelihood_T = (1 - share) * right_T + flipped_T
            wrong_T = flipped_T / likelihood_T
            share = (wrong_T.sum() + EXPECTED[0]) / (len(labels_T) + sum(EXPECTED))
        prior = EXPECTED[0] * np.log(share) + EXPECTED[1] * np.log(1 - share)
        if (likelihood := np.log(likelihood_T).sum() + prior) > likeliest:
            likeliest, best_T = likelihood, wrong_T
    return best_T
