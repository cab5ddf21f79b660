"""The evidence on a training image over HTTP: the deck asks for what it shows, and a little ahead.

A build never changes, so the browser keeps what it got, and a key press waits for none of it.
"""

from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from attribution.build import Build
from attribution.evidence import Fed, Neighbour, evidence
from attribution.records import UserError

from .kept import Kept
from .opened import DOUBT, engine
from .thumbs import inline

SIGNALS = {"training": "while learning", "masks": "across members"}  # others by their own names


def signal_words(column: str) -> str:
    """What a person calls a column of signals."""
    name = column.removeprefix("signal_")
    return SIGNALS.get(name, name.replace("_", " "))


def address(build: Build) -> str:
    """Where the evidence of a build is, up to the number of an image."""
    return f"/evidence/{build.id}/"


def shown(build: Build, train_id: int) -> dict[str, Any]:
    """The evidence as the deck draws it. Raises UserError for an image that is not there."""
    if not 0 <= train_id < len(build.train_ids):
        raise UserError(
            found=f"training image {train_id}",
            wanted=f"a position from 0 to {len(build.train_ids) - 1}",
            next_step="choose one in that range",
        )
    found = evidence(build, train_id, DOUBT)
    names = build.classes
    count = sum(v.votes for v in found.votes)
    agree = sum(one.label == found.given for one in found.neighbours)

    def others(title: str, some: tuple[Neighbour, ...], empty: str) -> dict[str, Any]:
        items = [
            {
                "id": one.train_id,
                "src": inline(build, "train", one.train_id),
                "alt": f"Training image {one.train_id}, labelled {names[one.label]}",
                "caption": names[one.label],
                "odd": one.label != found.given,
            }
            for one in some
        ]
        return {"title": title, "items": items, "empty": empty}

    given = names[found.given]
    nearest = (
        f"Most alike: {agree} of {len(found.neighbours)} labelled {given}"
        if found.neighbours
        else "Most alike"
    )
    return {
        "votes": f"{count} of {len(found.votes)} signals count it among the most suspicious",
        "signals": [
            {**asdict(v), "name": signal_words(v.name), "text": f"{v.value:.0%}"}
            for v in found.votes
        ],
        "groups": [
            others(nearest, found.neighbours, "Nothing is like it."),
            others(f"Support {given}", found.proponents, "Nothing supports the label."),
            others(f"Speak against {given}", found.opponents, "Nothing speaks against it."),
        ],
        "feeds": {
            "title": "Wrong predictions it feeds",
            "items": [fed(build, one) for one in found.feeds],
            "empty": "It is not among the strongest of any wrong prediction."
            if build.labelled
            else "Which predictions are wrong is not known: the test images have no labels.",
        },
    }


def fed(build: Build, one: Fed) -> dict[str, Any]:
    label, called = build.classes[one.label], build.classes[one.predicted]
    side = f"for {called}" if one.side == "for" else f"against {label}"
    return {
        "id": one.test_id,
        "src": inline(build, "test", one.test_id),
        "alt": f"Test image {one.test_id}, labelled {label}, called {called}: "
        f"this one is number {one.place} {side}",
        "caption": f"{label} → {called}",
        "href": f"/explain?build={build.id}&test={one.test_id}&target=predicted",
    }


ANSWERS = Kept(16 * 2**20)  # some 20 KB each; who reviews the same queue asks for the same


def respond(request: Request) -> Response:
    train_id = request.path_params["train_id"]
    try:
        build = engine().open(request.path_params["build"])
        body = ANSWERS.get(
            (build.id, build.evidence_id, train_id),
            lambda: bytes(JSONResponse(shown(build, train_id)).body),
        )
    except UserError as error:
        return PlainTextResponse(str(error), status_code=404)
    headers = {"Cache-Control": "private, max-age=3600"}
    return Response(body, media_type="application/json", headers=headers)


ROUTES = [Route("/evidence/{build:str}/{train_id:position}.json", respond)]
