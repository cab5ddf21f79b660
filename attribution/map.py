"""A picture of the data: every image a point in the plane, near those that the networks see alike.

What reaches the last layer of each network, side by side, is brought down to few directions by PCA
and from there to two by UMAP, training and test images together. Neighbourhoods are what it keeps;
how far apart two groups are, or how wide one is, means little.

Axes: P images (first training, then test), H features of a network, D directions.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA

from .index import nearest

NEAR = 10  # neighbours that `neighbours_kept` looks at


@dataclass(frozen=True, kw_only=True)
class MapSpec:
    """How the plane is found."""

    directions: int = 50
    neighbours: int = 15
    apart: float = 0.1  # how close UMAP may put two points
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


def laid_out(x_PD: np.ndarray, spec: MapSpec) -> np.ndarray:
    """Places in the plane, float32 (P, 2), the same for the same input on the same machine."""
    count = len(x_PD)
    k = min(spec.neighbours, count - 1)
    if k < 3:  # too few for neighbourhoods
        return np.resize(reduced(x_PD, 2).T, (2, count)).T
    distance_Pk, near_Pk = nearest(x_PD, k)
    own_P1, zero_P1 = np.arange(count)[:, None], np.zeros((count, 1), np.float32)
    around = np.hstack([own_P1, near_Pk]), np.hstack([zero_P1, distance_Pk])
    with warnings.catch_warnings():
        # It says what it could also do: place new points, use other libraries.
        warnings.simplefilter("ignore")
        from umap import UMAP  # compiles parts of itself, which takes some seconds

        plane = UMAP(
            n_neighbors=k + 1,
            min_dist=spec.apart,
            init="pca",
            precomputed_knn=around,
            random_state=spec.seed,
            n_jobs=1,
        )
        return plane.fit_transform(x_PD).astype(np.float32)


def neighbours_kept(x_PD: np.ndarray, xy_P2: np.ndarray) -> float:
    """Mean share of an image's nearest neighbours that are still among its nearest in the plane."""
    k = min(NEAR, len(x_PD) - 1)
    before_Pk, after_Pk = nearest(x_PD, k)[1], nearest(xy_P2, k)[1]
    return float((before_Pk[:, :, None] == after_Pk[:, None, :]).any(2).mean())
