"""Commands started from the browser: processes of their own, with a status file each.

A job is the folder ``jobs/<id>/`` of the cache: ``request.json`` (command and options),
``status.json`` (written by the process as it goes), ``log.txt``. It survives the tab and the
server. A process that died without saying so is noticed by its number and start time. Pages come
first: a job has a lower priority, and threads for all cores but one. What a process took of memory
is told here too.
"""

import json
import os
import resource
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .records import Report, UserError, known
from .store import is_id, writable

State = Literal["running", "done", "failed", "cancelled"]
COMMANDS = (
    "build",
    "truth",
    "evaluate",
    "study",
    "tune",
    "verify",
    "folds",
    "map",
)  # that take --job
PATIENCE = 10  # seconds that a process waits for the request it was started for
NICE = 5  # steps of priority that a job is behind the pages
WRITES = 10  # tries to say so to Linux


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is known of a job now."""

    id: str
    state: State
    command: str = "build"
    stage: str = "starting"
    done: int = 0
    total: int = 0
    seconds: float = 0.0  # since it began
    left: float | None = None  # seconds left of this stage, where that can be told
    build: str | None = None
    error: str = ""
    options: tuple[str, ...] = ()


def start(cache: Path, options: list[str], command: str = "build") -> str:
    """Start ``python -m attribution COMMAND`` with `options`, detached; returns the job's id."""
    known("command", command, COMMANDS, "the first word")
    job_id = secrets.token_hex(6)
    cache = cache.absolute()
    place = cache / "jobs" / job_id
    with writable(cache):
        place.mkdir(parents=True)
        words = [sys.executable, "-m", "attribution", command, *options]
        words += ["--cache", str(cache), "--job", job_id]
        # In the folder that the app runs in, so that a FILE.py means the same file.
        found = (str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH"))
        with (place / "log.txt").open("wb") as log:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(filter(None, found)),
                    "OMP_NUM_THREADS": str(threads()),
                },
            )
        behind(process.pid)
        try:
            write(place / "process.json", {"pid": process.pid, "began": began(process.pid)})
            # Last, because a job exists once it has a request.
            request = {"command": command, "options": options, "created": later(cache)}
            write(place / "request.json", request)
        except BaseException:  # a full disk: nobody would see it, so it must not go on
            process.kill()
            process.wait()
            raise
    # Reaped when it ends, so that a finished job does not linger as a zombie that looks alive.
    threading.Thread(target=process.wait, daemon=True).start()
    return job_id


def threads() -> int:
    """How many a job computes on: one core is left to the pages, and a user's bound is kept."""
    known = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(max(1, cores - 1), int(asked) if asked.isdecimal() and int(asked) else cores)


def bound(count: int) -> None:
    """Compute on `count` threads from here on, in this process and in those that it starts."""
    import torch
    from threadpoolctl import threadpool_limits

    from . import rows

    os.environ["OMP_NUM_THREADS"] = str(count)
    torch.set_num_threads(count)
    rows.search_on(count)
    threadpool_limits(count)


def behind(pid: int) -> None:
    """Give a process that has just begun a lower priority than this one.

    Linux weighs sessions against each other before it looks at their processes, where it groups
    them: then the priority of the session counts, which a job is the first of.
    """
    with suppress(OSError):  # it is over already, or may not be touched: then it runs as it is
        lower = min(os.getpriority(os.PRIO_PROCESS, 0) + NICE, 19)
        os.setpriority(os.PRIO_PROCESS, pid, lower)
        group = Path(f"/proc/{pid}/autogroup")
        for _ in range(WRITES if group.exists() else 0):
            try:
                group.write_text(str(lower))
                break
            except BlockingIOError:  # Linux takes one such write in 0.1 s, of all who are not root
                time.sleep(0.11)


def forget_peak() -> None:
    """Have `peak_memory` begin anew, where Linux lets a process do so."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Most bytes that this process has held, since `forget_peak` where that is known."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def all_jobs(cache: Path) -> list[Job]:
    """Every job, newest first."""
    folder = cache / "jobs"
    places = [p for p in folder.iterdir() if is_id(p.name)] if folder.is_dir() else []
    found = [(read(p / "request.json"), p) for p in places if (p / "request.json").exists()]
    newest = sorted(found, key=lambda pair: pair[0].get("created", 0), reverse=True)
    return [_job(place, request) for request, place in newest]


def later(cache: Path) -> float:
    """The time now, or a moment after the newest job's where the clock was set back since."""
    found = [read(p).get("created", 0.0) for p in cache.glob("jobs/*/request.json")]
    return max([time.time(), *(created + 1e-3 for created in found)])


def _job(place: Path, request: dict[str, Any]) -> Job:
    status = read(place / "status.json")
    facts: dict[str, Any] = {
        "id": place.name,
        "command": request.get("command", "build"),
        "options": tuple(request.get("options", ())),
    }
    facts |= {k: status[k] for k in ("stage", "done", "total", "seconds", "left") if k in status}
    state = status.get("state", "running")
    if state == "running" and not alive(place):
        if (place / "cancelled").exists():
            return Job(state="cancelled", **facts)
        status = read(place / "status.json")  # it may have ended in between
        state = status.get("state", "running")
        if state == "running":
            return Job(state="failed", error=last_words(log_text(place)), **facts)
    return Job(state=state, build=status.get("build"), error=status.get("error", ""), **facts)


def dead(cache: Path) -> list[Job]:
    """Jobs whose process ended without a word, which no status file says yet."""
    place = cache / "jobs"
    return [
        job
        for job in all_jobs(cache)
        if job.state != "running"
        and read(place / job.id / "status.json").get("state", "running") == "running"
    ]


def bury(cache: Path, job: Job) -> None:
    """Write down how a job ended whose process did not."""
    place = place_of(cache, job.id)
    with writable(cache):
        ended = {"state": job.state, "left": None, "error": job.error}
        write(place / "status.json", {**read(place / "status.json"), **ended})


def last_words(text: str) -> str:
    """Why a process ended that kept no account of it, from what it printed."""
    for line in reversed(text.splitlines()):
        words = line.strip(" \t│╭╮╰╯─")
        if words and not words.endswith("..."):  # a stage that had begun
            return words
    return "the process ended without a word; it was killed, or the machine went down"


def log(cache: Path, job_id: str) -> str:
    """The last part of a job's log, plain text."""
    return log_text(place_of(cache, job_id))


def log_text(place: Path, size: int = 20_000) -> str:
    try:
        return (place / "log.txt").read_bytes()[-size:].decode(errors="replace")
    except OSError:
        return ""


def cancel(cache: Path, job_id: str) -> None:
    """End a running job; what it has finished so far stays and is used by the next."""
    place = place_of(cache, job_id)
    if not alive(place):
        return
    with writable(cache):
        (place / "cancelled").touch()
    with suppress(ProcessLookupError):  # it may have ended by itself just now
        os.killpg(read(place / "process.json")["pid"], signal.SIGTERM)


def place_of(cache: Path, job_id: str) -> Path:
    place = cache / "jobs" / job_id
    if not (is_id(job_id) and place.is_dir()):
        raise UserError(
            found=f"no job {job_id!r}", wanted="a job of this cache", next_step="reload the page"
        )
    return place


def reporter(place: Path, then: Report) -> tuple[Report, Callable[..., None]]:
    """For the process itself: a `Report` that keeps the status file, and a last word.

    The last word is ``finish(state="done", build=...)`` or ``finish(state="failed", error=...)``.
    What cannot be written is left out: work is not given up for want of an account of it. Raises
    `UserError` where whoever started the process died before the job was one.
    """
    requested(place)
    first = time.monotonic()  # the clock on the wall may be set back meanwhile
    marks: dict[str, Any] = {"stage": "", "at": first, "from": 0, "written": 0.0}

    def report(stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != marks["stage"]:
            marks.update(stage=stage, at=now, written=0.0)
            marks["from"] = done
        then(stage, done, total)
        if now - marks["written"] < 0.3 and done < total:
            return
        marks["written"] = now
        gained = done - marks["from"]
        left = (now - marks["at"]) / gained * (total - done) if gained > 0 else None
        told = {"stage": stage, "done": done, "total": total, "left": left}
        with suppress(OSError):
            write(place / "status.json", {"state": "running", **told, "seconds": now - first})

    def finish(**last: str) -> None:
        told = {"left": None, "seconds": time.monotonic() - first, **last}
        with suppress(OSError):
            write(place / "status.json", {**read(place / "status.json"), **told})

    return report, finish


def requested(place: Path) -> None:
    """Wait until a job is one, which it is a moment after its process began."""
    until = time.monotonic() + PATIENCE
    while not (place / "request.json").exists():
        if time.monotonic() > until:
            raise UserError(
                found=f"no request of job {place.name}",
                wanted="one, written by what started this process",
                next_step="start it again, as what started it ended at once",
            )
        time.sleep(0.05)


def alive(place: Path) -> bool:
    """Whether the job's process still runs, and is the one that was started."""
    process = read(place / "process.json")
    return bool(process) and began(process["pid"]) == process["began"] is not None


def began(pid: int) -> str | None:
    """When process `pid` started, or None where there is no such process (or only its remains)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    found = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None


def read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def write(path: Path, values: dict[str, Any]) -> None:
    """Write JSON so that a reader sees the old file or the new one."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(values))
    temporary.replace(path)
