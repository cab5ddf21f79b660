"""What an edit of training images would change, before it is made: predicted from scores.

A relabel needs the new label's gradient through every member, so the answer over HTTP is lines of
JSON: how far it is, then what was found.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Any

import streamlit as st
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from attribution.build import Build
from attribution.records import Report, UserError, natural, silent
from attribution.whatif import LEAST, Moved, Scale, scale_of

from .grid import Handle, grid
from .opened import engine
from .thumbs import inline
from .trouble import log_file

SHOWN = 6  # predictions each way
PALER = "Paler: within its noise."
MEASURED = "Before & after: what applied decisions did"
DROP = "drop"


def address(build: Build) -> str:
    """Where the changes of a build are, up to the number of an image and its new label."""
    return f"/reach/{build.id}/"


def expander(build: Build, train_ids: Sequence[int], handle: Handle) -> None:
    """What else changes without these training images, worked out when it is opened."""
    place = st.expander("What else would change", key="reach", on_change="rerun")
    if not place.open:
        return
    with place:
        rows = engine().blast(build.id, train_ids, k=shown_of(build), each=True)
        st.markdown(sentence(rows))
        grid("reached", handle, kind="pick", tile=66, groups=groups(build, rows))
        st.caption(f"{units(build)} {PALER}")
        if link := measured(build):
            st.markdown(f"[{MEASURED}]({link})")


def shown_of(build: Build) -> int:
    return min(SHOWN, len(build.test_labels_T))


def sentence(rows: Sequence[Moved]) -> str:
    """How many moves are for the better, and how many are more than noise."""
    better, clear = sum(r.better for r in rows), sum(not r.shaky for r in rows)
    if any(r.label is None for r in rows):
        return (
            f"Of the {len(rows)} predictions that it would move most, {clear} move by more than "
            "the noise."
        )
    return (
        f"Of the {len(rows)} predictions that it would move most, {better} move for the better "
        f"(right ones surer, wrong ones less sure); {clear} by more than the noise."
    )


def measured(build: Build) -> str:
    """Where it is told what applied decisions did, or "" while none were."""
    return f"/changes?build={build.id}" if engine().revised(build.id) else ""


def units(build: Build) -> str:
    """What the numbers are, or why there are none."""
    rows = engine().verifications(build.id)
    known = scale_of(rows)
    if known is not None and known.usable:
        return "Changes of the margin (0 is undecided, 3 is 95 %); 95 % are to lie within."
    return f"In order only: how far is {unscaled(known, len(rows))}."


def unscaled(known: Scale | None, count: int) -> str:
    """Why no margin is told after so many verifications."""
    if known is None:
        return f"known once {LEAST} removals are verified ({count} so far)"
    return "not told: what was verified does not follow what was predicted"


def groups(build: Build, rows: Sequence[Moved]) -> list[dict[str, Any]]:
    """The rows by direction, as elements draw them."""

    def group(title: str, some: list[Moved]) -> dict[str, Any]:
        items = [item(build, one) for one in some]
        return {"label": title, "title": True, "items": items, "empty": "None."}

    return [
        group("Surer", [r for r in rows if r.move > 0]),
        group("Less sure", [r for r in rows if r.move < 0]),
    ]


def item(build: Build, one: Moved) -> dict[str, Any]:
    called = build.classes[one.predicted]
    right = one.label in (None, one.predicted)
    label = called if one.label is None else build.classes[one.label]
    change = between = ""
    if one.change is not None:
        change = f"{one.change:+.1f}"
        between = f", by {one.change:+.2f} ({one.low:+.2f} to {one.high:+.2f})"
    noise = ", within its noise" if one.shaky else ""
    way = "surer" if one.move > 0 else "less sure"
    return {
        "id": one.test_id,
        "src": inline(build, "test", one.test_id),
        "alt": f"Test image {one.test_id}, called {called}{'' if right else f' but a {label}'}: "
        f"{way}{between}{noise}",
        "caption": called if right else f"{label} → {called}",
        "correct": right,
        "note": change,
        "shaky": one.shaky,
        "odd": not right,
        "href": f"/explain?build={build.id}&test={one.test_id}&target=predicted",
    }


def shown(build: Build, train_id: int, to: str, report: Report = silent) -> dict[str, Any]:
    """What a drop or a relabel would change, as `foldOf` in common.js draws it."""
    label = natural(to)
    if label is None and to != DROP:
        raise UserError(
            found=f"change {to!r}", wanted=f"{DROP}, or the number of a class", next_step="use one"
        )
    k = shown_of(build)
    rows = engine().blast(build.id, [train_id], label, k, each=True, report=report)
    return {
        "words": sentence(rows),
        "groups": groups(build, rows),
        "units": f"{units(build)} {PALER}",
        "measured": {"href": measured(build), "words": MEASURED},
    }


def lines(build_id: str, train_id: int, to: str) -> Iterator[str]:
    """Progress, then the answer or why there is none, a line of JSON each."""
    told: SimpleQueue[dict[str, Any]] = SimpleQueue()

    def report(_: str, done: int, total: int) -> None:
        told.put({"done": done, "total": total})

    def work() -> None:
        try:
            build = engine().open(build_id)
            answer = {"found": shown(build, train_id, to, report)}
        except UserError as error:
            answer = {"error": str(error)}
        except Exception:
            path = log_file()
            logging.getLogger("probable_cause").exception("a change could not be worked out")
            answer = {"error": f"Something went wrong; the details are in {path}."}
        told.put(answer)

    Thread(target=work, daemon=True).start()
    while True:
        one = told.get()
        yield json.dumps(one) + "\n"
        if "done" not in one:
            return


def respond(request: Request) -> Response:
    words = request.path_params
    return StreamingResponse(
        lines(words["build"], words["train_id"], words["to"]),
        media_type="application/x-ndjson",
        headers={"Cache-Control": "no-store"},  # a scale may be known next time
    )


ROUTES = [Route("/reach/{build:str}/{train_id:position}/{to:str}", respond)]
