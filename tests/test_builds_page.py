"""The page of builds: an archive becomes data, a disk without room, what ended before its time."""

import re
from pathlib import Path

import pytest
from apptest import at_place, fine, page
from conftest import Tiny
from pictures import encoded, noise, photos, written
from test_archives import zipped

from attribution import jobs
from attribution.engine import Engine
from attribution.records import BuildSpec, FeatureSpec, UserError
from pages.parts import opened

FILES = photos(train=5, test=2)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    return at_place(Tiny(tmp_path / "cache", tmp_path / "ws", ""), monkeypatch)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would have been started."""
    found: list[list[str]] = []
    monkeypatch.setattr(Engine, "start", lambda self, options, *_: found.append(options) or "job")
    return found


def press(app, label: str):
    return next(b for b in app.button if b.label == label).click().run()


def text(app) -> str:
    return " ".join(e.value for e in (*app.markdown, *app.caption, *app.warning, *app.info))


def test_an_archive_is_uploaded_looked_at_estimated_and_built(place, started) -> None:
    app = fine(page("builds"))
    app.file_uploader[0].upload("photos.zip", zipped(FILES).getvalue(), "application/zip").run()
    (folder,) = (p for p in (place.workspace / "data").iterdir() if p.is_dir())
    assert app.selectbox(key="data").value == str(folder)
    assert "15 training and 6 test images of 3 classes" in text(fine(app))
    assert "cnn sees shapes" in text(app)
    of = Engine(place.cache, place.workspace).described(str(folder))["data"]
    assert app.number_input(key=f"epochs_{of}").value == 150
    app.number_input(key=f"models_{of}").set_value(1)
    app.number_input(key=f"masks_{of}").set_value(2)
    press(app, "Estimate")
    assert "that are free" in text(fine(app))
    fine(press(app, "Start build"))
    (options,) = started
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert given["--data"] == str(folder) and given["--model"] == "cnn"
    assert given["--models"] == "1" and given["--masks"] == "2"
    again = fine(page("builds"))  # another visit finds what was uploaded
    assert "photos (uploaded)" in again.selectbox(key="data").options


def test_an_upload_that_no_build_is_of_is_removed_after_a_second_word(place) -> None:
    engine = Engine(place.cache, place.workspace)
    twice = FILES | {"train/cat/more.png": encoded(noise(9))}
    packed = [zipped(files) for files in (FILES, twice)]
    two = [engine.unpacked(one, "photos.zip") for one in packed]
    read = [engine.read(str(one.folder)) for one in two]
    used = engine.build(BuildSpec(
        data=read[0], model="cnn", width=0.2, models=1, masks=1, epochs=1, index_dims=4,
        features=FeatureSpec(ka=2, kg=2),
    ))["build"]  # fmt: skip
    app = page("builds")
    shown = [o for o in app.selectbox(key="data").options if "(uploaded)" in o]
    assert len(set(shown)) == 2 and all(re.match(r"photos \(\w{6}\) ", o) for o in shown)
    assert app.dataframe[0].value["data"].tolist() == ["photos"]
    app.selectbox(key="data").set_value(str(two[1].folder)).run()
    app.session_state["removing"] = True
    app = fine(app.run())
    name = two[1].folder.name
    assert app.selectbox(key="removed").options == ["photos"]  # the other one is in use
    assert f"Its {two[1].kept} unpacked files" in text(app)
    app.toggle(key=f"removing_{name}").set_value(True).run()
    fine(app.button(key=f"remove_{name}").click().run())
    assert not two[1].folder.exists() and two[0].folder.exists()
    assert app.selectbox(key="data").value == "mnist5k" and "is removed" in text(app)
    assert not engine.store.has("pixels", read[1].pixels) and engine.open(used)
    with pytest.raises(UserError, match="no upload"):
        engine.remove_upload(two[0].folder.name)
    assert engine.unpacked(packed[1], "photos.zip").folder == two[1].folder  # brought again
    assert engine.read(str(two[1].folder)) == read[1]


def test_a_bad_archive_is_one_sentence_and_leaves_the_form(place) -> None:
    app = fine(page("builds"))
    content = zipped({"../x.png": b"x"}).getvalue()
    app.file_uploader[0].upload("bad.zip", content, "application/zip").run()
    (said,) = [w.value for w in fine(app).warning]
    assert "bad.zip names a file outside of itself" in said
    assert any(b.label == "Start build" for b in app.button)
    assert app.selectbox(key="data").value == "mnist5k"


def test_a_build_without_room_is_not_started(place, started, monkeypatch) -> None:
    monkeypatch.setattr("attribution.estimate.free", lambda cache: 1000)
    app = press(page("builds"), "Start build")
    assert any("free on the disk" in w.value for w in fine(app).warning) and not started


def test_a_build_that_ended_early_is_resumed_once(place, started) -> None:
    folder = place.cache / "jobs"
    for n, (state, options) in enumerate(
        [("failed", ["--seed", "7"]), ("done", ["--seed", "8"]), ("cancelled", ["--seed", "9"]),
         ("done", ["--seed", "9"])]
    ):  # fmt: skip
        job = folder / f"{n:012x}"
        job.mkdir(parents=True)
        request = {"command": "build", "options": options, "created": n}
        jobs.write(job / "request.json", request)
        jobs.write(job / "status.json", {"state": state, "seconds": 3})
    app = page("builds")
    resume = [b for b in app.button if b.label == "Resume"]
    assert [b.key for b in resume] == ["resume_000000000000"]  # the other went on already
    resume[0].click().run()
    assert started == [["--seed", "7"]]


def test_what_runs_stays_in_view_however_much_was_started_since(place, monkeypatch) -> None:
    for n in range(12):
        job = place.cache / "jobs" / f"{n:012x}"
        job.mkdir(parents=True)
        jobs.write(job / "request.json", {"command": "build", "options": [], "created": n})
        if n:
            jobs.write(job / "status.json", {"state": "done", "seconds": 3})
    monkeypatch.setattr("attribution.jobs.alive", lambda place: place.name == f"{0:012x}")
    shown = fine(page("builds"))
    assert [b.key for b in shown.button if b.label == "Cancel"] == ["cancel_000000000000"]
    assert len([e for e in shown.expander if e.label == "Log"]) == 9


def test_the_room_that_was_made_counts_when_a_build_is_started(place, started, monkeypatch) -> None:
    monkeypatch.setattr("attribution.estimate.free", lambda cache: 1000)
    app = press(page("builds"), "Estimate")
    assert any("free on the disk" in w.value for w in fine(app).warning)
    monkeypatch.undo()
    monkeypatch.setenv(opened.CACHE, str(place.cache))
    monkeypatch.setattr(Engine, "start", lambda self, options, *_: started.append(options) or "job")
    fine(press(app, "Start build"))
    assert len(started) == 1


def test_a_build_of_a_folder_that_changed_is_told_from_the_older_one(place, tmp_path) -> None:
    engine, folder = Engine(place.cache, place.workspace), written(tmp_path / "mine", FILES)
    read = []
    for seed in (9, 10):
        written(folder, {"train/cat/more.png": encoded(noise(seed))})
        read.append(engine.read(str(folder)))
        engine.build(BuildSpec(
            data=read[-1], model="cnn", width=0.2, models=1, masks=1, epochs=1, index_dims=4,
            features=FeatureSpec(ka=2, kg=2),
        ))  # fmt: skip
    app = fine(page("builds"))
    names = {f"mine ({one.pixels[:6]})" for one in read}
    assert names <= set(app.selectbox(key="data").options)
    gone = next(one["build"] for one in engine.builds())
    job = place.cache / "jobs" / f"{1:012x}"
    job.mkdir(parents=True)
    jobs.write(job / "request.json", {"command": "build", "options": [], "created": 1})
    jobs.write(job / "status.json", {"state": "done", "seconds": 3, "build": gone})
    assert any(b.label == "Open" for b in fine(page("builds")).button)
    engine.delete(gone)
    app = fine(page("builds"))
    assert not any(b.label == "Open" for b in app.button) and "Deleted since" in text(app)
