"""Commands started from the browser: processes of their own, with a status file each.

A job is the folder ``jobs/<id>/`` of the cache: ``request.json`` (command and options),
``status.json`` (written by the process as it goes), ``log.txt``. It survives the tab and the
server. A process that died without saying so is noticed by its number and start time.
"""

import json
import os
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
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, found))},
            )
        write(place / "process.json", {"pid": process.pid, "began": began(process.pid)})
        # Last, because a job exists once it has a request.
        request = {"command": command, "options": options, "created": time.time()}
        write(place / "request.json", request)
    # Reaped when it ends, so that a finished job does not linger as a zombie that looks alive.
    threading.Thread(target=process.wait, daemon=True).start()
    return job_id


def all_jobs(cache: Path) -> list[Job]:
    """Every job, newest first."""
    folder = cache / "jobs"
    places = [p for p in folder.iterdir() if is_id(p.name)] if folder.is_dir() else []
    found = [(read(p / "request.json"), p) for p in places if (p / "request.json").exists()]
    newest = sorted(found, key=lambda pair: pair[0].get("created", 0), reverse=True)
    return [_job(place, request) for request, place in newest]


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
    """
    first = time.time()
    marks: dict[str, Any] = {"stage": "", "at": first, "from": 0, "written": 0.0}

    def report(stage: str, done: int, total: int) -> None:
        now = time.time()
        if stage != marks["stage"]:
            marks.update(stage=stage, at=now, written=0.0)
            marks["from"] = done
        then(stage, done, total)
        if now - marks["written"] < 0.3 and done < total:
            return
        marks["written"] = now
        gained = done - marks["from"]
        left = (now - marks["at"]) / gained * (total - done) if gained > 0 else None
        status = {"stage": stage, "done": done, "total": total}
        write(
            place / "status.json",
            {"state": "running", **status, "seconds": now - first, "left": left},
        )

    def finish(**last: str) -> None:
        write(
            place / "status.json",
            {**read(place / "status.json"), "left": None, "seconds": time.time() - first, **last},
        )

    return report, finish


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
