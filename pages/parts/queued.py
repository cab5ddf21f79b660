"""The review's queue as all sessions see it, made once.

Not in the page itself: Streamlit runs that anew for each session, with caches of its own.
"""

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import pandas as pd

from attribution import audit
from attribution.build import Build

from .opened import DOUBT, engine, thumb

REDRAWS = 2.0  # a second, of all sessions together, for what others decided
GONE = 10.0  # seconds after which somebody who did not look any more has left


class Served(NamedTuple):
    """The queue of a build; read only."""

    rows: pd.DataFrame  # all training images in the order of the queue
    ids: tuple[int, ...]  # their positions
    likely: tuple[str, ...]  # the suspicious ones


def served(build: Build) -> Served:
    """The queue, made again when more is known of the labels."""
    return _served(build.id, build.evidence_id)


@lru_cache(maxsize=4)
def _served(build_id: str, evidence_id: str) -> Served:
    build = engine().open(build_id)
    suspects = build.mislabels()
    rows = audit.served(suspects, DOUBT, build.data_id)
    likely = suspects.example_id[suspects.score > DOUBT]
    return Served(rows, tuple(rows.index.tolist()), tuple(likely))


def items(build: Build, ids: Sequence[int], spots: bool) -> list[dict[str, Any]]:
    """Images as the deck draws them, `spots` with what is a spot check."""
    by = build.evidence_id
    found = (_item(build.id, by, i) for i in ids)
    return [{**drawn, "spot": spots and spot} for drawn, spot in found]


@lru_cache(maxsize=2**12)  # a kilobyte each; all sessions draw the first pages
def _item(build_id: str, evidence_id: str, train_id: int) -> tuple[dict[str, Any], bool]:
    """An image as the deck draws it, and whether it is a spot check."""
    build = engine().open(build_id)
    one = served(build).rows.loc[train_id]
    given = build.classes[one.given_label]
    doubted = one.suggested_probability > one.given_probability  # else it looks like what it is
    drawn = {
        "id": train_id,
        "src": thumb(build, "train", train_id),
        "alt": f"Training image {train_id}, labelled {given}",
        "name": build.name("train", train_id),
        "given": int(one.given_label),
        "suggested": int(one.suggested_label if doubted else one.given_label),
        "probabilities": [f"{one.given_probability:.0%}", f"{one.suggested_probability:.0%}"],
        "suspicion": f"{one.score:.0%}",
        "why": one.why,
    }
    return drawn, bool(one.spot_check)


class Watchers:
    """Who looks for what others decide, so that all together draw no more than `REDRAWS`."""

    def __init__(self) -> None:
        self._looked: dict[str, float] = {}  # when, by session
        self._lock = threading.Lock()

    def calm(self, who: str, now: float) -> float:
        """Seconds that each has to leave between two redraws; `who` looks just now."""
        with self._lock:
            self._looked[who] = now
            self._looked = {w: at for w, at in self._looked.items() if now - at < GONE}
            return len(self._looked) / REDRAWS


WATCHERS = Watchers()
