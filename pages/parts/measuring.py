"""How fidelity is measured, in the background: ground truth, then the builds by it."""

from typing import Any

import streamlit as st

from attribution.build import Build
from attribution.jobs import Job

from .access import BUILD
from .jobs import RUNNING, framed
from .opened import command_line, engine, go, launch, locked
from .trouble import guarded
from .words import UNLABELLED


def measuring(build: Build, rows: list[dict[str, Any]]) -> None:
    """What is missing for fidelity, with the button that gets it; progress while it is on its way.

    Ground truth first, then the evaluation of every build by it.
    """
    if not build.labelled:
        st.info(f"{UNLABELLED} So fidelity, which is of the labels' margins, cannot be measured.")
        return
    ids = [one["build"] for one in rows]
    mine = measurements(ids)
    if any(job.state == RUNNING for job in mine):
        st.fragment(guarded(watch), run_every=1.0)(ids)
        return
    truths = [truth.manifest["id"] for truth in engine().truths(build)]
    missing = [one["build"] for one in rows if one.get("truth") not in truths[:1]]
    if not missing:
        return
    if not truths and not build.recipe.trains:
        st.info(build.retraining)
        return
    if mine and mine[0].error and mine[0].command != "tune":
        st.error(mine[0].error, icon=":material/error:")
    with st.container(border=True):
        words, action = st.columns([4, 1], vertical_alignment="center")
        if truths:
            words.write(
                f"{len(missing)} of {len(rows)} builds are not evaluated on the largest ground "
                "truth yet."
            )
            primary = locked(BUILD, type="primary", key="evaluate", width="stretch")
            if action.button("Evaluate", **primary):
                launch(missing, "evaluate")
                st.rerun()
            return
        words.write(
            "**Fidelity is not measured yet.** It takes networks retrained on random halves of "
            "the training set, once for all builds on this data and network; this runs in the "
            "background, so this tab may be closed."
        )
        if build.retraining:
            words.caption(build.retraining)
        halves, seeds, _ = words.columns([1, 1, 2])
        subsets = halves.number_input(
            "Random halves", 2, 1000, 100, key="subsets", help="100 are usual; 40 are quick."
        )
        count = seeds.number_input(
            "Networks on each", 1, 50, 5, key="seeds", help="2 or more tell the ceiling."
        )
        if subsets < 10:
            words.caption("With fewer than 10 the interval will be too wide to tell builds apart.")
        options = [build.id, "--subsets", str(subsets), "--seeds", str(count), "--evaluate"]
        words.caption("Or in a terminal:")
        words.code(command_line(["truth", *options]), language="bash", wrap_lines=True)
        primary = locked(BUILD, type="primary", key="measure", width="stretch")
        if action.button("Measure fidelity", **primary):
            launch(options, "truth")
            st.rerun()


def watch(ids: list[str]) -> None:
    """The running measurement of these builds."""
    busy = [job for job in measurements(ids) if job.state == RUNNING]
    if not busy:
        st.rerun()
    if framed(busy[0], "Log and cancel", key="to_builds"):
        go("builds")


def measurements(ids: list[str]) -> list[Job]:
    """The jobs that measure any of these builds, newest first."""
    return [
        job
        for job in engine().jobs()
        if job.command not in ("build", "verify", "map") and set(job.options) & set(ids)
    ]
