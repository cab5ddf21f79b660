"""What a build was made of, read back from the store: networks, directions, features."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor

from . import weights
from .adapters import loaded
from .data import Dataset
from .estimators import asked, q
from .features import Examples, Projected, block, in_precision, shards
from .fit import Blocks
from .gradients import Site
from .members import View
from .models import frozen_below, network
from .records import BuildSpec, Checkpoint, EstimatorSpec, Member, RunSpec, UserError
from .store import Artifact, Store


def phi_of(
    features: Artifact,
    split: str,
    member: Member,
    estimator: EstimatorSpec,
    rows: slice | np.ndarray = slice(None),
) -> Tensor:
    """Stored features of a shard as the estimator takes them, float32 (N, K), or some of them."""
    half = features.array(f"{split}_phi", memory_map=True)
    half = half[rows, columns(member, half.shape[1])]
    phi_NK = torch.empty(half.shape)  # aligned by torch, whose products may depend on that
    phi_NK.numpy()[...] = half
    phi_NK.mul_(features.manifest[f"{split}_scale"])
    margin_N = torch.from_numpy(features.array(f"{split}_margin")[rows])
    return asked(phi_NK, margin_N, estimator)


@dataclass(frozen=True)
class Stored:
    """One member's features in the store, as the estimator takes them."""

    member: Member
    parts: Sequence[Artifact]  # shards of the training examples; the first has the test ones too
    estimator: EstimatorSpec

    def train(self, shard: int) -> Tensor:
        """Float32 (n, K)."""
        return phi_of(self.parts[shard], "train", self.member, self.estimator)

    @property
    def shards(self) -> list[slice]:
        """The training examples of each part."""
        counts = [len(p.array("train_margin")) for p in self.parts]
        return [slice(end - n, end) for n, end in zip(counts, accumulate(counts), strict=True)]

    def tests(self) -> Iterator[Tensor]:
        """Float32 (t, K), some after the others."""
        T = len(self.parts[0].array("test_margin"))
        for rows in shards(T):
            yield phi_of(self.parts[0], "test", self.member, self.estimator, rows)

    def of(self, split: str, ids: np.ndarray) -> Tensor:
        """Float32 (len(ids), K) of chosen examples."""
        if split == "test":
            return phi_of(self.parts[0], split, self.member, self.estimator, ids)
        pieces, order = [], []
        for part, rows in zip(self.parts, self.shards, strict=True):
            at = np.flatnonzero((rows.start <= ids) & (ids < rows.stop))
            own = ids[at] - rows.start
            pieces.append(phi_of(part, split, self.member, self.estimator, own))
            order.append(at)
        return torch.cat(pieces)[np.argsort(np.concatenate(order))]


def stored(
    members: Sequence[Member], blocks: Sequence[Artifact], estimator: EstimatorSpec
) -> list[Stored]:
    """The members' features; `blocks` are their artifacts, member by member, shard by shard."""
    each = len(blocks) // len(members)
    return [
        Stored(member, blocks[m * each : (m + 1) * each], estimator)
        for m, member in enumerate(members)
    ]


def read(features: Sequence[Stored]) -> Blocks:
    """The features of an ensemble as `fit` takes them."""
    return Blocks(
        len(features),
        features[0].shards,
        lambda m, s: features[m].train(s),
        lambda m: features[m].tests(),
    )


def columns(member: Member, K: int) -> slice:
    """The features of a member's block, as many in each."""
    return slice(member.block, K // member.blocks * member.blocks, member.blocks)


def fresh(whole: Projected, member: Member, some: Examples, estimator: EstimatorSpec) -> Tensor:
    """Features (N, K) of examples that are not stored, as `phi_of` gives them."""
    made = block(seen(whole, member), some, whole.projections)
    phi_NK = made.phi_NK[:, columns(member, made.phi_NK.shape[1])]
    return asked(phi_NK, made.margin_N, estimator)


def seen(whole: Projected, member: Member) -> View:
    return whole.view(member.mask, member.p, member.shared)


def recipe(store: Store, build: Artifact) -> RunSpec:
    """How the networks of a build were trained; the seed is the first one's."""
    if "recipe" in build.manifest:
        return RunSpec(**build.manifest["recipe"])
    return RunSpec(**found(store, "run", build.manifest["networks"][0]).manifest["made_by"])


def was_watched(run: Artifact) -> bool:
    """Whether a network said what it believed while it was trained."""
    return "belief.npy" in run.manifest["files"]


def facts(artifact: Artifact) -> dict[str, Any]:
    """Which artifact it is, and how large."""
    kind, name = artifact.manifest["kind"], artifact.manifest["id"]
    return {"kind": kind, "id": name, "bytes": artifact.size}


def unique(artifacts: Iterable[Artifact]) -> list[Artifact]:
    return list({a.manifest["id"]: a for a in artifacts}.values())


def doubts(blocks: Sequence[Artifact], shards: int = 1) -> Iterator[np.ndarray]:
    """1 - p of the given labels by every member, (M, n), shard after shard."""
    for s in range(shards):
        margins_Mn = np.stack([b.array("train_margin") for b in blocks[s::shards]])
        yield q(torch.from_numpy(margins_Mn)).numpy()


def mean_q(blocks: Sequence[Artifact], shards: int = 1) -> Tensor:
    """The members' mean 1 - p of the given labels, (N,); `blocks` as `stored` takes them."""
    return torch.cat([torch.from_numpy(q_Mn).mean(0) for q_Mn in doubts(blocks, shards)])


def load_projected(module: torch.nn.Module, sites: Artifact) -> Projected:
    named = load(sites.bytes_of("directions.safetensors"))
    projections = {}
    for s, fields in enumerate(sites.manifest["sites"]):
        site = Site(**{**fields, "parameters": tuple(fields["parameters"])})
        projections[site] = tuple(named[f"{s}.{j}"] for j in range(1 + site.factorised))
    whole = Projected(
        module,
        tuple(sites.manifest["mask_places"]),
        projections,
        tuple(sites.manifest["left_out"]),
    )
    return in_precision(whole, sites.manifest["made_by"].get("precision", "float32"))


def load_network(
    store: Store, spec: BuildSpec, data: Dataset, checkpoint: Checkpoint
) -> torch.nn.Module:
    """The network with the weights of a checkpoint, in evaluation mode."""
    run = found(store, "run", checkpoint.run_id)
    made_by = RunSpec(**run.manifest["made_by"])
    weights.unedited(replace(made_by, train=""))
    if made_by.given:
        module = weights.given(store, data, made_by)
    else:
        module = network(spec.model, data, spec.width, 0, spec.preprocess)
        name = "weights" if checkpoint.epoch is None else f"weights-{checkpoint.epoch}"
        module.load_state_dict(run.weights(name))
    if spec.freeze:
        module = frozen_below(module, spec.model, len(data.classes))
    if checkpoint.adapter:
        adapter = found(store, "adapter", checkpoint.adapter)
        for file in adapter.manifest["files"]:
            adapter.file(file)  # checksums, before peft reads them
        module = loaded(module, adapter.place)
    return module.eval()


def found(store: Store, kind: str, name: str) -> Artifact:
    artifact = store.find(kind, name)
    if artifact is None:
        raise UserError(
            found=f"no {kind} {name} in {store.root}",
            wanted="every part that the build was made of",
            next_step="run the same `build` again, which makes what is missing",
        )
    return artifact


def member_from(fields: dict[str, Any]) -> Member:
    """The member that `asdict` wrote."""
    return Member(**{**fields, "checkpoint": Checkpoint(**fields["checkpoint"])})


def seconds(artifacts: Iterable[Artifact]) -> float:
    return round(sum(a.manifest["seconds"] for a in artifacts), 3)
