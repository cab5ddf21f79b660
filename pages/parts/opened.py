"""The engine that all pages share, and the build that a page shows."""

import os
import shlex
import threading
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import streamlit as st
from streamlit.delta_generator import DeltaGenerator
from streamlit.runtime.scriptrunner import get_script_run_ctx

from attribution.archives import own_name
from attribution.build import Build
from attribution.engine import Engine
from attribution.records import UserError
from attribution.remote import VARIABLE

from . import picked
from .access import BUILD, LOOK, Role, require
from .words import literal

DOUBT = 0.5  # a label that is wrong with a higher probability is called suspicious
CACHE, WORKSPACE = "PROBABLE_CAUSE_CACHE", "PROBABLE_CAUSE_WORKSPACE"
AT_ONCE = 4  # jobs that may run before a page starts no other
_starting = threading.Lock()


def places() -> tuple[Path, Path | None]:
    """(cache, workspace) as the environment gives them; workspace None means the cache's parent."""
    workspace = os.environ.get(WORKSPACE)
    return Path(os.environ.get(CACHE) or "cache"), Path(workspace) if workspace else None


def engine() -> Engine:
    """One engine a process: it is read by all sessions and by the thumbnail route.

    To read; whoever acts asks `may`. Raises UserError in the session of a visitor who may not look
    (what is asked over HTTP has passed the gate).
    """
    if get_script_run_ctx(suppress_warning=True) is not None:
        require(LOOK)
    return _engine(*places(), os.environ.get(VARIABLE, ""))


def may(role: Role) -> Engine:
    """The engine, to act on. Raises UserError for a visitor who may not do what `role` may."""
    require(role)
    return engine()


def locked(role: Role, **options: Any) -> dict[str, Any]:
    """A button's `options`; grey, and saying why, for a visitor who may not do what `role` may."""
    try:
        require(role)
    except UserError as error:
        return options | {"disabled": True, "help": str(error)}
    return options


def launch(options: list[str], *command: str) -> str:
    """Start a job as `Engine.start` does. Raises UserError for a visitor who may not, and where
    enough are running.
    """
    with _starting:
        ours = may(BUILD)
        busy = sum(job.state == "running" for job in ours.jobs())
        if busy >= AT_ONCE:
            raise UserError(
                found=f"{busy} jobs that are running",
                wanted=f"fewer than {AT_ONCE} before another is started",
                next_step="wait until one has ended, or cancel one on the page of builds",
            )
        return ours.start(options, *command)


@cache
def _engine(cache_dir: Path, workspace: Path | None, remote: str) -> Engine:
    return Engine(cache_dir, workspace, remote)


def build_or_stop(title: str, about: str) -> Build:
    """Draw the page's head and return the chosen build; without any, say how to get one and stop.

    The choice is in the URL and kept from page to page. Raises UserError when it is unknown.
    """
    words, choice = st.columns([5, 4], vertical_alignment="bottom")
    head(words, title, about)
    names = {one["build"]: build_name(one) for one in by_data(engine().builds())}
    if not names:
        no_builds()
        st.stop()
    kept = st.session_state.get("build")
    wanted = st.query_params.get("build") or (kept if kept in names else engine().newest())
    build = engine().open(wanted)  # refuses an unknown id before a widget could swallow it
    if len(names) > 1:
        with choice:
            wanted = st.selectbox(
                "Build", names, list(names).index(wanted), format_func=names.get, key="chosen"
            )
        build = engine().open(wanted)
    else:
        choice.caption(literal(names[wanted]), text_alignment="right")
    if st.query_params.get("build") != build.id:
        st.query_params["build"] = build.id
    st.session_state["build"] = build.id
    forget(build)
    return build


def forget(build: Build) -> None:
    """What was chosen on other images is no choice among these."""
    half, data = st.session_state.get("images", (build.test_half.id, build.data_id))
    st.session_state["images"] = build.test_half.id, build.data_id
    if half != build.test_half.id:
        st.session_state.update(test=None, target="predicted")
        st.query_params.pop("map_hidden", None)
        picked.forget("groups")
    if data != build.data_id:
        picked.forget("review")


def go(page: str) -> NoReturn:
    """Open another page, on the same build unless `go_build` names one.

    Said with the address it is to have: left to itself, Streamlit would clear the present one and
    refuse while a widget is bound to it.
    """
    kept = st.session_state.pop("go_build", "") or st.session_state.get("build")
    st.switch_page(f"pages/{page}.py", query_params={"build": kept} if kept else {})


def head(place: DeltaGenerator, title: str, about: str) -> None:
    """A page's title with one line on what it is for."""
    with place.container(gap=None):
        st.title(title, anchor=False)
        st.caption(about)


def by_data(summaries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Summaries, those of one data set side by side, the data of the newest build first."""
    order = list(dict.fromkeys(one["data"] for one in summaries))
    return sorted(summaries, key=lambda one: order.index(one["data"]))


def build_name(summary: dict[str, Any]) -> str:
    """What a person calls a build: its data, the name it was given, network and members."""
    noise = f" with {summary['noise']:.0%} wrong labels" if summary["noise"] else ""
    revised = ", revised" if summary["spec"]["data"].get("revision") else ""
    name = f"{summary['name']} · " if summary.get("name") else ""
    return (
        f"{own_name(summary['data'])}{noise}{revised} · {name}{summary['model']} · "
        f"{ensemble_name(summary)} · {summary['build'][:6]}"
    )


def ensemble_name(summary: dict[str, Any]) -> str:
    """What a person calls an ensemble among those on the same data and network."""
    relative = " relative" if summary["spec"]["estimator"]["relative"] else ""
    return f"{summary['ensemble']}, {summary['estimator']}{relative}"


def no_builds() -> None:
    """What to do in an empty cache."""
    with st.container(border=True):
        st.subheader("Nothing is built yet", anchor=False)
        st.write(
            "A build trains a few small networks on a data set and notes how each training "
            "image pulled on them. The demo has 5,000 handwritten digits, a tenth of its "
            "training labels wrong on purpose, and takes about three minutes."
        )
        if st.button("Build the demo", **locked(BUILD, type="primary", key="build_demo")):
            launch(["--noise", "0.1"])
            go("builds")
        st.caption("Or in a terminal:")
        st.code(command_line(["build", "--noise", "0.1"]), language="bash")
        st.caption("With images of your own, in a folder for each class:")
        st.code(command_line(["build", "--data", "FOLDER"]), language="bash")


def command_line(words: list[str]) -> str:
    """A command with its options, as a terminal takes it for this cache."""
    cache_dir, _ = places()
    if cache_dir.is_relative_to(Path.cwd()):
        cache_dir = cache_dir.relative_to(Path.cwd())
    where = [] if cache_dir == Path("cache") else ["--cache", str(cache_dir)]
    return shlex.join(["python", "-m", "attribution", *words, *where])


def whole(data: str) -> str:
    """A path from the root on, because the build starts in another folder; a name as it is."""
    try:
        path = Path(data).expanduser()
        return str(path.absolute()) if path.exists() else data
    except (OSError, RuntimeError, ValueError):
        return data


def thumb(build: Build, split: str, position: int) -> str:
    """The address of an image, as `app.py` serves it."""
    return f"/thumb/{build.id}/{split}/{position}.png"


def seen(build: Build, split: str, position: int) -> str:
    """The address of an image as the network sees it."""
    return f"/seen/{build.id}/{split}/{position}.png"
