"""Decisions applied: the revised data by hand, training again, and what it changed."""

import csv
import hashlib
import json
import os
import re
import shutil
from dataclasses import replace
from io import StringIO
from math import comb
from pathlib import Path

import numpy as np
import pytest
from apptest import APP, PATIENCE, act, at_place, element, fine, items, page
from chromium import app_server, chromium, chromium_path
from conftest import Tiny
from pictures import CLASSES, half, photos, table
from playwright.sync_api import expect
from streamlit.testing.v1 import AppTest
from typer.testing import CliRunner

from attribution import jobs, strategies
from attribution.__main__ import app as cli
from attribution.changes import by_chance, changes
from attribution.data import clean_labels, dataset
from attribution.engine import Engine
from attribution.export import changes_csv
from attribution.records import DataSpec, Decision, UserError, content_id
from attribution.revision import revise
from attribution.store import _sealed
from attribution.testlabels import untouched
from pages.parts import opened


@pytest.fixture
def engine(tiny: Tiny, tmp_path: Path) -> Engine:
    """The tiny build with a workspace of its own; what is built goes to a copy."""
    shutil.copytree(tiny.cache, tmp_path / "cache", copy_function=shutil.copy)
    return Engine(tmp_path / "cache", tmp_path)


def decide(engine: Engine, build_id: str, train_id: int, verdict: str, label=None, who="") -> None:
    build = engine.open(build_id)
    engine.decisions.decide(
        build.data_id, build.train_ids[train_id], verdict, label=label, reviewer=who,
        build_id=build_id,
    )  # fmt: skip


def test_ids_of_data_that_was_never_revised_are_what_they_were() -> None:
    fields = {"name": "mnist5k", "noise": 0.1, "noise_kind": "uniform", "noise_seed": 0}
    text = json.dumps([1, "x", {"DataSpec": fields}], sort_keys=True)
    assert content_id("x", DataSpec(noise=0.1)) == hashlib.sha256(text.encode()).hexdigest()[:12]
    revised = content_id("x", DataSpec(noise=0.1, revision="0" * 12))
    assert revised != content_id("x", DataSpec(noise=0.1))


def test_the_revised_data_are_the_data_without_what_was_dropped_and_relabelled(
    engine: Engine, tiny: Tiny
) -> None:
    build = engine.open(tiny.build)
    wanted = dict(zip(build.train_ids, build.train_labels_N.tolist(), strict=True))
    for n, (verdict, label) in {3: ("drop", None), 7: ("relabel", 4), 9: ("keep", None)}.items():
        decide(engine, tiny.build, n, verdict, label, who="ada")
        if verdict == "drop":
            del wanted[build.train_ids[n]]
        elif label is not None:
            wanted[build.train_ids[n]] = label
    made = engine.revise(tiny.build)
    assert (made.relabelled, made.dropped, made.kept, made.missing) == (1, 1, 1, ())
    assert made.build == tiny.build and made.reviewers == ("ada",) and len(made.decisions) == 3
    spec = engine.revised_spec(tiny.build, made.id).data
    found = dataset(engine.store, spec)
    assert dict(zip(found.train.ids, found.train.labels_N.tolist(), strict=True)) == wanted
    at = [build.train_ids.index(e) for e in found.train.ids]
    np.testing.assert_array_equal(found.train.images, build.data.train.images[at])
    assert found.test.ids == build.data.test.ids
    clean = clean_labels(engine.store, build.data_id)
    np.testing.assert_array_equal(clean_labels(engine.store, found.id), clean[at])
    assert engine.revise(tiny.build) == made  # once made, found


def test_a_second_revision_holds_the_first(engine: Engine, tiny: Tiny) -> None:
    decide(engine, tiny.build, 3, "drop")
    decide(engine, tiny.build, 7, "relabel", 4)
    first = engine.revise(tiny.build)
    after = engine.build(engine.revised_spec(tiny.build, first.id))["build"]
    build = engine.open(after)
    assert len(build.train_ids) == len(engine.open(tiny.build).train_ids) - 1
    decide(engine, after, 0, "drop")
    second = engine.revise(after)
    found = dataset(engine.store, engine.revised_spec(after, second.id).data)
    assert found.train.ids == build.train_ids[1:]
    np.testing.assert_array_equal(found.train.labels_N, build.train_labels_N[1:])
    assert [b["build"] for b in engine.revised(tiny.build)] == [after]
    assert engine.revision(after) == first and engine.revision(tiny.build) is None


@pytest.mark.parametrize("said", [True, False])  # as programs before this one left it out
def test_builds_on_the_same_data_have_each_their_own_after(
    engine: Engine, tiny: Tiny, said: bool
) -> None:
    """The data with the decisions are one for both, made when the first applied them."""
    other = engine.build(replace(engine.open(tiny.build).spec, masks=1))["build"]
    decide(engine, tiny.build, 3, "drop")
    made = [engine.revise(one) for one in (tiny.build, other)]
    assert made[0].id == made[1].id and made[1].build == tiny.build
    if not said:
        path = engine.cache / "revision" / made[0].id / "manifest.json"
        manifest = json.loads(path.read_text())
        del manifest["made_by"]["before"], manifest["sha256"]
        path.write_text(_sealed(manifest))
        engine = Engine(engine.cache, engine.workspace)
    first, second = (
        engine.build(engine.revised_spec(one, made[0].id))["build"] for one in (tiny.build, other)
    )
    assert [b["build"] for b in engine.revised(tiny.build)] == [first]
    assert [b["build"] for b in engine.revised(other)] == [second]
    assert engine.revised_from(first) == tiny.build and engine.revised_from(second) == other
    assert engine.revised_from(tiny.build) == "" and engine.revised(first) == []
    engine.delete(other)
    assert engine.revised_from(second) == tiny.build  # the nearest there is, which made the data


def test_decisions_on_what_the_data_no_longer_has_are_told_and_left(
    engine: Engine, tiny: Tiny
) -> None:
    build = engine.open(tiny.build)
    decide(engine, tiny.build, 3, "drop")
    engine.decisions.decide(build.data_id, "gone-0", "drop", label=None, build_id=tiny.build)
    made = engine.revise(tiny.build)
    assert made.missing == ("gone-0",) and made.dropped == 1


def test_decisions_that_change_nothing_are_refused(engine: Engine, tiny: Tiny) -> None:
    for verdict in (None, "keep"):
        if verdict:
            decide(engine, tiny.build, 3, verdict)
        with pytest.raises(UserError) as told:
            engine.revise(tiny.build)
        assert "no relabel and no drop" in told.value.found


def test_a_class_cannot_be_emptied(engine: Engine, tiny: Tiny) -> None:
    build = engine.open(tiny.build)
    for n in np.flatnonzero(build.train_labels_N == 6):
        decide(engine, tiny.build, int(n), "relabel", 1)
    with pytest.raises(UserError) as told:
        engine.revise(tiny.build)
    assert "class '6'" in told.value.found


def test_a_class_that_never_had_an_image_empties_nothing(tmp_path: Path) -> None:
    """A table may name classes that no image is of."""
    names = (CLASSES[0], "unused", *CLASSES[1:])
    engine = Engine(tmp_path / "cache", tmp_path)
    source = table(tmp_path / "some.parquet", half(photos(), "train"), names)
    data = dataset(engine.store, engine.read(str(source)))
    assert data.classes == names and 1 not in data.train.labels_N
    drop = Decision(
        seq=1, data_id=data.id, example_id=data.train.ids[0], verdict="drop", label=None,
        reviewer="", time="", build_id="b", evidence="",
    )  # fmt: skip
    made = revise(engine.store, data, {drop.example_id: drop}, "b")
    revised = dataset(engine.store, replace(data.spec, revision=made.id))
    assert revised.train.ids == data.train.ids[1:]
    emptied = {
        example: replace(drop, example_id=example)
        for example, label in zip(data.train.ids, data.train.labels_N, strict=True)
        if label == 2
    }
    with pytest.raises(UserError, match=f"no training image of class '{names[2]}'"):
        revise(engine.store, data, emptied, "b")


def test_an_unknown_revision_is_a_users_mistake(engine: Engine, tiny: Tiny) -> None:
    for name in ("0" * 12, "../../x"):
        spec = replace(engine.open(tiny.build).spec, data=DataSpec(noise=0.1, revision=name))
        with pytest.raises(UserError) as told:
            engine.build(spec)
        assert name in told.value.found and "apply" in told.value.next_step


def test_changes_are_told_image_by_image() -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 3, 200)
    before, after = draw.random((2, 200, 3))
    found = changes(untouched(labels), before, after, "a", "b")
    for t, one in found.table.iterrows():
        was, now = before[t].argmax() == labels[t], after[t].argmax() == labels[t]
        kind = {(0, 1): "mended", (1, 0): "broken", (0, 0): "still wrong", (1, 1): "still right"}
        assert one.kind == kind[int(was), int(now)]
        assert (one.label_before, one.label_after) == (before[t, labels[t]], after[t, labels[t]])
    s = found.summary
    assert s.after - s.before == pytest.approx((s.mended - s.broken) / 200)
    with pytest.raises(UserError):
        changes(untouched(labels), before, after[:, :2], "a", "b")


@pytest.mark.parametrize(("mended", "broken"), [(0, 0), (8, 1), (5, 5), (0, 6)])
def test_the_chance_is_that_of_a_fair_coin(mended: int, broken: int) -> None:
    n = mended + broken
    as_rare = sum(comb(n, k) for k in range(n + 1) if comb(n, k) <= comb(n, mended))
    assert by_chance(mended, broken) == pytest.approx(as_rare / 2**n)


def test_the_command_applies_trains_again_and_says_what_it_bought(
    engine: Engine, tiny: Tiny
) -> None:
    build = engine.open(tiny.build)
    clean = clean_labels(engine.store, build.data_id)
    for n in np.flatnonzero(clean != build.train_labels_N):  # a reviewer who knows
        decide(engine, tiny.build, int(n), "relabel", int(clean[n]))
    where = ["--cache", str(engine.cache), "--workspace", str(engine.workspace)]
    told = CliRunner().invoke(cli, ["apply", tiny.build, *where, "--json"])
    found = json.loads(told.stdout)
    after = engine.open(found["build"])
    assert np.array_equal(after.train_labels_N, clean)
    assert found["after"] == pytest.approx(after.summary["accuracy"])
    assert found["before"] == pytest.approx(build.summary["accuracy"])
    assert found["revision"]["relabelled"] == int((clean != build.train_labels_N).sum())
    again = CliRunner().invoke(cli, ["apply", tiny.build, *where])
    assert f"Build {after.id}" in again.stdout and "mistakes mended" in again.stdout
    empty = CliRunner().invoke(cli, ["apply", after.id, *where])
    assert isinstance(empty.exception, UserError)


# The page.


def test_without_decisions_the_page_points_to_the_review(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_place(Tiny(tiny.cache, tmp_path, tiny.build), monkeypatch)
    shown = fine(page("changes"))
    assert any("No decision in force" in m.value for m in shown.markdown)
    assert not shown.get("bidi_component")


def test_the_page_trains_again_and_shows_what_changed(
    engine: Engine, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_place(Tiny(engine.cache, engine.workspace, tiny.build), monkeypatch)
    build = engine.open(tiny.build)
    clean = clean_labels(engine.store, build.data_id)
    for n in np.flatnonzero(clean != build.train_labels_N)[:200]:
        decide(engine, tiny.build, int(n), "relabel", int(clean[n]))
    started: list[tuple] = []
    monkeypatch.setattr(Engine, "start", lambda self, *given: started.append(given) or "job")
    shown = fine(page("changes"))
    assert any("**200** images to relabel" in m.value for m in shown.markdown)
    shown.button(key="apply").click().run()
    ((options,),) = started
    assert options[options.index("--revision") + 1] == engine.revise(tiny.build).id
    made = CliRunner().invoke(cli, ["build", *options, "--cache", str(engine.cache), "--json"])
    after = json.loads(made.stdout)["build"]
    engine.decisions.decide(build.test_half.id, build.test_ids[5], "drop")
    changed = engine.changes(tiny.build, after)
    assert 5 not in changed.table.index and "1 test image excluded" in changed.summary.words
    for at in (tiny.build, after):  # either of the two is asked for
        app = AppTest.from_file(APP, default_timeout=PATIENCE)
        app.switch_page("pages/changes.py")
        app.query_params["build"] = at
        app.run()
        fine(app)
        for group, kind in enumerate(("mended", "broken", "still wrong")):
            wanted = changed.table.index[changed.table.kind == kind]
            shown_ids = [i["id"] for i in items(app, "changes", group)]
            assert set(shown_ids) <= set(wanted) and len(shown_ids) == min(60, len(wanted))
        assert app.metric[0].value == f"{changed.summary.after:.1%}"
        assert any(c.value.startswith(changed.summary.as_given) for c in app.caption)
    first = items(app, "changes", 2)[0]["id"]
    act(app, "changes", {"type": "pick", "id": first})
    assert app.session_state["test"] == first and app.session_state["build"] == after
    assert element(app, "tests")["selected"] == first
    assert opened.engine().open(after).id == after


def test_the_table_to_take_away_has_names(tiny: Tiny) -> None:
    build = Engine(tiny.cache, tiny.workspace).open(tiny.build)
    build.classes = tuple(f"={c} of them" for c in range(10))
    found = changes(untouched(build.test_labels_T), build.probs_TC, build.probs_TC[:, ::-1], "", "")
    rows = list(csv.DictReader(StringIO(changes_csv(build, found.table))))
    assert [row["after"] for row in rows] == [f"'={c} of them" for c in found.table.after]
    assert [row["example_id"] for row in rows] == list(build.test_ids)
    assert [row["kind"] for row in rows] == found.table.kind.tolist()


def test_a_training_again_that_failed_says_why(
    engine: Engine, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_place(Tiny(engine.cache, engine.workspace, tiny.build), monkeypatch)
    decide(engine, tiny.build, 3, "drop")
    spec = engine.revised_spec(tiny.build, engine.revise(tiny.build).id)
    for n, (given, error) in enumerate(
        [(spec, "the disk is full"), (replace(spec, masks=1), "another one's")]
    ):
        place = engine.cache / "jobs" / f"{n:012x}"
        place.mkdir(parents=True)
        jobs.write(place / "request.json", {"options": strategies.options(given), "created": n})
        jobs.write(place / "status.json", {"state": "failed", "error": error})
    assert [e.value for e in page("changes").error] == ["the disk is full"]


@pytest.mark.skipif(
    chromium_path() is None and "CI" not in os.environ,
    reason="no Chromium here: nothing was picked in a browser",
)
def test_a_picked_image_is_explained_by_the_build_trained_again(engine: Engine, tiny: Tiny) -> None:
    decide(engine, tiny.build, 3, "drop")
    spec = engine.revised_spec(tiny.build, engine.revise(tiny.build).id)
    after = engine.build(spec)["build"]
    with app_server(engine.cache, engine.workspace) as url, chromium() as browser:
        shown = browser.new_page()
        shown.goto(f"{url}/changes?build={tiny.build}")
        shown.locator(".st-key-changes .tile").first.click()
        expect(shown.get_by_role("heading", name="Explain", exact=True)).to_be_visible()
        expect(shown).to_have_url(re.compile(f"/explain.*build={after}"))
