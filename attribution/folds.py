"""What networks believe of examples that they did not train on: every fold left out once.

A network that trained on an example has learnt its label, right or wrong; one that did not can
doubt it without prejudice. The training set is cut into K folds, class by class, and a network of
the build's own kind and recipe is trained on all folds but one, for each.

Axes: N training examples, C classes, K folds, H examples of a fold.
"""

from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from .data import Dataset
from .features import Examples
from .records import Report, RunSpec, content_id, silent
from .store import Artifact, Draft, Store
from .train import probabilities, stackable, train, train_together
from .weights import begun

FIRST_SEED = 2 * 10**15  # beyond the seeds of the networks that attribute and of those of a truth


@dataclass(frozen=True, kw_only=True)
class FoldsSpec:
    """Networks that leave a fold out, for all builds with the same recipe."""

    run: RunSpec  # its seed plays no part
    folds: int = 5
    seed: int = 0  # of the folds and of the networks


def folds_of(recipe: RunSpec) -> FoldsSpec:
    """The networks that leave a fold out of all builds with a recipe, whatever its seed."""
    return FoldsSpec(run=replace(recipe, seed=0, snapshots=0))


def folds_id(spec: FoldsSpec) -> str:
    return content_id("folds", spec)


def folds(
    store: Store, data: Dataset, whole: Examples, spec: FoldsSpec, report: Report = silent
) -> Artifact:
    """The beliefs of the training examples `whole`, made once; a killed one resumes at its part.

    Arrays of the artifact: `belief` (N, C), probabilities of the classes, mean over the epochs of
    the network that did not train on the example; `probs` (N, C), its last word.
    """
    fold_N = fold_of(data.train.labels_N, spec)
    held_K = [np.flatnonzero(fold_N == k) for k in range(spec.folds)]
    together = stackable(begun(store, data, spec.run), spec.run)
    chunks = [range(spec.folds)] if together else [range(k, k + 1) for k in range(spec.folds)]

    def fill(draft: Draft) -> None:
        parts = []
        for chunk in chunks:

            def further(
                stage: str, at: int, of: int, done: int = chunk.start, n: int = len(chunk)
            ) -> None:
                report("folds", done * of + at * n, spec.folds * of)

            parts.append(part(store, data, whole, spec, held_K, chunk, further))
        for name in ("belief", "probs"):
            found_KHC = np.concatenate([p.array(name) for p in parts])
            found_NC = np.empty((len(whole), found_KHC.shape[2]), np.float32)
            for held, found_HC in zip(held_K, found_KHC, strict=True):
                found_NC[held] = found_HC[: len(held)]
            draft.array(name, found_NC)
        draft.note(parts=[p.manifest["id"] for p in parts])

    made = store.make("folds", folds_id(spec), fill, asdict(spec))
    report("folds", spec.folds, spec.folds)
    return made


def part(
    store: Store,
    data: Dataset,
    whole: Examples,
    spec: FoldsSpec,
    held_K: list[np.ndarray],
    chunk: range,
    report: Report,
) -> Artifact:
    """What the networks that leave the folds of `chunk` out believe of them, (chunk, H, C)."""
    count, most = len(whole), max(len(h) for h in held_K)

    def fill(draft: Draft) -> None:
        recipes = [replace(spec.run, seed=FIRST_SEED + 1000 * spec.seed + k) for k in chunk]
        networks = [begun(store, data, each) for each in recipes]
        # All of one length: folds differ by one example at most.
        seen_Mn = torch.stack([others(held_K[k], count)[: count - most] for k in chunk])
        held_MH = torch.from_numpy(np.stack([np.resize(held_K[k], most) for k in chunk]))
        if len(networks) > 1:
            belief_MHC = train_together(
                networks, whole.x_N, whole.target_N, seen_Mn, recipes[0], report, asked_MH=held_MH
            )
        else:
            some, asked_H = whole[seen_Mn[0]], whole.x_N[held_MH[0]]
            trained = train(
                networks[0], some.x_N, some.target_N, recipes[0], report, asked_H=asked_H
            )
            if trained.belief_NC is None:  # the user's own training says nothing on the way
                belief_MHC = probabilities(trained.network, asked_H).numpy()[None]
            else:
                belief_MHC = trained.belief_NC[None]
        draft.array("belief", belief_MHC)
        probs = [
            probabilities(n, whole.x_N[h]).numpy() for n, h in zip(networks, held_MH, strict=True)
        ]
        draft.array("probs", np.stack(probs))

    made_by = {**asdict(spec), "chunk": [chunk.start, chunk.stop]}
    return store.make("fold", content_id("fold", made_by), fill, made_by)


def fold_of(labels_N: np.ndarray, spec: FoldsSpec) -> np.ndarray:
    """The fold of each example, (N,): as many of each class in every fold, up to one."""
    draw = np.random.default_rng(spec.seed)
    order = np.lexsort((draw.random(len(labels_N)), labels_N))
    fold_N = np.empty(len(labels_N), np.int64)
    fold_N[order] = np.arange(len(labels_N)) % spec.folds
    return fold_N


def others(held: np.ndarray, count: int) -> torch.Tensor:
    """Positions of the examples that are not held out, rising."""
    return torch.from_numpy(np.setdiff1d(np.arange(count), held))
