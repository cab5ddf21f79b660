"""Signals and ranking of suspicious labels: what each means, and that planted ones are found."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from attribution.data import clean_labels, dataset
from attribution.estimators import q
from attribution.gradients import margin
from attribution.mislabels import (
    SIGNALS,
    bells,
    confusion,
    doubted,
    fused,
    logistic,
    percentile,
    suspects,
)
from attribution.models import inputs, network
from attribution.records import DataSpec, RunSpec
from attribution.signals import Evidence, neighbour_votes
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
        self.influence = draw.random(N).astype(np.float32) * 100
        self.disagreement = draw.random(N)
        self.neighbours = draw.dirichlet(np.full(C, 0.5), N).astype(np.float32)
        self.opponents = draw.poisson(2, (N, C)).astype(np.float32)
        self.unseen = draw.dirichlet(np.full(C, 0.5), N).astype(np.float32)

    def evidence(self, at: np.ndarray) -> Evidence:
        return Evidence(
            belief_NC=self.belief[at],
            disagreement_N=self.disagreement[at],
            q_N=self.q[at],
            self_influence_N=self.influence[at],
            neighbours_NC=self.neighbours[at],
            opponents_NC=self.opponents[at],
            unseen_NC=self.unseen[at],
        )

    def suspects(self, order: np.ndarray | None = None) -> pd.DataFrame:
        at = np.arange(N) if order is None else order
        ids = tuple(self.ids[i] for i in at)
        return suspects(ids, self.labels[at], self.evidence(at), NAMES)


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


def test_every_signal_is_what_it_says():
    drawn = Drawn()
    frame = drawn.suspects().sort_index()
    alone = drawn.influence * drawn.q
    for i in range(0, N, 7):
        y, row = drawn.labels[i], frame.loc[i]
        assert row["signal_masks"] == drawn.q[i]
        assert row["influence"] == pytest.approx(alone[i])
        assert row["signal_influence"] == pytest.approx((alone <= alone[i]).mean())
        assert row["signal_neighbours"] == pytest.approx(1 - drawn.neighbours[i, y])
        assert row["signal_unseen"] == pytest.approx(1 - drawn.unseen[i, y])
        assert row["disagreement"] == drawn.disagreement[i]
    votes = drawn.opponents.sum(1) - drawn.opponents[np.arange(N), drawn.labels]
    assert spearmanr(votes, frame["signal_opponents"]).statistic == pytest.approx(1)


def test_a_label_is_wrong_ambiguous_or_clear():
    drawn = Drawn()
    frame = drawn.suspects()
    line = np.quantile(drawn.disagreement, 0.9)
    for one in frame.itertuples():
        unsure = "ambiguous" if one.disagreement > line else "clear"
        assert one.kind == ("wrong" if one.score > 0.5 else unsure)
    assert {"wrong", "ambiguous", "clear"} == set(frame.kind)


@pytest.mark.parametrize("name", ["belief", "neighbours", "unseen"])
def test_less_belief_in_the_given_label_is_more_suspicion(name):
    base = Drawn().suspects()["score"]
    for i in range(0, N, 40):
        after = Drawn()
        values = getattr(after, name)
        values[i, after.labels[i]] *= 0.02
        values[i] /= values[i].sum()
        assert after.suspects()["score"][i] > base[i]


def test_a_vote_of_another_class_is_more_suspicion():
    base = Drawn().suspects()["score"]
    for i in range(0, N, 40):
        after = Drawn()
        after.opponents[i, (after.labels[i] + 1) % C] += 40
        assert after.suspects()["score"][i] > base[i]


def test_the_order_of_the_examples_does_not_change_what_is_said_of_them():
    drawn = Drawn()
    order = np.random.default_rng(0).permutation(N)
    one = drawn.suspects().set_index("example_id")
    other = drawn.suspects(order).set_index("example_id")
    pd.testing.assert_frame_equal(
        other, one, rtol=1e-6
    )  # the ranking too, as no two scores are equal


def test_the_numbers_of_the_classes_do_not_matter():
    drawn = Drawn()
    base = drawn.suspects()
    new = np.array([3, 0, 4, 1, 2])  # class c is now new[c]
    other = Drawn()
    other.labels = new[drawn.labels]
    for name in ("belief", "neighbours", "opponents", "unseen"):
        setattr(other, name, getattr(drawn, name)[:, new.argsort()])
    found = other.suspects()
    assert found.index.tolist() == base.index.tolist()
    np.testing.assert_array_equal(found["suggested_label"], new[base["suggested_label"]])


def test_equals_keep_the_order_of_the_training_set():
    half, flat = np.full((6, 2), 0.5, np.float32), np.full(6, 0.5, np.float32)
    even = Evidence(
        belief_NC=half, disagreement_N=flat, q_N=flat, self_influence_N=flat, neighbours_NC=half,
        opponents_NC=half,
    )  # fmt: skip
    for evidence in (even, replace(even, unseen_NC=half)):
        ids = tuple(f"{i}-0" for i in range(6))
        frame = suspects(ids, np.array([0, 1] * 3), evidence, ("x", "y"))
        assert frame.index.tolist() == list(range(6))
        assert np.isfinite(frame["score"]).all() and frame["score"].nunique() == 1


def test_inputs_are_left_as_they_were():
    drawn, fresh = Drawn(), Drawn()
    drawn.suspects()
    for name in ("labels", "belief", "q", "influence", "neighbours", "opponents", "unseen"):
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
    evidence = Evidence(
        belief_NC=trained.belief_NC,
        disagreement_N=np.zeros_like(q_N),
        q_N=q_N,
        self_influence_N=np.ones_like(q_N),
        neighbours_NC=neighbour_votes(x.flatten(1).numpy(), data.train.labels_N, 10),
        opponents_NC=np.zeros((len(q_N), 10), np.float32),
    )
    frame = suspects(data.train.ids, data.train.labels_N, evidence, data.classes)
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
    assert by_id["score"].sum() == pytest.approx(450, rel=0.4)
    assert wrong[by_id["kind"] == "wrong"].mean() > 0.7  # each is more probably wrong than not


# From log-odds to a probability.


def test_two_bell_curves_give_the_probability_that_they_were_drawn_with():
    draw = np.random.default_rng(0)
    for share in (0.05, 0.1, 0.3):
        wrong = draw.random(20_000) < share
        odds = np.where(wrong, 1.0, -3.0) + draw.normal(size=len(wrong))
        prior = np.log(share / (1 - share))
        wanted = expit(4 * (odds + 1) + prior)  # Bayes' rule for two normals of width 1
        found = bells(odds)
        assert np.abs(found - wanted).mean() < 0.005
        assert found.sum() == pytest.approx(wrong.sum(), rel=0.06)


def test_a_logistic_curve_is_scikit_learns():
    draw = np.random.default_rng(1)
    odds = draw.normal(size=3000) * 3
    wrong = draw.random(3000) < expit(0.7 * odds - 1)
    wanted = LogisticRegression(C=1e6).fit(odds[:, None], wrong).predict_proba(odds[:, None])[:, 1]
    found = logistic(odds, wrong.astype(float))
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    assert found.sum() == pytest.approx(wrong.sum(), rel=1e-4)


class Known:
    """Labels flipped at known rates, and networks that say exactly what is to be known."""

    def __init__(self, kind: str, share: float = 0.15, count: int = 6000) -> None:
        draw = np.random.default_rng(3)
        self.unseen = draw.dirichlet(np.full(C, 0.08), count)  # the true probabilities
        self.clean = (self.unseen.cumsum(1) > draw.random((count, 1))).argmax(1)
        self.wrong = draw.random(count) < share
        step = draw.integers(1, C, count) if kind == "uniform" else 1
        self.labels = np.where(self.wrong, (self.clean + step) % C, self.clean)
        off = (1 - np.eye(C)) / (C - 1) if kind == "uniform" else np.roll(np.eye(C), 1, axis=1)
        self.T = (1 - share) * np.eye(C) + share * off


@pytest.mark.parametrize("kind", ["uniform", "class"])
def test_doubt_of_unseen_examples_is_the_posterior_under_the_true_rates(kind):
    known = Known(kind)
    joint = known.unseen * known.T[:, known.labels].T
    wanted = 1 - joint[np.arange(6000), known.labels] / joint.sum(1)
    found = doubted(known.labels, known.unseen)
    assert np.abs(found - wanted).mean() < 0.02
    assert found.sum() == pytest.approx(known.wrong.sum(), rel=0.12)
    for low in np.arange(0, 1, 0.25):  # calibrated, not only on average
        some = (found >= low) & (found < low + 0.25)
        assert found[some].mean() == pytest.approx(known.wrong[some].mean(), abs=0.1)


@pytest.mark.parametrize("timid", [0.5, 2.0])
def test_networks_too_sure_or_too_timid_are_seen_through(timid):
    known = Known("uniform")
    skewed = known.unseen**timid
    found = doubted(known.labels, skewed / skewed.sum(1, keepdims=True))
    assert found.sum() == pytest.approx(known.wrong.sum(), rel=0.2)


def test_confusion_is_seen_where_it_is_and_nowhere_else():
    for kind in ("uniform", "class"):
        known = Known(kind)
        sure = np.log(0.96 * np.eye(C)[known.clean] + 0.01)
        rate = confusion(sure, known.labels, known.wrong.astype(float))
        assert (np.diag(rate) == 1).all()
        off = ~np.eye(C, dtype=bool)
        if kind == "uniform":
            assert np.abs(rate[off] - 1).max() < 0.2
        else:
            assert (rate.argmax(1) == (np.arange(C) + 1) % C).all()
            assert (rate[off].reshape(C, C - 1).max(1) > 3).all()


@pytest.mark.parametrize("unseen", [False, True])
@pytest.mark.parametrize("kind", ["uniform", "class"])
def test_the_fused_score_is_calibrated_where_the_truth_is_known(kind, unseen):
    known = Known(kind)
    draw = np.random.default_rng(4)
    # trained on the labels, networks believe a wrong one less: bell curves of the log-odds
    doubt = expit(np.where(known.wrong, 1.0, -3.0) + draw.normal(size=6000))
    elsewhere = np.where(known.wrong, known.clean, (known.labels + draw.integers(1, C, 6000)) % C)
    belief = np.eye(C)[known.labels] * (1 - doubt[:, None])
    belief += np.eye(C)[elsewhere] * doubt[:, None]
    evidence = Evidence(
        belief_NC=belief.astype(np.float32),
        disagreement_N=draw.random(6000),
        q_N=draw.random(6000),
        self_influence_N=draw.random(6000),
        neighbours_NC=np.full((6000, C), 1 / C, np.float32),
        opponents_NC=np.zeros((6000, C), np.float32),
        unseen_NC=known.unseen.astype(np.float32) if unseen else None,
    )
    found = fused(known.labels, evidence)
    assert found.sum() == pytest.approx(known.wrong.sum(), rel=0.15)
    assert roc_auc_score(known.wrong, found) > 0.98
    assert known.wrong[found > 0.75].mean() > 0.9 and known.wrong[found < 0.25].mean() < 0.05
