"""The index, exact and compressed, against the dense formula and numpy's own decomposition."""

from collections import Counter
from dataclasses import replace
from itertools import starmap

import dense
import numpy as np
import pytest
import torch
from torch import Tensor

from attribution import index
from attribution import rows as kept
from attribution.estimators import ESTIMATORS
from attribution.fit import Blocks, fit, orthonormal, totals
from attribution.records import LOSS, EstimatorSpec, UserError
from attribution.store import Store

N, T, M, K = 90, 8, 4, 10


class Drawn:
    """Members that resemble each other, as views of trained networks do."""

    def __init__(
        self,
        examples: int = N,
        members: int = M,
        features: int = K,
        scale: float = 1,
        noise: float = 0.4,
    ) -> None:
        draw = np.random.default_rng(0)

        def block(shared: np.ndarray) -> Tensor:
            own = draw.normal(size=shared.shape) * noise
            return torch.from_numpy((shared + own) * scale).float()

        decay = 1 / (1 + np.arange(features)) ** 0.7
        train, test = (draw.normal(size=(n, features)) * decay for n in (examples, T))
        self.train = [block(train) for _ in range(members)]
        self.test = [block(test) for _ in range(members)]
        self.q_MN = draw.uniform(0.01, 0.99, size=(members, examples))
        self.q_N = torch.from_numpy(self.q_MN.mean(0)).float()

    def scores(self, spec: EstimatorSpec) -> np.ndarray:
        return dense.scores(self.train, self.test, self.q_MN, spec)

    def blocks(self, shard: int = 10**6) -> Blocks:
        """The features as `fit` reads them, in shards of so many examples."""
        count = len(self.train[0])
        shards = [slice(s, min(s + shard, count)) for s in range(0, count, shard)]
        return Blocks(
            len(self.train),
            shards,
            lambda m, s: self.train[m][shards[s]],
            lambda m: self.test[m].split(3),
        )

    def compressed(
        self, spec: EstimatorSpec, dims: int, seed: int = 0, shard: int = 10**6
    ) -> index.Compressed:
        return index.compress(fit(self.blocks(shard), spec, dims, seed), self.q_N, spec)


def every_score(made: index.Compressed, count: int = N) -> np.ndarray:
    """Scores (T, N) of the compressed index, by its members."""
    ids = np.arange(count)
    return np.stack([made.member_scores(u, ids).mean(0) for u in queries(made)])


def queries(made: index.Compressed) -> list[np.ndarray]:
    """The stored queries, (M, d) each."""
    return [made.query(t) for t in range(len(made.queries_TMd))]


SPECS = [
    EstimatorSpec(name=name, damping=damping, q_power=power)
    for name in ESTIMATORS
    for damping, power in ((0.3, 0.5), (1e-3, 1.0), (0.3, 0.0))
]
each_spec = pytest.mark.parametrize(
    "spec", SPECS, ids=lambda s: f"{s.name}-{s.damping:g}-{s.q_power:g}"
)
each_estimator = pytest.mark.parametrize("name", list(ESTIMATORS))


@each_spec
def test_the_exact_index_gives_the_scores_of_the_dense_formula(spec):
    drawn = Drawn()
    made = index.exact(drawn.train, drawn.q_N, spec)
    scores, ids = made.search(made.query(drawn.test), N)
    assert [sorted(row) for row in ids.tolist()] == [list(range(N))] * T
    by_id = np.take_along_axis(scores, ids.argsort(1), 1)
    assert dense.off(by_id, drawn.scores(spec)) < 1e-5


@each_spec
def test_the_exact_index_finds_the_top_and_the_bottom_k_of_the_dense_formula(spec):
    drawn = Drawn()
    made, wanted = index.exact(drawn.train, drawn.q_N, spec), drawn.scores(spec)
    queries = made.query(drawn.test)
    for k in (1, 12, N):
        for opponents in (False, True):
            ids = made.search(queries, k, opponents=opponents)[1]
            assert ids.shape == (T, k) and dense.astray(ids, wanted, opponents) < 1e-5


@each_spec
def test_each_members_scores_are_its_own_and_their_mean_is_the_score(spec):
    drawn = Drawn()
    made = index.exact(drawn.train, drawn.q_N, spec)
    weight = drawn.q_MN.mean(0) ** spec.q_power
    each = [dense.member_scores(a, b, spec) for a, b in zip(drawn.train, drawn.test, strict=True)]
    for t, u in enumerate(made.query(drawn.test)):
        scores, hits = made.search(u[None], 15)
        found = made.member_scores(u, hits[0])
        assert dense.off(found, np.stack([s[t, hits[0]] * weight[hits[0]] for s in each])) < 1e-5
        assert dense.off(found.mean(0), scores[0]) < 1e-5


def test_the_strongest_opponents_are_the_lowest_scores_and_come_with_their_own_sign():
    drawn, spec = Drawn(), EstimatorSpec()
    made = index.exact(drawn.train, drawn.q_N, spec)
    scores, ids = made.search(made.query(drawn.test), 5, opponents=True)
    wanted = np.sort(drawn.scores(spec), 1)[:, :5]
    assert (wanted < 0).all() and dense.off(scores, wanted) < 1e-5


@each_estimator
def test_a_sum_of_queries_is_a_query(name):
    drawn, spec = Drawn(), EstimatorSpec(name=name)
    made = index.exact(drawn.train, drawn.q_N, spec)
    group = made.query(drawn.test)[[1, 4, 6]].mean(0, keepdims=True)
    scores, ids = made.search(group, 9)
    wanted = drawn.scores(spec)[[1, 4, 6]].mean(0)
    np.testing.assert_array_equal(ids[0], wanted.argsort()[::-1][:9])
    assert dense.off(scores[0], np.sort(wanted)[::-1][:9]) < 1e-5


@each_spec
def test_a_compressed_index_of_full_rank_gives_the_scores_of_the_dense_formula(spec):
    drawn = Drawn()
    made, wanted = drawn.compressed(spec, M * K), drawn.scores(spec)
    assert dense.off(every_score(made), wanted) < 2e-3  # half precision
    for t, u in enumerate(queries(made)):
        found = wanted[t, made.search(u, 10)]
        both = [made.search(u, 10), made.search(u, 10, opponents=True)]
        np.testing.assert_array_equal(made.both(u, 10), both)
        assert np.abs(found - np.sort(wanted[t])[::-1][:10]).max() < 4e-3 * np.abs(wanted).max()


@each_spec
def test_each_members_compressed_score_is_its_own_part_of_a_query_on_the_pca_basis(spec):
    drawn, dims = Drawn(), 12
    rows = np.concatenate([dense.whitened(p, spec) for p in drawn.train], 1)
    V = np.linalg.svd(rows, full_matrices=False)[2][:dims].T
    weight = drawn.q_MN.mean(0) ** spec.q_power
    made = drawn.compressed(spec, dims)
    ids = np.arange(N)
    for m in range(M):
        V_m = V[m * K : (m + 1) * K]
        white = whitened_queries(drawn, m, spec)
        wanted = white @ V_m @ (rows @ V).T * weight
        found = np.stack([made.member_scores(u, ids)[m] for u in queries(made)])
        assert dense.off(found, wanted) < 4e-3


def whitened_queries(drawn: Drawn, m: int, spec: EstimatorSpec) -> np.ndarray:
    """Queries of member m in the coordinates of `dense.whitened`."""
    phi, psi = np.asarray(drawn.train[m], float), np.asarray(drawn.test[m], float)
    if spec.name == "gradcos":
        return psi / np.linalg.norm(psi, axis=1, keepdims=True)
    if spec.name == "ekfac":
        moment = (phi**2).mean(0)
        return psi / np.sqrt(moment + spec.damping * moment.mean())
    if spec.name != "trak":
        return psi
    value, vector = np.linalg.eigh(phi.T @ phi + spec.damping * (phi**2).sum() / K * np.eye(K))
    return psi @ (vector / np.sqrt(value)) @ vector.T


@each_estimator
def test_a_sketched_basis_loses_little_more_than_the_best_one_of_its_size(name):
    """Where the sketch is narrower than the data, and sees 25 of 30 members."""
    examples, dims = 260, 32
    drawn, spec = Drawn(examples, members=30, features=24), EstimatorSpec(name=name, q_power=0)
    rows = np.concatenate([dense.whitened(p, spec) for p in drawn.train], 1)
    left, value, _ = np.linalg.svd(rows, full_matrices=False)
    best = (left[:, :dims] * value[:dims] ** 2) @ left[:, :dims].T / 30
    whole = rows @ rows.T / 30
    drawn.test = drawn.train
    made = drawn.compressed(spec, dims)
    found = every_score(made, examples)
    lost, least = np.linalg.norm(found - whole), np.linalg.norm(best - whole)
    assert lost < least + 0.05 * np.linalg.norm(whole)


@each_estimator
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_features_of_extreme_scale_keep_their_scores(name, scale):
    spec = EstimatorSpec(name=name)
    drawn = Drawn(scale=scale)
    wanted = drawn.scores(spec)
    made = index.exact(drawn.train, drawn.q_N, spec)
    scores, ids = made.search(made.query(drawn.test), N)
    assert dense.off(np.take_along_axis(scores, ids.argsort(1), 1), wanted) < 1e-5
    assert dense.off(every_score(drawn.compressed(spec, M * K)), wanted) < 2e-3


@pytest.mark.parametrize("name", LOSS)
def test_queries_that_differ_by_powers_of_ten_keep_their_scores_each(name):
    """As those of gradients of the loss do, of images that are confidently right."""
    drawn, spec = Drawn(), EstimatorSpec(name=name)
    loud_T1 = 10.0 ** -np.arange(0, 4 * T, 4)[:, None]
    drawn.test = [psi * torch.from_numpy(loud_T1).float() for psi in drawn.test]
    wanted, found = drawn.scores(spec), every_score(drawn.compressed(spec, M * K))
    for t in range(T):
        assert dense.off(found[t], wanted[t]) < 2e-3


@each_estimator
def test_a_projector_turns_features_into_the_stored_query(name):
    drawn = Drawn()
    made = drawn.compressed(EstimatorSpec(name=name), 20)
    for m, psi in enumerate(drawn.test):
        if made.unit:
            psi = psi / psi.norm(dim=1, keepdim=True)
        found = psi.numpy() @ made.projectors_MKd[m].astype(float) * made.projector_scale
        assert dense.off(found, np.stack(queries(made))[:, m]) < 3e-3


@each_estimator
def test_self_influence_is_the_mean_of_an_examples_score_on_itself_without_q(name):
    spec = EstimatorSpec(name=name)
    drawn = Drawn()
    wanted = np.mean([np.diag(dense.member_scores(p, p, spec)) for p in drawn.train], 0)
    assert dense.off(drawn.compressed(spec, M * K).self_influence_N, wanted) < 1e-4


@each_estimator
@pytest.mark.parametrize("shard", [16, 48, 80])
def test_several_shards_give_what_one_gives(name, shard):
    """The last shard of 16 and of 48 is cut short, that of 80 has fewer examples than features."""
    drawn, spec = Drawn(), EstimatorSpec(name=name)
    one, several = (drawn.compressed(spec, 20, shard=s) for s in (N, shard))
    assert dense.off(every_score(several), every_score(one)) < 1e-3  # half precision
    assert dense.off(several.self_influence_N, one.self_influence_N) < 1e-5


def test_a_fit_reads_a_shard_of_a_member_three_times_at_most():
    drawn, read = Drawn(members=30), []
    blocks = drawn.blocks(16)

    def train(m: int, s: int) -> Tensor:
        read.append((m, s))
        return blocks.train(m, s)

    fit(replace(blocks, train=train), EstimatorSpec(), 16, 0)
    times = Counter(read)
    assert len(times) == 30 * 6 and Counter(times.values()) == {3: 25 * 6, 2: 5 * 6}


def test_a_fit_whose_parts_are_computed_elsewhere_and_in_any_order_is_the_same():
    drawn, spec = Drawn(), EstimatorSpec()

    def backwards(work, tasks):
        every = list(tasks)
        return reversed([work(*task) for task in reversed(every)])

    here, there = (fit(drawn.blocks(16), spec, 16, 0, each=each) for each in (starmap, backwards))
    for name in ("rows", "queries", "projectors", "self_influence_N"):
        assert torch.equal(getattr(here, name), getattr(there, name))


def test_a_fit_on_scratch_is_the_one_in_memory(tmp_path):
    drawn, spec = Drawn(), EstimatorSpec()
    wanted = drawn.compressed(spec, 16, shard=48)
    with Store(tmp_path).matrices() as scratch:
        found = index.compress(fit(drawn.blocks(48), spec, 16, 0, scratch=scratch), drawn.q_N, spec)
        some, all_ = ([s.rows for s in made.rows.shards] for made in (found, wanted))
        assert [kept.to_bytes(r) for r in some] == [kept.to_bytes(r) for r in all_]
        np.testing.assert_array_equal(found.queries_TMd, wanted.queries_TMd)
        np.testing.assert_array_equal(found.projectors_MKd, wanted.projectors_MKd)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("rank", [3, 30, 64])
def test_a_tall_matrix_is_made_orthonormal_whatever_its_rank(rank):
    draw = np.random.default_rng(1)
    left, right = draw.normal(size=(200, rank)), draw.normal(size=(rank, 64))
    spectrum = np.geomspace(1, 1e-3, rank)
    tall = torch.from_numpy((left * spectrum) @ right).float()
    before = tall.double().numpy()
    orthonormal(tall, 200, 64)
    Q = tall.double().numpy()
    value = np.linalg.eigvalsh(Q.T @ Q)
    assert np.abs(value[-rank:] - 1).max() < 1e-4 and np.abs(value[:-rank]).max(initial=0) < 1e-4
    assert dense.off(Q @ (Q.T @ before), before) < 1e-5


@pytest.mark.parametrize("name", ["trak", "gradcos"])
def test_totals_are_sums_of_the_dense_formulas_scores(name):
    drawn, spec = Drawn(), EstimatorSpec(name=name)
    weight_NS = torch.from_numpy(np.random.default_rng(2).normal(size=(N, 3))).float()
    for m in range(M):
        wanted = dense.member_scores(drawn.train[m], drawn.test[m], spec) @ weight_NS.numpy()
        assert dense.off(totals(drawn.blocks(48), spec, m, weight_NS), wanted) < 1e-5


def test_the_compressed_index_is_a_function_of_its_seed():
    drawn = Drawn(300)
    first, again = (drawn.compressed(EstimatorSpec(), 8, seed=3) for _ in range(2))
    one, two = (kept.to_bytes(made.rows.shards[0].rows) for made in (first, again))
    assert one == two
    np.testing.assert_array_equal(first.queries_TMd, again.queries_TMd)


def test_more_dimensions_than_examples_are_cut_to_their_number():
    made = Drawn().compressed(EstimatorSpec(), 5000)
    assert made.rows.d == N


@pytest.mark.parametrize("kind", ["exact", "compressed"])
def test_a_kernel_that_cannot_be_inverted_is_refused_by_both_forms(kind):
    drawn, spec = Drawn(12, features=40), EstimatorSpec(damping=0)
    with pytest.raises(UserError, match="cannot be inverted.*raise --damping"):
        index.exact(drawn.train, drawn.q_N, spec) if kind == "exact" else drawn.compressed(spec, 8)


@pytest.mark.parametrize("opponents", [False, True])
@pytest.mark.parametrize("k", [3, 40])
def test_shards_that_are_searched_apart_and_merged_are_the_search_of_all_rows(k, opponents):
    rows = Drawn().compressed(EstimatorSpec(), 16).rows
    u_TF = np.random.default_rng(1).normal(size=(T, rows.d)).astype(np.float32)
    shards = [slice(0, 16), slice(16, 60), slice(60, N)]
    parts = [index.search_part(rows, shard, u_TF, k, opponents) for shard in shards]
    for shard, (scores, ids) in zip(shards, parts, strict=True):
        assert ids.shape == scores.shape == (T, min(k, shard.stop - shard.start))
        assert ((shard.start <= ids) & (ids < shard.stop)).all()
    exact_TN = u_TF @ rows.reconstruct_n(0, N).T
    for scores, ids in (index.merged(parts, k, opponents), index.search(rows, u_TF, k, opponents)):
        assert ids.shape == (T, k) and dense.astray(ids, exact_TN, opponents) < 1e-5
        np.testing.assert_allclose(
            scores, np.take_along_axis(exact_TN, ids, 1), rtol=1e-5, atol=1e-6
        )
