"""Test labels: calibrated doubts, decisions that never touch the training half, accuracy."""

import json
import sqlite3
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Tiny
from scipy.optimize import minimize
from sklearn.metrics import accuracy_score, average_precision_score, confusion_matrix
from typer.testing import CliRunner

from attribution.__main__ import app as cli
from attribution.build import Build
from attribution.changes import changes
from attribution.data import Dataset, Split, dataset, example_ids
from attribution.decisions import VERSION, Choice, Decisions
from attribution.engine import Engine
from attribution.mislabels import FLOOR, SHARPNESS
from attribution.records import DataSpec, UserError
from attribution.testlabels import EXPECTED, Accuracy, half, in_force, suspects, untouched, wrong


@pytest.fixture
def engine(tiny: Tiny, tmp_path: Path) -> Engine:
    return Engine(tiny.cache, tmp_path)


@pytest.fixture
def build(engine: Engine, tiny: Tiny) -> Build:
    return engine.open(tiny.build)


def drawn(seed: int, share: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Beliefs, labels drawn from them of which a share is flipped, and which those are."""
    draw = np.random.default_rng(seed)
    probs_TC = draw.dirichlet(np.full(8, 0.15), 3000)
    labels_T = np.array([draw.choice(8, p=p) for p in probs_TC])
    flipped_T = draw.random(3000) < share
    labels_T[flipped_T] = (labels_T[flipped_T] + draw.integers(1, 8, flipped_T.sum())) % 8
    return probs_TC, labels_T, flipped_T


@pytest.mark.parametrize("share", [0.0, 0.03, 0.15])
def test_the_probability_of_a_wrong_label_is_the_share_that_is_wrong(share: float) -> None:
    probs_TC, labels_T, flipped_T = drawn(0, share)
    p_T = wrong(labels_T, probs_TC)
    assert p_T.sum() == pytest.approx(flipped_T.sum(), rel=0.15, abs=12)
    for low, high in ((0.05, 0.3), (0.3, 0.7), (0.7, 1.0)):
        some = (p_T >= low) & (p_T <= high)
        spread = np.sqrt((p_T[some] * (1 - p_T[some])).sum())
        assert abs(flipped_T[some].sum() - p_T[some].sum()) <= 3 * spread + 3


def test_the_share_and_the_sharpness_are_the_likeliest() -> None:
    probs_TC, labels_T, _ = drawn(1, 0.05)
    at = np.arange(len(labels_T))
    best = (-np.inf, np.zeros(0))
    for power in SHARPNESS:
        belief_TC = (probs_TC + FLOOR / 10) ** power
        right_T = belief_TC[at, labels_T] / belief_TC.sum(1)

        def posterior(share: float, right_T: np.ndarray = right_T) -> float:
            one = np.log((1 - share) * right_T + share * (1 - right_T) / 7).sum()
            return one + EXPECTED[0] * np.log(share) + EXPECTED[1] * np.log(1 - share)

        found = minimize(lambda x: -posterior(x[0]), [0.1], bounds=[(1e-6, 0.9)], tol=1e-12)
        share = found.x[0]
        if -found.fun > best[0]:
            flipped_T = share * (1 - right_T) / 7
            best = (-found.fun, flipped_T / (flipped_T + (1 - share) * right_T))
    np.testing.assert_allclose(wrong(labels_T, probs_TC), best[1], atol=2e-3)


def test_planted_wrong_labels_come_first(build: Build) -> None:
    draw = np.random.default_rng(3)
    chosen = draw.choice(500, 40, replace=False)
    labels_T = build.test_labels_T.copy()
    labels_T[chosen] = (labels_T[chosen] + draw.integers(1, 10, 40)) % 10
    frame = suspects(labels_T, np.stack(build._probs_I))
    planted_T = np.isin(frame.index, chosen)
    assert average_precision_score(planted_T, frame.score) > 0.75
    first = frame[planted_T & (frame.score > 0.9)]
    assert (first.suggested == build.test_labels_T[first.index]).mean() > 0.9
    assert frame.networks.max() == 2  # of the two networks
    assert frame.score.is_monotonic_decreasing and frame.score.between(0, 1).all()


def test_a_single_class_has_no_wrong_label() -> None:
    assert not wrong(np.zeros(4, int), np.ones((4, 1))).any()


def twins() -> Dataset:
    """The same pictures in both halves, so that their example ids are the same."""
    images = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4)
    same = Split(images, np.array([0, 1, 1]), example_ids(images))
    return Dataset("0" * 12, DataSpec(), ("a", "b"), same, same, (0.5,), (0.2,))


def test_a_picture_in_both_halves_is_decided_on_in_each_by_itself(tmp_path: Path) -> None:
    data, log = twins(), Decisions(tmp_path / "decisions.sqlite")
    some = half(data)
    assert data.train.ids == data.test.ids and some.id != data.id
    log.decide(data.id, data.train.ids[0], "drop")
    log.decide(some.id, data.test.ids[0], "relabel", label=1)
    log.decide(some.id, data.test.ids[1], "keep")
    assert {d.verdict for d in log.in_force(data.id).values()} == {"drop"}
    labels = in_force(some, log.in_force(some.id))
    assert labels.labels_T.tolist() == [1, 1, 1] and labels.kept_T.all()
    log.undo(data.id)  # takes back what was said of the training image, though it is older
    assert not log.in_force(data.id) and len(log.in_force(some.id)) == 2
    with sqlite3.connect(tmp_path / "decisions.sqlite") as db:  # the file is as it was
        assert db.execute("PRAGMA user_version").fetchone() == (VERSION,)


def test_builds_on_the_same_test_images_share_what_was_decided(build: Build) -> None:
    other = dataset(build.store, DataSpec(noise=0.2))
    assert other.id != build.data_id and half(other).id == build.test_half.id


def test_accuracy_is_told_both_ways(engine: Engine, build: Build) -> None:
    given_T, predicted_T = build.test_labels_T, build.predicted_T
    wrong_T = np.flatnonzero(predicted_T != given_T)
    relabel, drop = wrong_T[:6], [*wrong_T[6:8], int(np.flatnonzero(predicted_T == given_T)[0])]
    choices = [
        Choice(example_id=build.test_ids[t], verdict="relabel", label=int(predicted_T[t]))
        for t in relabel
    ]
    choices += [Choice(example_id=build.test_ids[t], verdict="drop") for t in drop]
    choices += [Choice(example_id=build.test_ids[t], verdict="keep") for t in wrong_T[10:12]]
    choices.append(Choice(example_id="gone-0", verdict="drop"))
    choices.append(Choice(example_id=build.test_ids[wrong_T[13]], verdict="relabel", label=99))
    engine.decisions.decide_all(build.test_half.id, choices)
    labels = engine.test_labels(build.id)
    corrected_T = given_T.copy()
    corrected_T[relabel] = predicted_T[relabel]
    kept = np.setdiff1d(np.arange(500), drop)
    found = labels.accuracy(predicted_T)
    assert found.given == accuracy_score(given_T, predicted_T) == build.summary["accuracy"]
    assert found.restated == accuracy_score(corrected_T[kept], predicted_T[kept])
    after = f"{found.restated:.1%} with 6 test labels corrected, 3 excluded"
    assert found.words == f"{found.given:.1%} ({after})"
    matrix = confusion_matrix(corrected_T[kept], predicted_T[kept], labels=range(10))
    np.testing.assert_array_equal(build.confusion_CC(labels), matrix)
    tests = build.tests(labels)
    assert not tests.loc[relabel, "correct"].eq(False).any()
    assert tests.given.tolist() == given_T.tolist()  # the original stays to be seen
    assert engine.accuracies(engine.builds())[build.id] == found
    told = changes(labels, build.probs_TC, build.probs_TC[:, ::-1], "a", "b")
    assert told.table.index.tolist() == kept.tolist()
    assert told.summary.before == found.restated
    turned_T = build.probs_TC[:, ::-1].argmax(1)
    assert told.summary.after == accuracy_score(corrected_T[kept], turned_T[kept])
    assert f"{found.given:.1%} before" in told.summary.words


def test_without_decisions_nothing_is_added(build: Build) -> None:
    labels = untouched(build.test_labels_T)
    assert labels.accuracy(build.predicted_T).words == f"{build.summary['accuracy']:.1%}"
    assert changes(labels, build.probs_TC, build.probs_TC, "a", "b").summary.as_given == ""


def test_words_for_one_and_for_nothing_left(build: Build) -> None:
    def told(corrected: int, excluded: int, restated: float | None = 0.5) -> str:
        return Accuracy(given=0.25, restated=restated, corrected=corrected, excluded=excluded).words

    assert told(1, 0) == "25.0% (50.0% with 1 test label corrected)"
    assert told(0, 1) == "25.0% (50.0% with 1 test image excluded)"
    assert told(0, 2, None) == "25.0% (nothing left with 2 test images excluded)"
    nothing = untouched(build.test_labels_T)
    nothing.kept_T[:] = False
    with pytest.raises(UserError, match="not excluded"):
        changes(nothing, build.probs_TC, build.probs_TC, "a", "b")


def test_the_command_lists_doubts_and_decisions(engine: Engine, build: Build) -> None:
    right = int(np.flatnonzero(build.predicted_T == build.test_labels_T)[5])
    engine.decisions.decide(build.test_half.id, build.test_ids[right], "drop")
    where = ["--cache", str(build.store.root), "--workspace", str(engine.workspace)]

    def run(*words: str) -> dict | list:
        made = CliRunner().invoke(cli, [*words, *where, "--json"])
        assert made.exit_code == 0, made.output
        return json.loads(made.stdout)

    found = run("testlabels", build.id, "-k", "3")
    assert isinstance(found, dict)
    frame = build.doubtful_tests
    assert [one["test_id"] for one in found["examples"]] == [*frame.index[:3], right]
    assert [one["score"] for one in found["examples"][:3]] == frame.score[:3].tolist()
    assert found["examples"][3]["excluded"] and found["accuracy"]["excluded"] == 1
    listed = {one["build"]: one for one in run("list")}
    assert listed[build.id]["restated"] == found["accuracy"]
    file = engine.workspace / "tests.csv"
    assert run("export", build.id, "--split", "test", "-o", str(file)) == {
        "file": str(file), "decisions": 1,
    }  # fmt: skip
    written = pd.read_csv(file, dtype=str)
    assert written.example_id.tolist() == list(build.test_ids)
    assert written.given_label.tolist() == [build.classes[c] for c in build.test_labels_T]
    assert written.index[written.final_label.isna()].tolist() == [right]
    bad = CliRunner().invoke(
        cli, ["export", build.id, "--split", "test", "--format", "cvat", "-o", str(file), *where]
    )
    assert isinstance(bad.exception, UserError) and "csv" in str(bad.exception)
    plain = CliRunner().invoke(cli, ["testlabels", build.id, *where])
    assert "1 test image excluded" in plain.output.replace("\n", " ")
    bad = CliRunner().invoke(cli, ["testlabels", build.id, "-k", "0", *where])
    assert isinstance(bad.exception, UserError) and "-k" in str(bad.exception)
