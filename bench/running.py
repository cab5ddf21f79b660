"""The command line and the web app, run as a user runs them."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .rows import ROOT

DEMO = ("--noise", "0.1")  # what `make demo` gives to `build`
PATIENCE = 120  # seconds that the app may take to start
# Conditions that a page is waited for come as text, which the app's own policy does not let run.
VIEW: dict[str, Any] = {"viewport": {"width": 1400, "height": 900}, "bypass_csp": True}


def command(cache: Path, threads: int, *words: str) -> str:
    """Standard output of ``python -m attribution``, its messages passed through."""
    done = subprocess.run(
        [sys.executable, "-m", "attribution", *words, "--cache", str(cache), "--json"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


@contextmanager
def app(cache: Path, workspace: Path | None = None) -> Iterator[str]:
    """The web app on a free port, its address given once it answers."""
    with server(cache, workspace) as (address, _):
        yield address


@contextmanager
def server(cache: Path, workspace: Path | None = None) -> Iterator[tuple[str, int]]:
    """`app`, with the number of its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["app", "--port", str(port), "--no-browser", "--cache", str(cache)]
    words += ["--workspace", str(workspace)] if workspace else []
    process = subprocess.Popen(
        [sys.executable, "-m", "attribution", *words],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address, began = f"http://localhost:{port}", time.perf_counter()
    try:
        while not answers(f"{address}/_stcore/health"):
            if process.poll() is not None or time.perf_counter() - began > PATIENCE:
                raise RuntimeError("the app did not start; try `python -m attribution app`")
            time.sleep(0.05)
        yield address, process.pid
    finally:
        process.terminate()
        process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False
