"""Scores of attributions by retraining: against scipy and simulation."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from attribution.metrics import ceiling, interval, lds


def test_lds_is_spearmans_correlation_of_each_test() -> None:
    draw = np.random.default_rng(0)
    predicted_TS = draw.standard_normal((7, 40))
    margins_ST = (predicted_TS + draw.standard_normal((7, 40))).T
    predicted_TS = predicted_TS.round(1)  # with ties
    found_T = lds(predicted_TS, margins_ST)
    for t in range(7):
        assert found_T[t] == pytest.approx(spearmanr(predicted_TS[t], margins_ST[:, t]).statistic)


def test_lds_of_a_prediction_that_does_not_vary_is_zero() -> None:
    margins_ST = np.random.default_rng(0).standard_normal((9, 2))
    predicted_TS = np.stack([np.ones(9), margins_ST[:, 1] ** 3])
    assert lds(predicted_TS, margins_ST).tolist() == [0, pytest.approx(1)]


def test_the_interval_holds_the_true_value_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(1)

    def sample(subsets: int) -> tuple[np.ndarray, np.ndarray]:
        predicted_TS = draw.standard_normal((6, subsets))
        return predicted_TS, (predicted_TS + 1.5 * draw.standard_normal((6, subsets))).T

    true = lds(*sample(20_000)).mean()
    held = 0
    for _ in range(60):
        low, high = interval(*sample(100), np.random.default_rng(2), repeats=80)
        assert low < high
        held += low <= true <= high
    assert 50 <= held <= 60


def test_the_interval_is_narrower_with_more_subsets() -> None:
    draw = np.random.default_rng(3)
    predicted_TS = draw.standard_normal((4, 400))
    margins_ST = (predicted_TS + draw.standard_normal((4, 400))).T
    few, many = (
        np.diff(interval(predicted_TS[:, :s], margins_ST[:s], np.random.default_rng(0)))[0]
        for s in (25, 400)
    )
    assert few == pytest.approx(4 * many, rel=0.5)


@pytest.mark.parametrize("seeds", [2, 3, 4, 5])
def test_the_ceiling_is_what_a_perfect_attribution_reaches(seeds: int) -> None:
    draw = np.random.default_rng(4)
    signal_ST = draw.standard_normal((300, 40))
    margins_SRT = signal_ST[:, None] + 1.2 * draw.standard_normal((300, seeds, 40))
    perfect = lds(signal_ST.T, margins_SRT.mean(1)).mean()
    assert ceiling(margins_SRT) == pytest.approx(perfect, abs=0.02)


def test_a_single_seed_tells_no_ceiling_and_pure_noise_has_none() -> None:
    draw = np.random.default_rng(5)
    assert ceiling(draw.standard_normal((30, 1, 4))) is None
    assert ceiling(draw.standard_normal((400, 4, 50))) == pytest.approx(0, abs=0.15)
