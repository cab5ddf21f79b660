"""What goes wrong around the program is one sentence, and nothing is lost.

Disks that are full, folders that may not be written or have gone, a clock that is set back, a job
killed while a page looks on. Kills inside commands are `python -m bench kills`.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from apptest import at_place, fine, page
from conftest import Tiny, room

from attribution import decisions, jobs
from attribution.__main__ import write_folder, write_whole
from attribution.decisions import Decisions
from attribution.engine import Engine
from attribution.folds import folds_id
from attribution.gc import unused
from attribution.notes import Note
from attribution.records import UserError
from attribution.store import Draft, Store
from bench.__main__ import NAMES

ROOT = Path(__file__).parents[1]
DATA, NAME = "d" * 12, "0123456789ab"
NOBODY = 65534  # whom the system refuses what it would grant to root


def fill(draft: Draft) -> None:
    draft.bytes_of("words", b"words")


def sentence(act: Callable[[], object]) -> str:
    """What a user is told who is refused."""
    with pytest.raises(UserError) as told:
        act()
    assert "\n" not in str(told.value) and told.value.wanted and told.value.next_step
    return told.value.found


def test_decisions_that_fit_stand_when_the_disk_is_full_and_the_log_goes_on(tmp_path):
    log = Decisions(tmp_path / "decisions.sqlite")
    made = []

    def decide() -> None:
        evidence = "e" * 2000
        made.append(log.decide(DATA, f"e-{len(made)}", "keep", evidence=evidence))

    with room(60_000):
        assert "cannot be used" in sentence(lambda: [decide() for _ in range(60)])
    assert len(made) > 5
    assert log.history(DATA) == made == Decisions(log.path).history(DATA)
    decide()
    assert Decisions(log.path).history(DATA) == made


def test_a_job_that_cannot_be_written_down_is_not_started(tmp_path, monkeypatch):
    started = []

    class Watched(subprocess.Popen):
        def __init__(self, *args, **options) -> None:
            super().__init__(*args, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Watched)
    with room(10):
        assert "cannot be written" in sentence(lambda: jobs.start(tmp_path, []))
    assert [process.poll() for process in started] == [-signal.SIGKILL]
    assert jobs.all_jobs(tmp_path) == []


def test_a_job_goes_on_when_its_progress_cannot_be_written(tmp_path):
    (tmp_path / "request.json").write_text("{}")
    said = []
    report, finish = jobs.reporter(tmp_path, lambda *words: said.append(words))
    report("train", 1, 9)
    with room(0):
        report("fit", 9, 9)
        finish(state="failed", error="a full disk")
    assert said == [("train", 1, 9), ("fit", 9, 9)]
    assert jobs.read(tmp_path / "status.json")["stage"] == "train"  # as it was, and whole
    finish(state="done")
    assert jobs.read(tmp_path / "status.json")["state"] == "done"


def test_a_process_that_nobody_wrote_down_does_not_work(tmp_path, monkeypatch):
    """Whoever started it was killed before the job was one, so nobody would see it work."""
    monkeypatch.setattr(jobs, "PATIENCE", 0)
    assert "no request" in sentence(lambda: jobs.reporter(tmp_path, print))


@pytest.fixture
def locked() -> Iterator[Path]:
    """A cache and a workspace that may be read and not written."""
    root = Path(tempfile.mkdtemp())
    engine = Engine(root / "cache", root)
    engine.store.make("run", NAME, fill, {})
    engine.decisions.decide(DATA, "e-0", "keep")
    places = [root, *(p for p in root.rglob("*") if p.is_dir())]
    for place in places:
        place.chmod(0o555)
    yield root
    for place in places:
        place.chmod(0o755)
    shutil.rmtree(root)


def as_nobody(act: Callable[[], object]) -> str:
    """What a user is told who is not root."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            if not os.getuid():
                os.setuid(NOBODY)
            os.write(write, sentence(act).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        said = file.read()
    os.waitpid(pid, 0)
    return said


def test_a_folder_that_may_not_be_written_is_one_sentence_and_is_still_read(locked):
    before = {p: p.read_bytes() for p in locked.rglob("*") if p.is_file()}
    engine = Engine(locked / "cache", locked)
    for act in (
        lambda: engine.store.make("run", "f" * 12, fill, {}),
        lambda: engine.start([]),
        lambda: engine.decisions.decide(DATA, "e-1", "drop"),
        lambda: engine.notes.say(NAME, Note("mine")),
        lambda: engine.unpacked((locked / "decisions.sqlite").open("rb"), "a.zip"),
    ):
        said = as_nobody(act)
        assert str(locked) in said and ("cannot be written" in said or "cannot be used" in said)
    assert {p: p.read_bytes() for p in locked.rglob("*") if p.is_file()} == before
    assert Store(locked / "cache").find("run", NAME).bytes_of("words") == b"words"
    assert list(Decisions(locked / "decisions.sqlite").in_force(DATA)) == ["e-0"]


def test_a_cache_that_has_gone_is_one_sentence_and_answers_when_it_is_back(tiny: Tiny, tmp_path):
    cache = shutil.copytree(tiny.cache, tmp_path / "cache")
    engine = Engine(cache, tmp_path)
    engine.decisions.decide(DATA, "e-0", "keep")
    away = cache.rename(tmp_path / "away")
    assert f"no build {tiny.build!r}" in sentence(lambda: engine.open(tiny.build))
    assert engine.builds() == [] and engine.jobs() == []
    away.rename(cache)
    wanted = Engine(tiny.cache).open(tiny.build).query(3, 5)
    build = engine.open(tiny.build)
    cache.rename(away)  # once more, with the build open
    assert build.query(3, 5) == wanted  # by what is open already
    assert str(cache) in sentence(build.mislabels)
    away.rename(cache)
    assert len(engine.open(tiny.build).mislabels()) == 4500
    assert list(engine.decisions.in_force(DATA)) == ["e-0"]


def test_folds_whose_manifest_is_damaged_are_told_and_not_left_out(tiny: Tiny, tmp_path):
    cache = shutil.copytree(tiny.cache, tmp_path / "cache")
    build = Engine(cache).open(tiny.build)
    made = build.store.make("folds", folds_id(build.folds_spec), fill, {})
    manifest = made.place / "manifest.json"
    manifest.write_text("{")
    assert str(manifest) in sentence(Engine(cache).open(tiny.build).mislabels)


def test_a_clock_that_is_set_back_changes_no_order(tmp_path, monkeypatch):
    log = Decisions(tmp_path / "decisions.sqlite")
    for n, stamp in enumerate(("2026-03-01T00:00:00", "2026-01-01T00:00:00")):
        monkeypatch.setattr(decisions, "now", lambda stamp=stamp: stamp)
        log.decide(DATA, "e", "relabel", label=n)
    assert log.in_force(DATA)["e"].label == 1
    assert [d.label for d in log.undo(DATA)] == [1]
    assert log.in_force(DATA)["e"].label == 0
    place = tmp_path / "jobs" / NAME
    place.mkdir(parents=True)
    jobs.write(place / "request.json", {"created": 1e9})
    monkeypatch.setattr(time, "time", lambda: 5e8)
    assert jobs.later(tmp_path) > 1e9  # a job that is started now is the newest
    report, finish = jobs.reporter(place, lambda *_: None)
    monkeypatch.setattr(time, "time", lambda: 4e8)
    report("train", 1, 9)
    report("fit", 9, 9)
    finish(state="done")
    status = jobs.read(place / "status.json")
    assert status["stage"] == "fit" and 0 <= status["seconds"] < 1000


def test_a_clock_that_is_set_back_makes_nothing_old_enough_to_go(tmp_path, monkeypatch):
    engine = Engine(tmp_path / "cache", tmp_path)
    engine.store.make("run", NAME, fill, {})
    assert [a.kind for a in unused(engine, young=0).artifacts] == ["run"]
    monkeypatch.setattr(time, "time", lambda: 5e8)
    assert unused(engine, young=0).artifacts == ()


def test_a_job_killed_while_a_page_looks_on_is_shown_as_failed(tmp_path, monkeypatch):
    place = at_place(Tiny(tmp_path / "cache", tmp_path / "ws", ""), monkeypatch)
    job = place.cache / "jobs" / NAME
    job.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        jobs.write(job / "process.json", {"pid": process.pid, "began": jobs.began(process.pid)})
        jobs.write(job / "request.json", {"command": "study", "options": [], "created": 1.0})
        (job / "log.txt").write_text("train ...\n")
        app = fine(page("builds"))
        assert [b.label for b in app.button if b.label in ("Cancel", "Resume")] == ["Cancel"]
        process.kill()
        process.wait()
        app.run()
        assert [b.label for b in app.button if b.label in ("Cancel", "Resume")] == ["Resume"]
        (error,) = app.error
        assert "ended without a word" in error.value
        assert not app.exception


def killed_at(rename: int, act: Callable[[], object]) -> None:
    """A process that does `act` and is killed before its `rename`-th rename."""
    pid = os.fork()
    if not pid:
        left = [rename]

        def hook(event: str, _: object) -> None:
            if event == "os.rename":
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            act()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_an_export_that_was_killed_leaves_nothing_once_another_is_made(tmp_path):
    file, folder = tmp_path / "a.csv", tmp_path / "a"
    other = tmp_path / f".a.csv.{os.getpid()}.unfinished.txt"  # a person's own
    other.touch()
    write_whole(file, b"old")
    write_folder(folder, [("old", b"old")])
    killed_at(1, lambda: write_whole(file, b"new"))
    killed_at(2, lambda: write_folder(folder, [("new", b"new")]))  # the old one is out of the way
    assert file.read_bytes() == b"old" and not folder.exists()

    def failing() -> Iterator[tuple[str, bytes]]:
        yield "new", b"new"
        raise UserError(found="damage", wanted="none", next_step="mend it")

    sentence(lambda: write_folder(folder, failing()))
    assert [p.name for p in folder.iterdir()] == ["old"]
    write_whole(file, b"new")
    write_folder(folder, [("new", b"new")])
    assert sorted(tmp_path.iterdir()) == sorted([file, folder, other])
    assert file.read_bytes() == b"new" and [p.name for p in folder.iterdir()] == ["new"]


def test_each_promise_of_reliability_names_tests_and_benches_that_exist() -> None:
    text = (ROOT / "docs/RELIABILITY.md").read_text("utf-8").partition("## Figures")[0]
    lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    promises = [line for line in lines if not line.startswith("| promise ")]
    assert len(promises) > 20
    for line in promises:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", line)
        benches = re.findall(r"`bench (\w+)`", line)
        assert named or benches, line
        assert set(benches) <= set(NAMES), line
        for file, name in named:
            assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text("utf-8"), (file, name)
