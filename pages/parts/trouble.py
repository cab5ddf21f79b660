"""What a page shows when something goes wrong: a sentence, never a traceback."""

import logging
import tempfile
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import streamlit as st

from attribution.records import UserError

from .opened import places


def guarded(draw: Callable[..., None]) -> Callable[..., None]:
    """`draw`, with `show_trouble` for what it raises.

    For fragments: Streamlit reports their errors itself, with a traceback on the terminal.
    """

    @wraps(draw)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            draw(*args, **kwargs)
        except Exception as error:
            show_trouble(error)

    return run


def show_trouble(error: Exception) -> bool:
    """Show `error` as a notice; True tells Streamlit that it has been shown.

    A user's mistake is its own sentence. Anything else goes to the log, whose path is shown.
    """
    if isinstance(error, UserError):
        st.warning(str(error), icon=":material/info:")
        return True
    path = log_file()
    logging.getLogger("probable_cause").error("a page failed", exc_info=error)
    st.error(
        f"Something went wrong on this page and nothing was lost. The details are in {path}; "
        "reload the page to go on.",
        icon=":material/error:",
    )
    return True


def log_file() -> Path:
    """The app's log, made on first use: in the cache, or where temporary files go."""
    logger = logging.getLogger("probable_cause")
    if not logger.handlers:
        try:
            folder = places()[0] / "logs"
            folder.mkdir(parents=True, exist_ok=True)
            handler = logging.FileHandler(folder / "app.log")
        except OSError:
            handler = logging.FileHandler(Path(tempfile.gettempdir()) / "probable-cause-app.log")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(handler)
    return Path(logger.handlers[0].baseFilename)
