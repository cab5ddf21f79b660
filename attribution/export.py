"""Decisions and comparisons in forms that other tools read."""

import csv
from io import StringIO
from typing import TYPE_CHECKING, Any

import pandas as pd

from .records import Decision

if TYPE_CHECKING:
    from .engine import Build

COLUMNS = (
    "example_id", "train_id", "given_label", "suggested_label", "suspicion",
    "decision", "new_label", "final_label", "reviewer", "decided_at", "build",
)  # fmt: skip


def decisions_csv(build: "Build", decisions: dict[str, Decision]) -> str:
    """One row a training example, by train_id; labels by class name.

    `final_label` is empty for a dropped example. Text that a spreadsheet would take for a formula
    is quoted with an apostrophe.
    """
    out = StringIO()
    writer = csv.writer(out)  # lines end as RFC 4180 says, so that a lone \r in a name is quoted
    writer.writerow(COLUMNS)
    names = build.classes
    for train_id, row in build.mislabels().sort_index().iterrows():
        d = decisions.get(row["example_id"])
        given = names[row["given_label"]]
        new = names[d.label] if d and d.label is not None else ""
        final = "" if d and d.verdict == "drop" else new or given
        values = [
            row["example_id"], train_id, given, names[row["suggested_label"]],
            f"{row['score']:.6f}", d.verdict if d else "", new, final,
            d.reviewer if d else "", d.time if d else "", build.id,
        ]  # fmt: skip
        writer.writerow([harmless(v) for v in values])
    return out.getvalue()


def comparison_csv(rows: list[dict[str, Any]]) -> str:
    """One row a build of `Engine.compared`, every fact in a column of its own."""
    flat = pd.json_normalize(rows, sep="_")
    return flat.map(harmless).to_csv(index=False, lineterminator="\n")


def harmless(value: object) -> object:
    """Text that starts like a formula gets an apostrophe before it."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return value
