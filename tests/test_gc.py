"""Only what nothing refers to goes, after it was shown."""

import json
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from conftest import Tiny, copied
from filelock import FileLock
from PIL import Image

from attribution.engine import Engine
from attribution.gc import Unused, collect, unused
from attribution.records import ReadSpec, UserError
from attribution.store import Draft, Store

NAME, OTHER = "0123456789ab", "ba9876543210"


def fill(draft: Draft) -> None:
    draft.array("rows", np.arange(100))


@pytest.fixture
def engine(tiny: Tiny, tmp_path: Path) -> Engine:
    """The tiny build in a cache of its own, without what other tests have made beside it."""
    return Engine(copied(tiny, tmp_path / "cache"), tmp_path / "workspace")


def ids(found: Unused) -> set[tuple[str, str]]:
    return {(row["kind"], row["id"]) for row in found.rows}


def test_what_a_build_is_made_of_stays_and_what_it_is_not_goes(engine, tiny: Tiny):
    networks = engine.open(tiny.build).summary["spec"]["models"]
    runs = [name for kind, name in Store(engine.cache).names() if kind == "run"][:networks]
    engine.store.make("map", OTHER, fill, {"networks": runs})
    everything = set(Store(engine.cache).names())
    assert ids(unused(engine, 0)) == set()
    engine.store.make("features", NAME, fill, {})
    engine.store.make("map", NAME, fill, {"networks": [runs[0], OTHER]})
    engine.store.make("exact", NAME, fill, {"build": OTHER})
    engine.store.make("truth", NAME, fill, {"run": {"data_id": OTHER}})
    engine.store.make("of a later version", NAME, fill, {})
    assert ids(unused(engine)) == set()  # all of it is young
    found = unused(engine, 0)
    assert ids(found) == {(kind, NAME) for kind in ("features", "map", "exact", "truth")}
    collect(engine, found)
    left = set(Store(engine.cache).names())
    assert left == everything | {("of a later version", NAME)}
    assert Engine(engine.cache, engine.workspace).open(tiny.build).query(0, 3)


def test_without_its_build_all_goes_but_what_decisions_are_on(engine, tiny: Tiny):
    data = engine.open(tiny.build).data_id
    pixels = engine.store.find("data", data).manifest["made_by"]["pixels"]
    engine.store.remove("build", tiny.build)
    everything = set(Store(engine.cache).names())
    assert ids(unused(engine, 0)) == everything
    engine.decisions.decide(data, "some", "keep")
    assert ids(unused(engine, 0)) == everything - {("data", data), ("pixels", pixels)}
    engine.decisions.decide("of a test half", "some", "keep")
    collect(engine, unused(engine, 0))
    assert set(Store(engine.cache).names()) == {("data", data), ("pixels", pixels)}


def test_an_upload_goes_once_nobody_has_read_it(tmp_path):
    engine = Engine(tmp_path / "cache", tmp_path / "workspace")
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for n in range(12):
            picture = BytesIO()
            Image.fromarray(np.full((8, 8), 20 * n, np.uint8)).save(picture, "PNG")
            file.writestr(f"{'ab'[n % 2]}/{n}.png", picture.getvalue())
    upload = engine.unpacked(archive, "pictures.zip")
    assert ids(unused(engine, 0)) == {("upload", str(upload.folder))}
    spec = engine.read(str(upload.folder), ReadSpec(size=8))
    assert ids(unused(engine, 0)) == set()  # the reading, its pixels and the upload
    for reading in engine.store.all("reading"):
        engine.store.remove("reading", reading.manifest["id"])
    found = unused(engine, 0)
    assert ids(found) == {("pixels", spec.pixels), ("upload", str(upload.folder))}
    assert ids(unused(engine)) == set()
    collect(engine, found)
    assert not upload.folder.exists() and engine.uploads() == []
    assert Store(engine.cache).names() == []


def test_nothing_goes_while_something_is_being_made(tmp_path):
    engine = Engine(tmp_path / "cache", tmp_path / "workspace")
    engine.store.make("features", NAME, fill, {})
    with FileLock(tmp_path / "cache" / "locks" / f"run-{OTHER}.lock"):
        with pytest.raises(UserError, match=f"run-{OTHER}, which is running"):
            unused(engine, 0)
    assert ids(unused(engine, 0)) == {("features", NAME)}


def test_the_command_shows_first_and_removes_on_a_word(tmp_path, monkeypatch, capsys):
    from attribution import gc
    from attribution.__main__ import main

    monkeypatch.setattr(gc.unused, "__defaults__", (0.0,))
    store = Store(tmp_path / "cache")
    store.make("features", NAME, fill, {})

    def run(*words: str) -> str:
        monkeypatch.setattr(
            sys, "argv", ["attribution", "gc", *words, "--cache", str(tmp_path / "cache")]
        )
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return capsys.readouterr().out

    shown = run()  # there is no terminal here
    assert NAME in shown and "nothing was removed" in shown
    told = json.loads(run("--json"))
    (row,) = told["unused"]
    assert not told["removed"] and row == {"kind": "features", "id": NAME, "bytes": told["bytes"]}
    assert store.names() == [("features", NAME)]
    assert "are removed" in run("--yes")
    assert store.names() == []
    assert "nothing to remove" in run()
