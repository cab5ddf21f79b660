"""What if on the page of predictions and on the command line: real jobs, real retraining."""

import json
import re
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from apptest import act, at_place, element, fine, items, page
from chromium import TRAINED, app_server, chromium, chromium_path
from conftest import Tiny
from playwright.sync_api import expect
from streamlit.testing.v1 import AppTest

from attribution.__main__ import main
from attribution.build import Build
from attribution.engine import Engine
from attribution.whatif import scale_of
from pages.parts import opened
from pages.parts.words import sure


@pytest.fixture(scope="module")
def whole(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The tiny build in a cache that these tests may add verifications to."""
    root = tmp_path_factory.mktemp("whatif")
    shutil.copytree(tiny.cache, root / "cache", ignore=shutil.ignore_patterns("locks", "jobs"))
    return Tiny(root / "cache", root, tiny.build)


@pytest.fixture
def place(whole: Tiny, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    return at_place(whole, monkeypatch)


@pytest.fixture
def engine(place: Tiny) -> Engine:
    return opened.engine()


@pytest.fixture
def build(engine: Engine, place: Tiny) -> Build:
    return engine.open(place.build)


def metrics(app: AppTest) -> list[str]:
    return [m.value for m in app.metric]


def left_out(app: AppTest) -> list[int]:
    return element(app, "hits")["left_out"]


def test_the_strongest_are_left_out_and_their_share_is_told(engine: Engine, build: Build) -> None:
    app = fine(page("explain"))
    test_id = element(app, "tests")["selected"]
    assert left_out(app) == list(build.strongest(test_id, 20))
    app.select_slider(key="count").set_value(50).run()
    ids = build.strongest(test_id, 50)
    assert left_out(fine(app)) == list(ids)
    told = engine.forecast(build.id, test_id, ids, "predicted", None)
    name = build.classes[told.target]
    assert app.metric[0].label == f"Sure of {name} now" and metrics(app)[0] == sure(told.margin)
    assert metrics(app)[1] == f"{-100 * told.share:+.{0 if told.share > 0.095 else 1}f} %"
    assert metrics(app)[2] == "?"
    app.button_group(key="leave").set_value("strongest against").run()
    assert left_out(fine(app)) == list(build.strongest(test_id, 50, opponents=True))
    assert any("known once 5 removals are verified (0 so far)" in c.value for c in app.caption)


def test_tiles_choose_what_is_left_out_and_the_address_keeps_it(build: Build) -> None:
    app = page("explain")
    one, two = (item["id"] for item in items(app, "hits", 1)[:2])
    before = left_out(app)
    fine(act(app, "hits", {"type": "leave", "id": one}, {"type": "leave", "id": two}))
    act(app, "hits", {"type": "leave", "id": before[0]})
    wanted = sorted({*before[1:], one, two})
    assert left_out(fine(app)) == wanted
    address = {k: v[0] if isinstance(v, list) else v for k, v in app.query_params.items()}
    assert address["picked"] == ",".join(map(str, wanted))
    again = fine(page("explain", **{**address, "leave": "my own choice"}))
    assert left_out(again) == wanted
    again.button(key="clear_picked").click().run()
    assert left_out(fine(again)) == [] and len(again.metric) == 0


def test_another_prediction_begins_with_its_own_strongest(build: Build) -> None:
    app = page("explain")
    act(app, "hits", {"type": "leave", "id": items(app, "hits", 1)[0]["id"]})
    other = items(app, "tests")[4]["id"]
    fine(act(app, "tests", {"type": "pick", "id": other}))
    assert left_out(app) == list(build.strongest(other, 20))


def test_a_set_in_the_address_that_makes_no_sense_is_a_notice(build: Build) -> None:
    app = fine(page("explain", leave="my own choice", picked="3,99999,x"))
    (notice,) = [w.value for w in app.warning]
    assert "training id 99999" in notice and "0 to 4499" in notice
    assert items(app, "hits") and len(app.metric) == 0


def wait(engine: Engine, state: str) -> None:
    end = time.monotonic() + 600
    while engine.jobs()[0].state == "running":
        assert time.monotonic() < end
        time.sleep(0.2)
    assert engine.jobs()[0].state == state, engine.jobs()[0]


def test_verify_runs_aside_and_ends_as_predicted_against_realised(
    engine: Engine, build: Build
) -> None:
    app = page("explain")
    test_id = element(app, "tests")["selected"]
    app.select_slider(key="count").set_value(10).run()
    app.number_input(key="pairs").set_value(2).run()
    app.button(key="verify").click().run()
    assert engine.jobs()[0].command == "verify"
    wait(engine, "done")
    fine(app.run())
    (row,) = engine.verifications(build.id)
    assert (row["test_id"], row["seeds"], len(row["removed"])) == (test_id, 2, 10)
    assert row["removed"] == tuple(sorted(build.strongest(test_id, 10)))
    assert metrics(app)[2] == sure(row["after"])
    said = "It flips" if row["flipped"] else "It holds"
    assert any(said in m.value for m in app.markdown)
    assert app.button(key="verify").disabled and app.button(key="verify").label == "Verified"
    assert len(app.dataframe[-1].value) == 1 and len(app.get("plotly_chart")) == 1
    app.number_input(key="pairs").set_value(3).run()  # more of them may be asked for
    assert not app.button(key="verify").disabled


def test_with_five_verifications_predictions_are_of_the_margin(
    engine: Engine, build: Build
) -> None:
    for test_id, k in ((3, 10), (3, 200), (7, 50), (11, 100), (15, 400)):
        ids = build.strongest(test_id, k, "label")
        engine.verify(build.id, test_id, ids, "label", 3)
    scale = engine.scale(build.id)
    assert scale is not None and scale.usable  # a tiny network still follows its scores
    app = fine(page("explain", test="11", target="label", show="all", count="100"))
    others = [r for r in engine.verifications(build.id) if r["test_id"] != 11]
    told = engine.forecast(build.id, 11, left_out(app), "label", scale_of(others))
    assert told.change is not None and metrics(app)[1] == sure(told.margin + told.change)
    assert any("Rank correlation" in c.value for c in app.caption)
    found = engine.flipping(build.id, 11, "label")
    app.button(key="smallest").click().run()
    if found is None:
        assert any("No set" in w.value for w in fine(app).warning)
    else:
        assert left_out(fine(app)) == list(found)
        assert engine.forecast(build.id, 11, found, "label", scale).flips
        assert not engine.forecast(build.id, 11, found[1:], "label", scale).flips or len(found) == 1


def test_a_verification_can_be_cancelled(engine: Engine, build: Build) -> None:
    ids = ",".join(map(str, build.strongest(20, 30)))
    job = engine.start([build.id, "20", "--remove", ids, "--seeds", "1000"], "verify")
    app = page("explain", test="20", show="all")
    app.button(key="cancel_verify").click().run()
    wait(engine, "cancelled")
    fine(app.run())
    assert engine.jobs()[0].id == job and app.button(key="verify")


# The command line.


@pytest.fixture
def run(monkeypatch, capsys, place: Tiny):
    def command(*words: object) -> tuple[int, str, str]:
        given = ["attribution", *map(str, words), "--cache", str(place.cache)]
        monkeypatch.setattr(sys, "argv", given)
        monkeypatch.setenv("COLUMNS", "250")
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err

    return command


def test_verify_whatif_and_blast_on_the_command_line(run, engine: Engine, build: Build) -> None:
    code, out, _ = run("verify", build.id, 30, "--top", 15, "--seeds", 2, "--json")
    made = json.loads(out)
    ids = sorted(build.strongest(30, 15, "label"))
    assert code == 0 and made["removed"] == ids and made["seeds"] == 2
    assert made["low"] < made["change"] < made["high"]
    assert made["change"] == pytest.approx(made["after"] - made["before"], abs=1e-4)
    code, out, _ = run("verifications", build.id, "--json")
    listed = json.loads(out)
    assert code == 0 and made["id"] in [v["id"] for v in listed["verifications"]]
    remove = ",".join(map(str, ids))
    code, out, _ = run("whatif", build.id, 30, "--remove", remove, "--json")
    told = json.loads(out)
    assert code == 0 and told["score"] == pytest.approx(made["score"]) and told["exact"]
    code, out, _ = run("blast", build.id, 8, "--label", build.classes[2], "-k", 4, "--json")
    assert code == 0 and json.loads(out) == [asdict(r) for r in engine.blast(build.id, [8], 2, 4)]
    for words in (("whatif", build.id, 30, "--top", 9), ("blast", build.id, 8),
                  ("verifications", build.id)):  # fmt: skip
        code, out, _ = run(*words)
        assert code == 0 and out.strip()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--top", 5, "--remove", "3"), "one of them"),
        ((), "neither --remove nor --top"),
        (("--remove", "3,x"), "'x'"),
        (("--remove", "99999"), "training id 99999"),
        (("--remove", ","), "no training example"),
        (("--top", 4500), "every training example removed"),
        (("--top", 5, "--seeds", 0), "--seeds 0"),
        (("--top", 5, "--target", "cat"), "'cat'"),
    ],
)
def test_mistakes_are_one_sentence(run, build: Build, words: tuple, said: str) -> None:
    code, out, err = run("verify", build.id, 30, *words)
    assert code == 2 and not out and said in err and "Traceback" not in err


# A real browser.


@pytest.mark.skipif(chromium_path() is None, reason="no Chromium here")
def test_the_path_in_a_browser(whole: Tiny, tmp_path: Path) -> None:
    """Leave an image out by its tile, verify, watch, read what happened."""
    build = Engine(whole.cache, tmp_path).open(whole.build)
    with chromium() as browser, app_server(whole.cache, tmp_path) as url:
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        said: list[str] = []
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.goto(f"{url}/explain?show=all&test=40&count=5")
        ids = build.strongest(40, 5)
        out = tab.locator(".st-key-hits .tile.out")
        expect(out).to_have_count(5)
        first = tab.locator(f".st-key-hits .tile[data-id='{ids[0]}'] .leave")
        first.click()
        expect(out).to_have_count(4)
        expect(tab.get_by_text("Predicted without 4 images")).to_be_visible()
        expect(tab).to_have_url(re.compile("leave=my.own.choice"))
        sixth = build.strongest(40, 6)[5]
        tab.locator(f".st-key-hits .tile[data-id='{sixth}']").focus()
        tab.keyboard.press("o")
        expect(tab.get_by_text("Predicted without 5 images")).to_be_visible()
        tab.get_by_role("button", name="Verify by retraining").click()
        expect(tab.get_by_role("button", name="Cancel")).to_be_visible()
        expect(tab.get_by_text(re.compile("Retrained networks s"))).to_be_visible(timeout=TRAINED)
        chart = tab.locator(".js-plotly-plot")
        expect(chart).to_have_count(1)  # the old one stays until a run has ended
        expect(chart).to_be_visible()
        tab.reload()
        expect(out).to_have_count(5)
        assert said == [] and "Traceback" not in tab.inner_text("body")
        tab.close()
