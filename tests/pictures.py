"""Small pictures, and folders and tables of them, that the tests of reading make for themselves."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = ("cat", "dog", "emu")


def noise(seed: int, height: int = 12, width: int = 12) -> np.ndarray:
    """A colourful picture that no other seed resembles."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def photos(train: int = 6, test: int = 2) -> dict[str, bytes]:
    """Files by path: so many PNG of each class, colours of a class near each other."""
    found = {}
    for c, name in enumerate(CLASSES):
        for half, count in (("train", train), ("test", test)):
            for n in range(count):
                pixels = noise(1000 * c + 100 * (half == "test") + n) // 2
                pixels[..., c] += 120
                found[f"{half}/{name}/{n:03d}.png"] = encoded(pixels)
    return found


def written(root: Path, files: dict[str, bytes]) -> Path:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def table(path: Path, files: dict[str, bytes], names: tuple[str, ...] = CLASSES) -> Path:
    """Parquet of some files as `datasets` writes it, in two row groups."""
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": list(names)},
    }
    schema = pa.schema(
        {
            "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            "label": pa.int64(),
        },
        {"huggingface": json.dumps({"info": {"features": features}})},
    )
    rows = [
        {"image": {"bytes": c, "path": p}, "label": names.index(p.split("/")[-2])}
        for p, c in files.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=len(rows) // 2 + 1)
    return path


def half(files: dict[str, bytes], name: str) -> dict[str, bytes]:
    return {p: c for p, c in files.items() if p.startswith(f"{name}/")}
