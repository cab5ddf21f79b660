"""Training again with the decisions in force."""

from collections import Counter
from contextlib import suppress

import streamlit as st

from attribution import strategies
from attribution.build import Build
from attribution.jobs import Job
from attribution.records import UserError

from .access import BUILD
from .jobs import RUNNING, framed
from .opened import command_line, engine, go, launch, locked, may


def applying(build: Build) -> None:
    """How many decisions are in force on this build's data, and the button that applies them."""
    counts = Counter(d.verdict for d in engine().decisions.in_force(build.data_id).values())
    changing = counts["relabel"] + counts["drop"]
    with st.container(border=True):
        words, action = st.columns([4, 1], vertical_alignment="center")
        if not changing:
            words.write(
                "No decision in force changes this data yet. Relabel or drop images on the page "
                "*Review*, then train again here and see what it buys."
            )
            if action.button("Review labels", key="to_review", width="stretch"):
                go("review")
            return
        words.write(
            f"**{counts['relabel']}** images to relabel and **{counts['drop']}** to leave out. "
            "Networks are trained again from the same seeds, in the background; the data and this "
            "build stay as they are."
        )
        if build.retraining:
            words.caption(build.retraining)
        if not build.recipe.trains:
            return
        with suppress(UserError):  # of a network that is not to be had any more; the button says so
            if error := failed(build):
                words.error(error, icon=":material/error:")
        words.caption("Or in a terminal:")
        words.code(command_line(["apply", build.id]), language="bash", wrap_lines=True)
        primary = locked(BUILD, type="primary", key="apply", width="stretch")
        if action.button("Train again", **primary):
            start(build)
            st.rerun()


def start(build: Build) -> None:
    """Start the build of the revised data; a notice where the decisions cannot be applied."""
    try:
        revision = may(BUILD).revise(build.id)
    except UserError as error:
        st.session_state["notice"] = str(error)
        return
    launch(strategies.options(engine().revised_spec(build.id, revision.id)))


def failed(build: Build) -> str:
    """Why training this build again failed when it was last tried here; "" where it is done."""
    done = {one["spec"]["data"]["revision"] for one in engine().revised(build.id)}
    for job in engine().jobs():
        if "--revision" in job.options:
            revision = job.options[job.options.index("--revision") + 1]
            spec = engine().revised_spec(build.id, revision)
            if list(job.options) == strategies.options(spec):
                return "" if revision in done else job.error
    return ""


def watch() -> None:
    """Progress of training again; the page is drawn anew when it ends."""
    busy = under_way()
    if not busy:
        st.rerun()
    if framed(busy[0], "Log and cancel", key="to_builds"):
        go("builds")


def under_way() -> list[Job]:
    """Running builds of revised data."""
    return [j for j in engine().jobs() if j.state == RUNNING and "--revision" in j.options]
