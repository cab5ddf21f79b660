"""A person's archive, unpacked into the workspace: `data/<name>-<hash of the archive>/`.

An archive is a stranger's, and unpacking is where such files bite: no path leads out, links and
devices are not made, and how many files, how many bytes and how many times the archive's own size
come out of it is bounded while it is read, whatever its headers say. What `sources` could use is
kept; the rest is counted and said. The folder is whole or absent: it is filled aside and renamed.
"""

import errno
import gzip
import hashlib
import json
import re
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from io import SEEK_END, BufferedIOBase
from lzma import LZMAError
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from filelock import FileLock

from .pictures import ENDINGS
from .records import Report, UserError, silent
from .sources import IDX, TEST, TRAIN, said, told
from .store import free, sweep, writable

KINDS = (".zip", ".tar", ".tar.gz", ".tgz")
KEPT = (*ENDINGS, ".parquet", ".csv", ".tsv", ".json")
NESTED = (*KINDS, ".7z", ".rar", ".gz", ".bz2", ".xz", ".zst")
TOLD = ".unpacked.json"  # hidden, so that no source takes it for data
HEADER = 2**20  # bytes between two files of a .tar
ENDS = 8  # times that the end of a whole .tar may be met
ENTRY = 256  # bytes of a .zip's directory for each file
CHUNK = 2**20
DEEPEST = 20  # folders in each other
HASHED = re.compile(r"-[0-9a-f]{12}$")  # how the name of an archive's folder ends
FOLDER = "folders"
LINK = "links and devices"
BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, LZMAError, struct.error,
    EOFError, ValueError, OverflowError, RuntimeError,
)  # fmt: skip

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What an archive may come to."""

    packed: int = 500 * 10**6  # bytes of the archive; a page holds them in memory
    unpacked: int = 4 * 10**9
    files: int = 100_000
    ratio: int = 200  # times the archive's own size, where that is not small
    small: int = 50 * 10**6  # bytes that may come out of any archive


LIMITS = Limits()


@dataclass(frozen=True)
class Unpacked:
    """What came out of an archive."""

    folder: Path
    kept: int
    passed: Mapping[str, int]  # files that were passed over, by what they are

    @property
    def words(self) -> str:
        """What was left in the archive; nothing for nothing."""
        parts = [f"{what} ({count:,})" for what, count in self.passed.items()]
        return f"Left in the archive: {', '.join(parts)}." if parts else ""


class Refused(Exception):
    """Why an archive is not unpacked: what was found, what was wanted."""


class Inside(NamedTuple):
    """A file of an archive."""

    name: str
    why: str  # it is passed over; "" where it is a plain file
    opened: Callable[[], AbstractContextManager[IO[bytes]]]


def unpacked(
    archive: BufferedIOBase, name: str, into: Path, limits: Limits = LIMITS, report: Report = silent
) -> Unpacked:
    """The files of an archive called `name`, in a folder below `into`.

    The same archive a second time is found there. Raises `UserError` for one that is damaged,
    locked, too large, or means harm; nothing of it is left then.
    """
    shown = told(Path(name.replace("\\", "/")).name)
    size = archive.seek(0, SEEK_END)
    if size > limits.packed:
        raise refusal(shown, f"is larger than {limits.packed // 10**6} MB")
    archive.seek(0)
    place = into / f"{stem(shown)}-{hashlib.file_digest(archive, 'sha256').hexdigest()[:12]}"
    if found := remembered(place):
        return found
    with writable(into, "workspace"):
        into.mkdir(parents=True, exist_ok=True)
        with FileLock(into / f".{place.name}.lock"):
            if found := remembered(place):  # another visitor was faster
                return found
            sweep(into, place.name)
            with tempfile.TemporaryDirectory(
                dir=into, prefix=f".{place.name}-", ignore_cleanup_errors=True
            ) as temporary:
                whole = Path(temporary) / "whole"
                whole.mkdir()
                try:
                    passed = filled(archive, shown, whole, size, limits, report)
                except Refused as why:
                    raise refusal(shown, str(why)) from None
                except BROKEN as error:
                    raise refusal(shown, f"is damaged ({said(error)})") from error
                kept = sum(path.is_file() for path in whole.rglob("*"))
                if not kept:
                    raise refusal(shown, "holds no pictures, Parquet or CSV files")
                whole = lifted(whole)
                facts = {"kept": kept, "passed": passed}
                (whole / TOLD).write_text(json.dumps(facts))
                if place.exists():  # a folder that was meddled with
                    shutil.rmtree(place)
                whole.rename(place)
    return Unpacked(place, kept, passed)


def refusal(shown: str, why: str) -> UserError:
    return UserError(
        found=f"{shown} {why}",
        wanted=f"a whole {', '.join(KINDS[:-2])} or {KINDS[-2]} without a password, of a folder of "
        "pictures for each class, Parquet, or a .csv and its pictures",
        next_step="pack it again",
    )


def remembered(place: Path) -> Unpacked | None:
    """What an archive left at `place` before."""
    try:
        facts = json.loads((place / TOLD).read_text())
        return Unpacked(place, facts["kept"], facts["passed"])
    except (OSError, ValueError, KeyError):
        return None


def all_unpacked(into: Path) -> list[Unpacked]:
    """What was unpacked into a folder, the newest first."""
    places = [p for p in into.iterdir() if not p.name.startswith(".")] if into.is_dir() else []
    found = [one for place in places if (one := remembered(place))]
    return sorted(found, key=lambda one: (one.folder / TOLD).stat().st_mtime, reverse=True)


def abandoned(into: Path) -> list[str]:
    """Names of archives whose unpacking was killed, which left something."""
    names = {p.name[1:].rpartition("-")[0] for p in into.glob(".*-*") if p.is_dir()}
    return sorted(name for name in names if name and free(into / f".{name}.lock"))


def remove(folder: Path) -> None:
    """Remove what was unpacked: at once for whoever looks, then from the disk."""
    into, name = folder.parent, folder.name
    with writable(into, "workspace"), FileLock(into / f".{name}.lock"):
        if folder.exists():
            folder.rename(into / f".{name}-removed")
        sweep(into, name)


def sweep_left(into: Path, name: str) -> None:
    """Remove what killed unpackings to this name left."""
    with writable(into, "workspace"), FileLock(into / f".{name}.lock"):
        sweep(into, name)


def own_name(name: str) -> str:
    """What a person called an archive, from the name of its folder or of the data in it."""
    return HASHED.sub("", name)


def stem(shown: str) -> str:
    """An archive's name as that of a folder, whatever was in it."""
    bare = next((shown[: -len(k)] for k in KINDS if shown.lower().endswith(k)), shown)
    return re.sub(r"[^\w-]+", "-", bare).strip("-_")[:40] or "data"


def filled(
    archive: BufferedIOBase, shown: str, whole: Path, size: int, limits: Limits, report: Report
) -> dict[str, int]:
    """Unpack what can be used to `whole`; the number of files passed over, by what they are."""
    most = min(limits.unpacked, max(limits.small, limits.ratio * size))
    passed: Counter[str] = Counter()
    count = written = 0
    for one in unspoilt(inside(archive, shown, most, limits.files)):
        count += 1
        if count > limits.files:
            raise Refused(f"holds more than {limits.files:,} files")
        report("unpack", archive.tell(), max(size, archive.tell()))
        parts = parts_of(one.name)
        if one.why == FOLDER:
            continue
        if why := one.why or useless(parts):
            passed[why] += 1
            continue
        written += copied(one, whole.joinpath(*parts), most - written, passed)
    report("unpack", size, size)
    return dict(passed)


def parts_of(name: str) -> list[str]:
    """The folders and the name of a file of an archive. Raises `Refused` where they lead out."""
    path = told(name).replace("\\", "/")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or re.match(r"[A-Za-z]:", path) or ".." in parts:
        raise Refused(f"names a file outside of itself ({path[:80]!r})")
    return parts


def useless(parts: list[str]) -> str:
    """Why a file is of no use to a source, in the plural; "" where it is."""
    if any(part.startswith(".") or part == "__MACOSX" for part in parts) or not parts:
        return "hidden files"
    if len(parts) > DEEPEST:
        return f"files more than {DEEPEST} folders deep"
    name = parts[-1].lower()
    if name.endswith(KEPT) or IDX.fullmatch(parts[-1]):
        return ""
    return "archives within" if name.endswith(NESTED) else "files of other kinds"


def copied(one: Inside, path: Path, room: int, passed: Counter[str]) -> int:
    """The bytes of a file that were written to `path`, at most `room`. Raises `Refused` beyond."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("xb")
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        passed["files by a name that was taken"] += 1
        return 0
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENAMETOOLONG, errno.EINVAL):
            raise
        passed["files by names that cannot be"] += 1
        return 0
    count = 0
    with file:
        for chunk in unspoilt(chunks(one)):
            count += len(chunk)
            if count > room:
                raise Refused("unpacks to far more than its size, or than is allowed")
            file.write(chunk)
    return count


def chunks(one: Inside) -> Iterator[bytes]:
    with one.opened() as source:
        while chunk := source.read(CHUNK):
            yield chunk


def lifted(whole: Path) -> Path:
    """The folder that holds the data: not one that only holds one other, unless that is a half."""
    while True:
        below = list(whole.iterdir())
        if len(below) > 1 or not below[0].is_dir() or below[0].name.lower() in (*TRAIN, *TEST):
            return whole
        if all(path.suffix.lower() in ENDINGS for path in below[0].iterdir()):
            return whole  # a class, the only one
        whole = below[0]


# --- the two kinds -------------------------------------------------------------------------------


def inside(archive: BufferedIOBase, shown: str, most: int, files: int) -> Iterator[Inside]:
    """The files of an archive one after the other, each opened before the next is asked for."""
    archive.seek(0)
    begins = archive.read(4)
    archive.seek(0)
    if begins[:2] == b"PK":
        return in_zip(archive, files)
    if begins[:2] == b"\x1f\x8b":
        return in_tar(Metered(gzip.open(archive), most))
    if shown.lower().endswith(".tar"):
        return in_tar(Metered(archive, most))
    raise Refused("is no archive of a kind that is known here")


def unspoilt(some: Iterator[T]) -> Iterator[T]:
    """The same. Raises EOFError for what is the archive's fault and not that of a disk."""
    while True:
        try:
            one = next(some)
        except StopIteration:
            return
        except (OSError, MemoryError) as error:
            raise EOFError(said(error)) from error
        yield one


class Careful:
    """A file that does not read more at once than a .zip of so many files has as its directory."""

    def __init__(self, file: BufferedIOBase, files: int) -> None:
        self.file, self.files = file, files

    def read(self, count: int = -1) -> bytes:
        if count > max(self.files * ENTRY, CHUNK):
            raise Refused(f"holds more than {self.files:,} files")
        return self.file.read(count)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def in_zip(archive: BufferedIOBase, files: int) -> Iterator[Inside]:
    with zipfile.ZipFile(Careful(archive, files)) as opened:
        for one in opened.infolist():
            if one.flag_bits & 0x1:
                raise Refused("is locked by a password")
            kind = (one.external_attr >> 28) & 0xF  # of a Unix file; 0 where it was made elsewhere
            link = one.create_system == 3 and kind not in (0, 8)
            # Not `is_dir`, which fails for a file without a name.
            why = FOLDER if one.filename.endswith("/") else LINK if link else ""
            yield Inside(one.filename, why, partial(opened.open, one))


class Metered:
    """A stream that raises `Refused` once more comes out of it than is allowed for now."""

    def __init__(self, file: BufferedIOBase, most: int) -> None:
        self.file, self.most = file, most
        self.count = 0
        self.allowed = HEADER
        self.last = b""  # what was read last
        self.ends = 0  # how often nothing was left

    def read(self, count: int) -> bytes:
        chunk = self.file.read(min(count, self.most + 1))
        self.count += len(chunk)
        self.last = chunk or self.last
        self.ends += not chunk
        if self.ends > ENDS:  # tarfile asks on, for as long a file as a header said
            raise EOFError("it ends too early")
        if self.count > min(self.allowed, self.most):
            raise Refused("unpacks to far more than its size, or than is allowed")
        return chunk

    def ended(self, at: int) -> None:
        """Raise EOFError unless there are zeros from `at` on, as a .tar ends, and no more."""
        self.allowed = self.most
        rest = self.last[max(0, at - (self.count - len(self.last))) :]
        if not rest or any(rest):
            raise EOFError("it ends too early")
        while chunk := self.read(CHUNK):
            if any(chunk):
                raise EOFError("it ends too early")


def in_tar(stream: Metered) -> Iterator[Inside]:
    with tarfile.open(fileobj=stream, mode="r|") as opened:  # type: ignore[call-overload]
        while (one := opened.next()) is not None:
            opened.members = []  # which it would keep, all of them
            # The rest of this file and the next header, which may not be as long as it says.
            stream.allowed = one.offset_data + max(one.size, 0) + HEADER
            plain = one.isreg() and not one.issparse()
            why = FOLDER if one.isdir() else "" if plain else LINK
            yield Inside(one.name, why, partial(extracted, opened, one))
        stream.ended(opened.offset)  # tarfile takes a damaged header for the end


@contextmanager
def extracted(opened: tarfile.TarFile, one: tarfile.TarInfo) -> Iterator[IO[bytes]]:
    file = opened.extractfile(one)
    assert file is not None
    yield file
    if file.tell() != one.size:
        raise EOFError("it ends too early")
