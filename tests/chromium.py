"""The app's server and a real Chromium, for the browser tests and the screenshots."""

import os
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

from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).parents[1]
PROGRAM = ("-m", "attribution")
PATIENCE = 60  # seconds that the app may take to start
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
        yield browser
        browser.close()


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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, *program, "app", "--port", str(port)]
    command += ["--cache", str(cache), "--workspace", str(workspace)]
    said = tempfile.TemporaryFile("w+") if said_at is None else said_at.open("w+")
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "STREAMLIT_SERVER_HEADLESS": "true", "PYTHONPATH": str(ROOT)},
        stdout=said,
        stderr=subprocess.STDOUT,
    )
    url = f"http://localhost:{port}"
    try:
        for _ in range(10 * PATIENCE):
            if process.poll() is not None:
                said.seek(0)
                raise RuntimeError(f"the app did not start: {said.read()}")
            if _healthy(url):
                break
            time.sleep(0.1)
        else:
            raise RuntimeError(f"the app did not answer within {PATIENCE} s")
        yield url
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        said.close()


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/_stcore/health", timeout=1) as answer:
            return answer.status == 200
    except OSError:
        return False
