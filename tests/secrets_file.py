"""A secrets file with a login, and cookies as Streamlit signs them, for tests of who gets in."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit import config
from streamlit.auth_util import set_cookie_with_chunks
from streamlit.web.server.starlette.starlette_app_utils import create_signed_value
from streamlit.web.server.starlette.starlette_server_config import USER_COOKIE_NAME

from pages.parts import access

ORIGIN = "http://localhost:8501"
SECRET = "cookie-secret-of-the-tests-0123456789abcdef"
CLIENT_SECRET = "client-secret-of-the-tests"
AUTH = {
    "redirect_uri": f"{ORIGIN}/oauth2callback",
    "cookie_secret": SECRET,
    "client_id": "probable-cause",
    "client_secret": CLIENT_SECRET,
    "server_metadata_url": "http://localhost:9400/.well-known/openid-configuration",
}
ROLES = {"build": ["ann@example.org"], "review": ["*@example.org"], "look": ["*@example.com"]}
ANN, BOB, EVE = "ann@example.org", "bob@example.org", "eve@example.com"  # build, review, look
STRANGER = "mallory@example.net"


def toml(**tables: dict[str, Any]) -> str:
    return "".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
        for name, table in tables.items()
    )


@contextmanager
def secrets(path: Path, text: str) -> Iterator[None]:
    """This process reads the file at `path`, with `text` in it, and no other."""
    path.write_text(text)
    before = config.get_option("secrets.files")
    config.set_option("secrets.files", [str(path)])
    forget()
    try:
        yield
    finally:
        config.set_option("secrets.files", before)
        forget()


def forget() -> None:
    st.secrets._reset()
    access.rules.cache_clear()


def user(email: str, **claims: Any) -> dict[str, Any]:
    """The claims of somebody who has logged in."""
    return {"is_logged_in": True, "email": email, "email_verified": True, **claims}


def cookies(claims: dict[str, Any], origin: str = ORIGIN, secret: str = SECRET) -> dict[str, str]:
    """What Streamlit gives a browser whose visitor has logged in, in chunks where it is long."""
    made: dict[str, str] = {}

    def signed(name: str, value: str) -> bytes:
        return create_signed_value(secret, name, value)

    def keep(name: str, value: str) -> None:
        made[name] = signed(name, value).decode()

    whole = {**claims, "origin": origin, "provider": "default"}
    set_cookie_with_chunks(keep, signed, USER_COOKIE_NAME, whole, cookie_attr_size=60)
    return made


def header(made: dict[str, str]) -> str:
    return "; ".join(f"{name}={value}" for name, value in made.items())
