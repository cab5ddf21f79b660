"""Estimators against closed forms: the kernel's inverse, leave-one-out by refitting."""

import dense
import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import spearmanr

from attribution import index
from attribution.estimators import ESTIMATORS, q, whitening
from attribution.records import EstimatorSpec, UserError


def drawn(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, columns))).float()


@pytest.mark.parametrize("name", list(ESTIMATORS))
@pytest.mark.parametrize("scale", [1e-4, 1, 1e4])
def test_inner_products_of_whitened_rows_are_the_scores_of_the_closed_form(name, scale):
    spec = EstimatorSpec(name=name, damping=0.1)
    phi, psi = drawn(80, 12) * scale, drawn(7, 12, 1) * scale
    white = whitening(phi, spec)
    wanted = dense.member_scores(phi, psi, spec)
    assert dense.off(white(psi) @ white(phi).T, wanted) < 1e-5


def test_the_damping_is_in_units_of_the_kernels_mean_diagonal():
    phi = drawn(50, 6)
    spec = EstimatorSpec(damping=0.3)
    white, white_of_scaled = whitening(phi, spec), whitening(1000 * phi, spec)
    torch.testing.assert_close(white(phi), white_of_scaled(1000 * phi))


def test_without_damping_trak_is_the_hat_matrix_of_least_squares():
    phi = drawn(40, 5)
    w = whitening(phi, EstimatorSpec(damping=0))(phi).double().numpy()
    basis, _ = np.linalg.qr(phi.double().numpy())
    np.testing.assert_allclose(w @ w.T, basis @ basis.T, atol=1e-5)


@pytest.mark.parametrize("examples, features", [(10, 30), (100, 140)])
def test_a_kernel_without_damping_of_more_features_than_examples_is_refused(examples, features):
    with pytest.raises(UserError, match="wanted a positive damping.*raise --damping") as raised:
        whitening(drawn(examples, features), EstimatorSpec(damping=0))
    assert f"{features} features on {examples} examples" in str(raised.value)


def test_an_example_without_a_gradient_has_score_zero_under_every_estimator():
    phi = drawn(20, 4)
    phi[3] = 0
    for name in ESTIMATORS:
        white = whitening(phi, EstimatorSpec(name=name))
        scores = white(phi) @ white(phi).T
        assert torch.isfinite(scores).all()
        assert not scores[3].any() and not scores[:, 3].any()


def test_an_unknown_estimator_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="unknown estimator 'shapley'.*trak, graddot, gradcos"):
        whitening(drawn(9, 2), EstimatorSpec(name="shapley"))


def test_q_is_one_minus_p_where_float32_cannot_subtract():
    margin = np.array([-30.0, -1, 0, 1, 20, 60])
    found = q(torch.from_numpy(margin).float()).double().numpy()
    np.testing.assert_allclose(found, np.exp(-np.logaddexp(0, margin)), rtol=1e-6)
    assert (found > 0).all()


def test_trak_on_ridge_regression_is_leave_one_out_by_refitting_up_to_the_leverage():
    draw = np.random.default_rng(4)
    x, z = draw.normal(size=(60, 8)), draw.normal(size=(10, 8))
    y = x @ draw.normal(size=8) + draw.normal(size=60)
    damping = 0.2
    ridge = damping * np.diag(x.T @ x).mean() * np.eye(8)

    def fitted(keep: np.ndarray) -> np.ndarray:
        return np.linalg.solve(x[keep].T @ x[keep] + ridge, x[keep].T @ y[keep])

    every = np.arange(60)
    theta = fitted(every)
    left_out = np.stack([z @ (theta - fitted(every[every != i])) for i in every], 1)

    residual = y - x @ theta  # the loss pulls an example by its residual, as q does a class's
    phi = torch.from_numpy(x * np.sign(residual)[:, None]).float()
    pull = torch.from_numpy(np.abs(residual)).float()
    spec = EstimatorSpec(damping=damping, q_power=1)
    made = index.exact([phi], pull, spec)
    psi = torch.from_numpy(z).float()
    scores, ids = made.search(made.query([psi]), 60)
    by_id = np.take_along_axis(scores, ids.argsort(1), 1)
    w = whitening(phi, spec)(phi)
    leverage = w.square().sum(1).numpy()
    assert dense.off(by_id / (1 - leverage), left_out) < 1e-4
    for found, wanted in zip(by_id, left_out, strict=True):
        assert spearmanr(found, wanted).statistic > 0.98


def test_trak_on_logistic_regression_ranks_like_leave_one_out_by_refitting():
    draw = np.random.default_rng(1)
    x, z = draw.normal(size=(60, 5)), draw.normal(size=(12, 5))
    side = np.sign(x @ draw.normal(size=5) + 1.5 * draw.normal(size=60))
    damping = 0.05

    def fitted(keep: np.ndarray) -> np.ndarray:
        theta, rows = np.zeros(5), x[keep] * side[keep, None]
        for _ in range(30):  # Newton
            miss = expit(-rows @ theta)
            bend = (rows * (miss * (1 - miss))[:, None]).T @ rows + 0.5 * np.eye(5)
            theta = theta + np.linalg.solve(bend, rows.T @ miss - 0.5 * theta)
        return theta

    every = np.arange(60)
    theta = fitted(every)
    left_out = np.stack([z @ (theta - fitted(every[every != i])) for i in every], 1)
    phi = torch.from_numpy(x * side[:, None]).float()
    miss = q(torch.from_numpy(side * (x @ theta)).float())
    made = index.exact([phi], miss, EstimatorSpec(damping=damping, q_power=1))
    scores, ids = made.search(made.query([torch.from_numpy(z).float()]), 60)
    by_id = np.take_along_axis(scores, ids.argsort(1), 1)
    ranks = [spearmanr(a, b).statistic for a, b in zip(by_id, left_out, strict=True)]
    assert min(ranks) > 0.9
