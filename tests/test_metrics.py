"""Scores of scores against scikit-learn and a count by hand."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from attribution.metrics import detection


def drawn(ties: bool, count: int = 700) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(4)
    wrong = draw.random(count) < 0.15
    score = draw.normal(size=count) + wrong
    return wrong, np.round(score) if ties else score


@pytest.mark.parametrize("ties", [False, True])
def test_auc_and_average_precision_are_those_of_scikit_learn(ties):
    wrong, score = drawn(ties)
    found = detection(wrong, score)
    assert found["auc"] == pytest.approx(roc_auc_score(wrong, score))
    assert found["ap"] == pytest.approx(average_precision_score(wrong, score))
    assert 0.5 < found["auc"] < 1


@pytest.mark.parametrize("ties", [False, True])
def test_precision_at_k_counts_the_wrong_among_the_first_k(ties):
    wrong, score = drawn(ties)
    queue = sorted(range(len(score)), key=lambda i: -score[i])  # equals stay in their order
    for k, value in detection(wrong, score, at=(1, 7, 700))["precision_at_k"].items():
        assert value == pytest.approx(sum(wrong[i] for i in queue[: int(k)]) / int(k))


def test_auc_is_the_share_of_pairs_in_the_right_order():
    wrong, score = drawn(ties=True, count=80)
    pairs = [
        1.0 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0.0
        for i in np.flatnonzero(wrong)
        for j in np.flatnonzero(~wrong)
    ]
    assert detection(wrong, score)["auc"] == pytest.approx(np.mean(pairs))


def test_a_perfect_ranking_is_one_and_its_reverse_is_nought():
    wrong = np.arange(200) < 50
    best, worst = detection(wrong, -np.arange(200.0)), detection(wrong, np.arange(200.0))
    assert best == {"auc": 1, "ap": 1, "precision_at_k": {"50": 1, "100": 0.5, "200": 0.25}}
    assert worst["auc"] == 0 and worst["precision_at_k"]["50"] == 0


def test_a_k_larger_than_the_training_set_is_left_out():
    wrong, score = drawn(ties=False, count=120)
    assert list(detection(wrong, score)["precision_at_k"]) == ["50", "100"]
