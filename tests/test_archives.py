"""Archives of strangers: what is kept of good ones, and hostile ones that leave nothing behind."""

import errno
import gzip
import io
import os
import tarfile
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from pictures import encoded, half, noise, photos, table

from attribution.archives import LIMITS, Limits, Unpacked, unpacked
from attribution.engine import Engine
from attribution.records import UserError

FILES = photos(train=2, test=1)
PNG = FILES["train/cat/000.png"]


def zipped(files: dict[str, bytes], **options: int) -> BytesIO:
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content, **options)
    return out


def tarred(files: dict[str, bytes], *links: tarfile.TarInfo, kind: str = "w:gz") -> BytesIO:
    out = BytesIO()
    with tarfile.open(fileobj=out, mode=kind) as archive:
        for link in links:
            archive.addfile(link)
        for name, content in files.items():
            one = tarfile.TarInfo(name)
            one.size = len(content)
            archive.addfile(one, BytesIO(content))
    return out


def link(name: str, kind: bytes, to: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, to
    return made


def files_in(found: Unpacked) -> dict[str, bytes]:
    return {
        path.relative_to(found.folder).as_posix(): path.read_bytes()
        for path in found.folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def refused(archive: BytesIO, into: Path, name: str = "photos.zip", **limits: int) -> str:
    """The one sentence about an archive of which nothing is left."""
    with pytest.raises(UserError) as error:
        unpacked(archive, name, into, Limits(**limits))
    left = [p for p in into.rglob("*") if not p.name.endswith(".lock")] if into.exists() else []
    assert not left and "\n" not in str(error.value)
    return str(error.value)


PACKED = {
    "photos.zip": zipped,
    "photos.tar.gz": tarred,
    "photos.tgz": tarred,
    "photos.tar": lambda files: tarred(files, kind="w"),
}


@pytest.mark.parametrize("name", PACKED)
def test_a_folder_of_pictures_comes_out_as_it_went_in(name: str, tmp_path: Path) -> None:
    beside = {"photos/train/cat/Thumbs.db": b"", "photos/.DS_Store": b"", "photos/more.zip": b"PK"}
    archive = PACKED[name]({f"photos/{path}": content for path, content in FILES.items()} | beside)
    found = unpacked(archive, name, tmp_path)
    assert files_in(found) == FILES and found.kept == len(FILES)
    assert found.passed == {"files of other kinds": 1, "hidden files": 1, "archives within": 1}
    assert found.folder.parent == tmp_path and found.folder.name.startswith("photos-")
    again = unpacked(archive, name, tmp_path)
    assert again == found and len([p for p in tmp_path.iterdir() if p.is_dir()]) == 1


def test_what_comes_out_is_read_as_a_data_set(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "cache", tmp_path)
    names = [f"{c}/{n}.png" for c in ("a", "b") for n in range(4)]
    pictures = {name: encoded(noise(j)) for j, name in enumerate(names)}
    rows = "\n".join(f"{name},{name[0]}" for name in names)
    parquet = table(tmp_path / "t.parquet", half(FILES, "train")).read_bytes()
    for files, count in (
        (FILES, 6),
        ({"set/labels.csv": f"path,label\n{rows}".encode()}
         | {f"set/{name}": content for name, content in pictures.items()}, 6),
        ({"hub/data/train.parquet": parquet}, 3),
    ):  # fmt: skip
        found = engine.unpacked(zipped(files), "my set.zip")
        assert found.folder.parent == tmp_path / "data"
        assert engine.described(str(found.folder))["train"] == count


OUT = ["../x.png", "a/../../x.png", "/tmp/x.png", "C:\\x.png", "..\\x.png", "a\\..\\..\\x.png"]


@pytest.mark.parametrize("path", OUT)
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_path_that_leads_out_refuses_the_whole(pack, path: str, tmp_path: Path) -> None:
    into = tmp_path / "deep" / "data"
    said = refused(pack({"a/0.png": PNG, path: PNG}), into)
    assert "names a file outside of itself" in said
    assert not list(tmp_path.rglob("*.png"))


def test_links_and_devices_are_not_made(tmp_path: Path) -> None:
    links = (
        link("train/cat/out.png", tarfile.SYMTYPE, "/etc/passwd"),
        link("train/dog", tarfile.SYMTYPE, "/tmp"),
        link("train/cat/hard.png", tarfile.LNKTYPE, "train/cat/000.png"),
        link("train/cat/pipe.png", tarfile.FIFOTYPE),
        link("train/cat/null.png", tarfile.CHRTYPE),
    )
    found = unpacked(tarred(FILES, *links), "a.tar.gz", tmp_path)
    assert files_in(found) == FILES and found.passed == {"links and devices": 5}
    archive = zipped(FILES)
    with zipfile.ZipFile(archive, "a") as opened:
        one = zipfile.ZipInfo("train/cat/out.png")
        one.create_system, one.external_attr = 3, 0o120777 << 16
        opened.writestr(one, "/etc/passwd")
    found = unpacked(archive, "b.zip", tmp_path)
    assert files_in(found) == FILES and found.passed == {"links and devices": 1}
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def test_bombs_go_off_early(tmp_path: Path) -> None:
    zeros = bytes(3 * 10**6)
    bounds = {"small": 10**6, "ratio": 50}
    for pack in (zipped, tarred):
        assert "far more than its size" in refused(pack({"a/0.png": zeros}), tmp_path, **bounds)
        assert "far more" in refused(pack({"a.bin": PNG, "a/0.png": zeros}), tmp_path, unpacked=10)
        many = {f"{n}.png": b"" for n in range(12)}
        assert "more than 11 files" in refused(pack(many), tmp_path, files=11)
    said = refused(BytesIO(gzip.compress(zeros)), tmp_path, "z.tar.gz", **bounds)
    assert "z.tar.gz" in said
    assert "larger than 0 MB" in refused(zipped(FILES), tmp_path, packed=100)


def test_a_header_that_never_ends_is_not_held_in_memory(tmp_path: Path) -> None:
    one = tarfile.TarInfo("long")
    one.type, one.size = tarfile.XHDTYPE, 30 * 10**6
    archive = BytesIO(gzip.compress(one.tobuf(tarfile.USTAR_FORMAT) + bytes(one.size)))
    assert "far more" in refused(archive, tmp_path, "a.tar.gz")


def test_a_directory_of_too_many_files_is_not_read(tmp_path: Path) -> None:
    archive = zipped({f"{n:>0200}.png": b"" for n in range(6000)})
    assert "more than 10 files" in refused(archive, tmp_path, files=10)


def test_the_first_file_of_a_name_is_kept(tmp_path: Path) -> None:
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a/é.png", PNG)
        with pytest.warns(UserWarning):
            archive.writestr("a/é.png", b"second")
        archive.writestr("a/e\u0301.png", b"decomposed")
        archive.writestr("a/é.png/inner.png", b"a file as a folder")
        archive.writestr("b/0.png/inner.png", PNG)
        archive.writestr("b/0.png", b"a folder as a file")
        archive.writestr("c/" + "long" * 80 + ".png", PNG)
        archive.writestr("/".join("d" * 30) + "/0.png", PNG)
    found = unpacked(out, "twice.zip", tmp_path)
    assert files_in(found) == {"a/é.png": PNG, "b/0.png/inner.png": PNG}
    assert found.passed == {
        "files by a name that was taken": 4,
        "files by names that cannot be": 1,
        "files more than 20 folders deep": 1,
    }
    assert "files by a name that was taken (4)" in found.words


def test_names_of_every_script_and_none(tmp_path: Path) -> None:
    files = {"猫/ü 1.png": PNG, "[red]<b>/x.png": PNG, "a\nb/x.png": PNG}
    for pack in (zipped, tarred):
        assert files_in(unpacked(pack(files), "猫 <b>&..zip", tmp_path)) == files
    raw = tarred({"AAAA/x.png": PNG, "b/y.png": PNG}, kind="w").getvalue()
    head = bytearray(raw[:512].replace(b"AAAA", b"A\xff\xfeA"))
    head[148:156] = b" " * 8
    head[148:156] = f"{sum(head):06o}\0 ".encode()
    found = unpacked(BytesIO(bytes(head) + raw[512:]), "latin.tar", tmp_path)
    assert found.kept == 2
    names = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert all(name.split("-")[0] in ("猫", "latin") for name in names), names


def test_damage_and_locks_are_one_sentence(tmp_path: Path) -> None:
    for pack, name in ((zipped, "a.zip"), (tarred, "a.tar.gz")):
        whole = pack({f"{p[:-4]}-{n}.png": c for p, c in FILES.items() for n in range(9)})
        content = whole.getvalue()
        for cut in (10, len(content) // 2, len(content) - 30):
            assert "damaged" in refused(BytesIO(content[:cut]), tmp_path, name)
        middle = len(content) // 2
        spoilt = content[:middle] + bytes(64) + content[middle + 64 :]
        assert "damaged" in refused(BytesIO(spoilt), tmp_path, name)
    whole = tarred(FILES, kind="w").getvalue()
    second = 512 * (1 + -(-len(PNG) // 512))  # where the header of the second file is
    spoilt = whole[:second] + b"x" * 512 + whole[second + 512 :]
    for content in (whole[:700], whole[:second], spoilt):
        assert "damaged" in refused(BytesIO(content), tmp_path, "a.tar")
    locked = bytearray(zipped({"a/0.png": PNG}).getvalue())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        locked[locked.index(mark) + at] |= 1
    assert "password" in refused(BytesIO(bytes(locked)), tmp_path)
    assert "no archive" in refused(BytesIO(b"GIF89a" * 100), tmp_path)
    assert "no archive" in refused(BytesIO(), tmp_path)
    assert "holds no pictures" in refused(zipped({"readme.txt": b"x"}), tmp_path)


def test_a_header_that_says_more_than_there_is_ends_where_the_archive_does(tmp_path: Path) -> None:
    class Counted(BytesIO):
        reads = 0

        def read(self, size: int | None = -1) -> bytes:
            self.reads += 1
            return super().read(size)

    one = tarfile.TarInfo("a/0.txt")
    one.size = 2**34  # a larger one would keep tarfile busy for days
    archive = Counted(one.tobuf(tarfile.GNU_FORMAT) + bytes(2000))
    assert "it ends too early" in refused(archive, tmp_path, "a.tar")
    assert archive.reads < 100


def test_a_file_without_a_name_is_passed_over(tmp_path: Path) -> None:
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a/0.png", PNG)
        nameless = zipfile.ZipInfo("x")
        archive.writestr(nameless, PNG)
        nameless.filename = ""  # as the directory has it, which is written last
    found = unpacked(out, "some.zip", tmp_path)
    assert files_in(found) == {"a/0.png": PNG}
    assert found.passed == {"hidden files": 1}


def test_no_disk_is_blamed_for_what_is_wrong_with_an_archive(tmp_path: Path) -> None:
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a/0.png", PNG)
    content = packed.getvalue()
    at = content.index(b"BZh")
    spoilt = content[:at] + b"BZx" + content[at + 3 :]
    end = content.index(b"PK\x05\x06") + 16  # where the directory is said to begin
    before = content[:end] + (2**31 - 1).to_bytes(4, "little") + content[end + 4 :]
    for n, one in enumerate((spoilt, before)):
        path = tmp_path / f"{n}.zip"
        path.write_bytes(one)
        with path.open("rb") as file:  # whose seeks fail otherwise than those of bytes in memory
            assert "is damaged" in refused(file, tmp_path / "data")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.FileIO):
        def write(self, content: bytes) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    opened = Path.open

    def full(self: Path, mode: str = "r", *args, **kwargs):
        return Full(self, "x") if mode == "xb" else opened(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    assert "a full disk" in refused(zipped(FILES), tmp_path)
    monkeypatch.undo()
    assert unpacked(zipped(FILES), "photos.zip", tmp_path).kept == len(FILES)


def test_what_a_killed_one_left_is_swept(tmp_path: Path) -> None:
    archive = zipped(FILES)  # a second one would be of another time, so of another name
    found = unpacked(archive, "photos.zip", tmp_path)
    left = tmp_path / f".{found.folder.name}-dead"
    found.folder.rename(left)
    assert unpacked(archive, "photos.zip", tmp_path).folder == found.folder
    assert not left.exists()
    assert LIMITS.packed == 500 * 10**6
