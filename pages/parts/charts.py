"""Charts as Vega-Lite specifications: plain dictionaries, drawn by Streamlit's own element."""

from collections.abc import Callable
from typing import Any

import numpy as np
import streamlit as st


def confusion(
    counts_CC: np.ndarray,
    classes: tuple[str, ...],
    chosen: tuple[str | None, str | None],
    on_select: Callable[[], None],
    key: str,
) -> None:
    """Draw a confusion matrix whose cells can be clicked; `chosen` (label, predicted) is outlined.

    The click is `st.session_state[key].selection.cell`, a list with at most one
    {"label": name, "predicted": name}.
    """
    values = [
        {"label": label, "predicted": predicted, "count": int(counts_CC[row, column])}
        for row, label in enumerate(classes)
        for column, predicted in enumerate(classes)
    ]
    for one in values:
        one["chosen"] = chosen != (None, None) and all(
            name in (None, one[axis])
            for name, axis in zip(chosen, ("label", "predicted"), strict=True)
        )
    axis: dict[str, Any] = {
        "type": "nominal",
        "sort": list(classes),
        "axis": {"labelAngle": 0, "ticks": False, "domain": False, "labelFontSize": 12},
    }
    at = {
        "x": {"field": "predicted", "title": "predicted", **axis},
        "y": {"field": "label", "title": "label", **axis},
    }
    right = "datum.label === datum.predicted"
    cells = {
        "mark": {"type": "rect", "cornerRadius": 3, "cursor": "pointer", "tooltip": True},
        "params": [{"name": "cell", "select": {"type": "point", "fields": ["label", "predicted"]}}],
        "encoding": {
            **at,
            "color": {"condition": {"test": right, "value": "#4d7fd6"}, "value": "#e0761a"},
            # By a low power, so that a single mistake is seen beside fifty right answers.
            "fillOpacity": {
                "field": "count",
                "type": "quantitative",
                "scale": {
                    "type": "pow",
                    "exponent": 0.4,
                    "domain": [0, max(1, int(counts_CC.max()))],
                    "range": [0.04, 0.95],
                },
                "legend": None,
            },
            "stroke": {"condition": {"test": "datum.chosen", "value": "#e0761a"}, "value": None},
            "strokeWidth": {"value": 2},
            "tooltip": [
                {"field": "label"},
                {"field": "predicted"},
                {"field": "count", "title": "test images"},
            ],
        },
    }
    numbers = {
        "transform": [{"filter": "datum.count > 0"}],
        "mark": {"type": "text", "fontSize": 11, "fontWeight": 600, "tooltip": False},
        # Legible on the cells, on white and on black.
        "encoding": {
            **at,
            "text": {"field": "count"},
            "color": {"condition": {"test": right, "value": "#ffffff"}, "value": "#d9640c"},
        },
    }
    spec = {
        "data": {"values": values},
        "layer": [cells, numbers] if len(classes) <= 20 else [cells],
        "height": 290,
        "padding": 0,
    }
    st.vega_lite_chart(
        spec=spec, key=key, on_select=on_select, selection_mode="cell", width="stretch"
    )
