"""One vector for each training example, one inner product for the whole ensemble.

With w_m the whitened features of member m of M and q the ensemble's mean 1 - p,

    score(z, i) = 1/M sum_m <w_m(z), w_m(i)> * q_i ** power

so the whitened members side by side, the power of q folded into the training row, make one flat
FAISS inner-product index: its top k are the proponents, the top k of the negated query the
opponents, both exact (`Exact`). `compress` squeezes it by a PCA basis V with one block V_m a
member: a training row is r_i = sum_m V_m' w_m(i), a query u_m = V_m' w_m(z), and u_m . r_i
approximates member m's score.

Axes: N training examples, T queries, M members, K features of a member, d PCA dimensions, H hits.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor

from .estimators import Whitening, whitening
from .fit import Fit
from .records import EstimatorSpec
from .rows import Rows, half
from .rows import merged as first_of


@dataclass(frozen=True, eq=False)
class Exact:
    """The whitened members side by side in memory: N * M * K * 4 bytes."""

    rows: faiss.Index
    whitenings: tuple[Whitening, ...]
    weight_N: Tensor  # what `weights` multiplied the rows by

    def query(self, blocks: Sequence[Tensor]) -> np.ndarray:
        """Query vectors (T, M * K) of the members' features of the same T examples."""
        w = [white(phi) for white, phi in zip(self.whitenings, blocks, strict=True)]
        return torch.cat(w, 1).div_(len(w)).numpy()

    def search(self, u_TF: np.ndarray, k: int, opponents: bool = False) -> tuple:
        """Scores (T, k) and training positions (T, k), strongest first."""
        return search(self.rows, u_TF, k, opponents)

    def member_scores(self, u_F: np.ndarray, hits_H: np.ndarray) -> np.ndarray:
        """Each member's score of the hits of one query, (M, H); their mean is the score."""
        rows_HF = self.rows.reconstruct_batch(hits_H)
        members = len(self.whitenings)
        return np.stack(
            [
                members * r_HK @ u_K
                for r_HK, u_K in zip(
                    np.split(rows_HF, members, 1), np.split(u_F, members), strict=True
                )
            ]
        )


def exact(
    blocks: Sequence[Tensor], q_N: Tensor, spec: EstimatorSpec, ridge: float | None = None
) -> Exact:
    """The exact index of the members' training features (N, K) and mean q (N,).

    `ridge`, where given, is lambda itself, in place of the damping relative to each kernel.
    """
    whitenings = []
    for phi in blocks:
        damping = spec.damping if ridge is None else ridge / float(phi.square().sum(0).mean())
        whitenings.append(whitening(phi, replace(spec, damping=damping)))
    w_NF = torch.cat([white(phi) for white, phi in zip(whitenings, blocks, strict=True)], 1)
    weight_N = weights(q_N, w_NF.square().sum(1) / len(blocks), spec)
    index = faiss.IndexFlatIP(w_NF.shape[1])
    index.add((w_NF * weight_N[:, None]).numpy())
    return Exact(index, tuple(whitenings), weight_N)


def weights(q_N: Tensor, self_influence_N: Tensor, spec: EstimatorSpec) -> Tensor:
    """What training rows are multiplied by: mean q to the power chosen.

    With `spec.relative` also divided by the root of self-influence, so that an example which
    moves everything does not come first everywhere (l-RelatIF, arXiv 2003.11630, section 4).
    """
    weight_N = q_N**spec.q_power
    return weight_N / self_influence_N.clamp_min(1e-30).sqrt() if spec.relative else weight_N


def search(
    rows: faiss.Index | Rows, u_TF: np.ndarray, k: int, opponents: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Top k by inner product, or bottom k: the top k of the negated queries, negated."""
    sign = -1 if opponents else 1
    scores_Tk, ids_Tk = rows.search(np.ascontiguousarray(sign * u_TF, np.float32), k)
    return sign * scores_Tk, ids_Tk


def search_part(
    rows: Rows, part: slice, u_TF: np.ndarray, k: int, opponents: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """`search` of a part of the rows, each of them compared; fewer than k if it has not as many."""
    sign = -1 if opponents else 1
    scores_Tk, ids_Tk = rows.search_part(np.ascontiguousarray(sign * u_TF, np.float32), k, part)
    return sign * scores_Tk, ids_Tk


def merged(
    found: Iterable[tuple[np.ndarray, np.ndarray]], k: int, opponents: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The first k of what `search_part` found in every part: those of all rows together."""
    sign = -1 if opponents else 1
    scores_Tk, ids_Tk = first_of([(sign * scores, ids) for scores, ids in found], k)
    return sign * scores_Tk, ids_Tk


def nearest(x_NH: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances (N, k) and positions (N, k) of the nearest other rows, exact, the nearest first."""
    rows = faiss.IndexFlatL2(x_NH.shape[1])
    rows.add(np.ascontiguousarray(x_NH, np.float32))
    squares_Nk, ids_Nk = rows.search(np.ascontiguousarray(x_NH, np.float32), k + 1)
    others_Nk = ids_Nk != np.arange(len(x_NH))[:, None]
    others_Nk[others_Nk.all(1), -1] = False  # among more equals than k, it may not find itself
    kept = np.nonzero(others_Nk)
    distance_Nk = np.sqrt(np.maximum(squares_Nk[kept], 0)).reshape(-1, k)
    return distance_Nk, ids_Nk[kept].reshape(-1, k)


@dataclass(frozen=True, eq=False)
class Compressed:
    """What `compress` makes; `Member` queries come from `projectors`."""

    rows: Rows  # r_i * q_i ** power
    scale: (
        float  # a score is this times the inner product; stored vectors are in units of their own
    )
    queries_TMd: np.ndarray  # float16, of the test examples it was made with; read by `query`
    projectors_MKd: np.ndarray  # float16: u_m = phi_m @ projectors[m] * projector_scale
    projector_scale: float
    unit: bool  # phi is to be scaled to length one first
    self_influence_N: np.ndarray  # float32, without q
    query_units_T: np.ndarray  # float32: what each of the queries is kept in units of

    def query(self, row: int) -> np.ndarray:
        """The members' stored query vectors (M, d), float32."""
        return self.queries_TMd[row].astype(np.float32) * self.query_units_T[row]

    def search(self, u_Md: np.ndarray, k: int, opponents: bool = False) -> np.ndarray:
        """Training positions (k,), strongest first, of the members' query vectors."""
        mean_1d = u_Md.mean(0, dtype=np.float32)[None]
        return search(self.rows, mean_1d, k, opponents)[1][0]

    def both(self, u_Md: np.ndarray, k: int) -> np.ndarray:
        """Training positions (2, k) of the strongest proponents and of the strongest opponents.

        Asked together: codes are read once for the two.
        """
        mean_d = u_Md.mean(0, dtype=np.float32)
        return self.rows.search(np.stack([mean_d, -mean_d]), k)[1]

    def member_scores(self, u_Md: np.ndarray, hits_H: np.ndarray) -> np.ndarray:
        """Each member's approximate score of the hits, (M, H); their mean is the score."""
        rows_Hd = self.rows.reconstruct_batch(np.ascontiguousarray(hits_H, np.int64))
        # Not by BLAS, whose threads wait busily afterwards and slow the next search.
        return np.einsum("md,hd->mh", u_Md.astype(np.float32), rows_Hd) * self.scale

    def all_scores(self, u_Md: np.ndarray) -> np.ndarray:
        """The same of all training examples, (M, N), whose rows are read a few at a time."""
        u_Md = u_Md.astype(np.float32)
        parts = [np.einsum("md,nd->mn", u_Md, rows_nd) for rows_nd in self.rows.blocks()]
        return np.concatenate(parts, 1) * self.scale


Keep = Callable[[str, tuple[int, ...], Iterator[Tensor]], np.ndarray]
"""``keep(name, shape, blocks)``: the array that blocks of rows make, wherever it is kept."""


def gathered(name: str, shape: tuple[int, ...], blocks: Iterator[Tensor]) -> np.ndarray:
    """Kept in memory."""
    return torch.cat(list(blocks)).numpy()


@dataclass(frozen=True, eq=False)
class Weighted:
    """A fit's rows with the power of q, in their unit: read from scratch where they are wanted."""

    fit: Fit
    weight_N: Tensor
    unit: float
    part: slice

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.fit.dims

    def __len__(self) -> int:
        return self.part.stop - self.part.start

    def __getitem__(self, which: slice | np.ndarray) -> "Weighted | np.ndarray":
        if isinstance(which, slice):
            start, stop, _ = which.indices(len(self))
            return replace(self, part=slice(self.part.start + start, self.part.start + stop))
        return np.concatenate([np.asarray(self[i : i + 1]) for i in which])

    def __array__(self, dtype: type | None = None, copy: bool | None = None) -> np.ndarray:
        rows_nd = self.fit.rows[self.part] * self.weight_N[self.part, None] / self.unit
        return rows_nd.numpy().astype(dtype or np.float32, copy=False)


def compress(
    fit: Fit,
    q_N: Tensor,
    spec: EstimatorSpec,
    keep: Keep = gathered,
    put: Callable[[Any, np.ndarray], Rows] = half,
) -> Compressed:
    """The index squeezed to the dimensions that were fitted; `keep` takes its larger arrays.

    ``put(rows, queries)`` says how rows are kept and searched; the queries are the ensemble's.
    """
    weight_N = weights(q_N, fit.self_influence_N, spec)
    whole = Weighted(fit, weight_N, 1.0, slice(0, len(q_N)))
    row_unit = largest(torch.from_numpy(np.asarray(whole[rows])) for rows in fit.blocks.shards)
    u_Td = np.concatenate([u_tMd.float().mean(1).numpy() for u_tMd in fit.query_blocks()])
    members, T, K, d = fit.blocks.members, fit.asked, fit.features, fit.dims
    return Compressed(
        put(replace(whole, unit=row_unit), u_Td),
        row_unit * fit.query_unit,
        keep("queries", (T, members, d), fit.query_blocks()),
        keep("projectors", (members, K, d), fit.projector_blocks()),
        fit.projector_unit / fit.query_unit,
        spec.name == "gradcos",
        fit.self_influence_N.numpy(),
        fit.query_units_T.numpy(),
    )


def largest(tensors: Iterable[Tensor]) -> float:
    """Largest magnitude: the unit in which half precision, of little range, holds them all."""
    return max(float(t.abs().max()) for t in tensors) or 1.0
