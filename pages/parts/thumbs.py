"""Images over HTTP: pages send addresses, and the browser fetches only what is in view."""

from base64 import b64encode
from functools import lru_cache

from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from attribution.build import Build
from attribution.exchange import png
from attribution.pictures import Picture, taken
from attribution.records import UserError

from .kept import Kept
from .opened import engine, thumb

INLINE = 4096  # bytes
PNGS = Kept(64 * 2**20)


def _png(build_id: str, split: str, position: int, seen: bool = False) -> bytes:
    """As stored, or as the network sees it. Raises UserError for what is not there."""

    def make() -> bytes:
        build = engine().open(build_id)
        return png((build.seen if seen else build.image)(split, position))

    return PNGS.get((build_id, split, position, seen), make)


def inline(build: Build, split: str, position: int) -> str:
    """A small image as a data URL, which spares a request; the address of a large one."""
    png = _png(build.id, split, position)
    if len(png) > INLINE:
        return thumb(build, split, position)
    return f"data:image/png;base64,{b64encode(png).decode()}"


@lru_cache(maxsize=4)  # a large one takes a while, and each click draws it again
def shrunk(content: bytes, longest: int) -> Picture:
    """A picture that somebody brought, its longer side at most `longest` pixels."""
    return taken(content, longest)


def thumbnail(request: Request) -> Response:
    """One image of a build, as stored or, below /seen, as the network sees it.

    The URL is looked up, never made into a path.
    """
    words = request.path_params
    build_id, split, position = words["build"], words["split"], words["position"]
    try:
        if split not in ("train", "test"):
            raise UserError(found=f"split {split!r}", wanted="train or test", next_step="use one")
        png = _png(build_id, split, position, request.url.path.startswith("/seen/"))
    except UserError as error:
        return PlainTextResponse(str(error), status_code=404)
    # A build never changes, so neither does an image of it.
    headers = {
        "Cache-Control": "private, max-age=31536000, immutable",
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
    return Response(png, media_type="image/png", headers=headers)


def no_thumbnail(_: Request) -> Response:
    """Any other address below /thumb or /seen, which would get the app's page otherwise."""
    return PlainTextResponse("There is no such image.", status_code=404)


class Position(Convertor[int]):
    """A whole number of as many digits as a position may have; Starlette's own takes any."""

    regex = "[0-9]{1,18}"

    def convert(self, value: str) -> int:
        return int(value)

    def to_string(self, value: int) -> str:
        return str(value)


register_url_convertor("position", Position())  # for the routes of the pages' other parts too
ROUTES = [
    Route("/thumb/{build:str}/{split:str}/{position:position}.png", thumbnail),
    Route("/seen/{build:str}/{split:str}/{position:position}.png", thumbnail),
    Route("/thumb/{rest:path}", no_thumbnail),
    Route("/seen/{rest:path}", no_thumbnail),
]
