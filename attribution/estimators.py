"""From feature blocks to vectors whose inner product is the score.

Every estimator here has the same shape: it learns a `Whitening` from one member's training
features and turns features, of training examples and queries alike, into vectors w with

    score(z, i) = mean_m <w_m(z), w_m(i)> * (mean_m q_m(i)) ** q_power

What is learned is a sum over the training examples, so shards of them may be read one by one,
anywhere (`summed`), and added up (`fitted`).

Axes: N examples, K features of one member.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .records import LOSS, EstimatorSpec, UserError, known

STRIP = 256  # columns of the kernel at a time


@dataclass(frozen=True, eq=False)
class Whitening:
    """``w = phi @ matrix * scale``, of rows of length one where `unit`; None is the identity."""

    matrix_KK: Tensor | None = None
    scale_K: Tensor | None = None
    unit: bool = False
    size: int = 0  # K, of one whose matrix lies elsewhere

    def __call__(self, phi_NK: Tensor) -> Tensor:
        return self.times(self.scaled(phi_NK))

    def scaled(self, phi_NK: Tensor) -> Tensor:
        """The rows, of length one where `unit`."""
        return _of_length_one(phi_NK) if self.unit else phi_NK

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


def _of_length_one(phi_NK: Tensor) -> Tensor:
    return phi_NK / phi_NK.norm(dim=1, keepdim=True).clamp_min(1e-30)


@dataclass(frozen=True, eq=False)
class Sums:
    """What a whitening is made of: summed over a member's training examples, shard by shard."""

    count: int  # examples
    values: Tensor | None  # of Phi'Phi, the lower triangle of (K, K); of phi^2, (K,); or none

    def __add__(self, other: "Sums") -> "Sums":
        if self.values is None or other.values is None:
            return Sums(self.count + other.count, None)
        return Sums(self.count + other.count, self.values + other.values)


def products(phi_NK: Tensor) -> Tensor:
    """The lower triangle of Phi'Phi by strips, half the work of the whole.

    In the precision of `phi_NK`, float32 as a rule; kept as float64, in which shards are added.
    """
    K = phi_NK.shape[1]
    kernel_KK = torch.zeros(K, K, dtype=torch.float64, device=phi_NK.device)
    for k in range(0, K, STRIP):
        kernel_KK[k:, k : k + STRIP] = phi_NK[:, k:].mT @ phi_NK[:, k : k + STRIP]
    return kernel_KK


def squares(phi_NK: Tensor) -> Tensor:
    """Sums of phi^2, float64 (K,)."""
    return phi_NK.square().sum(0).double()


def nothing(phi_NK: Tensor) -> None:
    """For estimators that learn nothing of the training examples."""


def trak(sums: Sums, damping: float) -> Whitening:
    """TRAK (arXiv 2303.14186, section 3): w = L^-1 phi with L L' = Phi'Phi + lambda I.

    `damping` is lambda in units of the mean diagonal of Phi'Phi, so that it means the same for
    every network and number of features. Raises `UserError` where the kernel cannot be inverted.
    """
    assert sums.values is not None
    kernel = sums.values.clone()
    kernel.diagonal().add_(damping * kernel.diagonal().mean())
    L, failed = torch.linalg.cholesky_ex(kernel)  # of the lower triangle
    if failed:
        raise UserError(
            found=f"a kernel of {len(kernel)} features on {sums.count} examples that "
            f"cannot be inverted at damping {damping:g}",
            wanted="a positive damping, or fewer features than examples",
            next_step="raise --damping",
        )
    eye = torch.eye(len(L), dtype=L.dtype, device=L.device)
    return Whitening(torch.linalg.solve_triangular(L, eye, upper=False).mT.float())


def graddot(sums: Sums, damping: float) -> Whitening:
    """Grad-Dot (arXiv 2102.05262): the plain inner product of gradients."""
    return Whitening()


def gradcos(sums: Sums, damping: float) -> Whitening:
    """Grad-Cos (arXiv 2102.05262): the cosine of gradients."""
    return Whitening(unit=True)


def ekfac(sums: Sums, damping: float) -> Whitening:
    """EK-FAC influence (arXiv 1806.03884, section 3; LoGra's form, arXiv 2405.13954).

    On the data's own basis each feature is a coordinate in the Kronecker-factored eigenbasis of a
    layer's curvature, so the eigenvalue-corrected inverse is a number for each: w = phi / root of
    (mean phi^2 + lambda), `damping` being lambda in units of the mean over features. The features
    are gradients of the loss (`LOSS`), whose second moments are the empirical Fisher.
    """
    assert sums.values is not None
    moment_K = sums.values / sums.count
    ridge = damping * moment_K.mean()
    if not ridge > 0 and not bool((moment_K > 0).all()):
        raise UserError(
            found=f"directions without any gradient at damping {damping:g}",
            wanted="a positive damping",
            next_step="raise --damping",
        )
    return Whitening(scale_K=(moment_K + ridge).rsqrt().float())


def tracin(sums: Sums, damping: float) -> Whitening:
    """TracIn (arXiv 2002.08484): inner products of loss gradients, summed over the checkpoints.

    All checkpoints of a build have the same learning rate, so it does not weight them.
    """
    return Whitening()


ESTIMATORS: dict[str, tuple[Callable[[Tensor], Tensor | None], Callable[[Sums, float], Whitening]]]
ESTIMATORS = {
    "trak": (products, trak),
    "graddot": (nothing, graddot),
    "gradcos": (nothing, gradcos),
    "ekfac": (squares, ekfac),
    "tracin": (nothing, tracin),
}


def summed(phi_NK: Tensor, spec: EstimatorSpec) -> Sums:
    """One shard's part of what `fitted` makes a whitening of; parts add up."""
    known("estimator", spec.name, ESTIMATORS, "--estimator")
    return Sums(len(phi_NK), ESTIMATORS[spec.name][0](phi_NK))


def fitted(sums: Sums, spec: EstimatorSpec) -> Whitening:
    """The whitening of one member under `spec`, of the sums over all its training features."""
    return ESTIMATORS[spec.name][1](sums, spec.damping)


def whitening(phi_NK: Tensor, spec: EstimatorSpec) -> Whitening:
    """The whitening of one member's training features under `spec`."""
    return fitted(summed(phi_NK, spec), spec)


def scaled(phi_NK: Tensor, spec: EstimatorSpec) -> Tensor:
    """Features as a whitening's matrix takes them: of length one for Grad-Cos."""
    return _of_length_one(phi_NK) if spec.name == "gradcos" else phi_NK


def asked(phi_NK: Tensor, margin_N: Tensor, spec: EstimatorSpec) -> Tensor:
    """Features as the estimator takes them: of the margin, or of the loss.

    The loss is log(1 + exp(-margin)), so its gradient is -(1 - p) times that of the margin.
    """
    return phi_NK * q(margin_N)[:, None] if spec.name in LOSS else phi_NK


def q(margin_N: Tensor) -> Tensor:
    """1 - p of the target, as sigmoid(-margin): 1 - p is 0 in float32 for confident examples."""
    return torch.sigmoid(-margin_N)
