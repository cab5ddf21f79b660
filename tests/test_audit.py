"""The reckoning of a review against closed forms, integrals and simulated reviews."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.integrate import quad
from scipy.special import beta as beta_function
from scipy.stats import betabinom

from attribution.audit import (
    AHEAD,
    EVERY,
    LEVEL,
    QUEUE,
    RECENT,
    SPOT_CHECK,
    STEP,
    Stratum,
    advice,
    forecast,
    reckoned,
    served,
    share,
)
from attribution.records import Decision

DATA, BUILD, LINE = "d" * 12, "b" * 12, 0.25


@pytest.mark.parametrize(("wrong", "seen"), [(1, 2), (3, 20), (17, 18), (40, 400)])
def test_an_interval_leaves_as_much_of_the_posterior_on_each_side(wrong, seen):
    found = share(wrong, seen)

    def mass(low, high):
        a, b = wrong + 0.5, seen - wrong + 0.5
        return quad(lambda p: p ** (a - 1) * (1 - p) ** (b - 1), low, high)[0] / beta_function(a, b)

    assert mass(0, found.low) == pytest.approx((1 - LEVEL) / 2, abs=1e-6)
    assert mass(found.low, found.high) == pytest.approx(LEVEL, abs=1e-6)


def test_an_interval_reaches_the_end_where_nothing_or_everything_was_wrong():
    assert share(0, 20).low == 0 and share(20, 20).high == 1
    assert 0.8 < share(20, 20).low < 1
    assert (share(0, 0).low, share(0, 0).high) == (0, 1)


def test_intervals_hold_the_true_share_as_often_as_they_say():
    draw = np.random.default_rng(0)
    true = draw.uniform(size=4000)
    found = [share(int(k), 30) for k in draw.binomial(30, true)]
    held = np.mean([f.low <= p <= f.high for f, p in zip(found, true, strict=True)])
    assert held == pytest.approx(LEVEL, abs=0.015)


def test_the_forecast_of_one_kind_is_the_beta_binomial():
    found = forecast([Stratum(left=50, wrong=7, seen=40)])
    low, high = betabinom.ppf([0.025, 0.975], 50, 7.5, 33.5)
    assert (found.low, found.high) == (low, high)
    done = forecast([Stratum(left=0, wrong=7, seen=40)])
    assert (done.low, done.high) == (0, 0)


def test_the_forecast_of_two_kinds_is_that_of_their_simulated_sum():
    strata = [Stratum(left=300, wrong=30, seen=40), Stratum(left=4000, wrong=1, seen=60)]
    draw = np.random.default_rng(0)
    total = sum(
        draw.binomial(s.left, draw.beta(s.wrong + 0.5, s.seen - s.wrong + 0.5, size=200_000))
        for s in strata
    )
    found = forecast(strata)
    low, high = np.quantile(total, [0.025, 0.975])
    assert found.low == pytest.approx(low, rel=0.02)
    assert found.high == pytest.approx(high, rel=0.02)


def labels(draw, count, likely):
    """Suspects in order: indexed by train_id, `likely` of them above the line."""
    score = np.sort(draw.uniform(size=count))[::-1]
    score = np.where(np.arange(count) < likely, 0.5 + score / 2, score / 5)
    ids = draw.permutation(count)
    frame = {"example_id": [f"e-{i}" for i in ids], "score": score}
    return pd.DataFrame(frame, index=pd.Index(ids, name="train_id"))


def test_the_queue_has_everything_once_and_every_tenth_of_its_suspects_part_is_a_spot_check():
    suspects = labels(np.random.default_rng(0), 500, 95)
    found = served(suspects, LINE, DATA)
    assert sorted(found.index) == list(range(500))
    checks = found[found.spot_check]
    assert np.flatnonzero(found.spot_check).tolist() == list(range(EVERY - 1, 100, EVERY))
    assert (checks.score <= LINE).all()
    others = found[~found.spot_check]
    assert others.score.is_monotonic_decreasing
    assert served(suspects, LINE, DATA).index.equals(found.index)
    assert not served(suspects, LINE, "other").index.equals(found.index)


def test_spot_checks_do_not_depend_on_how_the_unsuspicious_are_ranked():
    suspects = labels(np.random.default_rng(0), 500, 95)
    turned = pd.concat([suspects[:95], suspects[95:].iloc[::-1]])
    first, second = served(suspects, LINE, DATA), served(turned, LINE, DATA)
    assert first[first.spot_check].index.equals(second[second.spot_check].index)


def test_each_unsuspicious_label_is_as_likely_a_spot_check_as_any_other():
    suspects = labels(np.random.default_rng(0), 60, 18)
    times = pd.Series(0, suspects.index)
    for k in range(2000):
        found = served(suspects, LINE, f"data-{k}")
        times[found[found.spot_check].index] += 1
    others = times[suspects.score <= LINE]
    expected = 2 * 2000 / 42
    assert times.sum() == 4000 and others.sum() == 4000
    assert ((others - expected) ** 2 / expected).sum() < 80  # chi-square, 41 degrees of freedom


@pytest.mark.parametrize(("count", "likely"), [(5, 0), (5, 5), (20, 19), (1, 1)])
def test_a_queue_without_enough_of_a_kind_still_has_everything_once(count, likely):
    found = served(labels(np.random.default_rng(1), count, likely), LINE, DATA)
    assert sorted(found.index) == list(range(count))


def decision(seq, example_id, verdict="keep", way=QUEUE, build=BUILD):
    return Decision(
        seq=seq, data_id=DATA, example_id=example_id, verdict=verdict, label=None, reviewer="",
        time="", build_id=build, evidence=json.dumps({"served": way}),
    )  # fmt: skip


def reviewed(suspects, wrong, count):
    """The first `count` of the queue decided without a mistake; `wrong` holds train_ids."""
    order = served(suspects, LINE, DATA).head(count)
    return [
        decision(n, row.example_id, "drop" if i in wrong else "keep",
                 SPOT_CHECK if row.spot_check else QUEUE)
        for n, (i, row) in enumerate(order.iterrows())
    ]  # fmt: skip


def test_a_reckoning_counts_what_the_queue_served_up_to_the_last_twenty():
    suspects = labels(np.random.default_rng(0), 500, 95)
    acts = reviewed(suspects, set(suspects.index[:30]), 57)
    assert reckoned(acts[: STEP - 1], suspects, LINE, BUILD) is None
    found = reckoned(acts, suspects, LINE, BUILD)
    assert found.decisions == 40
    assert (found.queue.wrong, found.queue.seen) == (30, 36)
    assert (found.spot.wrong, found.spot.seen) == (0, 4)
    assert found.queue.left == 95 - 52 and found.spot.left == 405 - 5
    assert found.precision == share(30, 36)
    assert found.ahead == forecast([Stratum(left=min(AHEAD, 43), wrong=30, seen=36)])
    foreign = [decision(900 + n, f"x-{n}", "drop", way="") for n in range(30)]
    others = [decision(800 + n, f"y-{n}", "drop", build="other") for n in range(30)]
    assert reckoned([*foreign, *acts, *others], suspects, LINE, BUILD) == found


def test_an_image_that_is_decided_again_elsewhere_counts_by_what_is_in_force_now():
    suspects = labels(np.random.default_rng(0), 500, 95)
    acts = reviewed(suspects, set(suspects.index[:30]), 40)
    before = reckoned(acts, suspects, LINE, BUILD)
    spot = next(d for d in acts if json.loads(d.evidence)["served"] == SPOT_CHECK)
    right = next(d for d in acts if d.verdict == "drop")
    again = [
        decision(900, spot.example_id, "relabel", way=""),
        decision(901, right.example_id, "keep", way="", build="other"),
        decision(902, acts[-1].example_id, "unsure"),
    ]
    found = reckoned([*acts, *again], suspects, LINE, BUILD)
    assert (before.spot.wrong, before.queue.wrong, before.decisions) == (0, 30, 40)
    # One of the forty is open again, so that only the first twenty are reckoned.
    assert found.decisions == 20 and found.spot.wrong == 1
    closed = reckoned([*acts, *again[:2]], suspects, LINE, BUILD)
    assert (closed.spot.wrong, closed.queue.wrong, closed.decisions) == (1, 29, 40)
    assert closed.queue.left == before.queue.left and closed.spot.left == before.spot.left


def test_what_is_next_is_judged_by_the_latest_of_the_queue():
    suspects = labels(np.random.default_rng(0), 2000, 400)
    found = reckoned(reviewed(suspects, set(suspects.index[:72]), 160), suspects, LINE, BUILD)
    assert (found.queue.wrong, found.queue.seen) == (72, 144)
    assert (found.recent.wrong, found.recent.seen) == (0, RECENT)
    assert "You can stop" in advice(found)


def test_the_range_of_what_remains_holds_the_truth_in_simulated_reviews():
    held, holds = [], []
    for k in range(60):
        draw = np.random.default_rng(k)
        suspects = labels(draw, 3000, 400)
        rate = np.where(suspects.score > LINE, draw.uniform(0.2, 0.9), draw.uniform(0, 0.1))
        wrong = set(suspects.index[draw.uniform(size=3000) < rate])
        acts = reviewed(suspects, wrong, 200)
        found = reckoned(acts, suspects, LINE, BUILD)
        seen = {d.example_id for d in acts}
        left = [i for i in wrong if f"e-{i}" not in seen]
        held.append(found.remaining.low <= len(left) <= found.remaining.high)
        order = served(suspects, LINE, DATA)
        ahead = [i for i in order.index[~order.spot_check][180 : 180 + AHEAD] if i in wrong]
        holds.append(found.ahead.low <= len(ahead) <= found.ahead.high)
    assert np.mean(held) >= 0.9 and np.mean(holds) >= 0.9


def test_what_remains_is_not_told_before_a_spot_check():
    suspects = labels(np.random.default_rng(0), 500, 95)
    acts = [d for d in reviewed(suspects, set(), 30) if json.loads(d.evidence)["served"] == QUEUE]
    assert reckoned(acts, suspects, LINE, BUILD).remaining is None


@pytest.mark.parametrize(("wrong", "words"), [(36, "Go on"), (5, "Soon done"), (0, "You can stop")])
def test_the_advice_follows_the_share_of_wrong_labels(wrong, words):
    suspects = labels(np.random.default_rng(0), 2000, 900)
    found = reckoned(reviewed(suspects, set(suspects.index[:wrong]), 40), suspects, LINE, BUILD)
    assert advice(found).startswith(words) and f"{wrong} of the last 36" in advice(found)


def test_the_advice_when_every_suspect_is_decided():
    suspects = labels(np.random.default_rng(0), 200, 90)
    found = reckoned(reviewed(suspects, set(), 100), suspects, LINE, BUILD)
    assert found.queue.left == 0 and "Every suspicious label is decided" in advice(found)
