"""Charts as Vega-Lite specifications: plain dictionaries, drawn by Streamlit's own element.

Where single points of many are to be clicked, or errors in both directions shown, Plotly.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from attribution.groups import most_confused
from attribution.whatif import Scale, band, predicted

MATRIX = 20  # classes that a matrix shows at most
PALE = 0.7  # of the largest count: cells below have dark numbers on a light page


def confusion(
    counts_CC: np.ndarray,
    classes: tuple[str, ...],
    chosen: tuple[str | None, str | None],
    on_select: Callable[[], None],
    key: str,
) -> None:
    """Draw a confusion matrix whose cells can be clicked; `chosen` (label, predicted) is outlined.

    Of many classes, those with the most mistakes.
    The click is `st.session_state[key].selection.cell`, a list with at most one
    {"label": name, "predicted": name}.
    """
    whole = len(classes)
    always = [classes.index(name) for name in chosen if name in classes]
    shown = most_confused(counts_CC, MATRIX, always)
    counts_CC, classes = counts_CC[np.ix_(shown, shown)], tuple(classes[c] for c in shown)
    most = max(1, int(counts_CC.max()))
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
    long = max(map(len, classes)) > 3
    if long:
        look = {"labelLimit": 88, "labelFontSize": 11, "labelOverlap": False}
        axis["axis"] |= look
    at = {
        "x": {
            "field": "predicted",
            "title": "predicted",
            **axis,
            "axis": {**axis["axis"], "labelAngle": -60 if long else 0},
        },
        "y": {"field": "label", "title": "label", **axis},
    }
    right = "datum.label === datum.predicted"
    cells = {
        "mark": {"type": "rect", "cornerRadius": 3, "cursor": "pointer", "tooltip": True},
        "params": [{"name": "cell", "select": {"type": "point", "fields": ["label", "predicted"]}}],
        "encoding": {
            **at,
            "color": {"condition": {"test": right, "value": "#4d7fd6"}, "value": "#d06a12"},
            # By a low power, so that a single mistake is seen beside fifty right answers.
            "fillOpacity": {
                "field": "count",
                "type": "quantitative",
                "scale": {
                    "type": "pow",
                    "exponent": 0.4,
                    "domain": [0, most],
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
        # Legible on weak and strong cells; the background is the theme's, also after a change.
        "encoding": {
            **at,
            "text": {"field": "count"},
            "color": {
                "condition": [
                    {"test": f"!({right}) && luminance(background) > 0.5", "value": "#4a2000"},
                    {
                        "test": f"datum.count < {PALE * most} && luminance(background) > 0.5",
                        "value": "#0b1f4a",
                    },
                ],
                "value": "#ffffff",
            },
        },
    }
    spec = {
        "data": {"values": values},
        "layer": [cells, numbers],
        "height": 420 if long else 290,
        "padding": 0,
    }
    st.vega_lite_chart(
        spec=spec, key=key, on_select=on_select, selection_mode="cell", width="stretch"
    )
    if len(classes) < whole:
        st.caption(
            f"The {len(classes)} of {whole} classes with the most mistakes; all are in the choices "
            "of label and prediction."
        )


STRATEGIES = {
    "naive": "#4d7fd6",
    "dropout": "#e0761a",
    "forward": "#c79a00",
    "lora": "#2f9e6b",
    "snapshots": "#a463d4",
    "finetunes": "#d64d82",
    "draws": "#7f8896",
    "blocks": "#1a9db8",
}  # legible on white and on black
GREY = "#868d98"
LABEL = 17  # pixels of height that a label takes


def plot(spec: dict[str, Any], key: str, alt: str) -> None:
    """Draw a specification; its PNG is in the toolbar that Streamlit puts above a chart."""
    config = {"view": {"stroke": None}, "axis": {"labelFontSize": 12, "titleFontSize": 12}}
    st.vega_lite_chart(spec={"config": config, **spec}, key=key, alt=alt, width="stretch")


def fidelity(
    rows: list[dict[str, Any]], front: list[int], cost: str, ceiling: float | None
) -> None:
    """Draw LDS against a cost, a point for each of `rows`: name, strategy, cost, lds, low, high.

    `front` are the rows that no other beats, by cost. Names stand in a column on the right, joined
    with their points: points of one network lie too close for labels of their own.
    """
    number = ".3~g" if "seconds" in cost else ".3~s"
    height = max(370, LABEL * len(rows) + 40)
    least, most = min(one["cost"] for one in rows), max(one["cost"] for one in rows)
    left, right = least / 1.25, most * 1.25
    tops = [one["high"] for one in rows] + [ceiling or 0]
    low, high = min(one["low"] for one in rows), max(tops)
    low, high = low - 0.04 * (high - low), high + 0.06 * (high - low)
    ordered = sorted(range(len(rows)), key=lambda j: rows[j]["lds"])
    places = apart([rows[j]["lds"] for j in ordered], LABEL * (high - low) / height, low, high)
    for j, place in zip(ordered, places, strict=True):
        rows[j] = {**rows[j], "place": place}
    x = {
        "field": "cost",
        "type": "quantitative",
        "title": f"{cost} (log scale)",
        "scale": {"type": "log", "domain": [left, right], "nice": False},
        "axis": {"grid": False, "tickCount": 6, "format": number},
    }
    y = {
        "field": "lds",
        "type": "quantitative",
        "title": "fidelity (LDS)",
        "scale": {"domain": [low, high], "nice": False, "zero": False},
    }
    colour = {
        "field": "strategy",
        "type": "nominal",
        "scale": {"domain": list(STRATEGIES), "range": list(STRATEGIES.values())},
        "legend": None,
    }
    near = {"condition": {"param": "near", "empty": True, "value": 1}, "value": 0.15}
    faint = {"condition": {"param": "near", "empty": False, "value": 0.95}, "value": 0.33}
    steps = [{"cost": rows[j]["cost"], "lds": rows[j]["lds"]} for j in front]
    steps.append({**steps[-1], "cost": right})
    layers: list[dict[str, Any]] = [
        {
            "data": {"values": steps},
            "mark": {"type": "line", "interpolate": "step-after", "color": GREY, "strokeWidth": 2},
            "encoding": {"x": x, "y": y},
        },
        {
            "mark": {"type": "rule", "strokeWidth": 2},
            "encoding": {
                "x": x,
                "y": {**y, "field": "low"},
                "y2": {"field": "high"},
                "color": colour,
                "opacity": faint,
            },
        },
        {
            "mark": {"type": "rule", "strokeWidth": 1},
            "encoding": {
                "x": x,
                "y": y,
                "x2": {"value": "width"},
                "y2": {"field": "place"},
                "color": colour,
                "opacity": faint,
            },
        },
        {
            "params": [
                {
                    "name": "near",
                    "select": {"type": "point", "fields": ["build"], "on": "pointerover"},
                }
            ],
            "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1},
            "encoding": {
                "x": x,
                "y": y,
                "color": colour,
                "opacity": near,
                "tooltip": [
                    {"field": "name", "title": "ensemble"},
                    {"field": "strategy"},
                    {"field": "lds", "title": "LDS", "format": ".3f"},
                    {"field": "low", "title": "95 % from", "format": ".3f"},
                    {"field": "high", "title": "to", "format": ".3f"},
                    {
                        "field": "cost",
                        "title": cost,
                        "format": "~g" if "seconds" in cost else ".3~s",
                    },
                    {"field": "build"},
                ],
            },
        },
        {
            "mark": {"type": "text", "align": "left", "dx": 6, "fontSize": 12, "fontWeight": 600},
            "encoding": {
                "x": {"value": "width"},
                "y": {**y, "field": "place"},
                "text": {"field": "name"},
                "color": colour,
                "opacity": near,
            },
        },
    ]
    if ceiling is not None:
        line = {"values": [{"lds": ceiling, "cost": left}]}
        layers += [
            {
                "data": line,
                "mark": {"type": "rule", "strokeDash": [6, 5], "color": GREY, "strokeWidth": 1.5},
                "encoding": {"y": y},
            },
            {
                "data": line,
                "mark": {"type": "text", "align": "left", "dx": 6, "dy": -8, "color": GREY},
                "encoding": {
                    "x": x,
                    "y": y,
                    "text": {"value": f"{ceiling:.3f}: retraining is too noisy for more"},
                },
            },
        ]
    spec = {
        "data": {"values": rows},
        "layer": layers,
        "height": height,
    }
    plot(spec, "fidelity", f"Fidelity against {cost}, {len(rows)} builds")


def apart(values: list[float], gap: float, low: float, high: float) -> list[float]:
    """Rising `values`, moved as little as is needed to lie `gap` apart between low and high."""
    groups: list[tuple[float, int]] = []  # mean of value less its place in line, and how many
    for j, value in enumerate(values):
        mean, count = value - j * gap, 1
        while groups and groups[-1][0] > mean:
            before, many = groups.pop()
            mean, count = (before * many + mean * count) / (many + count), many + count
        groups.append((mean, count))
    means = [mean for mean, count in groups for _ in range(count)]
    most = high - max(0, len(values) - 1) * gap
    return [min(max(mean, low), most) + j * gap for j, mean in enumerate(means)]


def agreement(names: list[str], share_BB: np.ndarray, k: int) -> None:
    """Draw the share of the first k hits that each pair of ensembles has in common."""
    cells = [
        {"a": a, "b": b, "share": float(share_BB[i, j])}
        for i, a in enumerate(names)
        for j, b in enumerate(names)
        if i != j
    ]
    axis: dict[str, Any] = {"type": "nominal", "sort": names, "title": None}
    look = {"ticks": False, "domain": False, "labelFontSize": 12, "labelLimit": 320}
    at = {
        "x": {"field": "b", **axis, "axis": {**look, "labelAngle": -30, "labelOverlap": False}},
        "y": {"field": "a", **axis, "axis": look},
    }
    shade = {
        "field": "share",
        "type": "quantitative",
        "scale": {"domain": [0, 1], "range": ["#eaf0fb", "#2450b0"]},  # opaque in either theme
        "legend": None,
    }
    spec = {
        "data": {"values": cells},
        "layer": [
            {
                "mark": {"type": "rect", "cornerRadius": 3, "tooltip": True},
                "encoding": {
                    **at,
                    "color": shade,
                    "tooltip": [
                        {"field": "a", "title": "one"},
                        {"field": "b", "title": "other"},
                        {"field": "share", "title": f"of the first {k} in common", "format": ".1%"},
                    ],
                },
            },
            {
                "mark": {"type": "text", "fontSize": 12, "fontWeight": 600},
                "encoding": {
                    **at,
                    "text": {"field": "share", "format": ".0%"},
                    "color": {
                        "condition": {"test": "datum.share > 0.62", "value": "#ffffff"},
                        "value": "#1c2024",
                    },
                },
            },
        ],
        "height": 110 + 40 * len(names),
    }
    plot(spec, "agreement", f"Share of the first {k} hits in common, {len(names)} builds")


def growth(
    points: list[dict[str, Any]], axis: str, ceiling: float | None, now: int, key: str
) -> None:
    """Draw LDS against the number of `axis`; `points` have count, lds, low, high, kind.

    kind is forecast, measured (this build) or another (a measured build of other size). Beyond
    twice `now` the forecast is dashed: it is told, but was not checked that far.
    """
    counts = sorted({one["count"] for one in points})
    x = {
        "field": "count",
        "type": "quantitative",
        "title": axis,
        "scale": {"type": "log", "nice": False, "domain": [counts[0] / 1.1, counts[-1] * 1.1]},
        "axis": {"grid": False, "format": "d", "values": counts},
    }
    y = {
        "field": "lds",
        "type": "quantitative",
        "title": "fidelity (LDS)",
        "scale": {"zero": False},
        "axis": {"tickCount": 5},
    }
    told = [
        {"field": "kind", "title": " "},
        {"field": "count", "title": axis},
        {"field": "lds", "title": "LDS", "format": ".3f"},
        {"field": "name", "title": "build"},
    ]

    def line(test: str, dash: list[int]) -> dict[str, Any]:
        return {
            "transform": [{"filter": f"datum.kind === 'forecast' && {test}"}],
            "mark": {"type": "line", "color": "#4d7fd6", "strokeDash": dash, "strokeWidth": 2},
            "encoding": {"x": x, "y": y},
        }

    def measured(kind: str, colour: str) -> list[dict[str, Any]]:
        only = [{"filter": f"datum.kind === '{kind}'"}]
        return [
            {
                "transform": only,
                "mark": {"type": "rule", "color": colour, "strokeWidth": 2, "opacity": 0.5},
                "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}},
            },
            {
                "transform": only,
                "mark": {"type": "point", "filled": True, "size": 120, "color": colour},
                "encoding": {"x": x, "y": y, "tooltip": told},
            },
        ]

    layers = [
        line(f"datum.count <= {2 * now}", [1, 0]),
        line(f"datum.count >= {2 * now}", [5, 4]),
        {
            "transform": [{"filter": "datum.kind === 'forecast'"}],
            "mark": {"type": "point", "filled": True, "size": 30, "color": "#4d7fd6"},
            "encoding": {"x": x, "y": y, "tooltip": told},
        },
    ]
    for kind, colour in (("another", GREY), ("measured", "#e0761a")):
        if any(one["kind"] == kind for one in points):
            layers += measured(kind, colour)
    if ceiling is not None:
        dashed = {"type": "rule", "strokeDash": [6, 5], "color": GREY, "strokeWidth": 1.5}
        layers.append(
            {"data": {"values": [{"lds": ceiling}]}, "mark": dashed, "encoding": {"y": y}}
        )
    plot(
        {"data": {"values": points}, "layer": layers, "height": 260},
        key,
        f"Fidelity against {axis}, forecast and measured",
    )


def calibration(rows: list[dict[str, Any]], scale: Scale | None) -> None:
    """Draw realised against predicted changes of the margin, one point for each verified removal.

    A row: score, change, low, high, name, here (the one that the page asks about). With a `scale`
    predictions are in units of the margin, with the line of perfect ones and its 95 % band.
    """
    import plotly.graph_objects as go  # takes half a second, and only verified removals need it

    rows = [{**r, "predicted": x} for r, x in zip(rows, predicted(rows, scale), strict=True)]
    figure = go.Figure()
    if scale:
        line = band(rows, scale)
        figure.add_scatter(
            x=np.append(line.predicted_X, line.predicted_X[::-1]),
            y=np.append(line.low_X, line.high_X[::-1]),
            fill="toself", fillcolor="rgba(77,127,214,.12)", line={"width": 0}, hoverinfo="skip",
        )  # fmt: skip
        figure.add_scatter(
            x=line.predicted_X, y=line.predicted_X, mode="lines", hoverinfo="skip",
            line={"color": "#4d7fd6", "width": 2},
        )  # fmt: skip
    for here, colour, size in ((False, "#4d7fd6", 10), (True, "#e0761a", 15)):
        some = [r for r in rows if r["here"] == here]
        known = [r for r in some if r["low"] is not None]
        figure.add_scatter(
            x=[r["predicted"] for r in known],
            y=[r["change"] for r in known],
            mode="markers",
            marker={"opacity": 0},
            error_y={
                "type": "data",
                "array": [r["high"] - r["change"] for r in known],
                "color": colour,
                "thickness": 1.5,
                "width": 0,
            },
            hoverinfo="skip",
        )
        figure.add_scatter(
            x=[r["predicted"] for r in some],
            y=[r["change"] for r in some],
            mode="markers",
            marker={"color": colour, "size": size, "line": {"width": 1.5, "color": "#ffffff"}},
            text=[r["name"] for r in some],
            hovertemplate="%{text}<br>predicted %{x:.3g}<br>happened %{y:.2f}<extra></extra>",
        )
    unit = "change of the margin" if scale else "change, in the scores' own unit"
    axis = {"zeroline": True, "zerolinecolor": GREY, "zerolinewidth": 1, "showgrid": False}
    figure.update_layout(
        height=330,
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        showlegend=False,
        xaxis={"title": f"predicted {unit}", **axis},
        yaxis={"title": "change that happened", **axis},
        hoverlabel={"align": "left"},
    )
    st.plotly_chart(
        figure,
        key="calibration",
        width="stretch",
        config={"displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d"]},
    )


def ranks(
    columns: list[dict[str, Any]], links: list[str], classes: tuple[str, ...], key: str
) -> None:
    """Draw the hits of each column by rank, the same image joined by a line.

    A column: name, colour, times (scores are shown times that), hits ({id, src, label, score,
    stderr}); `links` are the words between neighbours.
    """
    images, lines, bands, between = [], [], [], []
    for j, column in enumerate(columns):
        reach = max((abs(h["score"]) + 2 * h["stderr"] for h in column["hits"]), default=0) or 1
        after = columns[j + 1]["hits"] if j + 1 < len(columns) else []
        rank_there = {h["id"]: rank for rank, h in enumerate(after, 1)}
        for rank, hit in enumerate(column["hits"], 1):
            error = f" ± {2 * hit['stderr'] * column['times']:.2f}" if hit["stderr"] else ""
            score = f"{hit['score'] * column['times']:+.2f}{error}"
            images.append(
                {
                    "id": hit["id"],
                    "x": j,
                    "rank": rank,
                    "src": hit["src"],
                    "label": classes[hit["label"]],
                    "score": score,
                    "column": column["name"],
                    "said": f"{classes[hit['label']]} · {score}",
                }
            )
            low, high = (abs(hit["score"]) + sign * 2 * hit["stderr"] for sign in (-1, 1))
            at = {"id": hit["id"], "y": rank + 0.27, "from": j + 0.13}
            place = {
                name: j + 0.13 + 0.36 * max(0.0, value) / reach
                for name, value in (("low", low), ("high", high), ("dot", abs(hit["score"])))
            }
            bands.append({**at, **place, "colour": column["colour"]})
            if hit["id"] in rank_there:
                ends = {"x": j + 0.53, "x2": j + 0.89, "rank": rank, "rank2": rank_there[hit["id"]]}
                lines.append({"id": hit["id"], **ends})
    for j, words in enumerate(links):
        between.append({"x": j + 0.71, "rank": 0.35, "words": words, "colour": GREY})
    heads = [
        {"x": j - 0.08, "rank": -0.2, "words": column["name"], "colour": column["colour"]}
        for j, column in enumerate(columns)
    ]
    k = max((len(c["hits"]) for c in columns), default=1)
    x = {
        "field": "x",
        "type": "quantitative",
        "axis": None,
        "scale": {"domain": [-0.12, max(2, len(columns)) - 0.4], "nice": False, "zero": False},
    }
    y = {
        "field": "rank",
        "type": "quantitative",
        "title": None,
        "scale": {"domain": [k + 0.5, -0.45], "nice": False, "zero": False},
        "axis": {
            "values": list(range(1, k + 1)),
            "grid": False,
            "domain": False,
            "ticks": False,
            "format": "d",
        },
    }
    own = {"field": "colour", "type": "nominal", "scale": None}
    held = {"condition": {"param": "held", "empty": True, "value": 1}, "value": 0.18}

    def text(values: list[dict[str, Any]], **mark: Any) -> dict[str, Any]:
        return {
            "data": {"values": values},
            "mark": {"type": "text", "fontSize": 12, "fontWeight": 600, **mark},
            "encoding": {"x": x, "y": y, "text": {"field": "words"}, "color": own},
        }

    def rule(start: str, end: str, **mark: Any) -> dict[str, Any]:
        return {
            "data": {"values": bands},
            "mark": {"type": "rule", "strokeCap": "round", **mark},
            "encoding": {
                "x": {**x, "field": start},
                "x2": {"field": end},
                "y": {**y, "field": "y"},
                "color": own,
                "opacity": {**held, "condition": {**held["condition"], "value": mark["opacity"]}},
            },
        }

    layers = [
        text(heads, align="left", limit=760 / len(columns), fontSize=13),
        text(between, align="center"),
        {
            "data": {"values": lines},
            "mark": {"type": "rule", "strokeWidth": 2.5, "color": GREY, "strokeCap": "round"},
            "encoding": {
                "x": x,
                "x2": {"field": "x2"},
                "y": y,
                "y2": {"field": "rank2"},
                "opacity": {
                    "condition": {"param": "held", "empty": True, "value": 0.75},
                    "value": 0.1,
                },
            },
        },
        rule("from", "dot", strokeWidth=1.5, opacity=0.5),
        rule("low", "high", strokeWidth=6, opacity=0.35),
        {
            "data": {"values": bands},
            "mark": {"type": "point", "filled": True, "size": 45},
            "encoding": {
                "x": {**x, "field": "dot"},
                "y": {**y, "field": "y"},
                "color": own,
                "opacity": held,
            },
        },
        {
            "data": {"values": images},
            "mark": {"type": "text", "align": "left", "dx": 26, "dy": -7, "fontSize": 12},
            "encoding": {
                "x": x,
                "y": y,
                "text": {"field": "said"},
                "color": {"value": GREY},
                "opacity": held,
            },
        },
        {
            "data": {"values": images},
            "params": [
                {"name": "held", "select": {"type": "point", "fields": ["id"], "on": "pointerover"}}
            ],
            "mark": {"type": "image", "width": 40, "height": 40, "smooth": False},
            "encoding": {
                "x": x,
                "y": y,
                "url": {"field": "src"},
                "opacity": held,
                "tooltip": [
                    {"field": "column", "title": "ensemble"},
                    {"field": "id", "title": "training image"},
                    {"field": "label"},
                    {"field": "rank"},
                    {"field": "score"},
                ],
            },
        },
    ]
    plot({"layer": layers, "height": 60 + 48 * k}, key, "Hits of each ensemble by rank")


KINDS = {"wrong": "#e0761a", "ambiguous": "#a463d4", "clear": GREY}


def doubts(
    suspects: pd.DataFrame, counts: pd.Series, on_select: Callable[[], None], key: str
) -> None:
    """Draw influence against disagreement of `suspects` (rows of `build.mislabels()`).

    `counts` says how many of each kind there are, drawn or not. A click is
    `st.session_state[key].selection.points`, a list with at most one point, whose `customdata`
    is its train_id.
    """
    from plotly import graph_objects as go  # half a second to import

    figure = go.Figure()
    least = suspects.influence[suspects.influence > 0].min()
    for kind, colour in KINDS.items():
        some = suspects[suspects.kind == kind]
        told = [f"training image {i}: wrong with {p:.0%}" for i, p in some.score.items()]
        figure.add_scatter(
            x=some.influence.clip(lower=least).tolist(),
            y=some.disagreement.tolist(),
            customdata=[int(i) for i in some.index],
            mode="markers",
            name=f"{kind} ({counts.get(kind, 0):,})",
            marker={"color": colour, "size": 7, "opacity": 0.4 if kind == "clear" else 0.8},
            text=told,
            hovertemplate="%{text}<extra></extra>",
        )
    figure.update_layout(
        height=420,
        margin={"l": 0, "r": 0, "t": 8, "b": 0},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis={"type": "log", "title": "influence on its own label", "exponentformat": "power"},
        yaxis={"title": "disagreement of the networks", "rangemode": "tozero"},
        dragmode=False,
        clickmode="event+select",
    )
    st.plotly_chart(
        figure,
        key=key,
        on_select=on_select,
        selection_mode="points",
        config={"displaylogo": False},
        alt=f"Influence against disagreement of {len(suspects)} training images",
    )
