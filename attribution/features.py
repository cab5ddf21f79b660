"""The only loop over data: a view of a network and examples in, a feature block out.

Axes: N examples, K features, C classes.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from .gradients import (
    Projection,
    Site,
    at_least_single,
    attributed,
    featurize_views,
    frozen,
    margin,
)
from .members import View, mask_sites
from .projection import checked_sites, own_projections, random_projections
from .records import FeatureSpec, UserError, known

BASIS_EXAMPLES = 2048  # enough for the leading directions of every layer
VIEWS = 8  # members that are featurized together
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # of forward and backward
SHARD = 2**14  # training examples whose features are one artifact; their starts are multiples of 16


@dataclass(frozen=True, eq=False)
class Examples:
    """Examples as a network takes them, and the class that each is asked about."""

    x_N: Tensor  # (N, ...), the network's input
    key_N: Tensor  # int64, names the example to the masks (`members.example_keys`)
    target_N: Tensor  # int64

    def __len__(self) -> int:
        return len(self.key_N)

    def __getitem__(self, which: slice | Tensor | np.ndarray) -> "Examples":
        return Examples(self.x_N[which], self.key_N[which], self.target_N[which])


@dataclass(frozen=True, eq=False)
class Block:
    """Features of one member."""

    phi_NK: Tensor  # float32
    margin_N: Tensor  # float32, of the target


@dataclass(frozen=True, eq=False)
class Projected:
    """A network with the directions its gradients are projected to; all its masks share them."""

    network: nn.Module
    mask_places: tuple[str, ...]
    projections: Mapping[Site, Projection]
    left_out: tuple[str, ...]  # parameters that no site covers

    @property
    def coverage(self) -> float:
        """Share of the network's attributed parameters whose gradient is used."""
        total = sum(p.numel() for p in attributed(self.network))
        missing = sum(self.network.get_parameter(n).numel() for n in self.left_out)
        return 1 - missing / total

    @property
    def size(self) -> int:
        """K, the number of features."""
        return sum(math.prod(t.shape[1] for t in some) for some in self.projections.values())

    @property
    def fallback(self) -> tuple[str, ...]:
        """Parameters that vmap differentiates, for want of a hook."""
        return tuple(s.name for s in self.projections if s.kind == "parameter")

    def view(self, mask: int | None = None, p: float = 0.0, shared: bool = False) -> View:
        return View(self.network, self.mask_places, mask, p, shared)


def shards(count: int) -> list[slice]:
    """The training examples in ranges of at most `SHARD`, by position."""
    return [slice(s, min(s + SHARD, count)) for s in range(0, count, SHARD)]


def projected(
    network: nn.Module, train: Examples, spec: FeatureSpec, masks: bool = True
) -> Projected:
    """Find the sites of `network`, check them against autograd, and choose the directions.

    Raises `UserError` where no parameter's gradient can be had, or the network cannot be run in the
    precision asked for.
    """
    run_in(network, spec.precision, train.x_N[:2])
    view = View(network)
    places, left_out = checked_sites(view, train.x_N[:2], train.key_N[:2], train.target_N[:2])
    if not places:
        raise UserError(
            found="a network in which no parameter has a gradient",
            wanted="at least one trained layer",
            next_step="choose another --model",
        )
    if spec.basis == "own":
        step = max(1, len(train) // BASIS_EXAMPLES)
        some = train[slice(0, step * BASIS_EXAMPLES, step)]
        projections = own_projections(
            view, some.x_N, some.key_N, some.target_N, places, spec.ka, spec.kg, spec.seed
        )
    else:
        like = next(network.parameters())
        projections = random_projections(places, spec.ka, spec.kg, spec.seed, like)
    mask_places = mask_sites(network, train.x_N[:2]) if masks else ()
    return Projected(network, mask_places, projections, left_out)


def in_precision(whole: Projected, precision: str) -> Projected:
    """The same network and directions, for passes in that precision; features stay float32.

    Processors that multiply matrices of bfloat16 (AMX) are several times faster in it. It has
    eight bits of mantissa, so directions are chosen, and sites checked, before.
    """
    dtype = PRECISIONS[precision]
    if dtype == torch.float32:
        return whole
    directions = {s: tuple(t.to(dtype) for t in some) for s, some in whole.projections.items()}
    return replace(whole, network=copy.deepcopy(whole.network).to(dtype), projections=directions)


def run_in(network: nn.Module, precision: str, x_N: Tensor) -> None:
    """Raise `UserError` for a network that does not run in a lower precision, on some inputs."""
    known("precision", precision, tuple(PRECISIONS), "--precision")
    dtype = PRECISIONS[precision]
    if dtype == torch.float32:
        return
    try:
        with torch.no_grad():
            copy.deepcopy(network).to(dtype)(x_N.to(dtype) if x_N.is_floating_point() else x_N)
    except RuntimeError as error:  # a tensor that is neither a parameter nor a buffer, say
        raise UserError(
            found=f"a network that does not run in {precision} ({error})",
            wanted="one whose every tensor is a parameter or a buffer, so that it is turned too",
            next_step="register it as a buffer, or leave out --precision",
        ) from error


def input_of(view: View, some: Examples) -> Tensor:
    """What the view's network takes of the examples: numbers in its own precision."""
    if not some.x_N.is_floating_point():  # tokens
        return some.x_N
    return some.x_N.to(next(view.network.parameters()).dtype)


def featurized(
    views: Sequence[View],
    examples: Examples,
    projections: Mapping[Site, Projection],
    batch: int = 0,
) -> Iterator[tuple[slice, list[Block]]]:
    """Batch after batch of the examples: which ones, and the block of each view of one network.

    `batch` 0 chooses one that fits the caches.
    """
    batch = batch or fitting_batch(examples)
    for b in range(0, len(examples), batch):
        part = slice(b, min(b + batch, len(examples)))
        some = examples[part]
        x_B = input_of(views[0], some)
        pairs = featurize_views(views, x_B, some.key_N, some.target_N, projections)
        yield (
            part,
            [Block(at_least_single(phi_BK), margin(f_BC, some.target_N)) for phi_BK, f_BC in pairs],
        )


def block(
    view: View, examples: Examples, projections: Mapping[Site, Projection], batch: int = 0
) -> Block:
    """Features and margins of all examples by one view."""
    parts = [only for _, (only,) in featurized([view], examples, projections, batch)]
    return Block(torch.cat([p.phi_NK for p in parts]), torch.cat([p.margin_N for p in parts]))


def margins(view: View, examples: Examples) -> Tensor:
    """Margins (N,) by forward passes only."""
    batch = fitting_batch(examples)
    found = []
    with torch.no_grad(), frozen(view.network):
        for b in range(0, len(examples), batch):
            some = examples[slice(b, b + batch)]
            found.append(margin(view.logits(input_of(view, some), some.key_N), some.target_N))
    return torch.cat(found)


def fitting_batch(examples: Examples) -> int:
    """About a quarter of a million input numbers a batch, between 32 and 512 examples."""
    return min(512, max(32, 2**18 // max(1, examples.x_N[0].numel())))
