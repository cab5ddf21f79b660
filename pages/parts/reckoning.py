"""What a review found so far and what is left, as it is told."""

import streamlit as st

from attribution import audit
from attribution.audit import Range, Yield
from attribution.build import Build
from attribution.decisions import Standing

from .opened import DOUBT


def reckoned(build: Build, stand: Standing) -> Yield | None:
    return audit.reckoned(stand.acts, build.mislabels(), DOUBT, build.id)


def sentence(found: Yield | None, conflicts: int) -> None:
    """One line above the picture: whether to go on, and what waits to be settled."""
    if found is None:
        text = (
            f"Every {audit.EVERY}th image is a spot check, drawn at random from the labels that "
            f"nothing speaks against. What was found is reckoned every {audit.STEP} decisions."
        )
    else:
        text = f"After {found.decisions} decisions. {audit.advice(found)}"
    if conflicts:
        text += f" **{conflicts} to settle** under *conflicts*."
    st.caption(text)


def figures(found: Yield) -> None:
    """The numbers behind the sentence, each with the range that holds it 19 times in 20."""
    queue, spot = found.queue, found.spot
    columns = st.columns(4, border=True)
    columns[0].metric("Wrong in the queue so far", f"{queue.wrong} of {queue.seen}")
    columns[0].caption(f"A share of {percent(found.precision)}.")
    ahead = min(audit.AHEAD, queue.left)
    columns[1].metric(f"Wrong in the next {ahead}", whole(found.ahead))
    columns[1].caption(f"If they are like the last {found.recent.seen}.")
    columns[2].metric("Spot checks wrong", f"{spot.wrong} of {spot.seen}")
    columns[2].caption("Drawn at random from the labels that nothing speaks against.")
    left = whole(found.remaining) if found.remaining else "not known yet"
    columns[3].metric("Wrong labels still there", left)
    columns[3].caption(
        f"Among {queue.left + spot.left:,} not decided; every spot check makes the range narrower."
    )


def whole(some: Range) -> str:
    low, high = round(some.low), round(some.high)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def percent(some: Range) -> str:
    return f"{some.low:.0%} to {some.high:.0%}"
