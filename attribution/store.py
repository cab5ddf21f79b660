"""Artifacts on disk: whole or absent, named by what made them. `cache/README.md` has the format.

The only file that writes below the cache. An artifact is a folder ``<kind>/<id>/`` of arrays and a
``manifest.json`` with a checksum of each. It is written under a temporary name and renamed, so a
reader sees all of it or none; a second writer of the same id waits for the first and takes its
result.

With a `remote` the cache is its mirror: what is not here is taken from there when it is first read,
what is made here is put there too.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file, save

from .records import FORMAT, UserError
from .remote import MANIFEST, Remote, stored

OWN = ("reading",)  # of this machine's paths: never on a remote
BESIDE = ("locks", "jobs", "logs", "downloads")  # folders of the cache that hold no artifacts
REBUILD = (
    "remove that folder and run the same `build` again, or whatever command made it; "
    "`python -m attribution doctor --repair` removes all that is damaged"
)


@dataclass(frozen=True)
class Artifact:
    """One finished artifact: its folder and its manifest, files verified at first read."""

    place: Path
    manifest: Mapping[str, Any]
    verified: set[str]
    fetch: Callable[[], None] | None = None  # brings the files, of one that is on the remote

    def array(self, name: str, memory_map: bool = False) -> np.ndarray:
        """The array `name`; memory-mapped on request. Raises `UserError` when damaged."""
        path = self.file(f"{name}.npy")
        return np.load(path, mmap_mode="r" if memory_map else None, allow_pickle=False)

    def weights(self, name: str = "weights") -> dict[str, torch.Tensor]:
        """A state dict of a run."""
        return load_file(self.file(f"{name}.safetensors"))

    def bytes_of(self, name: str) -> bytes:
        return self.file(name).read_bytes()

    def file(self, name: str) -> Path:
        """The path of a file of this artifact, its checksum verified at the first call."""
        path = self.place / name
        if name not in self.verified:
            if self.fetch is not None and not self.here:
                self.fetch()
            wanted = self.manifest["files"].get(name, {}).get("sha256")
            found = _checksum(path) if path.is_file() else None
            if found is None or found != wanted:
                raise damaged(path, "a missing file" if found is None else "another checksum")
            self.verified.add(name)
        return path

    @property
    def kind(self) -> str:
        """What its folder is in; of a manifest, notes of its own may have taken that word."""
        return self.place.parent.name

    @property
    def here(self) -> bool:
        """Whether it is in the cache, and not only on the remote."""
        return self.place.is_dir()

    @property
    def size(self) -> int:
        return sum(f["bytes"] for f in self.manifest["files"].values())


class Unusable(UserError):
    """An artifact that is there but cannot be read; others can."""


class Damaged(Unusable):
    """One that is not what its manifest says, so that it may be made again."""


def damaged(path: Path | str, found: str) -> Damaged:
    return Damaged(
        found=f"{path} is damaged ({found})",
        wanted="the file that the manifest describes",
        next_step=REBUILD,
    )


class Draft:
    """An artifact in the making: files go to a temporary folder."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.notes: dict[str, Any] = {}
        self.created = datetime.now(UTC).isoformat(timespec="milliseconds")

    def array(self, name: str, values: np.ndarray) -> None:
        buffer = BytesIO()  # np.save on a file hides why a write failed
        np.save(buffer, values, allow_pickle=False)
        self.bytes_of(f"{name}.npy", buffer.getvalue())

    def empty(self, name: str, shape: tuple[int, ...], kind: type) -> np.ndarray:
        """An array that lies on the disk and not in memory, to be filled."""
        path = self.place / f"{name}.npy"
        made = np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=shape)
        if hasattr(os, "posix_fallocate"):  # else a disk that is full kills the process later
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return made

    def rows(
        self, name: str, shape: tuple[int, ...], kind: type, blocks: Iterable[np.ndarray]
    ) -> np.ndarray:
        """An array written block of rows after block of rows, so that memory holds one of them.

        Returns it, memory-mapped.
        """
        path = self.place / f"{name}.npy"
        with path.open("wb") as file:
            file.writelines(npy(shape, kind, blocks))
        made: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        return made

    def weights(self, values: Mapping[str, torch.Tensor], name: str = "weights") -> None:
        whole, seen = {}, set()
        for key, value in values.items():
            value = value.detach().cpu().contiguous()
            place = value.untyped_storage().data_ptr()
            whole[key] = value.clone() if place in seen else value  # tied: safetensors takes none
            seen.add(place)
        self.bytes_of(f"{name}.safetensors", save(whole))

    def bytes_of(self, name: str, content: bytes) -> None:
        (self.place / name).write_bytes(content)

    def shelf(self, name: str, content: bytes) -> Path:
        """`bytes_of`; returns where they may be read again."""
        self.bytes_of(name, content)
        return self.place / name

    def note(self, **notes: Any) -> None:
        """Facts for the manifest (JSON values)."""
        self.notes |= notes


def store_at(root: Path, remote: str = "") -> "Store":
    """The store in the folder `root`, with the remote of that URL if there is one."""
    return Store(root, Remote(remote) if remote else None)


class Store:
    """The cache folder, and the remote that it is a mirror of, if there is one."""

    def __init__(self, root: Path, remote: Remote | None = None) -> None:
        self.root = root
        self.remote = remote
        self._open: dict[tuple[str, str], Artifact] = {}
        self._shared: set[tuple[str, str]] = set()  # the remote has them

    @property
    def address(self) -> tuple[Path, str]:
        """What `store_at` opens this store by, in another process."""
        return self.root.absolute(), self.remote.url if self.remote else ""

    def find(self, kind: str, name: str) -> Artifact | None:
        """The artifact, or None where it is absent or `name` no id. `UserError` when damaged.

        Of one that is only on the remote the files come when one of them is asked for.
        """
        if not is_id(name):  # what comes from an address may be a path
            return None
        opened = self._open.get((kind, name))
        if opened is not None:
            return opened
        place = self.root / kind / name
        if place.is_dir():
            made = Artifact(place, _read(place / MANIFEST), set())
        else:
            manifest = self._remotely(kind, name)
            if manifest is None:
                return None
            made = Artifact(place, manifest, set(), lambda: self._fetch(kind, name, manifest))
        self._open[kind, name] = made
        return made

    def _remotely(self, kind: str, name: str, now: bool = False) -> dict[str, Any] | None:
        """The manifest on the remote, or None where there is none, or no remote."""
        if self.remote is None or kind in OWN:
            return None
        content = self.remote.manifest(kind, name, now)
        if content is None:
            return None
        manifest = _parsed(content, f"{self.remote.at(kind, name)}/{MANIFEST}")
        if manifest["id"] != name:
            raise damaged(self.remote.at(kind, name), "the manifest of something else")
        return manifest

    def has(self, kind: str, name: str) -> bool:
        """Whether the artifact is there with all its files, at their sizes (not checksummed).

        On the remote it is there once its manifest is.
        """
        try:
            found = self.find(kind, name)
        except Damaged:
            return False
        if found is None:
            return False
        if found.fetch is not None and not found.here:
            return True
        for file, facts in found.manifest["files"].items():
            path = found.place / file
            if not path.is_file() or path.stat().st_size != facts["bytes"]:
                self._open.pop((kind, name), None)  # another thread may have seen it too
                return False
        return True

    def all(self, kind: str) -> list[Artifact]:
        """The finished artifacts of a kind, newest first; damaged ones are passed over.

        Those on the remote are among them, as of some seconds ago.
        """
        found = []
        folder = self.root / kind
        names = {place.name for place in folder.iterdir()} if folder.is_dir() else set()
        if self.remote is not None and kind not in OWN:
            names |= self.remote.names(kind)
        for name in filter(is_id, names):
            try:
                artifact = self.find(kind, name)
            except Unusable:
                continue
            if artifact:
                found.append(artifact)
        return sorted(found, key=lambda a: a.manifest["created"], reverse=True)

    def make(
        self, kind: str, name: str, fill: Callable[[Draft], None], made_by: Mapping[str, Any]
    ) -> Artifact:
        """The artifact, filled by `fill` if it is absent; `made_by` goes into the manifest.

        Raises `UserError` where the cache cannot be written or is full; nothing is left behind.
        Where the remote cannot be written, what was made stays in the cache.
        """
        if self.has(kind, name):
            return self.share(kind, name)
        with self._writing(kind, name) as place:
            if not self.has(kind, name):  # else another process was faster
                if place.exists():  # damaged: files are missing or cut short
                    shutil.rmtree(place)
                if not self._there(kind, name):
                    with self._aside(place) as whole:
                        draft, began = Draft(whole), time.perf_counter()
                        fill(draft)
                        manifest = {
                            "format": FORMAT,
                            "kind": kind,
                            "id": name,
                            "created": draft.created,
                            "seconds": round(time.perf_counter() - began, 3),
                            "made_by": made_by,
                            "files": {
                                p.name: {"bytes": p.stat().st_size, "sha256": _checksum(p)}
                                for p in sorted(whole.iterdir())
                            },
                            **draft.notes,
                        }
                        manifest = json.loads(json.dumps(manifest, default=_plain))
                        (whole / MANIFEST).write_text(_sealed(manifest))
        return self.share(kind, name)

    def share(self, kind: str, name: str) -> Artifact:
        """An artifact that there is, put on the remote if that has not got it."""
        found = self.find(kind, name)
        assert found is not None
        if self.remote is None or kind in OWN or (kind, name) in self._shared or not found.here:
            return found
        if not self._there(kind, name):
            checksums = {file: facts["sha256"] for file, facts in found.manifest["files"].items()}
            files = [(found.file(file), checksum) for file, checksum in checksums.items()]
            self.remote.put(kind, name, files, (found.place / MANIFEST).read_bytes())
        self._shared.add((kind, name))
        return found

    def _there(self, kind: str, name: str) -> bool:
        """Whether the remote has an artifact now; a damaged manifest counts for nothing."""
        try:
            return self._remotely(kind, name, now=True) is not None
        except Damaged:
            return False

    def _fetch(self, kind: str, name: str, manifest: dict[str, Any]) -> None:
        """Bring an artifact from the remote, whole or not at all.

        Raises `UserError` for what is damaged there, which is not put in its place.
        """
        assert self.remote is not None
        checksums = {file: facts["sha256"] for file, facts in manifest["files"].items()}
        with self._writing(kind, name) as place:
            if place.is_dir():  # another was faster
                return
            with self._aside(place) as whole:
                self.remote.get(kind, name, checksums, whole)
                for file, wanted in checksums.items():
                    path = whole / file
                    if not path.is_file() or _checksum(path) != wanted:
                        what = "another checksum" if path.is_file() else "a missing file"
                        raise damaged(f"{self.remote.at(kind, name)}/{stored(file, wanted)}", what)
                (whole / MANIFEST).write_text(_sealed(manifest))

    @contextmanager
    def _writing(self, kind: str, name: str) -> Iterator[Path]:
        """Where an artifact belongs, and the lock to write it; what killed writers left is gone."""
        place, lock = self.root / kind / name, self._lock(kind, name)
        with writable(self.root):
            place.parent.mkdir(parents=True, exist_ok=True)
            lock.parent.mkdir(exist_ok=True)
            with FileLock(lock):
                sweep(place.parent, name)
                yield place

    @contextmanager
    def _aside(self, place: Path) -> Iterator[Path]:
        """A folder to be filled, which is then put in its place; no other is left beside it."""
        whole = place.parent / f".{place.name}-{secrets.token_hex(4)}"
        whole.mkdir()
        try:
            yield whole
            for path in whole.iterdir():
                _flush(path)
            whole.rename(place)
        finally:
            shutil.rmtree(whole, ignore_errors=True)
        _flush(place.parent)

    def names(self) -> list[tuple[str, str]]:
        """Kind and name of every artifact in the cache, damaged ones too."""
        kinds = [p for p in folders(self.root) if p.name not in BESIDE]
        return sorted((k.name, p.name) for k in kinds for p in folders(k) if is_id(p.name))

    def check(self, kind: str, name: str) -> None:
        """Read an artifact of the cache whole. Raises `UserError` for the first thing damaged."""
        place = self.root / kind / name
        made = Artifact(place, _read(place / MANIFEST), set())
        for file in made.manifest["files"]:
            made.file(file)

    def abandoned(self) -> list[tuple[str, str]]:
        """Kind and name of what a killed writer left in the cache; no reader sees it."""
        left = [(p.parent.name, p.name[1:13]) for p in self.root.glob("*/.*-*") if p.is_dir()]
        return sorted({(k, n) for k, n in left if is_id(n) and free(self._lock(k, n))})

    def sweep(self, kind: str, name: str) -> None:
        """Remove what killed writers of an artifact left."""
        with self._writing(kind, name):
            pass

    def writing(self) -> list[str]:
        """What some process is writing now."""
        return sorted(p.stem for p in (self.root / "locks").glob("*.lock") if not free(p))

    def _lock(self, kind: str, name: str) -> Path:
        return self.root / "locks" / f"{kind}-{name}.lock"

    def make_all(
        self,
        kind: str,
        made_by: Mapping[str, Mapping[str, Any]],
        fill: Callable[[Mapping[str, Draft]], None],
    ) -> list[Artifact]:
        """The artifacts of a kind, by name; `fill` is called once for all that are absent.

        Their locks are taken in the order of the names, so that no two processes wait for each
        other. The time goes into their manifests in equal parts.
        """
        drafts: dict[str, Draft] = {}

        def make(names: Sequence[str]) -> None:
            if not names:
                if drafts:
                    began = time.perf_counter()
                    fill(drafts)
                    each = (time.perf_counter() - began) / len(drafts)
                    for draft in drafts.values():
                        draft.note(seconds=round(each, 3))
                return

            def one(draft: Draft) -> None:
                drafts[names[0]] = draft
                make(names[1:])

            self.make(kind, names[0], one, made_by[names[0]])
            if names[0] not in drafts:  # it was there
                make(names[1:])

        make(sorted(name for name in made_by if not self.has(kind, name)))
        return [self.make(kind, name, _never, made_by[name]) for name in made_by]

    @contextmanager
    def matrices(self) -> Iterator[Callable[[int, int], "Matrix"]]:
        """Makes matrices on scratch, ``(rows, columns) -> Matrix``; they are gone at the end."""
        with ExitStack() as stack:
            yield lambda _, columns: Matrix(stack.enter_context(self.scratch()), columns, self.root)

    @contextmanager
    def scratch(self) -> Iterator[BinaryIO]:
        """A file without a name for what is too large for memory; gone at the end."""
        with writable(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            file = tempfile.TemporaryFile(dir=self.root)
        try:
            yield file
        finally:
            with suppress(OSError):  # of what was still to be written; who wants it flushes
                file.close()

    def remove(self, kind: str, name: str, everywhere: bool = False) -> None:
        """Remove an artifact from the cache; a reader sees all of it or none.

        What is on the remote stays, unless it is to go `everywhere`.
        """
        if everywhere and self.remote is not None:
            self.remote.remove(kind, name)
            self._shared.discard((kind, name))
        with self._writing(kind, name) as place:
            self._open.pop((kind, name), None)
            if place.is_dir():
                place.rename(place.with_name(f".{name}-removed"))
            sweep(place.parent, name)


def _never(draft: Draft) -> None:
    raise AssertionError("made a moment ago")


def npy(
    shape: tuple[int, ...], kind: type, blocks: Iterable[np.ndarray]
) -> Iterator[bytes | memoryview]:
    """An array as NumPy's format has it, of blocks of rows one after another."""
    head = BytesIO()
    facts = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, facts)
    yield head.getvalue()
    for block in blocks:
        yield np.ascontiguousarray(block, kind).data


class Matrix:
    """A float32 matrix in a file, read and written by ranges of rows, which memory holds alone."""

    def __init__(self, file: BinaryIO, columns: int, root: Path) -> None:
        self._file, self._columns, self._root = file, columns, root

    def __getitem__(self, rows: slice) -> torch.Tensor:
        found = torch.empty(rows.stop - rows.start, self._columns)
        self._file.seek(4 * self._columns * rows.start)
        got = self._file.readinto(found.numpy().data.cast("B"))  # type: ignore[attr-defined]
        assert got == 4 * found.numel(), "rows that were never written"
        return found

    def __setitem__(self, rows: slice, values: torch.Tensor) -> None:
        with writable(self._root):
            self._file.seek(4 * self._columns * rows.start)
            self._file.write(np.ascontiguousarray(values.numpy(), np.float32).data.cast("B"))
            self._file.flush()


@contextmanager
def writable(root: Path, what: str = "cache") -> Iterator[None]:
    """Turn the operating system's refusals into one sentence about the cache, or the workspace."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        free = "a full disk" if full else (error.strerror or str(error)).lower()
        raise UserError(
            found=f"the {what} {root} cannot be written ({free})",
            wanted="a folder with room that this user may write to",
            next_step=f"{'free some space' if full else 'mend its permissions'} or choose "
            f"another with --{what}",
        ) from error


@contextmanager
def word(root: Path) -> Iterator[tuple[Path, str]]:
    """A file in the cache, and a word in it, by which others show that they see the same folder."""
    said = secrets.token_hex(6)
    place = root.absolute() / f".word-{said}"
    with writable(root):
        root.mkdir(parents=True, exist_ok=True)
        place.write_text(said)
    try:
        yield place, said
    finally:
        with suppress(OSError):
            place.unlink()


def sweep(folder: Path, name: str) -> None:
    """Remove what a killed writer of `name` left; its lock is held, so nobody writes it now."""
    for left in folder.glob(f".{name}-*"):
        shutil.rmtree(left, ignore_errors=True)


def folders(place: Path) -> list[Path]:
    return [p for p in place.iterdir() if p.is_dir()] if place.is_dir() else []


def free(lock: Path) -> bool:
    """Whether nobody holds a lock now. Those of dead processes are free: the system sees to it."""
    if not lock.exists():
        return True
    try:
        with FileLock(lock, timeout=0):
            return True
    except Timeout:
        return False


def may_write(folder: Path, what: str) -> None:
    """Raise `UserError` where a folder that is there cannot be written."""
    if folder.exists():
        with writable(folder, what), tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))


def is_id(name: str) -> bool:
    return len(name) == 12 and set(name) <= set("0123456789abcdef")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise damaged(path, "no readable manifest") from error
    return _parsed(content, path)


def _parsed(content: bytes, path: Path | str) -> dict[str, Any]:
    """A manifest without its own checksum. Raises `Unusable` where that is not its checksum."""
    try:
        manifest = json.loads(content)
        found = manifest["format"]
        seal = manifest.pop("sha256")
        whole = seal == _digest(manifest)
        ours = seal == _digest({**manifest, "format": FORMAT})  # but for the number itself
        assert isinstance(found, int) and isinstance(manifest["files"], dict)
        assert whole and _sound(manifest) if found == FORMAT else whole or not ours
    except (
        ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError,
    ) as error:  # fmt: skip
        raise damaged(path, "no readable manifest") from error
    if found != FORMAT:
        raise Unusable(
            found=f"{path} in cache format {str(found)[:20]}",
            wanted=f"format {FORMAT}",
            next_step="use the version that wrote it, or another --cache",
        )
    return manifest


def _sound(manifest: dict[str, Any]) -> bool:
    """Whether a manifest says what every reader asks of it, and names files of its own folder."""
    return all(isinstance(manifest[key], str) for key in ("kind", "id", "created")) and all(
        file == Path(file).name not in ("", "..", MANIFEST)
        and len(file.encode()) < 256
        and isinstance(facts["bytes"], int)
        and facts["bytes"] >= 0
        and isinstance(facts["sha256"], str)
        for file, facts in manifest["files"].items()
    )


def _sealed(manifest: dict[str, Any]) -> str:
    return json.dumps({**manifest, "sha256": _digest(manifest)}, indent=1)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value.tolist()
