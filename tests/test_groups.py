"""Groups, contrasts and hubs, each from the scores of single queries."""

import numpy as np
import pytest
from conftest import Tiny

from attribution.build import Build
from attribution.engine import Engine
from attribution.groups import hubs, without_loudest
from attribution.records import UserError


@pytest.fixture(scope="module")
def build(tiny: Tiny) -> Build:
    return Engine(tiny.cache, tiny.workspace).open(tiny.build)


def scores(build: Build, test_id: int, target: int) -> np.ndarray:
    """Every training example's score for one query, by asking for all of them."""
    count = len(build.train_ids)
    found = build.rescored(test_id, str(target), range(count))
    return np.array([hit.score for hit in found])


def test_without_the_loudest_is_the_least_of_leaving_one_out() -> None:
    draw = np.random.default_rng(0)
    scores_GC = draw.standard_normal((6, 50))
    total = scores_GC.sum(0)
    left_GC = np.stack([np.delete(scores_GC, g, 0).mean(0) for g in range(6)])
    wanted = np.where(total > 0, left_GC.min(0), left_GC.max(0))
    np.testing.assert_allclose(without_loudest(scores_GC), wanted)
    np.testing.assert_array_equal(without_loudest(scores_GC[:1]), scores_GC[0])


def test_a_group_finds_what_its_queries_have_in_common(build: Build) -> None:
    group = [4, 90, 333, 2]
    each = np.stack([scores(build, t, int(build.predicted_T[t])) for t in group])
    answer = build.query_group(group, 10)
    assert answer.test_ids == tuple(group)
    left = np.stack([np.delete(each, g, 0).mean(0) for g in range(4)])
    for found, sign in ((answer.proponents, 1), (answer.opponents, -1)):
        unit = [build._query_Md(t, int(build.predicted_T[t])).mean(0, np.float32) for t in group]
        alike = sum(s / np.linalg.norm(u) for s, u in zip(each, unit, strict=True))
        wide = np.union1d(*(np.argsort(-sign * some)[:200] for some in (each.mean(0), alike)))
        worst = (sign * left).min(0)
        order = wide[np.argsort(-worst[wide])][:10]
        assert [one.hit.train_id for one in found] == order.tolist()
        for one in found:
            i = one.hit.train_id
            assert one.hit.score == pytest.approx(each[:, i].mean(), rel=1e-3)
            assert one.without_loudest == pytest.approx(sign * worst[i], rel=1e-3, abs=1e-9)
            assert one.support == pytest.approx((np.sign(each[:, i]) == sign).mean())
            assert one.loudest == (sign * each[:, i]).argmax()


def test_one_loud_query_does_not_own_a_group(build: Build) -> None:
    loud = 77
    label, predicted = int(build.test_labels_T[loud]), int(build.predicted_T[loud])
    target = next(c for c in range(10) if c not in (label, predicted))
    quiet = [t for t in range(400) if build.predicted_T[t] == target][:5]
    build._fresh[loud, target] = build.compressed.query(loud) * 1000
    loudest = np.argsort(-scores(build, loud, target))[:10]
    found = build.query_group([*quiet, loud], 10, str(target)).proponents
    build._fresh.clear()
    shared = [one.hit.train_id for one in found]
    rest = np.mean([scores(build, t, target) for t in quiet], 0)
    assert all(rest[i] > 0 for i in shared)
    assert rest[shared].mean() > rest[loudest].mean()


def test_a_group_of_one_is_a_query(build: Build) -> None:
    alone, answer = build.query_group([5], 8), build.query(5, 8)
    assert tuple(one.hit for one in alone.proponents) == answer.proponents
    assert tuple(one.hit for one in alone.opponents) == answer.opponents


def test_a_contrast_is_the_difference_of_two_queries(build: Build) -> None:
    wanted = scores(build, 5, 3) - scores(build, 5, 8)
    answer = build.contrast(5, "3", "8", 12)
    assert answer.target == 3 and answer.test_id == 5
    for hits, sign in ((answer.proponents, 1), (answer.opponents, -1)):
        assert [h.score for h in hits] == pytest.approx(
            (sign * np.sort(-sign * wanted)[:12] * -sign * sign).tolist(), rel=1e-2
        )
        for h in hits:
            assert h.score == pytest.approx(wanted[h.train_id], rel=1e-3)
    other = build.contrast(5, "8", "3", 12)
    assert [h.train_id for h in other.opponents] == [h.train_id for h in answer.proponents]


@pytest.mark.parametrize(
    ("ask", "found"),
    [
        (lambda b: b.query_group([]), "an empty group"),
        (lambda b: b.query_group([0, 500]), "test id 500"),
        (lambda b: b.query_group([0], 4501), "k = 4501"),
        (lambda b: b.contrast(0, "3", "3"), "class '3' against itself"),
        (lambda b: b.contrast(0, "3", "cat"), "'cat'"),
        (lambda b: b.contrast(500, "3", "4"), "test id 500"),
    ],
)
def test_what_cannot_be_asked_is_a_users_mistake(build: Build, ask, found: str) -> None:
    with pytest.raises(UserError) as told:
        ask(build)
    assert found in told.value.found


def test_hubs_are_counted(build: Build) -> None:
    found = build.hubs(7)
    seen: dict[int, int] = {}
    for t in range(len(build.test_labels_T)):
        for hit in build.query(t, 7, "label").proponents:
            seen[hit.train_id] = seen.get(hit.train_id, 0) + 1
    assert found.tests.to_dict() == seen
    assert found.tests.is_monotonic_decreasing
    assert (found.share * len(build.test_labels_T)).round().astype(int).to_dict() == seen
    assert hubs(np.array([[1, 0], [1, 2]]), np.array([5, 6, 7, 8])).label.to_dict() == {
        1: 6, 0: 5, 2: 7,
    }  # fmt: skip


def test_unsteady_predictions_have_few_proponents_told_from_zero(build: Build) -> None:
    found = build.unsteady(5)
    assert found.steady.is_monotonic_increasing and len(found) == len(build.test_labels_T)
    for t in (*found.index[:3], *found.index[-3:]):
        hits = build.query(int(t), 5).proponents
        told = [h.agreement >= 0.8 and abs(h.score) >= 2 * h.stderr for h in hits]
        assert found.steady[t] == sum(told)
