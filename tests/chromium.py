"""The app's server and a real Chromium, for the browser tests and the screenshots."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).parents[1]
PROGRAM = ("-m", "attribution")
PATIENCE = 300  # seconds that a server may take to start
# A busy machine is slow, not wrong. What has happened is seen at once, so that this is waited for
# only where a test fails.
SLOW = 120_000  # milliseconds that anything in the browser may take
TRAINED = 600_000  # what waits for a job that trains
PORTS = 3  # how many to try: a free one may be taken before the server has it
TAKEN = re.compile("is not free|address already in use", re.IGNORECASE)
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

expect.set_options(timeout=SLOW)


def chromium_path() -> str | None:
    """Where a Chromium or Chrome is, or None."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser. Raises RuntimeError when there is none."""
    path = chromium_path()
    if path is None:
        raise RuntimeError("no chromium, chromium-browser or google-chrome in PATH: install one")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        browser.on("context", lambda context: context.set_default_timeout(SLOW))
        yield browser
        browser.close()


def at_rest(page: Page) -> None:
    """Wait until no run of the page is under way, so that nothing moves or is drawn anew."""
    still = page.locator("[data-testid=stApp][data-test-script-state=notRunning]")
    expect(still).to_be_attached()


@contextmanager
def app_server(
    cache: Path,
    workspace: Path,
    folder: Path = ROOT,
    program: Sequence[str] = PROGRAM,
    said_at: Path | None = None,
) -> Iterator[str]:
    """The app on a free port, started in `folder` by the command line; gives its address.

    What it prints goes to a file, `said_at` where one is given.
    """
    command = [sys.executable, *program, "app", "--cache", str(cache)]
    command += ["--workspace", str(workspace), "--port"]
    env = {**os.environ, "STREAMLIT_SERVER_HEADLESS": "true", "PYTHONPATH": str(ROOT)}
    with server(command, "/_stcore/health", said_at, cwd=folder, env=env) as url:
        yield url


@contextmanager
def server(
    command: Sequence[str], path: str, said_at: Path | None = None, **how: Any
) -> Iterator[str]:
    """What `command` with a free port after it starts; gives its address once it answers at `path`.

    What it prints goes to a file, `said_at` where one is given.
    """
    with tempfile.TemporaryFile("w+") if said_at is None else said_at.open("w+") as said:
        for left in reversed(range(PORTS)):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            process = subprocess.Popen(
                [*command, str(port)], stdout=said, stderr=subprocess.STDOUT, **how
            )
            try:
                if came_up(process, f"http://localhost:{port}{path}"):
                    yield f"http://localhost:{port}"
                    return
            finally:
                end(process)
            said.seek(0)
            words = " ".join(said.read().split())
            if not (left and TAKEN.search(words)):
                raise RuntimeError(f"the server did not start: {words}")


def came_up(process: subprocess.Popen[bytes], url: str) -> bool:
    """Wait until it answers; False when it has ended instead."""
    over = time.monotonic() + PATIENCE
    while process.poll() is None:
        if answers(url):
            return True
        if time.monotonic() > over:
            raise RuntimeError(f"the server did not answer within {PATIENCE} s")
        time.sleep(0.1)
    return False


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status == 200
    except OSError:
        return False
