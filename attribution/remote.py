"""Artifacts on object storage, behind any fsspec URL: what several caches share.

    <url>/<kind>/<id>/<sha256>-<file>     the files, each named by its content
    <url>/<kind>/<id>/manifest.json       last; until then there is no artifact

No lock is needed. An id is the hash of what made a thing, so two writers of one id write the same
thing. Where their bits differ, because their machines do, neither touches the other's files, and a
manifest is put in one piece: a reader sees the one artifact or the other, never a mixture.

Only `store` uses this; it checks what comes from here as it checks what lies on the disk.
"""

import errno
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import urlsplit

from .records import UserError

VARIABLE = "PROBABLE_CAUSE_REMOTE"  # of the environment: the URL
S3 = ("s3", "s3a")
MANIFEST = "manifest.json"
FRESH = 10.0  # seconds that "it is not there" and a listing are believed
WAIT = 10.0  # seconds for a connection, and for each answer
TRIES = 2  # where an answer does not come
FULL = (errno.ENOSPC, errno.EDQUOT)
SILENT = {"ConnectionError", "HTTPClientError", "TimeoutError", "gaierror"}
NAMELESS = {"NoCredentialsError", "PartialCredentialsError"}


class Remote:
    """A place for artifacts at `url`. Raises `UserError` for a URL that nothing here can open."""

    def __init__(self, url: str, fresh: float = FRESH, wait: float = WAIT) -> None:
        self.url = url.rstrip("/")
        self.protocol = url.partition("://")[0] if "://" in url else "file"
        self.fresh = fresh
        self._absent: dict[tuple[str, str], float] = {}  # when it was not there
        self._listed: dict[str, tuple[float, frozenset[str]]] = {}
        if urlsplit(url).password:
            raise UserError(
                found="a password in the address of --remote",
                wanted="an address alone",
                next_step="leave it out and give it by the environment, as the storage's own tools "
                "have it",
            )
        with self._told():
            self._files, self._root = opened(url, self.protocol, wait)
        if not self._root:
            raise UserError(
                found=f"--remote {url}",
                wanted="a bucket or folder, as in s3://bucket/prefix",
                next_step="name one",
            )

    def at(self, kind: str, name: str) -> str:
        """Where an artifact lies, for people."""
        return f"{self.url}/{kind}/{name}"

    def names(self, kind: str) -> frozenset[str]:
        """What has a folder among the artifacts of a kind, as of the last seconds."""
        when, found = self._listed.get(kind, (-self.fresh, frozenset()))
        if time.monotonic() - when >= self.fresh:
            with self._told():
                self._files.invalidate_cache()
                try:
                    paths = self._files.ls(f"{self._root}/{kind}", detail=False)
                except FileNotFoundError as error:
                    if bucketless(error):
                        raise
                    paths = []
            found = frozenset(str(path).rstrip("/").rpartition("/")[2] for path in paths)
            self._listed[kind] = time.monotonic(), found
        return found

    def manifest(self, kind: str, name: str, now: bool = False) -> bytes | None:
        """An artifact's manifest, or None where there is none.

        That it is absent may be some seconds old, unless it is to be known `now`.
        """
        when = self._absent.get((kind, name))
        if when is not None and not now and time.monotonic() - when < self.fresh:
            return None
        with self._told():
            try:
                # From 0 on: else S3 is asked twice more, for its size.
                content = self._files.cat_file(self._place(kind, name, MANIFEST), start=0)
                self._absent.pop((kind, name), None)
                return content
            except FileNotFoundError as error:
                if bucketless(error):
                    raise
        self._absent[kind, name] = time.monotonic()
        return None

    def get(self, kind: str, name: str, files: Mapping[str, str], into: Path) -> None:
        """Copy files, given with their SHA-256, to a folder. They are as they come, not checked."""
        for file, checksum in files.items():
            with self._told(reading=True):
                try:
                    there = self._place(kind, name, stored(file, checksum))
                    self._files.get_file(there, str(into / file))
                except FileNotFoundError as error:
                    if bucketless(error):
                        raise  # else the file is missing, which its reader notices

    def put(self, kind: str, name: str, files: Iterable[tuple[Path, str]], manifest: bytes) -> None:
        """Put an artifact in its place: its files, given with their SHA-256, then its manifest."""
        for path, checksum in files:
            with self._told():
                there = self._place(kind, name, stored(path.name, checksum))
                self._files.put_file(str(path), there)
        with self._told():
            place = self._place(kind, name, MANIFEST)
            if self._files.async_impl:  # object storage, where an object is put in one piece
                self._files.pipe_file(place, manifest)
            else:
                aside = f"{place}.{token_hex(6)}"
                self._files.pipe_file(aside, manifest)
                self._files.mv(aside, place)
        self._absent.pop((kind, name), None)
        self._listed.pop(kind, None)

    def remove(self, kind: str, name: str) -> None:
        """Remove an artifact, its manifest first, so that what is left of it is not read."""
        with self._told():
            for remove, path in (
                (self._files.rm_file, self._place(kind, name, MANIFEST)),
                (self._remove_all, self._place(kind, name)),
            ):
                try:
                    remove(path)
                except FileNotFoundError as error:
                    if bucketless(error):
                        raise
        self._listed.pop(kind, None)

    def _remove_all(self, path: str) -> None:
        self._files.rm(path, recursive=True)

    def _place(self, *parts: str) -> str:
        return "/".join((self._root, *parts))

    @contextmanager
    def _told(self, reading: bool = False) -> Iterator[None]:
        """Turn whatever a storage library raises into one sentence.

        A disk that fills up while `reading` is our own: the store has a sentence for it.
        """
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            if reading and getattr(error, "errno", None) in (*FULL, errno.EFBIG):
                raise
            raise self._trouble(error) from error

    def _trouble(self, error: Exception) -> UserError:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        number = getattr(error, "errno", None)
        without = "name another with --remote, or work without it"
        if isinstance(error, ImportError):
            ours = "-e '.[s3]' in the project's folder"
            extra = ours if self.protocol in S3 else backend(self.protocol)
            return UserError(
                found=f"{self.url}, which needs a package that is not installed",
                wanted=f"fsspec's backend for {self.protocol}://",
                next_step=f"pip install {extra}",
            )
        if "known" in str(error) and isinstance(error, ValueError):
            return UserError(
                found=f"unknown kind of storage {self.protocol!r}",
                wanted="an address as in s3://bucket/prefix, gs://, abfs:// or file:///folder",
                next_step="give --remote another",
            )
        if kinds & NAMELESS:
            return UserError(
                found=f"no credentials for {self.url}",
                wanted="some that may list, read and write there",
                next_step="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
            )
        if isinstance(error, PermissionError):
            return UserError(
                found=f"{self.url} denies access",
                wanted="to list, read and write there",
                next_step="give the credentials in the environment these rights, or " + without,
            )
        if isinstance(error, FileNotFoundError):
            return UserError(
                found=f"no bucket or folder for {self.url}",
                wanted="one that is there",
                next_step=f"create it, or {without}",
            )
        if kinds & SILENT:
            return UserError(
                found=f"{self.url} does not answer",
                wanted="storage that can be reached",
                next_step="check the network and AWS_ENDPOINT_URL, or work without --remote",
            )
        full, fixed = number in FULL, number == errno.EROFS
        why = "it is full" if full else "it is read-only" if fixed else plain(error)
        return UserError(
            found=f"{self.url} cannot be used ({why})",
            wanted="storage with room that may be written to",
            next_step=f"mend that, or {without}",
        )


def opened(url: str, protocol: str, wait: float) -> tuple[Any, str]:
    """The file system behind a URL and the path in it."""
    import fsspec  # only who names a remote waits for it

    options: dict[str, Any] = {}
    if protocol in S3:
        options["config_kwargs"] = {
            "connect_timeout": wait,
            "read_timeout": wait,
            "retries": {"total_max_attempts": 1},  # s3fs tries again by itself
        }
    if protocol in ("file", "local"):
        options["auto_mkdir"] = True
    files, root = fsspec.core.url_to_fs(url, skip_instance_cache=True, **options)
    if protocol in S3:
        files.retries = TRIES
    return files, root.rstrip("/")


def stored(file: str, checksum: str) -> str:
    """What a file is called there."""
    return f"{checksum[:16]}-{file}"


def bucketless(error: Exception) -> bool:
    """Whether it is the bucket that is not there, and not only what was asked for in it."""
    answer = getattr(error.__cause__, "response", None) or {}
    return answer.get("Error", {}).get("Code") == "NoSuchBucket"


def backend(protocol: str) -> str:
    return {"gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}.get(
        protocol, f"what fsspec needs for {protocol}"
    )


def plain(error: Exception) -> str:
    """The first line of what a library says."""
    said = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return (said.splitlines() or [type(error).__name__])[0][:200]
