"""The finished builds as a table."""

import streamlit as st

from attribution.archives import own_name
from attribution.quantities import size, span

from .opened import engine

SAYS = {"coverage": "Share of the parameters whose gradients are attributed."}


def builds_table(key: str) -> None:
    """Draw one row a build, the newest first; names, notes and coverage where there are any."""
    found = engine().builds()
    told = engine().accuracies(found)
    corrected = any(one.changed for one in told.values())
    said = [what for what in ("name", "note") if any(one[what] for one in found)]
    partly = ["coverage"] if any(one["coverage"] < 0.9995 for one in found) else []
    st.dataframe(
        [
            {
                "build": one["build"],
                **{what: one[what] for what in said},
                "data": own_name(one["data"]),
                "wrong on purpose": one["noise"],
                "network": one["model"],
                "ensemble": one["ensemble"],
                "estimator": one["estimator"],
                "accuracy": one["accuracy"],
                **({"test labels corrected": told[one["build"]].restated} if corrected else {}),
                **{what: one[what] for what in partly},
                "time": span(sum(one["seconds"].values())),
                "size": size(sum(one["bytes"].values())),
            }
            for one in found
        ],
        hide_index=True,
        column_config={what: st.column_config.TextColumn(width="small") for what in said}
        | {
            name: st.column_config.NumberColumn(format="percent", help=SAYS.get(name))
            for name in ("accuracy", "wrong on purpose", "test labels corrected", *partly)
        },
        key=key,
    )
