"""Commands that run in the background, as pages show them."""

from typing import Any

import streamlit as st

from attribution.jobs import Job
from attribution.quantities import span

RUNNING = "running"


def framed(job: Job, action: str, **options: Any) -> bool:
    """A running job in a frame beside a button of these options; whether that was pressed."""
    with st.container(border=True):
        words, button = st.columns([5, 1], vertical_alignment="center")
        with words:
            bar(job)
        return button.button(action, width="stretch", **options)


def bar(job: Job) -> None:
    """How far a running job is, and how long it will take."""
    left = f" · about {span(job.left)} left" if job.left is not None else ""
    st.progress(
        job.done / job.total if job.total else 0.0,
        text=f"{job.stage or 'starting'}: {job.done} of {job.total}{left}"
        if job.total
        else "starting",
    )
