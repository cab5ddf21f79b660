"""What a build will take, on the page, before it is started."""

import streamlit as st

from attribution.estimate import Estimate
from attribution.quantities import size, span
from attribution.records import BuildSpec

from .access import BUILD
from .opened import may

KEPT = "estimated"
STAGES = {"train": "training", "basis": "finding directions", "features": "gradients",
          "fit": "fitting the index"}  # fmt: skip


def estimate(spec: BuildSpec) -> None:
    """Probe what `spec` will take, and keep it for `estimated`."""
    with st.spinner("Training and measuring for a few seconds"):
        st.session_state[KEPT] = spec, may(BUILD).estimate(spec)


def estimated(spec: BuildSpec) -> None:
    """The estimate of these settings, if it was asked for."""
    kept: tuple[BuildSpec, Estimate] | None = st.session_state.get(KEPT)
    if kept is None or kept[0] != spec:
        return
    found = kept[1]
    most = max(found.seconds, key=lambda stage: found.seconds[stage])
    st.info(
        f"About **{span(found.time)}**, most of it {STAGES[most]}, and **{size(found.room)}** "
        f"of the {size(found.free)} that are free. Measured on this machine as busy as it is now.",
        icon=":material/timer:",
    )
    found.check()
