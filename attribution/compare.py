"""What a larger ensemble would buy, and where ensembles disagree. Pure arithmetic.

Axes: M members, I networks, D views (masks, adapters, snapshots, ...) of each, T test examples,
S subsets of the training set, k hits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Variance:
    """How the members' predictions vary over subsets, each (T,): what all agree on, and noise."""

    common_T: np.ndarray  # variance of what an endless ensemble would predict
    network_T: np.ndarray  # between networks, on top
    view_T: np.ndarray  # between the views of one network, on top
    networks: int
    views: int

    def reliability(self, networks: int, views: int) -> np.ndarray:
        """Share of the variance of an ensemble's prediction that is common, (T,)."""
        noise_T = self.network_T / networks + self.view_T / (networks * views)
        return self.common_T / np.maximum(self.common_T + noise_T, 1e-30)


def variance(predicted_MTS: np.ndarray, networks: int) -> Variance | None:
    """Components of variance of a nested design, by moments; None for a single member.

    A prediction is common + network + view, independent with means zero. The two-level covariance
    is the one of the paper's analysis (arXiv 2405.17293, section 4). One network cannot tell how
    networks differ: its `network_T` is zero, so a forecast for more networks is none.
    """
    members, tests, subsets = predicted_MTS.shape
    views = members // networks
    if members == 1:
        return None
    y_IDTS = predicted_MTS.reshape(networks, views, tests, subsets).astype(np.float64)
    y_IDTS = y_IDTS - y_IDTS.mean(-1, keepdims=True)  # ranks over subsets ignore an offset
    view_T = y_IDTS.var(1, ddof=1).mean((0, 2)) if views > 1 else np.zeros(tests)
    mean_ITS = y_IDTS.mean(1)
    network_T = np.zeros(tests)
    if networks > 1:
        network_T = np.maximum(mean_ITS.var(0, ddof=1).mean(-1) - view_T / views, 0)
    noise_T = network_T / networks + view_T / members
    common_T = np.maximum((mean_ITS.mean(0) ** 2).mean(-1) - noise_T, 0)
    return Variance(common_T, network_T, view_T, networks, views)


def forecast(lds_T: np.ndarray, found: Variance, networks: int, views: int) -> float:
    """Mean LDS that an ensemble of another size would have.

    Noise that averages out dilutes a correlation by the root of the reliability (Spearman's
    attenuation), so LDS grows with the root of the ratio of reliabilities.
    """
    now_T = found.reliability(found.networks, found.views)
    then_T = found.reliability(networks, views)
    gain_T = np.sqrt(np.divide(then_T, now_T, out=np.ones_like(now_T), where=now_T > 0))
    return float((lds_T * gain_T).mean())


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An ensemble of another size: what it would reach and take."""

    networks: int
    views: int
    lds: float  # forecast
    seconds: float  # training, featurizing and fitting all of it
    query_seconds: float
    bytes: float  # checkpoints, features, index and queries


def plans(
    summary: dict, lds_T: np.ndarray, found: Variance, sizes: Sequence[tuple[int, int]]
) -> Iterator[Plan]:
    """Forecast and cost of ensembles like `summary`'s of other sizes (networks, views).

    Costs go with the number of networks (training, checkpoints) or of members (the rest; the
    index alone stays as it is).
    """
    seconds, stored = summary["seconds"], summary["bytes"]
    members = found.networks * found.views
    for networks, views in sizes:
        by_network, by_member = networks / found.networks, networks * views / members
        yield Plan(
            networks=networks,
            views=views,
            lds=forecast(lds_T, found, networks, views),
            seconds=by_network * (seconds["train"] + seconds["basis"])
            + by_member * (seconds["features"] + seconds["fit"]),
            query_seconds=by_member * seconds["query"],
            bytes=by_network * stored["checkpoints"]
            + by_member * (stored["features"] + stored["queries"])
            + stored["index"],
        )


def pareto(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Positions that no other beats: none is at most as costly and more valuable, by cost."""
    best, front = -np.inf, []
    for j in sorted(range(len(costs)), key=lambda j: (costs[j], -values[j])):
        if values[j] > best:
            best = values[j]
            front.append(j)
    return front


def overlap(a_Tk: np.ndarray, b_Tk: np.ndarray) -> np.ndarray:
    """Share of the top k that two ensembles have in common, (T,)."""
    pairs = zip(a_Tk.tolist(), b_Tk.tolist(), strict=True)
    return np.array([len(set(a) & set(b)) / len(a) for a, b in pairs])
