"""The finished builds as a table."""

import streamlit as st

from .opened import engine
from .words import size, span


def builds_table(key: str) -> None:
    """Draw one row a build, the newest first."""
    st.dataframe(
        [
            {
                "build": one["build"],
                "data": one["data"],
                "wrong on purpose": one["noise"],
                "network": one["model"],
                "ensemble": one["ensemble"],
                "estimator": one["estimator"],
                "accuracy": one["accuracy"],
                "time": span(sum(one["seconds"].values())),
                "size": size(sum(one["bytes"].values())),
            }
            for one in engine().builds()
        ],
        hide_index=True,
        column_config={
            name: st.column_config.NumberColumn(format="percent")
            for name in ("accuracy", "wrong on purpose")
        },
        key=key,
    )
