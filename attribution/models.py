"""Networks by name, and how images become their input.

``mlp`` and ``resnet9`` are the paper's (arXiv 2405.17293, section 4; layers as in the dattri
benchmarks); ``cnn`` is a small one; ``timm:NAME`` and ``torchvision:NAME`` are those libraries'
classifiers, and ``FILE.py:FUNCTION`` is the user's own.
"""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import Dataset
from .records import UserError, known


def mlp(channels: int, size: int, classes: int, width: float) -> nn.Module:
    """784-128-64-10 on MNIST: two hidden layers with dropout .1 after each."""
    first, second = scaled(128, width), scaled(64, width)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * size * size, first),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(first, second),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(second, classes),
    )


def cnn(channels: int, size: int, classes: int, width: float) -> nn.Module:
    """Two convolutions and two linear layers, dropout .1 after each hidden layer."""
    first, second, hidden = scaled(16, width), scaled(32, width), scaled(64, width)
    side = size // 2 // 2
    return nn.Sequential(
        nn.Conv2d(channels, first, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.1),
        nn.Conv2d(first, second, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.1),
        nn.Flatten(),
        nn.Linear(second * side * side, hidden),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(hidden, classes),
    )


class Residual(nn.Module):
    """Two convolutions with batch norm and dropout, and a shortcut with the same."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()

        def convolution(inputs: int, kernel: int, stride: int) -> list[nn.Module]:
            padding = kernel // 2
            return [
                nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False),
                nn.BatchNorm2d(outputs),
                nn.Dropout(dropout),
            ]

        self.path = nn.Sequential(
            *convolution(inputs, 3, stride), nn.ReLU(), *convolution(outputs, 3, 1)
        )
        self.shortcut = nn.Sequential(*convolution(inputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.path(x) + self.shortcut(x))


def resnet9(channels: int, size: int, classes: int, width: float) -> nn.Module:
    """Conv to 64 channels, three residual blocks to 128, 256 and 512, mean, linear: 4.8 M.

    Its dropout modules have rate 0: masks appear only when it is attributed.
    """
    first, second, third, fourth = (scaled(c, width) for c in (64, 128, 256, 512))
    return nn.Sequential(
        nn.Conv2d(channels, first, 3, padding=1, bias=False),
        nn.BatchNorm2d(first),
        nn.Dropout(0.0),
        nn.ReLU(),
        Residual(first, second, 1, 0.0),
        Residual(second, third, 2, 0.0),
        Residual(third, fourth, 2, 0.0),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(fourth, classes),
    )


def scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


MODELS: dict[str, Callable[[int, int, int, float], nn.Module]] = {
    "mlp": mlp,
    "cnn": cnn,
    "resnet9": resnet9,
}
NAMES = (*MODELS, "timm:NAME", "torchvision:NAME", "FILE.py:FUNCTION")


def network(name: str, data: Dataset, width: float, seed: int) -> nn.Module:
    """A fresh network for `data`, its weights a function of the seed, in evaluation mode.

    Raises `UserError` for an unknown name, a file that fails, or a network that does not turn a
    batch of the data into (B, C) logits.
    """
    check_name(name)
    channels, size, classes = channels_of(data), data.train.images.shape[1], len(data.classes)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            if name in MODELS:
                made = MODELS[name](channels, size, classes, width)
            elif name.startswith("timm:"):
                made = _timm(name[5:], channels, size, classes)
            elif name.startswith("torchvision:"):
                made = _torchvision(name[12:], classes)
            else:
                made = _from_file(name)
            shape = tuple(made.eval()(inputs(name, data, data.train.images[:2])).shape)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever a network may raise, it is one sentence
        raise UserError(
            found=f"network {name!r} fails on images of {size} x {size} "
            f"({type(error).__name__}: {first_line(error)})",
            wanted=f"a classifier of {classes} classes for them",
            next_step="choose another with --model",
        ) from error
    if shape != (2, classes):
        raise UserError(
            found=f"network {name!r} returns shape {shape} for two images",
            wanted=f"logits of shape (2, {classes})",
            next_step=f"give it {classes} outputs or choose another with --model",
        )
    return made


def check_name(name: str) -> None:
    """Raise `UserError` unless `name` is a network's, or names a file that is there."""
    if name.startswith("timm:"):
        import timm  # here, because it takes seconds and most builds need none of it

        if name[5:] not in timm.list_models():
            near = timm.list_models(f"{name[5:11]}*")[:8]
            raise UserError(
                found=f"unknown timm network {name[5:]!r}",
                wanted=f"one of {', '.join(near)}, ..." if near else "a name of timm.list_models()",
                next_step="choose one with --model timm:NAME",
            )
    elif name.startswith("torchvision:"):
        import torchvision  # here, as timm

        names = tuple(torchvision.models.list_models(module=torchvision.models))
        known("torchvision network", name[12:], names, "--model torchvision:NAME")
    elif ".py:" in name:
        code_id(name)
    else:
        known("network", name, NAMES, "--model")


def _timm(name: str, channels: int, size: int, classes: int) -> nn.Module:
    import timm

    options: dict[str, Any] = {"num_classes": classes, "in_chans": channels}
    try:
        return timm.create_model(name, img_size=size, **options)
    except TypeError:  # most convolutional networks take any size and no img_size
        return timm.create_model(name, **options)


def _torchvision(name: str, classes: int) -> nn.Module:
    import torchvision

    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, num_classes=classes, **options)


def source_file(name: str) -> tuple[Path, str] | None:
    """The file and the function of a ``FILE.py:FUNCTION`` name, else None."""
    if ".py:" not in name:
        return None
    path, _, function = name.rpartition(":")
    return Path(path), function


def code_id(name: str) -> str:
    """A hash of the code behind ``FILE.py:FUNCTION``, empty for named networks."""
    source = source_file(name)
    if source is None:
        return ""
    if not source[0].is_file():
        raise UserError(
            found=f"no file {source[0]}",
            wanted="FILE.py:FUNCTION with a function that returns a network",
            next_step="check the path given to --model",
        )
    return hashlib.sha256(source[0].read_bytes()).hexdigest()[:12]


def _from_file(name: str) -> nn.Module:
    """The module that FUNCTION of FILE.py returns. Runs the user's code, on the user's word."""
    file, _, function = name.rpartition(":")
    path = Path(file)
    wanted = f"a function {function}() in it that returns a torch.nn.Module"
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    try:
        # Compiled here: an import would leave bytecode beside the file, and may take old one.
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
        made = getattr(module, function)()
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise UserError(
            found=f"{path} raised {type(error).__name__}: {first_line(error)}",
            wanted=wanted,
            next_step="mend the file given to --model",
        ) from error
    if not isinstance(made, nn.Module):
        raise UserError(
            found=f"{name} returned {type(made).__name__}",
            wanted=wanted,
            next_step="mend the file given to --model",
        )
    return made


def first_line(error: BaseException) -> str:
    return (str(error).strip() or "no text").splitlines()[0]


def channels_of(data: Dataset) -> int:
    return data.train.images.shape[3] if data.train.images.ndim == 4 else 1


def inputs(name: str, data: Dataset, images: np.ndarray) -> Tensor:
    """Images (uint8) as the network's input, float32 (B, channels, H, W).

    Normalised by the training pixels' mean and deviation; torchvision's networks, which know only
    colour, get a grey image three times.
    """
    x = torch.from_numpy(np.ascontiguousarray(images)).float().div_(255)
    x = x[:, None] if x.dim() == 3 else x.permute(0, 3, 1, 2)
    mean, std = (torch.tensor(v)[:, None, None] for v in (data.mean, data.std))
    x = (x - mean) / std.clamp_min(1e-6)
    return x.expand(-1, 3, -1, -1) if name.startswith("torchvision:") and x.shape[1] == 1 else x


def parameter_count(module: nn.Module) -> int:
    return sum(math.prod(p.shape) for p in module.parameters())
