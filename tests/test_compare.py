"""Comparing ensembles: arithmetic against simulation, dense formulas and brute force."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from attribution import __main__ as cli
from attribution import compare, strategies
from attribution.compare import Plan, Variance
from attribution.engine import Engine
from attribution.making import spec_from
from attribution.metrics import lds
from attribution.records import BuildSpec, DataSpec, EstimatorSpec, FeatureSpec, LoraSpec


def members(
    draw: np.random.Generator, common_TS: np.ndarray, networks: int, views: int,
    network: float, view: float,
) -> np.ndarray:  # fmt: skip
    """Predictions (M, T, S): common + network + view, with these standard deviations."""
    shape = common_TS.shape
    network_I1TS = network * draw.standard_normal((networks, 1, *shape))
    view_IDTS = view * draw.standard_normal((networks, views, *shape))
    return (common_TS + network_I1TS + view_IDTS).reshape(networks * views, *shape)


@pytest.mark.parametrize(("networks", "views"), [(30, 4), (40, 1), (5, 20)])
def test_components_of_simulated_members_are_found(networks: int, views: int) -> None:
    draw = np.random.default_rng(0)
    common_TS = 2.0 * draw.standard_normal((6, 800))
    made = members(draw, common_TS, networks, views, network=1.5, view=0.7)
    found = compare.variance(made, networks)
    assert found is not None and (found.networks, found.views) == (networks, views)
    np.testing.assert_allclose(found.common_T, common_TS.var(1), rtol=0.12)
    between = 1.5**2 + (0.7**2 if views == 1 else 0)  # one view: not told apart
    np.testing.assert_allclose(found.network_T, between, rtol=0.12)
    np.testing.assert_allclose(found.view_T, 0.7**2 if views > 1 else 0, rtol=0.12)
    noise = between + (0.7**2 if views > 1 else 0)
    assert found.noise == pytest.approx(noise / (noise + 4), abs=0.03)
    assert found.between_networks == pytest.approx(between / noise, abs=0.03)


def test_components_are_those_of_a_nested_analysis_of_variance() -> None:
    draw = np.random.default_rng(1)
    networks, views, tests, subsets = 3, 4, 5, 7
    made = draw.standard_normal((networks * views, tests, subsets))
    found = compare.variance(made, networks)
    assert found is not None
    for t in range(tests):
        y = made[:, t].reshape(networks, views, subsets)
        y = y - y.mean(2, keepdims=True)
        within = between = square = 0.0
        for s in range(subsets):
            grand = np.mean([y[i, d, s] for i in range(networks) for d in range(views)])
            of_network = [np.mean([y[i, d, s] for d in range(views)]) for i in range(networks)]
            within += sum(
                (y[i, d, s] - of_network[i]) ** 2 for i in range(networks) for d in range(views)
            ) / (networks * (views - 1))
            between += views * sum((m - grand) ** 2 for m in of_network) / (networks - 1)
            square += grand**2
        within, between, square = within / subsets, between / subsets, square / subsets
        network = max((between - within) / views, 0)
        noise = network / networks + within / (networks * views)
        assert found.view_T[t] == pytest.approx(within)
        assert found.network_T[t] == pytest.approx(network)
        assert found.common_T[t] == pytest.approx(max(square - noise, 0))


def test_one_member_tells_nothing_and_one_network_not_of_others() -> None:
    draw = np.random.default_rng(2)
    assert compare.variance(draw.standard_normal((1, 3, 9)), 1) is None
    found = compare.variance(draw.standard_normal((4, 3, 9)), 1)
    assert found is not None and not found.network_T.any()
    lds_T = np.full(3, 0.4)
    assert compare.forecast(lds_T, found, 1, 4) == pytest.approx(0.4)


@pytest.mark.parametrize("then", [(4, 2), (2, 8), (8, 4), (1, 1)])
def test_a_forecast_is_what_larger_ensembles_really_reach(then: tuple[int, int]) -> None:
    draw = np.random.default_rng(3)
    tests, subsets, networks, views = 60, 120, 2, 2
    common_TS = draw.standard_normal((tests, subsets))
    margins_ST = (common_TS + 0.8 * draw.standard_normal((tests, subsets))).T
    noise = {"network": 1.0, "view": 0.9}
    told, before, after = [], [], []
    for _ in range(6):
        made = members(draw, common_TS, networks, views, **noise)
        found = compare.variance(made, networks)
        assert found is not None
        lds_T = lds(made.mean(0), margins_ST)
        told.append(compare.forecast(lds_T, found, *then))
        before.append(lds_T.mean())
        larger = members(draw, common_TS, *then, **noise)
        after.append(lds(larger.mean(0), margins_ST).mean())
    error = abs(np.mean(told) - np.mean(after))
    assert error < 0.03 and error < abs(np.mean(before) - np.mean(after))


def test_pareto_is_what_brute_force_finds() -> None:
    draw = np.random.default_rng(4)
    for _ in range(200):
        count = int(draw.integers(1, 12))
        costs = draw.integers(0, 6, count).tolist()
        values = draw.integers(0, 6, count).tolist()
        front = compare.pareto(costs, values)
        unbeaten = {
            (costs[j], values[j])
            for j in range(count)
            if not any(
                costs[i] <= costs[j] and values[i] >= values[j]
                and (costs[i], values[i]) != (costs[j], values[j])
                for i in range(count)
            )
        }  # fmt: skip
        assert {(costs[j], values[j]) for j in front} == unbeaten
        assert [costs[j] for j in front] == sorted(costs[j] for j in front)
        assert len(front) == len(unbeaten)


def test_overlap_agreement_and_disagreement_are_those_of_sets() -> None:
    draw = np.random.default_rng(5)
    tops = [np.stack([draw.permutation(30)[:8] for _ in range(20)]) for _ in range(3)]
    shared = {
        (a, b): [len(set(tops[a][t]) & set(tops[b][t])) for t in range(20)]
        for a, b in product(range(3), repeat=2)
    }
    np.testing.assert_allclose(compare.overlap(tops[0], tops[1]), np.array(shared[0, 1]) / 8)
    found_BB = compare.agreement(tops)
    for pair, counts in shared.items():
        assert found_BB[pair] == pytest.approx(np.mean(counts) / 8)
    order = compare.disagreement(tops[0], tops[1])
    assert dict(order) == dict(enumerate(shared[0, 1]))
    assert [count for _, count in order] == sorted(shared[0, 1])
    assert compare.common([1, 2, 3], [3, 4, 1]) == 2


def test_flips_are_opposite_signs_the_plainest_first() -> None:
    assert compare.flips([1, -2, 3, 0, -1], [1, 2, -4, -1, -1]) == [2, 1]


def plan(lds: float, seconds: float) -> Plan:
    return Plan(networks=1, views=1, lds=lds, seconds=seconds, query_seconds=0, bytes=0)


def test_advice_is_the_cheapest_that_is_nearly_the_best_within_the_budget() -> None:
    offers = [("cheap", plan(0.30, 30)), ("good", plan(0.395, 50)), ("best", plan(0.40, 110)),
              ("dear", plan(0.6, 1000))]  # fmt: skip
    assert compare.advised(offers, 2) == offers[1]
    assert compare.advised(offers, 0.6) == offers[0]
    assert compare.advised(offers, 20) == offers[3]
    assert compare.advised(offers, 0.1) is None


SUMMARY = {
    "seconds": {"train": 10.0, "basis": 2.0, "features": 4.0, "fit": 1.0, "query": 0.1},
    "bytes": {"checkpoints": 100, "features": 400, "index": 50, "queries": 40},
    "spec": {
        "finetunes": 0, "finetune_epochs": 5, "adapters": 0, "snapshots": 0, "draws": 1,
        "epochs": 50, "lora": {"epochs": 3, "share": 0.5},
    },
}  # fmt: skip


def test_costs_go_with_networks_or_with_members() -> None:
    one_T = np.ones(3)
    found = Variance(one_T, one_T, one_T, networks=2, views=5)
    same, masks, networks = compare.plans(SUMMARY, one_T / 2, found, [(2, 5), (2, 10), (4, 5)])
    assert (same.seconds, same.query_seconds, same.bytes) == (17, 0.1, 590)
    assert same.lds == pytest.approx(0.5)
    assert (masks.seconds, masks.query_seconds, masks.bytes) == (22, 0.2, 1030)
    assert (networks.seconds, networks.query_seconds, networks.bytes) == (34, 0.2, 1130)
    gain = compare.difference(same, masks)
    assert (gain.networks, gain.views, gain.seconds) == (0, 5, 5)


def test_views_that_are_trained_cost_their_training() -> None:
    one_T = np.ones(3)
    found = Variance(one_T, one_T, one_T, networks=2, views=2)
    spec = {**SUMMARY["spec"], "finetunes": 2, "finetune_epochs": 25}  # half of all epochs
    (twice,) = compare.plans({**SUMMARY, "spec": spec}, one_T, found, [(2, 4)])
    assert twice.seconds == pytest.approx(10 * 1.5 + 2 * 2 + 5 * 2)
    given = {**spec, "weights": ("a", "b")}  # nothing but the fine-tunes was trained
    (twice,) = compare.plans({**SUMMARY, "spec": given}, one_T, found, [(2, 4)])
    assert twice.seconds == pytest.approx(10 * 2 + 2 * 2 + 5 * 2)
    plain = {**SUMMARY["spec"], "weights": ("a", "b")}  # nothing at all
    untrained = {**SUMMARY, "spec": plain, "seconds": {**SUMMARY["seconds"], "train": 0.4}}
    (twice,) = compare.plans(untrained, one_T, found, [(2, 4)])
    assert twice.seconds == pytest.approx(0.4 + 2 + 5 * 2)


def test_costs_of_a_build() -> None:
    summary = SUMMARY | {"flops": {"train": 5.0, "features": 2.0, "query": 1.0}}
    found = {name: cost(summary) for name, cost in compare.COSTS.items()}
    assert found == {
        "total seconds": 17, "training seconds": 10, "attribution seconds": 7,
        "seconds a query": 0.1, "FLOPs": 7, "bytes of the index": 50, "bytes of all": 590,
    }  # fmt: skip


def test_sizes_reach_no_farther_than_can_be_told() -> None:
    spec = BuildSpec(models=3, masks=5)
    one_T = np.ones(2)
    found = Variance(one_T, one_T, one_T, networks=3, views=5)
    by_view, by_network = compare.sizes(spec, found)
    assert {i for i, _ in by_view} == {3} and {v for _, v in by_network} == {5}
    assert (3, 5) in by_view and by_view[-1] == (3, 20) and by_network[-1] == (12, 5)
    assert compare.more(spec, found) == [(20, "masks", (3, 25)), (1, "network", (4, 5))]
    alone = Variance(one_T, one_T, one_T, networks=1, views=5)
    assert compare.sizes(replace(spec, models=1), alone)[1] == [(1, 5)]
    assert [what for _, what, _ in compare.more(replace(spec, models=1), alone)] == ["masks"]
    plain = replace(spec, strategy="naive", masks=0)
    single = Variance(one_T, one_T, one_T, networks=3, views=1)
    assert compare.sizes(plain, single)[0] == [(3, 1)]
    assert set(compare.around(plain, single)) == set(compare.sizes(plain, single)[1])


def test_siblings_differ_in_one_size_only() -> None:
    rows = [{"spec": {"models": i, "masks": d, "seed": s}}
            for i, d, s in ((2, 5, 0), (4, 5, 0), (2, 9, 0), (2, 5, 1))]  # fmt: skip
    assert compare.siblings(rows[0], rows, "models") == rows[:2]
    assert compare.siblings(rows[0], rows, "masks") == [rows[0], rows[2]]


SPECS = [
    BuildSpec(),
    BuildSpec(strategy="naive", masks=0, models=3,
              estimator=EstimatorSpec(name="ekfac", damping=0.05, q_power=0, relative=True)),
    BuildSpec(strategy="lora", masks=0, adapters=7, lora=LoraSpec(rank=4, targets=("0", "2"))),
    BuildSpec(strategy="snapshots", masks=6, snapshots=3, shared_masks=True, p=0.25, epochs=9),
    BuildSpec(strategy="draws", masks=0, draws=4, features=FeatureSpec(basis="random", ka=9, kg=3)),
    BuildSpec(strategy="finetunes", masks=0, finetunes=2, finetune_epochs=8, seed=4, width=0.5),
    BuildSpec(strategy="forward", forward_only=True, masks=12, index_dims=99,
              estimator=EstimatorSpec()),
    BuildSpec(rate=0.0033333333, decay=1 / 3, p=0.1234567890123, models=4,
              estimator=EstimatorSpec(damping=2 / 3, q="training", q_power=0.1 + 0.2)),
    BuildSpec(strategy="blocks", masks=0, blocks=2, data=DataSpec(noise=0.15, noise_kind="class")),
]  # fmt: skip


@pytest.fixture
def asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., BuildSpec]:
    """What the command `build` would build, by its options."""
    asked: list[BuildSpec] = []

    def build(self: Engine, spec: BuildSpec, report: object, cluster: object) -> dict:
        asked.append(spec)
        keys = ("build", "seconds", "bytes", "train", "test", "accuracy", "coverage")
        return dict.fromkeys(keys, "")

    monkeypatch.setattr(Engine, "build", build)
    monkeypatch.setattr(Engine, "finished", lambda self, spec: False)

    def by(*options: str) -> BuildSpec:
        words = ["build", *options, "--json", "--cache", str(tmp_path)]
        answer = CliRunner().invoke(cli.app, words)
        assert answer.exit_code == 0, answer.output
        return asked.pop()

    return by


@pytest.mark.parametrize("spec", SPECS, ids=strategies.words)
def test_options_make_the_same_build(spec: BuildSpec, asked_for: Callable[..., BuildSpec]) -> None:
    assert asked_for(*strategies.options(spec)) == spec


@pytest.mark.parametrize("mine", strategies.STUDIED)
def test_a_study_gives_its_rivals_what_the_command_gives_them(
    mine: str, asked_for: Callable[..., BuildSpec]
) -> None:
    for rival in strategies.rivals(asked_for("--strategy", mine)):
        assert rival == asked_for("--strategy", rival.strategy)
    told = asked_for("--strategy", mine, "--q", "members")
    others = {rival.estimator.q for rival in strategies.rivals(told)}
    assert others == {"training" if mine == "forward" else "members"}


@pytest.mark.parametrize("spec", SPECS, ids=strategies.words)
def test_another_size_is_the_same_ensemble_in_another_size(spec: BuildSpec) -> None:
    views = strategies.views(spec)
    assert strategies.resized(spec, spec.models, views) == spec
    axis = strategies.growing(spec)
    larger = strategies.resized(spec, 7, 3 * views)
    assert larger.models == 7
    assert strategies.views(larger) == (3 * views if axis else views)
    assert spec_from(json.loads(json.dumps(larger, default=vars))) == larger
