"""The app's pages under Streamlit's AppTest, for the tests of pages."""

import json
from pathlib import Path

import pytest
from conftest import Tiny
from streamlit.testing.v1 import AppTest

from pages.parts import opened

APP = str(Path(__file__).parents[1] / "app.py")
PATIENCE = 300  # seconds that a run may take: a busy machine is slow, not wrong


def at_place(place: Tiny, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    opened._engine.cache_clear()  # those of other tests keep their builds in memory
    monkeypatch.setenv(opened.CACHE, str(place.cache))
    monkeypatch.setenv(opened.WORKSPACE, str(place.workspace))
    return place


def page(name: str, **query: str) -> AppTest:
    """A page as a visitor with this address gets it."""
    app = AppTest.from_file(APP, default_timeout=PATIENCE)
    app.run()
    for key, value in query.items():
        app.query_params[key] = value
    return app if name == "overview" else app.switch_page(f"pages/{name}.py").run()


def element(app: AppTest, key: str) -> dict:
    """The data of one of our own elements."""
    found = [
        e.proto for e in app.get("bidi_component") if f"-{key}" in e.proto.id.rpartition("$$")[2]
    ]
    assert len(found) == 1, f"{key}: {[e.proto.id for e in app.get('bidi_component')]}"
    return json.loads(found[0].json)


def items(app: AppTest, key: str, group: int = 0) -> list[dict]:
    data = element(app, key)
    return data["groups"][group]["items"] if "groups" in data else data["items"]


def act(app: AppTest, key: str, *actions: dict) -> AppTest:
    """What the browser does: put numbered actions into the element's state, and rerun."""
    data = element(app, key)
    numbered = [{**a, "seq": data["ack"] + i + 1} for i, a in enumerate(actions)]
    queue = {"name": data["queue"], "epoch": data["epoch"], "actions": numbered}
    app.session_state[key] = {"queue": queue}
    return app.run()


def fine(app: AppTest) -> AppTest:
    assert not app.exception and not app.error, (app.exception, app.error)
    return app
