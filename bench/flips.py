"""Bytes of artifacts changed at random, then read as the app reads them: noticed and named, or not.

A cache of some hundred digits that has every kind of artifact. For each kind of file, what the
engine is asked for and what of it opens such a file is found by watching; then a byte of one is
changed, and an engine that has read nothing yet is asked the same. "Made again" is what is made
anew from what it came from; "passed over" is what a list leaves out, and doctor names. At last
one file of each kind is damaged, doctor repairs, the commands are given again, and what is
there must be what was there. The log of decisions and the names of builds are changed as well.
"""

import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attribution.brittleness import BrittlenessSpec
from attribution.build import MapSpec
from attribution.data import dataset
from attribution.doctor import artifacts
from attribution.engine import Engine
from attribution.notes import Note
from attribution.records import BuildSpec, ReadSpec, UserError, silent
from attribution.store import Store

from .rows import Options, Row, row
from .small import TINY, answered, drawn, in_order

FLIPS = 1220
LOG = 100  # of them, each in the decisions and in the names of builds
OUTCOMES = ("named", "made again", "passed over", "the same though changed", "silent", "traceback")
Ask = Callable[[Engine], object]


@dataclass(frozen=True)
class World:
    """A cache with all kinds of artifacts, and what an engine is asked for in it."""

    root: Path
    asks: dict[str, Ask]
    makes: tuple[tuple[str | Path, ...], ...]  # commands that made it


def measure(options: Options) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve() / "world"
        world = made(root)
        whole = shutil.copytree(root, root.with_name("whole"))
        draw = np.random.default_rng(options.seed)
        opened = {name: watched(world, whole, ask) for name, ask in world.asks.items()}
        groups = grouped(opened)
        each = -(-(options.times(FLIPS) - 2 * LOG) // len(groups))
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for group, files in groups.items():
            for _ in range(each):
                file, name = files[draw.integers(len(files))]
                found[group][flipped(world, whole, name, file, draw, opened[name].answer)] += 1
        for log in ("decisions.sqlite", "notes.sqlite"):
            for _ in range(LOG):
                found[log][flipped(world, whole, log, root / log, draw, opened[log].answer)] += 1
        unread = unopened(root, groups)
        again = rebuilt(world, groups, draw)
    return rows(found, unread, again)


def rows(found: dict[str, Counter[str]], unread: list[str], again: tuple[int, int]) -> list[Row]:
    logs = {name: found.pop(name) for name in ("decisions.sqlite", "notes.sqlite")}
    every = sum(found.values(), Counter())
    bad = {g: c for g, c in found.items() if c["silent"] or c["traceback"]}
    for group, counts in {**bad, **logs}.items():
        print(f"{group}: {dict(counts)}", file=sys.stderr)
    told = [row("bytes of artifacts changed", every.total(), "", at_least=FLIPS - 2 * LOG)]
    for outcome in OUTCOMES:
        bound = 0 if outcome in ("silent", "traceback") else None
        told.append(row(f"of these {outcome}", every[outcome], "", at_most=bound))
    told += [
        row("kinds of files", len(found), ""),
        row("files that nothing asked for", len(unread), "", at_most=0),
        row("damaged artifacts that doctor removed", again[0], ""),
        row("files that were not the same when made again", again[1], "", at_most=0),
    ]
    for file, counts in logs.items():
        told.append(row(f"bytes of {file} changed", counts.total(), ""))
        told.append(row("of these noticed", counts["named"], ""))
        told.append(row("of these not used", counts["the same though changed"], ""))
        told.append(row("of these read", counts["silent"] + counts["traceback"], "", at_most=0))
    return told


# --- the cache, and what it is asked for -----------------------------------------------------


def made(root: Path) -> World:
    """Every kind of artifact, by the commands that make them."""
    cache, pictures = root / "cache", root / "pictures"
    drawn(pictures)
    where = ("--cache", cache)
    makes: list[tuple[str | Path, ...]] = []

    def make(*words: str | Path) -> Any:
        makes.append((*words, *where))
        return answered(*makes[-1])

    def build(*words: str | Path) -> str:
        return make("build", *TINY, *words)["build"]

    base = build()
    weights = next(cache.glob("run/*/weights.safetensors"))
    shutil.copy(weights, root / "brought.safetensors")
    others = {
        "adapters": build("--strategy", "lora", "--adapters", "1"),
        "forward": build("--strategy", "forward"),
        "snapshots": build("--strategy", "snapshots", "--snapshots", "2"),
        "code": build("--index", "sq4", "--seed", "3"),
        "given": build("--checkpoint", root / "brought.safetensors", "--models", "1"),
    }
    own = make("build", *TINY[4:], "--data", pictures)["build"]
    for words in (
        ("folds", base),  # first, because the evaluation tells what it finds with them
        ("truth", base, "--subsets", "8", "--seeds", "1"),
        ("evaluate", base),
        ("verify", base, "3", "--top", "20", "--seeds", "5"),
        ("brittleness", base, "--tests", "2", "--most", "20", "--step", "10"),
        ("tune", base),
        ("map", base),
    ):
        make(*words)
    engine = Engine(cache, root)
    opened = engine.open(base)
    for n in range(LOG):
        engine.decisions.decide(
            opened.data_id, opened.train_ids[n], "relabel", label=n % 10, reviewer="ada"
        )
        engine.notes.say(base, Note(f"name {n}", "a note"))
    others["revised"] = make("apply", base, "--workspace", root)["build"]
    return World(root, asks(root, base, opened.data_id, {**others, "own": own}), tuple(makes))


def asks(root: Path, base: str, data_id: str, others: dict[str, str]) -> dict[str, Ask]:
    """What an engine is asked, each of a fresh one; the names of files are asks of those."""

    def answers(build_id: str) -> Ask:
        def ask(engine: Engine) -> object:
            build = engine.open(build_id)
            fresh = next(
                str(c)
                for c in range(10)
                if c not in (build.class_of(3, "label"), build.predicted_T[3])
            )
            shown = build.image("train", 5), build.query(3, 5), build.query(3, 5, fresh)
            return (*shown, build.mislabels(), build.known(), build.scores(), build.probs_TC)

        return ask

    def again(kind: str, of: str, then: Callable[[Engine, BuildSpec], object]) -> Ask:
        """`then`, once what it makes from other artifacts is gone."""

        def ask(engine: Engine) -> object:
            spec = engine.open(of).spec
            for place in sorted((engine.cache / kind).iterdir()):
                shutil.rmtree(place)
            then(engine, spec)
            return sorted(digest(p) for p in (engine.cache / kind).glob("*/*.npy"))

        return ask

    def labels(engine: Engine, spec: BuildSpec) -> np.ndarray:
        return dataset(engine.store, spec.data).train.labels_N

    def every(engine: Engine) -> object:
        found = engine.compared(base)
        return [{k: v for k, v in one.items() if k not in ("seconds",)} for one in found]

    def verified(engine: Engine, _: BuildSpec | None = None) -> object:
        return engine.verify(base, 3, top(engine), "label", 5)

    def top(engine: Engine) -> list[int]:
        return [hit.train_id for hit in engine.open(base).query(3, 20, "label").proponents]

    def variances(engine: Engine) -> object:
        build = engine.open(base)
        truths = [truth.manifest["id"] for truth in engine.truths(build)]
        return truths and (engine.evaluate(base), engine.variance(base, truths[0])[0])

    def laid_out(engine: Engine) -> object:
        build = engine.open(base)
        found = engine.store.find("map", build._map_id(MapSpec()))
        assert found is not None
        return found.array("xy"), found.manifest["kept"]

    def exact(engine: Engine) -> object:
        build = engine.open(base)
        return build.pull(3, build.class_of(3, "label"))

    def revised(engine: Engine) -> object:
        spec = engine.open(others["revised"]).spec
        return engine.revision(others["revised"]), labels(engine, spec)

    def look(engine: Engine) -> object:
        told = engine.described(str(root / "pictures"), ReadSpec())
        return json.dumps(told, default=str)

    found: dict[str, Ask] = {f"answers of {n}": answers(b) for n, b in others.items()}
    return found | {
        "answers": answers(base),
        "list": lambda e: [b["build"] for b in e.builds()],
        "compare": every,
        "evaluation": variances,
        "verifications": lambda e: e.verifications(base),
        "verify": verified,
        "brittleness": lambda e: e.brittleness(base, BrittlenessSpec(tests=2, most=20, step=10)),
        "tuned": lambda e: e.tune(base),
        "map": laid_out,
        "exact": exact,
        "folds": lambda e: e.folds(base),
        "revision": revised,
        "described": look,
        "truth made again": again("truth", base, lambda e, _: e.truth(base, 8, 1)),
        "folds made again": again("folds", base, lambda e, _: e.folds(base)),
        "verification made again": again("verification", base, verified),
        "data made again": again("data", others["revised"], labels),
        "index made again": again("index", others["forward"], lambda e, spec: e.build(spec)),
        "reading made again": again("reading", others["own"], lambda e, _: look(e)),
        "findings": lambda e: e.open(others["own"]).findings,
        "decisions.sqlite": lambda e: (e.decisions.standing(data_id), e.decisions.counts()),
        "notes.sqlite": lambda e: e.notes.all(),
    }  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """What became of an ask where nothing is changed: the files that it opens, its answer."""

    files: set[str]
    answer: str
    seconds: float


def watched(world: World, whole: Path, ask: Ask) -> Seen:
    """Watch an ask."""
    opened: set[str] = set()
    root, watching = str(world.root / "cache"), True

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if watching and event == "open" and str(args[0]).startswith(root):
            opened.add(str(args[0]))

    sys.addaudithook(hook)
    began = time.perf_counter()
    said = digested(ask(Engine(world.root / "cache", world.root)))
    watching, seconds = False, time.perf_counter() - began
    restore(world, whole)
    there = {str(p) for p in (whole / "cache").glob("*/[0-9a-f]*/*")}
    prefix = str(whole), str(world.root)
    return Seen(opened & {p.replace(*prefix, 1) for p in there}, said, seconds)


def grouped(opened: dict[str, Seen]) -> dict[str, list[tuple[Path, str]]]:
    """For each kind of file, those there are, each with the quickest ask that opens it."""
    quickest: dict[str, str] = {}
    for name in sorted(opened, key=lambda name: opened[name].seconds):
        for file in opened[name].files:
            quickest.setdefault(file, name)
    found: dict[str, list[tuple[Path, str]]] = defaultdict(list)
    for file, name in sorted(quickest.items()):
        found[kind_of(Path(file))].append((Path(file), name))
    return dict(sorted(found.items()))


def unopened(root: Path, groups: Collection[str]) -> list[str]:
    """Kinds of files that no ask opens."""
    files = (p for p in (root / "cache").glob("*/[0-9a-f]*/*") if p.parent.parent.name != "jobs")
    left = sorted({kind_of(p) for p in files} - set(groups))
    for one in left:
        print(f"nothing asked for {one}", file=sys.stderr)
    return left


def kind_of(file: Path) -> str:
    return f"{file.parent.parent.name}/{file.name}"


# --- a byte ------------------------------------------------------------------------------------


def flipped(
    world: World, whole: Path, name: str, file: Path, draw: np.random.Generator, wanted: str
) -> str:
    """Change a byte of a file, ask, and put all back: the outcome, one of `OUTCOMES`."""
    content = file.read_bytes()
    at = int(draw.integers(len(content)))
    changed = bytearray(content)
    changed[at] ^= int(draw.integers(1, 256))
    file.write_bytes(changed)
    try:
        said = digested(world.asks[name](Engine(world.root / "cache", world.root)))
    except UserError as error:
        same = str(file) in error.found or str(file.parent) in error.found
        outcome = "named" if same and error.next_step else "traceback"
    except Exception as error:
        print(f"{name}, {file} at {at}: {type(error).__name__} {error}", file=sys.stderr)
        outcome = "traceback"
    else:
        outcome = quiet(world, file, bytes(changed), content, said == wanted)
        if outcome == "silent":
            print(f"{name}, {file} at {at}: read, {said == wanted}", file=sys.stderr)
    if file.suffix == ".sqlite" or (outcome == "named" and "again" not in name):
        file.write_bytes(content)  # nothing else has changed
    else:
        restore(world, whole)
    return outcome


def quiet(world: World, file: Path, changed: bytes, content: bytes, same: bool) -> str:
    """The outcome where nobody complained."""
    if file.suffix == ".sqlite":
        return "the same though changed" if same else "silent"
    if same and (not file.exists() or file.read_bytes() != changed):
        return "made again"
    if file.name == "manifest.json":
        with contextlib.suppress(ValueError):
            if same and json.loads(changed) == json.loads(content):
                return "the same though changed"  # it was a blank
        try:
            Store(world.root / "cache").check(file.parent.parent.name, file.parent.name)
        except UserError:
            return "passed over"
    return "silent"


def restore(world: World, whole: Path) -> None:
    """All files as they were, without copying those that are."""
    for place in (world.root / "cache").glob("*/*"):
        if not (whole / place.relative_to(world.root)).exists():
            shutil.rmtree(place) if place.is_dir() else place.unlink()
    for source in whole.rglob("*"):
        target = world.root / source.relative_to(whole)
        if source.is_dir():
            target.mkdir(exist_ok=True)
        elif not target.exists() or stamp(target) != stamp(source):
            shutil.copy2(source, target)


def stamp(file: Path) -> tuple[int, int]:
    """What tells a file that was written from its copy."""
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def rebuilt(
    world: World, groups: dict[str, list[tuple[Path, str]]], draw: np.random.Generator
) -> tuple[int, int]:
    """Damage one file of each kind, repair, make again: how many were removed, and differ now."""
    before = contents(world.root)
    for files in groups.values():
        file, _ = files[draw.integers(len(files))]
        changed = bytearray(file.read_bytes())
        changed[len(changed) // 2] ^= 1
        file.write_bytes(changed)
    engine = Engine(world.root / "cache", world.root)
    removed = sum(bool(one.done) for one in artifacts(engine, True, silent))
    in_order(world.makes)
    after = contents(world.root)
    return removed, sum(after.get(name) != found for name, found in before.items())


def contents(root: Path) -> dict[str, str]:
    """Checksums of all files of artifacts but manifests, which tell times."""
    files = (root / "cache").glob("*/[0-9a-f]*/*")
    return {str(p): "" if p.name == "manifest.json" else digest(p) for p in files}


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def digested(answer: object) -> str:
    """A checksum of an answer, whatever it is made of."""
    return hashlib.sha256("\0".join(plain(answer)).encode()).hexdigest()


def plain(answer: object) -> Iterator[str]:
    if isinstance(answer, tuple | list):
        for one in answer:
            yield from plain(one)
    elif isinstance(answer, np.ndarray):
        yield hashlib.sha256(np.ascontiguousarray(answer).tobytes()).hexdigest()
    elif hasattr(answer, "to_csv"):
        yield answer.to_csv()
    else:
        yield repr(answer)
