"""Settings chosen without retraining: each stand-in against its definition written out."""

import json
from dataclasses import replace

import dense
import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from torch import nn
from typer.testing import CliRunner

from attribution import tuning
from attribution.__main__ import app
from attribution.engine import Engine
from attribution.features import Examples
from attribution.records import (
    BuildSpec,
    DataSpec,
    EstimatorSpec,
    FeatureSpec,
    UserError,
)
from attribution.strategies import axes, whole

N, T, K = 60, 9, 12


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    spread = torch.linspace(3, 0.1, K)
    return tuple(torch.randn(n, K, generator=draw) * spread for n in (N, T))


def kernel(phi_NK: torch.Tensor) -> tuple[np.ndarray, float]:
    found = phi_NK.double().numpy().T @ phi_NK.double().numpy()
    return found, float(np.diag(found).mean())


@pytest.mark.parametrize("damping", [0.01, 0.3, 5.0])
def test_scores_are_trak(damping):
    phi_NK, phi_TK = drawn()
    wanted = dense.member_scores(phi_NK, phi_TK, EstimatorSpec(damping=damping))
    found = tuning.spectrum(phi_NK, phi_TK)
    assert dense.off(found.scores(damping), wanted) < 1e-4
    weight_NS = torch.from_numpy(np.random.default_rng(0).random((len(phi_NK), 3)))
    assert dense.off(found.summed(damping) @ weight_NS, wanted @ weight_NS.numpy()) < 1e-4


@pytest.mark.parametrize("damping", [0.01, 0.3, 5.0])
def test_the_leverage_left_is_its_formula(damping):
    phi_NK, phi_TK = drawn()
    K_KK, unit = kernel(phi_NK)
    R = np.linalg.inv(K_KK + damping * unit * np.eye(K))
    shares = [psi @ R @ K_KK @ R @ psi / (psi @ R @ psi) for psi in phi_TK.double().numpy()]
    found = tuning.spectrum(phi_NK, phi_TK).left(damping)
    assert found == pytest.approx(np.mean(shares), rel=1e-4)


def test_the_damping_leaves_half_of_the_leverage():
    found = tuning.spectrum(*drawn())
    chosen = tuning.damping(found)
    assert found.left(chosen) == pytest.approx(0.5, abs=0.01)
    assert found.left(1e-9) > 0.99 > 0.01 > found.left(1e9)


def test_held_out_margins_are_those_of_ridge_regression_without_the_example():
    phi_NK, phi_TK = drawn()
    y_N = phi_NK @ torch.randn(K, generator=torch.Generator().manual_seed(3))
    y_N = y_N + 2 * torch.randn(N, generator=torch.Generator().manual_seed(4))
    K_KK, unit = kernel(phi_NK)
    phi, y = phi_NK.double().numpy(), (y_N - y_N.mean()).double().numpy()
    errors = []
    for i in range(N):
        rest = np.arange(N) != i
        fitted = np.linalg.solve(
            phi[rest].T @ phi[rest] + 0.3 * unit * np.eye(K), phi[rest].T @ y[rest]
        )
        errors.append(y[i] - phi[i] @ fitted)
    found = tuning.spectrum(phi_NK, phi_TK).held_out(y_N, 0.3)
    assert found == pytest.approx(1 - np.sum(np.square(errors)) / np.sum(y**2), abs=1e-4)


def halves(classes: int) -> tuple[Examples, Examples]:
    draw = torch.Generator().manual_seed(1)
    made = []
    for count in (80, 7):
        x = torch.randn(count, 5, generator=draw)
        target = (x[:, 0] + 0.5 * torch.randn(count, generator=draw)).sign().long().clamp_min(0)
        made.append(Examples(x, torch.arange(count), target + (x[:, 1] > 1) * (classes - 2)))
    return made[0], made[1]


def test_heads_are_logistic_regressions_on_what_reaches_the_last_layer(monkeypatch):
    monkeypatch.setattr(tuning, "HEADS", 3)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 3)).eval()
    train, test = halves(3)
    found = tuning.refitted(network, train, test, 3)
    with torch.no_grad():
        inner = [
            np.c_[network[1](network[0](some.x_N)).numpy(), np.ones(len(some))]
            for some in (train, test)
        ]
    for chosen_N, margin_T in zip(found.subsets_SN, found.margins_ST, strict=True):
        assert chosen_N.sum() == 40
        oracle = LogisticRegression(
            C=1 / (2 * tuning.DECAY * 40), fit_intercept=False, max_iter=5000, tol=1e-9
        ).fit(inner[0][chosen_N], train.target_N[chosen_N])
        logits = torch.from_numpy(inner[1] @ oracle.coef_.T)
        own = logits.gather(1, test.target_N[:, None])[:, 0]
        others = logits.scatter(1, test.target_N[:, None], -torch.inf).logsumexp(1)
        np.testing.assert_allclose(margin_T, own - others, atol=0.02)


def test_a_network_without_a_linear_last_layer_has_no_heads():
    train, test = halves(2)
    assert tuning.refitted(nn.Sequential(nn.Linear(5, 3), nn.Tanh()), train, test, 2) is None


@pytest.mark.parametrize("wanted", [0.0, 0.5, 1.0])
def test_the_power_is_the_one_that_predicts_the_heads(wanted):
    draw = np.random.default_rng(0)
    scores_TN = torch.from_numpy(draw.standard_normal((20, 300)))
    q_N = torch.from_numpy(draw.random(300) ** 6)
    subsets_SN = draw.random((40, 300)) < 0.5
    margins_ST = ((scores_TN * q_N**wanted).numpy() @ subsets_SN.T).T
    heads = tuning.Heads(subsets_SN, margins_ST)
    assert tuning.power(scores_TN, q_N, heads) == wanted
    rivals = [p for p in tuning.POWERS if p < wanted]
    for p in rivals:  # which do predict, only less well
        sums = (scores_TN * q_N**p).numpy() @ subsets_SN.T
        fit = np.mean([spearmanr(a, b).statistic for a, b in zip(sums, margins_ST.T, strict=True)])
        assert 0.3 < fit < 1 - tuning.NEARLY


TINY = BuildSpec(
    data=DataSpec(noise=0.1),
    width=0.1,
    epochs=2,
    models=1,
    strategy="dropout",
    **axes("dropout", {"masks": 2}),
    features=FeatureSpec(ka=8, kg=4),
    index_dims=32,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Engine, str]:
    engine = Engine(tmp_path_factory.mktemp("tuning") / "cache")
    return engine, engine.build(TINY)["build"]


def test_a_build_is_tuned_from_its_own_network_and_the_command_makes_the_one_chosen(made):
    engine, build_id = made
    runs = len(list((engine.cache / "run").iterdir()))
    found = engine.tune(build_id)
    assert len(list((engine.cache / "run").iterdir())) == runs  # nothing was trained
    assert [(w["ka"], w["kg"]) for w in found["widths"]] == list(tuning.WIDTHS)
    best = max(found["widths"], key=lambda w: w["held_out"])
    assert {k: found[k] for k in ("ka", "kg", "damping")} == {
        k: best[k] for k in ("ka", "kg", "damping")
    }
    assert found["q_power"] in tuning.POWERS and found["refitted"]
    words = [*found["options"], "--cache", str(engine.cache), "--json"]
    told = CliRunner().invoke(app, ["build", *words])
    spec = engine.open(json.loads(told.stdout)["build"]).spec
    assert (spec.features.ka, spec.features.kg) == (best["ka"], best["kg"])
    assert (spec.estimator.damping, spec.estimator.q_power) == (best["damping"], found["q_power"])
    assert replace(spec, features=TINY.features, estimator=TINY.estimator) == whole(TINY)


def test_the_command_line_says_what_the_engine_found(made):
    engine, build_id = made
    where = ["--cache", str(engine.cache)]
    told = CliRunner().invoke(app, ["tune", build_id, *where, "--json"])
    assert json.loads(told.stdout) == engine.tune(build_id)
    shown = CliRunner().invoke(app, ["tune", build_id, *where]).stdout
    assert "128x8" in shown and "--dims" in shown


def test_settings_of_another_estimator_are_not_tuned(made):
    engine, _ = made
    other = replace(TINY, estimator=EstimatorSpec(name="gradcos", q_power=0.5))
    build_id = engine.build(other)["build"]
    with pytest.raises(UserError) as told:
        engine.tune(build_id)
    assert "gradcos" in told.value.found and "trak" in told.value.wanted
