"""Rows of the index, however they are kept and searched, against numpy's own sorting of all."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from conftest import Tiny

from attribution import rows
from attribution.engine import Engine
from attribution.records import BuildSpec, DataSpec, FeatureSpec, UserError, content_id
from attribution.rows import Rows, fitted

N, D, T = 3000, 31, 24  # an odd number of dimensions, which no pairs fill
CODED = ("sq4", "pq", "ivf")
each_kind = pytest.mark.parametrize("kind", [*rows.PLAIN, *CODED])
each_code = pytest.mark.parametrize("kind", CODED)


def drawn(count: int = N, seed: int = 0) -> np.ndarray:
    """Rows of very different length on dimensions of falling weight, as an index has them."""
    draw = np.random.default_rng(seed)
    x_Nd = draw.normal(size=(count, D)) / (1 + np.arange(D)) ** 0.3
    x_Nd *= np.exp(draw.normal(size=(count, 1)))
    return (x_Nd / np.abs(x_Nd).max()).astype(np.float32)


def first(x_Nd: np.ndarray, u_Td: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k largest inner products, by sorting all of them in double precision."""
    return np.argsort(-(u_Td.astype(float) @ x_Nd.T.astype(float)), 1)[:, :k]


def on_disk(folder: Path, x_Nd: np.ndarray, u_Td: np.ndarray, kind: str, **more: int) -> Rows:
    def shelf(name: str, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return fitted(x_Nd, u_Td, kind, shelf=shelf, **more)


@pytest.fixture(scope="module")
def x_Nd() -> np.ndarray:
    return drawn()


@pytest.fixture(scope="module")
def u_Td() -> np.ndarray:
    return drawn(T, seed=1)


@each_kind
@pytest.mark.parametrize("sign", [1, -1], ids=["proponents", "opponents"])
def test_every_kind_finds_what_sorting_all_finds(x_Nd, u_Td, kind, sign):
    made = fitted(x_Nd, u_Td, kind, recall=0.95)
    scores_Tk, ids_Tk = made.search(sign * u_Td, 20)
    assert made.kind == kind
    wanted = first(x_Nd, sign * u_Td, 20)
    assert rows.share_found(ids_Tk, wanted) >= (1.0 if kind == "exact" else 0.95)
    # the scores told are those of the rows as they are kept, in falling order
    exact_Tk = np.take_along_axis(sign * u_Td @ x_Nd.T, ids_Tk, 1)
    off = {"exact": 1e-6, "sq8": 1e-2, "sq6": 4e-2}.get(kind, 1e-3)
    assert np.abs(scores_Tk - exact_Tk).max() < off * np.abs(exact_Tk).max()
    assert (np.diff(scores_Tk, axis=1) <= 0).all()


@each_kind
def test_the_recall_that_is_told_is_the_recall_of_the_queries_that_did_not_choose(x_Nd, u_Td, kind):
    made = fitted(x_Nd, u_Td, kind)
    judges = u_Td[1::2]
    both_Jk = np.concatenate([made.search(s * judges, rows.HITS)[1] for s in (1, -1)])
    wanted_Jk = np.concatenate([first(x_Nd, s * judges, rows.HITS) for s in (1, -1)])
    hits = [len(set(a) & set(b)) for a, b in zip(both_Jk.tolist(), wanted_Jk.tolist(), strict=True)]
    assert made.recall == pytest.approx(np.mean(hits) / rows.HITS)
    assert made.judges == len(judges)


@each_code
def test_a_higher_recall_that_is_wanted_makes_a_longer_shortlist_and_is_reached(x_Nd, kind):
    many_Td = drawn(48, seed=2)
    little, much = (fitted(x_Nd, many_Td, kind, recall=wanted) for wanted in (0.5, 0.97))
    assert little.wide <= much.wide and little.recall <= much.recall
    assert much.recall >= 0.97
    assert little.wide < much.wide or little.probes < much.probes


@each_kind
def test_shards_searched_and_merged_are_one_index(x_Nd, u_Td, kind):
    whole = fitted(x_Nd, u_Td, kind)
    shards = fitted(x_Nd, u_Td, kind, shard=700)
    assert [s.rows.ntotal for s in shards.shards] == [700, 700, 700, 700, 200]
    assert (shards.wide, shards.probes, shards.recall) == (whole.wide, whole.probes, whole.recall)
    for queries, k in ((u_Td, 20), (-u_Td[:1], 20), (u_Td, 900)):  # many at once, and one alone
        (scores, ids), (merged_scores, merged_ids) = (r.search(queries, k) for r in (whole, shards))
        np.testing.assert_array_equal(merged_scores, scores)
        sure = scores > scores[:, -1:]  # which of equals comes last is open
        np.testing.assert_array_equal(merged_ids[sure], ids[sure])
    some = np.array([2999, 0, 700, 699, 1400, 0])
    np.testing.assert_array_equal(shards.reconstruct_batch(some), whole.reconstruct_batch(some))
    np.testing.assert_array_equal(np.concatenate([*shards.blocks()]), whole.reconstruct_n(0, N))
    np.testing.assert_array_equal(shards.reconstruct(701), whole.reconstruct(701))


@each_kind
@pytest.mark.parametrize("shard", [700, N])
def test_two_that_are_asked_together_are_answered_as_if_alone(x_Nd, u_Td, kind, shard):
    made = fitted(x_Nd, u_Td, kind, shard=shard)
    for u_d in u_Td:
        pair = np.stack([u_d, -u_d])
        alone = [made.search(one[None], 20) for one in pair]
        for found, wanted in zip(made.search(pair, 20), zip(*alone, strict=True), strict=True):
            np.testing.assert_array_equal(found, np.concatenate(wanted))


def test_a_shortlist_has_the_best_of_all_parts_once():
    draw = np.random.default_rng(0)
    scores_Tn, ids_n = draw.normal(size=(5, 90)).astype(np.float32), draw.permutation(90)
    parts = [(scores_Tn[:, a:b], np.tile(ids_n[a:b], (5, 1))) for a, b in ((0, 40), (40, 90))]
    for wide in (1, 30, 89, 90, 200):
        wanted = np.sort(ids_n[np.argsort(-scores_Tn, 1)[:, :wide]], 1)
        np.testing.assert_array_equal(rows.shortlist(parts, wide), wanted)
    equals = [(np.array([[5, 4, 4, 4, 1]], np.float32), np.array([[7, 0, 3, -1, 2]]))]
    for wide, wanted in ((1, [7]), (2, [7]), (3, [7]), (4, [0, 3, 7]), (5, [0, 2, 3, 7])):
        assert rows.shortlist(equals, wide)[0].tolist() == wanted


@each_kind
def test_what_was_put_on_the_disk_opens_as_it_was_and_finds_the_same(tmp_path, x_Nd, u_Td, kind):
    made = fitted(x_Nd, u_Td, kind, shard=1600)
    written = on_disk(tmp_path, x_Nd, u_Td, kind, shard=1600)
    again = rows.opened(lambda name: tmp_path / name, written.facts)
    names = ["rows.faiss", "rows-1.faiss"] + ["code.faiss", "code-1.faiss"] * (kind in CODED)
    assert {p.name for p in tmp_path.iterdir()} == set(names)
    for u in (u_Td, -u_Td):
        for one in (written, again):
            for found, wanted in zip(one.search(u, 20), made.search(u, 20), strict=True):
                np.testing.assert_array_equal(found, wanted)
    assert {**again.facts, "recall": 0} == {**made.facts, "recall": 0}
    assert again.recall == pytest.approx(made.recall, abs=1e-4)
    sizes = sum((tmp_path / name).stat().st_size for name in names)
    # what comes once, and not with every row: centroids, cells, names of cells' members
    once = {"ivf": 12 * N + 55 * 128}.get(kind, 0) + 5000
    assert N * made.bytes_kept <= sizes <= N * made.bytes_kept + 2 * once


def test_rows_on_the_disk_are_read_by_faiss_alone(tmp_path, x_Nd, u_Td):
    on_disk(tmp_path, x_Nd, u_Td, "pq")
    alone = faiss.read_index(str(tmp_path / "rows.faiss"))
    assert np.abs(alone.reconstruct_n(0, N) - x_Nd).max() < 1e-3
    assert (tmp_path / "code.faiss").stat().st_size < (tmp_path / "rows.faiss").stat().st_size / 6


def test_mapped_rows_stay_on_the_disk_until_they_are_asked_for(tmp_path):
    x_Nd = np.tile(drawn(30_000), 10)  # 19 MB in half precision
    on_disk(tmp_path, x_Nd, x_Nd[:2], "half")

    def resident() -> int:
        lines = Path("/proc/self/smaps").read_text().split("\n")
        at = next(i for i, line in enumerate(lines) if line.endswith(str(tmp_path / "rows.faiss")))
        return next(int(x.split()[1]) for x in lines[at:] if x.startswith("Rss:")) * 1024

    again = rows.opened(lambda name: tmp_path / name, {})
    again.reconstruct_batch(np.array([5, 16_000]))
    # How much the system reads ahead, and drops again when memory is short, is for it to say.
    half = (tmp_path / "rows.faiss").stat().st_size / 2
    assert resident() < half
    again.search(x_Nd[:1], 5)
    assert resident() > half


def test_more_hits_than_a_shortlist_saves_anything_for_are_found_by_comparing_every_row(x_Nd, u_Td):
    made = fitted(x_Nd, u_Td, "pq")
    ids_TN = made.search(u_Td, N)[1]
    assert [sorted(row) for row in ids_TN.tolist()] == [list(range(N))] * T
    half = fitted(x_Nd, u_Td, "half")
    np.testing.assert_array_equal(ids_TN, half.search(u_Td, N)[1])


def test_cells_that_hold_too_few_rows_are_made_up_for_by_comparing_every_row(x_Nd, u_Td):
    made = rows.probing(replace(fitted(x_Nd, u_Td, "ivf"), probes=1, wide=64))
    half = fitted(x_Nd, u_Td, "half")
    k = 200
    found, wanted = made.search(u_Td, k), half.search(u_Td, k)
    assert (found[1] >= 0).all()
    assert (found[0][:, -1] <= wanted[0][:, -1]).all()


@pytest.mark.parametrize(
    ("count", "dims", "memory", "kinds"),
    [
        (4500, 1024, 1e9, ["half"]),
        (50_000, 1024, 1e9, ["pq", "sq4", "half"]),
        (50_000, 1024, 2e7, ["pq", "half"]),
        (50_000, 64, 1e9, ["half"]),
        (10**7, 1024, 1e11, ["ivf", "pq", "sq4", "half"]),
    ],
)
def test_what_is_tried_follows_from_size_and_memory(count, dims, memory, kinds):
    assert rows.candidates(count, dims, memory) == kinds


def test_what_is_chosen_is_the_first_that_finds_enough(x_Nd, u_Td, monkeypatch):
    monkeypatch.setattr(rows, "SCANNED", 0)
    assert fitted(x_Nd, u_Td).kind == "pq"
    monkeypatch.setattr(rows, "LONGEST", 64)
    assert fitted(x_Nd, u_Td, recall=0.999).kind == "half"


def test_a_code_takes_no_more_memory_than_it_may(x_Nd, u_Td):
    for memory, shared in ((N * D, 2), (N * D / 7, 4), (N * D / 15, 8)):
        code = fitted(x_Nd, u_Td, "pq", memory=memory).shards[0].code
        assert code is not None and code.pq.M == -(-D // shared)
        assert N * D / 2 / shared <= memory


@pytest.mark.parametrize("kind", ["auto", *CODED])
def test_few_rows_are_never_coded(u_Td, kind):
    made = fitted(drawn(40), u_Td, kind)
    assert made.kind == "half"
    np.testing.assert_array_equal(made.search(u_Td, 20)[1], first(drawn(40), u_Td, 20))


@each_kind
def test_bytes_of_a_row_are_known_before_it_is_made(x_Nd, u_Td, kind):
    for memory in (2**30, N * D / 15):
        made = fitted(x_Nd, u_Td, kind, memory=memory)
        assert abs(rows.bytes_of(kind, N, D, memory) - made.bytes_kept) <= 1  # an odd half byte
    assert rows.bytes_of(kind, 100, D, memory) == math.ceil(rows.PLAIN.get(kind, 16) * D / 8)


@each_kind
def test_a_single_query_is_enough_to_choose_by(x_Nd, u_Td, kind):
    assert fitted(x_Nd, u_Td[:1], kind).judges == 1


# In a build.

SMALL = BuildSpec(
    data=DataSpec(noise=0.1), models=2, masks=2, epochs=3,
    features=FeatureSpec(ka=8, kg=4), index_dims=32,
)  # fmt: skip


@pytest.fixture(scope="module")
def plain(tiny: Tiny):
    return Engine(tiny.cache).open(tiny.build)


@pytest.mark.parametrize("kind", ["sq8", "sq6", "pq", "ivf"])
def test_a_build_answers_alike_however_its_rows_are_kept(tiny, plain, kind, tmp_path):
    cache = tmp_path / "cache"  # other tests count the builds of the tiny one's
    shutil.copytree(tiny.cache, cache, ignore=shutil.ignore_patterns("jobs", "locks"))
    engine = Engine(cache, tmp_path)
    spec = replace(plain.spec, index=kind)
    told = engine.build(spec)
    build = engine.open(told["build"])
    assert told["build"] != plain.id
    assert told["search"]["kind"] == kind and told["search"]["recall"] >= 0.9
    assert f"{told['search']['recall']:.1%} of the exact order" in build.searched
    for test in (0, 77, 401):
        wanted, answer = plain.query(test, 10), build.query(test, 10)
        for found, hits in (
            (answer.proponents, wanted.proponents),
            (answer.opponents, wanted.opponents),
        ):
            score_of = {h.train_id: h for h in hits}
            same = [(h, score_of[h.train_id]) for h in found if h.train_id in score_of]
            assert len(same) >= 7
            unit = abs(hits[0].score)
            for one, other in same:
                assert one.score == pytest.approx(other.score, abs=0.05 * unit)
                assert one.label == other.label


def test_an_index_as_it_always_was_keeps_its_id_and_a_build_older_than_these_settings_opens(plain):
    fields = plain.index.manifest["made_by"]
    older = {n: v for n, v in fields.items() if not n.startswith("index")}
    assert content_id("index", older) == content_id("index", fields) == plain.index.manifest["id"]
    opened = rows.opened(plain.index.file, {})
    wanted = plain.compressed.rows.search(plain._given_Td, 9)
    np.testing.assert_array_equal(opened.search(plain._given_Td, 9)[1], wanted[1])
    assert rows.told({}) == ""


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"index": "hnsw"}, "auto, exact, half, sq8, sq6, sq4, pq, ivf"),
        ({"index_recall": 1.5}, "--index-recall"),
        ({"index_memory": 0.0}, "--index-memory"),
    ],
)
def test_settings_of_the_index_that_make_no_sense_are_refused(tiny, changed, words):
    with pytest.raises(UserError, match=words):
        Engine(tiny.cache).build(replace(SMALL, **changed))
