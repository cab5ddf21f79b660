"""The web app: its navigation, its theme, and the server that `python -m attribution app` starts.

This one file is both the launcher and the script that Streamlit runs for each visitor.
"""

import ctypes
import gc
import logging
import os
import socket
import sys
import threading
from base64 import b64encode
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware
from streamlit import config
from streamlit.runtime.pages_manager import PagesManager
from streamlit.runtime.scriptrunner import get_script_run_ctx
from threadpoolctl import threadpool_limits

from attribution.archives import LIMITS
from attribution.records import UserError
from pages.parts import access
from pages.parts.behind import ROUTES as EVIDENCE
from pages.parts.door import door
from pages.parts.gate import Gate
from pages.parts.opened import CACHE, WORKSPACE, engine
from pages.parts.points import ROUTES as POINTS
from pages.parts.reach import ROUTES as REACH
from pages.parts.reviewer import REVIEWER
from pages.parts.thumbs import ROUTES
from pages.parts.trouble import show_trouble

LIGHT = {
    "primaryColor": "#3451b2",
    "backgroundColor": "#ffffff",
    "secondaryBackgroundColor": "#f4f5f8",
    "textColor": "#1c2024",
    "borderColor": "#dfe2e8",
    "blueColor": "#2563c9",
    "orangeColor": "#c2620a",
}
DARK = {
    "primaryColor": "#5870ee",
    "backgroundColor": "#111318",
    "secondaryBackgroundColor": "#1b1e26",
    "textColor": "#e8eaf0",
    "borderColor": "#2d323d",
    "blueColor": "#6ea8ff",
    "orangeColor": "#f59e4c",
}
ICON = str(Path(__file__).parent / "pages/parts/icon.png")
INLINE = f"data:image/png;base64,{b64encode(Path(ICON).read_bytes()).decode()}"
# Streamlit marks a link of the navigation that has the focus by a shade hardly to be seen.
FOCUS = "<style>header a:focus-visible { outline: 2px solid #5870ee; outline-offset: 1px }</style>"
SETTINGS = {
    "browser.gatherUsageStats": False,
    "runner.postScriptGC": False,
    # No page needs it, and Python 3.11 may fail to read two syntax trees in two threads.
    "runner.magicEnabled": False,
    "client.showErrorDetails": "none",
    "client.toolbarMode": "minimal",
    "server.fileWatcherType": "none",
    "server.maxUploadSize": LIMITS.packed // 10**6,  # MB, of the largest thing that a page takes
    "server.enableXsrfProtection": True,
    "server.enableCORS": True,
    "server.enableStaticServing": False,
    "server.enableAgentApi": False,
    "server.trustedUserHeaders": "{}",  # nobody is who a header says
    "theme.headingFontSizes": ["1.6rem", "1.3rem", "1.1rem"],
    "theme.headingFontWeights": [650, 600, 600],
    "theme.metricValueFontSize": "1.6rem",
    "theme.paddingTop": "0rem",
    **{f"theme.light.{name}": value for name, value in LIGHT.items()},
    **{f"theme.dark.{name}": value for name, value in DARK.items()},
}

PAGES = {
    "overview": "Overview",
    "explain": "Explain",
    "groups": "Patterns",
    "map": "Map",
    "try_image": "Try an image",
    "review": "Review",
    "changes": "Before & after",
    "compare": "Compare",
    "builds": "Builds",
}  # file and title, in order
ACCOUNT = {"account": "Account"}  # where people log in


def navigation() -> None:
    """Choose the page and run it, for whoever is let in."""
    inside = access.role() > access.Role.NOBODY
    # An image of our own: Streamlit would fetch a named icon from a server elsewhere. The file is
    # served to those who are let in, like every other.
    icon = ICON if inside else INLINE
    st.set_page_config(page_title="Probable Cause", page_icon=icon, layout="wide")
    st.logo(icon, size="large")
    st.html(FOCUS)
    shown = PAGES if access.rules() is None else PAGES | ACCOUNT
    pages = [
        st.Page(f"pages/{name}.py", title=title, default=name == "overview")
        for name, title in shown.items()
    ]
    page = st.navigation(pages, position="top" if inside else "hidden")
    try:
        if inside:
            page.run()
        else:
            door()
    except Exception as error:
        show_trouble(error)


def warm() -> None:
    """Open the newest build before the first visitor asks for it.

    What is loaded by then stays: frozen, it is not looked through by each garbage collection,
    which took a quarter of a second of many a click.
    """
    try:
        for summary in engine().builds()[:1]:
            build = engine().open(summary["build"])
            build.mislabels()
            build.query(0, 1)
            engine().decisions.standing(build.data_id)  # a long log is read once
    except Exception:  # a page that needs it will say what is wrong
        logging.getLogger("probable_cause").info("nothing to warm up", exc_info=True)
    gc.collect()
    gc.freeze()


def one_thread_each() -> None:
    """Let a session's arithmetic run on the thread that its page has.

    BLAS would start one for each core and have them wait for each other: an answer took eight times
    as long on two cores, and more with every session.
    """
    threadpool_limits(1, "blas")


def few_arenas() -> None:
    """Have all threads share two arenas of memory, where the C library is glibc.

    Each run of a page is a thread of its own, and glibc gives threads up to eight arenas a core, in
    each of which what was freed stays.
    """
    most_arenas = -8  # M_ARENA_MAX of malloc.h
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(most_arenas, 2)


@asynccontextmanager
async def lifespan(_: st.App):
    few_arenas()
    one_thread_each()
    threading.Thread(target=warm, daemon=True).start()
    yield


def serve(
    cache: Path,
    workspace: Path | None = None,
    port: int = 8501,
    browser: bool = True,
    reviewer: str = "",
    address: str = "localhost",
) -> None:
    """Serve the app until it is interrupted, and open a `browser` on it.

    On localhost, or, where people have to log in, on another `address`. Raises UserError when the
    port is taken, the address is not to be had, or the secrets file makes no sense.
    """
    config.set_option("server.port", port)  # the secrets file may leave it open
    known = access.rules()
    if known is None and address not in access.LOCAL:
        raise UserError(
            found=f"the address {address!r} and no login",
            wanted="a login where others can reach the app",
            next_step="configure one as docs/SECURITY.md shows, or leave out --address",
        )
    free(address, port)
    sys.argv = [__file__]  # Streamlit looks for the script's folder here
    os.environ[CACHE] = str(Path(cache).absolute())
    if workspace is not None:
        os.environ[WORKSPACE] = str(Path(workspace).absolute())
    if reviewer:
        os.environ[REVIEWER] = reviewer
    quiet = {} if browser else {"server.headless": True}  # else as the environment has it
    if known is not None:  # Streamlit would name and open an address that is not the app's
        quiet |= {"server.headless": True, "logger.hideWelcomeMessage": True}
        print(f"People log in at {known.origin}", flush=True)
    settings = {**SETTINGS, **quiet, "server.address": address, "server.port": port}
    for name, value in settings.items():  # or it warns of what has changed since it read them
        config.set_option(name, value)
    app.run(config=settings)


def free(address: str, port: int) -> None:
    """Raise UserError unless the app could listen there."""
    try:
        host = "127.0.0.1" if address == "localhost" else address
        family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except (OSError, OverflowError, UnicodeError):
        where = "" if address == "localhost" else f" on {address}"
        raise UserError(
            found=f"port {port}{where} is not free",
            wanted="a free port between 1 and 65535, on an address of this machine",
            next_step="end what uses it, or choose another with --port",
        ) from None


if get_script_run_ctx(suppress_warning=True):
    navigation()
else:
    # As `st.navigation` sets it, but before a visitor whose first address is that of a page: the
    # folder pages/ would be taken for Streamlit's older kind of app, which runs a page by itself.
    PagesManager.uses_pages_directory = False
    app = st.App(
        Path(__file__).absolute(),
        lifespan=lifespan,
        routes=[*ROUTES, *EVIDENCE, *POINTS, *REACH],
        middleware=[Middleware(Gate, pages=[*PAGES, *ACCOUNT])],
        on_script_error=show_trouble,
    )
    if __name__ == "__main__":
        serve(Path(os.environ.get(CACHE) or "cache"))
