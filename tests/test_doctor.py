"""Damage is found and named, what can be repaired is, and a person's work is never touched."""

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Tiny, copied
from filelock import FileLock

from attribution import doctor, jobs
from attribution.decisions import Choice
from attribution.doctor import Finding, environment, examine, pins
from attribution.engine import Engine
from attribution.notes import Note
from attribution.records import FORMAT, UserError
from attribution.store import Draft, Store, _sealed

NAME = "0123456789ab"


def fill(draft: Draft) -> None:
    draft.array("rows", np.arange(100))


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """A cache of a few artifacts that are of no build."""
    found = Engine(tmp_path / "cache", tmp_path / "workspace")
    for n in range(3):
        found.store.make("features", f"{n:012x}", fill, {})
    found.workspace.mkdir()
    return found


@pytest.fixture(autouse=True)
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """How full this machine's disk is decides nothing."""
    monkeypatch.setattr(doctor, "LITTLE", 0)


def trouble(engine: Engine, repair: bool = False) -> list[Finding]:
    """What it finds, the libraries of this machine left aside."""
    found = list(examine(Engine(engine.cache, engine.workspace), repair))
    return [one for one in found if one.trouble and one.about != "environment"]


def content(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_is_sound_is_left_as_it_is(tiny: Tiny, tmp_path: Path):
    cache = copied(tiny, tmp_path / "cache")
    before = content(cache)
    assert trouble(Engine(cache, tmp_path)) == []
    assert trouble(Engine(cache, tmp_path), repair=True) == []
    assert content(cache) == before


def test_nothing_at_all_is_sound_and_makes_no_folders(tmp_path):
    assert trouble(Engine(tmp_path / "cache", tmp_path / "workspace"), repair=True) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_damaged_artifacts_of_a_build_are_named_removed_and_made_again_bit_for_bit(
    tiny: Tiny, tmp_path
):
    copied(tiny, tmp_path / "cache")
    arrays = content(tmp_path / "cache")
    engine = Engine(tmp_path / "cache", tmp_path / "workspace")
    spec = engine.open(tiny.build).spec
    draw = np.random.default_rng(0)
    harmed = {}
    for kind in ("features", "index", "run"):
        place = sorted((tmp_path / "cache" / kind).iterdir())[0]
        path = sorted(p for p in place.iterdir() if p.suffix in (".npy", ".faiss"))[0]
        harmed[f"{kind} {place.name}"] = path
        found = bytearray(path.read_bytes())
        found[draw.integers(len(found))] ^= 1 << draw.integers(8)
        path.write_bytes(bytes(found))
    told = trouble(engine)
    assert {str(path) in one.said for path in harmed.values() for one in told} == {True, False}
    assert all(sum(str(path) in one.said for one in told) == 1 for path in harmed.values())
    assert not any(one.done for one in told)
    told = trouble(engine, repair=True)
    assert sum("Removed" in one.done for one in told) == 3
    (lacks,) = [one for one in told if one.open]  # what only a build can mend, and how
    assert f"Build {tiny.build} lacks" in lacks.said and "run `build --data mnist5k" in lacks.said
    assert all(name in lacks.said for name in harmed)
    assert not any(path.exists() for path in harmed.values())
    fresh = Engine(tmp_path / "cache", tmp_path / "workspace")
    fresh.build(spec)
    assert trouble(fresh) == []
    for path in harmed.values():
        assert path.read_bytes() == arrays[str(path)]


@pytest.mark.parametrize("repair", [False, True])
def test_manifests_files_and_what_killed_writers_left(engine, repair):
    place = engine.cache / "features"
    (place / f"{0:012x}" / "manifest.json").write_text("{")
    (place / f"{1:012x}" / "rows.npy").unlink()
    (place / f".{2:012x}-killed" / "whole").mkdir(parents=True)  # its artifact is there
    (place / f".{NAME}-held" / "whole").mkdir(parents=True)
    held = engine.cache / "locks" / f"features-{NAME}.lock"
    with FileLock(held):  # its writer lives
        told = trouble(engine, repair)
        assert [one.said.partition(" is damaged")[0].split("/")[-2:] for one in told[:2]] == [
            [f"{0:012x}", "manifest.json"], [f"{1:012x}", "rows.npy"],
        ]  # fmt: skip
        assert told[2].said == f"What a killed writer left of features {2:012x}."
        assert len(told) == 3 and all(one.open is not repair for one in told)
    there = {p.name for p in place.iterdir()}
    assert there == ({f"{2:012x}", f".{NAME}-held"} if repair else there)
    left = trouble(engine)
    assert [one.said for one in left if NAME not in one.said] == ([] if repair else [
        one.said for one in told
    ])  # fmt: skip


def test_a_job_that_died_without_a_word_is_written_down(engine):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    process = {"pid": ended.pid, "began": jobs.began(ended.pid)}
    ended.wait()
    place = engine.cache / "jobs" / NAME
    place.mkdir(parents=True)
    jobs.write(place / "process.json", process)
    jobs.write(place / "request.json", {"command": "build", "options": []})
    jobs.write(place / "status.json", {"state": "running", "stage": "train", "done": 1, "total": 2})
    (one,) = trouble(engine)
    assert f"job {NAME} ended without saying so" in one.said and one.open
    (one,) = trouble(engine, repair=True)
    assert one.done
    assert jobs.read(place / "status.json")["state"] == "failed"
    assert trouble(engine) == []
    (job,) = engine.jobs()
    assert (job.state, job.stage) == ("failed", "train") and "killed" in job.error


def test_what_an_archive_left_is_removed_and_an_archive_is_not(engine):
    data = engine.workspace / "data"
    (data / ".pictures-0123-abc" / "whole").mkdir(parents=True)
    (data / "pictures-0123").mkdir()
    (one,) = trouble(engine)
    assert "archive" in one.said and one.open
    trouble(engine, repair=True)
    assert [p.name for p in data.iterdir() if p.is_dir()] == ["pictures-0123"]


def test_decisions_on_what_is_not_here_are_told_and_no_trouble(engine, tiny: Tiny):
    engine.decisions.decide("cafe00000000", "some", "keep")
    found = list(examine(engine))
    (one,) = [one for one in found if "cafe00000000" in one.said]
    assert not one.trouble
    here = Engine(tiny.cache, engine.workspace)
    opened = here.open(tiny.build)
    here.decisions.decide(opened.data_id, opened.train_ids[0], "keep")
    here.decisions.decide(opened.test_half.id, opened.test_ids[0], "drop")
    (one,) = [one for one in examine(here) if "not in this cache" in one.said]
    assert one.said.endswith("not in this cache: cafe00000000.")


def test_damaged_decisions_and_notes_are_named_and_never_touched(engine):
    some = [Choice(example_id=f"example {n}", verdict="keep") for n in range(200)]
    engine.decisions.decide_all("data", some)
    with engine.notes._open() as db:
        db.execute("CREATE TABLE more (words TEXT)")
        db.executemany("INSERT INTO more VALUES (?)", [("words" * 100,)] * 200)
    db = sqlite3.connect(engine.decisions.path)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    for path in (engine.decisions.path, engine.notes.path):
        whole = bytearray(path.read_bytes())
        whole[4096 : 4096 + 64] = b"\xff" * 64  # a page in the middle
        path.write_bytes(bytes(whole))
    before = {p: p.read_bytes() for p in (engine.decisions.path, engine.notes.path)}
    told = trouble(engine, repair=True)
    assert len(told) == 2 and all(one.open for one in told)
    assert all(f"{p} is damaged" in one.said for p, one in zip(before, told, strict=True))
    assert {p: p.read_bytes() for p in before} == before


def test_what_a_newer_version_wrote_is_refused_in_a_sentence_and_left_alone(engine, monkeypatch):
    engine.decisions.decide("data", "some", "keep")
    engine.store.make("build", NAME, fill, {})
    with monkeypatch.context() as patched:
        patched.setattr(Engine, "open", lambda self, build_id: None)  # of a build it is not
        engine.say(NAME, "mine")
    for path in (engine.decisions.path, engine.notes.path):
        db = sqlite3.connect(path)
        db.execute("PRAGMA user_version = 99")
        db.commit()
        db.close()
    path = engine.cache / "build" / NAME / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    path.write_text(_sealed(manifest | {"format": FORMAT + 1}))
    before = path.read_text()
    fresh = Engine(engine.cache, engine.workspace)
    for act in (
        lambda: fresh.open(NAME),
        lambda: fresh.store.has("build", NAME),
        lambda: fresh.store.make("build", NAME, fill, {}),  # and does not overwrite it
        lambda: fresh.notes.all(),
        lambda: fresh.notes.say(NAME, Note("other")),
        lambda: fresh.decisions.in_force("data"),
    ):
        with pytest.raises(UserError, match="version|format"):
            act()
    told = trouble(engine, repair=True)
    assert ["newer version (99)" in one.said for one in told] == [True, True]
    assert path.read_text() == before
    assert any("1 artifacts of another format" in one.said for one in examine(engine))


def test_notes_of_the_first_version_are_read(engine):
    """As it was written before the file's version was looked at."""
    db = sqlite3.connect(engine.notes.path)
    db.execute(
        "CREATE TABLE notes (seq INTEGER PRIMARY KEY AUTOINCREMENT, build_id TEXT NOT NULL, "
        "name TEXT NOT NULL, note TEXT NOT NULL, time REAL NOT NULL)"
    )
    db.execute("INSERT INTO notes (build_id, name, note, time) VALUES ('b', 'mine', 'said', 0)")
    db.commit()
    db.close()
    assert engine.notes.of("b") == Note("mine", "said")


def test_libraries_are_held_against_what_was_tested():
    wrong = [one.said for one in environment({"numpy": "0.1", "nosuch": "1"}) if one.trouble]
    assert wrong == [
        f"numpy {np.__version__} (tested with 0.1), nosuch not installed (tested with 1): "
        "run `pip install -r requirements.txt`."
    ]
    listed = Path(doctor.__file__).parents[1] / "requirements.txt"
    assert (
        pins().items()
        <= dict(
            line.split("==") for line in listed.read_text().splitlines() if "==" in line
        ).items()
    )
    assert {"torch", "numpy", "streamlit"} <= pins().keys()


def test_a_folder_that_cannot_be_written_and_a_disk_with_little_room(engine, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(doctor, "LITTLE", 10**18)
        assert ["is little" in one.said for one in trouble(engine)] == [True, True]
    (engine.workspace / "file").write_text("")
    assert [one.about for one in doctor.places(Engine(engine.cache, Path("/proc"))) if one.trouble]


def test_the_command_exits_1_while_there_is_trouble(engine, monkeypatch, capsys):
    from attribution.__main__ import main

    monkeypatch.setattr(doctor, "pins", dict)

    def run(*words: str) -> tuple[int, str]:
        place = ["--cache", str(engine.cache), "--workspace", str(engine.workspace)]
        monkeypatch.setattr(sys, "argv", ["attribution", "doctor", *words, *place])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, capsys.readouterr().out

    assert run()[0] == 0
    (engine.cache / "features" / f"{1:012x}" / "rows.npy").write_bytes(b"")
    code, out = run()
    assert code == 1 and "trouble  cache" in out and "--repair" in out
    code, out = run("--json")
    assert code == 1 and json.loads(out)["healthy"] is False
    code, out = run("--repair", "--json")
    assert code == 0 and json.loads(out)["healthy"] is True
    assert [one["done"] for one in json.loads(out)["findings"] if one["trouble"]] == [
        "Removed; the same `build` makes it again."
    ]
    assert run()[0] == 0
    assert Store(engine.cache).names() == [("features", f"{n:012x}") for n in (0, 2)]
