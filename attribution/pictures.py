"""Pictures as people have them, to pixels of one size.

A file is a stranger's: which decoders may look at it, its bytes and its pixels are bounded before
anything is unpacked. What cannot be used is set aside with a reason, and the rest goes on.

    first frame, turned as its EXIF data says -> scaled down so that its longer side fits
    -> 8 bits a channel -> transparency over white -> in the middle of a black square

The whole picture is kept and its proportions are: what is wrong with a label may be at the edge.
"""

import warnings
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Raster formats only: others run programs (EPS) or are containers of anything.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
ENDINGS = (
    ".bmp", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png",
    ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
LARGEST = 256 * 2**20  # bytes of a picture's file
MOST = 100_000_000  # pixels of a picture
BEGINNINGS = {  # what files with a picture's name turn out to be
    b"PK\x03\x04": "a zip archive, not a picture",
    b"%PDF": "a PDF document, not a picture",
    b"<svg": "an SVG drawing, not a picture of pixels",
    b"<?xml": "an XML document, not a picture",
    b"<!DOC": "a web page, not a picture",
    b"<html": "a web page, not a picture",
    b"version https://git-lfs": "the stand-in of a file that Git LFS has not fetched",
}
Image.MAX_IMAGE_PIXELS = MOST
warnings.filterwarnings("ignore", module=r"PIL\.")  # of what it reads all the same


class Aside(Exception):
    """A picture that cannot be used; the text is the reason."""


class Picture(NamedTuple):
    """A picture that could be read."""

    pixels: np.ndarray  # uint8 (h, w, 3)
    width: int  # as it was
    height: int


def taken(content: bytes | np.ndarray, size: int) -> Picture:
    """A picture, encoded or as an array, no side longer than `size`; a smaller one stays small.

    Raises `Aside` for one that cannot be used.
    """
    try:
        with opened(content) as picture:
            sides = picture.size
            picture.draft("RGB", (2 * size, 2 * size))  # a JPEG unpacks no more than is needed
            turned = ImageOps.exif_transpose(picture)
            return Picture(np.asarray(plain(smaller(eight_bits(turned), size))), *sides)
    except Aside:
        raise
    except MemoryError:
        raise Aside("more memory than there is") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Aside(f"more than {MOST:,} pixels") from None
    except Exception as error:  # a decoder may raise anything on a damaged file
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Aside(f"damaged ({said[:120]})") from error


def opened(content: bytes | np.ndarray) -> Image.Image:
    """The picture with its header read, its pixels not yet."""
    if isinstance(content, np.ndarray):
        return Image.fromarray(content)
    if not content:
        raise Aside("an empty file")
    if len(content) > LARGEST:
        raise Aside(f"a file of more than {LARGEST // 2**20} MB")
    try:
        picture = Image.open(BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        start = content[:64].lstrip().lower()
        kinds = (k for mark, k in BEGINNINGS.items() if start.startswith(mark.lower()))
        raise Aside(next(kinds, "not a picture that can be read")) from None
    if picture.width * picture.height > MOST:  # between once and twice that, Pillow only warns
        raise Image.DecompressionBombError
    return picture


def eight_bits(picture: Image.Image) -> Image.Image:
    """Deep pixels by their upper eight bits, floats of 0 to 1 times 255."""
    if picture.mode.startswith("I"):
        deep = np.asarray(picture)
        if deep.min() < 0 or deep.max() > 65535:
            raise Aside("pixels of more than 16 bits")
        return Image.fromarray((deep >> 8).astype(np.uint8))
    if picture.mode == "F":
        values = np.asarray(picture)
        if not (values >= 0).all() or not (values <= 1).all():
            raise Aside("pixels that are not numbers from 0 to 1")
        return Image.fromarray((values * 255).round().astype(np.uint8))
    return picture


def smaller(picture: Image.Image, size: int) -> Image.Image:
    """Scaled down so that its longer side is `size`, bilinear over all pixels that it has.

    With its transparency, which Pillow weighs in; indexed colours become colours first.
    """
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
    elif picture.mode not in ("L", "RGB"):
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    longer = max(picture.size)
    return picture if longer <= size else scaled(picture, size)


def scaled(picture: Image.Image, size: int) -> Image.Image:
    """With a longer side of `size`, the proportions as they are."""
    longer = max(picture.size)
    width, height = (max(1, round(side * size / longer)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BILINEAR)


def plain(picture: Image.Image) -> Image.Image:
    """Three colours, what is transparent over white."""
    if picture.mode == "RGBA":
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def squared(found: np.ndarray, size: int) -> np.ndarray:
    """In the middle of a black square: uint8 (size, size, 3)."""
    if max(found.shape[:2]) != size:
        found = np.asarray(scaled(Image.fromarray(found), size))
    height, width = found.shape[:2]
    top, left = (size - height) // 2, (size - width) // 2
    square = np.zeros((size, size, 3), np.uint8)
    square[top : top + height, left : left + width] = found
    return square


def grey(found: np.ndarray) -> bool:
    """Whether all three colours of every pixel are the same."""
    return bool((found[..., :1] == found[..., 1:]).all())


def alike(content: bytes | np.ndarray, images: np.ndarray, invert: bool = False) -> np.ndarray:
    """A picture in the form of a data set's images: uint8 (H, W) or (H, W, 3).

    `invert` makes dark light, as for a digit on white paper beside ones on black. Raises `Aside`
    for a picture that cannot be used.
    """
    size = images.shape[1]
    picture = Image.fromarray(taken(content, size).pixels)
    found = np.asarray(ImageOps.invert(picture) if invert else picture)
    square = squared(found, size)
    return square if images.ndim == 4 else np.array(Image.fromarray(square).convert("L"))
