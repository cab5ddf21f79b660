"""A person's own pictures to a data set of the cache: `Engine.read`, `python -m attribution data`.

    source -> each picture once, to a scratch file -> halves, classes, ids -> artifact `pixels`

The artifact is named by what was read (the content, path and class of each picture, and the size),
not by where it was: a folder that was moved, listed in another order or copied to another machine
is the same data set, and one whose pictures are gone still opens. An artifact ``reading`` remembers
for a path what was read there, so that unchanged files are not read again.

The order of the images is that of their contents' hashes, which no listing can change.
"""

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, BinaryIO

import numpy as np

from . import twins
from .data import DATASETS, Dataset, was_read
from .pictures import Aside, grey, squared, taken
from .records import DataSpec, ReadSpec, Report, UserError, content_id, silent, within
from .sources import LONGEST, Entry, Source, opened
from .store import Artifact, Draft, Store, is_id, writable

RULES = 1  # how pictures become pixels; part of the ids
KEPT = 2  # which pictures are kept; what was read by another rule is read again
NO_CLASS = ("unlabelled", "unlabeled", "unknown", "none")  # a test folder so called is no class
SMALLEST, LARGEST = 8, 64  # sides that are chosen where nobody says
WORKERS = min(4, os.cpu_count() or 1)  # threads; Pillow lets them run side by side
CHUNK = 64  # pictures in memory at once
HELD = 2**28  # bytes of them, before they are decoded; the one that is more is the last


@dataclass(frozen=True)
class Seen:
    """A picture that could be read."""

    split: str
    path: str
    label: str  # "" for none, which a test picture may have
    digest: str  # of its content
    at: int  # where its pixels lie in the scratch file
    sides: tuple[int, int]  # of those pixels: height, width
    was: tuple[int, int]  # width and height of the picture
    grey: bool

    @property
    def order(self) -> tuple[str, str, str]:
        return self.digest, self.path, self.label


@dataclass(frozen=True)
class Left:
    """A picture that was set aside."""

    path: str
    reason: str


def read(
    store: Store, text: str, spec: ReadSpec | None = None, report: Report = silent
) -> DataSpec:
    """The data set that `text` names, read into the cache unless it is there.

    A name of `DATASETS`, the id of what was read before, or what `sources.opened` takes. Raises
    `UserError` for what holds no data set.
    """
    return looked_at(store, text, spec or ReadSpec(), report)[0]


def looked_at(
    store: Store, text: str, spec: ReadSpec, report: Report = silent
) -> tuple[DataSpec, Artifact | None]:
    """What `read` gives, and the artifact ``reading`` where files were looked at."""
    check(spec)
    if text in DATASETS:
        return DataSpec(name=text), None
    source = opened(text, spec, store.root / "downloads")
    known = store.find("pixels", text) if source is None and is_id(text) else None
    if known is not None and "names.json" in known.manifest["files"]:
        return DataSpec(name=known.manifest["made_by"]["name"], pixels=text), None
    if source is None:
        raise UserError(
            found=f"unknown data set {text!r}",
            wanted=f"one of {', '.join(DATASETS)}, hf:NAME, torchvision:NAME, or a folder, "
            ".parquet or .csv that is there",
            next_step="choose one with --data",
        )
    name = content_id("reading", RULES, KEPT, source.place, source.stamp, asdict(spec))
    reading = remembered(store, name) if source.stamp else None
    if reading is None:
        pixels_id, aside = made(store, source, spec, report)

        def fill(draft: Draft) -> None:
            draft.note(pixels=pixels_id, kind=source.kind, notes=source.notes)
            draft.bytes_of("aside.json", json.dumps([asdict(a) for a in aside]).encode())

        if not source.stamp:
            name = content_id("reading", RULES, KEPT, source.place, pixels_id)
        reading = store.make("reading", name, fill, {"place": source.place, **asdict(spec)})
    return DataSpec(name=source.name, pixels=reading.manifest["pixels"]), reading


def remembered(store: Store, name: str) -> Artifact | None:
    """What was read of files like these before, if the images are still there."""
    found = store.find("reading", name) if store.has("reading", name) else None
    return found if found and store.has("pixels", found.manifest["pixels"]) else None


def check(spec: ReadSpec) -> None:
    """Raise `UserError` for settings that make no sense."""
    limits: list[tuple[str, float, float, float]] = [
        ("--test-share", spec.test_share, 0.01, 0.9),
        ("--split-seed", spec.split_seed, 0, 1e9),
    ]
    if spec.size:
        limits.append(("--size", spec.size, SMALLEST, 512))
    within(limits)


def made(store: Store, source: Source, spec: ReadSpec, report: Report) -> tuple[str, list[Left]]:
    """The id of the artifact ``pixels`` of a source, and what was set aside."""
    with store.scratch() as scratch:
        seen, aside = pictures(store, source, spec.size or LARGEST, scratch, report)
        seen, aside = all_or_none(seen, aside)
        if not seen:
            raise nothing(source, aside)
        train, test = split(source, seen, spec)
        classes = classes_of(source, train, test)
        size = spec.size
        if not size:
            middle = round(float(np.median([max(s.sides) for s in (*train, *test)])))
            size = min(max(middle, SMALLEST), LARGEST)
        listed = {
            half: [[s.digest, s.path, s.label] for s in some]
            for half, some in (("train", train), ("test", test))
        }
        pixels_id = content_id("pixels", RULES, size, classes, listed)
        fill = partial(filled, train, test, aside, classes, size, source.kind, scratch, report)
        made_by = {"name": source.name, "rules": RULES, "size": size}
        store.make("pixels", pixels_id, fill, made_by)
    return pixels_id, aside


def pictures(
    store: Store, source: Source, size: int, scratch: BinaryIO, report: Report
) -> tuple[list[Seen], list[Left]]:
    """Every picture of a source: its pixels to the scratch file, or why it is set aside."""
    seen: list[Seen] = []
    aside: list[Left] = []
    done = 0
    with ThreadPoolExecutor(WORKERS) as pool:
        for chunk in chunks(source.entries()):
            report("read", done, max(source.count, done))
            for entry, found in zip(chunk, pool.map(partial(one, size), chunk), strict=True):
                if isinstance(found, str):
                    aside.append(Left(entry.path, found))
                    continue
                digest, picture = found
                with writable(store.root):
                    at = scratch.seek(0, os.SEEK_END)
                    scratch.write(picture.pixels.tobytes())
                height, width = picture.pixels.shape[:2]
                seen.append(
                    Seen(
                        entry.split, entry.path, entry.label or "", digest, at, (height, width),
                        (picture.width, picture.height), grey(picture.pixels),
                    )
                )  # fmt: skip
            done += len(chunk)
    with writable(store.root):
        scratch.flush()
    report("read", done, done)
    return seen, sorted(aside, key=lambda a: (a.path, a.reason))


def chunks(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    """Some after the others, by number and by what they hold in memory."""
    chunk: list[Entry] = []
    for entry in entries:
        chunk.append(entry)
        if len(chunk) == CHUNK or sum(e.held for e in chunk) > HELD:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def one(size: int, entry: Entry) -> Any:
    """Digest and `Picture` of an entry, or the reason why it is set aside."""
    try:
        content = entry.read()
        if entry.label is None and entry.split != "test":
            raise Aside("no label")
        if isinstance(content, np.ndarray):
            raw = f"{content.shape}".encode() + np.ascontiguousarray(content).tobytes()
        else:
            raw = content
        return hashlib.blake2b(raw, digest_size=8).hexdigest(), taken(content, size)
    except Aside as reason:
        return str(reason)


def all_or_none(seen: list[Seen], aside: list[Left]) -> tuple[list[Seen], list[Left]]:
    """Either all test pictures have labels, or none has.

    Where only some have none, these are set aside: accuracy would be that of the rest.
    """
    classes = {s.label for s in seen if s.split != "test"}
    named = {s.label for s in seen if s.split == "test"} - {""}
    if all(name.lower() in NO_CLASS and name not in classes for name in named):
        return [replace(s, label="") if s.split == "test" else s for s in seen], aside
    aside = [*aside, *(Left(s.path, "no label") for s in seen if not s.label)]
    return [s for s in seen if s.label], sorted(aside, key=lambda a: (a.path, a.reason))


def nothing(source: Source, aside: list[Left]) -> UserError:
    if not aside:
        return UserError(
            found=f"no pictures in {source.name!r}",
            wanted="pictures with labels",
            next_step="check what was given to --data",
        )
    reason, count = Counter(a.reason for a in aside).most_common(1)[0]
    return UserError(
        found=f"none of the {len(aside)} pictures in {source.name!r} can be used "
        f"({count} of them: {reason})",
        wanted="pictures that can be read, with labels",
        next_step="mend them, or choose another --data",
    )


def split(source: Source, seen: list[Seen], spec: ReadSpec) -> tuple[list[Seen], list[Seen]]:
    """The training and the test half, each in the order of contents.

    Where the source has no test half, the share of each class whose hashes with the seed are the
    least is for testing. Equal files stay together, so that this makes no leak.
    """
    train = [s for s in seen if s.split != "test"]
    test = [s for s in seen if s.split == "test"]
    if not train:
        raise UserError(
            found=f"no image to train on in {source.name!r}",
            wanted="images in a train half",
            next_step="add them, or give another --data",
        )
    if not test:
        by: defaultdict[str, list[Seen]] = defaultdict(list)
        for s in train:
            by[s.label].append(s)
        for some in by.values():
            some.sort(key=lambda s: (drawn(spec.split_seed, s.digest), s.order))
            count = min(max(round(spec.test_share * len(some)), 1), len(some) - 1)
            test += some[:count]
        held = {id(s) for s in test}
        train = [s for s in train if id(s) not in held]
        twice = {s.digest for s in train}
        train += [s for s in test if s.digest in twice]
        test = [s for s in test if s.digest not in twice]
        if not test:
            raise UserError(
                found=f"{len(seen)} images in {source.name!r}, none of which is left to test on",
                wanted="two different images of a class at least",
                next_step="add images",
            )
    return sorted(train, key=lambda s: s.order), sorted(test, key=lambda s: s.order)


def drawn(seed: int, digest: str) -> str:
    return hashlib.blake2b(f"{seed} {digest}".encode(), digest_size=8).hexdigest()


def classes_of(source: Source, train: list[Seen], test: list[Seen]) -> tuple[str, ...]:
    """The classes' names, in the source's order where it has one.

    Else sorted as ImageFolder sorts, so that a network trained by way of it has the same outputs;
    numbers from a table by their value.
    """
    counts = Counter(s.label for s in train)
    alone = Counter(s.label for s in test if s.label and s.label not in counts)
    if alone:
        shown = ", ".join(f"{name!r} ({n} images)" for name, n in sorted(alone.items())[:5])
        raise UserError(
            found=f"classes in test that train lacks: {shown}{', ...' if len(alone) > 5 else ''}",
            wanted="every class of test in train too",
            next_step="add training images of them, or leave them out of test",
        )
    if len(counts) < 2:
        raise UserError(
            found=f"one class only, {next(iter(counts))!r}",
            wanted="images of two classes at least",
            next_step="add another class",
        )
    if any(len(name) > LONGEST for name in source.classes or counts):
        raise UserError(
            found=f"a class in {source.name!r} whose name has more than {LONGEST} characters",
            wanted="names, not texts",
            next_step="check which column holds the labels",
        )
    if source.classes:
        return source.classes
    numbers = source.kind != "a folder of pictures" and all(c.isdecimal() for c in counts)
    return tuple(sorted(counts, key=(lambda c: (int(c), c)) if numbers else None))


def filled(
    train: list[Seen],
    test: list[Seen],
    aside: list[Left],
    classes: tuple[str, ...],
    size: int,
    kind: str,
    scratch: BinaryIO,
    report: Report,
    draft: Draft,
) -> None:
    """The artifact ``pixels``, a picture at a time."""
    all_grey = all(s.grey for s in (*train, *test))
    number = {name: c for c, name in enumerate(classes)}
    names: dict[str, Any] = {}
    halves: dict[str, np.ndarray] = {}
    total = len(train) + len(test)
    for half, some in (("train", train), ("test", test)):
        shape = (len(some), size, size) if all_grey else (len(some), size, size, 3)
        images = draft.empty(f"{half}_images", shape, np.uint8)
        for j, s in enumerate(some):
            if j % 1000 == 0:
                report("resize", j + (half == "test") * len(train), total)
            scratch.seek(s.at)
            height, width = s.sides
            pixels = np.frombuffer(scratch.read(height * width * 3), np.uint8)
            square = squared(pixels.reshape(height, width, 3), size)
            images[j] = square[..., 0] if all_grey else square
        labels = [number[s.label] if s.label else -1 for s in some]
        draft.array(f"{half}_labels", np.array(labels, np.int64))
        names[half] = {"ids": list(ids(some)), "paths": [s.path for s in some]}
        halves[half] = images
    report("resize", total, total)
    draft.array("classes", np.array(classes))
    draft.bytes_of("names.json", json.dumps(names).encode())
    draft.bytes_of("aside.json", json.dumps([asdict(a) for a in aside]).encode())
    report("twins", 0, 2)
    found = {
        "leaks": twins.across(
            halves["test"], halves["train"], names["test"]["ids"], names["train"]["ids"]
        )
    }
    report("twins", 1, 2)
    found["repeats"] = twins.within(halves["train"], names["train"]["ids"])
    report("twins", 2, 2)
    for name, pairs in found.items():
        draft.array(name, pairs.pairs_P2)
        draft.array(f"{name}_alike", pairs.alike_P)
    widths, heights = zip(*(s.was for s in (*train, *test)), strict=True)
    middle = [int(np.median(widths)), int(np.median(heights))]
    draft.note(
        kind=kind,
        sides={"least": [min(widths), min(heights)], "median": middle,
               "most": [max(widths), max(heights)]},
        near=max(len(train), len(test)) <= twins.MOST,
    )  # fmt: skip


def ids(some: list[Seen]) -> Iterator[str]:
    """Hash of the content, of the path, and an ordinal where both are the same, as in ``3f0a-9c``.

    So an example is known again in another folder, among others, and at another size.
    """
    seen: Counter[str] = Counter()
    for s in some:
        path = hashlib.blake2b(s.path.encode("utf-8", "replace"), digest_size=3).hexdigest()
        name = f"{s.digest}-{path}"
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name}-{seen[name] - 1}"


def described(
    store: Store, text: str, spec: ReadSpec | None = None, report: Report = silent
) -> dict[str, Any]:
    """What a person should know of a data set before building on it."""
    data, reading = looked_at(store, text, spec or ReadSpec(), report)
    if not data.pixels:
        raise UserError(
            found=f"{text!r}, which comes with the program",
            wanted="files of your own to describe",
            next_step="give the path of a folder, .parquet or .csv",
        )
    found = was_read(store, data)
    classes = [str(c) for c in found.array("classes")]
    labels = {half: found.array(f"{half}_labels") for half in ("train", "test")}
    counts = {
        half: np.bincount(y[y >= 0], minlength=len(classes)).tolist() for half, y in labels.items()
    }
    labelled = bool((labels["test"] >= 0).all())
    paths = {half: names["paths"] for half, names in names_of(found).items()}
    aside = json.loads((reading or found).bytes_of("aside.json"))
    shape = found.array("train_images", memory_map=True).shape
    repeats = found.array("repeats")
    return {
        "data": data.pixels,
        "name": data.name,
        "kind": (reading or found).manifest["kind"],
        "classes": {
            name: {"train": counts["train"][c], "test": counts["test"][c]}
            for c, name in enumerate(classes)
        },
        "train": len(labels["train"]),
        "test": len(labels["test"]),
        "labelled": labelled,
        "size": shape[1],
        "channels": shape[3] if len(shape) == 4 else 1,
        "sides": found.manifest["sides"],
        "notes": list(reading.manifest["notes"]) if reading else [],
        "aside": aside,
        "near": found.manifest["near"],
        "leaks": [
            {
                "test": paths["test"][t],
                "train": paths["train"][i],
                "alike": round(float(alike), 3),
                "same_label": bool(labels["test"][t] == labels["train"][i]) if labelled else None,
            }
            for (t, i), alike in zip(found.array("leaks"), found.array("leaks_alike"), strict=True)
        ],
        "clashes": [
            {
                "first": paths["train"][i],
                "second": paths["train"][j],
                "labels": [classes[labels["train"][i]], classes[labels["train"][j]]],
                "alike": round(alike, 3),
            }
            for i, j, alike in clashes(found)
        ],
        "repeats": int((labels["train"][repeats[:, 0]] == labels["train"][repeats[:, 1]]).sum()),
    }


@dataclass(frozen=True)
class Findings:
    """What reading a person's own files had to say, by positions in a data set."""

    aside: tuple[Left, ...]
    leaks: tuple[tuple[int, int, float], ...]  # test, train, how alike (1: the same file)
    clashes: tuple[tuple[int, int, float], ...]  # train, train


def findings(store: Store, data: Dataset) -> Findings | None:
    """`Findings` on a data set, less what a revision has dropped or mended; None for others."""
    if not data.spec.pixels:
        return None
    pixels = was_read(store, data.spec)
    at = {name: i for i, name in enumerate(data.train.ids)}
    now = [at.get(name) for name in names_of(pixels)["train"]["ids"]]
    leaks = zip(pixels.array("leaks").tolist(), pixels.array("leaks_alike"), strict=True)
    pairs = ((now[i], now[j], alike) for i, j, alike in clashes(pixels))
    labels_N = data.train.labels_N
    return Findings(
        tuple(Left(**one) for one in json.loads(pixels.bytes_of("aside.json"))),
        tuple((t, n, float(a)) for (t, i), a in leaks if (n := now[i]) is not None),
        tuple(
            (i, j, a)
            for i, j, a in pairs
            if i is not None and j is not None and labels_N[i] != labels_N[j]
        ),
    )


def names_of(pixels: Artifact) -> dict[str, dict[str, list[str]]]:
    """Ids and paths of what was read, by half."""
    return json.loads(pixels.bytes_of("names.json"))


def clashes(pixels: Artifact) -> list[tuple[int, int, float]]:
    """Pairs of training images that are the same under two labels: one of the labels is wrong."""
    labels_N = pixels.array("train_labels")
    pairs = zip(pixels.array("repeats").tolist(), pixels.array("repeats_alike"), strict=True)
    return [
        (i, j, float(alike))
        for (i, j), alike in pairs
        if labels_N[i] != labels_N[j] and alike >= twins.SURE
    ]
