"""Decisions and comparisons in forms that other tools read: the table of formats.

The simple tables are here, the data set in the layouts of other tools in `exchange`.
"""

import csv
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from io import BytesIO, StringIO
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import pyarrow as pa

from . import exchange
from .exchange import COLUMNS, TYPES, Files, facts, legible, names, parquet_of, rows
from .records import Decision, known
from .testlabels import Labels

if TYPE_CHECKING:
    from .build import Build

MARK = "export.json"  # in every folder that we write, so that only such a one is ever replaced


def decisions_csv(build: "Build", decisions: dict[str, Decision]) -> bytes:
    """One row a training example, by train_id; labels by class name.

    `final_label` is empty for a dropped example. Text that a spreadsheet would take for a formula
    is quoted with an apostrophe.
    """
    return csv_of(COLUMNS, (list(told.values()) for told in table(build, decisions)))


def decisions_parquet(build: "Build", decisions: dict[str, Decision]) -> bytes:
    """The columns of the CSV, typed and with names as they are; null where the CSV is empty."""
    schema = pa.schema({name: TYPES.get(name, "string") for name in COLUMNS})
    return parquet_of(pa.Table.from_pylist(table(build, decisions), schema))


def table(build: "Build", decisions: dict[str, Decision]) -> list[dict[str, Any]]:
    classes = names(build)
    return [facts(row, classes, build.id) for row in rows(build, decisions)]


def tests_csv(build: "Build", labels: Labels) -> bytes:
    """One row a test example, by test_id; written as `decisions_csv` writes the training ones."""
    classes, doubts = names(build), build.doubtful_tests.sort_index()
    columns = (
        "example_id", "test_id", "given_label", "predicted_label", "confidence",
        "suggested_label", "suspicion", "decision", "new_label", "final_label", "reviewer",
        "decided_at", "build",
    )  # fmt: skip

    def lines() -> Iterator[list[object]]:
        for one in build.tests(labels).itertuples():
            t = one.Index
            decision, doubt = labels.decisions.get(t), doubts.loc[t]
            new = classes[one.label] if decision and decision.verdict == "relabel" else None
            yield [
                build.test_ids[t], t, classes[one.given], classes[one.predicted],
                float(one.confidence), classes[int(doubt.suggested)], float(doubt.score),
                decision.verdict if decision else None, new,
                classes[one.label] if one.kept else None,
                legible(decision.reviewer) if decision else None,
                decision.time if decision else None, build.id,
            ]  # fmt: skip

    return csv_of(columns, lines())


def cleanlab_csv(build: "Build", decisions: dict[str, Decision]) -> bytes:
    """The columns of cleanlab's label issues, by train_id; a low score is a suspicious label.

    An issue is what a reviewer relabelled or dropped, and where nobody has decided, a label that
    the networks hold less likely than another.
    """
    classes = names(build)
    columns = ("is_label_issue", "label_score", "given_label", "predicted_label", "example_id")

    def values(row: exchange.Row) -> list[object]:
        settled = row.decision is not None and row.decision.verdict in ("keep", "relabel", "drop")
        wrong = row.final if settled else row.believed
        return [
            wrong != row.given, 1 - row.suspicion, classes[row.given], classes[row.believed],
            row.example_id,
        ]  # fmt: skip

    return csv_of(columns, map(values, rows(build, decisions)))


def csv_of(columns: tuple[str, ...], lines: Iterator[list[object]]) -> bytes:
    out = StringIO()
    writer = csv.writer(out)  # lines end as RFC 4180 says, so that a lone \r in a name is quoted
    writer.writerow(columns)
    for line in lines:
        writer.writerow([f"{v:.6f}" if isinstance(v, float) else harmless(v) for v in line])
    return out.getvalue().encode()


class Format(NamedTuple):
    """How a format is written, and what a person is told about it."""

    write: Callable[["Build", dict[str, Decision]], bytes | Files]
    suffix: str  # of its file; a folder's is that of its archive
    title: str
    about: str


FORMATS = {
    "csv": Format(
        decisions_csv,
        ".csv",
        "CSV",
        "Every training image with its labels and decision, for a spreadsheet; "
        "`import` reads it back.",
    ),
    "parquet": Format(
        decisions_parquet, ".parquet", "Parquet", "The columns of the CSV, typed, for pandas."
    ),
    "folder": Format(
        exchange.image_folder,
        ".zip",
        "Image folder",
        "The clean training set: a folder of PNGs a class, for torchvision and Hugging Face.",
    ),
    "huggingface": Format(
        exchange.hub_parquet,
        ".parquet",
        "Hugging Face Parquet",
        "The clean training set in one file, images included, for `datasets`.",
    ),
    "cleanlab": Format(
        cleanlab_csv,
        ".csv",
        "cleanlab label issues",
        "Every training image with cleanlab's columns of label issues.",
    ),
    "label-studio": Format(
        exchange.label_studio,
        ".json",
        "Label Studio tasks",
        "Every training image with our suggestion; `import` reads back what was annotated.",
    ),
    "label-studio-interface": Format(
        exchange.studio_interface,
        ".xml",
        "Label Studio interface",
        "The labelling interface that the Label Studio tasks need.",
    ),
    "fiftyone": Format(
        exchange.fiftyone,
        ".zip",
        "FiftyOne",
        "The clean training set as a FiftyOneImageClassificationDataset.",
    ),
    "cvat": Format(
        exchange.cvat, ".zip", "CVAT", "The clean training set as CVAT for images 1.1, with tags."
    ),
}
FOLDERS = {name for name, form in FORMATS.items() if form.suffix == ".zip"}


def exported(build: "Build", decisions: dict[str, Decision], name: str) -> bytes | Files:
    """The content of one file, or the files of a folder."""
    known("format", name, FORMATS, "--format")
    content = FORMATS[name].write(build, decisions)
    return content if isinstance(content, bytes) else marked(build, decisions, name, content)


def marked(build: "Build", decisions: dict[str, Decision], name: str, files: Files) -> Files:
    """The files, and what they are an export of."""
    yield from files
    told = {
        "format": name,
        "build": build.id,
        "data": build.data_id,
        "decisions": len(decisions),
        "aside": [asdict(d) for d in aside(build, decisions)],
    }
    yield MARK, json.dumps(told, indent=1).encode()


def aside(build: "Build", decisions: dict[str, Decision]) -> list[Decision]:
    """Decisions on examples that the data no longer has; they stay in the log."""
    return [decisions[name] for name in sorted(decisions.keys() - set(build.train_ids))]


def packed(content: bytes | Files) -> bytes:
    """A file as it is, a folder as a zip archive."""
    if isinstance(content, bytes):
        return content
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, one in content:
            archive.writestr(path, one)
    return out.getvalue()


def comparison_csv(rows: list[dict[str, Any]]) -> str:
    """One row a build of `Engine.compared`, every fact in a column of its own."""
    flat = pd.json_normalize(rows, sep="_")
    return flat.map(harmless).to_csv(index=False, lineterminator="\n")


def changes_csv(build: "Build", table: pd.DataFrame) -> str:
    """One row a test image of `Changes.table`, with its id; classes by name."""
    classes = pd.Series(build.classes, dtype=object)
    named = {c: classes[table[c]].tolist() for c in ("label", "before", "after")}
    told = table.assign(**named, example_id=[build.test_ids[t] for t in table.index])
    return told.map(harmless).to_csv(lineterminator="\n")


def harmless(value: object) -> object:
    """Text that starts like a formula gets an apostrophe before it."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return value


def plain(text: str) -> str:
    """What `harmless` was given."""
    return text[1:] if text[:1] == "'" and harmless(text[1:]) != text[1:] else text
