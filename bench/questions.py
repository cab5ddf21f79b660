"""Hostile questions to a build: files of decisions, addresses, pages."""

import copy
import csv
import json
import os
import re
from collections.abc import Sequence
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

from hypothesis import strategies as st

from attribution.build import Build
from attribution.decisions import Decisions
from attribution.engine import Engine
from attribution.export import FORMATS, exported
from attribution.imports import IMPORTS, entries_of, made, planned
from attribution.records import Decision, UserError, Verdict

from .inputs import (
    Case,
    json_text,
    json_value,
    one_file,
    text,
    whole,
)
from .mutation import LONE, mutations
from .rows import ROOT
from .running import command

# --- a build: imports of decisions, addresses, pages ---

PAGES = tuple(sorted(p.stem for p in (ROOT / "pages").glob("[a-z]*.py")))
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
SOME = 40  # training examples that imports are about
HINTS = {
    "show": ("wrong", "right", "all", "doubtful label"), "target": ("label", "predicted", "3"),
    "leave": ("strongest for", "strongest against", "my own choice"), "count": ("1", "500"),
    "view": ("fidelity", "side by side", "agreement", "advice"), "picked": ("0,3-9", "7,8"),
    "pattern": ("a confusion", "a selection", "one class rather than another", "hubs"),
    "which": ("queue", "decided", "unsure", "conflicts"), "by": ("influence", "suspicion"),
    "confidence": ("0,100", "20,80"), "map_only": ("wrong predictions", "everything"),
    "group_asked": ("called so", "labelled so"), "side": ("proponents", "opponents"),
}  # fmt: skip
ADDRESSES = (
    "/thumb/{}/{}/{}.png", "/seen/{}/{}/{}.png", "/thumb/{}", "/evidence/{}/{}.json",
    "/points/{}/{}.bin", "/reach/{}/{}/{}", "/{}", "/_stcore/{}", "/auth/{}",
)  # fmt: skip


class Demo:
    """A small build and what stands around it, made when it is first asked for."""

    def __init__(self, place: Path, threads: int) -> None:
        self.cache, self.workspace, self.threads = place / "cache", place, threads

    @cached_property
    def build(self) -> str:
        """The id of a build that has a map, with another beside it."""
        small = ("--noise", "0.1", "--models", "2", "--epochs", "3", "--dims", "8x4")
        made = json.loads(command(self.cache, self.threads, "build", *small, "--masks", "2"))
        command(self.cache, self.threads, "map", made["build"])
        command(self.cache, self.threads, "build", *small, "--strategy", "naive")
        return made["build"]

    @cached_property
    def some(self) -> Build:
        """The build of its first examples only, to be quick."""
        whole = Engine(self.cache, self.workspace).open(self.build)
        found, frame = copy.copy(whole), whole.mislabels()
        found.mislabels = lambda by="": frame[frame.index < SOME]  # type: ignore
        found.train_ids = whole.train_ids[:SOME]
        found.train_labels_N = whole.train_labels_N[:SOME]
        return found

    def import_decisions(self, place: Path, work: Path) -> None:
        """Bring a file of decisions, then export what became of it in every format."""
        (path,) = place.iterdir()
        form, build, log = path.suffix[1:], self.some, Decisions(work / "decisions.sqlite")
        entries = entries_of(path.read_bytes(), path.name, form)
        plan = planned(build, log, entries, path.name, form)
        for sentence in plan.told.sentences():
            assert len(sentence) < 2000 and not CONTROL.search(sentence), sentence
        made(build, log, plan)
        for name in FORMATS:
            exported(build, log.in_force(build.data_id), name)

    @cached_property
    def client(self) -> Any:
        from starlette.applications import Starlette
        from starlette.testclient import TestClient

        from pages.parts import behind, points, reach, thumbs
        from pages.parts.gate import Gate

        self.serve(self.workspace)
        routes = [*thumbs.ROUTES, *behind.ROUTES, *points.ROUTES, *reach.ROUTES]
        return TestClient(Gate(Starlette(routes=routes), PAGES), "http://localhost")

    def serve(self, workspace: Path) -> None:
        """Tell the pages where they find things."""
        from pages.parts import opened

        os.environ[opened.CACHE], os.environ[opened.WORKSPACE] = str(self.cache), str(workspace)

    def ask(self, place: Path, work: Path) -> None:
        """Ask the app's own routes, behind the gate."""
        asked = json.loads((place / "request").read_bytes())
        answer = self.client.request(asked["method"], asked["path"], headers=asked["headers"])
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400:
            raise UserError(found=answer.text[:200], wanted="an address", next_step="use one")

    def visit(self, place: Path, work: Path) -> None:
        """Open a page under an address as a browser does.

        AppTest runs a page's file by itself; what `app.py` would show as a notice is raised here.
        """
        from streamlit.testing.v1 import AppTest

        asked = json.loads((place / "request").read_bytes())
        self.serve(work)
        app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=120)
        for key, value in asked["query"].items():
            app.query_params[key] = value
        app.switch_page(f"pages/{asked['page']}.py").run()
        for one in app.exception:
            assert one.proto.type.endswith("UserError"), one
            raise UserError(found=one.message, wanted="another address", next_step="use one")
        assert not app.error, app.error
        for notice in app.warning:
            assert len(notice.value) < 7000 and "Traceback" not in notice.value, notice.value


def decisions(demo: Demo) -> st.SearchStrategy[Case]:
    """Files of every format that can be read back."""
    build, kinds = demo.some, []
    ids, names = list(build.train_ids), list(build.classes)
    stand = {
        one: Decision(
            seq=n, data_id=build.data_id, example_id=one, verdict=VERDICTS[n % 4],
            label=n % 10 if VERDICTS[n % 4] == "relabel" else None, reviewer="=Anna\n",
            time="2026-11-25T10:00:00+00:00", build_id=build.id, evidence="{}",
        )
        for n, one in enumerate(ids[::2])
    }  # fmt: skip
    for form in IMPORTS:
        whole = exported(build, stand, form)
        valid = [whole] if isinstance(whole, bytes) else [bytes(c) for _, c in whole]
        kinds += [one_file(f"file.{form}", mutations(valid))]
    example = st.one_of(st.sampled_from(ids), text)
    verdict = st.one_of(st.sampled_from((*VERDICTS, "Keep ", "")), text)
    label = st.one_of(st.sampled_from(names), text)
    row = st.tuples(example, verdict, label, text, text)

    def written(rows: Sequence[tuple[str, ...]]) -> bytes:
        out = StringIO(newline="")
        table = csv.writer(out)
        table.writerow(("example_id", "decision", "new_label", "reviewer", "decided_at"))
        table.writerows(rows)
        return out.getvalue().encode("utf-8", "replace")

    kinds.append(one_file("file.csv", st.lists(row, max_size=12).map(written)))
    odd = st.one_of(json_value, text, st.sampled_from(LONE))
    choices = st.one_of(st.lists(st.one_of(label, odd), max_size=3), odd)
    result = st.fixed_dictionaries(
        {"from_name": st.one_of(st.sampled_from(("label", "drop")), odd),
         "value": st.one_of(st.fixed_dictionaries({"choices": choices}), odd)}
    )  # fmt: skip
    annotation = st.fixed_dictionaries(
        {"result": st.one_of(st.lists(st.one_of(result, odd), max_size=3), odd)},
        optional={"completed_by": odd, "updated_at": odd, "was_cancelled": odd},
    )
    data = st.fixed_dictionaries(
        {"example_id": st.one_of(example, odd)}, optional={"reviewer": odd}
    )
    task = st.fixed_dictionaries(
        {"data": st.one_of(data, data, odd)},
        optional={"id": odd, "annotations": st.one_of(st.lists(annotation, max_size=3), odd)},
    )
    tasks = st.lists(st.one_of(task, task, odd), max_size=6).map(lambda t: json.dumps(t).encode())
    deep = st.builds(lambda value, n: deepened(ids[0], value, n), st.booleans(),
                     st.integers(900, 1000))  # fmt: skip
    kinds += [one_file("file.label-studio", one) for one in (tasks, tasks, json_text, deep)]
    return st.one_of(kinds)


def deepened(example: str, user: bool, depth: int) -> bytes:
    """A task with a value of so many lists in each other."""
    deep = "[" * depth + "]" * depth
    mine = f'"completed_by": {{"id": {deep}}}' if user else f'"updated_at": {deep}'
    return f'[{{"data": {{"example_id": "{example}"}}, "annotations": [{{{mine}}}]}}]'.encode()


def addresses(demo: Demo) -> st.SearchStrategy[Case]:
    """Requests to our own routes."""
    part = st.one_of(
        st.sampled_from((demo.build, "train", "test", "0", "3", "drop", "99999")), text
    )
    path = st.builds(
        lambda form, parts: form.format(*(quote(p[:6000].encode("utf-8", "replace"), safe="")
                                          for p in parts)),
        st.sampled_from(ADDRESSES), st.lists(part, min_size=3, max_size=3),
    )  # fmt: skip
    likely = st.builds(lambda form, a, b: form.format(demo.build, a, b),
                       st.sampled_from(("/thumb/{}/{}/{}.png", "/seen/{}/{}/{}.png")),
                       st.sampled_from(("train", "test")), whole)  # fmt: skip
    line = text.map(lambda one: re.sub(r"[^\x20-\x7e]", "?", one)[:200])
    headers = st.dictionaries(
        st.sampled_from(("host", "origin", "cookie", "sec-fetch-site", "sec-fetch-mode", "range",
                         "if-none-match", "accept-encoding", "x-forwarded-host")), line, max_size=2,
    )  # fmt: skip
    method = st.sampled_from(("GET",) * 6 + ("HEAD", "POST", "PUT", "OPTIONS", "DELETE"))
    request = st.fixed_dictionaries(
        {"method": method, "path": st.one_of(path, likely),
         "headers": st.one_of(st.just({}), st.just({}), headers)}
    )  # fmt: skip
    return request.map(lambda found: {"request": json.dumps(found).encode()})


def visits(demo: Demo) -> st.SearchStrategy[Case]:
    """Pages with anything in their addresses: every key that a page's code has."""
    value = st.one_of(
        text, st.sampled_from((demo.build, "0", "3", "17", "4499", "4500", "500", "true", "any")),
        st.sampled_from([one for some in HINTS.values() for one in some]),
        st.lists(text, max_size=3), whole.map(str),
    ).map(clean)  # fmt: skip

    def one(page: str, keys: list[str]) -> st.SearchStrategy[Case]:
        likely = {key: st.sampled_from(HINTS[key]) for key in keys if key in HINTS}
        values = {key: st.one_of(value, likely.get(key, value)) for key in keys}
        query = st.fixed_dictionaries({}, optional=values)
        return query.map(lambda q: {"request": json.dumps({"page": page, "query": q}).encode()})

    return st.one_of([one(page, keys) for page, keys in asked_of().items()])


def clean(value: str | list[str]) -> str | list[str]:
    """What a browser can send."""
    if isinstance(value, list):
        return [str(clean(one)) for one in value]
    return value.encode("utf-8", "replace").decode()


def asked_of() -> dict[str, list[str]]:
    """The keys that each page may find in its address, by its code and that of what pages share."""
    pattern = re.compile(r'key="(\w+)"|query_params(?:\.get\(|\.pop\(|\[)"(\w+)"')

    def keys(path: Path) -> set[str]:
        return {a or b for a, b in pattern.findall(path.read_text())}

    shared = set().union(*map(keys, sorted((ROOT / "pages/parts").glob("*.py"))))
    shared -= {key for key in shared if key.startswith(("to_", "clear"))}
    return {page: sorted(keys(ROOT / f"pages/{page}.py") | shared | {"build"}) for page in PAGES}
