"""Signals of wrong labels, each against an independent computation."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import nn

from attribution.engine import Engine
from attribution.features import Examples
from attribution.index import nearest
from attribution.signals import disagreement, embedded, neighbour_votes, opponent_votes


@pytest.fixture
def build(tiny, tmp_path):
    shutil.copytree(tiny.cache, tmp_path / "cache")
    return Engine(tmp_path / "cache", tmp_path).open(tiny.build)


def test_the_nearest_others_are_scikit_learns():
    x = np.random.default_rng(0).normal(size=(300, 7)).astype(np.float32)
    distance, near = nearest(x, 9)
    wanted_distance, wanted = NearestNeighbors(n_neighbors=9).fit(x).kneighbors()
    np.testing.assert_array_equal(near, wanted)
    np.testing.assert_allclose(distance, wanted_distance, rtol=1e-3)


def test_equal_examples_are_neighbours_and_never_their_own():
    x = np.repeat(np.eye(2, dtype=np.float32), 6, 0)
    distance, near = nearest(x, 3)
    for i in range(12):
        assert i not in near[i] and len(set(near[i])) == 3
        assert all(other // 6 == i // 6 for other in near[i])
    assert (distance == 0).all()


def test_votes_of_neighbours_are_a_loop_over_them():
    draw = np.random.default_rng(1)
    x, labels = draw.normal(size=(80, 5)).astype(np.float32), draw.integers(0, 4, 80)
    found = neighbour_votes(x, labels, 4, k=10)
    distances, wanted = NearestNeighbors(n_neighbors=10).fit(x).kneighbors()
    for i in range(80):
        weight = np.exp(-((distances[i] / distances[i, -1]) ** 2))
        votes = [weight[labels[wanted[i]] == c].sum() / weight.sum() for c in range(4)]
        np.testing.assert_allclose(found[i], votes, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(neighbour_votes(x[:5], labels[:5], 4).sum(1), 1)  # fewer than k


def test_votes_of_opponents_are_counted_by_class():
    draw = np.random.default_rng(2)
    opponents = np.stack([draw.permutation(50)[:6] for _ in range(30)])
    labels = draw.integers(0, 3, 30)
    found = opponent_votes(opponents, labels, 50, 3)
    for i in range(50):
        for c in range(3):
            assert found[i, c] == sum(i in row for row in opponents[labels == c])


def test_disagreement_is_the_deviation_between_networks():
    doubt = np.random.default_rng(3).random((4, 20))
    wanted = np.sqrt(((doubt - doubt.mean(0)) ** 2).sum(0) / 3)
    np.testing.assert_allclose(disagreement(doubt), wanted)
    assert (disagreement(doubt[:1]) == 0).all()


def test_an_embedding_is_what_reaches_the_last_layer():
    torch.manual_seed(0)
    body, head = nn.Sequential(nn.Linear(6, 5), nn.Tanh()), nn.Linear(5, 3)
    x = torch.randn(40, 6)
    some = Examples(x, torch.arange(40), torch.zeros(40, dtype=torch.int64))
    wanted = body(x).detach().numpy()
    found = embedded(nn.Sequential(body, head), some, 3)
    np.testing.assert_allclose(
        found, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), rtol=1e-5
    )
    odd = nn.Sequential(head_first := nn.Linear(6, 3), nn.Softplus())  # ends in no linear layer
    head_first.out_features = 4
    np.testing.assert_allclose(
        embedded(odd, some, 3), odd(x).softmax(1).detach().numpy(), rtol=1e-5
    )


def test_the_evidence_of_a_build_is_of_its_networks_and_its_index(build):
    found = build.evidence()
    runs = [build.store.find("run", name).array("belief") for name in build._networks]
    labels, at = build.train_labels_N, np.arange(len(build.train_labels_N))
    np.testing.assert_allclose(found.belief_NC, np.mean(runs, 0), rtol=1e-6)
    apart = np.std([r[at, labels] for r in runs], axis=0, ddof=1)
    np.testing.assert_allclose(found.disagreement_N, apart, rtol=1e-4, atol=1e-7)
    assert found.unseen_NC is None
    votes = np.zeros((len(labels), 10))
    for test_id, label in enumerate(build.test_labels_T):
        for hit in build.query(test_id, 50, "label").opponents:
            votes[hit.train_id, label] += 1
    np.testing.assert_array_equal(found.opponents_NC, votes)
    np.testing.assert_allclose(found.neighbours_NC.sum(1), 1, rtol=1e-4)


def test_disagreement_of_one_network_is_between_its_members(build, tmp_path):
    engine = Engine(tmp_path / "cache", tmp_path)
    one = engine.open(engine.build(replace(build.spec, models=1))["build"])
    margins = [one.store.find("features", f).array("train_margin") for f in one._features]
    wanted = np.std([1 / (1 + np.exp(m)) for m in margins], axis=0, ddof=1)
    np.testing.assert_allclose(one.evidence().disagreement_N, wanted, rtol=1e-3, atol=1e-6)
