"""Hostile pictures and data sets, and what reads them."""

import csv
import gzip
import json
import struct
from collections.abc import Callable, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from PIL import Image

from attribution.pictures import alike
from attribution.reading import described
from attribution.store import Store

from . import mutation
from .inputs import (
    GREY,
    PNG,
    Case,
    Link,
    Pipe,
    encoded,
    json_text,
    json_value,
    name,
    noise,
    one_file,
    text,
    whole,
)
from .mutation import NAMES, mutations

# --- pictures ---


def pictures() -> st.SearchStrategy[Case]:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "<b>x</b>"
    colour, turned = noise(0, 9, 14, 3), {"exif": exif}
    valid = [
        *PNG[:2],
        encoded(noise(1, 40, 30)),
        encoded(colour, "PNG", **turned),
        encoded(noise(2, 8, 8, 4)),
        encoded(noise(3, 8, 8).astype(np.uint16) << 7),
    ]
    others = [
        encoded(colour, kind) for kind in ("BMP", "TIFF", "PPM", "JPEG", "WEBP", "GIF", "JPEG2000")
    ]
    others += [
        encoded(colour, "JPEG", progressive=True, **turned),
        encoded(colour, "TIFF", compression="tiff_lzw"),
        encoded(colour, "TIFF", compression="tiff_adobe_deflate"),
        encoded(colour, "TIFF", compression="jpeg"),
        encoded(colour.astype(np.float32)[..., 0] / 255, "TIFF"),
        encoded(np.full((3, 3), np.nan, np.float32), "TIFF"),
        encoded(colour.astype(np.int32)[..., 0], "TIFF"),
        encoded(colour, "WEBP", lossless=True),
        encoded(colour > 99, "PPM") if False else encoded(colour[..., 0], "PPM"),
    ]
    frames = BytesIO()
    first = Image.fromarray(colour)
    first.save(frames, "GIF", save_all=True, append_images=[Image.fromarray(noise(7, 9, 14, 3))])
    others.append(frames.getvalue())
    header = st.builds(png_header, whole, whole, st.integers(0, 255), st.integers(0, 255))
    return one_file("picture", st.one_of(mutations(valid, mutation.png), mutations(others), header))


def png_header(width: int, height: int, depth: int, kind: int) -> bytes:
    """A PNG that says it is so large, with little in it."""
    head = struct.pack(">IIBBBBB", width & 0xFFFFFFFF, height & 0xFFFFFFFF, depth, kind, 0, 0, 0)
    return PNG[0][:8] + mutation.chunk(b"IHDR", head) + PNG[0][33:]


def read_picture(place: Path, work: Path) -> None:
    content = (place / "picture").read_bytes()
    alike(content, GREY, invert=len(content) % 2 == 0)


# --- data sets ---


def read_one(path: str) -> Callable[[Path, Path], None]:
    return lambda place, work: read_data(place / path, work)


def read_folder(place: Path, work: Path) -> None:
    read_data(place, work)


def read_data(path: Path, work: Path) -> None:
    found = described(Store(work / "cache"), str(path))
    json.dumps(found).encode()
    for one in found["aside"]:
        if "more memory" in one["reason"]:
            raise MemoryError(one["reason"])


def folders() -> st.SearchStrategy[Case]:
    half = st.sampled_from(("train", "test", "val", "", "Train"))
    file = st.builds("{}{}".format, name, st.sampled_from((".png", ".PNG", ".jpg", "", ".csv")))
    path = st.builds(lambda *parts: "/".join(p for p in parts if p), half, name, file)
    picture = st.one_of(st.sampled_from(PNG), mutations(PNG, mutation.png))
    places = ("..", "/etc/passwd", "/dev/zero", ".", "train", "../x", "/nowhere", "loop.png")
    links = st.builds(Link, st.sampled_from(places))
    content = st.one_of(picture, picture, picture, links, st.builds(Pipe), st.binary(max_size=9))
    some = st.dictionaries(path, content, max_size=6)
    good = {f"{half}/{c}/{n}.png": PNG[4 * c + n] for half in ("train", "test") for c in (0, 1)
            for n in range(4)}  # fmt: skip
    ours = st.one_of(json_text, st.binary(max_size=20), links, st.builds(Pipe))
    export = st.fixed_dictionaries({}, optional={"export.json": ours, "classes.json": ours})
    table = st.one_of(links, st.builds(Pipe), st.just(b"path,label\n/etc/passwd,1\n"))
    tables = st.fixed_dictionaries(
        {}, optional={"list.csv": table, "a.parquet": table, "train-images-idx3-ubyte": table,
                      "train-labels-idx1-ubyte": table})  # fmt: skip
    return st.builds(
        lambda some, export, more, tables: {**(good if more else {}), **some, **export, **tables},
        some, export, st.booleans(), tables,
    )  # fmt: skip


def cells(count: int) -> st.SearchStrategy[list[Any]]:
    picture = st.sampled_from([*PNG, b"", b"PK\x03\x04", *(p[:40] for p in PNG[:2])])
    path = st.one_of(st.none(), st.sampled_from(("a.png", "../x", "/etc/passwd", "", "a\nb")))
    cell = st.fixed_dictionaries({"bytes": st.one_of(picture, st.none()), "path": path})
    return st.lists(st.one_of(cell, cell, cell, st.none()), min_size=count, max_size=count)


KINDS_OF_LABEL: dict[str, st.SearchStrategy[Any]] = {
    "int64": st.integers(-1, 3),
    "uint64": st.one_of(st.integers(0, 3), st.just(2**64 - 1)),
    "int8": st.integers(-2, 3),
    "float64": st.one_of(st.sampled_from((0.0, 1.0, 0.5, float("nan"), float("inf")))),
    "string": st.sampled_from(("a", "b", "a\0", *NAMES)),
    "bool_": st.booleans(),
    "binary": st.sampled_from((b"a", b"\xff")),
    "date32": st.integers(0, 5),
    "list": st.lists(st.integers(0, 2), max_size=2),
    "dictionary": st.sampled_from(("a", "b")),
}
HALVES = st.sampled_from(("train", "test", "", None, "validation"))


@st.composite
def tables(draw: Any) -> bytes:
    """Parquet nearly as `datasets` writes it."""
    count = draw(st.integers(0, 8))
    kind = draw(st.sampled_from(sorted(KINDS_OF_LABEL)))
    values = draw(st.lists(KINDS_OF_LABEL[kind], min_size=count, max_size=count))
    types = {"list": pa.list_(pa.int64()), "dictionary": pa.dictionary(pa.int8(), pa.string())}
    label = pa.array(values, types.get(kind) or getattr(pa, kind)())
    image = pa.array(draw(cells(count)), pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    columns = {draw(st.sampled_from(("image", "img", "a.b", "image.bytes"))): image,
               draw(st.sampled_from(("label", "labels", "x", "image.path"))): label}  # fmt: skip
    if draw(st.booleans()):
        halves = draw(st.lists(HALVES, min_size=count, max_size=count))
        odd = draw(st.sampled_from((pa.string(), pa.list_(pa.string()), pa.binary())))
        values = [[h] if pa.types.is_list(odd) else h for h in halves]
        columns["split"] = pa.array(values, odd)
    names = draw(st.one_of(st.lists(text, max_size=5), json_value))
    features = {"label": {"_type": "ClassLabel", "names": names}, "image": {"_type": "Image"}}
    note = draw(
        st.one_of(
            st.just(json.dumps({"info": {"features": features}}).encode()), json_text, st.none()
        )
    )
    table = pa.table(columns)
    table = table.replace_schema_metadata({"huggingface": note}) if note is not None else table
    packing = draw(st.sampled_from(("snappy", "zstd", "gzip", "none", "brotli", "lz4")))
    out = BytesIO()
    pq.write_table(table, out, row_group_size=max(1, count // 2), compression=packing)
    return out.getvalue()


def parquet_of(rows: int, packing: str, names: tuple[str, ...] = ("a", "b")) -> bytes:
    schema = pa.schema(
        {"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()},
        {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}, "label": {
            "_type": "ClassLabel", "names": list(names)}}}})},
    )  # fmt: skip
    made = [{"image": {"bytes": PNG[n % 12], "path": f"{n}.png"}, "label": n % 2}
            for n in range(rows)]  # fmt: skip
    out = BytesIO()
    pq.write_table(pa.Table.from_pylist(made, schema), out, compression=packing, row_group_size=9)
    return out.getvalue()


def parquets() -> st.SearchStrategy[Case]:
    valid = [parquet_of(12, packing) for packing in ("snappy", "zstd", "none", "gzip")]
    text_labels = pa.table(
        {"img": PNG, "class": ["a", "b"] * 6, "split": ["train", "test", ""] * 4}
    )
    out = BytesIO()
    pq.write_table(text_labels, out, compression="none")
    content = st.one_of(tables(), mutations([*valid, out.getvalue()]), mutations(valid[2:3]))
    return one_file("data.parquet", content)


def manifests() -> st.SearchStrategy[Case]:
    files = {f"{n}.png": content for n, content in enumerate(PNG)} | {
        "out.png": Link("/etc/passwd")
    }
    path = st.one_of(
        st.sampled_from([*files, "../x.png", "/etc/passwd", ".", "out.png", "~/x.png"]), text
    )
    label = st.one_of(st.sampled_from(("a", "b", "1", "0", "", "a\0")), text)
    heads = st.lists(
        st.sampled_from(("path", "label", "split", "file", "class", "", "image", "x\n", "=x")),
        max_size=4,
    )
    head = st.one_of(st.just(["path", "label", "split"]), st.just(["path", "label"]), heads)
    half = st.one_of(st.sampled_from(("train", "test", "", "val")), text)
    row = st.one_of(st.tuples(path, label, half), st.lists(text, max_size=5).map(tuple))
    comma = st.sampled_from((",", ";", "\t", "|"))

    def written(head: list[str], rows: Sequence[tuple[str, ...]], comma: str, mark: bool) -> bytes:
        out = StringIO(newline="")
        table = csv.writer(out, delimiter=comma)
        table.writerow(head)
        table.writerows(rows)
        return b"\xef\xbb\xbf" * mark + out.getvalue().encode("utf-8", "replace")

    structured = st.builds(written, head, st.lists(row, max_size=12), comma, st.booleans())
    good = [(f"{n}.png", "ab"[n % 2], "test" if n > 7 else "train") for n in range(12)]
    valid = [written(["path", "label", "split"], good, comma, mark)
             for comma in ",;" for mark in (False, True)]  # fmt: skip
    long = st.integers(10**5, 10**6).map(
        lambda size: b"path,label\n" + b"0.png," + b"x" * size + b"\n1.png,b\n2.png,b\n3.png,b\n"
    )
    content = st.one_of(structured, structured, mutations(valid), mutations(valid), long)
    return content.map(lambda found: {**files, "list.csv": found})


def idx_of(shape: tuple[int, ...], body: bytes, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, len(shape)]) + b"".join(struct.pack(">I", n) for n in shape) + body


def idx_files() -> st.SearchStrategy[Case]:
    images = idx_of((12, 9, 9), noise(5, 12, 9, 9).tobytes())
    labels = idx_of((12,), bytes(n % 2 for n in range(12)))
    size = whole.map(lambda n: n & 0xFFFFFFFF)
    shapes = st.lists(size, max_size=4).map(tuple)
    body = st.one_of(st.binary(max_size=40), st.sampled_from((10**5, 10**7)).map(bytes))
    header = st.builds(idx_of, shapes, body, st.sampled_from((8, 8, 9, 13, 255)))
    some = st.one_of(header, mutations([images, labels]))

    def case(images: bytes, labels: bytes, zipped: bool, both: bool, more: bytes) -> Case:
        end, pack = (".gz", lambda b: gzip.compress(b, 1, mtime=0)) if zipped else ("", bytes)
        found = {f"train-images-idx3-ubyte{end}": pack(images),
                 f"train-labels-idx1-ubyte{end}": pack(labels)}  # fmt: skip
        return found | ({f"t10k-images-idx3-ubyte{end}": pack(images),
                         f"t10k-labels-idx1-ubyte{end}": more} if both else {})  # fmt: skip

    return st.builds(
        case, st.one_of(st.just(images), some), st.one_of(st.just(labels), some), st.booleans(),
        st.booleans(), st.one_of(st.just(labels), mutations([gzip.compress(labels, mtime=0)])),
    )  # fmt: skip
