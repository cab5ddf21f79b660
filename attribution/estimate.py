"""What a build will take, before it starts: time by a short probe, bytes by counting.

The probe trains and featurizes a few of the data's own examples with the network that was chosen,
and times the linear algebra of the index at a size that takes no longer; all of it is scaled to the
build. A few seconds, nothing is kept.

Axes: N training examples, T test, C classes, M members, K features of a member, d index
dimensions, l directions of the range finder.
"""

import copy
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from . import strategies
from .adapters import fitted
from .estimators import whitening
from .features import (
    BASIS_EXAMPLES,
    SHARD,
    VIEWS,
    Examples,
    Projected,
    block,
    in_precision,
    margins,
    projected,
)
from .fit import OVERSAMPLING, RANGE_MEMBERS
from .quantities import size
from .records import BuildSpec, Checkpoint, Member, RunSpec, UserError
from .rows import bytes_of
from .train import train

PROBE = 256  # examples at most
FIRST = 16  # of them to begin with
ENOUGH = 0.3  # seconds of one measurement
SIDE = 512  # of the matrices that are timed
WRONG = 0.1  # share of test examples asked about a second class; unknown before the training


@dataclass(frozen=True)
class Counts:
    """How large a data set is."""

    train: int
    test: int
    classes: int


@dataclass(frozen=True)
class Estimate:
    """What a build will take; by stage as its summary has it."""

    seconds: Mapping[str, float]
    bytes: Mapping[str, int]
    free: int  # bytes on the disk of the cache
    scratch: int = 0  # bytes that it needs beside them while it runs

    @property
    def time(self) -> float:
        return sum(self.seconds.values())

    @property
    def room(self) -> int:
        return sum(self.bytes.values())

    def check(self) -> None:
        """Raise `UserError` where the disk has not the room."""
        if self.room + self.scratch > self.free:
            raise UserError(
                found=f"a build of about {size(self.room)}, and {size(self.scratch)} while it "
                f"runs, with {size(self.free)} free on the disk",
                wanted="room for all of it",
                next_step="free some, take fewer masks or networks, or choose another --cache",
            )


@dataclass(frozen=True, eq=False)
class Probe:
    """A network of the build's kind with what its gradients are projected to, on some examples."""

    spec: BuildSpec
    counts: Counts
    some: Examples
    fresh: nn.Module
    attributed: nn.Module  # with an adapter, where the ensemble has them
    whole: Projected
    features: int  # K

    @property
    def checkpoints(self) -> int:
        spec = self.spec
        return spec.models * (spec.finetunes or spec.adapters or spec.snapshots or 1)

    @property
    def members(self) -> list[Member]:
        places = [Checkpoint(run_id=str(i)) for i in range(self.checkpoints)]
        return strategies.members(self.spec, places)

    @property
    def stored(self) -> int:
        """Members with features of their own."""
        return len({replace(m, block=0, blocks=1) for m in self.members})

    @property
    def bases(self) -> int:
        return len({(m.checkpoint, m.draw) for m in self.members})

    @property
    def width(self) -> int:
        """Features in a member's kernel."""
        return -(-self.features // self.spec.blocks)


def probe(spec: BuildSpec, counts: Counts, fresh: nn.Module, some: Examples) -> Probe:
    """Find the sites of a network as the build will."""
    attributed: nn.Module = copy.deepcopy(fresh)
    if spec.adapters:
        lora = replace(spec.lora, epochs=1, share=1.0)
        attributed = fitted(attributed, lora, some[slice(0, FIRST)], spec.seed)
    whole = projected(attributed, some, spec.features, bool(spec.masks))
    whole = in_precision(whole, spec.features.precision)
    features = block(whole.view(), some[slice(0, 2)], whole.projections).phi_NK.shape[1]
    return Probe(spec, counts, some, fresh, attributed, whole, features)


def free(cache: Path) -> int:
    """Bytes free where the cache is or will be."""
    there = next(p for p in (cache.absolute(), *cache.absolute().parents) if p.exists())
    return shutil.disk_usage(there).free


def sizes(probe: Probe) -> dict[str, int]:
    """Bytes of what the build will keep."""
    spec, counts, K = probe.spec, probe.counts, probe.features
    both = counts.train + counts.test
    d, members = min(spec.index_dims, counts.train), len(probe.members)
    network = sum(v.numel() * v.element_size() for v in probe.fresh.state_dict().values())
    beliefs = 4 * both * counts.classes
    runs = spec.models * (network * (1 + spec.snapshots) + beliefs)
    runs += spec.models * spec.finetunes * (network + beliefs)
    small = sum(p.numel() * 4 for p in probe.attributed.parameters() if p.requires_grad)
    directions = sum(t.numel() * 4 for some in probe.whole.projections.values() for t in some)
    features = probe.stored * both * (2 * K + 4)
    if spec.forward_only:
        features += probe.checkpoints * spec.masks * counts.train * 4
    queries = round(counts.test * (1 + WRONG)) + probe.width
    row = bytes_of(spec.index, counts.train, d, spec.index_memory * 1e9)
    return {
        "checkpoints": runs + spec.models * spec.adapters * small + probe.bases * directions,
        "features": features,
        "index": counts.train * (row + 12 + 8 * counts.classes) + 2 * members * queries * d,
    }


def scratch(spec: BuildSpec, counts: Counts, members: int, features: int) -> int:
    """Bytes on scratch at most: features in single precision, or what the fit keeps of them.

    `features` are those of a member: of a block, where there are several.
    """
    N, T, K = counts.train, round(counts.test * (1 + WRONG)), features
    d = min(spec.index_dims, N)
    wide = min(N, d + OVERSAMPLING)
    featurizing = min(members, VIEWS) * max(min(N, SHARD), counts.test) * K * spec.blocks
    each = K * (wide + d) + T * d + (spec.estimator.name == "trak") * K**2
    fitting = N * (wide + d) + members * each + min(members, RANGE_MEMBERS) * K * wide
    return 4 * max(featurizing, fitting)


def seconds(probe: Probe) -> dict[str, float]:
    """Seconds of each stage, measured on a few examples."""
    spec, counts, some = probe.spec, probe.counts, probe.some
    how = strategies.training(spec)
    recipe = RunSpec(
        data_id="",
        model=spec.model,
        epochs=1,
        learning_rate=how["rate"],
        weight_decay=how["decay"],
        batch=spec.batch_size,
    )

    def trained(count: int) -> None:
        few = some[slice(0, count)]
        train(copy.deepcopy(probe.fresh), few.x_N, few.target_N, recipe)

    def adapted(count: int) -> None:
        lora = replace(spec.lora, epochs=1, share=1.0)
        fitted(copy.deepcopy(probe.fresh), lora, some[slice(0, count)], spec.seed)

    member = probe.members[0]
    view = probe.whole.view(member.mask, member.p, member.shared)
    own = 0 if spec.weights else spec.epochs  # given networks are trained already
    passes = spec.models * (own + spec.finetunes * spec.finetune_epochs)
    training = passes * counts.train * each(trained, len(some))
    if spec.adapters:
        seen = spec.lora.epochs * spec.lora.share * counts.train
        training += spec.models * spec.adapters * seen * each(adapted, len(some))
    featurizing = each(lambda n: block(view, some[slice(0, n)], probe.whole.projections), len(some))
    asked = counts.train + counts.test * (1 + WRONG)
    features = probe.stored * asked * featurizing
    if spec.forward_only:
        masked = probe.whole.view(0, spec.p, spec.shared_masks)
        passing = each(lambda n: margins(masked, some[slice(0, n)]), len(some))
        features += probe.checkpoints * spec.masks * counts.train * passing
    began = time.perf_counter()
    projected(probe.attributed, some, spec.features, bool(spec.masks))
    basis = time.perf_counter() - began
    if spec.features.basis == "own":
        basis += max(0, min(counts.train, BASIS_EXAMPLES) - len(some)) * featurizing
    return {
        "train": training,
        "basis": probe.bases * basis,
        "features": features,
        "fit": fit(probe),
    }


def fit(probe: Probe) -> float:
    """Seconds of `fit.fit`: a whitening a member, products with the directions of the sketch and
    of the basis, and two decompositions of their number."""
    spec, counts, K = probe.spec, probe.counts, probe.width
    N, T, members = counts.train, counts.test * (1 + WRONG), len(probe.members)
    d = min(N, spec.index_dims)
    wide = min(N, d + OVERSAMPLING)
    side, rows = min(K, SIDE), min(N, SIDE)
    draw = torch.Generator().manual_seed(0)
    phi_NK = torch.randn(max(rows, side), side, generator=draw)
    product = once(lambda: phi_NK.mT @ phi_NK) / (len(phi_NK) * side**2)
    kernel = once(lambda: whitening(phi_NK, spec.estimator)) - product * len(phi_NK) * side**2 / 2
    trak = spec.estimator.name == "trak"
    white = max(kernel, 0) * (K / side) ** (3 if trak else 1) + trak * product * N * K**2 / 2
    sketched = min(members, RANGE_MEMBERS)
    passes = float(wide * N * K * (members + 2 * sketched))
    passes += 2 * trak * wide * K**2 * (members + sketched)
    passes += members * K * (wide**2 / 2 + wide * d + T * d) + 3 * N * wide**2 + N * wide * d
    small_ll = torch.randn(min(wide, SIDE), min(wide, SIDE), generator=draw).double()
    eigen = 2 * once(lambda: torch.linalg.eigh(small_ll)) * (wide / len(small_ll)) ** 3
    return members * white + passes * product + eigen


def each(work: Callable[[int], object], most: int) -> float:
    """Seconds an example that ``work(count)`` takes, of the first count that takes long enough."""
    count = min(FIRST, most)
    work(count)  # what is only done once
    while (took := once(partial(work, count))) < ENOUGH and count < most:
        count = min(4 * count, most)
    return took / count


def once(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
