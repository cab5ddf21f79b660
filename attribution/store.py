"""Artifacts on disk: whole or absent, named by what made them. `cache/README.md` has the format.

The only file that writes below the cache. An artifact is a folder ``<kind>/<id>/`` of arrays and a
``manifest.json`` with a checksum of each. It is written under a temporary name and renamed, so a
reader sees all of it or none; a second writer of the same id waits for the first and takes its
result.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock
from safetensors.torch import load_file, save

from .records import FORMAT, UserError

REBUILD = "remove that folder and run the same `build` again, which makes what is missing"


@dataclass(frozen=True)
class Artifact:
    """One finished artifact: its folder and its manifest, files verified at first read."""

    place: Path
    manifest: Mapping[str, Any]
    verified: set[str]

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
            wanted = self.manifest["files"].get(name, {}).get("sha256")
            found = _checksum(path) if path.is_file() else None
            if found is None or found != wanted:
                raise damaged(path, "a missing file" if found is None else "another checksum")
            self.verified.add(name)
        return path

    @property
    def size(self) -> int:
        return sum(f["bytes"] for f in self.manifest["files"].values())


def damaged(path: Path, found: str) -> UserError:
    return UserError(
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


class Store:
    """The cache folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._open: dict[tuple[str, str], Artifact] = {}

    def find(self, kind: str, name: str) -> Artifact | None:
        """The artifact, or None where it is absent. Raises `UserError` when damaged."""
        if (kind, name) in self._open:
            return self._open[kind, name]
        place = self.root / kind / name
        path = place / "manifest.json"
        if not place.is_dir():
            return None
        try:
            manifest = json.loads(path.read_text())
            found = manifest["format"]
            whole = manifest.pop("sha256") == _digest(manifest)
            assert isinstance(manifest["files"], dict) and (whole or found != FORMAT)
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
            raise damaged(path, "no readable manifest") from error
        if found != FORMAT:
            raise UserError(
                found=f"{path} in cache format {found}",
                wanted=f"format {FORMAT}",
                next_step="use the version that wrote it, or another --cache",
            )
        self._open[kind, name] = Artifact(place, manifest, set())
        return self._open[kind, name]

    def has(self, kind: str, name: str) -> bool:
        """Whether the artifact is there with all its files, at their sizes (not checksummed)."""
        try:
            found = self.find(kind, name)
        except UserError:
            return False
        if found is None:
            return False
        for file, facts in found.manifest["files"].items():
            path = found.place / file
            if not path.is_file() or path.stat().st_size != facts["bytes"]:
                del self._open[kind, name]
                return False
        return True

    def all(self, kind: str) -> list[Artifact]:
        """The finished artifacts of a kind, newest first; damaged ones are passed over."""
        found = []
        folder = self.root / kind
        for place in folder.iterdir() if folder.is_dir() else ():
            try:
                artifact = self.find(kind, place.name) if is_id(place.name) else None
            except UserError:
                continue
            if artifact:
                found.append(artifact)
        return sorted(found, key=lambda a: a.manifest["created"], reverse=True)

    def make(
        self, kind: str, name: str, fill: Callable[[Draft], None], made_by: Mapping[str, Any]
    ) -> Artifact:
        """The artifact, filled by `fill` if it is absent; `made_by` goes into the manifest.

        Raises `UserError` where the cache cannot be written or is full; nothing is left behind.
        """
        if self.has(kind, name):
            return self._open[kind, name]
        place = self.root / kind / name
        with writable(self.root):
            place.parent.mkdir(parents=True, exist_ok=True)
            locks = self.root / "locks"
            locks.mkdir(exist_ok=True)
            with FileLock(locks / f"{kind}-{name}.lock"):
                if self.has(kind, name):  # another process was faster
                    return self._open[kind, name]
                if place.exists():  # damaged: files are missing or cut short
                    shutil.rmtree(place)
                sweep(place.parent, name)
                with tempfile.TemporaryDirectory(
                    dir=place.parent, prefix=f".{name}-", ignore_cleanup_errors=True
                ) as temporary:
                    whole = Path(temporary) / "whole"
                    whole.mkdir()
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
                    manifest["sha256"] = _digest(manifest)
                    (whole / "manifest.json").write_text(json.dumps(manifest, indent=1))
                    for path in whole.iterdir():
                        _flush(path)
                    whole.rename(place)
                _flush(place.parent)
        found = self.find(kind, name)
        assert found is not None
        return found

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

    def remove(self, kind: str, name: str) -> None:
        """Remove an artifact; a reader sees all of it or none."""
        place = self.root / kind / name
        locks = self.root / "locks"
        with writable(self.root):
            locks.mkdir(exist_ok=True)
            with FileLock(locks / f"{kind}-{name}.lock"):
                self._open.pop((kind, name), None)
                if place.is_dir():
                    place.rename(place.with_name(f".{name}-removed"))
                sweep(place.parent, name)


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


def sweep(folder: Path, name: str) -> None:
    """Remove what a killed writer of `name` left; its lock is held, so nobody writes it now."""
    for left in folder.glob(f".{name}-*"):
        shutil.rmtree(left, ignore_errors=True)


def is_id(name: str) -> bool:
    return len(name) == 12 and set(name) <= set("0123456789abcdef")


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
