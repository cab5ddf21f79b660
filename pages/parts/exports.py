"""Downloads of labels and decisions, in the formats of other tools."""

import streamlit as st

from attribution.engine import Build
from attribution.export import FORMATS, exported, packed
from attribution.report import review

from .opened import engine

MIMES = {
    ".csv": "text/csv",
    ".json": "application/json",
    ".parquet": "application/vnd.apache.parquet",
    ".xml": "application/xml",
    ".zip": "application/zip",
}


def downloads(build: Build) -> None:
    """A popover to choose a format in and download it, made when the button is pressed."""
    with st.popover("Export", icon=":material/download:", key="export", width="stretch"):
        name = st.selectbox(
            "Format", FORMATS, format_func=lambda one: FORMATS[one].title, key="export_format"
        )
        form = FORMATS[name]
        st.caption(form.about)
        st.download_button(
            "Download",
            lambda: packed(exported(build, engine().decisions.in_force(build.data_id), name)),
            file_name=f"{name}-{build.data_id}{form.suffix}",
            mime=MIMES[form.suffix],
            icon=":material/download:",
            on_click="ignore",
            key="download",
            width="stretch",
        )
        st.download_button(
            "One page to send",
            lambda: review(build, engine().decisions.in_force(build.data_id)).encode(),
            file_name=f"review-{build.data_id}.html",
            mime="text/html",
            icon=":material/description:",
            on_click="ignore",
            key="one_page",
            width="stretch",
        )
