"""From feature blocks to vectors whose inner product is the score.

Every estimator here has the same shape: it learns a `Whitening` from one member's training
features and turns features, of training examples and queries alike, into vectors w with

    score(z, i) = mean_m <w_m(z), w_m(i)> * (mean_m q_m(i)) ** q_power

Axes: N examples, K features of one member.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .records import EstimatorSpec, UserError, known


@dataclass(frozen=True, eq=False)
class Whitening:
    """``w = phi @ matrix``, of rows of length one where `unit`; no matrix is the identity."""

    matrix_KK: Tensor | None = None
    unit: bool = False

    def __call__(self, phi_NK: Tensor) -> Tensor:
        return self.times(self.scaled(phi_NK))

    def scaled(self, phi_NK: Tensor) -> Tensor:
        """The rows, of length one where `unit`."""
        if not self.unit:
            return phi_NK
        return phi_NK / phi_NK.norm(dim=1, keepdim=True).clamp_min(1e-30)

    def times(self, left_NK: Tensor) -> Tensor:
        """``left @ matrix``."""
        return left_NK if self.matrix_KK is None else left_NK @ self.matrix_KK


def trak(phi_NK: Tensor, damping: float) -> Whitening:
    """TRAK (arXiv 2303.14186, section 3): w = L^-1 phi with L L' = Phi'Phi + lambda I.

    `damping` is lambda in units of the mean diagonal of Phi'Phi, so that it means the same for
    every network and number of features. Raises `UserError` where the kernel cannot be inverted.
    """
    kernel = (phi_NK.mT @ phi_NK).double()
    kernel.diagonal().add_(damping * kernel.diagonal().mean())
    L, failed = torch.linalg.cholesky_ex(kernel)
    if failed:
        raise UserError(
            found=f"a kernel of {phi_NK.shape[1]} features on {phi_NK.shape[0]} examples that "
            f"cannot be inverted at damping {damping:g}",
            wanted="a positive damping, or fewer features than examples",
            next_step="raise --damping",
        )
    eye = torch.eye(len(L), dtype=L.dtype, device=L.device)
    return Whitening(torch.linalg.solve_triangular(L, eye, upper=False).mT.to(phi_NK.dtype))


def graddot(phi_NK: Tensor, damping: float) -> Whitening:
    """Grad-Dot (arXiv 2102.05262): the plain inner product of gradients."""
    return Whitening()


def gradcos(phi_NK: Tensor, damping: float) -> Whitening:
    """Grad-Cos (arXiv 2102.05262): the cosine of gradients."""
    return Whitening(unit=True)


ESTIMATORS: dict[str, Callable[[Tensor, float], Whitening]] = {
    "trak": trak,
    "graddot": graddot,
    "gradcos": gradcos,
}


def whitening(phi_NK: Tensor, spec: EstimatorSpec) -> Whitening:
    """The whitening of one member's training features under `spec`."""
    known("estimator", spec.name, ESTIMATORS, "--estimator")
    return ESTIMATORS[spec.name](phi_NK, spec.damping)


def q(margin_N: Tensor) -> Tensor:
    """1 - p of the target, as sigmoid(-margin): 1 - p is 0 in float32 for confident examples."""
    return torch.sigmoid(-margin_N)
