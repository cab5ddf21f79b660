"""What stands behind a suspect, against plain NumPy on the index and exact scores."""

import faiss
import numpy as np
import pytest
import torch
from conftest import Tiny

from attribution.build import Build
from attribution.engine import Engine
from attribution.estimators import whitening
from attribution.evidence import evidence, near

LINE = 0.25


@pytest.fixture(scope="module")
def build(tiny: Tiny) -> Build:
    return Engine(tiny.cache, tiny.workspace).open(tiny.build)


@pytest.fixture(scope="module")
def rows_Nd(build: Build) -> np.ndarray:
    return np.asarray(build.compressed.rows.reconstruct_n(0, len(build.train_ids)))


def test_proponents_and_opponents_are_the_largest_and_smallest_products(build, rows_Nd):
    for i in build.mislabels().index[:5]:
        found = evidence(build, int(i), LINE, k=6)
        score_N = rows_Nd @ rows_Nd[i] / (rows_Nd[i] @ rows_Nd[i])
        score_N[i] = 0  # not itself
        most, least = np.sort(score_N)[::-1][:6], np.sort(score_N)[:6]
        assert [n.score for n in found.proponents] == pytest.approx(most[most > 0], rel=1e-3)
        assert [n.score for n in found.opponents] == pytest.approx(least[least < 0], rel=1e-3)
        for one in (*found.proponents, *found.opponents, *found.neighbours):
            assert one.train_id != i
            assert one.score == pytest.approx(score_N[one.train_id], rel=1e-3)
            assert one.label == build.train_labels_N[one.train_id]
            length = np.linalg.norm(rows_Nd[one.train_id]) * np.linalg.norm(rows_Nd[i])
            cosine = rows_Nd[one.train_id] @ rows_Nd[i] / length
            assert one.cosine == pytest.approx(cosine, rel=1e-3)
        sizes = [abs(n.cosine) for n in found.neighbours]
        assert sizes == sorted(sizes, reverse=True) and len(sizes) == 6


def test_they_are_those_of_the_exact_scores_of_the_example_on_the_others(tiny, build):
    """The query of a training example is its own row: against whitened features, unsqueezed."""
    chosen = [int(i) for i in build.mislabels().index[:20]]
    phi_M = [part.train(0) for part in build._stored]
    w_M = [whitening(phi_NK, build.spec.estimator)(phi_NK) for phi_NK in phi_M]
    total_QN = torch.stack([w_NK[chosen] @ w_NK.mT for w_NK in w_M]).sum(0)
    exact_QN = total_QN.numpy() * build.q_N**build.spec.estimator.q_power
    exact_QN[np.arange(20), chosen] = 0
    shared = 0
    for exact_N, i in zip(exact_QN, chosen, strict=True):
        found = {n.train_id for n in evidence(build, i, LINE, k=10).proponents}
        shared += len(found & set(np.argsort(-exact_N)[:20].tolist()))
    assert shared > 100  # of 200, where 32 dimensions stand for 2 x 2 members; chance has one


def test_probabilities_and_signals_are_the_engines_and_vote_by_rank(build):
    suspects = build.mislabels()
    count = int((suspects.score > LINE).sum())
    names = [c for c in suspects.columns if c.startswith("signal_")]
    for i in (int(suspects.index[0]), int(suspects.index[-1])):
        row, found = suspects.loc[i], evidence(build, i, LINE)
        assert (found.given, found.suggested) == (row.given_label, row.suggested_label)
        assert found.given_probability == pytest.approx(row.given_probability)
        assert [v.name for v in found.votes] == names
        for vote in found.votes:
            assert vote.value == row[vote.name]
            top = suspects[vote.name].nlargest(count).min()
            assert vote.votes == (row[vote.name] >= top)
    first = evidence(build, int(suspects.index[0]), LINE)
    assert all(v.votes for v in first.votes) and all(v.about for v in first.votes)


def test_errors_fed_are_wrong_predictions_with_the_example_at_that_place(build):
    told = 0
    for i in build.mislabels().index[:40]:
        for fed in evidence(build, int(i), LINE).feeds:
            assert build.predicted_T[fed.test_id] == fed.predicted != fed.label
            assert build.test_labels_T[fed.test_id] == fed.label
            if fed.side == "for":
                hits = build.query(fed.test_id, 50, "predicted").proponents
            else:
                hits = build.query(fed.test_id, 50, "label").opponents
            assert hits[fed.place - 1].train_id == i
            told += 1
    assert told


def test_an_example_that_moves_nothing_has_no_neighbours():
    rows = faiss.IndexFlatIP(4)
    rows.add(np.vstack([np.zeros((1, 4)), np.eye(4)]).astype(np.float32))
    assert near(rows, np.zeros(5, int), 0) == []
    assert {n.score for n in near(rows, np.zeros(5, int), 1)} == {0.0}
