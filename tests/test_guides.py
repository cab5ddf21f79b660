"""The guides, run as they stand: their commands by a shell, their Python, in an empty folder.

In a guide ```sh and ```python are run in order, ```text is what the commands before it print (… is
anything), ```console is only held against the command line's options: it serves, or downloads.
**Bold** is what the app calls something, <kbd> is a key of it.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
import warm

from attribution.__main__ import app

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SOURCES = [ROOT / "app.py", *(ROOT / "pages").rglob("*.py"), *(ROOT / "pages").rglob("*.js")]
every_guide = pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)


class Block(NamedTuple):
    """A fenced block."""

    kind: str
    text: str
    line: int  # of the guide


def blocks(guide: Path) -> list[Block]:
    text = guide.read_text()
    return [Block(m[1], m[2], text.count("\n", 0, m.start(2)) + 1) for m in FENCE.finditer(text)]


def prose(guide: Path) -> str:
    return FENCE.sub("", guide.read_text())


@pytest.fixture(scope="module")
def env() -> Iterator[dict[str, str]]:
    """An environment in which ``python`` is the project's, and warm."""
    found = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    with tempfile.TemporaryDirectory() as folder:  # a socket's path has to be short
        place, python = Path(folder, "warm"), Path(folder, "python")
        python.write_text(warm.client(place))
        python.chmod(0o700)
        server = subprocess.Popen([sys.executable, warm.__file__, str(place)], env=found)
        while not place.exists() and server.poll() is None:
            time.sleep(0.1)
        assert place.exists(), "the warm process has ended"
        yield {**found, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
        server.terminate()
        server.wait()


class Reader:
    """Somebody who does what a guide says in one shell."""

    def __init__(self, guide: Path, folder: Path, env: dict[str, str]) -> None:
        self.guide, self.folder, self.env = guide, folder, env
        self.printed = ""

    def sh(self, block: Block) -> None:
        """Run it; the shell's variables are there for the next."""
        keep = "trap 'code=$?; declare -p > .variables; exit $code' EXIT"
        again = "[ ! -e .variables ] || source .variables 2> /dev/null || true"
        script = f"{again}\n{keep}\nset -euo pipefail\n{block.text}"
        command = ["bash", "-c", script]
        ended = subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=1200
        )
        where = f"{self.guide.name}:{block.line}"
        assert ended.returncode == 0, f"{where}\n{ended.stdout}\n{ended.stderr}"
        assert "error:" not in ended.stderr, f"{where}\n{ended.stderr}"
        self.printed = ended.stdout

    def text(self, block: Block) -> None:
        """It was printed, line by line and in this order."""
        after = iter(self.printed.splitlines())
        for line in block.text.splitlines():
            wanted = re.compile(".*".join(map(re.escape, line.split("…"))))
            found = any(wanted.match(one) for one in after)
            assert found, f"{self.guide.name}:{block.line}: {line!r} not in\n{self.printed}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # what quanda imports
@every_guide
def test_what_a_guide_says_to_do_is_done(guide, tmp_path, monkeypatch, env):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    reader, names = Reader(guide, tmp_path, env), {"__name__": "__main__"}
    for block in blocks(guide):
        if block.kind == "python":
            exec(compile("\n" * (block.line - 1) + block.text, str(guide), "exec"), names)
        elif block.kind != "console":
            getattr(reader, block.kind)(block)


@every_guide
def test_what_a_guide_only_shows_are_commands_with_these_options(guide):
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for block in blocks(guide):
        if block.kind != "console":
            continue
        for line in block.text.splitlines():
            words = line.removeprefix("$ python -m attribution ").split()
            assert words != line.split(), f"{guide.name}:{block.line}"
            commands[words[0]].make_context(words[0], words[1:])  # raises for what is unknown


@every_guide
def test_commands_and_options_in_the_words_of_a_guide_are_there(guide):
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    options = {o for c in commands.values() for p in c.params for o in p.opts} | {"--remote"}
    said = " ".join(re.findall(r"`([^`]+)`", prose(guide)))
    assert set(re.findall(r"(?<!\S)--[a-z-]+", said)) <= options
    assert set(re.findall(r"-m attribution ([a-z]+)", said)) <= set(commands)


@every_guide
def test_the_app_calls_things_as_a_guide_does_and_has_its_keys(guide):
    app_text = "\n".join(file.read_text() for file in SOURCES)
    shown = re.findall(r"""["'`>](.*?)["'`<]""", app_text)
    for words in re.findall(r"\*\*(.+?)\*\*", prose(guide)):
        assert any(one.startswith(words) for one in shown), words
    helped = set(re.findall(r'^  \["(.+?)", "', app_text, re.MULTILINE))
    keys = {key for entry in helped for key in entry.split()} | {"L"}
    assert set(re.findall(r"<kbd>(.+?)</kbd>", prose(guide))) <= keys


@every_guide
def test_what_a_guide_points_at_is_there(guide):
    for place in re.findall(r"\]\(([^)#]+)\)", prose(guide)):
        assert (guide.parent / place).is_file(), place
