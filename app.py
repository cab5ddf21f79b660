"""The web app: its navigation, its theme, and the server that `python -m attribution app` starts.

This one file is both the launcher and the script that Streamlit runs for each visitor.
"""

import gc
import logging
import os
import socket
import sys
import threading
from contextlib import asynccontextmanager
from pathlib import Path

import streamlit as st
from streamlit.runtime.pages_manager import PagesManager
from streamlit.runtime.scriptrunner import get_script_run_ctx

from attribution.records import UserError
from pages.parts.behind import ROUTES as EVIDENCE
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
# Streamlit marks a link of the navigation that has the focus by a shade hardly to be seen.
FOCUS = "<style>header a:focus-visible { outline: 2px solid #5870ee; outline-offset: 1px }</style>"
SETTINGS = {
    "browser.gatherUsageStats": False,
    "runner.postScriptGC": False,
    "client.showErrorDetails": "none",
    "client.toolbarMode": "minimal",
    "server.address": "localhost",
    "server.fileWatcherType": "none",
    "theme.headingFontSizes": ["1.6rem", "1.3rem", "1.1rem"],
    "theme.headingFontWeights": [650, 600, 600],
    "theme.metricValueFontSize": "1.6rem",
    "theme.paddingTop": "0rem",
    **{f"theme.light.{name}": value for name, value in LIGHT.items()},
    **{f"theme.dark.{name}": value for name, value in DARK.items()},
}


def navigation() -> None:
    """Choose the page and run it."""
    # An image of our own: Streamlit would fetch a named icon from a server elsewhere.
    st.set_page_config(page_title="Probable Cause", page_icon=ICON, layout="wide")
    st.logo(ICON, size="large")
    st.html(FOCUS)
    page = st.navigation(
        [
            st.Page("pages/overview.py", title="Overview", default=True),
            st.Page("pages/explain.py", title="Explain"),
            st.Page("pages/groups.py", title="Patterns"),
            st.Page("pages/map.py", title="Map"),
            st.Page("pages/try_image.py", title="Try an image"),
            st.Page("pages/review.py", title="Review"),
            st.Page("pages/changes.py", title="Before & after"),
            st.Page("pages/compare.py", title="Compare"),
            st.Page("pages/builds.py", title="Builds"),
        ],
        position="top",
    )
    try:
        page.run()
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


@asynccontextmanager
async def lifespan(_: st.App):
    threading.Thread(target=warm, daemon=True).start()
    yield


def serve(
    cache: Path,
    workspace: Path | None = None,
    port: int = 8501,
    browser: bool = True,
    reviewer: str = "",
) -> None:
    """Serve the app on localhost until it is interrupted, and open a `browser` on it.

    Raises UserError when the port is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            raise UserError(
                found=f"port {port} is not free",
                wanted="a free port between 1 and 65535",
                next_step="end what uses it, or choose another with --port",
            ) from None
    sys.argv = [__file__]  # Streamlit looks for the script's folder here
    # As `st.navigation` sets it, but before a visitor whose first address is that of a page: the
    # folder pages/ would be taken for Streamlit's older kind of app.
    PagesManager.uses_pages_directory = False
    os.environ[CACHE] = str(Path(cache).absolute())
    if workspace is not None:
        os.environ[WORKSPACE] = str(Path(workspace).absolute())
    if reviewer:
        os.environ[REVIEWER] = reviewer
    quiet = {} if browser else {"server.headless": True}  # else as the environment has it
    app.run(config={**SETTINGS, **quiet, "server.port": port})


if get_script_run_ctx(suppress_warning=True):
    navigation()
else:
    app = st.App(
        Path(__file__).absolute(),
        lifespan=lifespan,
        routes=[*ROUTES, *EVIDENCE, *POINTS, *REACH],
        on_script_error=show_trouble,
    )
    if __name__ == "__main__":
        serve(Path(os.environ.get(CACHE) or "cache"))
