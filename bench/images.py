"""The images that a benchmark runs on."""

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attribution.features import Examples
from attribution.members import example_keys
from attribution.records import UserError


def colour_images(count: int, cifar10: Path | None) -> tuple[Examples, str]:
    """`count` images of 32 x 32 in 10 classes as network input, and a word on what they are.

    The first of CIFAR-10's ``train.parquet`` in the folder `cifar10`, else normal noise, for
    which a network does the same arithmetic.
    """
    if cifar10 is None:
        draw = torch.Generator().manual_seed(0)
        x_N = torch.randn(count, 3, 32, 32, generator=draw)
        return _examples(x_N, torch.arange(count) % 10), "noise images"
    images, labels_N = _read(cifar10, "train", count)
    return _examples(scaled(images), torch.from_numpy(labels_N)), "CIFAR-10"


def scaled(images: np.ndarray) -> Tensor:
    """Pixels from -1 to 1, channels first."""
    x_N = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.5)
    return x_N.contiguous()


CAT, DOG = 3, 5
CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


def cifar2(cifar10: Path) -> dict[str, np.ndarray]:
    """Cats and dogs of CIFAR-10 in the folder `cifar10`, as `attribution.data.DATASETS` has it."""
    found: dict[str, np.ndarray] = {"classes": np.array(["cat", "dog"])}
    for half in ("train", "test"):
        images, labels_N = _read(cifar10, half)
        ours_N = np.isin(labels_N, (CAT, DOG))
        found[f"{half}_images"] = images[ours_N]
        found[f"{half}_labels"] = (labels_N[ours_N] == DOG).astype(np.int64)
    return found


def cifar10_start(cifar10: Path, train: int, test: int) -> dict[str, np.ndarray]:
    """The first images of CIFAR-10's halves in the folder `cifar10`, as `DATASETS` has it."""
    found: dict[str, np.ndarray] = {"classes": np.array(CIFAR10)}
    for half, count in (("train", train), ("test", test)):
        found[f"{half}_images"], found[f"{half}_labels"] = _read(cifar10, half, count)
    return found


def named(cifar10: Path | None) -> Path:
    """The folder that was named. Raises `UserError` where none was."""
    if cifar10 is None:
        raise UserError(
            found="no CIFAR-10",
            wanted="a folder with its train.parquet and test.parquet",
            next_step="give --cifar10 PATH",
        )
    return cifar10


def pictures(cifar10: Path | None, place: Path, train: int, test: int) -> None:
    """CIFAR-10's first images, or noise, as PNG in a folder for each class below train and test."""
    from PIL import Image

    if cifar10 is not None:
        images, labels_N = _read(cifar10, "train", train + test)
    else:
        draw = np.random.default_rng(0)
        images = draw.integers(0, 256, (train + test, 32, 32, 3), np.uint8)
        labels_N = np.arange(train + test) % len(CIFAR10)
    for n, (image, label) in enumerate(zip(images, labels_N, strict=True)):
        folder = place / ("train" if n < train else "test") / CIFAR10[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{n:05d}.png")


def _read(cifar10: Path, half: str, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The first images (uint8) and labels of ``train.parquet`` or ``test.parquet``."""
    path = cifar10 / f"{half}.parquet" if cifar10.is_dir() else cifar10
    if not path.is_file():
        raise UserError(
            found=f"no file {path}",
            wanted=f"CIFAR-10 as {half}.parquet with columns image and label",
            next_step="check the path given to --cifar10",
        )
    import pyarrow.parquet as parquet
    from PIL import Image

    table = parquet.read_table(path, columns=["image", "label"]).slice(0, count)
    pictures = [Image.open(io.BytesIO(i["bytes"])) for i in table["image"].to_pylist()]
    images = np.stack([np.asarray(p.convert("RGB")) for p in pictures])
    return images, np.array(table["label"].to_pylist())


def _examples(x_N: Tensor, target_N: Tensor) -> Examples:
    key_N = torch.from_numpy(example_keys([str(n) for n in range(len(x_N))]).copy())
    return Examples(x_N, key_N, target_N)
