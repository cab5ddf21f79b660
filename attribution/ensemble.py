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
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from . import data as data_sets
from . import index as indexes
from .adapters import fitted
from .data import example_ids
from .estimators import asked, q
from .features import Block, Examples, Projected, block, in_precision, projected
from .gradients import frozen
from .members import example_keys
from .models import first_line, inputs
from .reading import read
from .records import EstimatorSpec, FeatureSpec, LoraSpec, ReadSpec, UserError
from .store import Store


class Read(NamedTuple):
    """A data set as networks take it: pairs of an image, normalised, and the number of its class.

    `paths` are those of the training images, in the order of `train`.
    """

    train: TensorDataset
    test: TensorDataset
    classes: tuple[str, ...]
    paths: tuple[str, ...]


def read_data(
    source: str | PathLike[str], *, cache: str | PathLike[str] = "cache", **settings: Any
) -> Read:
    """A data set by name, or a person's own files, as ``--data`` takes them.

    `settings` are the fields of `ReadSpec`, as in ``size=32``. The pixels are kept in `cache`.
    Raises `UserError` for what holds no data set.
    """
    store = Store(Path(cache))
    found = data_sets.dataset(store, read(store, str(source), ReadSpec(**settings)))
    train, test = (
        TensorDataset(inputs("", found, half.images), torch.from_numpy(half.labels_N))
        for half in (found.train, found.test)
    )
    return Read(train, test, found.classes, found.train.paths)


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
    spec, chosen = replace(lora or LoraSpec(), rank=rank), checked_networks(networks)
    examples = loaded(train_set, chosen[0])
    return Ensemble(
        tuple(
            fitted(copy.deepcopy(network), spec, examples, 1000 * (1000 * seed + i) + j)
            for i, network in enumerate(chosen)
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
    places = {w.device.type for network in chosen for w in network.parameters()} - {"cpu"}
    if places:
        raise UserError(
            found=f"a network on {' and '.join(sorted(places))}",
            wanted="torch.nn.Module classifiers on the processor",
            next_step="pass network.cpu()",
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
        return self.scores_of(loaded(test_set, self.ensemble.networks[0]))

    def scores_of(self, test: Examples) -> np.ndarray:
        """`scores` of examples that are tensors already."""
        total_TN = torch.zeros(len(test), len(self.exact.weight_N))
        for white, test_block, train in zip(
            self.exact.whitenings,
            member_blocks(self.ensemble, self.wholes, test),
            self.train_blocks,
            strict=True,
        ):
            phi_TK = taken(test_block, self.estimator)
            total_TN += white(phi_TK) @ white(taken(train, self.estimator)).mT
        return total_TN.mul_(self.exact.weight_N / len(self.train_blocks)).numpy()

    def self_influence(self) -> np.ndarray:
        """What each training example says of itself, float32 (N,): its score, as a query too."""
        total_N = torch.zeros(len(self.exact.weight_N))
        for white, train in zip(self.exact.whitenings, self.train_blocks, strict=True):
            total_N += white(taken(train, self.estimator)).square().sum(1)
        return total_N.mul_(self.exact.weight_N / len(self.train_blocks)).numpy()

    def search(
        self, test_set: Dataset, k: int = 10, opponents: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores (T, k) and training positions (T, k) of the strongest proponents or opponents."""
        self.check_k(k)
        blocks = member_blocks(
            self.ensemble, self.wholes, loaded(test_set, self.ensemble.networks[0])
        )
        return self.exact.search(
            self.exact.query([taken(b, self.estimator) for b in blocks]), k, opponents
        )

    def check_k(self, k: int) -> None:
        if not 1 <= k <= len(self.exact.weight_N):
            raise UserError(
                found=f"k = {k}",
                wanted=f"a number from 1 to {len(self.exact.weight_N)}, the training set",
                next_step="choose another k",
            )


def build_index(
    ensemble: Ensemble,
    train_set: Dataset,
    features: FeatureSpec | None = None,
    estimator: EstimatorSpec | None = None,
) -> Index:
    """Featurize `train_set`, any torch Dataset of (x, y), by every member, and fit the index.

    Holds N * M * K numbers in memory twice over; the command line's `build` streams them.
    """
    features, estimator = features or FeatureSpec(), estimator or EstimatorSpec()
    if estimator.q != "members":
        raise UserError(
            found=f"q = {estimator.q!r}",
            wanted="'members': how the networks were trained is not known here",
            next_step="leave it out",
        )
    return indexed(ensemble, loaded(train_set, ensemble.networks[0]), features, estimator)


def indexed(
    ensemble: Ensemble,
    train: Examples,
    features: FeatureSpec,
    estimator: EstimatorSpec,
    ridge: float | None = None,
) -> Index:
    """`build_index` of examples that are tensors already.

    `ridge` is what is added to each member's kernel, in place of the estimator's damping.
    """
    masked = ensemble.masks != (None,)
    wholes = tuple(
        in_precision(projected(n, train, features, masked), features.precision)
        for n in ensemble.networks
    )
    blocks = tuple(member_blocks(ensemble, wholes, train))
    q_N = torch.stack([q(b.margin_N) for b in blocks]).mean(0)
    exact = indexes.exact([taken(b, estimator) for b in blocks], q_N, estimator, ridge)
    return Index(ensemble, wholes, blocks, exact, estimator)


def taken(block: Block, estimator: EstimatorSpec) -> Tensor:
    """Features of a block as the estimator takes them, (N, K)."""
    return asked(block.phi_NK, block.margin_N, estimator)


def member_blocks(
    ensemble: Ensemble, wholes: Sequence[Projected], examples: Examples
) -> Iterator[Block]:
    """Features of `examples` by one member after the other."""
    for whole in wholes:
        for mask in ensemble.masks:
            made = block(whole.view(mask, ensemble.p), examples, whole.projections)
            yield Block(made.phi_NK.float(), made.margin_N.float())  # of a network in double, too


def loaded(some: Dataset, network: nn.Module) -> Examples:
    """All of a data set as tensors; an example's mask follows from its content.

    Raises `UserError` unless they are finite, fit the network, and have one of its classes each;
    also for whatever the data set itself raises.
    """
    try:
        # A generator of its own: a loader draws a seed, from the global stream if it has to.
        pairs = list(DataLoader(some, batch_size=256, generator=torch.Generator()))
        if not pairs:
            raise data_error("an empty data set")
        if any(not isinstance(pair, (list, tuple)) or len(pair) != 2 for pair in pairs):
            raise data_error("a data set whose examples are not pairs")
        x_N, y_N = (torch.cat(part).detach().cpu() for part in zip(*pairs, strict=True))
    except UserError:
        raise
    except Exception as error:  # pictures that are no tensors, several sizes, files that are gone
        what = f"{type(error).__name__}: {first_line(error)}"
        raise data_error(f"a data set that makes no tensors ({what})") from error
    if x_N.is_floating_point() and not torch.isfinite(x_N).all():
        raise data_error("inputs that are not finite numbers")
    try:
        with frozen(network), torch.no_grad():
            classes = network(x_N[:2]).shape[1]
    except Exception as error:  # whatever a network may raise, it is one sentence
        raise data_error(f"inputs that the network fails on ({first_line(error)})") from error
    if y_N.dim() != 1 or y_N.is_floating_point() or y_N.is_complex():
        raise data_error(f"labels of type {y_N.dtype} and shape {tuple(y_N.shape)}")
    if y_N.min() < 0 or y_N.max() >= classes:
        raise data_error(f"labels from {y_N.min()} to {y_N.max()} for {classes} classes")
    keys_N = example_keys(example_ids(x_N.numpy()))
    return Examples(x_N, torch.from_numpy(keys_N.copy()), y_N.long())


def data_error(found: str) -> UserError:
    return UserError(
        found=found,
        wanted="a torch Dataset of pairs (x, y), y a whole number below the number of classes",
        next_step="pass the data set that the networks were trained on, or one like it",
    )
