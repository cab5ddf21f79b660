"""Who may do what: the secrets file, roles, and that pages act only through `may`."""

import ast
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apptest import APP, PATIENCE, act, fine
from secrets_file import ANN, AUTH, BOB, EVE, ROLES, STRANGER, secrets, toml, user
from streamlit.testing.v1 import AppTest

import app as web
from attribution.build import Build
from attribution.engine import Engine
from attribution.jobs import began
from attribution.records import UserError
from pages.parts import access
from pages.parts.access import BUILD, LOOK, REVIEW, Role
from pages.parts.opened import AT_ONCE, launch

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "app.py", *sorted((ROOT / "pages").rglob("*.py"))]
# What may be asked of `engine()` by everybody who is let in; all else goes through `may`.
READING = {
    "accuracies", "askable", "blast", "builds", "changes", "check", "compared", "datasets",
    "flipping", "forecast", "has", "job_log", "jobs", "newest", "open", "remote", "removal",
    "revised", "revised_from", "revised_spec", "revision", "test_labels", "top", "truths", "tuned",
    "unused_uploads", "uploads", "variance", "verifications",
}  # fmt: skip
READING_LOG = {"in_force", "newest", "standing"}


@pytest.fixture
def login(tmp_path: Path) -> Iterator[None]:
    with secrets(tmp_path / "secrets.toml", toml(auth=AUTH, roles=ROLES)):
        yield


def visited(name: str, claims: dict[str, Any], **query: str) -> AppTest:
    """A page as somebody with these claims gets it."""
    app = AppTest.from_file(APP, default_timeout=PATIENCE)
    app.user = claims
    app.run()
    for key, value in query.items():
        app.query_params[key] = value
    return app if name == "overview" else app.switch_page(f"pages/{name}.py").run()


def told(app: AppTest) -> str:
    return " ".join(one.value for one in app.warning)


@pytest.mark.parametrize(
    ("claims", "role"),
    [
        (user(ANN), BUILD),
        (user("Ann@Example.ORG"), BUILD),
        (user(BOB), REVIEW),
        (user(EVE), LOOK),
        (user(STRANGER), Role.NOBODY),
        ({}, Role.NOBODY),
        ({"email": ANN, "email_verified": True}, Role.NOBODY),
        (user(ANN) | {"is_logged_in": "true"}, Role.NOBODY),
        (user(ANN) | {"is_logged_in": False}, Role.NOBODY),
        (user(ANN, email_verified=False), Role.NOBODY),
        (user(ANN, email_verified="false"), Role.NOBODY),
        (user(ANN, email_verified="true"), BUILD),
        (user(ANN, email_verified=None), Role.NOBODY),
        ({"is_logged_in": True, "email": ANN}, Role.NOBODY),
        ({"is_logged_in": True, "email_verified": True}, Role.NOBODY),
        (user("mallory@example.net@example.org"), Role.NOBODY),
        (user("mallory@example.net\n@example.org"), Role.NOBODY),
        (user("mallory@example.net @example.org"), Role.NOBODY),
        (user("@example.org"), Role.NOBODY),
        (user(["ann@example.org"]), Role.NOBODY),  # type: ignore[arg-type]
        (user("bob@example.org.example.net"), Role.NOBODY),
    ],
)
def test_the_highest_role_that_an_address_has_counts(claims: dict[str, Any], role: Role) -> None:
    assert access.rules_from({"auth": AUTH, "roles": ROLES}).role(claims) is role


def test_a_look_alike_is_not_the_same_address() -> None:
    rules = access.rules_from({"auth": AUTH, "roles": {"build": ["k@example.org"]}})
    assert rules.role(user("K@example.org")) is BUILD
    assert "\u212a".lower() == "k"  # the sign of Kelvin, which is a letter of its own
    assert rules.role(user("\u212a@example.org")) is Role.NOBODY


def test_addresses_that_nobody_verified_count_only_where_that_is_said() -> None:
    rules = access.rules_from({"auth": AUTH, "roles": {"build": [ANN], "unverified": True}})
    assert rules.role({"is_logged_in": True, "email": ANN}) is BUILD
    assert rules.role(user(ANN, email_verified=False)) is Role.NOBODY


@pytest.mark.parametrize("roles", [{}, {"build": []}, {"unverified": True}])
def test_without_roles_nobody_is_let_in(roles: dict[str, Any]) -> None:
    told = {"auth": AUTH, "roles": roles} if roles else {"auth": AUTH}
    assert access.rules_from(told).role(user(ANN)) is Role.NOBODY


def test_without_a_login_everybody_may_do_everything(tmp_path: Path) -> None:
    with secrets(tmp_path / "secrets.toml", '[other]\nname = "value"\n'):
        assert access.rules() is None
        assert access.role() is BUILD
        access.require(BUILD)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[auth\n", "cannot be read"),
        ("auth = 3\n", "auth is no table"),
        (toml(auth=AUTH | {"client_secret": ""}), "lacks client_secret"),
        (toml(auth={}), "lacks redirect_uri, cookie_secret, client_id"),
        (toml(auth=AUTH | {"cookie_secret": "guess me"}), "short cookie_secret"),
        (toml(auth=AUTH | {"redirect_uri": "http://localhost:8501/"}), "redirect_uri"),
        (toml(auth=AUTH | {"redirect_uri": "ftp://localhost/oauth2callback"}), "redirect_uri"),
        (toml(auth=AUTH | {"redirect_uri": "http://example.org/oauth2callback"}), "https"),
        (toml(auth=AUTH, roles={"admin": [ANN]}), "names admin"),
        (toml(auth=AUTH, roles={"build": ANN}), "lists"),
        (toml(auth=AUTH, roles={"build": [1]}), "lists"),
        (toml(auth=AUTH, roles={"unverified": "no"}), "true or false"),
        ("roles = 3\n" + toml(auth=AUTH), "a table of"),
    ],
)
def test_a_secrets_file_that_makes_no_sense_lets_nobody_in(
    text: str, words: str, tmp_path: Path
) -> None:
    with secrets(tmp_path / "secrets.toml", text):
        for ask in (access.rules, access.role, access.who, lambda: access.require(LOOK)):
            with pytest.raises(UserError, match=re.escape(words)) as refused:
                ask()
            for value in (AUTH["cookie_secret"], AUTH["client_secret"], "guess me"):
                assert value not in str(refused.value)


def test_a_secrets_file_that_may_not_be_read_lets_nobody_in(tmp_path: Path) -> None:
    with secrets(tmp_path / "secrets.toml", ""):
        (tmp_path / "secrets.toml").write_bytes(b"\xff\xfe[auth]")
        with pytest.raises(UserError, match="cannot be read"):
            access.rules()


def uses(tree: ast.AST, name: str) -> Iterator[list[ast.AST]]:
    """Each call of `name()` below what it is in, innermost first."""

    def walk(node: ast.AST, around: list[ast.AST]) -> Iterator[list[ast.AST]]:
        match node:
            case ast.Call(func=ast.Name(id=found)) if found == name:
                yield [*around[::-1]]
        for child in ast.iter_child_nodes(node):
            yield from walk(child, [*around, node])

    return walk(tree, [])


def reads(around: list[ast.AST]) -> bool:
    """Whether what is asked of an engine only reads."""
    match around:
        case [ast.Attribute(attr="decisions"), ast.Attribute(attr=name), *_]:
            return name in READING_LOG
        case [ast.Attribute(attr="decisions"), ast.Call(func=ast.Name(id=name)), *_]:
            return name in ("planned", "partial")
        case [ast.Attribute(attr=name), *_]:
            return name in READING
    return False


def test_pages_act_on_the_engine_only_through_may() -> None:
    asked = 0
    for path in PAGES:
        text = path.read_text("utf-8")
        for around in uses(ast.parse(text), "engine"):
            asked += 1
            inside = next(n for n in around if isinstance(n, ast.FunctionDef | ast.Module))
            if getattr(inside, "name", "") == "may":
                continue
            assert reads(around), f"{path.name}: {ast.unparse(around[1])}"
        if path.name != "opened.py":
            assert not re.search(r"\bEngine\(|_engine\b|import engine as|opened\.engine", text)
        assert not re.search(r"\.(store|lay_out|notes)\b", text), path.name
    assert asked > 60
    assert not (READING | READING_LOG) & {
        "start", "cancel", "say", "delete", "unpacked", "described", "estimate", "room", "revise",
        "build", "brought", "read", "truth", "evaluate", "evaluate_all", "study", "folds", "map",
        "brittleness", "verify", "tune", "decide", "decide_all", "undo", "redo",
    }  # fmt: skip


def test_the_check_of_pages_sees_what_acts() -> None:
    for acting in (
        'engine().start(["x"])', "engine().decisions.undo(a, b)", "made(b, engine().decisions, p)",
        "ours = engine()", "f(engine())", "engine().decisions",
    ):  # fmt: skip
        (around,) = uses(ast.parse(acting), "engine")
        assert not reads(around), acting


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("wanted", [LOOK, REVIEW, BUILD])
def test_each_role_may_do_what_those_before_it_may(
    role: Role, wanted: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "role", lambda: role)
    if role >= wanted:
        access.require(wanted)
    else:
        with pytest.raises(UserError, match=f"wanted the role {wanted.name.lower()}"):
            access.require(wanted)


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ({"is_logged_in": False}, ""),
        (user(STRANGER), "nobody gave this address a role"),
        (user(ANN, email_verified=False), "does not say that this address is verified"),
        ({"is_logged_in": True, "sub": "1"}, "no address"),
    ],
)
def test_who_is_not_let_in_sees_a_button_and_nothing_else(
    claims: dict[str, Any], words: str, login: None, engine: Engine
) -> None:
    app = AppTest.from_file(APP, default_timeout=PATIENCE)
    app.user = claims
    fine(app.run())
    assert [one.key for one in app.button] == ["log_out" if words else "log_in"]
    assert [one.value for one in app.title] == ["Probable Cause"]
    assert words in told(app)
    assert not app.get("bidi_component") and not app.dataframe and not app.get("imgs")


@pytest.mark.parametrize("name", ["explain", "review", "builds"])
def test_a_page_that_is_run_by_itself_shows_nothing_to_who_is_not_let_in(
    name: str, login: None, engine: Engine
) -> None:
    # AppTest runs a page's file without app.py, which a server of ours never does.
    app = visited(name, user(STRANGER))
    assert not app.get("bidi_component") and not app.dataframe and not app.get("imgs")
    assert all("you may not look" in one.message for one in app.exception)
    assert app.exception or "you may not" in told(app)


def test_who_looks_decides_nothing(login: None, engine: Engine, build: Build) -> None:
    app = visited("review", user(EVE))
    assert app.text_input(key="signed_as").disabled
    for action in (
        {"type": "decide", "id": 0, "verdict": "drop"},
        {"type": "undo"},
        {"type": "redo"},
    ):
        act(app, "deck", action)
        assert "you may not decide on labels" in told(fine(app))
    act(app, "deck", {"type": "reviewer", "name": "ann@example.org"})
    assert not engine.decisions.history(build.data_id)


def test_who_reviews_decides_under_the_address_of_the_login_and_builds_nothing(
    login: None, engine: Engine, build: Build
) -> None:
    app = visited("review", user("Bob@example.org", name="Ann"))
    act(app, "deck", {"type": "reviewer", "name": "ann@example.org"})
    act(app, "deck", {"type": "decide", "id": 0, "verdict": "drop"})
    assert not told(fine(app))
    assert [one.reviewer for one in engine.decisions.history(build.data_id)] == [BOB]
    app.session_state["managing"] = True
    app.switch_page("pages/builds.py").run()
    save = app.button(key=f"save_{build.id}")
    assert save.disabled and "may not start, cancel, name and delete builds" in save.help
    assert "name and delete builds" in told(visited("builds", user(BOB)))


def test_who_builds_may_do_everything(login: None, engine: Engine, build: Build) -> None:
    app = visited("builds", user(ANN))
    assert [one.value for one in app.subheader][:1] == ["New build"]
    assert noted(app, build, "mine") == "Saved."
    assert engine.notes.all()[build.id].name == "mine"


def noted(app: AppTest, build: Build, name: str) -> str:
    """What the page of builds says to whoever names a build."""
    app.session_state["managing"] = True
    app.switch_page("pages/builds.py").run()
    app.text_input(key=f"name_{build.id}").set_value(name)
    app.button(key=f"save_{build.id}").click().run()
    return told(app)


def test_the_account_says_who_you_are_and_what_you_may_do(login: None, engine: Engine) -> None:
    app = visited("account", user(BOB))
    words = " ".join(one.value for one in fine(app).markdown)
    assert f"logged in as `{BOB}`" in words
    assert "You may decide on labels" in words and "You may not start" in words


def test_only_so_many_jobs_are_started(engine: Engine, tmp_path: Path) -> None:
    started = [f"{one:012x}" for one in range(AT_ONCE)]
    try:
        for name in started:  # as jobs of this very process, which runs
            place = engine.cache / "jobs" / name
            place.mkdir(parents=True)
            process = {"pid": os.getpid(), "began": began(os.getpid())}
            (place / "process.json").write_text(json.dumps(process))
            (place / "request.json").write_text(json.dumps({"command": "build", "created": 0}))
        with pytest.raises(UserError, match=f"{AT_ONCE} jobs that are running"):
            launch(["--noise", "0.1"])
        assert sorted(p.name for p in (engine.cache / "jobs").iterdir()) == started
    finally:
        for name in started:
            for file in (engine.cache / "jobs" / name).iterdir():
                file.unlink()
            (engine.cache / "jobs" / name).rmdir()


@pytest.mark.parametrize("address", ["0.0.0.0", "192.0.2.1", "::", "example.org", ""])
def test_another_address_needs_a_login(address: str, tmp_path: Path) -> None:
    with secrets(tmp_path / "secrets.toml", ""):
        with pytest.raises(UserError, match="and no login; wanted a login"):
            web.serve(tmp_path / "cache", address=address)


def test_each_line_on_security_names_tests_that_exist() -> None:
    text = (ROOT / "docs/SECURITY.md").read_text("utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    threats = [line for line in lines if not line.startswith("| threat ")]
    assert len(threats) > 40
    for line in threats:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", line)
        assert named, line
        for file, name in named:
            assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text("utf-8"), (file, name)
