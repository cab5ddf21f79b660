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
    path = cifar10 / "train.parquet" if cifar10.is_dir() else cifar10
    if not path.is_file():
        raise UserError(
            found=f"no file {path}",
            wanted="CIFAR-10 as train.parquet with columns image and label",
            next_step="check the path given to --cifar10",
        )
    import pyarrow.parquet as parquet
    from PIL import Image

    table = parquet.read_table(path, columns=["image", "label"]).slice(0, count)
    pictures = [Image.open(io.BytesIO(i["bytes"])) for i in table["image"].to_pylist()]
    images = np.stack([np.asarray(p.convert("RGB")) for p in pictures])
    x_N = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.5)
    return _examples(x_N.contiguous(), torch.tensor(table["label"].to_pylist())), "CIFAR-10"


def _examples(x_N: Tensor, target_N: Tensor) -> Examples:
    key_N = torch.from_numpy(example_keys([str(n) for n in range(len(x_N))]).copy())
    return Examples(x_N, key_N, target_N)
