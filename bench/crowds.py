"""Fifty sessions and two browsers at once: errors, seconds of a click, memory, and a build beside.

Sessions at protocol level (`visitor.py`), each a click every 10 s: a test image on Explain, where
the engine's own answer has to come, decisions on Review under a name of their own, other pages. Two
Chromium click too. After --minutes (10) a build is started beside, for 15 % as long. The demo's
build is made, or found, in --cache; all of it happens on a copy.
"""

import asyncio
import json
import os
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from attribution.build import Build
from attribution.decisions import Decisions
from attribution.engine import Engine

from .click import SCRIPT, browser_path
from .rows import Options, Row, row
from .running import DEMO, VIEW, command, server
from .visitor import PATIENCE, Visitor, visiting

SESSIONS = 50
BROWSERS = 2
EVERY = 10.0  # seconds from a session's click to its next
MINUTES = 10.0
BESIDE = 0.15  # of the minutes, with a build beside
SETTLED = 2.0  # minutes until memory is looked at; of a short run, a fifth
SAMPLE = 5.0  # seconds between two looks at it
STEPS, NEAR = 6, 6  # it is told so many times more, each the mean of so many looks
HITS = 12  # of each kind, as the page Explain shows them
OTHERS = ("overview", "groups", "map", "try_image", "changes", "compare", "builds")
PICK, DECIDE, OPEN = KINDS = ("a test image on Explain", "a decision on Review", "a page")
ROUND = ("explain", *[PICK] * 5, "review", *[DECIDE] * 4, OPEN)  # what a session does in turn
ALONE, BUILDING = "", ", a build beside"


@dataclass
class Told:
    """What all clients saw. Errors are by what they say."""

    phase: str = ALONE
    over: float = float("inf")  # when the last click may begin, of `time.monotonic`
    clicks: list[tuple[str, str, float]] = field(default_factory=list)  # phase, kind, seconds
    browsers: list[tuple[str, float]] = field(default_factory=list)  # phase, milliseconds
    decided: int = 0
    errors: list[str] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)  # minutes, MB
    busy: dict[str, float] = field(default_factory=dict)  # seconds of processor by phase


def measure(options: Options) -> list[Row]:
    browser_path()
    minutes = options.minutes or MINUTES
    with tempfile.TemporaryDirectory() as folder:
        kept = options.cache or Path(folder) / "kept"
        made = json.loads(command(kept, options.threads, "build", *DEMO))
        cache, workspace = Path(folder) / "cache", Path(folder) / "workspace"
        shutil.copytree(kept, cache, ignore=shutil.ignore_patterns("jobs", "logs"))
        workspace.mkdir()
        build = Engine(cache, workspace).open(made["build"])
        with server(cache, workspace) as (address, process):
            told, beside = asyncio.run(crowd(address, process, build, cache, minutes))
        log = cache / "logs" / "app.log"
        if log.exists():
            told.errors.append(log.read_text()[-2000:])
        found = len(Decisions(workspace / "decisions.sqlite").history(build.data_id))
        return rows(told, minutes, found, beside)


async def crowd(
    address: str, process: int, build: Build, cache: Path, minutes: float
) -> tuple[Told, list[float]]:
    """Let everybody in, and after `minutes` start builds; what was seen, and builds' progress."""
    told = Told()
    began = time.monotonic()
    visits = [visit(address, n, build, told) for n in range(SESSIONS)]
    visits += [look(address, n, build, told) for n in range(BROWSERS)]
    tasks = [asyncio.create_task(one) for one in visits]
    watching = asyncio.create_task(weigh(process, told, began))
    busy = processor(process)
    await asyncio.sleep(60 * minutes)
    told.busy[ALONE] = processor(process) - busy
    watching.cancel()
    told.phase, busy = BUILDING, processor(process)
    beside = await build_beside(Engine(cache), 60 * minutes * BESIDE)
    told.busy[BUILDING] = processor(process) - busy
    told.over = time.monotonic()
    await asyncio.wait(tasks, timeout=PATIENCE + EVERY)
    for task in tasks:
        if not task.done():
            told.errors.append("a client did not come to its end")
            task.cancel()
        elif task.exception():
            told.errors.append(repr(task.exception()))
    return told, beside


async def visit(address: str, number: int, build: Build, told: Told) -> None:
    """One session: it comes in its turn and does one thing after the other."""
    draw = random.Random(number)
    await asyncio.sleep(EVERY * number / SESSIONS)
    async with visiting(address, f"Reviewer {number}") as visitor:
        step = len(ROUND) // 2 * (number % 2)  # half of them begin with Review
        while time.monotonic() < told.over:
            began = time.monotonic()
            what, phase = ROUND[step % len(ROUND)], told.phase
            if what == PICK:
                seconds = await pick(visitor, draw, build, told)
            elif what == DECIDE:
                seconds = await decide(visitor, draw, build, told)
            else:
                page = draw.choice(OTHERS) if what == OPEN else what
                seconds = await visitor.open(page)
                what = OPEN
            told.clicks.append((phase, what, seconds))
            told.errors += [f"session {number}: {error}" for error in visitor.errors]
            visitor.errors.clear()
            step += 1
            await asyncio.sleep(max(0.0, EVERY - (time.monotonic() - began)))


async def pick(visitor: Visitor, draw: random.Random, build: Build, told: Told) -> float:
    """Choose another test image; what comes has to be the answer about that one."""
    tests = visitor.elements["tests"].data
    test_id = draw.choice([i["id"] for i in tests["groups"][0]["items"]])
    seconds = await visitor.act("tests", type="pick", id=test_id)
    shown = [i["id"] for g in visitor.elements["hits"].data["groups"] for i in g["items"]]
    if visitor.elements["subject"].data["id"] != test_id or shown != hits(build, test_id):
        told.errors.append(f"another answer than the one about test image {test_id}")
    return seconds


def hits(build: Build, test_id: int) -> list[int]:
    answer = build.query(test_id, HITS, "predicted")
    return [h.train_id for h in (*answer.proponents, *answer.opponents)]


async def decide(visitor: Visitor, draw: random.Random, build: Build, told: Told) -> float:
    """Decide on one of the images of the page, if it may be on one that others decided on."""
    deck = visitor.elements["deck"].data
    some = [i["id"] for i in deck["items"]]
    waiting = [i for i in some if str(i) not in deck["verdicts"]]
    one = draw.choice(waiting or some)
    verdict = draw.choice(("keep", "relabel", "drop"))
    label = draw.randrange(len(build.classes)) if verdict == "relabel" else None
    each = [{"id": one, "verdict": verdict, "label": label}]
    told.decided += 1
    seconds = await visitor.act("deck", type="decide", each=each, settle=False)
    if str(one) not in visitor.elements["deck"].data["verdicts"]:
        told.errors.append(f"no decision on training image {one}")
    return seconds


async def look(address: str, number: int, build: Build, told: Told) -> None:
    """A real browser, which chooses one test image after the other."""
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(
            executable_path=browser_path(), args=["--no-sandbox"]
        )
        page = await chromium.new_page(**VIEW)
        page.on("pageerror", lambda error: told.errors.append(f"browser {number}: {error}"))
        await page.add_init_script(SCRIPT)
        await page.goto(f"{address}/explain?build={build.id}")
        await page.wait_for_function("testIds().length > 1", timeout=1000 * PATIENCE)
        ids = (await page.evaluate("testIds()"))[1:]
        draw = random.Random(SESSIONS + number)
        test_id, before = ids[0], None
        await asyncio.sleep(EVERY * number / BROWSERS)
        while time.monotonic() < told.over:
            test_id, before = draw.choice([i for i in ids if i != before]), test_id
            phase, wanted = told.phase, hits(build, test_id)[:HITS]
            clicked: Any = page.evaluate("clickToHits", [test_id, wanted])
            try:
                took = await asyncio.wait_for(clicked, PATIENCE)
            except TimeoutError:
                told.errors.append(f"browser {number}: no answer within {PATIENCE:.0f} s")
                break
            told.browsers.append((phase, took))
            for words in await page.locator("[data-testid=stAlert]").all_inner_texts():
                told.errors.append(f"browser {number}: {words}")
            await asyncio.sleep(max(0.0, EVERY - took / 1000))
        await chromium.close()


async def weigh(process: int, told: Told, began: float) -> None:
    """Note the memory of the server now and again."""
    while True:
        told.memory.append(((time.monotonic() - began) / 60, resident(process)))
        await asyncio.sleep(SAMPLE)


async def build_beside(engine: Engine, seconds: float) -> list[float]:
    """Keep a build running as the app starts them; how long each took, the last one's till now."""
    over, seed, took = time.monotonic() + seconds, 0, []
    while time.monotonic() < over:
        seed += 1
        job_id, began = engine.start([*DEMO, "--seed", str(seed)]), time.monotonic()
        running = True
        while running and time.monotonic() < over:
            await asyncio.sleep(0.5)
            (job,) = (j for j in await asyncio.to_thread(engine.jobs) if j.id == job_id)
            running = job.state == "running"
        took.append(time.monotonic() - began)
        if running:
            engine.cancel(job_id)
        elif job.state != "done":
            raise RuntimeError(f"the build beside ended as {job.state}: {job.error}")
    return took


def resident(process: int) -> float:
    """MB of memory that a process has."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    return float("nan")


def processor(process: int) -> float:
    """Seconds of the processor that a process has used, by all its threads."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rows(told: Told, minutes: float, found: int, beside: list[float]) -> list[Row]:
    """What was seen, as rows; each kind of error once on standard error."""
    for words in dict.fromkeys(told.errors):
        print(f"{told.errors.count(words)} x {words}", file=sys.stderr)
    made = [
        row(f"errors and disconnects of {SESSIONS} sessions and {BROWSERS} browsers",
            len(told.errors), "", at_most=0),
        row(f"decisions of {told.decided} that are not in the log", told.decided - found, "",
            at_most=0),
    ]  # fmt: skip
    for phase, length in ((ALONE, minutes), (BUILDING, minutes * BESIDE)):
        took = {kind: [s for p, k, s in told.clicks if (p, k) == (phase, kind)] for kind in KINDS}
        every = [s for some in took.values() for s in some]
        made += spread(f"click to its end of {len(every)} in {length:g} min{phase}", every, 1.0)
        for kind, some in took.items():
            made += spread(f"of it {kind}, {len(some)}{phase}", some)
        seen = [ms / 1000 for p, ms in told.browsers if p == phase]
        made += spread(f"click to hits in the browsers, {len(seen)}{phase}", seen)
        made.append(row(f"processor of the server{phase}",
                        100 * told.busy[phase] / (60 * length), "% of one"))  # fmt: skip
    start = min(SETTLED, minutes / 5)
    memory_m2 = np.array([pair for pair in told.memory if pair[0] >= start])
    slope, _ = np.polyfit(memory_m2[:, 0], memory_m2[:, 1], 1)
    for at in np.linspace(start, minutes, STEPS + 1):
        near = np.abs(memory_m2[:, 0] - at).argsort(kind="stable")[:NEAR]
        held = float(memory_m2[near, 1].mean())
        made.append(row(f"memory of the server after {at:.3g} min", held, "MB"))
    made += [
        row("its slope between them", 60 * float(slope), "MB an hour"),
        row("builds beside, seconds of each", beside, "s"),
        row("load average of the machine at the end", os.getloadavg()[0], ""),
    ]
    return made


def spread(what: str, some: list[float], at_most: float | None = None) -> list[Row]:
    """Median, 95th percentile and slowest of some seconds."""
    if not some:
        return []
    middle, high, most = np.quantile(some, [0.5, 0.95, 1])
    return [
        row(f"{what}: median", float(middle), "s"),
        row(f"{what}: 95 %", float(high), "s", at_most=at_most),
        row(f"{what}: slowest", float(most), "s"),
    ]
