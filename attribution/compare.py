"""What a larger ensemble would buy, and where ensembles disagree. Pure arithmetic.

Axes: M members, I networks, D views (masks, adapters, snapshots, ...) of each, T test examples,
S subsets of the training set, k hits.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np

from . import strategies
from .records import BuildSpec

Who = TypeVar("Who")
REACH = 4  # how many times as many networks or views a forecast is made for
NEARLY = 0.01  # of LDS, too little to pay for
HANDFUL = {"masks": 20}  # views added at a time; 5 of other kinds


def attributing(summary: Mapping[str, Any]) -> float:
    """Seconds from trained networks to an index."""
    return sum(summary["seconds"][stage] for stage in ("basis", "features", "fit"))


COSTS: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "total seconds": lambda s: s["seconds"]["train"] + attributing(s),
    "training seconds": lambda s: s["seconds"]["train"],
    "attribution seconds": attributing,
    "seconds a query": lambda s: s["seconds"]["query"],
    "FLOPs": lambda s: s["flops"]["train"] + s["flops"]["features"],
    "bytes of the index": lambda s: s["bytes"]["index"],
    "bytes of all": lambda s: sum(s["bytes"].values()),
}  # of a build, from its summary


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

    @property
    def between_networks(self) -> float:
        """Share of a single member's noise that is between networks, over all tests."""
        return self._share(self.network_T, self.network_T + self.view_T)

    @property
    def noise(self) -> float:
        """Share of the variance of a single member's prediction that is noise, over all tests."""
        noise_T = self.network_T + self.view_T
        return self._share(noise_T, noise_T + self.common_T)

    @staticmethod
    def _share(part_T: np.ndarray, whole_T: np.ndarray) -> float:
        """Mean over tests, because each has a scale of its own."""
        return float(np.divide(part_T, whole_T, np.zeros_like(whole_T), where=whole_T > 0).mean())


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
    summary: Mapping[str, Any],
    lds_T: np.ndarray,
    found: Variance,
    sizes: Sequence[tuple[int, int]],
) -> Iterator[Plan]:
    """Forecast and cost of ensembles like `summary`'s of other sizes (networks, views).

    Costs go with the number of networks (training, checkpoints, directions) or of members (the
    rest; the index alone stays as it is). Fine-tunes and adapters are members that are trained.
    """
    seconds, stored, spec = summary["seconds"], summary["bytes"], summary["spec"]
    tuned, lora = spec["finetunes"], spec["lora"]
    passes = tuned * spec["finetune_epochs"] + spec["adapters"] * lora["epochs"] * lora["share"]
    epochs = 0 if spec.get("weights") else spec["epochs"]  # given networks are trained already
    own_training = passes / ((epochs + passes) or 1)  # share of the training that is a member's
    own_bytes = tuned / (1 + tuned)
    own_basis = float(bool(tuned or spec["adapters"] or spec["snapshots"] or spec["draws"] > 1))
    members = found.networks * found.views
    for networks, views in sizes:
        by_network, by_member = networks / found.networks, networks * views / members
        training, basis, weights = (
            (1 - own) * by_network + own * by_member for own in (own_training, own_basis, own_bytes)
        )
        yield Plan(
            networks=networks,
            views=views,
            lds=forecast(lds_T, found, networks, views),
            seconds=training * seconds["train"]
            + basis * seconds["basis"]
            + by_member * (seconds["features"] + seconds["fit"]),
            query_seconds=by_member * seconds["query"],
            bytes=weights * stored["checkpoints"]
            + by_member * (stored["features"] + stored["queries"])
            + stored["index"],
        )


def measured(row: Mapping[str, Any]) -> Plan:
    """An evaluated build as it is: a row of `Engine.compared`."""
    return Plan(
        networks=row["models"],
        views=row["members"] // row["models"],
        lds=row["lds"],
        seconds=COSTS["total seconds"](row),
        query_seconds=row["seconds"]["query"],
        bytes=COSTS["bytes of all"](row),
    )


def difference(now: Plan, then: Plan) -> Plan:
    """What `then` has more of."""
    names = [field.name for field in fields(Plan)]
    return Plan(**{name: getattr(then, name) - getattr(now, name) for name in names})


def sizes(spec: BuildSpec, found: Variance) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Sizes (networks, views) to forecast: with more or fewer views, and with other networks.

    Up to `REACH` times the measured ones. One network cannot tell what others would add.
    """
    axis = strategies.growing(spec)
    step = found.views // getattr(spec, axis) if axis else found.views
    most = REACH * found.views if axis else found.views
    by_view = [(found.networks, step * n) for n in spaced(most // step, found.views // step)]
    further = 1 if spec.weights else REACH  # given networks are all there are
    networks = further * found.networks if found.networks > 1 else 1
    return by_view, [(i, found.views) for i in spaced(networks, found.networks)]


def spaced(most: int, among: int) -> list[int]:
    """Some of the numbers from 1 to `most`, farther apart the larger; `among` is one of them."""
    return sorted({among, *np.geomspace(1, most, 14).round().astype(int).tolist()})


def more(spec: BuildSpec, found: Variance) -> list[tuple[int, str, tuple[int, int]]]:
    """(how many, of what, the size then): a handful of views and one network more.

    The views only where the ensemble has an axis for them, the network only where there are two
    to tell by.
    """
    offers = []
    axis = strategies.growing(spec)
    if axis:
        count = HANDFUL.get(axis, 5)
        of_each = found.views // getattr(spec, axis)
        offers.append((count, axis, (found.networks, found.views + count * of_each)))
    if found.networks > 1 and not spec.weights:
        offers.append((1, "network", (found.networks + 1, found.views)))
    return offers


def around(spec: BuildSpec, found: Variance) -> list[tuple[int, int]]:
    """Every size that combines those of `sizes`."""
    by_view, by_network = sizes(spec, found)
    return [(i, v) for i, _ in by_network for _, v in by_view]


def advised(offers: Sequence[tuple[Who, Plan]], minutes: float) -> tuple[Who, Plan] | None:
    """The cheapest of the plans within the time whose LDS is `NEARLY` the best there.

    None where nothing is within the time.
    """
    within = [offer for offer in offers if offer[1].seconds <= 60 * minutes]
    best = max((plan.lds for _, plan in within), default=0.0)
    enough = [offer for offer in within if offer[1].lds >= best - NEARLY]
    return min(enough, key=lambda offer: offer[1].seconds, default=None)


def by_one_truth(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `Engine.compared` with a fidelity by the largest truth that any was held to.

    While they are being evaluated some have one by a smaller, which is not to be compared.
    """
    known = [one for one in rows if one["lds"] is not None]
    held = [(one["subsets"] * one["seeds"], one["truth"]) for one in known]
    largest = max(held, default=None)
    return [one for one, truth in zip(known, held, strict=True) if truth == largest]


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


def agreement(tops: Sequence[np.ndarray]) -> np.ndarray:
    """Mean overlap of each pair of ensembles, (B, B), from the top k of each, (T, k)."""
    found_BB = np.eye(len(tops))
    for a in range(len(tops)):
        for b in range(a):
            found_BB[a, b] = found_BB[b, a] = overlap(tops[a], tops[b]).mean()
    return found_BB


def disagreement(a_Tk: np.ndarray, b_Tk: np.ndarray) -> list[tuple[int, int]]:
    """(test, hits in common) of every test, those that two ensembles agree least on first."""
    common_T = np.rint(overlap(a_Tk, b_Tk) * a_Tk.shape[1]).astype(int)
    return [(int(t), int(common_T[t])) for t in np.argsort(common_T, kind="stable")]


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Hits that two lists have in common."""
    return len(set(a) & set(b))


def flips(a: Sequence[float], b: Sequence[float]) -> list[int]:
    """Positions at which one is above zero and the other below, the largest product first."""
    product = np.asarray(a) * np.asarray(b)
    return [int(j) for j in np.argsort(product, kind="stable") if product[j] < 0]


def siblings(
    mine: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], axis: str
) -> list[Mapping[str, Any]]:
    """The rows of `Engine.compared` that differ from `mine` at most in the size of an axis."""
    alike = {**mine["spec"], axis: 0}
    return [row for row in rows if {**row["spec"], axis: 0} == alike]
