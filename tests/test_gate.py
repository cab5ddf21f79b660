"""The gate in front of the server: hosts, origins, cookies, uploads and headers."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from secrets_file import (
    ANN,
    AUTH,
    BOB,
    EVE,
    ORIGIN,
    ROLES,
    STRANGER,
    cookies,
    header,
    secrets,
    toml,
    user,
)  # fmt: skip
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect
from streamlit import net_util
from streamlit.web.server.starlette.starlette_app_utils import decode_signed_value
from streamlit.web.server.starlette.starlette_server_config import USER_COOKIE_NAME
from streamlit.web.server.starlette.starlette_websocket import (
    _get_signed_cookie_with_chunks,
    _is_origin_allowed,
    _parse_decoded_user_cookie,
)

import app as web
from attribution.archives import LIMITS
from pages.parts import exports, gate
from pages.parts.gate import HEADERS, Gate

HTTPS = "https://labels.example.org"
DATA = "/thumb/0123456789ab/train/0.png"


async def seen(request: Request) -> Response:
    """What is behind the gate tells what it was asked."""
    response = JSONResponse({"headers": dict(request.headers), "path": request.url.path})
    response.set_cookie("some", "value", httponly=True)
    return response


async def broken(_: Request) -> Response:
    raise RuntimeError("a secret")


async def talk(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_json(dict(websocket.headers))
    await websocket.close()


def behind(host: str = "localhost:8501") -> TestClient:
    routes = [
        Route("/static/broken", broken),
        WebSocketRoute("/_stcore/stream", talk),
        Route("/{rest:path}", seen, methods=["GET", "PUT", "DELETE", "OPTIONS"]),
    ]
    inner = Starlette(routes=routes, middleware=[Middleware(Gate, pages=["explain", "review"])])
    return TestClient(inner, base_url=f"http://{host}", raise_server_exceptions=False)


@pytest.fixture
def login(tmp_path: Path) -> Iterator[None]:
    with secrets(tmp_path / "secrets.toml", toml(auth=AUTH, roles=ROLES)):
        yield


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[None]:
    auth = AUTH | {"redirect_uri": f"{HTTPS}/oauth2callback"}
    with secrets(tmp_path / "secrets.toml", toml(auth=auth, roles=ROLES)):
        yield


@pytest.mark.parametrize("host", ["localhost:8501", "127.0.0.1:9", "[::1]:8501", "LOCALHOST"])
def test_the_app_answers_under_its_own_names(host: str) -> None:
    assert behind().get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "example.org", "localhost.example.org", "localhost.", "127.0.0.1.example.org:8501",
        "localhost@example.org", "example.org@localhost", "localhost/x", "localhost:8501?x", "",
        "192.168.0.1:8501", "[::1", "0.0.0.0:8501", "labels.example.org",
    ],
)  # fmt: skip
def test_another_name_for_this_machine_is_refused(host: str) -> None:
    answer = behind().get("/", headers={"host": host})
    assert answer.status_code in (400, 421) and "x-frame-options" in answer.headers
    with pytest.raises(WebSocketDisconnect) as closed:
        with behind().websocket_connect("/_stcore/stream", headers={"host": host}) as stream:
            stream.receive_json()
    assert closed.value.code == 1008


def test_the_name_where_people_log_in_is_the_apps_too(proxied: None) -> None:
    assert behind().get("/", headers={"host": "labels.example.org"}).status_code == 200
    assert behind().get("/", headers={"host": "example.org"}).status_code == 421


FOREIGN = ["https://example.org", "null", "http://localhost:3000", "https://localhost:8501.evil"]


@pytest.mark.parametrize("origin", FOREIGN)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
def test_another_origin_is_refused(origin: str, method: str) -> None:
    path = "/_stcore/upload_file/session/file"
    answer = behind().request(method, path, headers={"origin": origin})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("origin", FOREIGN)
def test_another_origin_opens_no_websocket(origin: str) -> None:
    with pytest.raises(WebSocketDisconnect) as closed:
        with behind().websocket_connect("/_stcore/stream", headers={"origin": origin}) as stream:
            stream.receive_json()
    assert closed.value.code == 1008


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_site_links_to_pages_and_gets_nothing_else(site: str) -> None:
    link = {"sec-fetch-site": site, "sec-fetch-mode": "navigate"}
    picture = {"sec-fetch-site": site, "sec-fetch-mode": "no-cors"}
    assert behind().get("/explain?build=0", headers=link).status_code == 200
    assert behind().get(DATA, headers=picture).status_code == 403
    assert behind().get(DATA, headers=link).status_code == 403
    assert behind().get("/auth/logout", headers=link).status_code == 403
    own = {"sec-fetch-site": "same-origin", "sec-fetch-mode": "no-cors"}
    assert behind().get(DATA, headers=own).status_code == 200


def test_streamlit_never_has_to_ask_which_address_is_its_own(proxied: None) -> None:
    def heard(**headers: str) -> dict[str, str]:
        with behind().websocket_connect("/_stcore/stream", headers=headers) as stream:
            return stream.receive_json()

    for origin in ("http://localhost:8501", HTTPS):  # behind a proxy the host is another
        found = heard(origin=origin, host="localhost:8501")
        assert found["origin"] == origin
        assert found["origin"].partition("://")[2] == found["host"]  # its first question
        assert _is_origin_allowed(found["origin"], found["host"])
    assert "origin" not in behind().get("/", headers={"origin": HTTPS}).json()["headers"]
    assert net_util._external_ip is None


OPEN = ["/", "/explain", "/review", "/static/js/x.js", "/_stcore/health", "/_stcore/host-config",
        "/auth/login", "/auth/logout", "/oauth2callback", "/favicon.png"]  # fmt: skip


def closed() -> list[str]:
    """An address of every route that carries something, of ours and of Streamlit."""
    ours = [route.path for some in (web.ROUTES, web.EVIDENCE, web.POINTS, web.REACH)
            for route in some]  # fmt: skip
    theirs = [
        "/media/0123.png", "/_stcore/upload_file/session/file", "/_stcore/metrics",
        "/_stcore/script-health-check", "/_stcore/agent/interact", "/_stcore/agent/openapi.json",
        "/_stcore/bidi-components/x/y.js", "/component/x/y.js", "/app/static/x", "/anything",
        "//thumb/x", "/static", "/_stcore/stream/", "/explain.png", "/Explain",
    ]  # fmt: skip
    return [*ours, *theirs]


@pytest.mark.parametrize("path", closed())
def test_what_carries_anything_is_closed_to_who_is_not_logged_in(path: str, login: None) -> None:
    if path == "/static":  # the folder itself is open, and empty
        return
    answer = behind().get(f"http://localhost:8501{path}")
    assert (answer.status_code, answer.text) == (401, "Log in first.")


@pytest.mark.parametrize("path", OPEN)
def test_what_logs_people_in_is_open(path: str, login: None) -> None:
    assert behind().get(path).status_code == 200


@pytest.mark.parametrize("path", [*closed(), *OPEN])
def test_without_a_login_nothing_is_closed(path: str) -> None:
    assert behind().get(f"http://localhost:8501{path}").status_code == 200


@pytest.mark.parametrize(("email", "status"), [(ANN, 200), (BOB, 200), (EVE, 200), (STRANGER, 403)])
def test_who_has_a_role_gets_pictures(email: str, status: int, login: None) -> None:
    made = cookies(user(email))
    assert behind().get(DATA, headers={"cookie": header(made)}).status_code == status


def test_a_login_in_several_cookies_is_whole_or_none(login: None) -> None:
    made = cookies(user(ANN, name=noise(9000)))
    assert len(made) > 3
    assert behind().get(DATA, headers={"cookie": header(made)}).status_code == 200
    for name in made:
        some = {key: value for key, value in made.items() if key != name}
        assert behind().get(DATA, headers={"cookie": header(some)}).status_code == 401


def forged() -> dict[str, dict[str, str]]:
    mine = cookies(user(ANN))
    name, value = next(iter(mine.items()))
    head, stamp, sign = value.rsplit(".", 2)
    return {
        "another secret": cookies(user(ANN), secret="x" * 40),
        "another origin": cookies(user(ANN), origin="http://localhost:9999"),
        "not logged in": cookies(user(ANN) | {"is_logged_in": False}),
        "no signature": {name: head},
        "cut": {name: value[:-1]},
        "another's words": {name: f"{cookies(user(BOB))[name].rsplit('.', 2)[0]}.{stamp}.{sign}"},
        "under another name": {f"{name}_tokens": value},
        "empty": {name: ""},
        "no JSON": {name: "e30"},
    }


@pytest.mark.parametrize("kind", list(forged()))
def test_a_forged_cookie_is_none(kind: str, login: None) -> None:
    answer = behind().get(DATA, headers={"cookie": header(forged()[kind])})
    assert answer.status_code == 401


def test_a_login_ends_after_its_days(login: None, monkeypatch: pytest.MonkeyPatch) -> None:
    made = header(cookies(user(ANN)))
    assert behind().get(DATA, headers={"cookie": made}).status_code == 200
    now = time.time()
    monkeypatch.setattr("itsdangerous.timed.time.time", lambda: now + 32 * 86400)
    assert behind().get(DATA, headers={"cookie": made}).status_code == 401


def noise(count: int) -> str:
    """Letters that cannot be packed into fewer."""
    return Random(0).randbytes(count).hex()[:count]


def spliced() -> dict[str, str]:
    """A login of EVE with the second part taken out of another of hers, to be ANN.

    Streamlit cuts the JSON of a login after so many letters. Where a provider lets people write
    objects among their claims, what stands inside of one can be put between the claims.
    """
    mine = cookies(user(EVE, name=noise(12_000)))
    begun = len(json.dumps(user(EVE, about={"me": ""}))) - 3
    said = noise(len(part(mine, 1)) - begun + 9)  # it ends just behind the cut
    forged = {"me": said, "email": ANN, "email_verified": True, "more": noise(9000)}
    other = cookies(user(EVE, about=forged))
    name = f"{USER_COOKIE_NAME}_2"
    return {**mine, name: other[name]}


def part(made: dict[str, str], number: int) -> bytes:
    name = f"{USER_COOKIE_NAME}_{number}"
    found = decode_signed_value(AUTH["cookie_secret"], name, made[name])
    assert found is not None
    return found


def test_uploads_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def many() -> list[int]:
        go, statuses = asyncio.Event(), []

        async def slow(scope: Any, receive: Any, send: Any) -> None:
            await go.wait()
            await Response(status_code=204)(scope, receive, send)

        door = Gate(slow, [])

        async def put() -> None:
            async def send(message: Any) -> None:
                if message["type"] == "http.response.start":
                    statuses.append(message["status"])

            headers = [(b"host", b"localhost:8501")]
            scope = {"type": "http", "method": "PUT", "headers": headers,
                     "path": "/_stcore/upload_file/session/file"}  # fmt: skip
            await door(scope, None, send)  # type: ignore[arg-type]

        waiting = [asyncio.create_task(put()) for _ in range(gate.AT_ONCE + 3)]
        await asyncio.sleep(0.05)
        assert statuses == [429] * 3
        go.set()
        await asyncio.gather(*waiting)
        while len(statuses) < gate.A_MINUTE + 3:
            await put()
        await put()
        assert door.uploading == 0
        return statuses

    statuses = asyncio.run(many())
    assert statuses.count(204) == gate.A_MINUTE
    assert statuses[-1] == 429
    monkeypatch.setattr(gate, "held", lambda: gate.HELD + 1)
    answer = behind().put("/_stcore/upload_file/session/file")
    assert answer.status_code == 503 and "try again" in answer.text


@pytest.mark.parametrize("path", ["/", DATA, "/static/broken", "/media/x"])
def test_every_answer_bears_the_headers(path: str, login: None) -> None:
    answer = behind().get(path)
    for name, value in HEADERS.items():
        assert answer.headers[name] == value, name
    assert "a secret" not in answer.text


def test_the_policy_lets_no_other_server_in() -> None:
    policy = dict(
        (words[0], words[1:]) for part in gate.POLICY.split("; ") if (words := part.split(" "))
    )
    assert policy["default-src"] == ["'none'"] and policy["frame-ancestors"] == ["'none'"]
    allowed = {word for words in policy.values() for word in words}
    hashes = {word for word in allowed if word.startswith("'sha256-")}
    assert allowed - hashes == {
        "'none'",
        "'self'",
        "'unsafe-inline'",
        "'wasm-unsafe-eval'",
        "blob:",
        "data:",
    }
    assert "'unsafe-inline'" not in policy["script-src"] and hashes <= {*policy["script-src"]}


def test_on_https_cookies_stay_there(proxied: None) -> None:
    answer = behind("labels.example.org").get("/")
    assert answer.headers["set-cookie"].endswith("; Secure")
    assert answer.headers["strict-transport-security"].startswith("max-age=")


def test_on_localhost_cookies_are_as_they_were(login: None) -> None:
    answer = behind().get("/")
    assert "Secure" not in answer.headers["set-cookie"]
    assert "strict-transport-security" not in answer.headers


def test_a_secrets_file_that_makes_no_sense_closes_everything(tmp_path: Path) -> None:
    with secrets(tmp_path / "secrets.toml", "[auth]\n"):
        for path in ("/", DATA, "/_stcore/health"):
            answer = behind().get(path)
            assert answer.status_code == 503 and "docs/SECURITY.md" in answer.text


def test_a_websocket_gets_no_login_that_is_none(login: None) -> None:
    for claims, kept in ((user(ANN), True), (user(ANN) | {"is_logged_in": False}, False)):
        made = cookies(claims) | {"_streamlit_xsrf": "2|a|b|1"}
        sent = {"cookie": header(made), "origin": ORIGIN, "host": "localhost:8501"}
        with behind().websocket_connect("/_stcore/stream", headers=sent) as stream:
            heard = stream.receive_json()["cookie"]
        assert (USER_COOKIE_NAME in heard) == kept and "_streamlit_xsrf" in heard


def test_two_logins_are_not_put_together(login: None) -> None:
    made = spliced()
    signed = _get_signed_cookie_with_chunks(made, USER_COOKIE_NAME)
    assert signed is not None
    assert _parse_decoded_user_cookie(signed, ORIGIN)["email"] == ANN  # Streamlit takes it
    assert behind().get(DATA, headers={"cookie": header(made)}).status_code == 401
    sent = {"cookie": header(made), "origin": ORIGIN, "host": "localhost:8501"}
    with behind().websocket_connect("/_stcore/stream", headers=sent) as stream:
        assert USER_COOKIE_NAME not in stream.receive_json()["cookie"]


def test_the_port_stays_free_for_the_app() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(web.UserError, match="is not free"):
            web.free("localhost", taken.getsockname()[1])


def test_the_server_takes_the_largest_that_a_page_takes_and_no_more() -> None:
    assert web.SETTINGS["server.maxUploadSize"] == max(exports.LARGEST, LIMITS.packed // 10**6)
