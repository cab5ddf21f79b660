"""How the training rows of the compressed index are kept, and how they are searched.

Rows lie on the disk, memory-mapped, in shards of a fixed number of rows. Either every row is
compared with the query as it is kept; or a code of a few bits a dimension, all of it in memory,
names a shortlist, which the rows themselves put in order.

| kind | kept, bytes a dimension | compared with the query |
| --- | --- | --- |
| exact | float32, 4 | every row |
| half | float16, 2 | every row |
| sq8 | 8 bits, from least to greatest of each dimension, 1 | every row |
| sq6 | 6 bits, from least to greatest of each dimension, 3/4 | every row |
| sq4 | float16, 2 | 4 bits for each dimension |
| pq | float16, 2 | 4 bits for each two dimensions, or 4 or 8 where memory is short |
| ivf | float16, 2 | the same, in the cells nearest to the query only |

The code is a product quantiser (Jegou, Douze and Schmid, "Product Quantization for Nearest Neighbor
Search", 2011, sections II to IV) of 16 centroids, whose tables of inner products fit in registers
(FAISS's fast scan). How long the shortlist has to be, and how many cells are looked into, is found
on queries of the build; what that reaches is measured on others of them.

Axes: N training rows, T queries, d dimensions, k hits, S rows on a shortlist.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

KINDS = ("auto", "exact", "half", "sq8", "sq6", "sq4", "pq", "ivf")
WORDS = {
    "exact": "rows in float32",
    "half": "rows in half precision",
    "sq8": "rows of 8 bits a dimension",
    "sq6": "rows of 6 bits a dimension",
    "sq4": "a shortlist of {wide} by 4 bits a dimension",
    "pq": "a shortlist of {wide} by a product quantiser",
    "ivf": "a shortlist of {wide} by a product quantiser, in {probes} cells",
}
PLAIN = {"exact": 32, "half": 16, "sq8": 8, "sq6": 6}  # bits a dimension, searched as they are kept
SHARD = 2**17  # rows
BLOCK = 2**14  # rows that are turned to float32 at a time
SCANNED = 2**25  # bytes of half-precision rows: more are searched faster by a code
FEWEST = 256  # rows; fewer are never coded
MANY = 2**22  # rows; of more, only some cells are looked into
TRAINED = 2**14  # rows that a code is fitted to
HITS = 20  # at which recall is measured
SHORTEST, LONGEST = 64, 4096  # shortlists for that many hits
JUDGES = 64  # queries that choose its length, and as many others that judge it

Shelf = Callable[[str, bytes], Path]
"""Called as ``shelf(name, content)`` to write a file; returns where it is."""


@dataclass(frozen=True, eq=False)
class Shard:
    """Neighbouring rows as they are kept, and their code where there is one."""

    rows: faiss.Index
    code: faiss.Index | None = None


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of an index, searched by inner product."""

    kind: str
    shards: tuple[Shard, ...]
    wide: int = 0  # rows on the shortlist for 20 hits; 0: every row is compared
    probes: int = 0  # cells that are looked into, of an ivf
    recall: float = 1.0  # share of the exact order's first and last 20 that are found
    judges: int = 0  # queries on which that was measured

    @property
    def d(self) -> int:
        return int(self.shards[0].rows.d)

    @property
    def ntotal(self) -> int:
        return sum(int(shard.rows.ntotal) for shard in self.shards)

    @property
    def bytes_kept(self) -> int:
        """Bytes of a row on the disk, its code among them."""
        code: Any = self.shards[0].code
        return kept_bytes(self.kind, self.d) + (int(code.code_size) if code else 0)

    @property
    def facts(self) -> dict[str, Any]:
        """What `opened` needs to know beside the files, and what is told of the search."""
        return {
            "kind": self.kind,
            "shards": len(self.shards),
            "wide": self.wide,
            "probes": self.probes,
            "recall": round(self.recall, 4),
            "judges": self.judges,
            "bytes": self.bytes_kept,
        }

    def search(self, u_Td: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores (T, k) and positions (T, k) of the largest inner products, the largest first."""
        u_Td = np.ascontiguousarray(u_Td, np.float32)
        wide = -(-self.wide * max(k, HITS) // HITS)
        if not wide or 4 * wide > self.ntotal:  # so much of it that a code saves nothing
            return self._all(u_Td, k)
        codes: list[Any] = [shard.code for shard in self.shards]
        short = shortlist(self._each(codes, widened(u_Td, codes[0].d), wide + 1), wide)
        if min(map(len, short)) < k:
            return self._all(u_Td, k)
        found = [self._first(k, u_d, ids_S) for u_d, ids_S in zip(u_Td, short, strict=True)]
        scores, ids = zip(*found, strict=True)
        return np.stack(scores), np.stack(ids)

    def search_part(self, u_Td: np.ndarray, k: int, part: slice) -> tuple[np.ndarray, np.ndarray]:
        """`search` among the rows of `part` alone, each compared; fewer than k of fewer rows."""
        found = []
        for shard, start in zip(self.shards, self._starts, strict=True):
            low, high = max(0, part.start - start), min(shard.rows.ntotal, part.stop - start)
            if low < high:
                sel = faiss.IDSelectorRange(low, high)
                only = faiss.SearchParameters(sel=sel)  # type: ignore[call-arg]
                scores_Tk, ids_Tk = shard.rows.search(u_Td, min(k, high - low), params=only)
                found.append((scores_Tk, ids_Tk + start))
        return merged(found, k)

    def _first(self, k: int, u_d: np.ndarray, ids_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The shortlist's k largest inner products with the rows themselves, and positions."""
        parts_S = np.split(ids_S, np.searchsorted(ids_S, self._starts[1:]))
        rows_Sd = torch.cat(
            [
                halves(shard.rows).index_select(0, torch.from_numpy(part_S - start))
                for shard, start, part_S in zip(self.shards, self._starts, parts_S, strict=True)
            ]
        )
        scores_S = (rows_Sd.float() @ torch.from_numpy(u_d)).numpy()
        first_k = np.argsort(-scores_S, kind="stable")[:k]
        return scores_S[first_k], ids_S[first_k]

    def _all(self, u_Td: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Top k with every row compared."""
        return merged(self._each([shard.rows for shard in self.shards], u_Td, k), k)

    def _each(
        self, indexes: Sequence[faiss.Index], u_Td: np.ndarray, k: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Top k of each shard. Shards side by side if queries are few: each is read once then."""

        def one(index: faiss.Index) -> tuple[np.ndarray, np.ndarray]:
            return index.search(u_Td, min(k, index.ntotal))

        few = len(indexes) > 1 and len(u_Td) <= max(2, faiss.omp_get_max_threads())
        found = (workers().map if few else map)(one, indexes)
        return [
            (scores_Tk, np.where(ids_Tk < 0, -1, ids_Tk + start))
            for (scores_Tk, ids_Tk), start in zip(found, self._starts, strict=True)
        ]

    @property
    def _starts(self) -> list[int]:
        """Position of each shard's first row."""
        return np.cumsum([0] + [s.rows.ntotal for s in self.shards[:-1]]).tolist()

    def reconstruct(self, i: int) -> np.ndarray:
        """A row as it is kept, (d,) float32."""
        return self.reconstruct_batch(np.array([i]))[0]

    def reconstruct_batch(self, ids_H: np.ndarray) -> np.ndarray:
        """Rows as they are kept, (H, d) float32."""
        ids_H = np.ascontiguousarray(ids_H, np.int64)
        if len(self.shards) == 1:
            return self.shards[0].rows.reconstruct_batch(ids_H)
        made_Hd = np.empty((len(ids_H), self.d), np.float32)
        for shard, start in zip(self.shards, self._starts, strict=True):
            here_H = (ids_H >= start) & (ids_H < start + shard.rows.ntotal)
            if here_H.any():
                made_Hd[here_H] = shard.rows.reconstruct_batch(ids_H[here_H] - start)
        return made_Hd

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows in their order, (n, d) float32, a few at a time."""
        for shard in self.shards:
            for at in range(0, shard.rows.ntotal, BLOCK):
                yield shard.rows.reconstruct_n(at, min(BLOCK, shard.rows.ntotal - at))

    def reconstruct_n(self, start: int, count: int) -> np.ndarray:
        return self.reconstruct_batch(np.arange(start, start + count))


def search_on(threads: int) -> None:
    """Searches take so many threads from here on."""
    faiss.omp_set_num_threads(threads)


@cache
def workers() -> ThreadPoolExecutor:
    """Threads that search a shard each, and start none of their own for it."""
    count = faiss.omp_get_max_threads()
    return ThreadPoolExecutor(count, "rows", initializer=partial(faiss.omp_set_num_threads, 1))


def halves(index: Any) -> torch.Tensor:
    """Rows that are kept in half precision, (n, d), where they lie: faiss turns them one by one."""
    content = faiss.rev_swig_ptr(index.codes.data(), index.codes.size())
    return torch.from_numpy(content.view(np.float16).reshape(index.ntotal, index.d))


def merged(found: Sequence[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first k of several (scores, positions), (T, n) each; of equals, the earlier row first."""
    scores_Tn, ids_Tn = (np.concatenate(parts, 1) for parts in zip(*found, strict=True))
    first_Tk = np.lexsort((ids_Tn, -scores_Tn), 1)[:, :k]
    return np.take_along_axis(scores_Tn, first_Tk, 1), np.take_along_axis(ids_Tn, first_Tk, 1)


def shortlist(found: Sequence[tuple[np.ndarray, np.ndarray]], wide: int) -> list[np.ndarray]:
    """The best `wide` positions of several (scores, positions), (T, n) each, for each query, in
    rising order.

    Without those that are as good as the next: a search leaves open which of equals it finds.
    """
    scores_Tn, ids_Tn = (np.concatenate(parts, 1) for parts in zip(*found, strict=True))
    good_Tn = ids_Tn >= 0  # cells may hold too few
    if scores_Tn.shape[1] > wide:
        good_Tn &= scores_Tn > -np.partition(-scores_Tn, wide, 1)[:, wide, None]
    return [np.sort(ids_n[good_n]) for ids_n, good_n in zip(ids_Tn, good_Tn, strict=True)]


def fitted(
    rows_Nd: np.ndarray,
    u_Td: np.ndarray,
    kind: str = "auto",
    recall: float = 0.95,
    memory: float = 2**30,
    shelf: Shelf | None = None,
    shard: int = SHARD,
) -> Rows:
    """Rows kept and coded as `kind` says, or as `auto` finds best for the queries `u_Td`.

    `rows_Nd` may be memory-mapped: a few rows are read at a time. `memory` is what a code may take,
    in bytes; `recall` the share of the exact order's first and last 20 that a search has to find.
    Half of what may be missed is aimed for, so that other queries still reach it. With a `shelf`
    each shard goes to the disk when it is made, and is mapped from there.
    """
    N, d = rows_Nd.shape
    kinds = candidates(N, d, memory) if kind == "auto" else [kind if N >= FEWEST else "half"]
    if kind in PLAIN:
        kinds = [kind]
    some_T = np.unique(np.linspace(0, len(u_Td) - 1, min(len(u_Td), 2 * JUDGES)).astype(int))
    u_Jd = np.concatenate([u_Td[some_T], -u_Td[some_T]]).astype(np.float32)
    wanted_Jk = order(rows_Nd, u_Jd, min(HITS, N))
    choose = np.arange(len(u_Jd)) % len(some_T) % 2 == 0
    judge = ~choose if len(some_T) > 1 else choose

    def reached(made: Rows, queries: np.ndarray) -> float:
        found_Jk = made.search(u_Jd[queries], wanted_Jk.shape[1])[1]
        return share_found(found_Jk, wanted_Jk[queries])

    kept = Rows(kinds[0] if kinds[0] in PLAIN else "half", plain(rows_Nd, kinds[0], shelf, shard))
    for name in kinds:
        made = kept
        if name not in PLAIN:
            codes = coded(name, kept, rows_Nd, memory)
            shards = [Shard(s.rows, code) for s, code in zip(kept.shards, codes, strict=True)]
            for wide, probes in efforts(codes[0], N):
                made = probing(Rows(name, tuple(shards), wide, probes))
                if reached(made, choose) >= (1 + recall) / 2:
                    break
        made = replace(made, recall=reached(made, judge), judges=int(judge.sum()) // 2)
        if made.recall >= recall:
            break
    for j, one in enumerate(made.shards):
        if shelf and one.code is not None:
            shelf(file_of("code", j), to_bytes(one.code))
    return made


def half(rows_Nd: np.ndarray, u_Td: np.ndarray) -> Rows:
    """Rows in half precision, all of them compared."""
    return fitted(rows_Nd, u_Td, "half")


def candidates(N: int, d: int, memory: float) -> list[str]:
    """Kinds that `auto` tries, in this order, until one finds enough."""
    if N < FEWEST or 2 * N * d <= SCANNED:
        return ["half"]
    fits = N * d / 2 <= memory
    return [*(["ivf"] if N >= MANY else []), "pq", *(["sq4"] if fits else []), "half"]


def plain(rows_Nd: np.ndarray, kind: str, shelf: Shelf | None, shard: int) -> tuple[Shard, ...]:
    """Rows as they are kept, in shards of `shard` rows."""
    d = rows_Nd.shape[1]
    blank: faiss.Index
    if kind == "exact":
        blank = faiss.IndexFlatIP(d)
    else:
        q = faiss.ScalarQuantizer
        kept_as = {"sq8": q.QT_8bit, "sq6": q.QT_6bit}.get(kind, q.QT_fp16)
        blank = faiss.IndexScalarQuantizer(d, kept_as, faiss.METRIC_INNER_PRODUCT)
    ends = np.stack([end(rows_Nd) for end in (least, greatest)])  # all that the bits have to span
    blank.train(ends)
    made = []
    for j, start in enumerate(range(0, len(rows_Nd), shard)):
        index = copied(blank)
        for block_nd in parts(rows_Nd[start : start + shard]):
            index.add(block_nd)
        if shelf:
            index = mapped(shelf(file_of("rows", j), to_bytes(index)))
        made.append(Shard(index))
    return tuple(made)


def least(rows_Nd: np.ndarray) -> np.ndarray:
    return np.min([block_nd.min(0) for block_nd in parts(rows_Nd)], 0)


def greatest(rows_Nd: np.ndarray) -> np.ndarray:
    return np.max([block_nd.max(0) for block_nd in parts(rows_Nd)], 0)


def coded(kind: str, kept: Rows, rows_Nd: np.ndarray, memory: float) -> list[faiss.Index]:
    """The code of every shard, fitted to a sample of all rows."""
    N, d = rows_Nd.shape
    shared = together(kind, N, d, memory)
    codes = -(-d // shared)
    blank: faiss.Index
    if kind == "ivf":
        cells = max(4, int(N**0.5))
        nearest = faiss.IndexFlatIP(codes * shared)
        blank = faiss.IndexIVFPQFastScan(
            nearest, codes * shared, cells, codes, 4, faiss.METRIC_INNER_PRODUCT
        )
        blank.by_residual = False  # a cell is a direction, and rows differ in length
        blank.cp.spherical, blank.cp.niter, blank.cp.min_points_per_centroid = True, 10, 1
    else:
        cells = 0
        blank = faiss.IndexPQFastScan(codes * shared, codes, 4, faiss.METRIC_INNER_PRODUCT)
    blank.pq.cp.niter, blank.pq.cp.min_points_per_centroid = 10, 1
    sample = np.linspace(0, N - 1, min(N, max(TRAINED, 39 * cells))).astype(int)
    blank.train(widened(np.asarray(rows_Nd[sample], np.float32), blank.d))
    made = []
    start = 0
    for shard in kept.shards:
        code, stop = copied(blank), start + shard.rows.ntotal
        for block_nd in parts(rows_Nd[start:stop]):
            code.add(widened(block_nd, code.d))
        made.append(code)
        start = stop
    return made


def together(kind: str, N: int, d: int, memory: float) -> int:
    """Dimensions that share a code of 4 bits."""
    return 1 if kind == "sq4" else next((n for n in (2, 4) if N * d / 2 / n <= memory), 8)


def kept_bytes(kind: str, d: int) -> int:
    """Bytes of a row without its code; beside a code it is in half precision."""
    return -(-d * PLAIN.get(kind, PLAIN["half"]) // 8)


def bytes_of(kind: str, N: int, d: int, memory: float) -> int:
    """Bytes of a row and its code, before it is made; of `auto`, of what it tries first."""
    first = candidates(N, d, memory)[0] if kind == "auto" else kind if N >= FEWEST else "half"
    if kind in PLAIN or first == "half":
        return kept_bytes(kind, d)
    return kept_bytes(kind, d) + -(-d // together(first, N, d, memory)) // 2


def efforts(code: faiss.Index, N: int) -> Iterator[tuple[int, int]]:
    """Lengths of the shortlist and numbers of cells, each half as much again as before."""
    longest = max(SHORTEST, min(LONGEST, N // 4))
    cells = getattr(code, "nlist", 0)
    wide, probes = SHORTEST, -(-cells * SHORTEST // LONGEST)
    yield wide, probes
    while wide < longest or probes < cells:
        wide, probes = min(wide + wide // 2, longest), min(probes + -(-probes // 2), cells)
        yield wide, probes


def probing(made: Rows) -> Rows:
    """The same, after its codes were told how many cells to look into."""
    codes: list[Any] = [shard.code for shard in made.shards]
    for code in codes if made.probes else ():
        code.nprobe = made.probes
    return made


def order(rows_Nd: np.ndarray, u_Jd: np.ndarray, k: int) -> np.ndarray:
    """Positions (J, k) of the largest inner products with the rows as they are, in float32."""
    best = np.empty((len(u_Jd), 0), np.float32), np.empty((len(u_Jd), 0), np.int64)
    start = 0
    for block_nd in parts(rows_Nd):
        scores_Jn = u_Jd @ block_nd.T
        n = min(k, len(block_nd))
        ids_Jn = np.argpartition(-scores_Jn, n - 1, 1)[:, :n]
        best = merged([best, (np.take_along_axis(scores_Jn, ids_Jn, 1), ids_Jn + start)], k)
        start += len(block_nd)
    return best[1]


def share_found(found_Jk: np.ndarray, wanted_Jk: np.ndarray) -> float:
    """Recall: share of the wanted positions that are found, mean over the queries."""
    pairs = zip(found_Jk, wanted_Jk, strict=True)
    return float(np.mean([np.isin(wanted_k, found_k).mean() for found_k, wanted_k in pairs]))


def opened(file: Callable[[str], Path], facts: Mapping[str, Any]) -> Rows:
    """Rows that `fitted` put on a shelf, mapped from there; `file` gives a file's place.

    Of an index older than its facts: one shard of half-precision rows.
    """
    kind, count = facts.get("kind", "half"), facts.get("shards", 1)
    shards = tuple(
        Shard(
            mapped(file(file_of("rows", j))),
            None if kind in PLAIN else faiss.read_index(str(file(file_of("code", j)))),
        )
        for j in range(count)
    )
    found = ("wide", 0), ("probes", 0), ("recall", 1.0), ("judges", 0)
    return probing(Rows(kind, shards, **{name: facts.get(name, left) for name, left in found}))


def told(facts: Mapping[str, Any]) -> str:
    """How rows are kept and searched, in a sentence; "" of an index older than such facts."""
    if not facts:
        return ""
    how = WORDS[facts["kind"]].format(**facts)
    short = facts["recall"] < facts["wanted"]
    below = f", below the {facts['wanted']:.1%} wanted" if short else ""
    return (
        f"Index: {how}, {facts['bytes']:,} bytes an example; {facts['recall']:.1%} of the exact "
        f"order's first and last {HITS} found{below}, measured on {facts['judges']} of the test "
        "examples."
    )


def file_of(what: str, shard: int) -> str:
    return f"{what}-{shard}.faiss" if shard else f"{what}.faiss"


def size_of(files: Mapping[str, Mapping[str, Any]]) -> int:
    """Bytes of rows and codes among the files of an index, as its manifest lists them."""
    return sum(facts["bytes"] for name, facts in files.items() if name.endswith(".faiss"))


def mapped(path: Path) -> faiss.Index:
    """An index whose vectors stay on the disk until they are asked for."""
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)


def parts(rows_Nd: np.ndarray) -> Iterator[np.ndarray]:
    """Float32 blocks of a few rows."""
    for at in range(0, len(rows_Nd), BLOCK):
        yield np.ascontiguousarray(rows_Nd[at : at + BLOCK], np.float32)


def widened(x_nd: np.ndarray, d: int) -> np.ndarray:
    """Vectors with zeros up to d dimensions."""
    return np.pad(x_nd, ((0, 0), (0, d - x_nd.shape[1])))


def copied(index: faiss.Index) -> faiss.Index:
    return from_bytes(to_bytes(index))


def to_bytes(rows: faiss.Index) -> bytes:
    return faiss.serialize_index(rows).tobytes()


def from_bytes(content: bytes) -> faiss.Index:
    return faiss.deserialize_index(np.frombuffer(content, np.uint8))
