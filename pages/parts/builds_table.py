"""The finished builds as a table."""

import streamlit as st

from .opened import engine
from .words import size, span


def builds_table(key: str) -> None:
    """Draw one row a build, the newest first."""
    found = engine().builds()
    told = engine().accuracies(found)
    corrected = any(one.changed for one in told.values())
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
                **({"test labels corrected": told[one["build"]].restated} if corrected else {}),
                "time": span(sum(one["seconds"].values())),
                "size": size(sum(one["bytes"].values())),
            }
            for one in found
        ],
        hide_index=True,
        column_config={
            name: st.column_config.NumberColumn(format="percent")
            for name in ("accuracy", "wrong on purpose", "test labels corrected")
        },
        key=key,
    )
