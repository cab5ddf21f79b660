"""The formula of the index written down with numpy in double precision: what tests compare with."""

from collections.abc import Sequence

import numpy as np

from attribution.records import EstimatorSpec


def member_scores(phi_NK, psi_TK, spec: EstimatorSpec) -> np.ndarray:
    """One member's scores (T, N), without q."""
    phi, psi = np.asarray(phi_NK, float), np.asarray(psi_TK, float)
    if spec.name == "gradcos":
        phi = phi / np.linalg.norm(phi, axis=1, keepdims=True)
        psi = psi / np.linalg.norm(psi, axis=1, keepdims=True)
    if spec.name == "ekfac":
        moment = (phi**2).mean(0)
        return psi @ np.diag(1 / (moment + spec.damping * moment.mean())) @ phi.T
    if spec.name != "trak":
        return psi @ phi.T
    kernel = phi.T @ phi
    ridge = spec.damping * np.diag(kernel).mean()
    return psi @ np.linalg.inv(kernel + ridge * np.eye(len(kernel))) @ phi.T


def scores(train: Sequence, queries: Sequence, q_MN: np.ndarray, spec: EstimatorSpec) -> np.ndarray:
    """Mean over the members of their scores, times (mean over the members of q) ** power."""
    each = [member_scores(p, z, spec) for p, z in zip(train, queries, strict=True)]
    return np.mean(each, 0) * np.mean(np.asarray(q_MN, float), 0) ** spec.q_power


def whitened(phi_NK, spec: EstimatorSpec) -> np.ndarray:
    """Rows whose inner products are a member's scores among its own training examples."""
    phi = np.asarray(phi_NK, float)
    if spec.name == "gradcos":
        return phi / np.linalg.norm(phi, axis=1, keepdims=True)
    if spec.name == "ekfac":
        moment = (phi**2).mean(0)
        return phi / np.sqrt(moment + spec.damping * moment.mean())
    if spec.name != "trak":
        return phi
    kernel = phi.T @ phi
    kernel += spec.damping * np.diag(kernel).mean() * np.eye(len(kernel))
    value, vector = np.linalg.eigh(kernel)
    return phi @ (vector / np.sqrt(value)) @ vector.T


def astray(ids_TK, scores_TN, opponents: bool = False) -> float:
    """How far the scores at these ids are from the highest K, or lowest, in their order.

    Not whether the ids are the same: two ways to compute may turn what is all but equal.
    """
    ids, scores = np.asarray(ids_TK), np.asarray(scores_TN, float)
    assert all(len(set(row)) == len(row) for row in ids.tolist())
    strongest = np.sort(scores if opponents else -scores, 1)[:, : ids.shape[1]]
    found = np.take_along_axis(scores, ids, 1)
    wanted = strongest if opponents else -strongest
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(scores).max())


def off(found, wanted) -> float:
    """Largest difference in units of the largest entry wanted."""
    found, wanted = np.asarray(found, float), np.asarray(wanted, float)
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())
