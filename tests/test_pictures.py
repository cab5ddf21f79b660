"""Pixels against Pillow and torchvision reading the same file; hostile files are set aside."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from pictures import encoded, noise
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as F

from attribution.pictures import Aside, grey, squared, taken


def asked(pixels, kind="PNG", size=64, **options):
    return taken(encoded(pixels, kind, **options), size).pixels


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "JPEG", "WEBP", "GIF", "JPEG2000"])
def test_a_small_picture_of_any_format_is_what_pillow_decodes(kind):
    content = encoded(noise(0, 9, 14), kind)
    wanted = np.asarray(Image.open(BytesIO(content)).convert("RGB"))
    found = taken(content, 64)
    np.testing.assert_array_equal(found.pixels, wanted)
    assert (found.width, found.height) == (14, 9)


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (64, 64), (200, 33)])
def test_scaling_down_is_torchvisions_antialiased_bilinear(shape):
    pixels = noise(1, *shape)
    found = asked(pixels, size=20)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    wanted = F.resize(tensor, list(found.shape[:2]), antialias=True).permute(1, 2, 0).numpy()
    assert max(found.shape[:2]) == 20
    assert found.shape[0] / found.shape[1] == pytest.approx(shape[0] / shape[1], rel=0.2)
    assert np.abs(found.astype(int) - wanted).max() <= 1  # rounding


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LAB", "YCbCr", "LA", "RGBA"])
def test_every_mode_is_what_pillow_converts_it_to(mode):
    picture = Image.fromarray(noise(2)).convert(mode)
    kind = "TIFF" if mode in ("CMYK", "LAB", "YCbCr") else "PNG"
    found = asked(picture, kind)
    np.testing.assert_array_equal(found, np.asarray(picture.convert("RGB")))
    assert grey(found) == (mode in ("L", "1", "LA"))


def test_what_is_transparent_is_over_white():
    picture = Image.fromarray(np.dstack([noise(3), np.full((12, 12), 0, np.uint8)]))
    assert (asked(picture) == 255).all()
    half = Image.new("RGBA", (4, 4), (0, 100, 200, 128))
    wanted = np.array([0, 100, 200]) * (128 / 255) + 255 * (127 / 255)
    assert np.abs(asked(half)[0, 0] - wanted).max() <= 1
    index = Image.new("P", (4, 4), 0)
    index.putpalette([255, 0, 0])
    assert (asked(index, transparency=0) == 255).all()


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_says_which_way_is_up(turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    content = encoded(noise(4, 6, 10), "PNG", exif=exif)
    wanted = ImageOps.exif_transpose(Image.open(BytesIO(content)))
    np.testing.assert_array_equal(taken(content, 64).pixels, np.asarray(wanted))


def test_deep_pixels_keep_their_upper_eight_bits():
    deep = np.random.default_rng(0).integers(0, 65536, (5, 7)).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(asked(deep, kind)[..., 0], deep >> 8)
    np.testing.assert_array_equal(asked(deep.astype(np.int32), "TIFF")[..., 1], deep >> 8)
    share = (deep / 65535).astype(np.float32)
    assert np.abs(asked(share, "TIFF")[..., 2] - share * 255).max() <= 0.51


def test_a_picture_is_put_whole_in_the_middle_of_a_black_square():
    pixels = np.full((4, 10, 3), 200, np.uint8)
    found = squared(pixels, 10)
    np.testing.assert_array_equal(found[3:7], pixels)
    assert not found[:3].any() and not found[7:].any()
    assert squared(noise(5, 1, 1), 8).shape == (8, 8, 3)
    assert (squared(noise(5, 1, 1), 8) == noise(5, 1, 1)).all()
    assert squared(noise(5, 1, 500), 8).shape == (8, 8, 3)


def test_a_large_photograph_is_nearly_what_pillow_makes_of_all_its_pixels():
    y, x = np.mgrid[:900, :1200] / 150
    smooth = np.stack([np.sin(x) * 90 + 120, np.cos(y) * 90 + 120, np.sin(x + y) * 90 + 120], 2)
    content = encoded(smooth.astype(np.uint8), "JPEG", quality=95)
    wanted = np.asarray(
        Image.fromarray(smooth.astype(np.uint8)).resize((64, 48), Image.Resampling.BILINEAR)
    )
    assert np.abs(taken(content, 64).pixels.astype(int) - wanted).mean() < 3


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is so large."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "an empty file"),
        (b"PK\x03\x04" + bytes(99), "a zip archive, not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture that can be read"),
        (b"\x80\x04\x95cposix\nsystem\n(S'true'\ntR.", "not a picture that can be read"),
        (b"<svg xmlns='x'></svg>", "an SVG drawing, not a picture of pixels"),
        (b"<!DOCTYPE html><html>", "a web page, not a picture"),
        (encoded(noise(6, 40, 40))[:700], "damaged (image file is truncated)"),
        (encoded(noise(6, 40, 40), "JPEG")[:300], "damaged"),
        (bomb(60_000, 60_000), "more than 100,000,000 pixels"),
        (bomb(11_000, 11_000), "more than 100,000,000 pixels"),
        (bomb(2**31 - 1, 2**31 - 1), "more than 100,000,000 pixels"),
        (encoded(np.full((3, 3), 10**6, np.int32), "TIFF"), "pixels of more than 16 bits"),
        (encoded(np.full((3, 3), np.nan, np.float32), "TIFF"), "not numbers from 0 to 1"),
    ],
)
def test_what_cannot_be_used_is_set_aside_with_a_reason(content, reason):
    with pytest.raises(Aside, match=reason.replace("(", r"\(").replace(")", r"\)")):
        taken(content, 32)
