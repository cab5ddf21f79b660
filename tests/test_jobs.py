"""Builds as processes of their own: they end, fail, are cancelled and killed, and it is noticed."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from attribution import jobs
from attribution.engine import Engine
from attribution.jobs import Job
from attribution.records import UserError
from attribution.store import Store

TINY = "--models 1 --masks 1 --epochs 1 --width 0.1 --dims 4x2 --index-dims 8".split()
ENDLESS = ["--models", "1", "--epochs", "100000", "--width", "0.1"]
BOUND = 600  # seconds; nothing here takes more than a few where nothing else runs


def until(ready: Callable[[], bool]) -> None:
    """Wait for `ready`, at most `BOUND` seconds."""
    end = time.monotonic() + BOUND
    while not ready():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def only(cache: Path) -> Job:
    (job,) = jobs.all_jobs(cache)
    return job


def ended(cache: Path) -> Job:
    """The only job, once it is over; no zombie stays, and the log is whole when it has gone."""
    until(lambda: only(cache).state != "running")
    until(lambda: gone(pid_of(cache, only(cache).id)))
    return only(cache)


def pid_of(cache: Path, job_id: str) -> int:
    return jobs.read(cache / "jobs" / job_id / "process.json")["pid"]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def trains(job: Job) -> bool:
    """Whether it is under way; one that has ended never will be."""
    assert job.state == "running", job
    return job.stage == "train" and job.done > 1


@pytest.fixture
def training(tmp_path: Path):
    """The cache of a job that trains for ever, and its process; ended with the test."""
    cache = tmp_path / "cache"
    job_id = jobs.start(cache, ENDLESS)
    pid = pid_of(cache, job_id)
    try:
        until(lambda: trains(only(cache)))
        yield cache, job_id, pid
    finally:
        if not gone(pid):
            os.kill(pid, signal.SIGKILL)
        until(lambda: gone(pid))


def test_a_build_ends_done_with_the_id_of_a_build_that_opens(tmp_path):
    cache = tmp_path / "cache"
    job_id = jobs.start(cache, TINY)
    found = ended(cache)
    assert (found.id, found.state, found.error) == (job_id, "done", "")
    assert found.options == tuple(TINY)
    assert found.seconds > 0 and found.left is None
    (listed,) = Engine(cache).builds()
    assert found.build == listed["build"]
    opened = Engine(cache).open(found.build)
    assert opened.spec.epochs == 1 and opened.spec.features.ka == 4
    assert f"Build {found.build}" in jobs.log(cache, job_id)
    jobs.cancel(cache, job_id)  # has nothing to do
    assert only(cache) == found


def test_a_users_mistake_ends_failed_with_the_sentence(tmp_path):
    job_id = jobs.start(tmp_path, ["--noise", "7"])
    found = ended(tmp_path)
    assert found.state == "failed" and found.build is None
    assert found.error.startswith("a label noise of 7; wanted a share of training labels")
    assert found.error in jobs.log(tmp_path, job_id)
    assert "Traceback" not in jobs.log(tmp_path, job_id)


def test_a_cancelled_job_is_over_and_what_it_finished_stays(training):
    cache, job_id, pid = training
    jobs.cancel(cache, job_id)
    assert ended(cache).state == "cancelled"
    assert gone(pid)
    assert only(cache).build is None and only(cache).options == tuple(ENDLESS)
    store = Store(cache)
    for kind in ("pixels", "data"):
        (kept,) = store.all(kind)
        assert store.has(kind, kept.manifest["id"])
    assert store.all("run") == [] and store.all("build") == []
    jobs.cancel(cache, job_id)  # a second time is no mistake
    assert only(cache).state == "cancelled"


def test_a_killed_job_is_noticed(training):
    cache, _, pid = training
    os.kill(pid, signal.SIGKILL)
    found = ended(cache)
    assert found.state == "failed" and found.build is None
    assert found.error
    assert found.stage == "train" and found.options == tuple(ENDLESS)


def test_a_job_is_behind_the_pages_and_leaves_them_a_core(training):
    _, _, pid = training
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    tasks = [int(t.name) for t in Path(f"/proc/{pid}/task").glob("*")] or [pid]
    # None of its threads is before that; a library may have put one of its own further behind.
    assert min(os.getpriority(os.PRIO_PROCESS, t) for t in tasks) == min(ours + jobs.NICE, 19)
    group = Path(f"/proc/{pid}/autogroup")
    if group.exists() and " nice " in (text := group.read_text()):
        assert int(text.split(" nice ")[1]) == min(ours + jobs.NICE, 19)
    environment = Path(f"/proc/{pid}/environ")
    if environment.exists():
        told = dict(one.split("=", 1) for one in environment.read_text().split("\0") if "=" in one)
        assert int(told["OMP_NUM_THREADS"]) <= max(1, (os.cpu_count() or 1) - 1)


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="this system forgets no peak"
)
def test_a_peak_of_memory_is_that_since_it_was_forgotten():
    jobs.forget_peak()
    held = bytearray(b"1" * 3 * 10**8)
    high = jobs.peak_memory()
    del held
    jobs.forget_peak()
    assert high - jobs.peak_memory() > 2 * 10**8


def test_a_priority_that_linux_does_not_take_at_once_is_told_again(monkeypatch, tmp_path):
    group, told = tmp_path / "autogroup", []
    group.touch()
    monkeypatch.setattr(jobs, "Path", lambda _: group)
    monkeypatch.setattr(os, "setpriority", lambda *_: None)

    def busy(self: Path, text: str) -> None:
        told.append(text)
        if len(told) < 3:
            raise BlockingIOError

    monkeypatch.setattr(Path, "write_text", busy)
    jobs.behind(1)
    assert len(told) == 3 and len(set(told)) == 1


@pytest.mark.parametrize(("asked", "given"), [("", 7), ("3", 3), ("64", 7), ("4,2", 7), ("0", 7)])
def test_a_bound_on_threads_is_kept_and_a_core_left(monkeypatch, asked, given):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert jobs.threads() == given
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert jobs.threads() == 1


def test_a_process_that_took_over_the_number_of_a_job_is_not_that_job(tmp_path):
    place = tmp_path / "jobs" / "0123456789ab"
    place.mkdir(parents=True)
    jobs.write(place / "request.json", {"options": [], "created": 1.0})
    mine = jobs.began(os.getpid())
    jobs.write(place / "process.json", {"pid": os.getpid(), "began": mine})
    assert only(tmp_path).state == "running"
    jobs.write(place / "process.json", {"pid": os.getpid(), "began": f"{mine}0"})
    assert only(tmp_path).state == "failed"
    jobs.cancel(tmp_path, "0123456789ab")  # and it is not ended in its place: we are still here


@pytest.mark.parametrize(
    "job_id", ["0123456789ab", "../secret", "..", "", ".", "/etc", "0123456789AB", "job", "a" * 13]
)
def test_an_unknown_job_is_a_users_mistake_and_never_a_path(tmp_path, job_id):
    (tmp_path / "jobs" / "job").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    for place in (tmp_path / "jobs" / "job", tmp_path / "secret", tmp_path / "jobs", tmp_path):
        (place / "log.txt").write_text("secret")
    for act in (jobs.log, jobs.cancel):
        with pytest.raises(UserError) as told:
            act(tmp_path, job_id)
        assert repr(job_id) in told.value.found
        assert told.value.wanted and told.value.next_step
    assert not list(tmp_path.rglob("cancelled"))


def test_jobs_are_listed_newest_first_and_other_folders_passed_over(tmp_path):
    assert jobs.all_jobs(tmp_path) == []
    for n, created in enumerate((5.0, 9.0, 7.0)):
        place = tmp_path / "jobs" / f"{n:012x}"
        place.mkdir(parents=True)
        jobs.write(place / "request.json", {"options": ["--seed", str(n)], "created": created})
    (tmp_path / "jobs" / "notes").mkdir()
    (tmp_path / "jobs" / f"{7:012x}").mkdir()  # not asked for yet
    assert [j.options[1] for j in jobs.all_jobs(tmp_path)] == ["1", "2", "0"]


def test_a_cache_that_cannot_be_written_is_a_users_mistake(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot be written"):
        jobs.start(tmp_path / "file" / "cache", TINY)


def test_a_finished_job_says_that_its_last_stage_is_complete(tmp_path):
    jobs.start(tmp_path / "cache", TINY)
    found = ended(tmp_path / "cache")
    assert found.state == "done" and found.done == found.total > 0


def test_an_option_that_does_not_exist_ends_failed_with_a_sentence(tmp_path):
    jobs.start(tmp_path, ["--no-such-option"])
    found = ended(tmp_path)
    assert found.state == "failed" and "--no-such-option" in found.error


def test_a_killed_job_says_that_it_ended_without_a_word(training):
    cache, _, pid = training
    os.kill(pid, signal.SIGKILL)
    error = ended(cache).error
    assert "ended" in error and "train ..." not in error
