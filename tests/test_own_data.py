"""A person's own pictures from the command line to the pages: one small folder with faults."""

import copy
import json
import re
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from apptest import act, at_place, fine, items, page
from conftest import Tiny
from pictures import CLASSES, encoded, half, noise, photos, table, written

import attribution
from attribution.__main__ import main
from attribution.data import dataset
from attribution.engine import Engine
from attribution.export import MARK, exported
from attribution.models import MODELS, inputs, network
from attribution.reading import findings
from attribution.records import BuildSpec, FeatureSpec, ReadSpec
from attribution.store import Store
from attribution.strategies import options
from pages.parts.opened import whole
from pages.parts.words import literal

SMALL = "--model cnn --width .2 --models 1 --masks 2 --epochs 2 --dims 4x2 --index-dims 8".split()
SPEC = BuildSpec(
    model="cnn", width=0.2, models=1, masks=2, epochs=2, features=FeatureSpec(ka=4, kg=2),
    index_dims=8,
)  # fmt: skip
STRANGE = "[red]<img src=x onerror=alert(1)>"


@pytest.fixture
def run(monkeypatch, capsys):
    """The command line; gives what it prints."""

    def command(*words: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["attribution", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "250")
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        assert (ended.value.code or 0) == code, captured.err
        return captured.err if code else captured.out

    return command


class Own(NamedTuple):
    """Where the folder is, and the build of it."""

    folder: Path
    place: Tiny


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Own:
    """20 + 4 pictures of each class; a leak, a contradiction, a file that is no picture."""
    root = tmp_path_factory.mktemp("own")
    files = photos(train=20, test=4)
    strange = f"train/{CLASSES[1]}/{STRANGE}.png"
    files |= {
        "test/cat/leak.png": files["train/cat/003.png"],
        strange.replace("/alert", "alert"): files["train/cat/004.png"],
        "train/emu/broken.jpg": b"PK\x03\x04",
    }
    folder = written(root / "my photos", files)
    engine = Engine(root / "cache", root)
    made = engine.build(replace(SPEC, data=engine.read(str(folder))))
    assert (made["train"], made["test"]) == (61, 13)
    return Own(folder, Tiny(root / "cache", root, made["build"]))


def test_a_folder_builds_and_is_the_same_build_wherever_it_lies(own, tmp_path, run):
    moved = shutil.copytree(own.folder, tmp_path / "moved")
    for source in (own.folder, moved):
        words = ("build", "--data", source, *SMALL, "--cache", own.place.cache, "--json")
        found = json.loads(run(*words))
        assert found["already_done"] and found["build"] == own.place.build


def test_a_build_opens_and_is_built_on_when_its_folder_is_gone(own, tmp_path, run):
    cache = shutil.copytree(own.place.cache, tmp_path / "cache")
    engine = Engine(cache)
    build = engine.open(own.place.build)
    assert build.image("train", 0).shape == (12, 12, 3)
    words = options(build.spec)
    assert words[words.index("--data") + 1] == build.spec.data.pixels
    found = json.loads(run("build", *words, "--cache", cache, "--json"))
    assert found["already_done"] and found["build"] == build.id
    assert build.summary["data"] == "my photos"


def test_parquet_of_the_same_pictures_gives_the_same_predictions(own, tmp_path, run):
    files = {
        path.relative_to(own.folder).as_posix(): path.read_bytes()
        for path in sorted(own.folder.rglob("*"))
        if path.is_file() and path.suffix == ".png"
    }
    for name in ("train", "test"):
        table(tmp_path / "hub" / f"{name}.parquet", half(files, name))
    cache = tmp_path / "cache"
    words = ("build", "--data", tmp_path / "hub", *SMALL, "--cache", cache, "--json")
    found = json.loads(run(*words))
    assert found["build"] == own.place.build
    other = Engine(cache).open(found["build"])
    mine = Engine(own.place.cache).open(own.place.build)
    np.testing.assert_array_equal(other.data.train.images, mine.data.train.images)
    np.testing.assert_allclose(other.probs_TC, mine.probs_TC, atol=1e-6)


def test_data_describes_a_folder_before_a_build(own, tmp_path, run):
    cache = tmp_path / "cache"
    found = json.loads(run("data", own.folder, "--cache", cache, "--json"))
    assert found["classes"]["cat"] == {"train": 20, "test": 5}
    assert [one["path"] for one in found["aside"]] == ["train/emu/broken.jpg"]
    assert found["leaks"] == [
        {"test": "test/cat/leak.png", "train": "train/cat/003.png", "alike": 1.0,
         "same_label": True}
    ]  # fmt: skip
    assert len(found["clashes"]) == 1 and STRANGE in json.dumps(found["clashes"])
    told = run("data", own.folder, "--cache", cache)
    for words in ("61 training and 13 test images of 3 classes", "12 x 12", "broken.jpg: a zip",
                  "test/cat/leak.png = train/cat/003.png", STRANGE):  # fmt: skip
        assert words in told
    assert shlex.join(found["proposal"]["command"]) in told


def test_data_tells_the_command_that_builds_on_it(own, tmp_path, run):
    cache = tmp_path / "cache"
    words = ("data", own.folder, "--size", "8", "--cache", cache)
    command = run(*words).splitlines()[-1]
    assert command.startswith("python -m attribution build --data ")
    found = json.loads(run(*shlex.split(command)[3:], "--epochs", "1", "--masks", "1", "--json"))
    assert Engine(cache).open(found["build"]).data.train.images.shape[1:3] == (8, 8)
    assert found["train"] == 61


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("build", "--data", "nowhere/at/all"), "unknown data set 'nowhere/at/all'"),
        (("data", "mnist5k"), "comes with the program"),
        (("data", "{folder}", "--size", "4"), "--size 4; wanted a number from 8 to 512"),
        (("build", "--data", "{folder}", "--model", "mpl"), "unknown network 'mpl'"),
        (("build", "--data", "{folder}", "--test-share", "1"), "--test-share 1"),
    ],
)
def test_a_mistake_is_one_sentence(own, tmp_path, run, words, said):
    asked = [word.format(folder=own.folder) for word in words]
    told = run(*asked, "--cache", tmp_path / "cache", code=2)
    assert said in told and "Traceback" not in told
    assert told.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("size", [8, 13, 37])
@pytest.mark.parametrize("grey", [True, False])
def test_the_named_networks_take_any_size_in_grey_and_in_colour(tmp_path, model, size, grey):
    def picture(n: int) -> bytes:
        pixels = noise(n, 20, 20)
        return encoded(pixels[..., 0] if grey else pixels)

    files = {f"{'ab'[n % 2]}/{n}.png": picture(n) for n in range(6)}
    engine = Engine(tmp_path / "cache")
    spec = engine.read(str(written(tmp_path / "set", files)), ReadSpec(size=size))
    data = dataset(engine.store, spec)
    x_N = inputs(model, data, data.train.images)
    assert x_N.shape[1:] == (1 if grey else 3, size, size)
    assert x_N.mean().abs() < 1e-5 and (x_N.std(correction=0) - 1).abs() < 1e-4
    with torch.no_grad():
        assert network(model, data, 0.1, seed=0)(x_N).shape == (len(x_N), 2)


def test_decisions_outlive_a_move_and_mend_what_was_found(own, tmp_path):
    cache = shutil.copytree(own.place.cache, tmp_path / "cache")
    engine = Engine(cache, tmp_path)
    build = engine.open(own.place.build)
    ((first, second, _),) = build.findings.clashes
    assert build.findings.leaks and build.findings.aside[0].path == "train/emu/broken.jpg"
    assert {build.train_paths[first], build.train_paths[second]} > {"train/cat/004.png"}
    wrong = first if STRANGE in build.train_paths[first] else second
    (leak,) = build.findings.leaks
    cat = build.classes.index("cat")
    engine.decisions.decide(build.data_id, build.train_ids[wrong], "relabel", label=cat)
    engine.decisions.decide(build.data_id, build.train_ids[leak[1]], "drop")
    moved = shutil.copytree(own.folder, tmp_path / "moved")
    again = dataset(Store(tmp_path / "new cache"), Engine(tmp_path / "new cache").read(str(moved)))
    assert again.id == build.data_id  # by which the log knows the data
    revised = dataset(engine.store, engine.revised_spec(build.id, engine.revise(build.id).id).data)
    assert len(revised.train) == 60 and len(revised.train.paths) == 60
    left = findings(engine.store, revised)
    assert left.leaks == () == left.clashes and left.aside


def test_an_export_says_which_file_each_row_is(own, tmp_path, run):
    out = tmp_path / "labels.csv"
    words = ("export", own.place.build, "-o", out, "--cache", own.place.cache)
    run(*words, "--workspace", tmp_path)
    frame = pd.read_csv(out)
    build = Engine(own.place.cache).open(own.place.build)
    assert tuple(frame.sort_values("train_id")["path"]) == build.train_paths
    assert all((own.folder / path).is_file() for path in frame["path"])


def test_overview_shows_leaks_and_contradictions_and_leads_to_them(own, monkeypatch):
    at_place(own.place, monkeypatch)
    app = fine(page("overview"))
    build = Engine(own.place.cache).open(own.place.build)
    (upper,), (lower,) = items(app, "leaks", 0), items(app, "leaks", 1)
    t, i = upper["id"] // 2, lower["id"] // 2
    assert build.data.test.paths[t] == "test/cat/leak.png" and upper["id"] % 2 == 0
    assert build.train_paths[i] == "train/cat/003.png" and lower["id"] % 2 == 1
    assert {items(app, "clashes", g)[0]["caption"] for g in (0, 1)} == {"cat", "dog"}
    assert any("Set aside when your data was read: 1 file" in e.label for e in app.expander)
    assert not any(STRANGE in m.value for m in app.markdown)
    there = fine(act(app, "leaks", {"type": "pick", "id": upper["id"]}))
    assert there.query_params.get("test") in ([str(t)], str(t))


def test_other_data_has_nothing_of_the_kind(tiny, monkeypatch):
    at_place(tiny, monkeypatch)
    app = fine(page("overview"))
    assert Engine(tiny.cache).open(tiny.build).findings is None
    assert not any("In training too" in s.value for s in app.subheader)


def test_the_form_gives_a_build_the_whole_path(own, monkeypatch):
    monkeypatch.chdir(own.folder.parent)
    assert whole("my photos") == str(own.folder)
    assert whole("mnist5k") == "mnist5k" and whole("hf:a/b") == "hf:a/b"
    assert whole("a\0b") == "a\0b"


def test_a_notebook_reads_the_same_data(own, tmp_path):
    found = attribution.read_data(own.folder, cache=own.place.cache)
    build = Engine(own.place.cache).open(own.place.build)
    assert found.classes == build.classes and found.paths == build.train_paths
    x_N, y_N = found.train.tensors
    np.testing.assert_array_equal(y_N, build.train_labels_N)
    wanted = (build.data.train.images / 255 - build.data.mean) / build.data.std
    np.testing.assert_allclose(x_N.permute(0, 2, 3, 1), wanted, atol=1e-5)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 12 * 12, 3))
    index = attribution.build_index(attribution.naive_ensemble([net]), found.train)
    assert index.scores(found.test).shape == (13, 61)
    digits = attribution.read_data("mnist5k", cache=own.place.cache)
    assert len(digits.train) == 4500 and digits.paths == ()


def test_an_export_of_ours_is_read_with_the_names_of_its_classes(own, run, tmp_path):
    engine = Engine(own.place.cache, tmp_path)
    build = engine.open(own.place.build)
    hostile = copy.copy(build)
    hostile.classes = ("../x", "test", "<b>")
    content = exported(hostile, {}, "folder")
    root = written(tmp_path / "clean", {MARK: b"{}"} | dict(content))
    found = engine.described(str(root))
    counts = {name: sum(halves.values()) for name, halves in found["classes"].items()}
    assert counts == dict(zip(hostile.classes, np.bincount(build.train_labels_N), strict=True))


def test_suspects_are_told_by_their_files(own, run):
    words = ("mislabels", own.place.build, "-k", 5, "--cache", own.place.cache)
    build = Engine(own.place.cache).open(own.place.build)
    rows = json.loads(run(*words, "--json"))["examples"]
    assert [row["path"] for row in rows] == [build.train_paths[row["train_id"]] for row in rows]
    told = run(*words)
    assert all(row["path"].split("/")[-1][:3] in told for row in rows)


def test_a_name_is_no_markdown():
    name = "![x](y) <b> :red[z] `a` *b* $c$ http://d.e 1. #f"
    told = literal(name)
    assert re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", told) == name
    assert not re.search(r"(?<!\\)[!-/:-@\[\]-`{-~]", told)
