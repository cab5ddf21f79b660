"""A picture of the data: every image a point in the plane, near those that the networks see alike.

What reaches the last layer of each network, side by side, is brought down to few directions by PCA
and from there to two by t-SNE, training and test images together. Neighbourhoods are what it keeps;
how far apart two groups are, or how wide one is, means little.

Axes: P images (first training, then test), H features of a network, D directions.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA

from .index import nearest
from .records import Report, silent

FEW = 10
NEAR = 10  # neighbours that `neighbours_kept` looks at


@dataclass(frozen=True, kw_only=True)
class MapSpec:
    """How the plane is found."""

    directions: int = 50
    perplexity: float = 15.0  # about as many neighbours count
    early: int = 120  # steps in which groups find together
    steps: int = 400  # after these
    seed: int = 0


def reduced(x_PH: np.ndarray, directions: int) -> np.ndarray:
    """The leading principal components, float32 (P, D), D at most `directions`."""
    count = min(directions, *x_PH.shape)
    return PCA(count, svd_solver="covariance_eigh").fit_transform(x_PH).astype(np.float32)


def side_by_side(each: Iterable[np.ndarray], directions: int) -> np.ndarray:
    """What several networks see of the same images, (P, D).

    Each is reduced before it is put beside the others, so that only one is in memory whole.
    """
    return reduced(np.concatenate([reduced(x_PH, directions) for x_PH in each], 1), directions)


def laid_out(x_PD: np.ndarray, spec: MapSpec, report: Report = silent) -> np.ndarray:
    """Places in the plane, float32 (P, 2), the same for the same input on the same machine."""
    count = len(x_PD)
    k = min(round(3 * spec.perplexity), count - 1)
    if count < FEW:  # for neighbourhoods
        return np.resize(reduced(x_PD, 2).T, (2, count)).T
    from openTSNE import TSNEEmbedding, affinity, initialization, nearest_neighbors

    distance_Pk, near_Pk = nearest(x_PD, k)
    alike = affinity.PerplexityBasedNN(
        perplexity=k / 3,
        knn_index=nearest_neighbors.PrecomputedNeighbors(near_Pk, distance_Pk),
        n_jobs=1,
    )
    plane = TSNEEmbedding(
        initialization.rescale(x_PD[:, :2].astype(np.float64)),
        alike,
        random_state=spec.seed,
        n_jobs=1,  # sums in one order
    )
    whole = spec.early + spec.steps
    for before, steps, exaggeration, momentum in (
        (0, spec.early, 12, 0.5),
        (spec.early, spec.steps, 1, 0.8),
    ):

        def told(step: int, error: float, places: object, before: int = before) -> None:
            report("layout", before + step, whole)

        plane = plane.optimize(
            steps,
            exaggeration=exaggeration,
            momentum=momentum,
            callbacks=[told],
            callbacks_every_iters=10,
        )
    return np.asarray(plane, np.float32)


def neighbours_kept(x_PD: np.ndarray, xy_P2: np.ndarray) -> float:
    """Mean share of an image's nearest neighbours that are still among its nearest in the plane."""
    k = min(NEAR, len(x_PD) - 1)
    before_Pk, after_Pk = nearest(x_PD, k)[1], nearest(xy_P2, k)[1]
    return float((before_Pk[:, :, None] == after_Pk[:, None, :]).any(2).mean())
