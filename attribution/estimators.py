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

from .records import LOSS, EstimatorSpec, UserError, known


@dataclass(frozen=True, eq=False)
class Whitening:
    """``w = phi @ matrix * scale``, of rows of length one where `unit`; None is the identity."""

    matrix_KK: Tensor | None = None
    scale_K: Tensor | None = None
    unit: bool = False

    def __call__(self, phi_NK: Tensor) -> Tensor:
        return self.times(self.scaled(phi_NK))

    def scaled(self, phi_NK: Tensor) -> Tensor:
        """The rows, of length one where `unit`."""
        if not self.unit:
            return phi_NK
        return phi_NK / phi_NK.norm(dim=1, keepdim=True).clamp_min(1e-30)

    def times(self, left_NK: Tensor) -> Tensor:
        """``left @ matrix * scale``."""
        if self.scale_K is not None:
            return left_NK * self.scale_K
        return left_NK if self.matrix_KK is None else left_NK @ self.matrix_KK

    def back(self, right_Kl: Tensor) -> Tensor:
        """The same matrix on the left: ``matrix @ right``."""
        if self.scale_K is not None:
            return right_Kl * self.scale_K[:, None]
        return right_Kl if self.matrix_KK is None else self.matrix_KK @ right_Kl


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


def ekfac(phi_NK: Tensor, damping: float) -> Whitening:
    """EK-FAC influence (arXiv 1806.03884, section 3; LoGra's form, arXiv 2405.13954).

    On the data's own basis each feature is a coordinate in the Kronecker-factored eigenbasis of a
    layer's curvature, so the eigenvalue-corrected inverse is a number for each: w = phi / root of
    (mean phi^2 + lambda), `damping` being lambda in units of the mean over features. The features
    are gradients of the loss (`LOSS`), whose second moments are the empirical Fisher.
    """
    moment_K = phi_NK.square().mean(0)
    ridge = damping * moment_K.mean()
    if not ridge > 0 and not bool((moment_K > 0).all()):
        raise UserError(
            found=f"directions without any gradient at damping {damping:g}",
            wanted="a positive damping",
            next_step="raise --damping",
        )
    return Whitening(scale_K=(moment_K + ridge).rsqrt())


def tracin(phi_NK: Tensor, damping: float) -> Whitening:
    """TracIn (arXiv 2002.08484): inner products of loss gradients, summed over the checkpoints.

    All checkpoints of a build have the same learning rate, so it does not weight them.
    """
    return Whitening()


ESTIMATORS: dict[str, Callable[[Tensor, float], Whitening]] = {
    "trak": trak,
    "graddot": graddot,
    "gradcos": gradcos,
    "ekfac": ekfac,
    "tracin": tracin,
}


def whitening(phi_NK: Tensor, spec: EstimatorSpec) -> Whitening:
    """The whitening of one member's training features under `spec`."""
    known("estimator", spec.name, ESTIMATORS, "--estimator")
    return ESTIMATORS[spec.name](phi_NK, spec.damping)


def asked(phi_NK: Tensor, margin_N: Tensor, spec: EstimatorSpec) -> Tensor:
    """Features as the estimator takes them: of the margin, or of the loss.

    The loss is log(1 + exp(-margin)), so its gradient is -(1 - p) times that of the margin.
    """
    return phi_NK * q(margin_N)[:, None] if spec.name in LOSS else phi_NK


def q(margin_N: Tensor) -> Tensor:
    """1 - p of the target, as sigmoid(-margin): 1 - p is 0 in float32 for confident examples."""
    return torch.sigmoid(-margin_N)
