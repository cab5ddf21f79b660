"""Networks by name and from files: sizes by layer arithmetic, seeds, and mistakes in a sentence."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attribution.data import Dataset, Split
from attribution.models import code_id, inputs, network, parameter_count, source_file
from attribution.records import DataSpec, UserError


def drawn(size: int = 28, classes: int = 10, colour: bool = False, count: int = 12) -> Dataset:
    """Random images as a data set."""
    draw = np.random.default_rng(size)
    shape = (count, size, size, 3) if colour else (count, size, size)
    images = draw.integers(0, 256, shape, np.uint8)
    labels = np.arange(count) % classes
    half = Split(images, labels, tuple(f"{i}-0" for i in range(count)))
    mean, std = ((0.4, 0.5, 0.3), (0.2, 0.3, 0.25)) if colour else ((0.13,), (0.31,))
    names = tuple(f"class {c}" for c in range(classes))
    return Dataset("d" * 12, DataSpec(), names, half, half, mean, std)


GREY, COLOUR = drawn(), drawn(32, 10, colour=True)


def logits(module: nn.Module, name: str, data: Dataset) -> Tensor:
    with torch.no_grad():
        return module(inputs(name, data, data.train.images))


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def convolution(inputs: int, outputs: int, kernel: int) -> int:
    """A convolution without bias and the batch norm after it."""
    return inputs * outputs * kernel**2 + 2 * outputs


def resnet9_parameters(channels: int, classes: int, widths: tuple[int, ...]) -> int:
    first, *rest = widths
    total = convolution(channels, first, 3)
    for before, after in zip(widths[:-1], rest, strict=True):
        path = convolution(before, after, 3) + convolution(after, after, 3)
        total += path + convolution(before, after, 1)
    return total + linear(widths[-1], classes)


def test_the_mlp_is_the_papers():
    made = network("mlp", GREY, 1.0, 0)
    wanted = linear(28 * 28, 128) + linear(128, 64) + linear(64, 10)
    assert parameter_count(made) == wanted == 109_386
    assert [m.p for m in made.modules() if isinstance(m, nn.Dropout)] == [0.1, 0.1]


@pytest.mark.parametrize(
    ("data", "width", "widths"),
    [
        (COLOUR, 1.0, (64, 128, 256, 512)),
        (GREY, 1.0, (64, 128, 256, 512)),
        (COLOUR, 0.25, (16, 32, 64, 128)),
    ],
    ids=["colour", "grey", "quarter"],
)
def test_resnet9_has_the_layers_it_states(data, width, widths):
    channels = 3 if data is COLOUR else 1
    count = parameter_count(network("resnet9", data, width, 0))
    assert count == resnet9_parameters(channels, 10, widths)
    if width == 1:
        assert 4.7e6 < count < 6.6e6


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_width_scales_the_hidden_layers(width):
    first, second = int(128 * width), int(64 * width)
    wanted = linear(784, first) + linear(first, second) + linear(second, 10)
    assert parameter_count(network("mlp", GREY, width, 0)) == wanted
    first, second, hidden = int(16 * width), int(32 * width), int(64 * width)
    wanted = linear(9, first) + linear(9 * first, second)  # a kernel is a row of nine weights
    wanted += linear(7 * 7 * second, hidden) + linear(hidden, 10)
    assert parameter_count(network("cnn", GREY, width, 0)) == wanted


NAMES = ["mlp", "cnn", "resnet9", "timm:test_resnet", "torchvision:shufflenet_v2_x0_5"]


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_alone_makes_the_weights(name):
    torch.manual_seed(1)
    one = network(name, COLOUR, 0.25, 7)
    torch.manual_seed(2)
    stream = torch.random.get_rng_state()
    same, other = network(name, COLOUR, 0.25, 7), network(name, COLOUR, 0.25, 8)
    assert torch.equal(stream, torch.random.get_rng_state())
    for key, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[key]), key
    differ = [
        not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)
    ]
    assert any(differ)
    assert not any(m.training for m in one.modules())


@pytest.mark.parametrize(
    "data",
    [drawn(32), COLOUR, drawn(32, 3), drawn(32, 7, colour=True)],
    ids=["grey", "colour", "grey of 3 classes", "colour of 7"],
)
@pytest.mark.parametrize("name", [*NAMES, "timm:test_vit", "torchvision:squeezenet1_1"])
def test_a_named_network_takes_the_data_and_has_its_classes(name, data):
    made = network(name, data, 0.25, 0)
    assert logits(made, name, data).shape == (12, len(data.classes))


def test_a_network_that_does_not_take_images_of_this_size_is_a_users_mistake():
    with pytest.raises(UserError) as told:  # patches of 16 do not fit into 28
        network("timm:test_vit", GREY, 1.0, 0)
    assert "28 x 28" in told.value.found and "'timm:test_vit'" in told.value.found
    assert "10 classes" in told.value.wanted and "--model" in told.value.next_step


def test_inputs_are_the_pixels_minus_the_mean_over_the_deviation():
    images = COLOUR.train.images
    found = inputs("cnn", COLOUR, images)
    assert found.dtype == torch.float32 and found.shape == (12, 3, 32, 32)
    for b, c, i, j in [(0, 0, 0, 0), (3, 1, 5, 9), (11, 2, 31, 30)]:
        by_hand = (int(images[b, i, j, c]) / 255 - COLOUR.mean[c]) / COLOUR.std[c]
        assert float(found[b, c, i, j]) == pytest.approx(by_hand, abs=1e-5)
    grey = inputs("mlp", GREY, GREY.train.images)
    wanted = (GREY.train.images / 255.0 - 0.13) / 0.31
    np.testing.assert_allclose(grey[:, 0], wanted, atol=1e-5)
    assert grey.shape == (12, 1, 28, 28)


def test_torchvision_gets_a_grey_image_three_times():
    once = inputs("timm:test_resnet", GREY, GREY.train.images)
    thrice = inputs("torchvision:squeezenet1_1", GREY, GREY.train.images)
    assert thrice.shape == (12, 3, 28, 28)
    for channel in range(3):
        assert torch.equal(thrice[:, channel], once[:, 0])
    assert inputs("torchvision:squeezenet1_1", COLOUR, COLOUR.train.images).shape[1] == 3


def test_pixels_that_never_vary_do_not_divide_by_nought():
    flat = Dataset("d" * 12, DataSpec(), ("a", "b"), GREY.train, GREY.test, (0.0,), (0.0,))
    assert torch.isfinite(inputs("mlp", flat, np.zeros((2, 28, 28), np.uint8))).all()


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("mpl", "mlp, cnn, resnet9, timm:NAME, torchvision:NAME, FILE.py:FUNCTION"),
        ("", "FILE.py:FUNCTION"),
        ("timm:resnet19", "resnet18"),
        ("timm:zzz", "timm.list_models()"),
        ("torchvision:resnet19", "resnet18"),
    ],
)
def test_an_unknown_name_is_a_users_mistake(name, wanted):
    with pytest.raises(UserError) as told:
        network(name, GREY, 1.0, 0)
    assert repr(name.split(":")[-1]) in told.value.found
    assert wanted in told.value.wanted
    assert "--model" in told.value.next_step


GOOD = """
from torch import nn

def made():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.Dropout(0.5))
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "own networks.py"


def test_a_network_from_a_file(file):
    file.write_text(GOOD)
    name = f"{file}:made"
    made, same, other = (network(name, GREY, 1.0, seed) for seed in (3, 3, 4))
    assert parameter_count(made) == linear(784, 10)
    assert torch.equal(made[1].weight, same[1].weight)
    assert not torch.equal(made[1].weight, other[1].weight)
    assert not made.training
    assert source_file(name) == (file, "made")
    assert source_file("mlp") is None and source_file("timm:test_vit") is None


def test_an_edited_file_is_other_code(file):
    file.write_text(GOOD)
    before = code_id(f"{file}:made")
    assert len(before) == 12 and code_id(f"{file}:made") == before
    file.write_text(GOOD.replace("0.5", "0.6"))
    assert code_id(f"{file}:made") != before
    file.write_text(GOOD)
    assert code_id(f"{file}:made") == before
    assert code_id("mlp") == code_id("torchvision:resnet18") == ""


BAD = {
    "raises when loaded": ("raise RuntimeError('no luck\\nsecond line')", "RuntimeError: no luck"),
    "no python": ("def made(:", "SyntaxError"),
    "misses a library": ("import no_such_library", "ModuleNotFoundError"),
    "no such function": ("def other(): ...", "made"),
    "not a function": ("made = 3", "TypeError"),
    "wants arguments": ("def made(classes): ...", "TypeError"),
    "raises": ("def made(): raise KeyError('lost')", "KeyError: 'lost'"),
    "raises without a word": ("def made(): raise ValueError", "ValueError: no text"),
    "leaves when loaded": ("raise SystemExit('bye')", "SystemExit: bye"),
    "leaves": ("import sys\ndef made(): sys.exit(3)", "SystemExit: 3"),
    "returns nothing": ("def made(): pass", "NoneType"),
    "returns a class": ("from torch import nn\ndef made(): return nn.Linear", "type"),
    "wrong classes": (GOOD.replace("784, 10", "784, 9"), "shape (2, 9)"),
    "wrong axes": (
        "from torch import nn\ndef made(): return nn.Linear(28, 10)",
        "shape (2, 1, 28, 10)",
    ),
    "wrong input": (GOOD.replace("784", "783"), "fails on images of 28 x 28 (RuntimeError"),
    "returns two": (
        "from torch import nn\n"
        "class Two(nn.Module):\n"
        "    def forward(self, x): return x, x\n"
        "made = Two",
        "returns tuple ((2, 1, 28, 28), (2, 1, 28, 28))",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_file_that_does_not_give_a_classifier_is_a_users_mistake(file, what):
    source, found = BAD[what]
    file.write_text(source)
    with pytest.raises(UserError) as told:
        network(f"{file}:made", GREY, 1.0, 0)
    assert found in told.value.found and file.name in told.value.found
    assert told.value.wanted
    assert "--model" in told.value.next_step
    assert "\n" not in str(told.value) and "Traceback" not in str(told.value)


@pytest.mark.parametrize("act", [lambda n: network(n, GREY, 1.0, 0), code_id])
def test_a_missing_file_is_a_users_mistake(tmp_path, act):
    (tmp_path / "folder.py").mkdir()
    for name in ("none.py", "folder.py"):
        with pytest.raises(UserError) as told:
            act(f"{tmp_path / name}:made")
        assert str(tmp_path / name) in told.value.found
        assert "FILE.py:FUNCTION" in told.value.wanted
        assert "--model" in told.value.next_step


@pytest.mark.parametrize("name", ["timm:xcit_nano_12_p16_224"])
def test_a_network_that_cannot_be_made_for_this_size_is_a_users_mistake(name):
    with pytest.raises(UserError) as told:
        network(name, GREY, 1.0, 0)
    assert "28 x 28" in told.value.found and "--model" in told.value.next_step


def test_a_file_edited_within_a_second_is_read_anew(file, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file.write_text(GOOD.replace("784, 10", "784, 10, True "))
    network(f"{file}:made", GREY, 1.0, 0)
    file.write_text(GOOD.replace("784, 10", "784, 10, False"))
    assert network(f"{file}:made", GREY, 1.0, 0)[1].bias is None
    assert [p.name for p in file.parent.iterdir()] == [file.name]  # and nothing is left beside it


def test_a_network_that_leaves_in_its_forward_is_a_users_mistake(file):
    file.write_text(
        "import sys\nfrom torch import nn\n"
        "class Leaves(nn.Module):\n"
        "    def forward(self, x): sys.exit(3)\n"
        "made = Leaves"
    )
    with pytest.raises(UserError):
        network(f"{file}:made", GREY, 1.0, 0)
