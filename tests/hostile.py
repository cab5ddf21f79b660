"""A small build whose classes have names that try to be something else, with decisions on it."""

import copy
from dataclasses import replace
from pathlib import Path

from conftest import Tiny

from attribution.build import Build
from attribution.decisions import Decisions
from attribution.engine import Engine
from attribution.records import Decision

HOSTILE = (
    "../x", "=cmd()", '<b class="x">&amp;</b>', "two\nlines", "猫 é", "long " * 2000, "Cat", "cat",
    "test", "\x00\r ']]>",
)  # fmt: skip
SOME = 60  # examples, to be quick


def hostile(tiny: Tiny) -> Build:
    """The tiny build, of its first examples only, with other names for its classes."""
    whole = Engine(tiny.cache, tiny.workspace).open(tiny.build)
    some = copy.copy(whole)
    frame = whole.mislabels()
    some.mislabels = lambda: frame[frame.index < SOME]
    some.train_ids, some.train_labels_N = whole.train_ids[:SOME], whole.train_labels_N[:SOME]
    some.classes = HOSTILE
    return some


def decisions_on(build: Build, folder: Path) -> dict[str, Decision]:
    """One of each verdict, one undone, one that no version here knows, one of lost data."""
    log = Decisions(folder / "decisions.sqlite")
    ids = build.train_ids
    log.decide(build.data_id, ids[0], "keep", reviewer="=Anna")
    for position in range(1, 11):
        label = (int(build.train_labels_N[position]) + 1 + position % 9) % 10
        log.decide(build.data_id, ids[position], "relabel", label=label, reviewer="Zoë\n2")
    log.decide(build.data_id, ids[11], "drop")
    log.decide(build.data_id, "0" * 16 + "-0", "drop")
    log.decide(build.data_id, ids[12], "drop")
    log.undo(build.data_id)
    stand = log.in_force(build.data_id)
    return stand | {ids[13]: replace(stand[ids[0]], example_id=ids[13], verdict="later")}
