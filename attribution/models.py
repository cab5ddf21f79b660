"""Networks by name, and how images become their input.

``mlp`` and ``resnet9`` are the paper's (arXiv 2405.17293, section 4; layers as in the dattri
benchmarks); ``cnn`` is a small one; ``timm:NAME`` and ``torchvision:NAME`` are those libraries'
classifiers, and ``FILE.py:FUNCTION`` is the user's own. So may be the way from images to input.
"""

import hashlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
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
LIBRARIES = ("timm:", "torchvision:")
NAMES = (*MODELS, "timm:NAME", "torchvision:NAME", "FILE.py:FUNCTION")


def network(name: str, data: Dataset, width: float, seed: int, preprocess: str = "") -> nn.Module:
    """A fresh network for `data`, its weights a function of the seed, in evaluation mode.

    In single precision, and returning logits alone where its own class returns more. Raises
    `UserError` for an unknown name, a file that fails, or a network that `judged` refuses.
    """
    check_name(name)
    images = data.train.images[:SOME]
    x_B = inputs(name, data, images, preprocess)
    if source_file(preprocess):
        alone = [inputs(name, data, images[b : b + 1], preprocess) for b in range(len(images))]
        if not torch.allclose(x_B, torch.cat(alone), atol=1e-5):
            raise UserError(
                found=f"{preprocess}, whose input for an image is another one in another batch",
                wanted="a function of each image alone, without chance",
                next_step="mend the file given to --preprocess",
            )
    channels, size = (x_B.shape[1], x_B.shape[2]) if x_B.dim() == 4 else (1, x_B.shape[-1])
    classes = len(data.classes)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        try:
            if name in MODELS:
                made = MODELS[name](channels, size, classes, width)
            elif name.startswith("timm:"):
                made = _timm(name[5:], channels, size, classes)
            elif name.startswith("torchvision:"):
                made = _torchvision(name[12:], classes)
            else:
                made = _from_file(name)
            if any(p.dtype in HALVES for p in made.parameters()):
                made.float()
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise failing(name, x_B, classes, error) from error
        if name not in MODELS:
            made.register_forward_hook(partial(_logits, name=name, classes=classes))
        judged(made, name, x_B, classes)
    return made


SOME = 4  # images that a network is tried on
HALVES = (torch.float16, torch.bfloat16, torch.float64)  # computed in single precision


def judged(made: nn.Module, name: str, x_B: Tensor, classes: int) -> None:
    """Raise `UserError` unless `made`, put into evaluation mode, is a classifier of single images.

    It has to turn two images into (2, C) logits, the same ones each time, and those of an image
    must not depend on what else is in its batch: else it has no gradient of its own.
    """
    taken = [
        p.name
        for p in inspect.signature(made.forward).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(taken) > 1:
        raise UserError(
            found=f"network {name!r} with {len(taken)} inputs ({', '.join(taken)})",
            wanted="a network that takes a batch of images and nothing else",
            next_step="wrap it in a module that fills in the others",
        )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            found_2 = made.eval()(x_B[:2])
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # whatever a network may raise, it is one sentence
            raise failing(name, x_B, classes, error) from error
        shape = tuple(getattr(found_2, "shape", ()))
        if shape != (2, classes):
            raise UserError(
                found=f"network {name!r} returns shape {shape} for two images",
                wanted=f"logits of shape (2, {classes})",
                next_step=f"give it {classes} outputs or choose another with --model",
            )
        try:
            both, alone = made(x_B), torch.cat([made(x_1) for x_1 in x_B.split(1)])
            steady = _near(found_2, made(x_B[:2]))
        except (Exception, SystemExit):  # a batch norm refuses a single example, say
            both, alone, steady = found_2, torch.full_like(found_2, torch.nan), True
    if not steady:
        raise UserError(
            found=f"network {name!r}, whose answer is another one each time it is asked",
            wanted="the same logits for the same image in evaluation mode",
            next_step="switch its randomness off in evaluation mode",
        )
    if not _near(both, alone):
        raise UserError(
            found=f"network {name!r}, whose answer for an image depends on the others in its batch",
            wanted="logits of each image alone (a batch norm with running statistics, say)",
            next_step="make its evaluation mode treat images one by one",
        )


def _near(found: Tensor, wanted: Tensor) -> bool:
    """Whether logits agree but for rounding."""
    size = float(wanted.abs().nan_to_num().max()) if wanted.numel() else 0.0
    return torch.allclose(found, wanted, rtol=1e-3, atol=1e-3 * size + 1e-6, equal_nan=True)


def _logits(module: nn.Module, given: Any, out: Any, name: str, classes: int) -> Tensor:
    """A forward hook: the logits in what a network returns.

    A tensor, ``out.logits`` or ``out["logits"]``, or the only tensor of (B, C) among several.
    """
    if isinstance(out, Tensor):
        return out
    several: tuple[Any, ...] = ()
    if isinstance(out, Mapping):
        several = tuple(out.values())
        found = out.get("logits")
    else:
        several = tuple(out) if isinstance(out, (tuple, list)) else ()
        found = getattr(out, "logits", None)
    if isinstance(found, Tensor):
        return found
    fitting = [
        v for v in several if isinstance(v, Tensor) and v.dim() == 2 and v.shape[1] == classes
    ]
    if len(fitting) == 1:
        return fitting[0]
    shapes = [str(tuple(v.shape)) if isinstance(v, Tensor) else type(v).__name__ for v in several]
    raise UserError(
        found=f"network {name!r} returns {type(out).__name__} ({', '.join(shapes)})",
        wanted=f"logits of {classes} classes, alone or under the name logits",
        next_step="return the logits, or choose another with --model",
    )


def failing(name: str, x_B: Tensor, classes: int, error: BaseException) -> UserError:
    """What to say of a network that raised `error` on some input."""
    size = " x ".join(str(n) for n in x_B.shape[-2:])
    return UserError(
        found=f"network {name!r} fails on images of {size} "
        f"({type(error).__name__}: {first_line(error)})",
        wanted=f"a classifier of {classes} classes for them",
        next_step="choose another with --model",
    )


def last_layer(network: nn.Module, classes: int) -> nn.Linear | None:
    """The linear layer that a network ends in, if it does."""
    linear = [m for m in network.modules() if type(m) is nn.Linear and m.out_features == classes]
    return linear[-1] if linear else None


def frozen_below(network: nn.Module, name: str, classes: int) -> nn.Module:
    """`network`, in which only the last layer wants a gradient. Raises `UserError` without one."""
    last = last_layer(network, classes)
    if last is None:
        raise UserError(
            found=f"--freeze with network {name!r}, which does not end in a linear layer",
            wanted="a last layer to train alone",
            next_step="leave out --freeze",
        )
    network.requires_grad_(False)
    last.requires_grad_(True)
    return network


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


def _timm(
    name: str, channels: int, size: int, classes: int | None, pretrained: bool = False
) -> nn.Module:
    import timm

    options: dict[str, Any] = {"in_chans": channels, "pretrained": pretrained}
    if classes is not None:
        options["num_classes"] = classes
    try:
        return timm.create_model(name, img_size=size, **options)
    except TypeError:  # most convolutional networks take any size and no img_size
        return timm.create_model(name, **options)


def _torchvision(name: str, classes: int) -> nn.Module:
    import torchvision

    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, num_classes=classes, **options)


def pretrained(name: str, data: Dataset) -> nn.Module:
    """A library's network with its own weights and classes, which it may have to download.

    Raises `UserError` for a network without, or where they cannot be had.
    """
    check_name(name)
    library(name)
    size = data.train.images.shape[1]
    try:
        if name.startswith("timm:"):
            return _timm(name[5:], 3, size, None, pretrained=True)
        import torchvision

        return torchvision.models.get_model(name[12:], weights="DEFAULT")
    except (Exception, SystemExit) as error:  # a download fails in many ways
        raise UserError(
            found=f"no pretrained weights of {name} ({type(error).__name__}: {first_line(error)})",
            wanted="a connection to where the library keeps them, the first time only",
            next_step="try again when there is one, or give a file of them with --start",
        ) from error


def source_file(name: str) -> tuple[Path, str] | None:
    """The file and the function of a ``FILE.py:FUNCTION`` name, else None."""
    if ".py:" not in name:
        return None
    path, _, function = name.rpartition(":")
    return Path(path), function


def code_id(name: str, option: str = "--model") -> str:
    """A hash of the code behind ``FILE.py:FUNCTION``, empty for whatever is named otherwise."""
    source = source_file(name)
    if source is None:
        return ""
    if not source[0].is_file():
        raise UserError(
            found=f"no file {source[0]}",
            wanted=f"FILE.py:FUNCTION with a function that {GIVES[option]}",
            next_step=f"check the path given to {option}",
        )
    return hashlib.sha256(source[0].read_bytes()).hexdigest()[:12]


GIVES = {
    "--model": "returns a network",
    "--preprocess": "turns uint8 images into a network's input",
    "--train": "trains a network",
}  # what the function of a FILE.py is for, by option


def _from_file(name: str) -> nn.Module:
    """The module that FUNCTION of FILE.py returns. Runs the user's code, on the user's word."""
    with owned(name, "--model"):
        made = own(name, "--model")()
    if not isinstance(made, nn.Module):
        raise UserError(
            found=f"{name} returned {type(made).__name__}",
            wanted="a torch.nn.Module",
            next_step="mend the file given to --model",
        )
    return made


def own(name: str, option: str) -> Callable[..., Any]:
    """FUNCTION of FILE.py. Raises `UserError` where the file fails or has none."""
    source = source_file(name)
    assert source is not None, name
    path, function = source
    code_id(name, option)
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    with owned(name, option):
        # Compiled here: an import would leave bytecode beside the file, and may take old one.
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
        return getattr(module, function)


@contextmanager
def owned(name: str, option: str) -> Iterator[None]:
    """Turn whatever the user's own code raises into one sentence."""
    file, _, function = name.rpartition(":")
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(
            found=f"{file} raised {type(error).__name__}: {first_line(error)}",
            wanted=f"a function {function} in it that {GIVES[option]}",
            next_step=f"mend the file given to {option}",
        ) from error


def first_line(error: BaseException) -> str:
    return (str(error).strip() or "no text").splitlines()[0]


LIBRARY = "library"  # the preprocessing that a library's own weights were trained with


def inputs(name: str, data: Dataset, images: np.ndarray, preprocess: str = "") -> Tensor:
    """Images (uint8) as the network's input, float32 (B, channels, H, W).

    Normalised by the training pixels' mean and deviation, or by those that the library's own
    weights of the network know (`preprocess` "library"); or whatever FUNCTION of FILE.py makes of a
    batch, a uint8 tensor (B, H, W) or (B, H, W, 3). Networks that know only colour, torchvision's
    and the library's, get a grey image three times.
    """
    if source_file(preprocess):
        parts = range(0, max(1, len(images)), PREPROCESSED)
        function = own(preprocess, "--preprocess")
        made = [_preprocessed(function, preprocess, images[b : b + PREPROCESSED]) for b in parts]
        return torch.cat(made)
    x = torch.from_numpy(np.ascontiguousarray(images)).float().div_(255)
    x = x[:, None] if x.dim() == 3 else x.permute(0, 3, 1, 2)
    pair = library(name) if preprocess == LIBRARY else (data.mean, data.std)
    mean, std = (torch.tensor(v)[:, None, None] for v in pair)
    std = std.clamp_min(1e-6)
    if len(mean) == x.shape[1]:
        x = x.sub_(mean).div_(std)  # a copy of all images less
    else:
        x = (x - mean) / std
    return x.expand(-1, 3, -1, -1) if name.startswith("torchvision:") and x.shape[1] == 1 else x


PREPROCESSED = 256  # images that FUNCTION gets at a time


def _preprocessed(function: Callable[..., Any], name: str, images: np.ndarray) -> Tensor:
    with owned(name, "--preprocess"):
        made = function(torch.from_numpy(np.ascontiguousarray(images)))
    fits = isinstance(made, Tensor) and made.is_floating_point() and made.dim() > 1
    if not fits or len(made) != len(images) or not torch.isfinite(made).all():
        what = "values that are not finite" if fits and len(made) == len(images) else (
            f"{made.dtype} of shape {tuple(made.shape)}" if isinstance(made, Tensor)
            else type(made).__name__
        )  # fmt: skip
        raise UserError(
            found=f"{name} returned {what} for {len(images)} images",
            wanted="a tensor of finite floating-point numbers, one row for each image",
            next_step="mend the file given to --preprocess",
        )
    return made.detach().float()


def check_preprocess(preprocess: str, name: str) -> None:
    """Raise `UserError` unless `preprocess` is known, and goes with network `name`."""
    if source_file(preprocess):
        code_id(preprocess, "--preprocess")
    elif preprocess == LIBRARY:
        library(name)
    elif preprocess:
        known("preprocessing", preprocess, (LIBRARY, "FILE.py:FUNCTION"), "--preprocess")


def library(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the colours that a library's own weights of a network know."""
    kind, _, model = name.partition(":")
    if kind == "timm":
        import timm

        if (found := timm.get_pretrained_cfg(model)) and len(found.mean) == 3:
            return tuple(found.mean), tuple(found.std)
    elif kind == "torchvision":
        import torchvision

        weights = torchvision.models.get_model_weights(model).DEFAULT.transforms()
        return tuple(weights.mean), tuple(weights.std)
    raise UserError(
        found=f"network {name!r}, whose pretrained weights no library knows",
        wanted="timm:NAME or torchvision:NAME with weights of their own",
        next_step="leave out --preprocess library and --pretrained",
    )


def parameter_count(module: nn.Module) -> int:
    return sum(math.prod(p.shape) for p in module.parameters())
