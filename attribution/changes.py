"""What training again bought: two builds on the same test images, image by image.

By the test labels in force: corrected ones count as corrected, excluded images not at all.

Axes: T test examples, C classes.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from .records import UserError
from .testlabels import Labels

KINDS = ("mended", "broken", "still wrong", "still right")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Accuracy before and after, and how sure the difference is."""

    before: float
    after: float
    mended: int  # wrong before, right after
    broken: int  # right before, wrong after
    still_wrong: int
    chance: float  # that equally good networks differ as much (exact McNemar test, two-sided)
    given_before: float  # accuracy by the labels as given
    given_after: float
    test_labels: str = ""  # what was decided on test labels, in words

    @property
    def as_given(self) -> str:
        """Accuracy without the decisions on test labels; "" where there are none."""
        if not self.test_labels:
            return ""
        return (
            f"With {self.test_labels}; by the labels as given {self.given_before:.1%} before, "
            f"{self.given_after:.1%} after."
        )

    @property
    def words(self) -> str:
        """The summary in sentences."""
        surely = (
            "Networks that are equally good would differ as much by chance "
            f"{self.chance:.0%} of the time."
        )
        return (
            f"Test accuracy {self.before:.1%} before, {self.after:.1%} after: {self.mended} "
            f"mistakes mended, {self.broken} new ones. {surely}"
            + (f" {self.as_given}" if self.as_given else "")
        )


@dataclass(frozen=True, eq=False)
class Changes:
    """One row a test image: label, predicted before and after, probability of the label, kind."""

    table: pd.DataFrame
    summary: Summary


def changes(
    labels: Labels, before_TC: np.ndarray, after_TC: np.ndarray, before: str, after: str
) -> Changes:
    """Compare the probabilities that two builds give to the same test images.

    Raises `UserError` where they are not of the same images and classes.
    """
    if before_TC.shape != after_TC.shape:
        raise UserError(
            found=f"builds {before} and {after} with {before_TC.shape} and {after_TC.shape} "
            "test images and classes",
            wanted="the same test images and classes",
            next_step="compare a build with the one that its decisions were made on",
        )
    was_T, is_T = before_TC.argmax(1), after_TC.argmax(1)
    was, now = labels.accuracy(was_T), labels.accuracy(is_T)
    if was.restated is None or now.restated is None:
        raise UserError(
            found="no test image that is not excluded",
            wanted="at least one",
            next_step="take an exclusion back on the page Explain",
        )
    assert was.given is not None and now.given is not None, "labelled, by `Build.need_labels`"
    labels_T = labels.labels_T
    right = np.stack([was_T == labels_T, is_T == labels_T])
    kind_T = np.select([~right[0] & right[1], right[0] & ~right[1], ~right[0]], KINDS[:3], KINDS[3])
    rows = np.arange(len(labels_T))
    table = pd.DataFrame(
        {
            "label": labels_T,
            "before": was_T,
            "after": is_T,
            "label_before": before_TC[rows, labels_T],
            "label_after": after_TC[rows, labels_T],
            "kind": kind_T,
        },
        index=pd.RangeIndex(len(labels_T), name="test_id"),
    )[labels.kept_T]
    count = table.kind.value_counts()
    mended, broken = (int(count.get(k, 0)) for k in KINDS[:2])
    summary = Summary(
        before=was.restated,
        after=now.restated,
        mended=mended,
        broken=broken,
        still_wrong=int(count.get("still wrong", 0)),
        chance=by_chance(mended, broken),
        given_before=was.given,
        given_after=now.given,
        test_labels=now.changed,
    )
    return Changes(table, summary)


def by_chance(mended: int, broken: int) -> float:
    """Exact McNemar test: a fair coin for each image that changed sides."""
    from scipy.stats import binomtest  # takes half a second to import

    return float(binomtest(mended, mended + broken).pvalue) if mended + broken else 1.0
