"""Where a person's own pictures come from, and which of them are for training and for testing.

A source gives its pictures one after the other, not decoded, so nothing of its size is ever held
in memory. Its files are a stranger's: links out of the folder are not followed, nothing is
unpickled, headers are checked against the file before anything is made of their size.
"""

import csv
import gzip
import inspect
import json
import math
import os
import re
import stat
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .pictures import ENDINGS, LARGEST, Aside
from .records import ReadSpec, UserError, one_line

TRAIN = ("train", "training")
TEST = ("test", "testing", "validation", "valid", "val", "eval", "dev")  # the first that is there
SPLIT = re.compile(rf"(?<![a-z0-9])({'|'.join((*TRAIN, *TEST))})(?![a-z])")
IDX = re.compile(r"(train|t10k|test)-(images|labels)[-.]idx\d-ubyte(\.gz)?")
IMAGE_NAMES = ("image", "img", "picture", "photo", "pixels")
LABEL_NAMES = ("label", "labels", "class", "target", "category", "fine_label")
PATH_NAMES = ("path", "file", "filename", "file_name", "image")
NAMED = "classes.json"  # of an export of ours
BATCH = 4  # rows of a table in memory at once: a few bytes can stand for a very large cell
DEEPEST = 4096  # pixels a side that an IDX file may say
RATIO = 200  # times the size of a gzipped file that may come out of it, where that is not small
SMALL = 50 * 10**6  # bytes that may come out of any
MOST = 50 * 10**6  # images of an IDX file, whose labels are read at once
LONGEST = 255  # characters of a class's name
NO_NAME = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")  # halves of characters, of no file's name


class Entry(NamedTuple):
    """One picture of a source, not read yet."""

    split: str  # train, test, or "" where the source does not say
    path: str  # where it stands in the source
    label: str | None
    read: Callable[[], bytes | np.ndarray]  # raises Aside
    held: int = 0  # bytes of it that are in memory


@dataclass(frozen=True, eq=False)
class Source:
    """A person's data set, opened."""

    name: str
    kind: str  # in words
    place: str  # where it is
    count: int  # of its entries
    entries: Callable[[], Iterator[Entry]]
    stamp: Sequence[Any]  # differs once a file does; empty: that cannot be told
    classes: tuple[str, ...] | None = None  # where it says which and in what order
    notes: tuple[str, ...] = ()  # what a person should know


def opened(text: str, spec: ReadSpec, downloads: Path) -> Source | None:
    """The source that `text` names: a path, ``hf:NAME`` or ``torchvision:NAME``; else None.

    Raises `UserError` for one that holds no pictures.
    """
    if text.startswith("hf:"):
        return hub(text.removeprefix("hf:"), spec)
    if text.startswith("torchvision:"):
        return torchvision_set(text.removeprefix("torchvision:"), Path(spec.root or downloads))
    try:
        path = Path(text).expanduser().resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        return None
    if path.is_dir():
        return in_folder(path, spec)
    if path.suffix.lower() == ".parquet":
        return parquet(path, [path], spec)
    if path.suffix.lower() in (".csv", ".tsv"):
        return manifest(path, spec)
    raise UserError(
        found=f"a file {path.name!r} of an unknown kind",
        wanted="a folder of pictures, a .parquet file or a .csv manifest",
        next_step="give one of these to --data",
    )


def in_folder(root: Path, spec: ReadSpec) -> Source:
    """What a folder holds: MNIST's files, pictures, Parquet, or one manifest."""
    top = [p for p in sorted(root.iterdir()) if not p.name.startswith(".")]
    if any(IDX.fullmatch(p.name) for p in top):
        return idx(root, [p for p in top if IDX.fullmatch(p.name)])
    found = list(walked(root))
    pictures = [f for f in found if f.reason or f.path.suffix.lower() in ENDINGS]
    if any(not f.reason and len(f.parts) > 1 for f in pictures):
        passed = sum(not f.reason for f in found) - sum(not f.reason for f in pictures)
        return folder(root, pictures, passed)
    tables = [f.path for f in found if f.path.suffix.lower() == ".parquet" and not f.reason]
    if tables:
        return parquet(root, tables, spec)
    manifests = [p for p in top if p.suffix.lower() in (".csv", ".tsv")]
    if len(manifests) == 1:
        return manifest(manifests[0], spec)
    if pictures:
        raise UserError(
            found=f"pictures in {root.name!r} that are in no class's folder",
            wanted="a folder for each class, train/CLASS/..., or a manifest of paths and labels",
            next_step="sort them into folders, or write a manifest.csv with columns path and label",
        )
    raise UserError(
        found=f"no pictures in the folder {root.name!r}",
        wanted="train/CLASS/... and test/CLASS/..., CLASS/..., Parquet, MNIST's files, or a .csv",
        next_step="check the path given to --data",
    )


def told(name: str) -> str:
    """A name as text: composed, so that it is the same on every system; what is none, as U+FFFD."""
    text = os.fsencode(NO_NAME.sub("\ufffd", name)).decode("utf-8", "replace")
    return unicodedata.normalize("NFC", text)


class Found(NamedTuple):
    """A file below a folder."""

    path: Path
    parts: tuple[str, ...]  # names from the folder down
    reason: str = ""  # why it is set aside


def walked(root: Path) -> Iterator[Found]:
    """Every file below `root` that is not hidden; links to folders are not followed."""
    refused: list[OSError] = []
    for folder, below, files in os.walk(root, onerror=refused.append):
        below[:] = sorted(n for n in below if not n.startswith(".") and n != "__MACOSX")
        here = Path(folder)
        parts = tuple(told(p) for p in here.relative_to(root).parts)
        for name in below:
            if (here / name).is_symlink():
                reason = "a link to a folder, which is not followed"
                yield Found(here / name, (*parts, told(name)), reason)
        for name in sorted(n for n in files if not n.startswith(".")):
            yield Found(here / name, (*parts, told(name)))
    for error in refused:
        place = Path(os.fsdecode(error.filename))
        parts = tuple(told(p) for p in place.relative_to(root).parts)
        yield Found(place, parts or (".",), f"a folder that cannot be read ({said(error)})")


def said(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return one_line((str(error).strip() or type(error).__name__).splitlines()[0][:200])


def stamps(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Path, size and time of files, by which a change is noticed without reading them."""
    found: list[tuple[str, int, int]] = []
    for path in paths:
        try:
            facts = path.stat()
        except (OSError, ValueError):
            found.append((str(path), -1, -1))
        else:
            found.append((str(path), facts.st_size, facts.st_mtime_ns))
    # A name that is no text cannot be written down.
    return sorted(
        (os.fsencode(p).decode("utf-8", "backslashreplace"), size, time) for p, size, time in found
    )


@contextmanager
def reachable() -> Iterator[None]:
    """What the system says of a file that cannot be had is raised as `Aside`."""
    try:
        yield
    except FileNotFoundError:
        raise Aside("no such file") from None
    except (OSError, RuntimeError, ValueError) as error:
        raise Aside(f"cannot be read ({said(error)})") from error


@reachable()
def real(path: Path, inside: Path | None) -> Path:
    """Where a file really is, which has to be `inside` a folder. Raises `Aside`."""
    found = path.resolve(strict=True)
    if inside is not None and not found.is_relative_to(inside):
        raise Aside("outside of the folder")
    if not stat.S_ISREG(found.stat().st_mode):  # or it may have no end, or wait for ever
        raise Aside("no regular file")
    return found


@reachable()
def content(path: Path, inside: Path | None) -> bytes:
    """A file as a whole, which has to be `inside` a folder. Raises `Aside`."""
    found = real(path, inside)
    if found.stat().st_size > LARGEST:
        raise Aside(f"a file of more than {LARGEST // 2**20} MB")
    return found.read_bytes()


def refuse(reason: str) -> bytes:
    raise Aside(reason)


def halves(names: Iterable[str], what: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Which of these names of splits is train and which is test, and a note on the others.

    Nothing where none is for training: then what is called so is a class like any other.
    """
    by = {name.lower(): name for name in sorted(names)}
    train = next((by[n] for n in TRAIN if n in by), None)
    if train is None:
        return {}, ()
    test = next((by[n] for n in TEST if n in by), None)
    chosen = {train: "train"} | ({test: "test"} if test else {})
    left = sorted(n or "without a split" for n in set(names) - set(chosen))
    if not left:
        return chosen, ()
    return chosen, (f"Passed over beside train and test: {what} {', '.join(left)}.",)


def folder(root: Path, found: list[Found], passed: int) -> Source:
    """A folder for each class, as torchvision's ImageFolder has it, below train and test or not."""
    top = {f.parts[0] for f in found}
    deep = {f.parts[0] for f in found if len(f.parts) > 2 and not f.reason}
    chosen, notes = halves(
        {n for n in top if n.lower() in TEST or (n.lower() in TRAIN and n in deep)}, "the folders"
    )
    if not chosen and deep and all(n.lower() in TEST for n in top):
        raise UserError(
            found=f"only {', '.join(sorted(deep))} in the folder {root.name!r}",
            wanted="images to train on, in train/CLASS/...",
            next_step="add a folder train, or give the folder itself to --data to split it",
        )
    if chosen:
        found = [f for f in found if f.parts[0] in chosen]
        beside = sorted(top - set(chosen))
        notes = (f"Passed over beside train and test: {', '.join(beside)}.",) if beside else ()
    depth = 2 if chosen else 1
    stands_for = class_names(root)
    if passed:
        notes += (f"Files passed over that are no pictures by their names: {passed:,}.",)

    def entries() -> Iterator[Entry]:
        for one in found:
            label = one.parts[depth - 1] if len(one.parts) > depth else None
            label = stands_for.get(label, label) if label else None
            read = partial(refuse, one.reason) if one.reason else partial(content, one.path, root)
            yield Entry(chosen.get(one.parts[0], ""), "/".join(one.parts), label, read)

    return Source(
        told(root.name), "a folder of pictures", str(root), len(found), entries,
        stamps([*(f.path for f in found), *([root / NAMED] if stands_for else [])]), notes=notes,
    )  # fmt: skip


def class_names(root: Path) -> dict[str, str]:
    """The names of the classes that the folders of an export of ours stand for (`exchange`)."""
    try:
        if not (root / "export.json").is_file():
            return {}
        found = json.loads(content(root / NAMED, root))
    except (Aside, OSError, ValueError, RecursionError):
        return {}
    pairs = found.items() if isinstance(found, dict) else ()
    named = {told(place): told(name) for place, name in pairs if isinstance(name, str)}
    return named if len(set(named.values())) == len(named) else {}


# --- tables -------------------------------------------------------------------------------------


class Column(NamedTuple):
    """A column of a table, as far as it matters here."""

    name: str
    image: bool
    names: tuple[str, ...] | None = None  # of the classes that its numbers stand for
    plain: bool = False  # numbers or text


def chosen_columns(columns: list[Column], spec: ReadSpec) -> tuple[Column, Column]:
    """The column of the pictures and that of the labels; `UserError` where they cannot be told."""
    by = {c.name: c for c in columns}
    found = f"columns {', '.join(by) or 'none'}"

    def one(kind: str, option: str, asked: str, some: list[Column], names: Sequence[str]) -> Column:
        if asked and asked not in by:
            raise UserError(
                found=f"no column {asked!r} among the {found}",
                wanted=f"the column of the {kind}",
                next_step=f"choose one with {option}",
            )
        usual = [by[n] for n in names if n in by and by[n] in some]
        pick = [by[asked]] if asked else some if len(some) == 1 else usual[:1]
        if not pick:
            raise UserError(
                found=f"{found}, {'several' if some else 'none'} of which could hold {kind}",
                wanted=f"one column of {kind}",
                next_step=f"choose it with {option}" if some else "check the table's columns",
            )
        return pick[0]

    images = [c for c in columns if c.image]
    image = one("images", "--image-column", spec.image_column, images, IMAGE_NAMES)
    named = [c for c in columns if c.names]
    rest = [c for c in columns if c.plain and c.name in LABEL_NAMES]
    label = one("labels", "--label-column", spec.label_column, named or rest, LABEL_NAMES)
    return image, label


def label_of(value: Any, names: tuple[str, ...] | None, where: str) -> str | None:
    """A label as its class's name; None for none. Raises `UserError` for one out of range."""
    if value is None or value == "" or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool | str) and (names is None or told(str(value)) in names):
        return told(str(value))
    if not isinstance(value, int | np.integer) or value < -1 or (names and value >= len(names)):
        wanted = (
            f"from 0 to {len(names) - 1}, or -1 for none" if names else "a whole number or text"
        )
        raise UserError(
            found=f"label {repr(value)[:80]} in {where}",
            wanted=wanted,
            next_step="mend the labels",
        )
    if value == -1:
        return None
    return names[int(value)] if names else str(int(value))


def parquet(place: Path, files: list[Path], spec: ReadSpec) -> Source:
    """Parquet with encoded images in Hugging Face's layout, in one file or in shards."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    base = place if place.is_dir() else place.parent
    relative = {f: told(f.relative_to(base).as_posix()) for f in files}
    word = {f: (SPLIT.findall(relative[f].lower()) or [""])[-1] for f in files}
    chosen, notes = halves(set(word.values()), "the files of")
    if chosen:
        files = [f for f in files if word[f] in chosen]
    elif any(word[f] for f in files) and len(files) > 1:
        raise UserError(
            found=f"only {', '.join(sorted({w for w in word.values() if w}))} in {place.name!r}",
            wanted="Parquet files to train on, as in train-00000-of-00001.parquet",
            next_step="add them, or give the one file to --data to split it",
        )

    def opened_file(path: Path) -> Any:
        try:
            return pq.ParquetFile(real(path, base))
        except (Aside, pa.ArrowException, OSError, ValueError) as error:
            raise UserError(
                found=f"{relative[path]} cannot be read as Parquet ({said(error)})",
                wanted="a whole Parquet file",
                next_step="fetch or write it again",
            ) from error

    with opened_file(next((f for f in files if chosen.get(word[f]) != "test"), files[0])) as first:
        schema = first.schema_arrow
    columns = arrow_columns(schema)
    image, label = chosen_columns(columns, spec)
    bare = [name for name in schema.names if name != label.name]  # as test files may be
    unlabelled = set()
    count = 0
    for path in files:
        with opened_file(path) as file:
            count += file.metadata.num_rows
            if file.schema_arrow.names == bare and chosen.get(word[path]) == "test":
                unlabelled.add(path)
            elif file.schema_arrow.names != schema.names:
                raise UserError(
                    found=f"{relative[path]} with columns {', '.join(file.schema_arrow.names)}",
                    wanted=f"those of {relative[files[0]]}: {', '.join(schema.names)}",
                    next_step="leave out what does not belong to the data set",
                )

    def rows(path: Path, columns: list[str], some: int) -> Iterator[dict[str, Any]]:
        """The rows of a file, so many in memory at once."""
        row = 0
        with opened_file(path) as file:
            batches = file.iter_batches(some, columns=columns)
            while True:
                try:
                    found = [dict(one) for one in next(batches).to_pylist()]
                    if found and not set(columns) <= set(found[0]):
                        raise ValueError("columns by other names than its schema's")
                except StopIteration:
                    return
                except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
                    raise UserError(
                        found=f"{relative[path]} is damaged after row {row} ({said(error)})",
                        wanted="a whole Parquet file",
                        next_step="fetch or write it again",
                    ) from error
                yield from found
                row += len(found)

    told_split = "split" in schema.names and not chosen
    wanted = [image.name, label.name, *(["split"] if told_split else [])]
    if told_split:
        named = {half_of(one) for path in files for one in rows(path, ["split"], 2**12)}
        chosen, notes = halves(named, "the rows of")

    def entries() -> Iterator[Entry]:
        for path in files:
            there = [n for n in wanted if n != label.name or path not in unlabelled]
            for row, one in enumerate(rows(path, there, BATCH)):
                where = f"{relative[path]}:{row}"
                half = half_of(one) if told_split else word[path]
                if chosen and half not in chosen:
                    continue
                yield Entry(
                    chosen.get(half, ""),
                    stored_path(one[image.name]) or where,
                    label_of(one.get(label.name), label.names, where),
                    partial(stored, one[image.name]),
                    held(one[image.name]),
                )

    return Source(
        told(place.stem if place.is_file() else place.name), "Parquet", str(place), count, entries,
        stamps(files), label.names, notes,
    )  # fmt: skip


def half_of(row: dict[str, Any]) -> str:
    """What the column ``split`` says."""
    return str(row["split"] or "")


def arrow_columns(schema: Any) -> list[Column]:
    """What the columns of an Arrow schema are for; Hugging Face's notes in it are believed."""
    import pyarrow as pa

    try:
        notes = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = dict(notes.get("info", {}).get("features", {}))
    except (ValueError, AttributeError, TypeError, RecursionError):
        features = {}
    types = pa.types
    found = []
    for field in schema:
        kind, feature = field.type, features.get(field.name)
        feature = feature if isinstance(feature, dict) else {}
        fields = (
            {kind.field(i).name for i in range(kind.num_fields)} if types.is_struct(kind) else ()
        )
        names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
        plain = (
            types.is_string, types.is_large_string, types.is_dictionary, types.is_integer,
            types.is_floating, types.is_boolean,
        )  # fmt: skip
        found.append(
            Column(
                field.name,
                "bytes" in fields or types.is_binary(kind) or types.is_large_binary(kind),
                tuple(told(str(n)) for n in names) if names and isinstance(names, list) else None,
                any(is_kind(kind) for is_kind in plain),
            )
        )
    return found


def stored(value: Any) -> bytes:
    """The bytes of an image's cell."""
    found = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(found, bytes):
        return found
    raise Aside("no picture in its cell" if value is None else "a path but no picture in its cell")


def held(value: Any) -> int:
    """The bytes that an image's cell has in memory."""
    found = value.get("bytes") if isinstance(value, dict) else value
    return len(found) if isinstance(found, bytes) else 0


def stored_path(value: Any) -> str:
    """Where a cell's image came from."""
    found = value.get("path") if isinstance(value, dict) else None
    return told(found.replace("\\", "/")) if isinstance(found, str) else ""


def manifest(path: Path, spec: ReadSpec) -> Source:
    """A CSV of paths, relative to its folder, and labels; a column ``split`` if it likes."""
    root = path.parent
    try:
        text = content(path, root).decode("utf-8-sig")
        comma = "\t" if path.suffix.lower() == ".tsv" else ","
        if comma not in text.partition("\n")[0] and ";" in text.partition("\n")[0]:
            comma = ";"
        table = csv.DictReader(StringIO(text, newline=""), delimiter=comma, restval="")
        header = [str(n).strip() for n in table.fieldnames or ()]
        table.fieldnames = header
        rows = [dict(row) for row in table]
    except (Aside, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            found=f"{path.name} cannot be read as CSV ({said(error)})",
            wanted="UTF-8 text with columns path and label",
            next_step="write it again",
        ) from error
    columns = [Column(n, n.lower() in PATH_NAMES or n == spec.image_column, None, True)
               for n in header]  # fmt: skip
    by_label = [c._replace(image=False) if c.name == spec.label_column else c for c in columns]
    image, label = chosen_columns(by_label, spec)
    named = [str(row.get("split") or "").strip() for row in rows]
    chosen, notes = halves(set(named), "the rows of")
    kept = [(r, n) for r, n in zip(rows, named, strict=True) if not chosen or n in chosen]

    def entry(row: dict[str, Any], split: str) -> Entry:
        written = told(str(row[image.name] or "").strip().replace("\\", "/"))
        value = str(row[label.name] or "").strip() or None
        given = str(row[image.name] or "").strip()
        outside = Path(given).is_absolute() or ".." in Path(given).parts
        if not given:
            read: Callable[[], bytes] = partial(refuse, "a row without a path")
        elif outside and not spec.anywhere:
            read = partial(refuse, "outside of the manifest's folder (--anywhere allows it)")
        else:
            read = partial(content, root / given, None if spec.anywhere else root)
        return Entry(chosen.get(split, ""), written, told(value) if value else None, read)

    def entries() -> Iterator[Entry]:
        for row, split in kept:
            yield entry(row, split)

    files = [root / str(row[image.name]).strip() for row, _ in kept if row[image.name]]
    return Source(
        told(path.stem), "a manifest of paths", str(path), len(kept), entries,
        stamps([path, *files]), notes=notes,
    )  # fmt: skip


# --- MNIST's files ------------------------------------------------------------------------------


def idx(root: Path, files: list[Path]) -> Source:
    """MNIST's own files, train and t10k, plain or gzipped."""
    by: dict[tuple[str, str], Path] = {}
    for path in sorted(files, key=lambda p: p.suffix != ".gz"):  # plain ones win
        try:
            real(path, root)
        except Aside as reason:
            raise UserError(
                found=f"{path.name} is {reason}",
                wanted="a file of the folder",
                next_step="copy the file itself there",
            ) from None
        found = IDX.fullmatch(path.name)
        assert found
        by["train" if found[1] == "train" else "test", found[2]] = path
    missing = [f"train {part}" for part in ("images", "labels") if ("train", part) not in by]
    if missing:
        raise UserError(
            found=f"no {' and no '.join(missing)} among {', '.join(p.name for p in files)}",
            wanted="train-images-idx3-ubyte and train-labels-idx1-ubyte",
            next_step="add them to the folder",
        )
    splits = [s for s in ("train", "test") if (s, "images") in by and (s, "labels") in by]
    labels = {s: idx_labels(by[s, "labels"]) for s in splits}
    count = 0
    for s in splits:
        with idx_file(by[s, "images"]) as (shape, _):
            if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] != 3):
                raise bad_idx(by[s, "images"], f"dimensions {shape}")
            if shape[0] != len(labels[s]):
                raise UserError(
                    found=f"{shape[0]} images and {len(labels[s])} labels for {s}",
                    wanted="a label for each image",
                    next_step="fetch the files again",
                )
            count += shape[0]

    def entries() -> Iterator[Entry]:
        for s in splits:
            with idx_file(by[s, "images"]) as (shape, file):
                one = math.prod(shape[1:])
                for row in range(shape[0]):
                    read = file.read(one)
                    if len(read) != one:
                        raise bad_idx(by[s, "images"], f"the end of the file after {row} images")
                    pixels = np.frombuffer(read, np.uint8).reshape(shape[1:])
                    label = str(int(labels[s][row]))
                    yield Entry(s, f"{s}/{row:06d}", label, partial(np.array, pixels))

    return Source(told(root.name), "MNIST's files", str(root), count, entries, stamps(by.values()))


class idx_file:
    """An IDX file, opened after its header: its dimensions and the rest. Raises `UserError`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> tuple[tuple[int, ...], "idx_file"]:
        path = self.path
        self.raw = path.open("rb")
        try:
            zipped = path.suffix == ".gz"
            self.file: Any = gzip.open(self.raw) if zipped else self.raw
            magic = self.file.read(4)
            if len(magic) < 4 or magic[:3] != b"\0\0\x08" or not 1 <= magic[3] <= 4:
                raise bad_idx(path, f"a beginning of {magic!r}")
            sides = self.file.read(4 * magic[3])
            if len(sides) != 4 * magic[3]:
                raise bad_idx(path, "the end of the file in its header")
            shape = tuple(np.frombuffer(sides, ">u4").tolist())
            size = math.prod(shape)
            there = path.stat().st_size - 4 - 4 * len(shape)
            most = max(SMALL, RATIO * there) if zipped else there
            if shape[0] > MOST or any(s > DEEPEST for s in shape[1:]) or size > most:
                raise bad_idx(path, f"a header of {' x '.join(map(str, shape))} bytes")
        except (OSError, EOFError, zlib.error) as error:
            self.raw.close()
            raise bad_idx(path, said(error)) from error
        except UserError:
            self.raw.close()
            raise
        return shape, self

    def read(self, count: int) -> bytes:
        try:
            return self.file.read(count)
        except (OSError, EOFError, zlib.error) as error:
            raise bad_idx(self.path, said(error)) from error

    def __exit__(self, *_: object) -> None:
        self.raw.close()


def idx_labels(path: Path) -> np.ndarray:
    with idx_file(path) as (shape, file):
        read = file.read(shape[0]) if len(shape) == 1 else b""
        if len(shape) != 1 or len(read) != shape[0]:
            raise bad_idx(path, f"{len(read)} labels")
        return np.frombuffer(read, np.uint8)


def bad_idx(path: Path, found: str) -> UserError:
    return UserError(
        found=f"{path.name} has {found}",
        wanted="MNIST's format, a header of 0, 0, 8 and the dimensions, then as many bytes",
        next_step="fetch the file again",
    )


# --- libraries' data sets -----------------------------------------------------------------------


def hub(name: str, spec: ReadSpec) -> Source:
    """A data set by the name, or folder, that Hugging Face's `datasets` loads."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # before it is imported
    try:
        import datasets
    except ImportError:
        raise UserError(
            found="no library `datasets`, which hf: needs",
            wanted="that library",
            next_step="install it with `pip install datasets`",
        ) from None
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # of the network, of the files, of the name
        raise UserError(
            found=f"hf:{name} cannot be loaded ({said(error)})",
            wanted="the name of a data set that `datasets.load_dataset` loads by itself",
            next_step="check the name, and the network where it is not on this machine",
        ) from error
    chosen, notes = halves(set(loaded), "the splits")
    if not chosen:
        chosen = {next(iter(loaded)): ""}
    features = loaded[next(iter(chosen))].features
    columns = [
        Column(
            key,
            isinstance(feature, datasets.Image),
            tuple(map(told, feature.names)) if isinstance(feature, datasets.ClassLabel) else None,
            isinstance(feature, datasets.Value),
        )
        for key, feature in features.items()
    ]
    image, label = chosen_columns(columns, spec)
    encoded = datasets.Image(decode=False)
    parts = {}
    for s, half in chosen.items():
        there = loaded[s].column_names
        wanted = [n for n in (image.name, label.name) if n in there or half != "test"]
        parts[s] = loaded[s].select_columns(wanted).cast_column(image.name, encoded)

    def read(cell: dict[str, Any] | None) -> bytes:
        if cell and cell["bytes"] is None and cell["path"]:
            return content(Path(cell["path"]), None)  # `datasets` found it there
        return stored(cell)

    def entries() -> Iterator[Entry]:
        for s, part in parts.items():
            for row, one in enumerate(part):
                where = f"{s}:{row}"
                cell = one[image.name]
                path = stored_path(cell)  # from the root on where `datasets` read a folder
                yield Entry(
                    chosen[s],
                    (Path(path).name if Path(path).is_absolute() else path) or where,
                    label_of(one.get(label.name), label.names, where),
                    partial(read, cell),
                )

    stamp = [(s, part._fingerprint, len(part)) for s, part in parts.items()]
    shown = name.rstrip("/").rpartition("/")[2]
    count = sum(map(len, parts.values()))
    return Source(shown, "Hugging Face", f"hf:{name}", count, entries, stamp, label.names, notes)


def torchvision_set(name: str, root: Path) -> Source:
    """A data set of torchvision by its class's name; downloaded where it is not in `root`."""
    import torchvision

    make: Any = getattr(torchvision.datasets, name, None)
    known = name in torchvision.datasets.__all__ and inspect.isclass(make)
    takes: Any = inspect.signature(make).parameters if known else {}
    if "train" in takes:
        halving: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
    elif "split" in takes and "root" in takes:
        halving = {"train": {"split": "train"}, "test": {"split": "test"}}
    else:
        raise UserError(
            found=f"no data set {name!r} with a train and a test half in torchvision",
            wanted="one like torchvision:CIFAR10 or torchvision:FashionMNIST",
            next_step="choose one with --data",
        )
    download = {"download": True} if "download" in takes else {}
    try:
        halves_of = {s: make(root=str(root), **how, **download) for s, how in halving.items()}
    except Exception as error:  # of the network, of the files, of its arguments
        raise UserError(
            found=f"torchvision:{name} cannot be loaded ({said(error)})",
            wanted=f"its files in {root}, or a network to fetch them",
            next_step="check the network, or name the folder that has them with --root",
        ) from error
    classes = getattr(halves_of["train"], "classes", None) or [0]
    names = tuple(map(told, classes)) if all(isinstance(c, str) for c in classes) else None

    def pixels(picture: Any) -> bytes | np.ndarray:
        if picture.mode in ("L", "RGB"):
            return np.array(picture)
        buffer = BytesIO()
        picture.save(buffer, "PNG")
        return buffer.getvalue()

    def entries() -> Iterator[Entry]:
        for s, part in halves_of.items():
            for row in range(len(part)):
                picture, label = part[row]
                where = f"{s}/{row:06d}"
                yield Entry(s, where, label_of(label, names, where), partial(pixels, picture))

    count = sum(map(len, halves_of.values()))
    return Source(name, "torchvision", f"torchvision:{name}", count, entries, [], names)
