"""Images chosen on the map, as an address and as the other pages take them."""

import re
from collections.abc import Iterable

import streamlit as st

from attribution.records import UserError

MOST = 2000  # as many as one question or one review takes from the map


def words(positions: Iterable[int]) -> str:
    """Positions as an address has them, with runs: 3-9,12."""
    runs: list[list[int]] = []
    for i in sorted(set(positions)):
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def positions(text: str, count: int) -> tuple[int, ...]:
    """The positions below `count` that `words` wrote, rising.

    Raises UserError for text that is none, and for positions that are not there.
    """
    found: set[int] = set()
    for part in text.split(","):
        run = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part, re.ASCII)
        low, high = (int(run[1]), int(run[2] or run[1])) if run else (0, -1)
        if not low <= high < count:
            raise UserError(
                found=f"the selection {text[:40]!r} in the address",
                wanted=f"positions from 0 to {count - 1}, such as 3-9,12",
                next_step="choose images on the page Map",
            )
        found.update(range(low, high + 1))
    return tuple(sorted(found))


def chosen(page: str, count: int) -> tuple[str, tuple[int, ...]]:
    """The selection that a page has in its address or was given by the map, and its positions.

    Of one that makes no sense only a notice remains.
    """
    key = f"{page}_picked"
    text = st.session_state.setdefault(key, st.query_params.get("picked", ""))
    if not text:
        return "", ()
    try:
        found = positions(text, count)
    except UserError as error:
        forget(page)
        st.session_state["notice"] = str(error)
        return "", ()
    st.query_params["picked"] = text
    return text, found


def give(page: str, some: str) -> None:
    """Have a page show this selection when it is opened next."""
    st.session_state[f"{page}_picked"] = some


def forget(page: str) -> None:
    give(page, "")
    st.query_params.pop("picked", None)
