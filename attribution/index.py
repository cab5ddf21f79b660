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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import faiss
import numpy as np
import torch
from torch import Tensor

from .estimators import Whitening, whitening
from .records import EstimatorSpec, Report, silent
from .rows import Rows, half

OVERSAMPLING = 64  # directions beyond d in the range finder
RANGE_MEMBERS = 25  # members whose range is sketched; the others lie close to it


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
    queries_TMd: np.ndarray  # float16, of the test examples it was made with
    projectors_MKd: np.ndarray  # float16: u_m = phi_m @ projectors[m] * projector_scale
    projector_scale: float
    unit: bool  # phi is to be scaled to length one first
    self_influence_N: np.ndarray  # float32, without q

    def search(self, u_Md: np.ndarray, k: int, opponents: bool = False) -> np.ndarray:
        """Training positions (k,), strongest first, of the members' query vectors."""
        mean_1d = u_Md.mean(0, dtype=np.float32)[None]
        return search(self.rows, mean_1d, k, opponents)[1][0]

    def member_scores(self, u_Md: np.ndarray, hits_H: np.ndarray) -> np.ndarray:
        """Each member's approximate score of the hits, (M, H); their mean is the score."""
        rows_Hd = self.rows.reconstruct_batch(np.ascontiguousarray(hits_H, np.int64))
        return u_Md.astype(np.float32) @ rows_Hd.T * self.scale


def compress(
    members: int,
    train: Callable[[int], Tensor],
    queries: Callable[[int], Tensor],
    q_N: Tensor,
    spec: EstimatorSpec,
    dims: int,
    seed: int,
    report: Report = silent,
    put: Callable[[np.ndarray, np.ndarray], Rows] = half,
) -> Compressed:
    """The index squeezed to `dims` dimensions by a streamed range finder and PCA.

    ``train(m)`` and ``queries(m)`` give member m's features, (N, K) and (T, K) float32; one
    member is held at a time, and nothing of size N * N or M * K * N. Two passes: the first
    sketches the range of the members' rows (arXiv 0909.4061, algorithm 4.1, with one power
    step), the second projects every member on it. ``put(rows, queries)`` says how rows are kept
    and searched; the queries are the ensemble's, in float32.
    """
    draw = torch.Generator().manual_seed(seed)
    count = len(q_N)
    dims = min(dims, count)
    width = min(count, dims + OVERSAMPLING)
    whitenings: list[Whitening] = []
    sketched = set(np.linspace(0, members - 1, min(members, RANGE_MEMBERS)).astype(int).tolist())
    S_Nl = torch.randn(count, width, generator=draw)
    Y_Nl = torch.zeros(count, width)
    for m in range(members):
        report("fit", m, 2 * members)
        phi_NK = train(m)
        whitenings.append(whitening(phi_NK, spec))
        if m in sketched:
            scaled_NK = whitenings[m].scaled(phi_NK)
            rows_Kl = whitenings[m].times((scaled_NK.mT @ S_Nl).mT).mT
            Y_Nl += scaled_NK @ whitenings[m].back(rows_Kl)
    Q_Nl, _ = torch.linalg.qr(Y_Nl)
    unit = whitenings[0].unit
    gram_ll = torch.zeros(width, width)
    projector_MKl: list[Tensor] = []
    query_TMl: list[Tensor] = []
    for m in range(members):
        report("fit", members + m, 2 * members)
        white = whitenings[m]
        B_Kl = white.times((white.scaled(train(m)).mT @ Q_Nl).mT).mT  # W'Q, without W
        gram_ll += B_Kl.mT @ B_Kl
        P_Kl = white.back(B_Kl)
        query_TMl.append(white.scaled(queries(m)) @ P_Kl)
        projector_MKl.append(P_Kl)
        whitenings[m] = Whitening()  # its K * K numbers are not needed again
    eigen_l, U_ll = torch.linalg.eigh(gram_ll.double())
    keep = eigen_l.argsort(descending=True)[:dims]
    singular_d = eigen_l[keep].clamp_min(1e-12).sqrt().float()
    U_ld = U_ll[:, keep].float()
    rows_Nd = Q_Nl @ (U_ld * singular_d)  # Q U S, the rows on the basis V = B'U / S
    turn_ld = (U_ld / singular_d).float()
    self_influence_N = rows_Nd.square().sum(1) / members
    weighted_Nd = rows_Nd * weights(q_N, self_influence_N, spec)[:, None]
    row_unit = largest([weighted_Nd])
    queries_M = [u_Tl @ turn_ld for u_Tl in query_TMl]
    query_unit = largest(queries_M)
    projectors_M = [P_Kl @ turn_ld for P_Kl in projector_MKl]
    projector_unit = largest(projectors_M)
    u_Td = reduce(torch.add, queries_M) / (members * query_unit)
    made = put((weighted_Nd / row_unit).numpy(), u_Td.numpy())
    report("fit", 2 * members, 2 * members)
    return Compressed(
        made,
        row_unit * query_unit,
        torch.stack([(u_Td / query_unit).half() for u_Td in queries_M], 1).numpy(),
        torch.stack([(P_Kd / projector_unit).half() for P_Kd in projectors_M]).numpy(),
        projector_unit / query_unit,
        unit,
        self_influence_N.numpy(),
    )


def largest(tensors: Sequence[Tensor]) -> float:
    """Largest magnitude: the unit in which half precision, of little range, holds them all."""
    return max(float(t.abs().max()) for t in tensors) or 1.0
