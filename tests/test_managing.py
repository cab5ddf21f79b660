"""Builds are called something, noted and deleted: on the command line, in the engine, on the page;
and a browser names no file of this machine."""

import json
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from apptest import at_place, fine, page
from chromium import app_server, chromium
from conftest import Tiny
from filelock import FileLock
from scipy.stats import spearmanr
from test_cli import TINY, run  # noqa: F401

from attribution import jobs
from attribution.engine import Engine
from attribution.making import spec_from
from attribution.notes import TABLE, Note, Notes
from attribution.records import BuildSpec, FeatureSpec, UserError, content_id
from attribution.store import _digest
from attribution.strategies import options


@pytest.fixture
def place(tiny: Tiny, tmp_path: Path) -> Tiny:
    """The tiny build in a cache that may be changed."""
    shutil.copytree(tiny.cache, tmp_path / "cache")
    return Tiny(tmp_path / "cache", tmp_path, tiny.build)


@pytest.fixture
def engine(place: Tiny) -> Engine:
    return Engine(place.cache, place.workspace)


def there(engine: Engine) -> set[tuple[str, str]]:
    """Every artifact on disk."""
    return {(p.parent.name, p.name) for p in engine.cache.glob("*/*") if len(p.name) == 12}


def test_a_name_and_a_note_are_the_newest_words(tmp_path):
    notes = Notes(tmp_path / "deeper" / "notes.sqlite")
    assert notes.all() == {} and not notes.path.exists()
    notes.say("a" * 12, Note("  first   of all ", "why"))
    notes.say("a" * 12, Note("second", "why\nnot "))
    notes.say("b" * 12, Note("<b>third</b>", ""))
    assert notes.all() == {
        "a" * 12: Note("second", "why\nnot"), "b" * 12: Note("<b>third</b>", ""),
    }  # fmt: skip
    for wrong in (Note("second"), Note("x" * 61), Note("", "x" * 2001)):
        with pytest.raises(UserError):
            notes.say("b" * 12, wrong)
    notes.say("a" * 12, Note("second", ""))  # its own name again
    notes.say("a" * 12, Note())
    notes.say("b" * 12, Note("second"))
    (tmp_path / "bad.sqlite").write_text("no database at all " * 100)
    with pytest.raises(UserError, match="bad.sqlite"):
        Notes(tmp_path / "bad.sqlite").all()


def test_words_of_the_first_version_are_read_without_a_change_and_kept(tmp_path):
    notes = Notes(tmp_path / "notes.sqlite")
    assert notes.all() == {}
    with closing(sqlite3.connect(notes.path)) as db, db:
        db.execute(TABLE)
        row = "INSERT INTO notes (build_id, name, note, time) VALUES (?, ?, ?, ?)"
        db.execute(row, ("a" * 12, "first", "why", 1.5))
    before = notes.path.read_bytes()
    assert notes.all() == {"a" * 12: Note("first", "why")}
    assert notes.path.read_bytes() == before  # a folder that cannot be written can be read
    notes.say("b" * 12, Note("second"))
    assert notes.all() == {"a" * 12: Note("first", "why"), "b" * 12: Note("second")}
    (tmp_path / "empty.sqlite").touch()  # as a kill may leave it
    assert Notes(tmp_path / "empty.sqlite").all() == {}


def test_a_reader_sees_no_word_half_written(tmp_path):
    path = tmp_path / "notes.sqlite"

    def say() -> None:
        for n in range(60):
            Notes(path).say("a" * 12, Note(str(n)))

    with ThreadPoolExecutor() as pool:
        writing = pool.submit(say)
        while not writing.done():
            assert len(Notes(path).all()) <= 1
        writing.result()
    assert Notes(path).all() == {"a" * 12: Note("59")}


def test_a_word_that_was_changed_or_is_missing_is_a_sentence(tmp_path):
    for harm, why in (
        ("UPDATE notes SET note = 'why not'", "word 1 is not what was written"),
        ("DELETE FROM notes", "a word is missing"),
    ):
        notes = Notes(tmp_path / f"{why}.sqlite")
        notes.say("a" * 12, Note("first", "why"))
        with closing(sqlite3.connect(notes.path)) as db, db:
            db.execute(harm)
        with pytest.raises(UserError, match=why) as told:
            notes.all()
        assert str(notes.path) in told.value.found
    content = notes.path.read_bytes()
    for old, new in (
        (b"notesnotes", b"notesnotet"),
        (b"CREATE TABLE notes", b"CREATE TABLE notet"),
    ):
        assert old in content
        notes.path.write_bytes(content.replace(old, new))
        with pytest.raises(UserError, match="sqlite"):  # a file without its table has lost words
            notes.all()


def test_the_command_line_names_notes_lists_and_deletes(place: Tiny, run):  # noqa: F811
    where = ("--cache", place.cache)
    assert run("rename", place.build, "the [bold]tiny[/bold] one", *where).code == 0
    noted = run("note", place.build, "two networks", *where, "--json")
    assert json.loads(noted.out) == {
        "build": place.build, "name": "the [bold]tiny[/bold] one", "note": "two networks",
    }  # fmt: skip
    (row,) = json.loads(run("list", *where, "--json").out)
    assert (row["name"], row["note"]) == ("the [bold]tiny[/bold] one", "two networks")
    assert "[bold]" in run("list", *where).out.replace("\n", "")
    before = there(Engine(place.cache))
    dry = run("delete", place.build, "--dry-run", *where)
    asked = run("delete", place.build, *where)
    assert dry.code == 0 and "nothing was" in dry.out and "features" in dry.out
    assert asked.code == 2 and "--yes" in asked.err and "Traceback" not in asked.err
    assert there(Engine(place.cache)) == before
    done = run("delete", place.build, "--yes", "--json", *where)
    gone = {(r["kind"], r["id"]) for r in json.loads(done.out)["artifacts"]}
    assert json.loads(done.out)["deleted"] is True
    assert before - there(Engine(place.cache)) == gone and ("build", place.build) in gone
    again = run("delete", place.build, "--yes", *where)
    assert again.code == 2 and "no build" in again.err
    assert run("rename", place.build, "x", *where).code == 2


def test_deleting_leaves_what_another_build_uses(engine: Engine, place: Tiny):
    spec = engine.open(place.build).spec
    other = engine.build(replace(spec, masks=1))["build"]
    engine.truth(place.build, 2, 1)
    engine.evaluate(place.build)
    engine.decisions.decide(engine.open(place.build).data_id, "x-0", "keep")
    kept = engine.open(other).scores()
    parts = {(k, n) for k, names in engine.open(other).parts.items() for n in names}
    gone = engine.delete(place.build)
    kinds = {row["kind"] for row in gone}
    assert {"build", "features", "index", "evaluation", "votes"} <= kinds
    assert not kinds & {"run", "data", "pixels", "truth", "retrained"}
    fresh = Engine(engine.cache, engine.workspace)
    assert [b["build"] for b in fresh.builds()] == [other]
    assert (fresh.open(other).scores() == kept).all() and len(fresh.open(other).mislabels()) == 4500
    assert all(fresh.store.has({"runs": "run"}.get(k, k), n) for k, n in parts if k != "adapters")
    assert len(fresh.decisions.in_force(fresh.open(other).data_id)) == 1
    with pytest.raises(UserError, match="no build"):
        engine.open(place.build)  # also where it was open
    assert engine.build(spec)["build"] == place.build  # and it can be made again
    assert engine.evaluate(place.build)["lds"] is not None


def test_nothing_is_deleted_while_something_runs(engine: Engine, place: Tiny, monkeypatch):
    job = jobs.Job(id="0" * 12, state="running", command="truth")
    with monkeypatch.context() as patched:
        patched.setattr(engine, "jobs", lambda: [job])
        with pytest.raises(UserError, match="a truth that is running"):
            engine.delete(place.build)
    with FileLock(engine.cache / "locks" / f"run-{'0' * 12}.lock"):  # by a command in a terminal
        with pytest.raises(UserError, match="a run-000000000000 that is running"):
            engine.delete(place.build)
    assert engine.open(place.build)


def test_the_page_names_takes_back_and_deletes(place: Tiny, monkeypatch):
    at_place(place, monkeypatch)
    app = fine(page("builds"))
    app.session_state["managing"] = True
    app = fine(app.run())
    app.text_input(key=f"name_{place.build}").set_value("<i>mine</i>")
    app.text_area(key=f"note_{place.build}").set_value("keep this")
    next(b for b in app.button if b.label == "Save").click().run()
    fine(app)
    said = Engine(place.cache, place.workspace).notes
    assert said.of(place.build) == Note("<i>mine</i>", "keep this")
    assert app.dataframe[0].value["name"].tolist() == ["<i>mine</i>"]
    app.button(key="unsay").click().run()
    assert said.of(place.build) == Note()
    app.toggle(key=f"ending_{place.build}").set_value(True).run()
    assert any("gone for good" in m.value for m in app.markdown)
    app.button(key=f"delete_{place.build}").click().run()
    fine(app)
    assert Engine(place.cache, place.workspace).builds() == []


@pytest.mark.parametrize("model", ["/etc/code.py:made", "mine.py:made", "../x", "mlp.py:f", ""])
def test_a_browser_names_no_file(engine: Engine, model: str):
    with pytest.raises(UserError, match="in the browser"):
        engine.askable(model)
    engine.askable("timm:test_vit")


def test_a_file_typed_into_the_browser_starts_nothing(place: Tiny, engine: Engine):
    before = {job.id for job in engine.jobs()}  # of other tests, on the cache that was copied
    with app_server(place.cache, place.workspace) as url, chromium() as browser:
        tab = browser.new_page()
        tab.goto(f"{url}/builds")
        box = tab.get_by_role("combobox", name="Network")
        box.click()
        box.fill("mine.py:made")
        tab.get_by_role("option", name="mine.py:made").click()
        tab.get_by_role("button", name="Start build").click()
        tab.get_by_text("asked for in the browser").wait_for()
    assert {job.id for job in engine.jobs()} == before


def test_builds_of_one_data_set_stand_side_by_side():
    from pages.parts.opened import build_name, by_data

    rows = [{"build": str(i), "data": d} for i, d in enumerate("abacb")]
    assert [one["build"] for one in by_data(rows)] == ["0", "2", "1", "4", "3"]
    summary = {
        "data": "mnist5k", "noise": 0.1, "model": "mlp", "ensemble": "5 networks",
        "build": "1" * 12, "estimator": "trak", "name": "mine",
        "spec": {"data": {}, "estimator": {"relative": False}},
    }  # fmt: skip
    assert build_name(summary).startswith("mnist5k with 10% wrong labels · mine · mlp")


def test_given_weights_on_the_command_line(place, engine, tmp_path, run):  # noqa: F811
    opened = engine.open(place.build)
    file = tmp_path / "one.safetensors"
    shutil.copy(engine.store.find("run", opened._networks[0]).file("weights.safetensors"), file)
    words = ("build", *TINY, "--cache", place.cache)
    few = [w for w in words if w not in ("--models", "2")]
    few = [w if w != "--masks" else "--masks=2" for w in few]
    done = run(*few, "--checkpoint", file, "--json")
    assert done.code == 0, done.err
    made = json.loads(done.out)
    file.unlink()
    spec = engine.open(made["build"]).spec
    assert spec.models == 1 and spec.masks == 2
    again = run(*few, "--checkpoint", spec.weights[0], "--json")
    assert json.loads(again.out) == {**made, "already_done": True}
    lost = run(*few, "--checkpoint", file)
    assert lost.code == 2 and "is no file" in lost.err
    said = run("truth", made["build"], "--subsets", "2", "--seeds", "1", "--cache", place.cache)
    assert said.code == 0 and "by our recipe" in said.err
    none = run(*few, "--checkpoint", spec.weights[0], "--train", "none", "--json")
    refused = run("folds", json.loads(none.out)["build"], "--cache", place.cache)
    assert refused.code == 2 and "made with --train none" in refused.err
    odd = replace(
        spec, train="none", rate=0.02, batch_size=32, freeze=True, epochs=7, schedule="linear",
        decay=0.1,
    )  # fmt: skip
    made = engine.build(odd)["build"]
    same = run("build", *options(odd), "--cache", place.cache, "--json")  # as a page starts it
    assert json.loads(same.out)["build"] == made and json.loads(same.out)["already_done"]


def test_resnet9_is_trained_by_a_rate_that_falls_unless_told(tmp_path, run):  # noqa: F811
    """Through the command line, as `options` says what a page wants."""
    few = ("build", "--strategy", "naive", "--models", "1", "--epochs", "1", "--width", "0.01",
           "--dims", "2x2", "--index-dims", "4", "--cache", tmp_path, "--json")  # fmt: skip
    engine = Engine(tmp_path)

    def recipe(*words: str) -> tuple[float, str, float]:
        done = run(*few, *words)
        assert done.code == 0, done.err
        build = engine.open(json.loads(done.out)["build"])
        again = run("build", *options(build.spec), "--cache", tmp_path, "--json")
        assert json.loads(again.out) == {**json.loads(done.out), "already_done": True}
        used = build.recipe
        return used.learning_rate, used.schedule, used.weight_decay

    assert recipe("--model", "resnet9") == (0.05, "linear", 5e-4)
    told = ("--model", "resnet9", "--learning-rate", "0.01", "--weight-decay", "0")
    assert recipe(*told, "--schedule", "constant") == (0.01, "constant", 0)
    assert recipe("--model", "mlp") == (0.01, "constant", 0)


def test_the_library_trains_a_model_as_the_command_line_does(tmp_path, run):  # noqa: F811
    engine = Engine(tmp_path)
    mlp = BuildSpec(strategy="naive", models=1, masks=0, epochs=1, width=0.01, index_dims=4,
                    features=FeatureSpec(ka=2, kg=2))  # fmt: skip
    deep = replace(mlp, model="resnet9")
    fast = replace(deep, rate=0.1)
    old = {"rate": 0.01, "schedule": "constant", "decay": 0.0}
    for spec, wanted in (
        (mlp, (0.01, "constant", 0.0)),
        (deep, (0.05, "linear", 5e-4)),
        (fast, (0.1, "linear", 5e-4)),
        (replace(deep, **old), (0.01, "constant", 0.0)),
    ):
        assert not engine.finished(spec)
        engine.check(spec)
        build = engine.open(engine.build(spec)["build"])
        used, kept = build.recipe, build.summary["spec"]
        assert (used.learning_rate, used.schedule, used.weight_decay) == wanted
        assert (kept["rate"], kept["schedule"], kept["decay"]) == wanted
        assert engine.finished(spec) and engine.finished(build.spec)
        said = run("build", *options(spec), "--cache", tmp_path, "--json")
        assert json.loads(said.out)["build"] == build.id and json.loads(said.out)["already_done"]
    named = content_id("build", build.data_id, replace(mlp, **old), "")
    assert engine.finished(mlp) and engine.open(named).spec.model == "mlp"
    before = {name: value for name, value in kept.items() if name not in old}
    assert spec_from(before) == build.spec  # as a build has it that is older than these settings


def test_a_build_in_bfloat16_ranks_as_one_in_float32(place, engine, run):  # noqa: F811
    plain = engine.open(place.build)
    done = run("build", *TINY, "--precision", "bfloat16", "--cache", place.cache, "--json")
    assert done.code == 0, done.err
    lower = engine.open(json.loads(done.out)["build"])
    assert lower.spec == replace(
        plain.spec, features=replace(plain.spec.features, precision="bfloat16")
    )
    assert lower._networks == plain._networks and lower._features != plain._features
    again = run("build", *options(lower.spec), "--cache", place.cache, "--json")
    assert json.loads(again.out) == {**json.loads(done.out), "already_done": True}
    for one, other in zip(plain.scores()[:9], lower.scores()[:9], strict=True):
        assert spearmanr(one, other).statistic > 0.99
    # an image that is not stored goes the same way: a test image, given anew
    image = lower.data.test.images[3]
    tried, known = lower.attempt(image, k=10), lower.query(3, k=10)
    found, wanted = ([h.train_id for h in one.proponents] for one in (tried, known))
    assert found[0] == wanted[0] and len(set(found) & set(wanted)) >= 9


def test_a_build_older_than_a_fact_that_is_told_of_it_is_compared_all_the_same(
    place, engine, monkeypatch
):
    manifest = place.cache / "build" / place.build / "manifest.json"
    facts = json.loads(manifest.read_text())
    del facts["summary"]["threads"], facts["sha256"]
    facts["sha256"] = _digest(facts)
    manifest.write_text(json.dumps(facts))
    at_place(place, monkeypatch)
    assert "threads" not in engine.compared(place.build)[0]
    shown = [frame.value for frame in fine(page("compare")).dataframe]
    assert any("threads" in frame and frame["threads"].isna().all() for frame in shown)
