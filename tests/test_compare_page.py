"""The compare page on real builds: its numbers are the engine's, its mistakes are sentences."""

import csv
import json
import shutil
import time
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from apptest import APP, PATIENCE, act, at_place, element, fine, items
from conftest import Tiny
from streamlit.dataframe_util import convert_arrow_bytes_to_pandas_df
from streamlit.testing.v1 import AppTest

from attribution import compare
from attribution.engine import Engine
from attribution.export import comparison_csv
from attribution.jobs import Job
from attribution.making import spec_from
from attribution.records import BuildSpec, DataSpec, EstimatorSpec, FeatureSpec, UserError
from pages.parts import opened


class Compared(NamedTuple):
    """Builds on the same data and network, with ground truth; `alone` has one network."""

    cache: Path
    masks: str
    naive: str
    alone: str

    @property
    def ids(self) -> list[str]:
        return [self.masks, self.naive, self.alone]


@pytest.fixture(scope="session")
def compared(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """The tiny build, one of its networks alone and one without masks; 6 halves by 2 seeds."""
    root = tmp_path_factory.mktemp("compared")
    shutil.copytree(tiny.cache, root / "cache")
    engine = Engine(root / "cache", root)
    common = {"data": DataSpec(noise=0.1), "epochs": 3, "index_dims": 32,
              "features": FeatureSpec(ka=8, kg=4), "estimator": EstimatorSpec()}  # fmt: skip
    naive = engine.build(BuildSpec(strategy="naive", models=2, masks=0, **common))["build"]
    alone = engine.build(BuildSpec(models=1, masks=2, **common))["build"]
    made = engine.truth(tiny.build, subsets=6, seeds=2)
    found = Compared(root / "cache", tiny.build, naive, alone)
    engine.evaluate_all(found.ids, made.id)
    return found


@pytest.fixture
def engine(compared: Compared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    at_place(Tiny(compared.cache, tmp_path, compared.masks), monkeypatch)
    return opened.engine()


@pytest.fixture
def bare(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """One build, no ground truth."""
    at_place(Tiny(tiny.cache, tmp_path, tiny.build), monkeypatch)
    return opened.engine()


def visit(**address: str) -> AppTest:
    """The page as a visitor with this address gets it."""
    app = AppTest.from_file(APP, default_timeout=PATIENCE)
    app.switch_page("pages/compare.py")
    for key, value in address.items():
        app.query_params["with" if key == "beside" else key] = value
    return app.run()


def chart(app: AppTest, position: int = 0) -> dict:
    return json.loads(app.get("vega_lite_chart")[position].proto.spec)


def points(app: AppTest, position: int = 0) -> list[dict]:
    """The data that a chart shares among its layers."""
    proto = app.get("vega_lite_chart")[position].proto
    whole = proto.data.data or proto.datasets[0].data.data
    return convert_arrow_bytes_to_pandas_df(whole).to_dict("records")


def said(app: AppTest) -> str:
    return "\n".join(m.value for m in [*app.markdown, *app.caption, *app.info])


def test_every_build_is_a_point_with_the_engines_numbers(
    engine: Engine, compared: Compared
) -> None:
    app = fine(visit(build=compared.masks))
    spec = chart(app)
    shown = {one["build"]: one for one in points(app)}
    assert set(shown) == set(compared.ids)
    for build_id, one in shown.items():
        row = engine.evaluate(build_id)
        assert (one["lds"], one["low"], one["high"]) == (
            row["lds"], row["lds_low"], row["lds_high"],
        )  # fmt: skip
        assert one["cost"] == pytest.approx(
            sum(row["seconds"][s] for s in ("train", "basis", "features", "fit"))
        )
    steps = spec["layer"][0]["data"]["values"]
    costs, values = ([shown[b][name] for b in compared.ids] for name in ("cost", "lds"))
    front = [compared.ids[j] for j in compare.pareto(costs, values)]
    assert [s["lds"] for s in steps[:-1]] == [shown[b]["lds"] for b in front]
    ceilings = [layer["data"]["values"][0]["lds"] for layer in spec["layer"][-2:]]
    assert ceilings == [engine.evaluate(compared.masks)["ceiling"]] * 2
    table = app.dataframe[0].value.set_index("build")
    assert table["LDS"].to_dict() == {b: one["lds"] for b, one in shown.items()}
    assert "linear datamodelling score" in said(app)


def test_the_cost_is_chosen(engine: Engine, compared: Compared) -> None:
    app = visit(build=compared.masks)
    app.selectbox(key="cost").set_value("bytes of all").run()
    costs = {one["build"]: one["cost"] for one in points(fine(app))}
    summaries = {s["build"]: s for s in engine.builds()}
    assert costs == {b: compare.COSTS["bytes of all"](summaries[b]) for b in compared.ids}


def test_the_csv_has_every_number(engine: Engine, compared: Compared) -> None:
    rows = list(csv.DictReader(StringIO(comparison_csv(engine.compared(compared.masks)))))
    assert {row["build"] for row in rows} == set(compared.ids)
    for row in rows:
        known = engine.evaluate(row["build"])
        assert float(row["lds"]) == known["lds"] and float(row["ceiling"]) == known["ceiling"]
        for kind in ("seconds", "flops", "bytes"):
            for part, value in known[kind].items():
                assert float(row[f"{kind}_{part}"]) == value


def test_side_by_side_shows_each_builds_hits(engine: Engine, compared: Compared) -> None:
    both = [compared.naive, compared.masks]
    app = fine(visit(view="side by side", beside=",".join(both), test="17", target="3"))
    spec = chart(app)
    images = next(
        layer["data"]["values"] for layer in spec["layer"] if layer["mark"]["type"] == "image"
    )
    ids = []
    for column, build_id in enumerate(both):
        hits = engine.open(build_id).query(17, 10, "3").proponents
        ids.append([hit.train_id for hit in hits])
        assert [one["id"] for one in images if one["x"] == column] == ids[-1]
    shared = len(set(ids[0]) & set(ids[1]))
    lines = next(layer["data"]["values"] for layer in spec["layer"] if "x2" in layer["encoding"])
    assert len(lines) == shared
    for line in lines:
        assert ids[0][line["rank"] - 1] == ids[1][line["rank2"] - 1] == line["id"]
    (row,) = app.dataframe[0].value.to_dict("records")
    assert row["shared"] == f"{shared} of 10"
    union = list(dict.fromkeys(ids[0] + ids[1]))
    scores = [[h.score for h in engine.open(b).rescored(17, "3", union)] for b in both]
    turned = [i for i, a, b in zip(union, *scores, strict=True) if a * b < 0]
    assert row["sign flips"] == f"{len(turned)} of {len(union)}"
    if turned:
        assert set(app.dataframe[1].value["id"]) == set(turned)
    app.button_group(key="side").set_value("opponents").run()
    images = next(
        layer["data"]["values"]
        for layer in chart(fine(app))["layer"]
        if layer["mark"]["type"] == "image"
    )
    hits = engine.open(both[0]).query(17, 10, "3").opponents
    assert [one["id"] for one in images if one["x"] == 0] == [hit.train_id for hit in hits]


def test_all_are_asked_about_the_class_that_one_predicts(
    engine: Engine, compared: Compared
) -> None:
    both = [engine.open(compared.masks), engine.open(compared.alone)]
    test_id = int(np.flatnonzero(both[0].predicted_T != both[1].predicted_T)[0])
    app = fine(visit(view="side by side", beside=",".join(b.id for b in both), test=str(test_id),
                     build=both[0].id))  # fmt: skip
    (images,) = (
        layer["data"]["values"] for layer in chart(app)["layer"] if layer["mark"]["type"] == "image"
    )
    for x, build in enumerate(both):
        hits = build.query(test_id, 10, int(both[0].predicted_T[test_id])).proponents
        assert [one["id"] for one in images if one["x"] == x] == [hit.train_id for hit in hits]


def test_fidelity_is_drawn_by_one_truth(
    compared: Compared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(compared.cache, tmp_path / "cache")
    at_place(Tiny(tmp_path / "cache", tmp_path, compared.masks), monkeypatch)
    larger = opened.engine().truth(compared.masks, subsets=7, seeds=2)
    opened.engine().evaluate(compared.naive, larger.id)
    app = fine(visit(build=compared.masks))
    assert [one["build"] for one in points(app)] == [compared.naive]
    assert "over 7 random halves" in said(app)
    assert "not evaluated on the largest" in said(app)  # how the others come to it


def test_the_images_they_disagree_on_come_first_and_open(
    engine: Engine, compared: Compared
) -> None:
    both = [compared.naive, compared.alone]
    app = fine(visit(view="side by side", beside=",".join(both)))
    tops = [engine.open(build_id).top(10) for build_id in both]
    common = [len(set(a) & set(b)) for a, b in zip(*(t.tolist() for t in tops), strict=True)]
    shown = items(app, "tests")
    assert [one["note"] for one in shown] == [f"{n}/10" for n in sorted(common)[: len(shown)]]
    assert all(one["note"] == f"{common[one['id']]}/10" for one in shown)
    fine(act(app, "tests", {"type": "pick", "id": shown[5]["id"]}))
    assert element(app, "tests")["selected"] == shown[5]["id"]
    assert app.query_params["test"] in (str(shown[5]["id"]), [str(shown[5]["id"])])


def test_agreement_is_the_mean_overlap(engine: Engine, compared: Compared) -> None:
    app = fine(visit(view="agreement", build=compared.masks))
    cells = points(app)
    assert len(cells) == 6
    names = {opened.ensemble_name(s): s["build"] for s in engine.comparable(compared.masks)}
    for cell in cells:
        a, b = (engine.open(names[cell[side]]).top(20).tolist() for side in ("a", "b"))
        mean = np.mean([len(set(x) & set(y)) / 20 for x, y in zip(a, b, strict=True)])
        assert cell["share"] == pytest.approx(mean)


def test_advice_forecasts_and_names_a_build_for_the_budget(
    engine: Engine, compared: Compared
) -> None:
    app = fine(visit(view="advice", build=compared.masks))
    rows = {one["build"]: one for one in engine.compared(compared.masks)}
    mine = rows[compared.masks]
    lds_T, found = engine.variance(compared.masks, mine["truth"])
    assert found is not None
    by_view, by_network = compare.sizes(spec_from(mine["spec"]), found)
    for position, sizes in enumerate((by_view, by_network)):
        drawn = points(app, position)
        plans = compare.plans(mine, lds_T, found, sizes)
        told = [one["lds"] for one in drawn if one["kind"] == "forecast"]
        assert told == [plan.lds for plan in plans]
        (measured,) = [one for one in drawn if one["kind"] == "measured"]
        assert measured["lds"] == mine["lds"] and measured["count"] == 2
    another = [p["lds"] for p in points(app, 1) if p["kind"] == "another"]
    assert another == [rows[compared.alone]["lds"]]
    (then,) = compare.plans(mine, lds_T, found, [(2, 22)])
    assert f"**20 more masks of each**: {then.lds - mine['lds']:+.3f} LDS" in said(app)
    assert "**One more network**" in said(app)
    assert any("attribution build --data mnist5k" in code.value for code in app.code)
    app.number_input(key="budget").set_value(0.01).run()
    assert "Raise the budget" in said(fine(app)) or app.code


def test_one_network_cannot_tell_of_others(engine: Engine, compared: Compared) -> None:
    app = fine(visit(view="advice", build=compared.alone))
    assert "One network cannot tell" in said(app)
    assert "One more network" not in said(app)


def test_without_ground_truth_one_button_measures(
    bare: Engine, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    monkeypatch.setattr(Engine, "start", lambda self, *given: started.append(given) or "job")
    app = fine(visit())
    assert "Fidelity is not measured yet" in said(app)
    assert not app.get("vega_lite_chart")
    assert any(f"attribution truth {tiny.build}" in code.value for code in app.code)
    assert app.dataframe[0].value["build"].tolist() == [tiny.build]
    app.number_input(key="subsets").set_value(8).run()
    assert "too wide" in said(app)
    app.button(key="measure").click().run()
    assert started == [
        ([tiny.build, "--subsets", "8", "--seeds", "5", "--evaluate"], "truth"),
    ]


def test_what_is_not_evaluated_yet_is_evaluated_on_a_button(
    compared: Compared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(compared.cache, tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache" / "evaluation")
    at_place(Tiny(tmp_path / "cache", tmp_path, ""), monkeypatch)
    started = []
    monkeypatch.setattr(Engine, "start", lambda self, *given: started.append(given) or "job")
    app = fine(visit(view="advice"))
    assert "3 of 3 builds are not evaluated on the largest" in said(app)
    app.button(key="evaluate").click().run()
    ((ids, command),) = started
    assert command == "evaluate" and set(ids) == set(compared.ids)


def test_evaluation_runs_as_a_job_and_only_known_commands_do(
    compared: Compared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(compared.cache, tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache" / "evaluation")
    at_place(Tiny(tmp_path / "cache", tmp_path, ""), monkeypatch)
    engine = opened.engine()
    with pytest.raises(UserError, match="unknown command 'rm'"):
        engine.start([], "rm")
    engine.start([compared.naive, compared.alone], "evaluate")
    until = time.monotonic() + 600
    while engine.jobs()[0].state == "running" and time.monotonic() < until:
        time.sleep(0.2)
    job = engine.jobs()[0]  # the newest
    assert (job.state, job.command, job.build) == ("done", "evaluate", compared.naive)
    assert engine.evaluated(compared.naive) and not engine.evaluated(compared.masks)
    page = fine(visit(build=compared.naive))
    assert len(points(page)) == 2 and "1 of 3 builds" in said(page)


def test_settings_are_chosen_on_a_button_and_start_a_build(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny.cache, tmp_path / "cache")
    at_place(Tiny(tmp_path / "cache", tmp_path, tiny.build), monkeypatch)
    engine = opened.engine()
    app = fine(visit(view="advice"))
    assert "Settings without ground truth" in [s.value for s in app.subheader]
    app.button(key="tune").click().run()
    until = time.monotonic() + 600
    while engine.jobs()[0].state == "running" and time.monotonic() < until:
        time.sleep(0.2)
    job = engine.jobs()[0]
    assert (job.state, job.command, job.build) == ("done", "tune", tiny.build)
    app, found = fine(visit(view="advice")), engine.tuned(tiny.build)
    assert f"**{found['ka']}x{found['kg']}**" in said(app)
    table = next(d.value for d in app.dataframe if "damping" in d.value)
    assert table["damping"].tolist() == [one["damping"] for one in found["widths"]]
    started = []
    monkeypatch.setattr(Engine, "start", lambda self, *given: started.append(given) or "job")
    app.button(key="start_tuned").click().run()
    assert started == [(found["options"],)]
    assert fine(app).title[0].value == "Builds"  # though the view is bound to the address


def test_settings_that_could_not_be_chosen_say_why(
    bare: Engine, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(id="0" * 12, state="failed", command="tune", error="no run x", options=(tiny.build,))
    monkeypatch.setattr(Engine, "jobs", lambda self: [job])
    app = visit(view="advice")
    assert not app.exception and [e.value for e in app.error] == ["no run x"]
    assert app.button(key="tune")


@pytest.mark.parametrize("view", ["fidelity", "side by side", "agreement", "advice"])
def test_one_build_alone_is_a_page_too(bare: Engine, view: str) -> None:
    fine(visit(view=view))


@pytest.mark.parametrize("view", ["fidelity", "side by side"])
def test_an_empty_cache_says_what_to_run(
    view: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_place(Tiny(tmp_path / "cache", tmp_path, ""), monkeypatch)
    app = fine(visit(view=view))
    assert any("python -m attribution build" in code.value for code in app.code)


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ({"beside": "nonsense"}, "nonsense"),
        ({"beside": "../../etc,000000000000"}, "../../etc"),
        ({"test": "99999"}, "99999"),
        ({"test": "x"}, "'x'"),
        ({"test": "3", "target": "cat"}, "'cat'"),
    ],
)
def test_a_bad_address_is_a_notice_beside_a_working_page(
    engine: Engine, address: dict[str, str], found: str
) -> None:
    app = fine(visit(view="side by side", **address))
    (notice,) = [w.value for w in app.warning]
    assert found in notice and "wanted" in notice and "choose" in notice
    assert chart(app)["layer"]


@pytest.mark.parametrize(
    "address", [{"view": "x"}, {"cost": "x"}, {"view": "advice", "budget": "x"}]
)
def test_an_unknown_choice_in_the_address_is_the_usual_one(
    engine: Engine, address: dict[str, str]
) -> None:
    assert chart(fine(visit(**address)))
