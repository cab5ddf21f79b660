"""Networks that leave a fold out: against networks retrained by hand, and what they change."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from apptest import at_place, items, page
from conftest import Tiny
from sklearn.metrics import average_precision_score

from attribution.audit import served
from attribution.data import dataset
from attribution.engine import Engine
from attribution.folds import FIRST_SEED, FoldsSpec, fold_of, folds
from attribution.making import examples
from attribution.models import network
from attribution.records import BuildSpec, DataSpec, RunSpec, UserError
from attribution.store import Store, _digest
from attribution.train import probabilities, train
from pages.parts.opened import DOUBT

SMALL = BuildSpec(data=DataSpec(noise=0.1), width=0.1, epochs=2)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("folds"))


def made(store, model="mlp", count=400, **fields):
    """The folds artifact of the first examples of mnist5k, and what it was made of."""
    data = dataset(store, SMALL.data)
    half = replace(
        data.train,
        images=data.train.images[:count],
        labels_N=data.train.labels_N[:count],
        ids=data.train.ids[:count],
    )
    data = replace(data, train=half)
    run = RunSpec(data_id=f"{data.id}-{count}", model=model, width=0.1, epochs=2)
    spec = FoldsSpec(run=run, **fields)
    whole = examples(replace(SMALL, model=model), data, half)
    return folds(store, data, whole, spec), data, whole, spec


def test_folds_are_of_one_size_with_all_classes_in_each():
    labels = np.random.default_rng(0).integers(0, 7, 1003)
    fold = fold_of(labels, FoldsSpec(run=RunSpec(data_id="", model="mlp")))
    sizes = np.bincount(fold)
    assert len(sizes) == 5 and sizes.max() - sizes.min() <= 1
    for c in range(7):
        of_class = np.bincount(fold[labels == c], minlength=5)
        assert of_class.max() - of_class.min() <= 1


PLAIN = """
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 12), nn.ReLU(), nn.Linear(12, 10))
"""


def test_stacked_networks_say_what_one_retrained_by_hand_says(store, tmp_path):
    """Without dropout nothing is random but weights and order, which are drawn again here."""
    (tmp_path / "plain.py").write_text(PLAIN)
    artifact, data, whole, spec = made(store, f"{tmp_path / 'plain.py'}:make", seed=1)
    assert len(artifact.manifest["parts"]) == 1  # all of them at once
    fold = fold_of(data.train.labels_N, spec)
    seen = torch.from_numpy(np.flatnonzero(fold != 1)[: 400 - np.bincount(fold).max()])
    held = whole.x_N[torch.from_numpy(fold == 1)]
    seed = FIRST_SEED + 1000
    draw = torch.Generator().manual_seed(seed)
    alone = network(spec.run.model, data, 0.1, seed + 1)
    optimiser = torch.optim.SGD(alone.parameters(), lr=0.01, momentum=0.9)
    said = []
    for _ in range(2):
        order = torch.rand(5, len(seen), generator=draw).argsort(1)[1]
        for batch in seen[order].split(64):
            optimiser.zero_grad()
            F.cross_entropy(alone(whole.x_N[batch]), whole.target_N[batch]).backward()
            optimiser.step()
        said.append(probabilities(alone, held).numpy())
    np.testing.assert_allclose(artifact.array("belief")[fold == 1], np.mean(said, 0), atol=1e-4)
    np.testing.assert_allclose(artifact.array("probs")[fold == 1], said[-1], atol=1e-4)


def test_networks_that_cannot_be_stacked_are_trained_one_by_one(store):
    artifact, data, whole, spec = made(store, "cnn", 120)
    assert len(artifact.manifest["parts"]) == 5
    fold = fold_of(data.train.labels_N, spec)
    seen, held = np.flatnonzero(fold != 3), np.flatnonzero(fold == 3)
    run = replace(spec.run, seed=FIRST_SEED + 3)
    some = whole[seen[: 120 - np.bincount(fold).max()]]
    alone = train(network("cnn", data, 0.1, run.seed), some.x_N, some.target_N, run)
    wanted = probabilities(alone.network, whole.x_N[held]).numpy()
    np.testing.assert_allclose(artifact.array("probs")[held], wanted, atol=1e-5)


def test_an_examples_own_label_does_not_change_what_is_said_of_it(store):
    """Flip the labels of a fold, within classes of equal count: its network never saw them."""
    artifact, data, whole, spec = made(store, "cnn", 120)
    fold = fold_of(data.train.labels_N, spec)
    held = np.flatnonzero(fold == 0)
    labels = data.train.labels_N.copy()
    other = whole.target_N.clone()
    other[held] = (other[held] + 1) % 10
    flipped = replace(whole, target_N=other)
    assert (labels[held] != other[held].numpy()).all()
    # the folds are cut by the given labels of `data`, which stay
    run = replace(spec.run, data_id="flipped")
    again = folds(store, data, flipped, replace(spec, run=run))
    np.testing.assert_allclose(again.array("probs")[held], artifact.array("probs")[held], atol=1e-6)
    rest = np.flatnonzero(fold != 0)
    assert np.abs(again.array("probs")[rest] - artifact.array("probs")[rest]).max() > 1e-4


def test_a_second_time_all_is_done_and_a_part_is_kept(store):
    artifact, *_ = made(store, "cnn", 120)
    place = store.root / "folds" / artifact.manifest["id"]
    part = store.root / "fold" / artifact.manifest["parts"][2]
    before = (part / "manifest.json").stat().st_mtime_ns
    shutil.rmtree(place)
    again, *_ = made(Store(store.root), "cnn", 120)
    assert (part / "manifest.json").stat().st_mtime_ns == before
    np.testing.assert_array_equal(again.array("belief"), artifact.array("belief"))


def test_a_build_goes_by_its_folds_once_they_are_there(tiny, tmp_path, monkeypatch):
    def queue():
        return [one["id"] for one in items(page("review"), "deck")]

    shutil.copytree(tiny.cache, tmp_path / "cache")
    at_place(Tiny(tmp_path / "cache", tmp_path, tiny.build), monkeypatch)
    engine = Engine(tmp_path / "cache", tmp_path)
    build = engine.open(tiny.build)
    before = build.mislabels()
    shown = queue()
    assert "signal_unseen" not in before
    with pytest.raises(UserError, match=f"python -m attribution folds {build.id}"):
        build.mislabels("unseen")
    found = engine.folds(build.id)
    after = build.mislabels()
    order = served(after, DOUBT, build.data_id).index.tolist()
    assert queue() == order[: len(shown)] != shown  # of a page that was there before
    made = engine.store.find("folds", found["folds"])
    given = made.array("belief")[np.arange(4500), build.train_labels_N]
    np.testing.assert_allclose(after.sort_index()["signal_unseen"], 1 - given, rtol=1e-5)
    assert found["expected"] == pytest.approx(after["score"].sum())
    assert build.mislabels("unseen")["signal_unseen"].is_monotonic_decreasing
    assert build.known()["ap"] > 0.5
    # the labels before noise are gone from the cache, and nothing changes
    (path,) = (tmp_path / "cache").glob("pixels/*/train_labels.npy")
    path.unlink()
    shutil.rmtree(tmp_path / "cache" / "votes")
    again = Engine(tmp_path / "cache", tmp_path).open(tiny.build)
    assert again.mislabels().equals(after)


def test_how_well_flips_are_found_is_told_by_the_folds_that_are_there(tiny, tmp_path):
    shutil.copytree(tiny.cache, tmp_path / "cache")

    def told(by: Engine) -> list[dict]:
        rows = by.compared(tiny.build)
        rows = [one for one in rows if one["build"] == tiny.build]
        return [one["known"] for one in [*rows, by.evaluated(tiny.build), by.evaluate(tiny.build)]]

    def wanted() -> float:
        """Of the labels in the file against those of the noise, by scikit-learn."""
        build = Engine(tmp_path / "cache").open(tiny.build)
        (clean,) = (tmp_path / "cache").glob("pixels/*/train_labels.npy")
        score_N = build.mislabels()["score"].sort_index()
        return average_precision_score(np.load(clean) != build.train_labels_N, score_N)

    engine = Engine(tmp_path / "cache", tmp_path)
    engine.truth(tiny.build, 2, 1)
    engine.evaluate(tiny.build)
    before = wanted()
    assert [one["ap"] for one in told(engine)] == pytest.approx([before] * 3)
    engine.folds(tiny.build)
    after = wanted()
    assert abs(after - before) > 1e-3
    (path,) = (tmp_path / "cache").glob("evaluation/*/manifest.json")
    manifest = json.loads(path.read_text())
    manifest.pop("evidence", None)  # as older versions wrote it
    del manifest["sha256"]
    manifest["sha256"] = _digest(manifest)
    for written in (None, manifest):
        if written:
            path.write_text(json.dumps(written))
        for by in (engine, Engine(tmp_path / "cache", tmp_path)):
            assert [one["ap"] for one in told(by)] == pytest.approx([after] * 3)
    shutil.rmtree(tmp_path / "cache" / "folds")
    assert [one["ap"] for one in told(Engine(tmp_path / "cache"))] == pytest.approx([before] * 3)
