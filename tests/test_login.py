"""Logging in, in a real Chromium at a real OpenID provider, and the server asked over HTTP."""

import json
import os
import re
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from chromium import PATIENCE, app_server, chromium_path, server
from conftest import Tiny
from playwright.sync_api import Browser, BrowserContext, Page, expect
from secrets_file import (
    ANN,
    AUTH,
    BOB,
    CLIENT_SECRET,
    EVE,
    ROLES,
    SECRET,
    STRANGER,
    cookies,
    header,
    toml,
    user,
)
from streamlit import net_util
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.web.server.starlette.starlette_app_utils import generate_xsrf_token_string
from websockets.sync.client import connect

from attribution.engine import Engine
from pages.parts.gate import HEADERS

in_browser = pytest.mark.skipif(
    chromium_path() is None and "CI" not in os.environ, reason="no Chromium here"
)


@pytest.fixture(scope="module")
def engine(place: Tiny) -> Engine:
    return Engine(place.cache, place.workspace)


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    """The address of an OpenID provider, a process of its own, with four people."""
    words = [sys.executable, "-W", "ignore", "-m", "oidc_provider_mock"]
    for one in (ANN, BOB, EVE, STRANGER):
        claims = {"sub": one, "email": one, "email_verified": True, "name": one.partition("@")[0]}
        words += ["--user-claims", json.dumps(claims)]
    with server([*words, "-p"], "/.well-known/openid-configuration") as address:
        yield address


class Elsewhere:
    """What is asked of servers elsewhere: a proxy that answers nobody and notes who came."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.came = 0
        threading.Thread(target=self.listen, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def listen(self) -> None:
        while True:
            try:
                asking, _ = self.socket.accept()
            except OSError:
                return
            self.came += 1
            asking.close()


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Elsewhere]:
    proxy = Elsewhere()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            patch.setenv(name, proxy.address)
        patch.setenv("no_proxy", "localhost,127.0.0.1")
        yield proxy
    proxy.socket.close()


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the server printed."""
    return tmp_path_factory.mktemp("said") / "out.txt"


@pytest.fixture(scope="module")
def url(
    place: Tiny, provider: str, elsewhere: Elsewhere, said: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:  # fmt: skip
    folder = tmp_path_factory.mktemp("secrets")
    (folder / ".streamlit").mkdir()
    auth = AUTH | {
        "redirect_uri": "http://localhost:{port}/oauth2callback",
        "server_metadata_url": f"{provider}/.well-known/openid-configuration",
    }
    (folder / ".streamlit/secrets.toml").write_text(toml(auth=auth, roles=ROLES))
    with app_server(place.cache, place.workspace, folder, said_at=said) as address:
        yield address


def asked(url: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    """Status and body of what a server answers."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = b"" if method in ("PUT", "POST") else None
    request = urllib.request.Request(url, method=method, headers=named, data=body)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def logged_in(url: str, email: str) -> dict[str, str]:
    return cookies(user(email), origin=url)


def test_pictures_points_and_evidence_are_for_those_who_may_look(
    mapped: Tiny, url: str, place: Tiny
) -> None:
    paths = [
        f"/thumb/{place.build}/train/0.png",
        f"/seen/{place.build}/test/0.png",
        f"/points/{place.build}/any.bin",
        f"/evidence/{place.build}/0.json",
        f"/reach/{place.build}/0/drop",
    ]
    for path in paths:
        assert asked(url + path) == (401, b"Log in first."), path
        assert asked(url + path, cookie=header(logged_in(url, STRANGER)))[0] == 403, path
        assert asked(url + path, cookie=header(logged_in(url, EVE)))[0] == 200, path


@pytest.mark.parametrize(
    "path", ["/media/0.png", "/_stcore/metrics", "/_stcore/agent/openapi.json", "/other"]
)
def test_the_rest_of_the_server_is_closed(url: str, path: str) -> None:
    assert asked(url + path)[0] == 401


@pytest.mark.parametrize("path", ["/", "/review", "/_stcore/health", "/_stcore/host-config"])
def test_the_page_that_logs_in_is_open_and_bears_the_headers(url: str, path: str) -> None:
    with urllib.request.urlopen(url + path) as answer:
        for name, value in HEADERS.items():
            assert answer.headers[name] == value


def test_an_upload_needs_the_token_of_the_page(url: str) -> None:
    token = generate_xsrf_token_string()
    path = f"{url}/_stcore/upload_file/session/file"
    mine = {**logged_in(url, ANN), "_streamlit_xsrf": token}
    assert asked(path, "PUT", X_Xsrftoken=token)[0] == 401
    assert asked(path, "PUT", cookie=header(mine))[0] == 403
    other = generate_xsrf_token_string()
    assert asked(path, "PUT", cookie=header(mine), X_Xsrftoken=other)[0] == 403
    foreign = {"X_Xsrftoken": token, "origin": "https://example.org"}
    assert asked(path, "PUT", cookie=header(mine), **foreign)[0] == 403
    # With it, Streamlit goes on and finds that there is no such session.
    status, words = asked(path, "PUT", cookie=header(mine), X_Xsrftoken=token)
    assert status == 400 and b"session" in words


def test_an_upload_is_bounded_in_size(url: str) -> None:
    token = generate_xsrf_token_string()
    mine = logged_in(url, ANN)
    sent = {"cookie": header({**mine, "_streamlit_xsrf": token}), "X_Xsrftoken": token}
    with heard(url, mine, token) as (session, _):
        path = f"{url}/_stcore/upload_file/{session}/file"
        assert asked(path, "PUT", content_length=str(10**9), **sent)[0] == 413


@contextmanager
def heard(
    url: str, made: dict[str, str], token: str = "", page: str = ""
) -> Iterator[tuple[str, list[ForwardMsg]]]:
    """A session with these cookies: its id, and all that its websocket brought of one run."""
    token = token or generate_xsrf_token_string()
    sent = {"Cookie": header({**made, "_streamlit_xsrf": token}), "Origin": url}
    said: Any = ["streamlit", token]
    address = f"{url.replace('http', 'ws')}/_stcore/stream"
    found: list[ForwardMsg] = []
    with connect(
        address,
        additional_headers=sent,
        subprotocols=said,
        max_size=None,
        proxy=None,
        open_timeout=PATIENCE,
    ) as stream:
        wanted = BackMsg()
        wanted.rerun_script.page_name = page
        stream.send(wanted.SerializeToString())
        while not found or found[-1].WhichOneof("type") != "script_finished":
            found.append(ForwardMsg.FromString(stream.recv(timeout=PATIENCE)))
        first = next(m for m in found if m.HasField("new_session"))
        yield first.new_session.initialize.session_id, found


@pytest.mark.parametrize("page", ["", "review", "explain"])
def test_a_websocket_without_a_login_brings_the_door_only(url: str, page: str) -> None:
    def elements(email: str) -> list[str | None]:
        with heard(url, logged_in(url, email) if email else {}, page=page) as (_, found):
            return [m.delta.new_element.WhichOneof("type") for m in found if m.HasField("delta")]

    for email in ("", STRANGER):
        kinds = elements(email)
        assert "bidi_component" not in kinds and "arrow_data_frame" not in kinds
        assert kinds.count("button") == 1
    assert "bidi_component" in elements(EVE)


def test_nothing_is_asked_of_a_server_elsewhere(url: str, elsewhere: Elsewhere) -> None:
    before = elsewhere.came
    for origin in ("https://example.org", "http://[::1]:8501", "null", url):
        asked(f"{url}/_stcore/health", origin=origin)
        asked(f"{url}/_stcore/upload_file/a/b", "OPTIONS", origin=origin)
        upgrade = {"connection": "Upgrade", "upgrade": "websocket", "sec_websocket_version": "13"}
        key = {"sec_websocket_key": "MDEyMzQ1Njc4OWFiY2RlZg=="}
        if origin != url:
            assert asked(f"{url}/_stcore/stream", origin=origin, **upgrade, **key)[0] == 403
    assert elsewhere.came == before == 0
    assert net_util._make_blocking_http_get("http://checkip.invalid", timeout=60) is None
    assert elsewhere.came == 1  # so it would have been seen


@pytest.fixture(scope="module")
def context(browser: Browser) -> Iterator[BrowserContext]:
    """One browser for all, so that Streamlit's files are fetched once; who leaves is forgotten."""
    opened = browser.new_context(viewport={"width": 1280, "height": 900})
    opened.route(re.compile("cdn.jsdelivr.net"), lambda route: route.abort())  # the provider's
    opened.add_init_script(
        "window.broken = [];"
        "document.addEventListener('securitypolicyviolation', (event) => "
        "window.broken.push(event.violatedDirective + ' ' + event.blockedURI))"
    )
    yield opened
    opened.close()


@pytest.fixture
def page(context: BrowserContext, url: str) -> Iterator[Page]:
    """The app as somebody finds it who is not logged in; nothing in it may break."""
    opened = context.new_page()
    said: list[str] = []
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.goto(url)
    yield opened
    broken = opened.evaluate("window.broken")
    opened.close()
    context.clear_cookies()
    assert said == [] and broken == []


def log_in(page: Page, url: str, email: str) -> None:
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("button", name=email).click()
    page.wait_for_url(f"{url}/")


def ready(page: Page) -> None:
    """The deck has its images, and keys."""
    page.get_by_role("listbox", name=re.compile("^Images to review")).locator(".tile").first.click()
    page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]")


@in_browser
def test_who_looks_sees_all_and_changes_nothing(
    page: Page, url: str, engine: Engine, place: Tiny
) -> None:
    build = engine.open(place.build)
    page.goto(f"{url}/review")
    expect(page.get_by_role("heading", name="Probable Cause")).to_be_visible()
    expect(page.get_by_role("heading", name="Review")).to_have_count(0)
    log_in(page, url, EVE)
    page.get_by_role("link", name="Review").click()
    expect(page.get_by_label("You", exact=True)).to_have_value(EVE)
    ready(page)
    for key in ("x", "Enter", "u"):
        page.keyboard.press(key)
        expect(page.get_by_text("you may not decide on labels")).to_be_visible()
    expect(page.locator(".mark.dropped, .mark.relabelled")).to_have_count(0)
    assert not engine.decisions.history(build.data_id)
    page.get_by_role("link", name="Builds").click()
    expect(page.get_by_text("you may not start, cancel, name and delete")).to_be_visible()
    expect(page.get_by_role("button", name="Start build")).to_have_count(0)


@in_browser
def test_who_reviews_signs_with_the_address_and_logs_out(
    page: Page, url: str, engine: Engine, place: Tiny
) -> None:
    build = engine.open(place.build)
    log_in(page, url, BOB)
    page.get_by_role("link", name="Review").click()
    ready(page)
    page.keyboard.press("x")
    expect(page.get_by_text("1 dropped")).to_be_visible()
    assert [one.reviewer for one in engine.decisions.history(build.data_id)] == [BOB]
    page.get_by_role("link", name="Account").click()
    expect(page.get_by_text(f"logged in as {BOB}")).to_be_visible()
    expect(page.get_by_text("You may not start, cancel")).to_be_visible()
    picture = f"{url}/thumb/{build.id}/train/0.png"
    assert page.request.get(picture).status == 200
    page.get_by_role("button", name="Log out").click()
    page.get_by_role("button", name="End session").click()  # the provider's
    expect(page.get_by_role("button", name="Log in")).to_be_visible()
    assert page.request.get(picture).status == 401


@in_browser
def test_who_builds_opens_every_page_within_the_policy(page: Page, url: str) -> None:
    log_in(page, url, ANN)
    titles = {"Overview": "Probable Cause", "Try an image": "Try an image"}
    names = ("Explain", "Patterns", "Map", "Review", "Before & after", "Compare", "Account")
    for name in (*titles, *names):
        page.get_by_role("link", name=name, exact=True).click()
        title = titles.get(name, name)
        expect(page.get_by_role("heading", name=title, exact=True, level=1)).to_be_visible()
    page.get_by_role("link", name="Builds").click()
    expect(page.get_by_role("button", name="Start build")).to_be_visible()
    page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]")
    assert page.evaluate("window.broken") == []
    page.evaluate("fetch('https://example.org').catch(() => 0)")
    page.evaluate("document.head.append(Object.assign(document.createElement('script'), "
                  "{textContent: 'window.ran = 1'}))")  # fmt: skip
    for _ in range(1200):  # the policy lets no condition be given to the page as text
        broken = page.evaluate("window.broken")
        if len(broken) >= 2:
            break
        page.wait_for_timeout(100)
    assert len(broken) == 2 and page.evaluate("window.ran") is None
    page.evaluate("window.broken = []")


@in_browser
def test_a_stranger_is_told_so(page: Page, url: str) -> None:
    log_in(page, url, STRANGER)
    expect(page.get_by_text("nobody gave this address a role here")).to_be_visible()
    expect(page.get_by_role("link", name="Review")).to_have_count(0)


@in_browser
def test_a_login_that_fails_puts_no_secret_into_a_log(
    page: Page, url: str, place: Tiny, said: Path
) -> None:
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("button", name="Authorize").wait_for()
    state = re.search(r"state=([^&]+)", page.url)
    assert state is not None
    page.goto(f"{url}/oauth2callback?code=not-one-of-yours&state={state[1]}")
    expect(page.get_by_role("button", name="Log in")).to_be_visible()
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("button", name="Deny").click()
    expect(page.get_by_role("button", name="Log in")).to_be_visible()
    words = said.read_text()
    assert "token exchange failed" in words and "access_denied" in words
    logs = [*place.cache.rglob("*.log"), *place.workspace.rglob("*.log")]
    for text in (words, *(log.read_text() for log in logs)):
        for secret in (CLIENT_SECRET, SECRET):
            assert secret not in text
