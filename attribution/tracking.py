"""Builds in MLflow: settings, costs, scores, decisions and the report, one run a build.

A run is found again by a tag with the build's id, so that telling it twice tells it once. MLflow is
an extra (`mlflow` in pyproject.toml), imported here only, and told not to send its makers anything
of its use.
"""

import logging
import math
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .export import decisions_csv, tests_csv
from .records import UserError
from .report import review

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from .engine import Engine

EXPERIMENT = "probable-cause"
BUILD = "probable_cause.build"  # the tag by which a run is found again
QUIET = {  # what is set already is left as it is
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # where --json prints one document
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # seconds; its own is two minutes, seven times over
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """Where a build is in MLflow."""

    build: str
    run: str
    experiment: str
    uri: str  # without a password
    again: bool  # it was there already


def track(engine: "Engine", build_id: str, uri: str = "", experiment: str = EXPERIMENT) -> Tracked:
    """Tell MLflow of a build, or bring what it knows up to date.

    Without `uri` the environment's MLFLOW_TRACKING_URI, else ``mlflow.db`` in the workspace. Raises
    `UserError` without the library, and for a store or a server that cannot be used.
    """
    build = engine.open(build_id)
    settings, known = dict(flat(build.summary["spec"])), metrics(engine, build_id)
    words, texts = tags(engine, build_id), dict(files(engine, build_id))
    own = f"sqlite:///{engine.workspace.absolute() / 'mlflow.db'}"
    place = uri or os.environ.get("MLFLOW_TRACKING_URI") or own
    library()
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    try:
        openable(place)
        client = MlflowClient(place, registry_uri=place)
        run_id, again = run_of(client, place, experiment, build_id)
        before, now = client.get_run(run_id).data, int(1000 * time.time())
        client.log_batch(
            run_id,
            [Metric(k, v, now, 0) for k, v in known.items() if before.metrics.get(k) != v],
            [Param(k, v) for k, v in settings.items() if k not in before.params],
            [RunTag(k, v) for k, v in words.items()],
        )
        for name, text in texts.items():
            client.log_text(run_id, text, name)
        client.set_terminated(run_id)
    except Exception as error:  # of the network, of the server, of the store
        raise UserError(
            found=f"MLflow at {shown(place)} cannot be used ({why(error, place)})",
            wanted="a tracking server that answers, or a store as in sqlite:///mlflow.db",
            next_step="check --uri, or MLFLOW_TRACKING_URI where it is left out",
        ) from error
    return Tracked(build=build_id, run=run_id, experiment=experiment, uri=shown(place), again=again)


def library() -> None:
    """Import MLflow, told to be quiet. Raises `UserError` where it is not installed."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        import mlflow  # noqa: F401
    except ImportError:
        raise UserError(
            found="no library `mlflow`, which `track` needs",
            wanted="the extra `mlflow`",
            next_step="install it with `pip install -e '.[mlflow]'`",
        ) from None


def run_of(client: "MlflowClient", place: str, experiment: str, build_id: str) -> tuple[str, bool]:
    """The run of a build, begun where there is none, and whether it was there."""
    known = client.get_experiment_by_name(experiment)
    if known is None:
        name = client.create_experiment(experiment, beside(place))
    else:
        name = known.experiment_id
    found = client.search_runs([name], f"tags.`{BUILD}` = '{build_id}'", max_results=1)
    if found:
        return found[0].info.run_id, True
    return client.create_run(name, tags={BUILD: build_id}).info.run_id, False


def openable(place: str) -> None:
    """Raise unless an SQLite file can be used: MLflow would try for minutes."""
    if place.startswith("sqlite:///"):
        with closing(sqlite3.connect(place.removeprefix("sqlite:///"))) as file:
            file.execute("pragma schema_version")


def beside(place: str) -> str | None:
    """Where artifacts go: beside a database that is a file; elsewhere the store knows."""
    if not place.startswith("sqlite:///"):
        return None
    path = Path(place.removeprefix("sqlite:///")).absolute()
    return (path.parent / f"{path.stem}-artifacts").as_uri()


def tags(engine: "Engine", build_id: str) -> dict[str, str]:
    """The name and the note of a build as MLflow's own pages show them."""
    note, summary = engine.notes.of(build_id), engine.open(build_id).summary
    name = note.name or f"{summary['data']} {summary['model']} {summary['ensemble']}"
    return {"mlflow.runName": name, "mlflow.note.content": note.note}


def flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """The settings of a spec, parts of parts as in features.ka."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", str(value)


def metrics(engine: "Engine", build_id: str) -> dict[str, float]:
    """What a build cost, how good it is as far as that is known, and how much is decided."""
    build, evaluated = engine.open(build_id), engine.evaluated(build_id) or {}
    summary = build.summary
    accuracy = engine.accuracies([summary])[build_id]
    found: dict[str, Any] = {
        f"{what}.{part}": value
        for what in ("seconds", "bytes", "flops")
        for part, value in summary[what].items()
    }
    found |= {what: summary[what] for what in ("peak_memory", "members", "train", "test")}
    found |= {what: evaluated.get(what) for what in ("lds", "lds_low", "lds_high", "ceiling")}
    found |= {"accuracy": accuracy.given}
    if accuracy.changed:
        found["accuracy_corrected"] = accuracy.restated
    decided = engine.decisions.in_force(build.data_id).values()
    counts = Counter(d.verdict for d in decided)
    found |= {f"decisions.{verdict}": counts[verdict] for verdict in ("keep", "relabel", "drop")}
    return {k: float(v) for k, v in found.items() if v is not None and math.isfinite(v)}


def files(engine: "Engine", build_id: str) -> Iterator[tuple[str, str]]:
    """Decisions as a table, and the report of the review."""
    build = engine.open(build_id)
    decided = engine.decisions.in_force(build.data_id)
    yield "decisions.csv", decisions_csv(build, decided).decode()
    if build.labelled:
        yield "tests.csv", tests_csv(build, engine.test_labels(build_id)).decode()
    yield "report.html", review(build, decided)


def shown(place: str) -> str:
    """An address as a person may see it: without the password that may be in it."""
    return place.replace(password(place), "", 1)


def why(error: Exception, place: str) -> str:
    """What went wrong, in one line that has no password in it."""
    return " ".join(str(error).replace(password(place), "").split())[:200] or type(error).__name__


def password(place: str) -> str:
    """The name and password in an address, as in ada:secret@; "" where there are none."""
    return "".join(urlsplit(place).netloc.rpartition("@")[:2])
