"""Every page on a real build: its ids and numbers are the engine's, its mistakes are sentences."""

import json
import socket
import sqlite3
from pathlib import Path

import pytest
from apptest import APP, PATIENCE, act, at_place, element, fine, items, page
from conftest import Tiny
from starlette.applications import Starlette
from starlette.testclient import TestClient
from streamlit.testing.v1 import AppTest

from app import PAGES, serve
from attribution.build import Build
from attribution.engine import Engine
from attribution.quantities import size, span
from attribution.records import UserError
from bench.questions import asked_of
from pages.parts import behind, opened, reach
from pages.parts.reviewer import REVIEWER
from pages.parts.thumbs import ROUTES
from pages.parts.words import blink, readable


@pytest.fixture
def place(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """The tiny build with a workspace of the test's own, as the app finds them."""
    return at_place(Tiny(tiny.cache, tmp_path, tiny.build), monkeypatch)


@pytest.fixture
def engine(place: Tiny) -> Engine:
    return opened.engine()


@pytest.fixture
def build(engine: Engine, place: Tiny) -> Build:
    return engine.open(place.build)


def test_overview_shows_the_build_and_its_surest_mistakes(build: Build) -> None:
    app = fine(page("overview"))
    tests = build.tests()
    wrong = tests[~tests.correct].sort_values("confidence", ascending=False)
    metrics = {m.label: m.value for m in app.metric}
    assert metrics["Training images"] == f"{len(build.train_ids):,}"
    assert metrics["Test images"] == f"{len(tests):,}"
    assert metrics["Test accuracy"] == f"{tests.correct.mean():.1%}"
    assert metrics["Networks × masks"] == "2 × 2"
    shown = [one["id"] for one in items(app, "overview_wrong")]
    assert shown == [int(i) for i in wrong.index[: len(shown)]] and shown
    suspects = [one["id"] for one in items(app, "overview_suspects")]
    assert suspects == [int(i) for i in build.mislabels().index[: len(suspects)]]
    assert build.id in app.dataframe[0].value["build"].tolist()


def test_overview_leads_to_the_chosen_prediction(build: Build) -> None:
    app = page("overview")
    chosen = items(app, "overview_wrong")[3]["id"]
    fine(act(app, "overview_wrong", {"type": "pick", "id": chosen}))
    assert element(app, "tests")["selected"] == chosen
    assert element(app, "subject")["title"] == f"Test image {chosen}"


def test_from_the_overview_a_button_leads_to_the_builds(build: Build) -> None:
    app = fine(page("overview"))
    app.button(key="to_builds").click().run()
    assert fine(app).title[0].value == "Builds"
    assert app.session_state["build"] == build.id  # which no widget of that page may be called


def test_overview_draws_the_doubtful_where_the_address_says_so(build: Build) -> None:
    assert not page("overview").get("plotly_chart")
    app = AppTest.from_file(APP, default_timeout=PATIENCE)
    app.query_params["doubts"] = "true"
    fine(app.run())
    (chart,) = app.get("plotly_chart")
    traces = json.loads(chart.proto.spec)["data"]
    frame = build.mislabels()
    for kind, trace in zip(("wrong", "ambiguous"), traces, strict=False):
        some = frame[frame.kind == kind]
        assert trace["name"] == f"{kind} ({len(some)})"
        assert trace["customdata"] == [int(i) for i in some.index[:500]]
        assert trace["y"] == some.disagreement[:500].tolist()


def test_explain_opens_on_the_surest_mistake_with_the_engines_hits(build: Build) -> None:
    app = fine(page("explain"))
    tests = build.tests()
    wrong = tests[~tests.correct].sort_values("confidence", ascending=False)
    assert [one["id"] for one in items(app, "tests")] == [int(i) for i in wrong.index[:120]]
    test_id = element(app, "tests")["selected"]
    assert test_id == int(wrong.index[0])
    answer = build.query(test_id, 12, "predicted")
    scale = readable(max(abs(hit.score) for hit in answer.proponents + answer.opponents))[0]
    for group, hits in enumerate((answer.proponents, answer.opponents)):
        shown = items(app, "hits", group)
        assert [one["id"] for one in shown] == [hit.train_id for hit in hits]
        assert [one["score"] for one in shown] == [hit.score for hit in hits]
        assert [one["score_text"] for one in shown] == [f"{h.score * scale:+.1f}" for h in hits]
        assert [one["stderr"] for one in shown] == [hit.stderr for hit in hits]
        assert [one["shaky"] for one in shown] == [hit.shaky for hit in hits]
        assert [one["caption"] for one in shown] == [build.classes[hit.label] for hit in hits]
        assert shown[0]["agreement_text"] == f"{round(hits[0].agreement * 4)}/4"
    bars = element(app, "subject")["bars"]
    assert bars[0]["value"] == pytest.approx(float(build.probs_TC[test_id].max()))
    assert any(answer.noise in caption.value for caption in app.caption)


def test_explain_filters_by_class_confidence_and_correctness(build: Build) -> None:
    app = page("explain")
    app.button_group(key="show").set_value("all").run()
    app.selectbox(key="label").set_value(build.classes[4]).run()
    app.slider(key="confidence").set_range(50, 100).run()
    tests = build.tests()
    kept = tests[(tests.label == 4) & (tests.confidence >= 0.5)]
    assert {one["id"] for one in items(fine(app), "tests")} == {int(i) for i in kept.index}


def test_explain_asks_about_another_class_and_says_so(build: Build) -> None:
    app = page("explain")
    test_id = element(app, "tests")["selected"]
    label = int(build.test_labels_T[test_id])
    question = next(b for b in app.button_group if (b.key or "").startswith("question"))
    question.set_value(label).run()
    answer = build.query(test_id, 12, "label")
    assert [one["id"] for one in items(fine(app), "hits")] == [
        h.train_id for h in answer.proponents
    ]
    name = build.classes[label]
    assert element(app, "hits")["groups"][0]["label"] == f"Pushed towards {name}"
    assert app.query_params["target"] in ("label", ["label"])


def test_a_link_restores_prediction_and_target(build: Build) -> None:
    app = AppTest.from_file(APP, default_timeout=PATIENCE)
    app.switch_page("pages/explain.py")
    app.query_params["test"] = "17"
    app.query_params["target"] = "3"
    fine(app.run())
    assert element(app, "subject")["title"] == "Test image 17"
    hits = build.query(17, 12, "3").opponents
    assert [one["id"] for one in items(app, "hits", 1)] == [hit.train_id for hit in hits]


@pytest.mark.parametrize("bad", ["99999", "-1", "x", "1.5"])
def test_a_bad_test_id_in_the_address_is_a_notice_beside_a_working_page(
    build: Build, bad: str
) -> None:
    app = AppTest.from_file(APP, default_timeout=PATIENCE)
    app.switch_page("pages/explain.py")
    app.query_params["test"] = bad
    fine(app.run())
    (notice,) = [w.value for w in app.warning]
    assert bad in notice and "0 to 499" in notice and "choose" in notice
    assert element(app, "hits")["groups"][0]["items"]


def test_an_unknown_build_in_the_address_is_a_notice(build: Build) -> None:
    app = AppTest.from_file(APP, default_timeout=PATIENCE)
    app.query_params["build"] = "../../etc"
    fine(app.run())
    (notice,) = [w.value for w in app.warning]
    assert "../../etc" in notice and build.id in notice and "attribution list" in notice


def test_a_hit_is_decided_in_place_with_the_evidence_that_was_shown(
    engine: Engine, build: Build
) -> None:
    app = page("explain")
    hit = items(app, "hits")[2]
    act(app, "hits", {"type": "decide", "id": hit["id"], "verdict": "relabel", "label": 7})
    (made,) = engine.decisions.in_force(build.data_id).values()
    assert (made.verdict, made.label) == ("relabel", 7)
    assert made.example_id == build.train_ids[hit["id"]] and made.build_id == build.id
    assert json.loads(made.evidence)["score"] == hit["score"]
    assert element(fine(app), "hits")["verdicts"] == {
        str(hit["id"]): {"verdict": "relabel", "label": 7}
    }


def test_review_lists_the_engines_suspects_in_order_and_every_tenth_at_random(build: Build) -> None:
    app = fine(page("review"))
    shown = items(app, "deck")
    likely = build.mislabels().query(f"score > {opened.DOUBT}")
    plain = [one for one in shown if not one["spot"]]
    assert [n for n, one in enumerate(shown) if one["spot"]] == [9, 19, 29, 39]
    suspects = likely.head(len(plain))
    assert [one["id"] for one in plain] == [int(i) for i in suspects.index]
    assert [one["given"] for one in plain] == suspects.given_label.tolist()
    assert [one["suggested"] for one in plain] == suspects.suggested_label.tolist()
    for one in shown:  # Enter never changes a label that the networks believe more than any other
        row = build.mislabels().loc[one["id"]]
        believed = row.given_probability >= row.suggested_probability
        assert one["suggested"] == (row.given_label if believed else row.suggested_label)
    assert [one["why"] for one in plain] == suspects.why.tolist()
    assert not {one["id"] for one in shown if one["spot"]} & set(likely.index)
    assert element(app, "deck")["keys"] == list(build.classes)  # on digits the key is the name
    assert items(page("review"), "deck") == shown  # the same at each visit


def test_review_filters_are_in_the_address(build: Build) -> None:
    suspects = build.mislabels()
    app = fine(page("review", labelled="4", like="9", by="influence"))
    some = suspects[(suspects.given_label == 4) & (suspects.suggested_label == 9)]
    some = some.sort_values("signal_influence", ascending=False, kind="stable")
    assert [one["id"] for one in items(app, "deck")] == [int(i) for i in some.index[:48]]
    assert not any(one["spot"] for one in items(app, "deck"))
    assert element(app, "deck")["chosen"] == "labelled 4 · looks like 9 · by influence"
    app.selectbox(key="like").set_value("any").run()
    assert dict(app.query_params)["labelled"] in ("4", ["4"])
    assert {one["given"] for one in items(fine(app), "deck")} == {4}


@pytest.mark.parametrize("address", [{"labelled": "nonsense"}, {"which": "x"}, {"by": "<b>"}])
def test_a_filter_that_is_not_there_is_no_filter(build: Build, address: dict) -> None:
    assert len(items(fine(page("review", **address)), "deck")) == 48


def test_a_bulk_act_is_one_undo(engine: Engine, build: Build) -> None:
    app = page("review")
    ids = [item["id"] for item in items(app, "deck")[:5]]
    each = [{"id": i, "verdict": "relabel", "label": 3} for i in ids]
    act(app, "deck", {"type": "decide", "id": ids[0], "verdict": "keep"})
    act(app, "deck", {"type": "decide", "each": each})
    stand = engine.decisions.in_force(build.data_id)
    assert {d.label for d in stand.values()} == {3} and len(stand) == 5
    act(app, "deck", {"type": "undo"})
    (left,) = engine.decisions.in_force(build.data_id).values()
    assert (left.example_id, left.verdict) == (build.train_ids[ids[0]], "keep")
    act(app, "deck", {"type": "redo"})
    assert len(engine.decisions.in_force(build.data_id)) == 5
    assert element(fine(app), "deck")["focus"]["id"] == ids[0]


def test_an_unsure_image_waits_in_a_view_of_its_own(engine: Engine, build: Build) -> None:
    app = page("review")
    first, second = (item["id"] for item in items(app, "deck")[:2])
    act(app, "deck", {"type": "decide", "id": first, "verdict": "unsure"})
    act(app, "deck", {"type": "decide", "id": second, "verdict": "drop"})
    assert element(app, "deck")["verdicts"][str(first)]["verdict"] == "unsure"
    assert set(engine.decisions.in_force(build.data_id)) == {build.train_ids[second]}
    app.button_group(key="which").set_value("unsure").run()
    assert [one["id"] for one in items(fine(app), "deck")] == [first]
    app.button_group(key="which").set_value("not decided").run()
    assert not {first, second} & {one["id"] for one in items(fine(app), "deck")}
    shown = items(app, "deck")
    act(app, "deck", {"type": "decide", "id": shown[0]["id"], "verdict": "keep"})
    assert items(app, "deck") == shown  # nothing moves under the keys


def test_decisions_are_signed_and_conflicts_are_settled(
    engine: Engine, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(REVIEWER, "Ben")
    app = page("review")
    first = items(app, "deck")[0]["id"]
    example = build.train_ids[first]
    engine.decisions.decide(build.data_id, example, "drop", reviewer="Anna")
    act(app, "deck", {"type": "decide", "id": first, "verdict": "keep"})
    assert engine.decisions.in_force(build.data_id)[example].reviewer == "Ben"
    assert any("1 to settle" in c.value for c in app.caption)
    app.text_input(key="reviewer").set_value("  Cleo   <b> ").run()
    app.button_group(key="which").set_value("conflicts").run()
    data = element(fine(app), "deck")
    assert [one["id"] for one in data["items"]] == [first] and data["settle"]
    assert data["verdicts"][str(first)]["contested"]
    assert data["verdicts"][str(first)]["said"] == ["Anna: drop", "Ben: keep"]
    act(app, "deck", {"type": "decide", "id": first, "verdict": "drop", "settle": True})
    (made,) = engine.decisions.in_force(build.data_id).values()
    assert (made.verdict, made.reviewer, made.settles) == ("drop", "Cleo <b>", True)
    assert not element(fine(app), "deck")["verdicts"][str(first)]["contested"]
    act(app, "deck", {"type": "undo"})
    assert element(fine(app), "deck")["verdicts"][str(first)]["contested"]


def test_a_decision_on_an_example_that_is_gone_breaks_nothing(engine: Engine, build: Build) -> None:
    for who, verdict in (("Anna", "drop"), ("Ben", "keep"), ("", "unsure")):
        engine.decisions.decide(build.data_id, "gone-0", verdict, reviewer=who)
    engine.decisions.decide(build.data_id, build.train_ids[0], "relabel", label=99)
    for which in ("queue", "not decided", "decided", "unsure", "conflicts"):
        app = fine(page("review", which=which))
        assert "gone" not in str(element(app, "deck"))
    act(page("review"), "deck", {"type": "undo"})
    fine(act(page("review"), "deck", {"type": "undo"}))


def test_the_yield_is_told_every_twenty_decisions(engine: Engine, build: Build) -> None:
    app = page("review")
    ids = [item["id"] for item in items(app, "deck")[:25]]

    def told() -> dict[str, str]:
        return {m.label: m.value for m in fine(app).metric}

    act(app, "deck", *({"type": "decide", "id": i, "verdict": "drop"} for i in ids[:19]))
    assert told() == {} and any("spot check" in c.value for c in app.caption)
    act(app, "deck", {"type": "decide", "id": ids[19], "verdict": "keep"})  # the second check
    first = told()
    assert first["Wrong in the queue so far"] == "18 of 18"
    assert first["Spot checks wrong"] == "1 of 2"
    assert any("After 20 decisions. Go on: 18 of the last 18" in c.value for c in app.caption)
    act(app, "deck", *({"type": "decide", "id": i, "verdict": "keep"} for i in ids[20:]))
    assert told()["Wrong in the queue so far"] == "18 of 18"  # until the next twenty


def test_evidence_is_looked_up_and_its_names_are_the_engines(build: Build) -> None:
    client = TestClient(Starlette(routes=behind.ROUTES))
    first = int(build.mislabels().index[0])
    found = client.get(f"{behind.address(build)}{first}.json").json()
    assert [group["title"].split()[0] for group in found["groups"]] == ["Most", "Support", "Speak"]
    for group in found["groups"]:
        for one in group["items"]:
            assert one["caption"] == build.classes[build.train_labels_N[one["id"]]]
    for bad in (f"{behind.address(build)}99999.json", "/evidence/nonsense/0.json"):
        answer = client.get(bad)
        assert answer.status_code == 404 and "Traceback" not in answer.text
    assert client.get(f"{behind.address(build)}x.json").status_code == 404


def test_review_applies_each_action_once(engine: Engine, build: Build) -> None:
    app = page("review")
    one, two, three = (item["id"] for item in items(app, "deck")[:3])
    actions = [
        {"type": "decide", "id": one, "verdict": "keep"},
        {"type": "decide", "id": two, "verdict": "drop"},
        {"type": "decide", "id": three, "verdict": "relabel", "label": 5},
        {"type": "undo"},
    ]
    act(app, "deck", *actions)
    fine(app.run())  # the same state again, as a rerun for another reason brings it
    assert element(app, "deck")["ack"] == 4
    assert len(engine.decisions.history(build.data_id)) == 3
    stand = engine.decisions.in_force(build.data_id)
    assert {d.example_id: d.verdict for d in stand.values()} == {
        build.train_ids[one]: "keep",
        build.train_ids[two]: "drop",
    }
    assert element(app, "deck")["focus"]["id"] == three


def test_actions_meant_for_another_session_or_build_are_not_applied(
    engine: Engine, build: Build
) -> None:
    app = page("review")
    first = items(app, "deck")[0]["id"]
    action = {"type": "decide", "id": first, "verdict": "drop", "seq": 1}
    now = element(app, "deck")
    for name, epoch in ((now["queue"], "before"), ("deck of another build", now["epoch"])):
        queue = {"name": name, "epoch": epoch, "actions": [action]}
        app.session_state["deck"] = {"queue": queue}
        fine(app.run())
        assert engine.decisions.in_force(build.data_id) == {}
    act(app, "deck", action)
    assert len(engine.decisions.in_force(build.data_id)) == 1


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ({"id": 99999, "verdict": "keep"}, "99999"),
        ({"id": 0, "verdict": "burn"}, "burn"),
        ({"id": 0, "verdict": "relabel", "label": 10}, "10"),
        ({"id": "x", "verdict": "keep"}, "x"),
    ],
)
def test_a_decision_that_makes_no_sense_is_a_notice(
    engine: Engine, build: Build, action: dict, said: str
) -> None:
    app = act(page("review"), "deck", {"type": "decide", **action})
    (notice,) = [w.value for w in fine(app).warning]
    assert said in notice and "wanted" in notice and "reload" in notice
    assert engine.decisions.in_force(build.data_id) == {}


def test_review_shows_what_is_decided_and_counts_it(engine: Engine, build: Build) -> None:
    second = int(build.mislabels().index[1])
    engine.decisions.decide(build.data_id, build.train_ids[second], "drop")
    app = page("review")
    app.button_group(key="which").set_value("decided").run()
    assert [one["id"] for one in items(fine(app), "deck")] == [second]
    verdict = {"verdict": "drop", "label": None, "contested": False, "said": []}
    assert element(app, "deck")["verdicts"] == {str(second): verdict}


def test_decisions_that_cannot_be_written_are_a_notice(
    engine: Engine, build: Build, place: Tiny
) -> None:
    app = page("review")
    first = items(app, "deck")[0]["id"]
    engine.decisions.path.with_name("decisions.sqlite-wal").unlink(missing_ok=True)
    engine.decisions.path.write_bytes(b"this is no database, it only looks like a file")
    act(app, "deck", {"type": "decide", "id": first, "verdict": "keep"})
    assert not app.exception
    assert any("decisions.sqlite" in w.value and "--workspace" in w.value for w in app.warning)


def test_builds_lists_the_build_and_starts_another_as_the_command_line_would(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    monkeypatch.setattr(Engine, "start", lambda self, options: started.append(options) or "job")
    app = fine(page("builds"))
    assert build.id in app.dataframe[0].value["build"].tolist()
    app.number_input(key="models").set_value(3)
    app.slider(key="noise").set_value(20)
    app.number_input(key="masks").set_value(0)
    next(b for b in app.button if b.label == "Start build").click().run()
    (options,) = started
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert given["--models"] == "3" and given["--noise"] == "0.2"
    assert given["--strategy"] == "naive" and "--masks" not in given


@pytest.mark.parametrize("name", ["overview", "explain", "review"])
def test_an_empty_cache_says_what_to_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_place(Tiny(tmp_path / "cache", tmp_path, ""), monkeypatch)
    app = fine(page(name))
    assert any("python -m attribution build" in code.value for code in app.code)
    assert app.button(key="build_demo")


def test_builds_works_on_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_place(Tiny(tmp_path / "cache", tmp_path, ""), monkeypatch)
    app = fine(page("builds"))
    assert any(button.label == "Start build" for button in app.button)


def test_the_unforeseen_is_one_sentence_with_the_path_of_a_log(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Build) -> None:
        raise RuntimeError("secret inner words")

    monkeypatch.setattr(Build, "tests", broken)
    app = page("overview")
    assert not app.exception
    (said,) = [e.value for e in app.error]
    assert "app.log" in said and "secret" not in said and "Traceback" not in said


def test_thumbnails_are_looked_up_and_never_paths(build: Build) -> None:
    client = TestClient(Starlette(routes=ROUTES))
    good = client.get(opened.thumb(build, "test", 3))
    assert good.status_code == 200 and good.headers["content-type"] == "image/png"
    assert "immutable" in good.headers["cache-control"]
    for address in (
        f"/thumb/{build.id}/test/500.png",
        f"/thumb/{build.id}/test/-1.png",
        f"/thumb/{build.id}/test/99999999999999999999.png",
        f"/thumb/{build.id}/test/x.png",
        f"/thumb/{build.id}/validation/3.png",
        "/thumb/nonsense/test/3.png",
        "/thumb/%2e%2e%2f%2e%2e/test/3.png",
        "/thumb/",
    ):
        bad = client.get(address)
        assert bad.status_code == 404 and bad.headers["content-type"].startswith("text/plain")


WORDS = ["9" * 5000, "<b>x</b>\n{}", "-1", "../../etc", "=cmd()", "\0", "猫", "1e999", "a,b", ""]
DEEPER = {"leave": "my own choice", "pattern": "a selection", "view": "side by side"}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_at_a_hostile_address_is_a_page(build: Build, name: str) -> None:
    keys = asked_of()[name]
    given = {key: WORDS[n % len(WORDS)] for n, key in enumerate(keys) if key != "build"}
    given |= {key: WORDS[0] for key in ("test", "picked", "target") if key in keys}
    given |= {key: value for key, value in DEEPER.items() if key in keys}
    app = fine(page(name, **given))
    assert [one.value for one in app.title] and "Traceback" not in str(app.warning)


@pytest.mark.parametrize("number", ["9" * 5000, "1" * 30, "00000000000000000000001", "-1"])
def test_a_number_of_any_length_in_an_address_of_ours_is_not_found_or_an_image(
    build: Build, number: str
) -> None:
    client = TestClient(Starlette(routes=[*ROUTES, *behind.ROUTES, *reach.ROUTES]))
    for address in (
        f"/thumb/{build.id}/test/{number}.png",
        f"/seen/{build.id}/train/{number}.png",
        f"/evidence/{build.id}/{number}.json",
        f"/reach/{build.id}/{number}/drop",
        f"/reach/{build.id}/3/{number}",
    ):
        answer = client.get(address)
        assert answer.status_code in (200, 404)
        if answer.status_code == 404 or "/reach/" in address:
            assert "Traceback" not in answer.text and len(answer.text) < 20_000


def test_a_port_in_use_is_a_sentence_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is not free; wanted a free.*--port"):
            serve(tmp_path, port=port)


def test_numbers_read_well() -> None:
    assert [blink(s) for s in (0.00412, 0.1086, -0.02)] == ["4.1 ms", "109 ms", "-20 ms"]
    assert [span(s) for s in (None, 8.2, 200, 60, 7500)] == [
        "",
        "8 s",
        "3 min 20 s",
        "1 min",
        "2 h 5 min",
    ]
    assert [size(n) for n in (12, 9_300_000, 1.74e9)] == ["12 B", "9.3 MB", "1.74 GB"]
    assert [size(n) for n in (999.7, 999_600, 999_400)] == ["1 kB", "1 MB", "999 kB"]
    assert readable(0.0041) == (1000.0, "Scores are shown times 1,000. ")
    assert readable(2.5) == (1.0, "") and readable(0) == (1.0, "")


def test_a_workspace_is_where_decisions_are(engine: Engine, build: Build, place: Tiny) -> None:
    act(page("review"), "deck", {"type": "decide", "id": 0, "verdict": "keep"})
    with sqlite3.connect(place.workspace / "decisions.sqlite") as db:
        assert db.execute("SELECT count(*) FROM events").fetchone() == (1,)
    db.close()


INTERRUPTED = """
import streamlit as st
from streamlit.runtime.scriptrunner import RerunData, get_script_run_ctx

from pages.parts import grid


def handle(action):
    if action["n"] < 3:  # the next key comes in while this one is being applied
        get_script_run_ctx().script_requests.request_rerun(RerunData())
    applied = st.session_state["applied"]
    st.session_state["applied"] = [*applied, action["n"]]


st.session_state.setdefault("applied", [])
state = {"name": grid._queue("keys"), "epoch": grid._epoch()}
state["actions"] = [{"seq": n, "n": n} for n in (1, 2, 3)]
st.session_state["keys"] = {"queue": state}
grid.consume("keys", handle)
"""


def test_keys_that_come_in_while_others_are_applied_lose_none() -> None:
    """Streamlit ends a run wherever it touches the session's state once another is asked for."""
    app = AppTest.from_string(INTERRUPTED, default_timeout=PATIENCE).run()
    assert not app.exception
    assert app.session_state["applied"] == [1, 2, 3]
