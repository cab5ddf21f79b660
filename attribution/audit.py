"""Honest yield of a review: what was found, what is next, what is left, and when to stop.

The queue serves the most suspicious labels first, so what it finds says nothing of the others.
Every tenth image served is therefore a spot check, drawn at random from the labels that nothing
speaks against. All intervals have Jeffreys' prior, Beta(1/2, 1/2), which keeps its promise also
where nothing or everything was wrong. Plain functions of counts: no paths, no clock.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy.signal import fftconvolve
from scipy.stats import beta, betabinom

from .decisions import UNSURE
from .records import Decision, content_id

EVERY = 10  # of the images served, one is a spot check
STEP = 20  # decisions between two reckonings
RECENT = 40  # decisions of the queue that what comes next is judged by
AHEAD = 50
ENOUGH = 0.1  # a queue with a smaller share of wrong labels is not worth the time
LEVEL = 0.95
QUEUE, SPOT_CHECK = "queue", "spot check"  # how an image was served


@dataclass(frozen=True, kw_only=True)
class Range:
    """A number between two others that hold it with probability `LEVEL`."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """Labels of one kind: how many are not looked at yet, and what was found in a sample."""

    left: int
    wrong: int
    seen: int


@dataclass(frozen=True, kw_only=True)
class Yield:
    """A reckoning after so many decisions."""

    decisions: int
    queue: Stratum  # the suspicious ones
    recent: Stratum  # of them those decided last
    spot: Stratum  # the others, sampled at random
    precision: Range  # of the queue so far
    ahead: Range  # wrong ones among the next `AHEAD` of the queue
    remaining: Range | None  # wrong ones not looked at yet; None before the first spot check


def served(suspects: pd.DataFrame, suspicious: float, data_id: str) -> pd.DataFrame:
    """`suspects` as the review serves them, with a column "spot_check".

    Suspicious ones (a higher score than `suspicious`) come in their order, and after each nine of
    them one of the others at random, the same at each visit; then the rest in their order.
    """
    likely = np.flatnonzero(suspects.score.to_numpy() > suspicious)
    others = np.flatnonzero(suspects.score.to_numpy() <= suspicious)
    draw = np.random.default_rng(int(content_id("spot checks", data_id), 16))
    # By train_id, so that the sample does not depend on how a build ranks.
    shuffled = others[suspects.index.to_numpy()[others].argsort()]
    shuffled = draw.permutation(shuffled)
    count = min(len(others), len(likely) // (EVERY - 1))
    checks, rest = shuffled[:count], np.setdiff1d(others, shuffled[:count])
    order = np.concatenate([np.insert(likely, (EVERY - 1) * np.arange(1, count + 1), checks), rest])
    found = suspects.iloc[order]
    return found.assign(spot_check=np.isin(order, checks))


def reckoned(
    acts: Sequence[Decision], suspects: pd.DataFrame, suspicious: float, build_id: str
) -> Yield | None:
    """The yield at the last multiple of `STEP` decisions; None before the first.

    `acts` are those that were not taken back. Only images that this build's queue served count, by
    what is in force, wherever that was decided: others were chosen by somebody, or ranked by
    something else.
    """
    latest: dict[str, Decision] = {}
    first: dict[str, str] = {}  # how an image was served
    for d in sorted(acts, key=lambda d: d.seq):
        latest[d.example_id] = d
        if d.build_id == build_id and (way := how(d)):
            first.setdefault(d.example_id, way)
    in_force = {e: d for e, d in latest.items() if d.verdict != UNSURE}
    counted = [(in_force[e], way) for e, way in first.items() if e in in_force]
    counted = counted[: len(counted) // STEP * STEP]
    if not counted:
        return None
    wrong: dict[str, list[bool]] = {QUEUE: [], SPOT_CHECK: []}
    for d, way in counted:
        wrong[way].append(d.verdict in ("relabel", "drop"))
    still = ~among(suspects, in_force)
    likely = suspects.score > suspicious
    found, spots = wrong[QUEUE], wrong[SPOT_CHECK]
    queue = Stratum(left=int((still & likely).sum()), wrong=sum(found), seen=len(found))
    last = found[-RECENT:]
    recent = Stratum(left=queue.left, wrong=sum(last), seen=len(last))
    spot = Stratum(left=int((still & ~likely).sum()), wrong=sum(spots), seen=len(spots))
    return Yield(
        decisions=len(counted),
        queue=queue,
        recent=recent,
        spot=spot,
        precision=share(queue.wrong, queue.seen),
        ahead=forecast([Stratum(left=min(AHEAD, queue.left), wrong=sum(last), seen=len(last))]),
        remaining=forecast([recent, spot]) if spot.seen else None,
    )


def among(suspects: pd.DataFrame, some: Collection[str]) -> np.ndarray:
    """Which suspects are among some examples, (N,); `isin` takes 60 ms for a few thousand."""
    return np.array([one in some for one in suspects.example_id.to_list()], bool)


def how(decision: Decision) -> str:
    """How the image was served, or "" where somebody went to it."""
    return served_as(decision.evidence)


@lru_cache(maxsize=2**17)  # the same few thousand are asked about after each decision
def served_as(evidence: str) -> str:
    return json.loads(evidence).get("served", "")


def share(wrong: int, seen: int) -> Range:
    """Jeffreys' interval of a share; its ends are 0 and 1 where none and all were wrong."""
    tail = (1 - LEVEL) / 2
    low, high = beta.ppf([tail, 1 - tail], wrong + 0.5, seen - wrong + 0.5)
    return Range(low=float(low) if wrong else 0.0, high=float(high) if wrong < seen else 1.0)


def forecast(strata: Sequence[Stratum]) -> Range:
    """How many are wrong among those left: the sum of independent beta-binomials, exactly."""
    chance = np.ones(1)
    for one in strata:
        chance = fftconvolve(chance, counts(one)).clip(0)  # it rounds to just below 0
    up_to = chance.cumsum() / chance.sum()
    tail = (1 - LEVEL) / 2
    low, high = np.searchsorted(up_to, [tail, 1 - tail])
    return Range(low=float(low), high=float(high))


def counts(one: Stratum) -> np.ndarray:
    """The chance of each number of wrong ones among those left, (left + 1,)."""
    numbers = np.arange(one.left + 1)
    return betabinom.pmf(numbers, one.left, one.wrong + 0.5, one.seen - one.wrong + 0.5)


def advice(found: Yield) -> str:
    """Whether to go on, in one sentence."""
    if not found.queue.left:
        return "Every suspicious label is decided: stop here, or spot-check more of the others."
    rate = (found.recent.wrong + 0.5) / (found.recent.seen + 1)
    recent = f"{found.recent.wrong} of the last {found.recent.seen}"
    if rate < ENOUGH:
        return f"You can stop: only {recent} in the queue were wrong."
    if share(found.recent.wrong, found.recent.seen).low < ENOUGH:
        return f"Soon done: {recent} in the queue were wrong; stop when it is fewer than 1 in 10."
    return f"Go on: {recent} in the queue were wrong; stop when it is fewer than 1 in 10."
