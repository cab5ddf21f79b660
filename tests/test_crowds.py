"""Many sessions at once on a real server: each has its own answers, and what is kept has an end."""

import ast
import asyncio
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
from chromium import ROOT
from conftest import Tiny
from threadpoolctl import threadpool_info, threadpool_limits

import attribution.engine
from app import SETTINGS, one_thread_each
from attribution.build import Build
from attribution.decisions import Decisions
from attribution.engine import Engine
from attribution.records import UserError
from attribution.store import Store
from bench import visitor as bench_visitor
from bench.visitor import Visitor, visiting
from pages.parts.kept import Kept
from pages.parts.queued import GONE, REDRAWS, Watchers

SESSIONS = 6
HITS = 12  # of each kind on the page Explain
PATIENCE = 300  # seconds: a busy machine is slow, not wrong
# What is kept for as long as the process lives, once whoever comes and whatever they ask.
ONCE = {("opened.py", "_engine"), ("access.py", "rules")}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bench counts a slow answer as an error; here only a wrong one is."""
    monkeypatch.setattr(bench_visitor, "PATIENCE", PATIENCE)


def test_sessions_at_once_get_each_its_own_answer(url: str, place: Tiny) -> None:
    build = Engine(place.cache, place.workspace).open(place.build)

    async def one(visitor: Visitor, tests: list[int]) -> None:
        await visitor.open("explain")
        for test_id in tests:
            await visitor.act("tests", type="pick", id=test_id)
            answer = build.query(test_id, HITS, "predicted")
            groups = visitor.elements["hits"].data["groups"]
            assert visitor.elements["subject"].data["id"] == test_id
            assert [i["id"] for g in groups for i in g["items"]] == [
                h.train_id for h in (*answer.proponents, *answer.opponents)
            ]
        assert visitor.errors == []

    async def all_at_once() -> None:
        async with AsyncExitStack() as stack:
            some = [await stack.enter_async_context(visiting(url)) for _ in range(SESSIONS)]
            await asyncio.gather(*(one(v, [n, n + 50, n + 7]) for n, v in enumerate(some)))

    asyncio.run(all_at_once())


def test_reviewers_at_once_sign_each_their_own_and_see_the_others(url: str, place: Tiny) -> None:
    log = Decisions(place.workspace / "decisions.sqlite")
    build = Engine(place.cache, place.workspace).open(place.build)

    async def one(visitor: Visitor, number: int) -> tuple[int, str]:
        await visitor.open("review")
        deck = visitor.elements["deck"].data
        chosen = deck["items"][number]["id"]
        each = [{"id": chosen, "verdict": "keep", "label": None}]
        await visitor.act("deck", type="decide", each=each, settle=False)
        assert visitor.elements["deck"].data["reviewer"] == f"Reviewer {number}"
        return chosen, f"Reviewer {number}"

    async def all_at_once() -> list[tuple[int, str]]:
        async with AsyncExitStack() as stack:
            names = [f"Reviewer {n}" for n in range(SESSIONS)]
            some = [await stack.enter_async_context(visiting(url, name)) for name in names]
            done = await asyncio.gather(*(one(v, n) for n, v in enumerate(some)))
            wanted = {str(chosen) for chosen, _ in done}
            async with asyncio.timeout(PATIENCE):  # nobody does anything: the pages look themselves
                while any(set(v.elements["deck"].data["verdicts"]) != wanted for v in some):
                    await asyncio.sleep(0.1)
            assert [v.errors for v in some] == [[]] * SESSIONS
            return done

    made = asyncio.run(all_at_once())
    found = {(build.train_ids.index(d.example_id), d.reviewer) for d in log.history(build.data_id)}
    assert found == set(made) and len(made) == SESSIONS


def test_a_name_that_the_browser_remembers_signs_wherever_a_visit_begins(
    url: str, place: Tiny
) -> None:
    name, log = "Zoë; O'Neill=1 ", Decisions(place.workspace / "decisions.sqlite")
    build = Engine(place.cache, place.workspace).open(place.build)

    async def one() -> int:
        async with visiting(url, name) as visitor:
            await visitor.open("explain")
            hit = visitor.elements["hits"].data["groups"][0]["items"][0]["id"]
            await visitor.act("hits", type="decide", each=[{"id": hit, "verdict": "drop"}])
            assert visitor.errors == []
            return int(hit)

    example = build.train_ids[asyncio.run(one())]
    (last,) = [d for d in log.history(build.data_id) if d.example_id == example][-1:]
    assert (last.reviewer, last.verdict) == (name.strip(), "drop")


def test_an_act_that_a_tick_cuts_short_is_drawn_all_the_same(url: str) -> None:
    """Streamlit drops the run of a fragment when another one's timer comes meanwhile."""

    async def one(visitor: Visitor) -> None:
        await visitor.open("review")
        await visitor.tick()  # they all watch, so nobody is drawn for the others' sake so soon
        for item in visitor.elements["deck"].data["items"][:4]:
            each = [{"id": item["id"], "verdict": "drop", "label": None}]
            acting = asyncio.create_task(visitor.act("deck", type="decide", each=each))
            await asyncio.sleep(0.02)
            await visitor.tick()
            await acting
        assert visitor.errors == []

    async def all_at_once() -> None:
        async with AsyncExitStack() as stack:
            some = [await stack.enter_async_context(visiting(url)) for _ in range(SESSIONS)]
            await asyncio.gather(*map(one, some))

    asyncio.run(all_at_once())


def test_a_build_that_takes_long_to_open_is_opened_once_and_keeps_nobody_else_waiting(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on, count = threading.Event(), threading.Event(), []

    class Slow(Build):
        def __init__(self, *args) -> None:
            count.append(1)
            began.set()
            assert go_on.wait(PATIENCE)
            super().__init__(*args)

    monkeypatch.setattr(attribution.engine, "Build", Slow)
    engine = Engine(tiny.cache, tiny.workspace)
    with ThreadPoolExecutor(3) as pool:
        two = [pool.submit(engine.open, tiny.build) for _ in range(2)]
        assert began.wait(PATIENCE)
        other = pool.submit(engine.open, "0" * 12)
        try:
            with pytest.raises(UserError, match="no build"):
                other.result(PATIENCE / 4)
        finally:
            go_on.set()
        assert two[0].result(PATIENCE) is two[1].result(PATIENCE) is engine.open(tiny.build)
    assert len(count) == 1


def test_a_page_computes_on_its_own_thread() -> None:
    def counts() -> set[int]:
        return {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"}

    with threadpool_limits(2, "blas"):
        assert counts() == {2}
        one_thread_each()
        assert counts() == {1}


def test_no_page_is_read_as_a_syntax_tree_while_sessions_run() -> None:
    """Python 3.11 may fail to read two at once; Streamlit does it to show bare expressions."""
    assert SETTINGS["runner.magicEnabled"] is False
    for path in [ROOT / "app.py", *(ROOT / "pages").glob("*.py")]:
        body = ast.parse(path.read_text()).body[1:]  # the first is its docstring
        shown = [n for n in body if isinstance(n, ast.Expr) and not isinstance(n.value, ast.Call)]
        assert not shown, f"{path} would show nothing of {ast.unparse(shown[0])}"


def test_what_is_kept_is_bounded_whoever_asks_for_what() -> None:
    kept, made = Kept(1000), []

    def make(key: int) -> bytes:
        made.append(key)
        return bytes([key]) * (key + 1)

    def ask(seed: int) -> None:
        for key in random.Random(seed).choices(range(200), k=500):
            assert kept.get(key, lambda key=key: make(key)) == bytes([key]) * (key + 1)
            assert 0 <= kept.size <= 1000 + 8 * 200  # what others put in just now

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    assert kept.size <= 1000
    made.clear()
    for key in (1, 2, 1, 2):
        kept.get(key, lambda key=key: make(key))
    assert len(made) <= 2, "what was asked for last is kept"
    assert kept.get(3, lambda: bytes(2000)) == bytes(2000) and kept.size <= 1000


def test_pages_keep_nothing_without_a_bound() -> None:
    """Nor in a page itself, which every session runs anew: there it would be kept for each."""
    unbounded = set()
    for path in [ROOT / "app.py", *(ROOT / "pages").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                for how in map(ast.unparse, node.decorator_list):
                    bounded = "maxsize=" in how and "None" not in how or "max_entries=" in how
                    if "cache" in how and not (bounded and path.parent.name == "parts"):
                        unbounded.add((path.name, node.name))
    assert unbounded == ONCE


def test_who_watches_leaves_the_more_time_the_more_there_are() -> None:
    some, alone = Watchers(), Watchers().calm("Anna", 0.0)
    assert alone == 1 / REDRAWS
    for round_ in range(3):  # all of them look every two seconds
        calm = [some.calm(f"session {n}", 2.0 * round_ + n / 50) for n in range(50)]
    assert calm == [50 / REDRAWS] * 50  # so that together they draw `REDRAWS` a second
    assert some.calm("Anna", 6.0 + GONE) == alone  # the others have left


def test_threads_that_find_the_same_artifact_damaged_all_say_so(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = store.make("run", "0123456789ab", lambda draft: draft.bytes_of("a", b"1"), {})
    (made.place / "a").unlink()
    gate = threading.Barrier(4)

    def look(_: int) -> None:
        for _ in range(150):
            gate.wait(PATIENCE)
            assert not store.has("run", "0123456789ab")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(look, range(4)))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_server_answers_without_waiting_for_an_acknowledgement(url: str) -> None:
    """By uvloop, which switches Nagle's algorithm off for whatever socket it is given."""
    port = url.rpartition(":")[2].encode()
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # of a process that has just ended
            if {b"app", port} <= set(place.read_bytes().split(b"\0")):
                found.append(place.parent)
    assert len(found) == 1 and "uvloop" in (found[0] / "maps").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_app_listens_on_this_machine_only(url: str) -> None:
    """By the kernel's tables of sockets: 127.0.0.1 and ::1 as it writes them."""
    port = f":{int(url.rpartition(':')[2]):04X}"
    tables = [Path(f"/proc/net/{table}") for table in ("tcp", "tcp6")]
    rows = [  # a kernel without IPv6 has no table of it
        line.split() for t in tables if t.exists() for line in t.read_text().splitlines()[1:]
    ]
    listening = "0A"
    bound = {row[1] for row in rows if row[1].endswith(port) and row[3] == listening}
    assert bound and bound <= {"0100007F" + port, "00000000000000000000000001000000" + port}
