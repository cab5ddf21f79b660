"""Artifacts are whole or absent, made once, and checked; the disk's refusals are one sentence."""

import hashlib
import json
import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from attribution.records import FORMAT, UserError
from attribution.store import Artifact, Damaged, Draft, Store, _sealed

NAME, OTHER = "0123456789ab", "ba9876543210"
ROWS = np.arange(6, dtype=np.uint8).reshape(2, 3)


def fill(draft: Draft) -> None:
    draft.array("rows", ROWS)
    draft.weights({"layer.weight": torch.eye(2), "layer.bias": torch.ones(3, 2).T})
    draft.bytes_of("words.bin", b"\x00words")
    draft.note(accuracy=np.float32(0.5), count=3)


def never(draft: Draft) -> None:
    raise AssertionError("filled a second time")


def made(root: Path, name: str = NAME) -> Artifact:
    return Store(root).make("run", name, fill, {"seed": 7})


def everything(root: Path) -> list[str]:
    """What is below the cache, lock files left aside."""
    return sorted(p.relative_to(root).as_posix() for p in (root / "run").rglob("*"))


def assert_whole(root: Path, name: str = NAME) -> None:
    found = Store(root).find("run", name)
    assert found is not None
    np.testing.assert_array_equal(found.array("rows"), ROWS)
    assert sorted(found.weights()) == ["layer.bias", "layer.weight"]
    assert found.bytes_of("words.bin") == b"\x00words"


def test_what_was_filled_is_read_back_by_another_store(tmp_path):
    made(tmp_path)
    found = Store(tmp_path).find("run", NAME)
    np.testing.assert_array_equal(found.array("rows"), ROWS)
    mapped = found.array("rows", memory_map=True)
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, ROWS)
    assert torch.equal(found.weights()["layer.weight"], torch.eye(2))
    assert torch.equal(found.weights()["layer.bias"], torch.ones(2, 3))
    assert found.bytes_of("words.bin") == b"\x00words"
    facts = {k: found.manifest[k] for k in ("kind", "id", "made_by", "accuracy", "count")}
    assert facts == {
        "kind": "run", "id": NAME, "made_by": {"seed": 7}, "accuracy": 0.5, "count": 3,
    }  # fmt: skip
    files = [p for p in found.place.iterdir() if p.name != "manifest.json"]
    assert found.size == sum(p.stat().st_size for p in files)


def test_an_artifact_in_the_making_is_not_seen_by_a_reader(tmp_path):
    def look(draft: Draft) -> None:
        fill(draft)
        reader = Store(tmp_path)
        assert reader.find("run", NAME) is None and not reader.has("run", NAME)
        assert reader.all("run") == []

    Store(tmp_path).make("run", NAME, look, {})
    assert Store(tmp_path).has("run", NAME)


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_a_fill_that_raises_leaves_nothing(tmp_path, error):
    def fails(draft: Draft) -> None:
        fill(draft)
        raise error

    store = Store(tmp_path)
    with pytest.raises(type(error)):
        store.make("run", NAME, fails, {})
    assert everything(tmp_path) == []
    assert store.find("run", NAME) is None
    store.make("run", NAME, fill, {})
    assert_whole(tmp_path)


def test_a_second_make_does_not_fill(tmp_path):
    store = Store(tmp_path)
    store.make("run", NAME, fill, {})
    for again in (store, Store(tmp_path)):
        assert again.make("run", NAME, never, {}).bytes_of("words.bin") == b"\x00words"


# A process that waits for a line, says that it asks, and says so when it fills; then it waits for
# another line. What happens when is therefore up to the test, not to a clock.
MAKER = """
import sys
from pathlib import Path
import numpy as np
from attribution.store import Store

def fill(draft):
    draft.array("rows", np.arange(5))
    print("filling", flush=True)
    sys.stdin.readline()

sys.stdin.readline()
print("asking", flush=True)
found = Store(Path(sys.argv[1])).make("run", sys.argv[2], fill, {})
print("got", int(found.array("rows").sum()), flush=True)
"""


@contextmanager
def maker(root: Path) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        [sys.executable, "-c", MAKER, str(root), NAME],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def say(process: subprocess.Popen) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_a_maker_killed_while_filling_leaves_nothing_that_is_read_and_the_next_one_sweeps(tmp_path):
    with maker(tmp_path) as process:
        say(process)
        assert [process.stdout.readline() for _ in range(2)] == ["asking\n", "filling\n"]
        process.kill()
        process.wait()
    left = everything(tmp_path)
    assert any(p.endswith("rows.npy") for p in left)  # the kill came in the middle
    store = Store(tmp_path)
    assert store.find("run", NAME) is None and not store.has("run", NAME)
    assert store.all("run") == []
    store.make("run", OTHER, fill, {})
    assert set(left) < set(everything(tmp_path))  # another id's maker does not touch it
    store.make("run", NAME, fill, {})
    assert_whole(tmp_path)
    assert {p.split("/")[1] for p in everything(tmp_path)} == {NAME, OTHER}


def test_of_two_processes_one_fills_and_the_other_gets_it(tmp_path):
    with maker(tmp_path) as one, maker(tmp_path) as other:
        for process in (one, other):
            say(process)
        for process in (one, other):
            assert process.stdout.readline() == "asking\n"
        for process in (one, other):  # whichever fills may end
            say(process)
        said = [process.stdout.read().splitlines() for process in (one, other)]
    assert sorted(said) == [["filling", "got 10"], ["got 10"]]


def flipped(content: bytes, at: int, bits: int) -> bytes:
    return content[:at] + bytes([content[at] ^ bits]) + content[at + 1 :]


def read(root: Path, file: str) -> None:
    found = Store(root).find("run", NAME)
    assert found is not None
    if file == "rows.npy":
        found.array("rows")
    elif file == "weights.safetensors":
        found.weights()
    else:
        found.bytes_of(file)


def assert_named(root: Path, path: Path, file: str) -> None:
    """A damaged file is told with its path, what was wanted and what to do."""
    with pytest.raises(UserError) as told:
        read(root, file)
    assert str(path) in told.value.found and "damaged" in told.value.found
    assert "manifest" in told.value.wanted
    assert "remove" in told.value.next_step and "build" in told.value.next_step
    assert "\n" not in str(told.value)


FILES = ["rows.npy", "weights.safetensors", "words.bin"]


@pytest.mark.parametrize("file", FILES)
def test_every_flipped_byte_of_a_file_is_named(tmp_path, file):
    path = made(tmp_path).place / file
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(flipped(content, at, 1 << at % 8))
        assert_named(tmp_path, path, file)
    path.write_bytes(content)
    read(tmp_path, file)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_cut_or_longer_file_is_named(tmp_path, file):
    path = made(tmp_path).place / file
    content = path.read_bytes()
    for damaged in (b"", content[:-1], content + b"\0"):
        path.write_bytes(damaged)
        assert_named(tmp_path, path, file)
    path.unlink()
    assert_named(tmp_path, path, file)


def test_a_file_that_the_manifest_does_not_know_is_not_read(tmp_path):
    place = made(tmp_path).place
    (place / "more.bin").write_bytes(b"more")
    assert_named(tmp_path, place / "more.bin", "more.bin")


def test_every_flipped_or_missing_end_of_a_manifest_is_named(tmp_path):
    path = made(tmp_path).place / "manifest.json"
    content = path.read_bytes()
    damaged = [flipped(content, at, (1, 0xFF)[at % 2]) for at in range(len(content))]
    damaged += [content[:length] for length in range(0, len(content), 9)]
    damaged += [b"[]", b"null", b'{"format": 1}']
    for some in damaged:
        path.write_bytes(some)
        with pytest.raises(UserError) as told:
            Store(tmp_path).find("run", NAME)
        assert str(path) in told.value.found and told.value.next_step
        assert "\n" not in str(told.value)
    path.unlink()
    with pytest.raises(UserError, match="no readable manifest"):
        Store(tmp_path).find("run", NAME)


@pytest.mark.parametrize(
    "harm",
    [
        {"files": {"../numbers.npy": {"bytes": 1, "sha256": ""}}},
        {"files": {"/etc/passwd": {"bytes": 1, "sha256": ""}}},
        {"files": {"x" * 5000: {"bytes": 1, "sha256": ""}}},
        {"files": {"numbers.npy": {"bytes": "1", "sha256": ""}}},
        {"files": {"numbers.npy": {"bytes": -1, "sha256": ""}}},
        {"files": {"numbers.npy": "x"}},
        {"files": {"numbers.npy": {"bytes": 1}}},
        {"created": None},
        {"id": 3},
    ],
)
def test_a_manifest_that_its_checksum_fits_is_believed_no_more_than_it_makes_sense(tmp_path, harm):
    place = made(tmp_path).place
    manifest = json.loads((place / "manifest.json").read_text()) | harm
    manifest.pop("sha256")
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (place / "manifest.json").write_text(json.dumps({**manifest, "sha256": digest}))
    store = Store(tmp_path)
    assert not store.has(place.parent.name, place.name) and not store.all(place.parent.name)
    with pytest.raises(UserError, match="no readable manifest"):
        store.find(place.parent.name, place.name)


@pytest.mark.parametrize("name", ["../run/" + NAME, "x" * 5000, "a\0b", "", "..", NAME.upper()])
def test_what_is_no_id_is_no_artifact(tmp_path, name):
    made(tmp_path)
    assert Store(tmp_path).find("run", name) is None and not Store(tmp_path).has("run", name)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 1000 + b"1" + b"}" * 1000])
def test_a_manifest_that_is_nested_too_deep_is_named(tmp_path, content):
    place = made(tmp_path).place
    (place / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match="no readable manifest"):
        Store(tmp_path).find(place.parent.name, place.name)


def test_a_manifest_of_another_format_says_which_and_what_to_do(tmp_path):
    path = made(tmp_path).place / "manifest.json"
    manifest = json.loads(path.read_text()) | {"format": FORMAT + 41}
    path.write_text(json.dumps(manifest))  # the number alone: a flip, which is damage
    with pytest.raises(Damaged, match="no readable manifest"):
        Store(tmp_path).find("run", NAME)
    del manifest["sha256"]
    path.write_text(_sealed(manifest))
    with pytest.raises(UserError) as told:
        Store(tmp_path).find("run", NAME)
    assert str(path) in told.value.found and f"format {FORMAT + 41}" in told.value.found
    assert told.value.wanted == f"format {FORMAT}"
    assert "--cache" in told.value.next_step


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("harm", [Path.unlink, cut], ids=["missing", "short"])
@pytest.mark.parametrize("file", [*FILES, "manifest.json"])
def test_what_lacks_a_file_is_not_had_and_is_made_again(tmp_path, file, harm):
    made(tmp_path)
    store = Store(tmp_path)
    assert store.has("run", NAME)
    fresh = Store(tmp_path)
    harm(tmp_path / "run" / NAME / file)
    assert not fresh.has("run", NAME)
    if file != "manifest.json":
        assert not store.has("run", NAME)  # though it was open
    fresh.make("run", NAME, fill, {})
    assert_whole(tmp_path)


def test_an_absent_artifact_is_none(tmp_path):
    store = Store(tmp_path / "nowhere")
    assert store.find("run", NAME) is None and not store.has("run", NAME)
    assert store.all("run") == []
    assert not (tmp_path / "nowhere").exists()  # reading makes no folders


def assert_refused(root: Path, fill_: Callable[[Draft], None], *words: str) -> None:
    with pytest.raises(UserError) as told:
        Store(root).make("run", NAME, fill_, {})
    assert str(root) in told.value.found
    for word in words:
        assert word in str(told.value)
    assert "\n" not in str(told.value)
    assert "--cache" in told.value.next_step


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path):
    file = tmp_path / "file"
    file.write_text("not a folder")
    assert_refused(file, never, "cannot be written")
    assert_refused(file / "cache", never, "cannot be written (not a directory)")
    assert_refused(Path("/proc/cache"), never, "cannot be written")  # refused to root as well
    assert file.read_text() == "not a folder"


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    def into_a_full_device(draft: Draft) -> None:
        fill(draft)
        (draft.place / "more.npy").symlink_to("/dev/full")
        draft.array("more", ROWS)

    assert_refused(tmp_path, into_a_full_device, "a full disk", "free some space")
    assert everything(tmp_path) == []
    made(tmp_path)


def test_a_file_larger_than_the_system_allows_is_one_sentence_and_leaves_nothing(tmp_path):
    def large(draft: Draft) -> None:
        draft.array("rows", np.zeros(100_000))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        assert_refused(tmp_path, large, "file too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert everything(tmp_path) == []


def test_rows_written_block_after_block_are_the_array(tmp_path):
    def blocks(draft: Draft) -> None:
        some = (ROWS[n : n + 1].astype(float) for n in range(2))
        mapped = draft.rows("rows", ROWS.shape, np.float16, some)
        assert isinstance(mapped, np.memmap) and mapped.dtype == np.float16

    found = Store(tmp_path).make("run", NAME, blocks, {}).array("rows")
    np.testing.assert_array_equal(found, ROWS)


def test_a_matrix_on_scratch_is_a_tensor_and_leaves_nothing(tmp_path):
    wanted, draw = torch.zeros(50, 7), np.random.default_rng(0)
    with Store(tmp_path).matrices() as matrices:
        found, other = matrices(50, 7), matrices(50, 3)
        found[slice(0, 50)] = wanted
        for _ in range(20):
            low, high = sorted(draw.choice(51, 2, replace=False).tolist())
            values = torch.from_numpy(draw.normal(size=(high - low, 7))).float()
            wanted[low:high] = found[slice(low, high)] = values
            other[slice(0, 9)] = torch.ones(9, 3)
        assert torch.equal(found[slice(0, 50)], wanted)
        assert torch.equal(found[slice(11, 30)], wanted[11:30])
        assert not list(tmp_path.iterdir())


def test_scratch_that_the_system_refuses_is_one_sentence(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Store(tmp_path).matrices() as matrices:
        made = matrices(10_000, 10)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        try:
            with pytest.raises(UserError, match="file too large"):
                made[slice(0, 10_000)] = torch.ones(10_000, 10)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_several_artifacts_are_filled_together_but_those_that_are_there(tmp_path):
    store, filled = Store(tmp_path), []

    def together(drafts: Mapping[str, Draft]) -> None:
        filled.append(list(drafts))
        for name, draft in drafts.items():
            draft.note(called=name)
            fill(draft)

    store.make("run", OTHER, fill, {})
    names = {n: {"seed": j} for j, n in enumerate(("c" * 12, OTHER, NAME, "a" * 12))}
    for _ in range(2):
        found = store.make_all("run", names, together)
        assert [a.manifest["id"] for a in found] == list(names)
    assert filled == [[NAME, "a" * 12, "c" * 12]]
    assert [a.manifest["made_by"]["seed"] for a in found if "called" in a.manifest] == [0, 2, 3]
    for name in names:
        assert_whole(tmp_path, name)


def test_several_artifacts_of_which_one_fails_leave_nothing(tmp_path):
    def half(drafts: Mapping[str, Draft]) -> None:
        fill(drafts[NAME])
        raise RuntimeError

    with pytest.raises(RuntimeError):
        Store(tmp_path).make_all("run", {NAME: {}, OTHER: {}}, half)
    assert everything(tmp_path) == []


class Payload:
    """Pickled, it would make a folder when loaded."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.place),)


def test_pickled_arrays_are_neither_written_nor_read(tmp_path):
    trap = tmp_path / "sprung"
    objects = np.array([Payload(trap)], dtype=object)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        Store(tmp_path).make("run", NAME, lambda draft: draft.array("rows", objects), {})
    assert everything(tmp_path) == []

    def forged(draft: Draft) -> None:
        np.save(draft.place / "rows.npy", objects, allow_pickle=True)
        draft.bytes_of("bare.npy", pickle.dumps(Payload(trap)))

    found = Store(tmp_path).make("run", NAME, forged, {})
    for name in ("rows", "bare"):
        for mapped in (False, True):
            with pytest.raises(ValueError):
                found.array(name, memory_map=mapped)
    assert not trap.exists()


def test_all_are_the_newest_first_and_damaged_ones_are_passed_over(tmp_path):
    store = Store(tmp_path)
    days = {f"{n:012x}": f"2024-01-{d:02}T00:00:00Z" for n, d in enumerate([3, 9, 1, 7, 5])}
    for name, day in days.items():

        def dated(draft: Draft, day: str = day) -> None:
            fill(draft)
            draft.created = day

        store.make("run", name, dated, {})
    (tmp_path / "run" / "a note").mkdir()
    (tmp_path / "run" / f".{NAME}-left").mkdir()
    broken = f"{3:012x}"
    cut(tmp_path / "run" / broken / "manifest.json")
    wanted = sorted(days.keys() - {broken}, key=lambda name: days[name], reverse=True)
    assert [a.manifest["id"] for a in Store(tmp_path).all("run")] == wanted
