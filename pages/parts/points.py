"""The points of the map over HTTP, packed: ten bytes an image, which the browser keeps.

In this order, each for all images, first the training images, then the test images: places (two
uint16), label (uint16), suggested label or prediction (uint16), probability that the label is wrong
or confidence (uint8, of 255), and whether the label is suspicious or the prediction wrong (uint8).
All little-endian.
"""

from hashlib import sha256

import numpy as np
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from attribution.build import Build
from attribution.records import UserError

from .kept import Kept
from .opened import DOUBT, engine

RANGE = 65_535
POINTS = Kept(32 * 2**20)


def address(build: Build) -> str:
    """Where the points are; another address when what is known of the labels changes."""
    return f"/points/{build.id}/{sha256(packed(build)).hexdigest()[:12]}.bin"


def packed(build: Build) -> bytes:
    """The points as the browser gets them. Raises UserError where there is no map."""
    decided = engine().decisions.newest(build.test_half.id)  # on test labels, which are drawn
    return POINTS.get((build.id, build.evidence_id, decided), lambda: _packed(build))


def _packed(build: Build) -> bytes:
    suspects = build.mislabels()
    if build.map is None:
        raise UserError(
            found=f"no map of build {build.id}",
            wanted="one that was made",
            next_step=f"run `python -m attribution map {build.id}`",
        )
    xy_P2 = build.map.array("xy").astype(np.float64)
    xy_P2 -= xy_P2.min(0)
    place_P2 = np.round(xy_P2 / max(float(xy_P2.max()), 1e-12) * RANGE)
    rows, tests = suspects.sort_index(), build.tests(engine().test_labels(build.id))
    both = [
        (rows.given_label, tests.label, "<u2"),
        (rows.suggested_label, tests.predicted, "<u2"),
        (np.round(rows.score * 255), np.round(tests.confidence * 255), "u1"),
        (rows.score > DOUBT, ~tests.correct & tests.kept, "u1"),
    ]
    columns = [np.concatenate([one, other]).astype(kind).tobytes() for one, other, kind in both]
    return b"".join([place_P2.astype("<u2").tobytes(), *columns])


def respond(request: Request) -> Response:
    try:
        content = packed(engine().open(request.path_params["build"]))
    except UserError as error:
        return PlainTextResponse(str(error), status_code=404)
    headers = {
        "Cache-Control": "private, max-age=31536000, immutable",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(content, media_type="application/octet-stream", headers=headers)


ROUTES = [Route("/points/{build:str}/{digest:str}.bin", respond)]
