"""Removals: predictions against dense scores, verification against networks retrained by hand."""

import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import dense
import numpy as np
import pytest
import torch
from conftest import Tiny
from scipy import stats
from test_truth import DATA, PLAIN_NETWORK, WIDE, halves, stamps
from torch import nn

from attribution.build import Build
from attribution.engine import Engine
from attribution.features import Examples, block
from attribution.making import examples
from attribution.models import network
from attribution.records import (
    BuildSpec,
    DataSpec,
    EstimatorSpec,
    FeatureSpec,
    RunSpec,
    UserError,
)
from attribution.store import Store
from attribution.stored import phi_of, seen
from attribution.train import train
from attribution.whatif import (
    NONE,
    PAIRED,
    Scale,
    VerifySpec,
    agreement,
    band,
    checked,
    moved,
    predicted,
    retrained,
    scale,
    scale_of,
    smallest,
    verify,
)

REMOVED = (3, 7, 8, 20, 21, 40)
SMALL = BuildSpec(
    data=DataSpec(noise=0.1), width=0.1, models=2, masks=2, epochs=2,
    features=FeatureSpec(ka=4, kg=2), index_dims=256,
)  # fmt: skip


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(tmp_path_factory.mktemp("whatif") / "cache")


@pytest.fixture(scope="module", params=["training", "members", "relative", "forward", "ekfac"])
def build(engine: Engine, request: pytest.FixtureRequest) -> Build:
    """Small builds with an index as wide as their features, so that it loses nothing."""
    estimator = EstimatorSpec(q="training", q_power=0.75)
    forward = False
    if request.param != "training":
        estimator = EstimatorSpec(q_power=0.5, relative=request.param == "relative")
        forward = request.param == "forward"
    if request.param == "ekfac":
        estimator = EstimatorSpec(name="ekfac", q_power=0.0)
    spec = replace(SMALL, estimator=estimator, forward_only=forward)
    if forward:
        spec = replace(spec, strategy="forward")
    return engine.open(engine.build(spec)["build"])


def wrong_and_right(build: Build) -> list[tuple[int, int]]:
    """A wrong prediction and a right one, each with the class predicted."""
    right_T = build.predicted_T == build.test_labels_T
    tests = int(np.flatnonzero(~right_T)[1]), int(np.flatnonzero(right_T)[2])
    return [(t, int(build.predicted_T[t])) for t in tests]


def member_features(build: Build, m: int, some: Examples) -> np.ndarray:
    """One member's features of any examples for any class, as its estimator takes them, float64."""
    made = block(seen(build._wholes[m], build.members[m]), some, build._wholes[m].projections)
    phi = made.phi_NK.numpy().astype(float)
    if build.spec.estimator.name == "ekfac":
        phi *= torch.sigmoid(-made.margin_N.double()).numpy()[:, None]
    return phi


def dense_scores(build: Build, queries: Examples, rows: Examples | None = None) -> np.ndarray:
    """(M, Q, N) without q: the formula in double precision; of `rows` in place of the training set.

    The kernel is always of the training set.
    """
    spec = build.spec.estimator
    each = []
    for m, member in enumerate(build.members):
        features = build._part("features", build._features[m])
        phi_NK = phi_of(features, "train", member, spec).numpy().astype(float)
        psi_QK = member_features(build, m, queries)
        moment_KK = phi_NK.T @ phi_NK
        if spec.name == "ekfac":
            moment = (phi_NK**2).mean(0)
            inverse = np.diag(1 / (moment + spec.damping * moment.mean()))
        else:
            ridge = spec.damping * np.diag(moment_KK).mean()
            inverse = np.linalg.inv(moment_KK + ridge * np.eye(len(moment_KK)))
        right_NK = phi_NK if rows is None else member_features(build, m, rows)
        each.append(psi_QK @ inverse @ right_NK.T)
    return np.stack(each)


def margin_by_hand(logits_1C: torch.Tensor, target: int) -> float:
    logits_C = logits_1C[0].double().detach().numpy()
    return float(logits_C[target] - np.logaddexp.reduce(np.delete(logits_C, target)))


def asked(build: Build, pairs: list[tuple[int, int]]) -> Examples:
    test, target = np.array(pairs).T
    some = examples(build.spec, build.data, build.data.test)[test]
    return Examples(some.x_N, some.key_N, torch.from_numpy(target))


# Predictions.


def test_the_scores_kept_are_the_exact_ones_of_each_network(build: Build) -> None:
    t = 5
    label = int(build.test_labels_T[t])
    found_GN = build.exact(t, label)
    assert found_GN.shape == (2, len(build.train_labels_N))
    assert dense.off(found_GN.mean(0), build.scores()[t]) < 2e-3
    subsets_SN = np.random.default_rng(0).random((6, len(build.train_labels_N))) < 0.02
    sums_GS = build.sums(subsets_SN)[:, t].reshape(2, -1, 6).mean(1)
    assert dense.off(found_GN @ subsets_SN.T, sums_GS) < 2e-3


def test_every_class_that_is_asked_about_has_its_exact_scores(build: Build) -> None:
    pairs = wrong_and_right(build)
    pairs.append((pairs[0][0], int(build.predicted_T[pairs[1][0]] + 1) % 10))  # nobody's
    if build.spec.estimator.relative:
        pytest.skip("its weights are tried on labels, in double precision")
    weight_N = build.q_N.astype(float) ** build.spec.estimator.q_power
    wanted_MQN = dense_scores(build, asked(build, pairs)) * weight_N
    for (t, target), wanted_MN in zip(pairs, wanted_MQN.transpose(1, 0, 2), strict=True):
        found_GN = build.exact(t, target)
        assert dense.off(found_GN, wanted_MN.reshape(2, -1, len(weight_N)).mean(1)) < 5e-3
        assert build.pull(t, target)[1]


def test_before_they_are_exact_scores_come_from_the_index(engine: Engine) -> None:
    spec = replace(SMALL, estimator=EstimatorSpec(damping=0.5))  # of its own, nothing kept yet
    build = engine.open(engine.build(spec)["build"])
    quick = []
    for t, target in wrong_and_right(build):
        quick_GN, exact = build.pull(t, target)
        assert not exact
        hits = build.query(t, 8).proponents
        ids = [h.train_id for h in hits]
        np.testing.assert_allclose(quick_GN.mean(0)[ids], [h.score for h in hits], rtol=1e-3)
        stderr = quick_GN.std(0, ddof=1)[ids] / 2**0.5
        np.testing.assert_allclose(stderr, [h.stderr for h in hits], rtol=2e-3)
        np.testing.assert_allclose(build.pull(t, target, ids)[0], quick_GN[:, ids], rtol=1e-5)
        quick.append(quick_GN.mean(0))
    for (t, target), quick_N in zip(wrong_and_right(build), quick, strict=True):
        assert dense.off(quick_N, build.exact(t, target).mean(0)) < 5e-3


def test_a_removal_is_predicted_by_minus_the_sum_of_its_scores(
    engine: Engine, build: Build
) -> None:
    (t, target), _ = wrong_and_right(build)
    build.exact(t, target)
    ids = build.strongest(t, 20)
    told = engine.forecast(build.id, t, [*ids, ids[0]], "predicted", None)
    scores_GN = build.pull(t, target)[0].astype(float)
    sums_G = -scores_GN[:, list(ids)].sum(1)
    push = scores_GN.mean(0)[scores_GN.mean(0) > 0].sum()
    assert told.removed == tuple(sorted(ids)) and told.exact
    assert told.score == pytest.approx(sums_G.mean(), rel=1e-5)
    assert told.stderr == pytest.approx(stats.sem(sums_G), rel=1e-4)
    assert told.share == pytest.approx(-sums_G.mean() / push, rel=1e-5)
    assert told.share_stderr == pytest.approx(stats.sem(sums_G) / push, rel=1e-4)
    assert (told.change, told.flips) == (None, None)
    opponents = build.strongest(t, 20, opponents=True)
    assert engine.forecast(build.id, t, opponents, "predicted", None).score > 0 > told.score


def test_the_margin_now_is_the_networks_mean_however_sure_they_are(build: Build) -> None:
    runs = [build._part("run", name) for name in build._networks]
    for t, target in wrong_and_right(build):
        each = []
        for run in runs:
            net = network("mlp", build.data, build.spec.width, 0)
            net.load_state_dict(run.weights())
            some = asked(build, [(t, target)])
            each.append(margin_by_hand(net.eval()(some.x_N), target))
        assert build.margin(t, target) == pytest.approx(np.mean(each), abs=1e-4)


def test_with_a_scale_the_prediction_is_in_units_of_the_margin(
    engine: Engine, build: Build
) -> None:
    (t, target), _ = wrong_and_right(build)
    ids = build.strongest(t, 10)
    plain = engine.forecast(build.id, t, ids, "predicted", None)
    now = plain.margin
    enough = Scale(2 * abs(now / plain.score), 0.1, 9.0, 8, 4 * plain.score**2, 0.5)
    told = engine.forecast(build.id, t, ids, "predicted", enough)
    assert told.change == pytest.approx(2 * abs(now / plain.score) * plain.score)
    assert told.low < told.change < told.high
    assert told.flips == (now > 0)  # proponents went, so the margin fell by twice what it was
    little = replace(enough, factor=0.5 * abs(now / plain.score))
    assert engine.forecast(build.id, t, ids, "predicted", little).flips is False
    blind = replace(enough, low=-0.1)  # no better than chance
    assert engine.forecast(build.id, t, ids, "predicted", blind).change is None


# Scale.


def test_the_scale_is_least_squares_through_the_origin() -> None:
    draw = np.random.default_rng(0)
    x = draw.standard_normal(9)
    y = 40 * x + 5 * draw.standard_normal(9)
    found = scale(x, y)
    (factor,), (squares,), *_ = np.linalg.lstsq(x[:, None], y, rcond=None)
    error = np.sqrt(squares / 8 / (x @ x))
    assert found is not None and found.count == 9 and found.usable
    assert found.factor == pytest.approx(factor)
    wanted = stats.t.interval(0.95, 8, loc=factor, scale=error)
    assert (found.low, found.high) == pytest.approx(wanted)
    value, low, high = found.change(1.5)
    spread = np.sqrt(squares / 8 + (1.5 * error) ** 2)
    assert value == pytest.approx(1.5 * factor)
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 8, loc=value, scale=spread))


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    draw = np.random.default_rng(1)
    inside = np.zeros(2)
    for _ in range(400):
        x = draw.standard_normal(7)
        found = scale(x, 3 * x + draw.standard_normal(7))
        assert found is not None
        _, low, high = found.change(0.8)
        inside += found.low <= 3 <= found.high, low <= 2.4 + draw.standard_normal() <= high
    assert (0.91 < inside / 400).all() and (inside / 400 < 0.985).all()


def test_few_verifications_tell_no_scale_and_unrelated_ones_no_usable_one() -> None:
    draw = np.random.default_rng(2)
    x = draw.standard_normal(40)
    assert scale(x[:4], x[:4]) is None and agreement(x[:4], x[:4]) is None
    assert scale(np.zeros(6), x[:6]) is None
    found = scale(x, draw.standard_normal(40))
    assert found is not None and not found.usable
    y = x + draw.standard_normal(40)
    assert agreement(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)


@pytest.mark.parametrize("now", [2.0, -1.5])
def test_the_smallest_set_is_what_trying_every_number_finds(now: float) -> None:
    scores_N = np.random.default_rng(3).standard_normal(60)
    known = Scale(0.1, 0.05, 0.15, 9, 1.0, 0.1)
    order = np.argsort(-scores_N if now > 0 else scores_N)
    counts = (k for k in range(1, 61) if now * (now - 0.1 * scores_N[order[:k]].sum()) < 0)
    first = next(counts)
    assert smallest(scores_N, now, known) == tuple(order[:first])
    assert smallest(scores_N, 100 * now, known) is None


# Verification, on a data set small enough to retrain by hand.


def run_of(model: str) -> RunSpec:
    return RunSpec(
        data_id=DATA.id, model=model, width=WIDE.get(model, 1.0), epochs=3, batch=19,
        learning_rate=0.05,
    )  # fmt: skip


def by_hand(model: str, removed: tuple[int, ...], r: int) -> nn.Module:
    """A network without dropout, every step written out."""
    train_half, _ = halves(model)
    net = network(model, DATA, WIDE.get(model, 1.0), PAIRED + r).train()
    draw = torch.Generator().manual_seed(PAIRED + r)
    speed = [torch.zeros_like(p) for p in net.parameters()]
    for _ in range(3):
        for batch in torch.randperm(57, generator=draw).split(19):
            some = [int(i) for i in batch if int(i) not in removed]
            loss = nn.functional.cross_entropy(net(train_half.x_N[some]), train_half.target_N[some])
            grads = torch.autograd.grad(loss, list(net.parameters()))
            with torch.no_grad():
                for p, v, g in zip(net.parameters(), speed, grads, strict=True):
                    v.mul_(0.9).add_(g)
                    p.sub_(0.05 * v)
    return net.eval()


def spec_of(model: str, **settings: Any) -> VerifySpec:
    given = {"run": run_of(model), "test": 4, "target": 1, "removed": REMOVED, "seeds": 3}
    return VerifySpec(**given | settings)


@pytest.fixture
def plain(tmp_path: Path) -> str:
    """A network without dropout, which the steps written out do not have."""
    (tmp_path / "own.py").write_text(PLAIN_NETWORK)
    return f"{tmp_path}/own.py:net"


@pytest.fixture
def convolution(tmp_path: Path) -> str:
    """One that cannot be stacked."""
    layers = "nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(72, 3)"
    (tmp_path / "conv.py").write_text(
        f"from torch import nn\ndef net():\n    return nn.Sequential({layers})\n"
    )
    return f"{tmp_path}/conv.py:net"


@pytest.mark.parametrize("kind", ["plain", "convolution"])
def test_a_pair_is_two_networks_that_differ_in_the_removed_examples_only(
    kind: str, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    train_half, test_half = halves(model)
    pairs = [(NONE, 0), (REMOVED, 0), (NONE, 1), (REMOVED, 1)]
    found = retrained(None, DATA, train_half, test_half, run_of(model), pairs)
    for logits_TC, (removed, r) in zip(found, pairs, strict=True):
        wanted_TC = by_hand(model, removed, r)(test_half.x_N).detach().numpy()
        np.testing.assert_allclose(logits_TC, wanted_TC, atol=2e-4)
    # Beside others or alone, with an empty set or without: the same network.
    alone = retrained(None, DATA, train_half, test_half, run_of(model), [(REMOVED, 1)])
    np.testing.assert_allclose(alone[0], found[3], atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3 < np.abs(found[0] - found[2]).max()


def test_networks_trained_together_by_seed_are_those_trained_alone(plain: str) -> None:
    train_half, test_half = halves(plain)
    found = retrained(None, DATA, train_half, test_half, run_of(plain), [(REMOVED, 2)])
    recipe = replace(run_of(plain), seed=PAIRED + 2)
    net = network(plain, DATA, 1.0, recipe.seed)
    kept_N = torch.ones(57, dtype=torch.bool)
    kept_N[list(REMOVED)] = False
    train(net, train_half.x_N, train_half.target_N, recipe, beliefs=False, kept_N=kept_N)
    with torch.no_grad():
        np.testing.assert_allclose(found[0], net(test_half.x_N).numpy(), atol=1e-4)


def test_pairs_that_are_stacked_alike_have_the_same_dropout_masks() -> None:
    """Without one example a network stays nearer to its pair than to itself with other masks."""
    train_half, test_half = halves("mlp")

    def made(removed: tuple[int, ...], seeds: list[int]) -> dict[int, np.ndarray]:
        pairs = [(removed, r) for r in seeds]
        found = retrained(None, DATA, train_half, test_half, run_of("mlp"), pairs)
        return dict(zip(seeds, found, strict=True))

    whole, without, other = made(NONE, [0, 1, 2]), made((9,), [0, 1, 2]), made(NONE, [2, 0, 1])
    near, far = (np.mean([np.abs(v[r] - whole[r]).mean() for r in whole]) for v in (without, other))
    assert 0 < near < far


def test_what_happened_is_the_mean_over_pairs_with_its_interval(tmp_path: Path, plain: str) -> None:
    train_half, test_half = halves(plain)
    spec = spec_of(plain, target=2)
    found = verify(Store(tmp_path), DATA, train_half, test_half, spec)
    before, after = (
        np.array([margin_by_hand(by_hand(plain, s, r)(test_half.x_N[4:5]), 2) for r in range(3)])
        for s in (NONE, REMOVED)
    )
    assert found.before == pytest.approx(before.mean(), abs=1e-4)
    assert found.after == pytest.approx(after.mean(), abs=1e-4)
    wanted = stats.ttest_rel(after, before).confidence_interval()
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-3)
    assert found.change == pytest.approx(after.mean() - before.mean(), abs=2e-4)
    for s, said in ((NONE, found.said_before), (REMOVED, found.said_after)):
        probs = [by_hand(plain, s, r)(test_half.x_N[4:5]).softmax(1)[0] for r in range(3)]
        assert said == int(torch.stack(probs).mean(0).argmax())
    assert (found.removed, found.seeds, found.test_id) == (REMOVED, 3, 4)
    single = verify(Store(tmp_path), DATA, train_half, test_half, replace(spec, seeds=1))
    assert (single.low, single.high) == (None, None)


def test_networks_on_all_examples_are_trained_once(tmp_path: Path) -> None:
    train_half, test_half = halves("mlp")

    def made(**settings: Any):
        spec = spec_of("mlp", **settings)
        return verify(Store(tmp_path), DATA, train_half, test_half, spec)

    made(seeds=5)
    first = stamps(tmp_path, "without")
    assert len(first) == 2 * 2  # logits and manifest: on all, and without the set
    made(seeds=5, removed=(1, 2))
    second = stamps(tmp_path, "without")
    assert len(second) == 2 * 3 and {k: second[k] for k in first} == first
    told: list[str] = []
    for other in ({"test": 6}, {"target": 0}):  # the same networks, asked something else
        spec = spec_of("mlp", seeds=5, **other)
        verify(Store(tmp_path), DATA, train_half, test_half, spec, lambda *what: told.append(what))
    assert stamps(tmp_path, "without") == second and set(told) == {("retrain", 10, 10)}
    more = made(seeds=7)
    third = stamps(tmp_path, "without")
    assert len(third) == 2 * 5 and {k: third[k] for k in second} == second
    assert more.seeds == 7


def test_a_killed_verification_resumes_and_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    root, other = tmp_path / "killed", tmp_path / "undisturbed"
    spec = replace(SMALL, strategy="naive", models=1, masks=0, index_dims=8)
    build_id = Engine(root).build(spec)["build"]
    shutil.copytree(root, other)
    words = ["verify", build_id, "3", "--top", "40", "--seeds", "60", "--cache", str(root)]
    process = subprocess.Popen(
        [sys.executable, "-m", "attribution", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[1],
    )
    end = time.monotonic() + 600
    try:
        while len(list(root.glob("without/[0-9a-f]*"))) < 3:
            assert process.poll() is None and time.monotonic() < end, "no part was ever finished"
            time.sleep(0.001)
    finally:
        process.kill()
    assert process.wait() == -9
    assert not list(root.glob("verification/[0-9a-f]*"))
    kept = stamps(root, "without")
    ids = Engine(root).open(build_id).strongest(3, 40, "label")
    ended = Engine(root).verify(build_id, 3, ids, seeds=60)
    after = stamps(root, "without")
    assert {k: after[k] for k in kept} == kept and len(after) == 2 * 24
    whole = Engine(other).verify(build_id, 3, ids, seeds=60)
    assert {**ended, "created": 0} == {**whole, "created": 0}
    assert not list(root.glob("without/.*"))  # what the kill left is gone


def test_verifications_are_listed_for_every_build_on_the_same_networks(engine: Engine) -> None:
    one = engine.build(replace(SMALL, seed=5))["build"]
    two = engine.build(replace(SMALL, seed=5, estimator=EstimatorSpec(name="graddot")))["build"]
    apart = engine.build(replace(SMALL, epochs=3))["build"]
    rows = []
    for t, k in ((3, 5), (3, 10), (8, 20), (9, 40), (11, 80)):
        rows.append(engine.verify(one, t, engine.open(one).strongest(t, k, "label"), seeds=2))
        known = engine.scale(one)
        assert (known is None) == (len(rows) < 5)
    more = engine.verify(one, 11, rows[-1]["removed"], seeds=3)
    listed = engine.verifications(one)
    assert [r["id"] for r in listed].count(more["id"]) == 1 and len(listed) == 5
    assert max(listed, key=lambda r: r["seeds"]) == more  # the most pairs of each removal
    other = {r["id"]: r for r in engine.verifications(two)}
    dots_TN = engine.open(two).scores()
    for row in listed:
        assert other[row["id"]]["change"] == row["change"]
        wanted = -dots_TN[row["test_id"], list(row["removed"])].sum()
        assert other[row["id"]]["score"] == pytest.approx(wanted, rel=0.05)
    assert engine.verifications(apart) == []
    x, y = (np.array([r[name] for r in listed]) for name in ("score", "change"))
    found = engine.scale(one)
    assert found is not None and found.factor == pytest.approx((x @ y) / (x @ x))


# Bad input.


def test_a_set_to_remove_is_checked() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2])
    assert checked(labels, [4, 0, 2, 0]) == (0, 2, 4)
    for ids, found in (
        ([], "no training example"),
        ([6], "training id 6"),
        ([-1, 2], "training id -1"),
        ([4, 5], "class number 2"),
        (range(6), "every training example removed"),
    ):
        with pytest.raises(UserError) as told:
            checked(labels, ids)
        assert found in told.value.found and told.value.wanted and told.value.next_step


def test_nothing_is_trained_for_what_makes_no_sense(engine: Engine, build: Build) -> None:
    before = [stamps(engine.cache, kind) for kind in ("exact", "without", "verification")]
    every = np.flatnonzero(build.train_labels_N == 4).tolist()
    for removed, settings in (
        ([], {}), ([99999], {}), (every, {}), ([1], {"seeds": 0}), ([1], {"target": "cat"}),
    ):  # fmt: skip
        with pytest.raises(UserError):
            engine.verify(build.id, 3, removed, **settings)
    with pytest.raises(UserError):
        engine.verify(build.id, 99999, [1])
    after = [stamps(engine.cache, kind) for kind in ("exact", "without", "verification")]
    assert after == before


# Blast radius.


@pytest.mark.parametrize("label", [None, 7])
def test_the_blast_radius_is_what_dense_scores_say(build: Build, label: int | None) -> None:
    i, T = 11, len(build.test_labels_T)
    new = 7 if build.train_labels_N[i] != 7 else 6
    queries = asked(build, list(enumerate(build.predicted_T.tolist())))
    half = examples(build.spec, build.data, build.data.train)[np.array([i])]
    old_MT = dense_scores(build, queries, half)[..., 0]
    move_T = -old_MT.mean(0) * weight_of(build, i, None)
    if label is not None:
        row = Examples(half.x_N, half.key_N, torch.tensor([new]))
        new_MT = dense_scores(build, queries, row)[..., 0]
        move_T = move_T + new_MT.mean(0) * weight_of(build, i, new)
    change_d = build.edit([i], label and new)
    found_T = build.moves(change_d)
    assert dense.off(found_T, move_T) < 0.02
    found_GT = build.moves_by_network(change_d, np.arange(T))
    assert dense.off(found_GT.mean(0), found_T) < 0.002
    if label is None and not build.spec.estimator.relative:
        hits = [build.rescored(t, "predicted", [i])[0] for t in range(0, T, 50)]
        assert [h.stderr for h in hits] == pytest.approx(
            [None] * len(hits)
            if len(found_GT) == 1
            else (found_GT.std(0, ddof=1) / len(found_GT) ** 0.5)[::50].tolist(),
            rel=0.01,
        )


def weight_of(build: Build, i: int, label: int | None) -> float:
    """What the row of a training example is multiplied by, under its own or another label."""
    spec = build.spec.estimator
    given = int(build.train_labels_N[i]) if label is None else label
    half = examples(build.spec, build.data, build.data.train)[np.array([i])]
    row = Examples(half.x_N, half.key_N, torch.tensor([given]))
    if spec.q == "training":
        runs = [build._part("run", name) for name in build._networks]
        q = 1 - np.mean([r.array("belief")[i, given] for r in runs])
    else:
        views = [seen(w, m) for w, m in zip(build._wholes, build.members, strict=True)]
        if build.spec.forward_only:
            nets = {id(w.network): w for w in build._wholes}.values()
            views = [w.view(mask, build.spec.p) for w in nets for mask in range(build.spec.masks)]
        found = [margin_by_hand(view.logits(row.x_N, row.key_N), given) for view in views]
        q = np.mean(1 / (1 + np.exp(found)))
    weight = q**spec.q_power
    if spec.relative:
        own = [
            dense_self(build, m, member_features(build, m, row)) for m in range(len(build.members))
        ]
        weight /= np.sqrt(np.mean(own))
    return float(weight)


def dense_self(build: Build, m: int, phi_1K: np.ndarray) -> float:
    features = build._part("features", build._features[m])
    phi = phi_of(features, "train", build.members[m], build.spec.estimator).numpy().astype(float)
    kernel = phi.T @ phi
    kernel += build.spec.estimator.damping * np.diag(kernel).mean() * np.eye(len(kernel))
    return float((phi_1K @ np.linalg.inv(kernel) @ phi_1K.T)[0, 0])


def test_moves_of_several_add_up(build: Build) -> None:
    alone = [build.edit([i]) for i in (3, 8, 11)]
    np.testing.assert_allclose(build.edit([3, 8, 11]), sum(alone), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (([-1],), "train id -1"),
        (([3, 99999],), "train id 99999"),
        (([3], 10), "'10'"),
        (([3], 1, 0), "k 0"),
        (([3], 1, 501), "k 501"),
    ],
)
def test_a_blast_radius_of_what_is_not_there_is_refused(
    tiny: Tiny, arguments: tuple, found: str
) -> None:
    with pytest.raises(UserError) as told:
        Engine(tiny.cache, tiny.workspace).blast(tiny.build, *arguments)
    assert found in told.value.found


def test_moves_are_for_the_better_by_the_test_labels_in_force(tiny: Tiny, tmp_path: Path) -> None:
    engine = Engine(tiny.cache, tmp_path)
    build = engine.open(tiny.build)
    (was,) = engine.blast(tiny.build, [4], k=1)
    other = next(c for c in range(10) if c not in (was.label, was.predicted))
    label = was.predicted if was.label != was.predicted else other
    engine.decisions.decide(build.test_half.id, build.test_ids[was.test_id], "relabel", label=label)
    (now,) = engine.blast(tiny.build, [4], k=1)
    assert (now.test_id, now.label, now.better) == (was.test_id, label, not was.better)


def test_the_engine_tells_moves_as_shares_until_they_are_scaled(tiny: Tiny) -> None:
    engine = Engine(tiny.cache, tiny.workspace)
    build = engine.open(tiny.build)
    steps: list[tuple[int, int]] = []
    rows = engine.blast(tiny.build, [4], 3, 6, report=lambda _, done, of: steps.append((done, of)))
    assert steps == [(m, 4) for m in range(4)]
    move_T = build.moves(build.edit([4], 3))
    order = np.argsort(-np.abs(move_T))[:6]
    assert [r.test_id for r in rows] == order.tolist()
    assert [r.move for r in rows] == pytest.approx(move_T[order], rel=1e-3)
    assert abs(rows[0].share) == pytest.approx(1, rel=1e-3)
    assert all(r.change is None for r in rows)
    both = engine.blast(tiny.build, [4], 3, 5, each=True)
    falling = np.argsort(-move_T)
    assert [r.test_id for r in both] == [*falling[:5], *falling[::-1][:5]]
    assert [r.move > 0 for r in both] == [True] * 5 + [False] * 5
    for r in rows + both:
        right = build.test_labels_T[r.test_id] == build.predicted_T[r.test_id]
        assert r.better == ((r.move > 0) if right else (r.move < 0))
        assert r.stderr is not None and r.shaky == (abs(r.move) < 2 * r.stderr)


def test_moves_in_units_of_the_margin_are_those_of_a_verification() -> None:
    known = scale(np.arange(1.0, 9), 3 * np.arange(1.0, 9) + np.resize([0.1, -0.1], 8))
    move_Gk = np.array([[1.0, -2.0], [3.0, -2.0]])
    ids = np.array([7, 9])
    first, second = moved(ids, ids % 2, ids % 3, move_Gk, 4.0, known)
    assert (first.test_id, first.label, first.predicted) == (7, 1, 1)
    assert (first.move, first.share, first.stderr) == (2.0, 0.5, 1.0)
    assert (first.change, first.low, first.high) == known.change(2.0)
    assert second.stderr == 0 and second.change == known.change(-2.0)[0]
    random = np.random.default_rng(0)
    useless = scale(random.normal(size=9), random.normal(size=9))
    assert moved(ids, ids, ids, move_Gk, 4.0, useless)[0].change is None


def test_the_line_is_drawn_as_far_as_the_predictions_reach() -> None:
    rows = [{"score": s, "change": 4 * s + 0.1 * (-1) ** n} for n, s in enumerate((1, 2, 3, 4, 5))]
    known = scale_of(rows)
    assert known is not None
    assert predicted(rows, None) == [1, 2, 3, 4, 5]
    assert predicted(rows, known) == pytest.approx([known.change(s)[0] for s in (1, 2, 3, 4, 5)])
    line = band(rows, known, 3)
    for at, score in enumerate((-0.25, 2.5, 5.25)):
        told = line.predicted_X[at], line.low_X[at], line.high_X[at]
        assert told == pytest.approx(known.change(score))
