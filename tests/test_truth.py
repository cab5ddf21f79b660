"""Scores of attributions by retraining: against scipy and simulation; retraining by hand."""

import shutil
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import spearmanr
from torch import nn

from attribution.data import Dataset, Split, example_ids
from attribution.engine import Engine
from attribution.features import Examples
from attribution.members import example_keys
from attribution.metrics import ceiling, interval, lds
from attribution.models import inputs, network
from attribution.records import (
    BuildSpec,
    DataSpec,
    FeatureSpec,
    Report,
    RunSpec,
    TruthSpec,
    UserError,
    silent,
)
from attribution.store import Store
from attribution.train import train
from attribution.truth import (
    FIRST_SEED,
    PART,
    Truth,
    differing,
    opened,
    subset,
    truth,
    truth_spec,
)


def test_lds_is_spearmans_correlation_of_each_test() -> None:
    draw = np.random.default_rng(0)
    predicted_TS = draw.standard_normal((7, 40))
    margins_ST = (predicted_TS + draw.standard_normal((7, 40))).T
    predicted_TS = predicted_TS.round(1)  # with ties
    found_T = lds(predicted_TS, margins_ST)
    for t in range(7):
        assert found_T[t] == pytest.approx(spearmanr(predicted_TS[t], margins_ST[:, t]).statistic)


def test_lds_of_a_prediction_that_does_not_vary_is_zero() -> None:
    margins_ST = np.random.default_rng(0).standard_normal((9, 2))
    predicted_TS = np.stack([np.ones(9), margins_ST[:, 1] ** 3])
    assert lds(predicted_TS, margins_ST).tolist() == [0, pytest.approx(1)]


def test_the_interval_holds_the_true_value_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(1)

    def sample(subsets: int) -> tuple[np.ndarray, np.ndarray]:
        predicted_TS = draw.standard_normal((6, subsets))
        return predicted_TS, (predicted_TS + 1.5 * draw.standard_normal((6, subsets))).T

    true = lds(*sample(20_000)).mean()
    held = 0
    for _ in range(60):
        low, high = interval(*sample(100), np.random.default_rng(2), repeats=80)
        assert low < high
        held += low <= true <= high
    assert 50 <= held <= 60


def test_the_interval_is_narrower_with_more_subsets() -> None:
    draw = np.random.default_rng(3)
    predicted_TS = draw.standard_normal((4, 400))
    margins_ST = (predicted_TS + draw.standard_normal((4, 400))).T
    few, many = (
        np.diff(interval(predicted_TS[:, :s], margins_ST[:s], np.random.default_rng(0)))[0]
        for s in (25, 400)
    )
    assert few == pytest.approx(4 * many, rel=0.5)


@pytest.mark.parametrize("seeds", [2, 3, 4, 5])
def test_the_ceiling_is_what_a_perfect_attribution_reaches(seeds: int) -> None:
    draw = np.random.default_rng(4)
    signal_ST = draw.standard_normal((300, 40))
    margins_SRT = signal_ST[:, None] + 1.2 * draw.standard_normal((300, seeds, 40))
    perfect = lds(signal_ST.T, margins_SRT.mean(1)).mean()
    assert ceiling(margins_SRT) == pytest.approx(perfect, abs=0.02)


def test_a_single_seed_tells_no_ceiling_and_pure_noise_has_none() -> None:
    draw = np.random.default_rng(5)
    assert ceiling(draw.standard_normal((30, 1, 4))) is None
    assert ceiling(draw.standard_normal((400, 4, 50))) == pytest.approx(0, abs=0.15)


# Ground truth by retraining, on a data set small enough to retrain by hand.

PLAIN_NETWORK = """
from torch import nn
def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 3))
"""
WIDE = {"mlp": 0.1, "cnn": 0.2}


def small_data() -> Dataset:
    """64 images of three classes that can be learned."""
    draw = np.random.default_rng(0)
    labels_N = np.arange(64) % 3
    images = draw.integers(0, 120, (64, 8, 8))
    images[np.arange(64), labels_N] += 100
    images = images.astype(np.uint8)
    halves = [
        Split(images[part], labels_N[part], example_ids(images[part]))
        for part in (slice(0, 57), slice(57, 64))
    ]
    return Dataset("d" * 12, DataSpec(), ("a", "b", "c"), *halves, (0.4,), (0.2,))


DATA = small_data()


def halves(model: str) -> list[Examples]:
    return [
        Examples(
            inputs(model, DATA, half.images),
            torch.from_numpy(example_keys(half.ids).copy()),
            torch.from_numpy(half.labels_N),
        )
        for half in (DATA.train, DATA.test)
    ]


def spec_of(model: str, **settings: Any) -> TruthSpec:
    run = RunSpec(
        data_id=DATA.id, model=model, width=WIDE.get(model, 1.0), epochs=3, batch=8,
        learning_rate=0.05,
    )  # fmt: skip
    return TruthSpec(**{"run": run, "subsets": 4, "seeds": 2} | settings)


def made(root: Path, spec: TruthSpec, report: Report = silent) -> Truth:
    return truth(Store(root), DATA, *halves(spec.run.model), spec, report)


def margins_by_hand(net: nn.Module, test: Examples) -> np.ndarray:
    with torch.no_grad():
        logits_TC = net.eval()(test.x_N).double().numpy()
    rows, label_T = np.arange(len(test)), test.target_N.numpy()
    others_TC = np.where(np.arange(3) == label_T[:, None], -np.inf, logits_TC)
    return logits_TC[rows, label_T] - logsumexp(others_TC, 1)


def test_margins_are_those_of_networks_retrained_by_hand(tmp_path: Path) -> None:
    """Without dropout: every step of every network written out, its examples in the same order."""
    (tmp_path / "own.py").write_text(PLAIN_NETWORK)
    spec = spec_of(f"{tmp_path}/own.py:net")
    found = made(tmp_path / "cache", spec)
    assert found.margins_SRT.shape == (4, 2, 7) and found.margins_SRT.dtype == np.float32
    train_half, test_half = halves(spec.run.model)
    for r in range(2):
        order = torch.Generator().manual_seed(FIRST_SEED + r)
        orders = [torch.rand(4, 28, generator=order).argsort(1) for _ in range(3)]
        for s in range(4):
            net = network(spec.run.model, DATA, 1.0, FIRST_SEED + 1000 * s + r)
            rows_n = np.flatnonzero(found.subsets_SN[s])
            speed = [torch.zeros_like(p) for p in net.parameters()]
            for order_n in (o[s] for o in orders):
                for batch in order_n.split(8):
                    some = torch.from_numpy(rows_n[batch.numpy()])
                    loss = nn.functional.cross_entropy(
                        net(train_half.x_N[some]), train_half.target_N[some]
                    )
                    grads = torch.autograd.grad(loss, list(net.parameters()))
                    with torch.no_grad():
                        for p, v, g in zip(net.parameters(), speed, grads, strict=True):
                            v.mul_(0.9).add_(g)
                            p.sub_(0.05 * v)
            wanted_T = margins_by_hand(net, test_half)
            np.testing.assert_allclose(found.margins_SRT[s, r], wanted_T, atol=1e-4)


def test_networks_that_cannot_be_stacked_are_trained_one_by_one_to_the_same_contract(
    tmp_path: Path,
) -> None:
    spec = spec_of("cnn")
    told: list[tuple[str, int, int]] = []
    found = made(tmp_path, spec, lambda *what: told.append(what))
    train_half, test_half = halves("cnn")
    for s, r in ((0, 0), (3, 1)):
        rows = torch.from_numpy(found.subsets_SN[s])
        recipe = replace(spec.run, seed=FIRST_SEED + 1000 * s + r)
        net = network("cnn", DATA, 0.2, recipe.seed)
        train(net, train_half.x_N[rows], train_half.target_N[rows], recipe)
        np.testing.assert_allclose(
            found.margins_SRT[s, r], margins_by_hand(net, test_half), atol=1e-5
        )
    assert len(np.unique(found.margins_SRT.reshape(8, 7), axis=0)) == 8  # each its own network
    shares = [done / total for _, done, total in told]
    assert {stage for stage, _, _ in told} == {"truth"}
    assert shares == sorted(shares) and (shares[0], shares[-1]) == (0, 1)
    np.testing.assert_allclose(found.margins_ST, found.margins_SRT.mean(1))


@pytest.mark.parametrize("share", [0.5, 0.3])
def test_subsets_are_of_one_size_differ_and_can_be_drawn_again(share: float) -> None:
    spec = spec_of("mlp", share=share)
    drawn = np.stack([subset(spec, s, 57) for s in range(40)])
    assert drawn.dtype == bool and set(drawn.sum(1)) == {round(share * 57)}
    assert len(np.unique(drawn, axis=0)) == 40
    np.testing.assert_array_equal(drawn, np.stack([subset(spec, s, 57) for s in range(40)]))
    assert not np.array_equal(drawn[0], subset(replace(spec, seed=1), 0, 57))
    rate_N = drawn.mean(0)  # every example is in about its share of them
    assert rate_N.min() > share - 0.32 and rate_N.max() < share + 0.32
    overlap = (drawn[:20] & drawn[20:]).sum() / drawn[:20].sum()
    assert overlap == pytest.approx(share, abs=0.08)


def stamps(root: Path, kind: str) -> dict[str, int]:
    found = root.glob(f"{kind}/[0-9a-f]*/*")
    return {p.relative_to(root).as_posix(): p.stat().st_mtime_ns for p in found}


def test_more_subsets_and_more_seeds_reuse_the_networks_that_are_there(tmp_path: Path) -> None:
    small = made(tmp_path, spec_of("mlp", subsets=PART, seeds=2))
    kept = stamps(tmp_path, "retrained")
    assert len(kept) == 2 * 2  # margins and manifest of each seed's part
    more = made(tmp_path, spec_of("mlp", subsets=PART + 5, seeds=3))
    after = stamps(tmp_path, "retrained")
    assert {k: after[k] for k in kept} == kept
    assert len(after) == 2 * 2 * 3
    np.testing.assert_array_equal(more.margins_SRT[:PART, :2], small.margins_SRT)
    np.testing.assert_array_equal(more.subsets_SN[:PART], small.subsets_SN)
    assert more.id != small.id
    again = stamps(tmp_path, "truth")
    assert made(tmp_path, small.spec).id == small.id
    assert stamps(tmp_path, "truth") == again and stamps(tmp_path, "retrained") == after


def test_a_truth_read_again_is_the_one_that_was_made(tmp_path: Path) -> None:
    spec = spec_of("mlp", subsets=3, seeds=1)
    one, two = made(tmp_path / "a", spec), made(tmp_path / "b", spec)
    (artifact,) = Store(tmp_path / "a").all("truth")
    read = opened(artifact, 57)
    assert read.spec == truth_spec(artifact) == spec
    for other in (two, read):
        assert other.id == one.id
        np.testing.assert_array_equal(other.margins_SRT, one.margins_SRT)
        np.testing.assert_array_equal(other.subsets_SN, one.subsets_SN)


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_no_network_of_a_truth_is_one_that_attributes(tmp_path: Path, model: str) -> None:
    """Nor begins as one: not a single weight matrix is shared with the usual seeds'."""
    found = made(tmp_path, spec_of(model))
    train_half, test_half = halves(model)
    first = {}
    for seed in (*range(5), *range(1000, 1005)):  # --seed 0 and 1
        net = network(model, DATA, WIDE[model], seed)
        first[seed] = next(net.parameters()).detach().clone()
        recipe = replace(found.spec.run, seed=seed)
        train(net, train_half.x_N, train_half.target_N, recipe)
        distance = np.abs(found.margins_SRT - margins_by_hand(net, test_half)).max(2)
        assert distance.min() > 1e-3
    for s, r in product(range(4), range(2)):
        net = network(model, DATA, WIDE[model], FIRST_SEED + 1000 * s + r)
        start = next(net.parameters())
        assert not any(torch.equal(start, other) for other in first.values())


def test_no_seed_that_a_build_may_have_is_one_of_a_truths_networks() -> None:
    most = 1000 * 10**9 + 1000  # --seed 1000000000, --models 1000
    assert FIRST_SEED > most
    assert FIRST_SEED + 1000 * 10**6 + 1000 < 2**63  # what torch takes


@pytest.mark.parametrize(
    ("settings", "found", "wanted"),
    [
        ({"subsets": 1}, "--subsets 1", "from 2"),
        ({"subsets": 0}, "--subsets 0", "from 2"),
        ({"seeds": 0}, "--seeds 0", "from 1"),
        ({"share": 1.0}, "--share 1", "from 0.01 to 0.99"),
        ({"share": float("nan")}, "--share nan", "from 0.01"),
    ],
)
def test_a_truth_that_makes_no_sense_is_refused_before_anything_is_written(
    tmp_path: Path, settings: dict[str, Any], found: str, wanted: str
) -> None:
    with pytest.raises(UserError) as told:
        made(tmp_path / "cache", spec_of("mlp", **settings))
    assert found in told.value.found and wanted in told.value.wanted
    assert found.split()[0] in told.value.next_step
    assert list(tmp_path.iterdir()) == []


def test_differing_names_the_fields_of_another_recipe_and_ignores_the_seed() -> None:
    run = spec_of("mlp").run
    assert differing(run, replace(run, seed=9)) == []
    changed = {
        "data_id": "e" * 12, "model": "cnn", "model_code": "abc", "width": 0.3, "epochs": 9,
        "learning_rate": 0.5, "momentum": 0.1, "weight_decay": 0.2, "batch": 3,
    }  # fmt: skip
    for name, value in changed.items():
        assert differing(run, replace(run, **{name: value})) == [name]
    assert set(differing(run, replace(run, **changed))) == set(changed)


# A truth killed on its way.


def test_a_killed_truth_resumes_and_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    root, other = tmp_path / "killed", tmp_path / "undisturbed"
    build = BuildSpec(
        width=0.1, strategy="naive", models=1, masks=0, epochs=2,
        features=FeatureSpec(ka=4, kg=2), index_dims=8,
    )  # fmt: skip
    build_id = Engine(root).build(build)["build"]
    shutil.copytree(root, other)
    words = ["truth", build_id, "--subsets", "60", "--seeds", "2", "--cache", str(root)]
    process = subprocess.Popen(
        [sys.executable, "-m", "attribution", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[1],
    )
    end = time.monotonic() + 600
    try:
        while len(list(root.glob("retrained/[0-9a-f]*"))) < 2:
            assert process.poll() is None and time.monotonic() < end, "no part was ever finished"
            time.sleep(0.001)
    finally:
        process.kill()
    assert process.wait() == -9
    assert not (root / "truth").exists()
    kept = stamps(root, "retrained")
    assert 2 * 2 <= len(kept) < 2 * 6
    ended = Engine(root).truth(build_id, 60, 2)
    after = stamps(root, "retrained")
    assert {k: after[k] for k in kept} == kept and len(after) == 2 * 6
    whole = Engine(other).truth(build_id, 60, 2)
    assert ended.id == whole.id
    np.testing.assert_array_equal(ended.margins_SRT, whole.margins_SRT)
    assert not list(root.glob("retrained/.*"))  # what the kill left is gone
