"""The bench that feeds hostile input to readers: it finds what is planted, and says where."""

import os
import pickle
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import strategies as st

from attribution.records import UserError, natural, one_line
from bench import fuzz
from bench.questions import asked_of
from bench.readers import Reader, readers


class Trace:
    def __reduce__(self) -> tuple:
        return os.system, ("touch was-here",)


def refused(found: str) -> UserError:
    return UserError(found=found, wanted="a file", next_step="give another")


def raises(place: Path, work: Path) -> None:
    raise KeyError("x")


def writes(place: Path, work: Path) -> None:
    (work / "fine").write_text("x")
    (place.parent / "elsewhere").write_text("x")


def hides(place: Path, work: Path) -> None:
    try:
        (place.parent / "elsewhere").mkdir()
    except OSError as error:
        raise refused("a folder") from error


def starts(place: Path, work: Path) -> None:
    subprocess.run(["true"], check=True)


def unpickles(place: Path, work: Path) -> None:
    pickle.loads(pickle.dumps(Trace()))


def swells(place: Path, work: Path) -> None:
    try:
        bytearray(2 * fuzz.ROOM)
    except MemoryError as error:
        raise refused("a large file") from error


def blames(place: Path, work: Path) -> None:
    raise refused("the workspace cannot be written (invalid argument)")


def loops(place: Path, work: Path) -> None:
    while True:
        pass


def waits(place: Path, work: Path) -> None:
    (place / "pipe").read_bytes()


def dies(place: Path, work: Path) -> None:
    os.abort()


PLANTED: dict[Callable, str] = {
    raises: "KeyError: 'x'",
    writes: "open",
    hides: "os.mkdir",
    starts: "subprocess.Popen",
    unpickles: "pickle.find_class",
    swells: "MemoryError",
    blames: "a disk that is not full is blamed",
    loops: "ended by SIGPROF",
    waits: "ended by SIGALRM",
    dies: "ended by SIGABRT",
}


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.__name__)
def test_what_is_planted_is_found_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: Callable
) -> None:
    if planted is loops:  # the others may take their time
        monkeypatch.setattr(fuzz, "CPU", 0.05)
    if planted is waits:
        monkeypatch.setattr(fuzz, "WALL", 1)
    kept, work = tmp_path / "kept", tmp_path / "run"
    kept.mkdir(), work.mkdir()
    inputs = st.just({"file": b"input", "pipe": fuzz.Pipe()})
    reader = Reader("planted", lambda: inputs, planted, 1)
    found = fuzz.batch(reader, inputs, 0, kept, work / "case", time.monotonic() + 600)
    assert found.counts == {fuzz.FAILED: 1}
    (folder,) = kept.iterdir()
    assert (folder / "input" / "file").read_bytes() == b"input"
    assert PLANTED[planted] in (folder / "why.txt").read_text()
    assert not (work / "elsewhere").exists() and not Path("was-here").exists()


def test_the_same_seed_draws_the_same_inputs_and_good_ones_are_counted(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    kept = tmp_path / "seen"

    def some(place: Path, work: Path) -> None:
        (work / "copy").write_bytes((place / "file").read_bytes())
        if b"\x00" in (place / "file").read_bytes():
            raise refused("a zero\nbyte")

    inputs = st.builds(lambda content: {"file": content}, st.binary(max_size=30))
    reader = Reader("some", lambda: inputs, some, 20)
    place, ends = tmp_path / "run" / "case", time.monotonic() + 600
    counts = [fuzz.batch(reader, inputs, n, kept, place, ends).counts for n in (1, 1, 2)]
    assert counts[0] == counts[1] and all(sum(one.values()) == 20 for one in counts)
    assert counts[0][fuzz.ACCEPTED] and counts[0][fuzz.REFUSED] and not counts[0][fuzz.FAILED]
    assert not kept.exists()


CHEAP = ("pictures", "folder", "parquet", "csv", "idx", "archives", "weights", "artifacts")


@pytest.mark.parametrize("name", CHEAP)
def test_a_few_inputs_of_each_reader_of_files_fail_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(fuzz, "WALL", 600)  # its seconds of the processor are bounded all the same
    (reader,) = (one for one in readers(tmp_path, 1) if one.name == name)
    few = Reader(name, reader.inputs, reader.read, 25)
    (tmp_path / "run").mkdir()
    kept, place = tmp_path / "kept", tmp_path / "run" / "case"
    found = fuzz.batch(few, reader.inputs(), 3, kept, place, time.monotonic() + 600)
    said = [one.read_text() for one in kept.glob("*/why.txt")]
    assert not found.counts[fuzz.FAILED], said
    assert sum(found.counts.values()) >= 20


def test_every_page_is_asked_with_the_keys_of_its_widgets() -> None:
    found = asked_of()
    assert {"show", "test", "target", "leave", "picked", "find"} <= set(found["explain"])
    assert {"map_hidden", "map_colour"} <= set(found["map"]) and "build" in found["builds"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a.png", "a.png"),
        ("猫 é ü", "猫 é ü"),
        ("two\nlines\r\0", "two\\nlines\\r\\x00"),
        ("\u202egnp.exe\u2028", "\\u202egnp.exe\\u2028"),
        ("half \ud800, no text \udcff", "half \\ud800, no text \\udcff"),
    ],
)
def test_a_mistake_is_one_line_of_text_whatever_it_is_about(text: str, wanted: str) -> None:
    assert one_line(text) == wanted
    error = UserError(found=text, wanted=text, next_step=text)
    assert str(error) == f"{wanted}; wanted {wanted}: {wanted}." and error.found == wanted
    str(error).encode()


def test_the_middle_of_a_very_long_name_is_left_out() -> None:
    found = one_line("a" * 10**6 + "b")
    assert len(found) < 2000 and re.fullmatch(r"a+ \.\.\. a+b", found)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("0", 0), ("17", 17), ("٣", 3), ("", None), ("-1", None), ("1.5", None), ("²", None),
     ("9" * 18, 10**18 - 1), ("9" * 19, None), ("9" * 5000, None)],
)  # fmt: skip
def test_a_number_is_one_that_a_position_can_be(text: str, wanted: int | None) -> None:
    assert natural(text) == wanted
