"""The gate in front of the server: hosts, origins, logins, uploads, and headers of answers.

Pure ASGI, around everything that Streamlit and our own routes serve. What is not named as open is
closed to whoever is not logged in, where a login is configured; a websocket is not, because the
page that logs people in needs one: there `app.py` looks at the role before it runs a page.
"""

import json
import re
import time
from base64 import b64encode
from collections import deque
from collections.abc import Collection, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from streamlit import file_util, runtime
from streamlit.web.server.starlette.starlette_server_config import USER_COOKIE_NAME
from streamlit.web.server.starlette.starlette_websocket import (
    _get_signed_cookie_with_chunks,
    _parse_decoded_user_cookie,
)

from attribution.records import UserError

from .access import LOCAL, Role, Rules, rules

LOGOUT = "/auth/logout"  # which no link from elsewhere may press
OPEN = (
    "/",
    "/favicon.png",
    "/manifest.json",
    "/auth/login",
    LOGOUT,
    "/oauth2callback",
    "/_stcore/health",
    "/_stcore/host-config",
)
ASSETS = "static"  # the first word of the addresses of Streamlit's own files
UPLOAD = "/_stcore/upload_file/"
AT_ONCE = 8  # uploads under way
A_MINUTE = 120  # uploads begun
HELD = 2 * 10**9  # bytes of uploads in memory


def inline_scripts() -> str:
    """The hashes of the scripts that stand in Streamlit's page itself, as a policy names them."""
    page = (Path(file_util.get_static_dir()) / "index.html").read_text("utf-8")
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = (b64encode(sha256(script.encode()).digest()).decode() for script in scripts)
    return " ".join(f"'sha256-{one}'" for one in hashes)


# Streamlit's own code needs styles in the page and a font as data; our elements come as modules
# that the browser makes of what the websocket brings.
POLICY = "; ".join(
    (
        "default-src 'none'",
        f"script-src 'self' blob: 'wasm-unsafe-eval' {inline_scripts()}",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "manifest-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


class Refused(Exception):
    """A request that is not answered: its status, and one sentence."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


class Gate:
    """The middleware; `pages` are the first words of addresses that get the app's page."""

    def __init__(self, app: ASGIApp, pages: Collection[str]) -> None:
        self.app = app
        self.open = {ASSETS, *pages}
        self.uploading = 0
        self.begun: deque[float] = deque()  # when the uploads of the last minute began

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                protect(MutableHeaders(scope=message))
            await send(message)

        try:
            scope = self.admitted(scope)
            if scope["type"] == "http" and scope["path"].startswith(UPLOAD):
                await self.upload(scope, receive, answer)
            else:
                await self.app(scope, receive, answer)
        except Refused as refused:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008, "reason": str(refused)})
            else:
                words = PlainTextResponse(str(refused), refused.status)
                await words(scope, receive, answer)
        except Exception:
            if scope["type"] == "http" and not started:
                await PlainTextResponse("Something went wrong.", 500)(scope, receive, answer)
            raise  # the server logs it

    def admitted(self, scope: Scope) -> Scope:
        """The request as it goes on. Raises `Refused` for one that does not."""
        try:
            known = rules()
        except UserError as error:
            raise Refused(503, str(error)) from None
        headers, path = Headers(scope=scope), scope["path"]
        is_open = path in OPEN or path.partition("/")[2].partition("/")[0] in self.open
        here(headers, known)
        if scope["type"] == "http" and not is_open and known is not None:
            user = user_of(HTTPConnection(scope).cookies, known)
            if not user:
                raise Refused(401, "Log in first.")
            if known.role(user) is Role.NOBODY:
                raise Refused(403, "Nobody gave this address a role here.")
        linked = is_open and path != LOGOUT and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not linked:
            raise Refused(403, "Another site may not ask for this.")
        return {**scope, "headers": passed_on(scope, headers, known)}

    async def upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let an upload through, unless too much is under way or in memory."""
        if scope["method"] != "PUT":
            await self.app(scope, receive, send)
            return
        now = time.monotonic()
        while self.begun and self.begun[0] < now - 60:
            self.begun.popleft()
        if self.uploading >= AT_ONCE or len(self.begun) >= A_MINUTE:
            raise Refused(429, "Too much is being uploaded just now; try again in a minute.")
        if held() > HELD:
            raise Refused(503, "Too many uploads are open just now; try again in some minutes.")
        self.begun.append(now)
        self.uploading += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.uploading -= 1


def here(headers: Headers, known: Rules | None) -> None:
    """Raise `Refused` for a host that is not ours, and for what another origin sends.

    A name that somebody else lets point to this machine would make their page one of ours.
    """
    host, origin = headers.get("host", ""), headers.get("origin")
    names = (*LOCAL, known.host) if known else LOCAL
    try:
        named = urlsplit(f"//{host}")
        ours = named.hostname in names and named.netloc == host and "@" not in host
    except ValueError:
        ours = False
    if not ours:
        raise Refused(421, "This app does not answer under that name.")
    if origin is not None and not same(origin, host, known):
        raise Refused(403, "Another site may not ask for this.")


def same(origin: str, host: str, known: Rules | None) -> bool:
    """Whether a page of `origin` is the app's own: under this host, or where people log in."""
    scheme, _, place = origin.partition("://")
    own = scheme in ("http", "https") and place == host
    return own or (known is not None and origin == known.origin)


def passed_on(scope: Scope, headers: Headers, known: Rules | None) -> list[tuple[bytes, bytes]]:
    """The headers as Streamlit gets them.

    It never has to ask whether an origin is its own, for which it would ask a server elsewhere for
    this machine's address; nor does it get a login that is not one.
    """
    origin = headers.get("origin")
    kept = [(name, value) for name, value in scope["headers"] if name != b"origin"]
    if scope["type"] == "http":
        return kept
    if origin is not None:  # a proxy may have put another host
        kept = [(name, value) for name, value in kept if name != b"host"]
        kept += [(b"host", origin.partition("://")[2].encode()), (b"origin", origin.encode())]
    cookies = HTTPConnection(scope).cookies
    if known is None or user_of(cookies, known):
        return kept
    left = "; ".join(f"{k}={v}" for k, v in cookies.items() if not k.startswith(USER_COOKIE_NAME))
    kept = [(name, value) for name, value in kept if name != b"cookie"]
    return [*kept, (b"cookie", left.encode("latin-1"))]


def user_of(cookies: Mapping[str, str], known: Rules) -> dict[str, Any]:
    """The claims of the login that signed cookies hold, as `st.user` has them; {} for none.

    A login too long for one cookie is cut into several, each signed by itself. Where people may
    write claims of their own, parts of two logins can be put together to a third; it then gives
    the address twice, and is refused.
    """
    try:
        signed = _get_signed_cookie_with_chunks(dict(cookies), USER_COOKIE_NAME)
        if signed is None:
            return {}
        json.loads(signed, object_pairs_hook=once)
        user = _parse_decoded_user_cookie(signed, known.origin)
    except (ValueError, AttributeError, TypeError):
        return {}
    return user if user.get("is_logged_in") is True else {}


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError for a name that it gives twice."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name is given twice")
    return dict(pairs)


def held() -> int:
    """Bytes of uploads that are in memory."""
    if not runtime.exists():
        return 0
    stats = runtime.get_instance().uploaded_file_mgr.get_stats()
    return sum(one.byte_length for some in stats.values() for one in some)


def protect(headers: MutableHeaders) -> None:
    """Put the headers of `HEADERS` on an answer; on https, cookies stay there."""
    headers.update(HEADERS)
    try:
        known = rules()
    except UserError:
        return
    if known is not None and known.origin.startswith("https:"):
        headers["Strict-Transport-Security"] = "max-age=31536000"
        cookies = headers.getlist("set-cookie")
        del headers["set-cookie"]
        for cookie in cookies:
            headers.append("set-cookie", f"{cookie}; Secure")
