"""The Python API for notebooks: your networks, your data sets, no files.

    ensemble = attribution.dropout_ensemble(networks, masks=20, p=0.2, seed=0)
    index = attribution.build_index(ensemble, train_set)
    scores = index.scores(test_set)
    hits = index.search(test_set, k=10)

Axes: N train, T test, M members, K features of a member.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from . import index as indexes
from .adapters import fitted
from .data import example_ids
from .estimators import asked, q
from .features import Block, Examples, Projected, block, projected
from .members import example_keys
from .records import EstimatorSpec, FeatureSpec, LoraSpec, UserError


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Networks, and the masks each of them is seen through (none: the network as it is)."""

    networks: tuple[nn.Module, ...]
    masks: tuple[int | None, ...] = (None,)
    p: float = 0.0

    def __len__(self) -> int:
        return len(self.networks) * len(self.masks)


def naive_ensemble(networks: Sequence[nn.Module] | nn.Module) -> Ensemble:
    """Each network, trained independently, is a member."""
    return Ensemble(checked_networks(networks))


def dropout_ensemble(
    networks: Sequence[nn.Module] | nn.Module, masks: int = 20, p: float = 0.1, seed: int = 0
) -> Ensemble:
    """Each network under each of `masks` dropout masks, which drop a share `p` of the units."""
    if masks < 1 or not 0 < p < 1:
        raise UserError(
            found=f"masks = {masks} and p = {p:g}",
            wanted="at least one mask and a p between 0 and 1",
            next_step="give for example masks=20, p=0.1",
        )
    first = seed * 1_000_003
    return Ensemble(checked_networks(networks), tuple(range(first, first + masks)), p)


def lora_ensemble(
    networks: Sequence[nn.Module] | nn.Module,
    train_set: Dataset,
    adapters: int = 5,
    rank: int = 8,
    seed: int = 0,
    lora: LoraSpec | None = None,
) -> Ensemble:
    """Copies of each network with `adapters` LoRA adapters, each fitted on a share of `train_set`.

    `lora` has the other settings; `rank` counts. The networks given are left as they are.
    """
    if adapters < 1:
        raise UserError(
            found=f"adapters = {adapters}",
            wanted="at least one adapter",
            next_step="give for example adapters=5",
        )
    spec = replace(lora or LoraSpec(), rank=rank)
    examples = loaded(train_set)
    return Ensemble(
        tuple(
            fitted(copy.deepcopy(network), spec, examples, 1000 * seed + j)
            for network in checked_networks(networks)
            for j in range(adapters)
        )
    )


def checked_networks(networks: Sequence[nn.Module] | nn.Module) -> tuple[nn.Module, ...]:
    chosen = (networks,) if isinstance(networks, nn.Module) else tuple(networks)
    if not chosen or not all(isinstance(n, nn.Module) for n in chosen):
        kinds = ", ".join(type(n).__name__ for n in chosen) or "nothing"
        raise UserError(
            found=kinds,
            wanted="one or more torch.nn.Module classifiers",
            next_step="pass the trained networks",
        )
    return chosen


@dataclass(frozen=True, eq=False)
class Index:
    """An ensemble's attribution of any query to the training set it was built on."""

    ensemble: Ensemble
    wholes: tuple[Projected, ...]
    train_blocks: tuple[Block, ...]  # one a member
    exact: indexes.Exact
    estimator: EstimatorSpec

    def scores(self, test_set: Dataset) -> np.ndarray:
        """Exact scores of all pairs, float32 (T, N), for the labels of `test_set`.

        A positive score is a proponent's. One member at a time: T * N numbers are held twice, and
        the test features of one member.
        """
        test = loaded(test_set)
        total_TN = torch.zeros(len(test), len(self.exact.weight_N))
        for white, test_block, train in zip(
            self.exact.whitenings,
            member_blocks(self.ensemble, self.wholes, test),
            self.train_blocks,
            strict=True,
        ):
            phi_TK = features(test_block, self.estimator)
            total_TN += white(phi_TK) @ white(features(train, self.estimator)).mT
        return total_TN.mul_(self.exact.weight_N / len(self.train_blocks)).numpy()

    def search(
        self, test_set: Dataset, k: int = 10, opponents: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores (T, k) and training positions (T, k) of the strongest proponents or opponents."""
        if not 1 <= k <= len(self.exact.weight_N):
            raise UserError(
                found=f"k = {k}",
                wanted=f"a number from 1 to {len(self.exact.weight_N)}, the training set",
                next_step="choose another k",
            )
        blocks = member_blocks(self.ensemble, self.wholes, loaded(test_set))
        return self.exact.search(
            self.exact.query([features(b, self.estimator) for b in blocks]), k, opponents
        )


def build_index(
    ensemble: Ensemble,
    train_set: Dataset,
    projection: FeatureSpec | None = None,
    estimator: EstimatorSpec | None = None,
) -> Index:
    """Featurize `train_set`, any torch Dataset of (x, y), by every member, and fit the index.

    Holds N * M * K numbers in memory twice over; the command line's `build` streams them.
    """
    projection, estimator = projection or FeatureSpec(), estimator or EstimatorSpec()
    train = loaded(train_set)
    masked = ensemble.masks != (None,)
    wholes = tuple(projected(n, train, projection, masked) for n in ensemble.networks)
    blocks = tuple(member_blocks(ensemble, wholes, train))
    q_N = torch.stack([q(b.margin_N) for b in blocks]).mean(0)
    exact = indexes.exact([features(b, estimator) for b in blocks], q_N, estimator)
    return Index(ensemble, wholes, blocks, exact, estimator)


def features(block: Block, estimator: EstimatorSpec) -> Tensor:
    """Features of a block as the estimator takes them, (N, K)."""
    return asked(block.phi_NK, block.margin_N, estimator)


def member_blocks(
    ensemble: Ensemble, wholes: Sequence[Projected], examples: Examples
) -> Iterator[Block]:
    """Features of `examples` by one member after the other."""
    for whole in wholes:
        for mask in ensemble.masks:
            yield block(whole.view(mask, ensemble.p), examples, whole.projections)


def loaded(some: Dataset) -> Examples:
    """All of a data set as tensors; an example's mask follows from its content."""
    pairs = list(DataLoader(some, batch_size=256))
    if not pairs:
        raise UserError(
            found="an empty data set", wanted="examples", next_step="pass a non-empty one"
        )
    x_N, y_N = torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
    keys_N = example_keys(example_ids(x_N.numpy()))
    return Examples(x_N, torch.from_numpy(keys_N.copy()), y_N.long())
