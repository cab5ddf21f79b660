"""`track` against MLflow's own store in an SQLite file, read back by MLflow's own client."""

import csv
import socket
import sys
from io import StringIO
from pathlib import Path

import pytest
from conftest import Tiny

from attribution.decisions import Choice
from attribution.engine import Engine
from attribution.records import UserError
from attribution.tracking import BUILD, shown, track

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what MLflow imports
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture
def own(tiny: Tiny, tmp_path: Path) -> Engine:
    """The tiny build in a workspace of its own, one label in it decided on."""
    engine = Engine(tiny.cache, tmp_path)
    decide(engine, tiny.build, 0)
    return engine


def decide(engine: Engine, build_id: str, position: int) -> None:
    build = engine.open(build_id)
    choice = Choice(example_id=build.train_ids[position], verdict="drop", label=None)
    engine.decisions.decide_all(build.data_id, [choice], reviewer="", build_id=build_id)


def test_a_build_is_one_run_however_often_it_is_told(
    own: Engine, tiny: Tiny, tmp_path: Path
) -> None:
    own.say(tiny.build, name="the first", note="quick")
    uri = f"sqlite:///{tmp_path / 'runs.db'}"
    first = track(own, tiny.build, uri, "digits")
    decide(own, tiny.build, 1)
    second = track(own, tiny.build, uri, "digits")
    assert (first.again, second.again) == (False, True) and first.run == second.run

    from mlflow import MlflowClient

    client = MlflowClient(uri, registry_uri=uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "digits"]
    (run,) = client.search_runs([experiment.experiment_id])
    summary = own.open(tiny.build).summary
    assert run.info.status == "FINISHED" and run.data.tags[BUILD] == tiny.build
    assert run.data.tags["mlflow.runName"] == "the first"
    assert run.data.tags["mlflow.note.content"] == "quick"
    assert run.data.params["features.ka"] == str(summary["spec"]["features"]["ka"])
    assert run.data.params["data.noise"] == "0.1"
    for what in ("seconds", "bytes", "flops"):
        for part, value in summary[what].items():
            assert run.data.metrics[f"{what}.{part}"] == pytest.approx(value)
    assert run.data.metrics["accuracy"] == pytest.approx(summary["accuracy"])
    assert run.data.metrics["decisions.drop"] == 2 and "lds" not in run.data.metrics
    # What did not change was told once only.
    told = [
        len(client.get_metric_history(run.info.run_id, m)) for m in ("accuracy", "decisions.drop")
    ]
    assert told == [1, 2]
    place = Path(client.download_artifacts(run.info.run_id, "", str(tmp_path)))
    assert {p.name for p in place.iterdir()} >= {"decisions.csv", "tests.csv", "report.html"}
    rows = list(csv.DictReader(StringIO((place / "decisions.csv").read_text())))
    assert sum(row["decision"] == "drop" for row in rows) == 2
    assert "2 drop" in (place / "report.html").read_text()


def test_what_cannot_be_reached_is_said_in_one_sentence(
    own: Engine, tiny: Tiny, tmp_path: Path
) -> None:
    with socket.socket() as free:  # nobody listens there
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "no.db").write_text("this is no database, but a text that is long enough for one")
    for uri in (
        f"http://ada:secret@127.0.0.1:{port}",
        f"sqlite:///{tmp_path}",
        f"sqlite:///{tmp_path / 'no.db'}",
        f"sqlite:///{tmp_path / 'nowhere' / 'runs.db'}",
        "nonsense://here",
    ):
        with pytest.raises(UserError, match="cannot be used") as told:
            track(own, tiny.build, uri)
        assert "secret" not in str(told.value) and "\n" not in str(told.value)
    assert shown("https://ada:secret@host/path") == "https://host/path"


def test_without_the_library_the_extra_is_named(
    own: Engine, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as where it is not installed
    with pytest.raises(UserError, match=r"'\.\[mlflow\]'"):
        track(own, tiny.build)
