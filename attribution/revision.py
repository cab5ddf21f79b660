"""Decisions applied: the data set without the dropped examples, relabelled as decided.

A revision belongs to the data set as it was named, before any decision, so that one made on a
revised data set holds all that was decided before as well.

Axes: N training examples as named, K of them kept.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from .data import Dataset, dataset
from .records import Decision, UserError, content_id, fits
from .store import Draft, Store


@dataclass(frozen=True, kw_only=True)
class Revision:
    """What applying decisions did."""

    id: str
    build: str  # on which they were made
    before: str | None  # the revision of its data; None where an earlier program did not say
    relabelled: int
    dropped: int
    kept: int  # labels confirmed, which change nothing
    missing: tuple[str, ...]  # examples decided on that the data no longer has
    decisions: tuple[int, ...]  # their numbers in the log
    reviewers: tuple[str, ...]


def revise(
    store: Store, data: Dataset, decisions: Mapping[str, Decision], build_id: str
) -> Revision:
    """Apply the decisions in force on `data`, by example id.

    Raises `UserError` where they change nothing, or would take the last example of a class.
    """
    named = dataset(store, replace(data.spec, revision=""))
    at = {example: n for n, example in enumerate(named.train.ids)}
    labels_N = named.train.labels_N.copy()
    here = [at[example] for example in data.train.ids]
    kept_N = np.zeros(len(labels_N), bool)
    kept_N[here] = True
    labels_N[here] = data.train.labels_N
    before = np.bincount(data.train.labels_N, minlength=len(data.classes))
    known = {
        e: d
        for e, d in decisions.items()
        if e in at and kept_N[at[e]] and fits(d, len(data.classes))
    }
    for example, decision in known.items():
        if decision.verdict == "drop":
            kept_N[at[example]] = False
        elif decision.verdict == "relabel":
            assert decision.label is not None
            labels_N[at[example]] = decision.label
    counts = Counter(d.verdict for d in known.values())
    if not counts["relabel"] + counts["drop"]:
        raise UserError(
            found="no relabel and no drop among the decisions on this data",
            wanted="decisions that change a label or leave an image out",
            next_step="review some images first",
        )
    left = np.bincount(labels_N[kept_N], minlength=len(data.classes))
    if empty := [data.classes[c] for c in np.flatnonzero((before > 0) & (left == 0))]:
        raise UserError(
            found=f"decisions that leave no training image of class {empty[0]!r}",
            wanted="at least one of each class that had any",
            next_step="take some of them back",
        )
    made_by = {
        "data": named.id,
        "build": build_id,
        "before": data.spec.revision,
        "decisions": sorted(d.seq for d in known.values()),
        "reviewers": sorted({d.reviewer for d in known.values()}),
    }
    missing = tuple(sorted(decisions.keys() - known.keys()))

    def fill(draft: Draft) -> None:
        draft.array("kept", kept_N)
        draft.array("labels", labels_N)
        draft.note(
            relabelled=counts["relabel"],
            dropped=counts["drop"],
            confirmed=counts["keep"],
            missing=list(missing),
        )

    name = content_id("revision", named.id, kept_N.tobytes(), labels_N.tobytes())
    store.make("revision", name, fill, made_by)
    found = revision(store, name)
    assert found is not None
    return found


def revision(store: Store, name: str) -> Revision | None:
    """A revision made before, or None."""
    made = store.find("revision", name)
    if made is None:
        return None
    facts, made_by = made.manifest, made.manifest["made_by"]
    return Revision(
        id=name,
        build=made_by["build"],
        before=made_by.get("before"),
        relabelled=facts["relabelled"],
        dropped=facts["dropped"],
        kept=facts["confirmed"],
        missing=tuple(facts["missing"]),
        decisions=tuple(made_by["decisions"]),
        reviewers=tuple(made_by["reviewers"]),
    )
