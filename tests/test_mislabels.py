"""Signals and ranking of suspicious labels: what each means, and that planted ones are found."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from attribution.data import clean_labels, dataset
from attribution.estimators import q
from attribution.gradients import margin
from attribution.mislabels import SIGNALS, percentile, suspects
from attribution.models import inputs, network
from attribution.records import DataSpec, RunSpec
from attribution.store import Store
from attribution.train import train

N, C = 200, 5
NAMES = tuple("abcde")


class Drawn:
    """What networks might say of N examples."""

    def __init__(self) -> None:
        draw = np.random.default_rng(2)
        self.ids = tuple(f"{i}-0" for i in range(N))
        self.labels = draw.integers(0, C, N)
        self.belief = draw.dirichlet(np.full(C, 0.5), N).astype(np.float32)
        self.q = draw.random(N).astype(np.float32)
        self.influence = draw.normal(size=N).astype(np.float32) * 100

    def suspects(self, order: np.ndarray | None = None) -> pd.DataFrame:
        at = np.arange(N) if order is None else order
        return suspects(
            tuple(self.ids[i] for i in at), self.labels[at], self.belief[at], self.q[at],
            self.influence[at], NAMES,
        )  # fmt: skip


def test_every_example_is_ranked_once_the_most_suspicious_first():
    drawn = Drawn()
    frame = drawn.suspects()
    assert sorted(frame.index) == list(range(N)) and frame.index.name == "train_id"
    assert (np.diff(frame["score"]) <= 0).all()
    by_id = frame.sort_index()
    assert tuple(by_id["example_id"]) == drawn.ids
    np.testing.assert_array_equal(by_id["given_label"], drawn.labels)


def test_the_suggested_label_is_the_best_other_class():
    drawn = Drawn()
    frame = drawn.suspects().sort_index()
    for i, row in frame.iterrows():
        others = [c for c in range(C) if c != drawn.labels[i]]
        best = max(others, key=lambda c: drawn.belief[i, c])
        assert row["suggested_label"] == best
        assert row["given_probability"] == pytest.approx(drawn.belief[i, drawn.labels[i]])
        assert row["suggested_probability"] == pytest.approx(drawn.belief[i, best])
        margin = drawn.belief[i, best] - drawn.belief[i, drawn.labels[i]]
        assert row["signal_training"] == pytest.approx((1 + margin) / 2, abs=1e-6)
        assert f"“{NAMES[best]}”" in row["why"] and f"“{NAMES[drawn.labels[i]]}”" in row["why"]
        assert f"{100 * drawn.belief[i, best]:.0f} %" in row["why"]


def test_signals_and_score_are_shares():
    frame = Drawn().suspects()
    assert set(SIGNALS) == {c for c in frame if str(c).startswith("signal_")}
    for column in (*SIGNALS, "score"):
        assert frame[column].between(0, 1).all(), column


def test_the_extremes_of_a_signal_are_nought_and_one():
    belief = np.array([[0, 1, 0], [1, 0, 0]], np.float32)  # sure of another class; sure of it
    frame = suspects(
        ("a-0", "b-0"), np.array([0, 0]), belief, np.array([1, 0], np.float32),
        np.array([5, -5], np.float32), ("x", "y", "z"),
    )  # fmt: skip
    assert frame["signal_training"].tolist() == [1, 0]
    assert frame["signal_masks"].tolist() == [1, 0]
    assert frame["score"].tolist() == [1, 0]
    assert frame["signal_influence"].is_monotonic_decreasing


def test_every_signal_grows_with_what_makes_a_label_suspicious():
    before = Drawn()
    base = before.suspects().sort_index()
    for i in range(0, N, 20):
        after = Drawn()
        after.belief[i, after.labels[i]] *= 0.5
        after.q[i] = (1 + after.q[i]) / 2
        after.influence[i] = np.abs(after.influence).max() * 10
        now = after.suspects().sort_index()
        for column in ("signal_training", "signal_masks", "score"):
            assert now.loc[i, column] > base.loc[i, column], column
            rest = now[column].drop(i)
            pd.testing.assert_series_equal(rest, base[column].drop(i))
        assert now.loc[i, "signal_influence"] >= base.loc[i, "signal_influence"]


def test_the_order_of_the_examples_does_not_change_what_is_said_of_them():
    drawn = Drawn()
    order = np.random.default_rng(0).permutation(N)
    one = drawn.suspects().set_index("example_id")
    other = drawn.suspects(order).set_index("example_id")
    pd.testing.assert_frame_equal(other, one)  # the ranking too, as no two scores are equal


def test_the_numbers_of_the_classes_do_not_matter():
    drawn = Drawn()
    base = drawn.suspects()
    new = np.array([3, 0, 4, 1, 2])  # class c is now new[c]
    other = Drawn()
    other.labels, other.belief = new[drawn.labels], drawn.belief[:, new.argsort()]
    found = other.suspects()
    assert found.index.tolist() == base.index.tolist()
    np.testing.assert_array_equal(found["suggested_label"], new[base["suggested_label"]])


def test_equals_keep_the_order_of_the_training_set():
    belief = np.full((6, 2), 0.5, np.float32)
    flat = np.full(6, 0.5, np.float32)
    ids = tuple(f"{i}-0" for i in range(6))
    frame = suspects(ids, np.array([0, 1] * 3), belief, flat, flat, ("x", "y"))
    assert frame.index.tolist() == list(range(6))


def test_inputs_are_left_as_they_were():
    drawn, fresh = Drawn(), Drawn()
    drawn.suspects()
    for name in ("labels", "belief", "q", "influence"):
        np.testing.assert_array_equal(getattr(drawn, name), getattr(fresh, name))


def test_a_percentile_is_the_share_of_values_that_are_no_larger():
    values = np.random.default_rng(1).permutation(50) / 7.0
    wanted = [(values <= v).mean() for v in values]
    np.testing.assert_allclose(percentile(values), wanted)
    assert percentile(np.zeros(4)).max() <= 1


@pytest.mark.parametrize("kind", ["uniform", "class"])
def test_planted_mislabels_are_found(tmp_path, kind):
    store = Store(tmp_path)
    data = dataset(store, DataSpec(noise=0.1, noise_kind=kind))
    x, labels = inputs("mlp", data, data.train.images), torch.from_numpy(data.train.labels_N)
    run = RunSpec(data_id=data.id, model="mlp", epochs=8)
    trained = train(network("mlp", data, 0.5, 0), x, labels, run)
    with torch.no_grad():
        q_N = q(margin(trained.network(x), labels)).numpy()
    frame = suspects(
        data.train.ids, data.train.labels_N, trained.belief_NC, q_N, np.ones_like(q_N), data.classes
    )
    by_id = frame.sort_index()
    clean = clean_labels(store, data.id)
    wrong = clean != data.train.labels_N
    assert roc_auc_score(wrong, by_id["score"]) > 0.97
    assert average_precision_score(wrong, by_id["score"]) > 0.85
    for signal in ("signal_training", "signal_masks"):
        assert roc_auc_score(wrong, by_id[signal]) > 0.95
    first = frame.index[:200]
    assert wrong[first].mean() > 0.9
    found = first[wrong[first]]
    assert (by_id.loc[found, "suggested_label"] == clean[found]).mean() > 0.9
