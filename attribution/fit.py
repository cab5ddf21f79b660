"""The numbers of the compressed index, from features that are read a shard of a member at a time.

    features -> sums -> whitenings -> range of the rows -> basis -> rows, queries, projectors

With W_m the whitening of member m, the rows of the ensemble are A = [Phi_1 W_1 ... Phi_M W_M],
(N, M K), never made. Four passes over the features:

    1.  Phi_m'Phi_m, of which W_m is made, and Phi_m'S of random S
    2.  Y = A A'S, whose columns span the range of A all but a little (arXiv 0909.4061, section 4.5)
    3.  B = A'Q, with Q the orthonormal columns of Y
    4.  queries on the basis V = B'U / S of A's rows, which B B' = U S^2 U' gives

Each is a map over (member, shard) of a pure function (`first`, `second`, `third`; the fourth, over
members, `fourth`) whose results are summed in order, so that another `Each` runs them elsewhere and
gives the same numbers. Memory holds the features of one shard, a few K x K and K x l of one member
and l x l; what is N or M times larger lies on scratch.

Axes: N training examples, n of them in a shard, T queries, M members, K features of a member, l
directions of the sketch, d dimensions of the basis.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import islice, starmap
from operator import add
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from .estimators import Sums, Whitening, fitted, products, scaled, summed
from .records import LOSS, EstimatorSpec, Report, silent

OVERSAMPLING = 64  # directions beyond d in the range finder
RANGE_MEMBERS = 25  # members whose range is sketched; the others lie close to it
RANK = 1e-12  # of the largest eigenvalue of Y'Y: below it is what single precision left of Y
ROWS = 2**12  # of a tall matrix at a time, in double precision
HELD = 2**22  # numbers of the queries at a time

Part = TypeVar("Part")


class Each(Protocol):
    """``each(work, tasks)`` calls ``work(*task)`` for every task; the results come in order."""

    def __call__(
        self, work: Callable[..., Part], tasks: Iterable[tuple[Any, ...]], /
    ) -> Iterator[Part]: ...


class Matrix(Protocol):
    """Float32, read and written by ranges of rows: a tensor, or a file."""

    def __getitem__(self, rows: slice, /) -> Tensor: ...
    def __setitem__(self, rows: slice, values: Tensor, /) -> None: ...


Scratch = Callable[[int, int], Matrix]


@dataclass(frozen=True)
class Blocks:
    """Features as the estimator takes them, read where and when they are wanted."""

    members: int
    shards: Sequence[slice]  # of the training examples, in order
    train: Callable[[int, int], Tensor]  # (n, K) of a member and a shard
    queries: Callable[[int], Iterable[Tensor]]  # (T, K) of a member, in parts


def first(
    blocks: Blocks, spec: EstimatorSpec, m: int, s: int, S_nl: Tensor | None
) -> tuple[Sums, Tensor | None]:
    """A shard's part of what a member's whitening is made of, and of Phi'S (K, l)."""
    phi_nK = blocks.train(m, s)
    return summed(phi_nK, spec), None if S_nl is None else scaled(phi_nK, spec).mT @ S_nl


def second(blocks: Blocks, spec: EstimatorSpec, m: int, s: int, T_Kl: Tensor) -> Tensor:
    """A member's part of a shard's rows of Y, (n, l)."""
    return scaled(blocks.train(m, s), spec) @ T_Kl


def third(blocks: Blocks, spec: EstimatorSpec, m: int, s: int, Q_nl: Tensor) -> Tensor:
    """A shard's part of Phi'Q, (K, l)."""
    return scaled(blocks.train(m, s), spec).mT @ Q_nl


def fourth(blocks: Blocks, spec: EstimatorSpec, m: int, P_Kd: Tensor) -> Tensor:
    """A member's queries on the basis, (T, d)."""
    return torch.cat([scaled(psi_TK, spec) @ P_Kd for psi_TK in blocks.queries(m)])


def whitened(blocks: Blocks, spec: EstimatorSpec, m: int) -> Whitening:
    """A member's whitening."""
    parts = (first(blocks, spec, m, s, None) for s in range(len(blocks.shards)))
    return _whitened(reduce(_both, parts), spec)[0]


def totals(blocks: Blocks, spec: EstimatorSpec, m: int, weight_NS: Tensor) -> Tensor:
    """A member's scores of the queries summed over the training examples by weight, (T, S)."""
    parts = (first(blocks, spec, m, s, weight_NS[r]) for s, r in enumerate(blocks.shards))
    _, pull_KS = _whitened(reduce(_both, parts), spec)
    assert pull_KS is not None
    return fourth(blocks, spec, m, pull_KS)


def _whitened(
    found: tuple[Sums, Tensor | None], spec: EstimatorSpec
) -> tuple[Whitening, Tensor | None]:
    """The whitening W, and W W'Phi'S where Phi'S is given."""
    sums, Z_Kl = found
    white = fitted(sums, spec)
    return white, None if Z_Kl is None else white.back(white.times(Z_Kl.mT).mT)


class Whitenings:
    """One for each member, their matrices on scratch."""

    def __init__(self, scratch: Scratch, members: int) -> None:
        self._scratch, self._members = scratch, members
        self._kept: dict[int, Whitening] = {}
        self._matrices: Matrix | None = None

    def __setitem__(self, m: int, white: Whitening) -> None:
        if white.matrix_KK is not None:
            K = len(white.matrix_KK)
            if self._matrices is None:
                self._matrices = self._scratch(self._members * K, K)
            self._matrices[slice(m * K, (m + 1) * K)] = white.matrix_KK
            white = replace(white, matrix_KK=None, size=K)
        self._kept[m] = white

    def __getitem__(self, m: int) -> Whitening:
        white = self._kept[m]
        if not white.size:
            return white
        assert self._matrices is not None
        rows = slice(m * white.size, (m + 1) * white.size)
        return replace(white, matrix_KK=self._matrices[rows], size=0)


@dataclass(frozen=True, eq=False)
class Fit:
    """What `fit` finds; all but the self-influence is read from scratch."""

    blocks: Blocks
    dims: int
    whitenings: Whitenings
    self_influence_N: Tensor  # mean over the members
    rows: Matrix  # (N, d): the rows on the basis, without q
    queries: Matrix  # (M * T, d), member after member
    query_unit: float  # their largest magnitude
    query_units_T: Tensor  # what each is kept in units of, as a share of that
    projectors: Matrix  # (M * K, d): a member's queries are psi @ its projector
    projector_unit: float
    asked: int  # T
    features: int  # K

    def query_blocks(self) -> Iterator[Tensor]:
        """The queries in their units, float16 (t, M, d), some at a time."""
        members, T = self.blocks.members, self.asked
        step = max(1, HELD // (members * self.dims))
        for t in range(0, T, step):
            most = min(t + step, T)
            some = [self.queries[slice(m * T + t, m * T + most)] for m in range(members)]
            unit_t1 = self.query_unit * self.query_units_T[t:most, None]
            yield torch.stack([(u_td / unit_t1).half() for u_td in some], 1)

    def projector_blocks(self) -> Iterator[Tensor]:
        """The projectors in their unit, float16 (1, K, d), one at a time."""
        for m in range(self.blocks.members):
            rows = slice(m * self.features, (m + 1) * self.features)
            yield (self.projectors[rows] / self.projector_unit).half()[None]


def fit(
    blocks: Blocks,
    spec: EstimatorSpec,
    dims: int,
    seed: int,
    report: Report = silent,
    scratch: Scratch = torch.zeros,
    each: Each = starmap,
) -> Fit:
    """Whitenings, the leading `dims` dimensions of the ensemble's rows, and the queries on them."""
    shards, members = blocks.shards, blocks.members
    count = shards[-1].stop
    dims = min(dims, count)
    width = min(count, dims + OVERSAMPLING)
    sketched = np.linspace(0, members - 1, min(members, RANGE_MEMBERS)).astype(int).tolist()
    place = {m: j for j, m in enumerate(sketched)}
    steps = 2 * members + len(shards)

    tall = scratch(count, width)  # S, then Y in its place, then Q
    draw = torch.Generator().manual_seed(seed)
    for rows in shards:
        tall[rows] = torch.randn(rows.stop - rows.start, width, generator=draw)
    whitenings = Whitenings(scratch, members)
    ranges: Matrix | None = None
    firsts = each(
        partial(first, blocks, spec),
        ((m, s, tall[rows] if m in place else None)
         for m in range(members) for s, rows in enumerate(shards)),
    )  # fmt: skip
    for m in range(members):
        report("fit", m, steps)
        whitenings[m], T_Kl = _whitened(reduce(_both, islice(firsts, len(shards))), spec)
        if T_Kl is not None:
            K = len(T_Kl)
            ranges = ranges if ranges is not None else scratch(len(sketched) * K, width)
            ranges[slice(place[m] * K, (place[m] + 1) * K)] = T_Kl
    assert ranges is not None

    seconds = each(
        partial(second, blocks, spec),
        ((m, s, ranges[slice(j * K, (j + 1) * K)])
         for s in range(len(shards)) for m, j in place.items()),
    )  # fmt: skip
    for s, rows in enumerate(shards):
        report("fit", members + s, steps)
        tall[rows] = reduce(add, islice(seconds, len(sketched)))
    orthonormal(tall, count, width)

    gram_ll = torch.zeros(width, width, dtype=torch.float64)
    wide = scratch(members * K, width)
    thirds = each(
        partial(third, blocks, spec),
        ((m, s, tall[rows]) for m in range(members) for s, rows in enumerate(shards)),
    )
    for m in range(members):
        report("fit", members + len(shards) + m, steps)
        white = whitenings[m]
        B_Kl = white.times(reduce(add, islice(thirds, len(shards))).mT).mT  # W'Phi'Q
        gram_ll += products(B_Kl)
        wide[slice(m * K, (m + 1) * K)] = white.back(B_Kl)
    eigen_l, U_ll = torch.linalg.eigh(gram_ll)  # of the lower triangle
    keep = eigen_l.argsort(descending=True)[:dims]
    singular_d = eigen_l[keep].clamp_min(1e-12).sqrt()
    basis_ld = (U_ll[:, keep] * singular_d).float()  # Q U S are the rows on the basis
    turn_ld = (U_ll[:, keep] / singular_d).float()

    turned = scratch(count, dims)
    self_influence_N = torch.empty(count)
    for rows in pieces(count):
        turned[rows] = rows_nd = tall[rows] @ basis_ld
        self_influence_N[rows] = rows_nd.square().sum(1) / members

    projectors = scratch(members * K, dims)
    projector_unit = 0.0
    for m in range(members):
        some = slice(m * K, (m + 1) * K)
        projectors[some] = P_Kd = wide[some] @ turn_ld
        projector_unit = max(projector_unit, float(P_Kd.abs().max()))
    fourths = each(
        partial(fourth, blocks, spec),
        ((m, projectors[slice(m * K, (m + 1) * K)]) for m in range(members)),
    )
    queries: Matrix | None = None
    most_T = torch.zeros(1)
    for m, u_Td in enumerate(fourths):
        queries = queries if queries is not None else scratch(members * len(u_Td), dims)
        queries[slice(m * len(u_Td), (m + 1) * len(u_Td))] = u_Td
        most_T = torch.maximum(most_T, u_Td.abs().amax(1))
    assert queries is not None
    query_unit = float(most_T.max()) or 1.0
    report("fit", steps, steps)
    return Fit(
        blocks=blocks,
        dims=dims,
        whitenings=whitenings,
        self_influence_N=self_influence_N,
        rows=turned,
        queries=queries,
        query_unit=query_unit,
        query_units_T=units(most_T / query_unit, spec),
        projectors=projectors,
        projector_unit=projector_unit or 1.0,
        asked=len(u_Td),
        features=K,
    )


def units(most_T: Tensor, spec: EstimatorSpec) -> Tensor:
    """What queries of these largest magnitudes are kept in units of.

    One for all, but for gradients of the loss: of an image that is confidently right they are
    smaller by many powers of ten than of one that is wrong, and half precision has few.
    """
    each = (most_T > 0) & (spec.name in LOSS)
    return torch.where(each, most_T, 1.0)


def _both(
    one: tuple[Sums, Tensor | None], other: tuple[Sums, Tensor | None]
) -> tuple[Sums, Tensor | None]:
    sketch = None if one[1] is None or other[1] is None else one[1] + other[1]
    return one[0] + other[0], sketch


def orthonormal(tall: Matrix, count: int, width: int) -> None:
    """Make the columns orthonormal in place, or zero where they add nothing to the others.

    By the eigenvectors of Y'Y = V E V', as Y V E^-1/2: in double precision, whose rounding of the
    squares is finer than the single precision that Y was computed in.
    """
    gram_ll = torch.zeros(width, width, dtype=torch.float64)
    for rows in pieces(count):
        gram_ll += products(tall[rows].double())
    eigen_l, V_ll = torch.linalg.eigh(gram_ll)  # of the lower triangle
    some = eigen_l > RANK * eigen_l.max()
    turn_ll = V_ll * torch.where(some, eigen_l.clamp_min(1e-300).rsqrt(), 0.0)
    for rows in pieces(count):
        tall[rows] = (tall[rows].double() @ turn_ll).float()


def pieces(count: int) -> Iterator[slice]:
    """The rows of a tall matrix, `ROWS` at a time."""
    return (slice(n, min(n + ROWS, count)) for n in range(0, count, ROWS))
