"""Damping, width and power of q without retraining a network.

Their best values are known only on retrained networks (`attribution.truth`). Each has a stand-in
that needs one trained network and its features (the idea of arXiv 2505.24261: quantities of the
full data in place of retraining; these three are our own, docs/LOG.md has how well they choose):

- damping: half of a query's leverage is left to the training examples, half to the ridge;
- width: the features that predict margins of held-out training examples best;
- power of q: the scores that best predict how a last layer changes when it alone is refitted.

Axes: N train, T test, K features, H inputs of the last layer, C classes, S subsets.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .features import Examples
from .gradients import margin
from .metrics import lds
from .models import last_layer
from .records import RunSpec, TruthSpec
from .truth import subset

WIDTHS = ((16, 4), (32, 4), (64, 8), (128, 8))  # ka, kg
POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
LEFT = 0.5  # share of the leverage that damping leaves
NEARLY = 0.005  # an LDS on refitted heads that is no worse
DECAY = 1e-3  # of a refitted head, which separates its half of the examples without
HEADS = 40


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Features of one network in the eigenbasis of their kernel, in units of its mean diagonal."""

    phi_NK: Tensor
    phi_TK: Tensor
    value_K: Tensor  # eigenvalues

    def left(self, damping: float) -> float:
        """Share of the leverage left by damping, mean over the queries: 1 without, 0 with infinite.

        Of a query psi it is ``psi R K R psi / psi R psi`` with ``R = (K + damping)^-1``.
        """
        inverse_K = 1 / (self.value_K + damping)
        square_TK = self.phi_TK.square() * inverse_K
        return float(((square_TK @ (self.value_K * inverse_K)) / square_TK.sum(1)).mean())

    def held_out(self, margin_N: Tensor, damping: float) -> float:
        """R squared of the training margins, each predicted by ridge regression on all others."""
        y_N = margin_N.double() - margin_N.double().mean()
        solved_NK = self.phi_NK / (self.value_K + damping)
        leverage_N = (solved_NK * self.phi_NK).sum(1)
        error_N = (y_N - solved_NK @ (self.phi_NK.mT @ y_N)) / (1 - leverage_N)
        return float(1 - error_N.square().sum() / y_N.square().sum())

    def scores(self, damping: float) -> Tensor:
        """TRAK scores (T, N) without q."""
        return (self.phi_TK / (self.value_K + damping)) @ self.phi_NK.mT

    def summed(self, damping: float) -> "Summed":
        """The same, never made."""
        return Summed(self.phi_TK / (self.value_K + damping), self.phi_NK)


@dataclass(frozen=True, eq=False)
class Summed:
    """Scores (T, N) that are only ever summed over training examples, as a product."""

    left_TK: Tensor
    phi_NK: Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.phi_NK.dtype

    def __matmul__(self, weight_NS: Tensor) -> Tensor:
        return self.left_TK @ (self.phi_NK.mT @ weight_NS)


def spectrum(phi_NK: Tensor, phi_TK: Tensor) -> Spectrum:
    kernel_KK = (phi_NK.mT @ phi_NK).double()
    unit = kernel_KK.diagonal().mean()
    value_K, vector_KK = torch.linalg.eigh(kernel_KK / unit)
    phi_NK, phi_TK = (phi.double() @ vector_KK / unit.sqrt() for phi in (phi_NK, phi_TK))
    return Spectrum(phi_NK, phi_TK, value_K.clamp_min(0))


def damping(of: Spectrum, left: float = LEFT) -> float:
    """The damping, in units of the kernel's mean diagonal, that leaves this share of leverage."""
    low, high = math.log(1e-6), math.log(1e6)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if of.left(math.exp(middle)) > left else (low, middle)
    return float(f"{math.exp(low):.2g}")


@dataclass(frozen=True, eq=False)
class Heads:
    """Last layers refitted on random halves of the training set."""

    subsets_SN: np.ndarray
    margins_ST: np.ndarray


def refitted(
    network: nn.Module, train: Examples, test: Examples, classes: int, seed: int = 0
) -> Heads | None:
    """`HEADS` last layers of `network`, or None where it does not end in a linear layer."""
    last = last_layer(network, classes)
    if last is None:
        return None
    input_NH, input_TH = (reaching(network, last, some) for some in (train, test))
    if input_NH is None or input_TH is None:
        return None
    spec = TruthSpec(run=RunSpec(data_id="", model="a last layer"), subsets=HEADS, seed=seed)
    subsets_SN = np.stack([subset(spec, s, len(train)) for s in range(HEADS)])
    weight_SN = torch.from_numpy(subsets_SN) / (len(train) * spec.share)
    fitted_SHC = torch.zeros(HEADS, input_NH.shape[1], classes, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [fitted_SHC], max_iter=60, history_size=10, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits_SNC = input_NH @ fitted_SHC
        each_SN = F.cross_entropy(
            logits_SNC.movedim(2, 1), train.target_N.expand(HEADS, -1), reduction="none"
        )
        total = (each_SN * weight_SN).sum() + DECAY * fitted_SHC.square().sum()
        total.backward()
        return total

    optimiser.step(loss)
    with torch.no_grad():
        logits_STC = input_TH @ fitted_SHC
    return Heads(subsets_SN, np.stack([margin(z, test.target_N).numpy() for z in logits_STC]))


def reaching(network: nn.Module, layer: nn.Linear, examples: Examples) -> Tensor | None:
    """What reaches `layer`, with a column of ones for its bias, float32 (N, H).

    Of a layer that is called more than once, the last time; None for one that never is.
    """
    seen: list[Tensor] = []
    parts = []
    hook = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(1)))
    try:
        with torch.no_grad():
            for x_B in examples.x_N.split(256):
                network.eval()(x_B)
                parts += seen[-1:]
                seen.clear()
    finally:
        hook.remove()
    if not parts:
        return None
    input_NH = torch.cat(parts)
    return torch.cat([input_NH, torch.ones(len(input_NH), 1)], 1)


def power(
    scores_TN: Tensor | Summed, q_N: Tensor, heads: Heads, powers: Sequence[float] = POWERS
) -> float:
    """The least power of q whose scores predict the refitted heads as well as any."""
    chosen_NS = torch.from_numpy(heads.subsets_SN.T.copy()).to(scores_TN.dtype)
    fits = []
    for each in powers:
        predicted_TS = scores_TN @ (q_N.to(scores_TN.dtype)[:, None] ** each * chosen_NS)
        fits.append(float(lds(predicted_TS.numpy(), heads.margins_ST).mean()))
    return next(p for p, fit in zip(powers, fits, strict=True) if fit >= max(fits) - NEARLY)
