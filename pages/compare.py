"""Which ensemble is worth paying for: fidelity against cost, and where ensembles differ."""

from itertools import combinations, pairwise
from typing import Any

import pandas as pd
import streamlit as st

from attribution import compare, strategies
from attribution.build import Build
from attribution.export import comparison_csv
from attribution.making import spec_from
from attribution.quantities import size, span
from attribution.records import Hit, UserError
from pages.parts import charts
from pages.parts.access import BUILD
from pages.parts.asked import chosen_test, pick, question, test_grid
from pages.parts.grid import consume, notice
from pages.parts.jobs import RUNNING
from pages.parts.measuring import measurements, measuring
from pages.parts.opened import (
    build_or_stop,
    command_line,
    engine,
    ensemble_name,
    go,
    launch,
    locked,
)
from pages.parts.thumbs import inline
from pages.parts.trouble import guarded
from pages.parts.words import blink, literal, readable

Row = dict[str, Any]  # of `Engine.compared`

HITS = 10  # of each ensemble, side by side
AGREE = 20  # hits by which the matrix compares
COLUMNS = 4
MISTAKES = "wrong predictions, the surest first"
UNSURE = "predictions, the least sure first"  # where nobody knows which are wrong
LDS = (
    "**Fidelity** is the linear datamodelling score (LDS): the rank correlation between what the "
    "scores predict and what really happens when networks are retrained on random halves of the "
    "training set; 1 is perfect, 0 is chance."
)
MORE = {"masks": "masks", "adapters": "adapters", "finetunes": "fine-tunes", "draws": "draws"}


def main() -> None:
    build = build_or_stop(
        "Compare", "Which ensemble is worth paying for, and where do ensembles differ?"
    )
    rows = named(engine().compared(build.id))
    view = st.segmented_control(
        "View",
        list(VIEWS),
        default=next(iter(VIEWS)),
        key="view",
        required=True,
        bind="query-params",
        persist_state="session",
        label_visibility="collapsed",
    )
    VIEWS[view](build, rows)


def named(rows: list[Row]) -> list[Row]:
    """Rows with a `name` of their own: the ensemble in words, and its id where that is not one."""
    names = [ensemble_name(one) for one in rows]
    return [
        {**one, "name": f"{name} · {one['build'][:6]}" if names.count(name) > 1 else name}
        for one, name in zip(rows, names, strict=True)
    ]


def fidelity(build: Build, rows: list[Row]) -> None:
    """One point a build: how well its scores predict retraining, against what it cost."""
    words, choice = st.columns([3, 1], vertical_alignment="center")
    words.caption(LDS)
    measuring(build, rows)
    known = compare.by_one_truth(rows)
    if known:
        cost = choice.selectbox(
            "Cost", list(compare.COSTS), key="cost", bind="query-params", persist_state="session"
        )
        costs = [compare.COSTS[cost](one) for one in known]
        values = [one["lds"] for one in known]
        points = [
            {
                "build": one["build"],
                "name": one["name"],
                "strategy": one["strategy"],
                "cost": paid,
                "lds": one["lds"],
                "low": one["lds_low"],
                "high": one["lds_high"],
            }
            for one, paid in zip(known, costs, strict=True)
        ]
        top = known[0]["ceiling"]
        charts.fidelity(points, compare.pareto(costs, values), cost, top)
        st.caption(
            f"Bars: 95 % intervals over {known[0]['subsets']} random halves, each retrained on "
            f"with {known[0]['seeds']} seeds. The stepped line joins the builds that no other "
            "beats in both. Colours are strategies. Point at a chart for its menu: as a picture "
            "(PNG), full screen."
        )
    table(rows)


def table(rows: list[Row]) -> None:
    """All numbers, to read and to take away."""
    told = engine().accuracies(rows)
    corrected = any(one.changed for one in told.values())
    st.dataframe(
        [
            {
                "build": one["build"],
                "strategy": one["strategy"],
                "ensemble": one["name"],
                "LDS": one["lds"],
                "95 % from": one.get("lds_low"),
                "to": one.get("lds_high"),
                "accuracy": one["accuracy"],
                **({"test labels corrected": told[one["build"]].restated} if corrected else {}),
                "wrong labels": (one.get("known") or {}).get("ap"),
                "training, s": one["seconds"]["train"],
                "attribution, s": compare.attributing(one),
                "a query, ms": 1000 * one["seconds"]["query"],
                "GFLOPs": compare.COSTS["FLOPs"](one) / 1e9,
                "index": size(one["bytes"]["index"]),
                "all": size(compare.COSTS["bytes of all"](one)),
                "peak memory": size(one["peak_memory"]),
                "threads": one.get("threads"),  # not of older builds
            }
            for one in sorted(rows, key=lambda one: -(one["lds"] or 0))
        ],
        hide_index=True,
        column_config={
            **{
                name: st.column_config.NumberColumn(format="%.1f")
                for name in ("training, s", "attribution, s", "a query, ms")
            },
            **{
                name: st.column_config.NumberColumn(format="%.3f")
                for name in ("LDS", "95 % from", "to")
            },
            "wrong labels": st.column_config.NumberColumn(
                format="%.3f",
                help="Average precision of the ranking of labels flipped on purpose, where known.",
            ),
            "accuracy": st.column_config.NumberColumn(format="percent"),
            "test labels corrected": st.column_config.NumberColumn(format="percent"),
            "GFLOPs": st.column_config.NumberColumn(format="%.4g"),
        },
        key="compared",
    )
    st.download_button(
        "Download CSV",
        lambda: comparison_csv(rows),
        file_name="comparison.csv",
        mime="text/csv",
        icon=":material/download:",
        on_click="ignore",
        key="csv",
    )


def side_by_side(build: Build, rows: list[Row]) -> None:
    """The same test image asked of several ensembles."""
    columns = chosen_columns(build, rows)
    if not columns:
        st.info("Choose the ensembles to see side by side.")
        return
    pictures(build, columns)


def chosen_columns(build: Build, rows: list[Row]) -> list[Row]:
    """Two to four builds, as chosen, as the link has them, or of different strategies."""
    by_id = {one["build"]: one for one in rows}
    if "columns" not in st.session_state or not set(st.session_state["columns"]) <= set(by_id):
        st.session_state["columns"] = linked(by_id) or usual(build, rows)
    ids = st.multiselect(
        "Ensembles, two to four",
        list(by_id),
        key="columns",
        format_func=lambda name: by_id[name]["name"],
        max_selections=COLUMNS,
        persist_state="session",
    )
    st.query_params["with"] = ",".join(ids)
    return [by_id[name] for name in ids]


def linked(by_id: dict[str, Row]) -> list[str]:
    """The builds that the address names; of unknown ones only a notice remains."""
    wanted = [name for name in st.query_params.get("with", "").split(",") if name]
    unknown = [name for name in wanted if name not in by_id]
    if unknown or len(wanted) > COLUMNS:
        trouble = UserError(
            found=f"builds {', '.join(unknown or wanted)} in the address",
            wanted=f"up to {COLUMNS} builds on this data and network",
            next_step="choose some below",
        )
        st.session_state["notice"] = str(trouble)
    return [name for name in dict.fromkeys(wanted) if name in by_id][:COLUMNS]


def usual(build: Build, rows: list[Row]) -> list[str]:
    """The page's build, and the newest of two other strategies or, where there are none, others."""
    others = [one for one in rows if one["build"] != build.id]
    newest = {one["strategy"]: one for one in reversed(others)}
    newest.pop(build.summary["strategy"], None)
    return [build.id, *(one["build"] for one in (list(newest.values()) or others)[:2])]


@st.fragment
@guarded
def pictures(build: Build, columns: list[Row]) -> None:
    """Test images to pick from, and the answers: a click reruns this and not the page's head."""
    consume("tests", pick)
    left, right = st.columns([3, 10], gap="large")
    with left:
        found, notes = ordered(build, columns)
        test_id = chosen_test(build, found)
        test_grid(build, found, test_id, "The networks make no mistake on the test images.", notes)
    with right:
        notice()
        if test_id is None:
            st.info("Choose a test image on the left.")
        else:
            answers(build, columns, test_id)


def ordered(build: Build, columns: list[Row]) -> tuple[pd.DataFrame, pd.Series | None]:
    """The test images, those first on which a chosen pair agrees least, and how much it does."""
    pairs = {f"{a['name']}  |  {b['name']}": (a, b) for a, b in combinations(columns, 2)}
    rest = MISTAKES if build.labelled else UNSURE
    order = st.selectbox("Where they disagree most", [*pairs, rest], key="order")
    tests = build.tests(engine().test_labels(build.id))
    if order == UNSURE:
        return tests.sort_values("confidence"), None
    if order not in pairs:
        wrong = tests[~tests.correct & tests.kept].sort_values("confidence", ascending=False)
        return wrong, None
    with st.spinner("Looking up the hits of every test image"):
        a, b = (engine().top(one["build"], HITS) for one in pairs[order])
    shared, k = pd.Series(dict(compare.disagreement(a, b))), a.shape[1]
    st.caption(f"The number is how many of the first {k} training images they share.{own(build)}")
    return tests.loc[shared.index], shared.map(lambda count: f"{count}/{k}")


def answers(build: Build, columns: list[Row], test_id: int) -> None:
    """What each ensemble says of one test image."""
    target = st.session_state.get("target", "predicted")
    picture, words = st.columns([1, 6], vertical_alignment="center")
    answer = build.query(test_id, 1, target)
    picture.image(build.image("test", test_id), width=110)
    with words:
        said = f"Test image **{test_id}**, predicted **{literal(build.classes[answer.predicted])}**"
        if answer.label is not None:
            said += f", labelled **{literal(build.classes[answer.label])}**"
        st.markdown(said)
        target = st.session_state["target"] = question(build, answer)
        side = st.segmented_control(
            "Side",
            ["proponents", "opponents"],
            default="proponents",
            key="side",
            required=True,
            bind="query-params",
            persist_state="session",
            label_visibility="collapsed",
        )
    st.query_params.update({"test": str(test_id), "target": str(target)})

    with st.spinner("Asking the ensembles"):
        opened = [engine().open(one["build"]) for one in columns]
        k = min(HITS, len(build.train_labels_N))
        asked = build.class_of(test_id, target)  # of all the same, whatever each predicts
        found = [one.query(test_id, k, asked) for one in opened]
    hits = [one.proponents if side == "proponents" else one.opponents for one in found]
    ids = [[hit.train_id for hit in some] for some in hits]
    shared = [f"{compare.common(a, b)} of {k} shared" for a, b in pairwise(ids)]
    drawn = [
        {
            "name": one["name"],
            "colour": charts.STRATEGIES[one["strategy"]],
            "times": readable(max((abs(hit.score) for hit in some), default=1))[0],
            "hits": [
                {
                    "id": hit.train_id,
                    "src": inline(build, "train", hit.train_id),
                    "label": hit.label,
                    "score": hit.score,
                    "stderr": hit.stderr or 0,
                }
                for hit in some
            ],
        }
        for one, some in zip(columns, hits, strict=True)
    ]
    charts.ranks(drawn, shared, build.classes, "ranks")
    st.caption(
        f"The {k} strongest {side} of **{literal(build.classes[found[0].target])}** by rank; a "
        "line joins the same training image; one without is not among the neighbour's. Each "
        "ensemble's scores have a scale of their own; the band is two standard errors each way. "
        "Point at an image to follow it."
    )
    flips(build, columns, opened, ids, test_id, asked)


def flips(
    build: Build,
    columns: list[Row],
    opened: list[Build],
    ids: list[list[int]],
    test_id: int,
    asked: int,
) -> None:
    """Overlap of each pair in words, and the images that one calls for and the other against."""
    lines, turned = [], []
    for a, b in combinations(range(len(columns)), 2):
        union = list(dict.fromkeys(ids[a] + ids[b]))
        one, other = (opened[j].rescored(test_id, asked, union) for j in (a, b))
        found = compare.flips([hit.score for hit in one], [hit.score for hit in other])
        names = columns[a]["name"], columns[b]["name"]
        lines.append(
            {
                "shared": f"{compare.common(ids[a], ids[b])} of {len(ids[a])}",
                "sign flips": f"{len(found)} of {len(union)}",
                "one": names[0],
                "other": names[1],
            }
        )
        turned += [flip(build, one[j], other[j], *names) for j in found]
    if not lines:
        return
    st.markdown("**Overlap** of the images shown")
    st.dataframe(lines, hide_index=True, key="overlaps")
    st.markdown("**Sign flips**: for one ensemble, against for the other")
    if turned:
        config = {"image": st.column_config.ImageColumn(width="small")}
        st.dataframe(turned, hide_index=True, column_config=config, key="flips")
    else:
        st.caption("None: on the images shown all agree on the direction.")


def flip(build: Build, one: Hit, other: Hit, name: str, other_name: str) -> dict[str, Any]:
    return {
        "image": inline(build, "train", one.train_id),
        "id": one.train_id,
        "label": build.classes[one.label],
        "one": name,
        "its score": f"{one.score:+.2g}",
        "other": other_name,
        "the other's": f"{other.score:+.2g}",
    }


def agreement(build: Build, rows: list[Row]) -> None:
    """How many of their strongest hits each pair of builds shares."""
    if len(rows) < 2:
        st.info(
            "There is one build on this data and network. Make another with a different "
            "strategy on the page of builds, and see here how far they agree."
        )
        return
    words = f"Looking up the first {AGREE} hits of every test image"
    progress, tops = st.progress(0.0, text=words), []
    for j, one in enumerate(rows):
        progress.progress(j / len(rows), text=words)
        tops.append(engine().top(one["build"], AGREE))
    progress.empty()
    charts.agreement([one["name"] for one in rows], compare.agreement(tops), AGREE)
    st.caption(
        f"Share of the {AGREE} strongest training images that two ensembles have in common, mean "
        f"over {len(build.test_labels_T)} test images. Two that agree can stand for each other: "
        f"take the cheaper.{own(build)}"
    )


def own(build: Build) -> str:
    """What is to be known of agreement where there is no label to ask about."""
    return "" if build.labelled else " Each is asked why it calls an image what it does."


def advice(build: Build, rows: list[Row]) -> None:
    """What more members of this build would buy, and the best build for a budget."""
    st.caption(LDS)
    measuring(build, rows)
    known = compare.by_one_truth(rows)
    mine = next((one for one in known if one["build"] == build.id), None)
    if mine is not None:
        members(mine, known)
        budget(known)
    if build.spec.estimator.name == "trak":
        settings(build)


def settings(build: Build) -> None:
    """Width, damping and power of q, chosen without ground truth."""
    st.subheader("Settings without ground truth", anchor=False)
    found = engine().tuned(build.id)
    asked = next((j for j in measurements([build.id]) if j.command == "tune"), None)
    if found is None and asked is not None and asked.state == RUNNING:
        st.caption("They are being chosen; the progress is above.")
        return
    if found is None:
        if asked is not None and asked.error:
            st.error(asked.error, icon=":material/error:")
        words, action = st.columns([4, 1], gap="large", vertical_alignment="center")
        words.write(
            "How many directions of each gradient are kept, how much the kernel is damped and how "
            "far confident examples are turned down can be chosen from the first network alone. "
            "Takes about a minute."
        )
        if action.button("Choose settings", **locked(BUILD, key="tune", width="stretch")):
            launch([build.id], "tune")
            st.rerun()
        return
    left, right = st.columns([1, 1], gap="large")
    left.dataframe(
        [
            {
                "directions": f"{one['ka']}x{one['kg']}",
                "damping": one["damping"],
                "held-out margins explained": one["held_out"],
                "chosen": (one["ka"], one["kg"]) == (found["ka"], found["kg"]),
            }
            for one in found["widths"]
        ],
        hide_index=True,
        column_config={
            "held-out margins explained": st.column_config.ProgressColumn(
                format="percent", min_value=0.0, max_value=1.0
            )
        },
    )
    with right:
        st.markdown(
            f"**{found['ka']}x{found['kg']}** predicts the margins of training images that were "
            f"left out best; a damping of **{found['damping']:g}** leaves half of a query's weight "
            f"to the training images; q to the power of **{found['q_power']:g}** predicts how a "
            "refitted last layer changes."
        )
        st.code(command_line(["build", *found["options"]]), language="bash", wrap_lines=True)
        if st.button("Start this build", **locked(BUILD, key="start_tuned")):
            launch(found["options"])
            go("builds")


def members(mine: Row, known: list[Row]) -> None:
    """Fidelity against the number of views and of networks, forecast and measured."""
    lds_T, found = engine().variance(mine["build"], mine["truth"])
    st.subheader(f"More of {mine['name']}", anchor=False)
    if found is None:
        st.info("One member cannot tell what others would add. Build it with two or more.")
        return
    spec = spec_from(mine["spec"])
    axis = strategies.growing(spec)
    left, middle, right = st.columns([3, 3, 3], gap="large")
    for place, what, sizes in zip(
        (left, middle), (axis, "networks"), compare.sizes(spec, found), strict=True
    ):
        with place:
            if len(sizes) > 1:
                curve(mine, known, sizes, what)
            elif what == "networks":
                st.info(
                    "One network cannot tell how much others would differ, so what a second one "
                    "would buy is not known. Build it with two, and this page will say."
                )
            else:
                st.info("This ensemble has no views that could be added; see *dropout*.")
    with right:
        st.markdown(noise(mine, axis))
        st.markdown("\n".join(f"- {line}" for line in buys(mine, lds_T, found, spec)))
        st.caption(
            "A forecast: noise that averages out dilutes a correlation by the root of its share. "
            "Dashed where it goes beyond twice what was measured."
        )


def curve(mine: Row, known: list[Row], sizes: list[tuple[int, int]], what: str) -> None:
    """One forecast, with the builds of this strategy that were measured."""
    lds_T, found = engine().variance(mine["build"], mine["truth"])
    networks = what == "networks"
    points = [
        {"kind": "forecast", "name": mine["name"], "lds": plan.lds,
         "count": plan.networks if networks else plan.views}
        for plan in compare.plans(mine, lds_T, found, sizes)
    ]  # fmt: skip
    for one in compare.siblings(mine, known, "models" if networks else what):
        plan = compare.measured(one)
        points.append(
            {
                "kind": "measured" if one is mine else "another",
                "name": one["name"],
                "count": plan.networks if networks else plan.views,
                "lds": one["lds"],
                "low": one["lds_low"],
                "high": one["lds_high"],
            }
        )
    title = "networks" if networks else f"members of each network ({MORE[what]})"
    now = found.networks if networks else found.views
    charts.growth(points, title, mine["ceiling"], now, f"growth_{networks}")


def noise(mine: Row, axis: str | None) -> str:
    """The members' noise in words."""
    _, found = engine().variance(mine["build"], mine["truth"])
    views = MORE[axis] if axis else "views"
    said = f"Of what a single member predicts, **{found.noise:.0%}** is noise that averages out"
    if found.networks == 1:
        return f"{said}, all of it between {views}: how much networks differ, one cannot tell."
    if found.views == 1:
        return f"{said}, all of it between networks."
    between = found.between_networks
    return (
        f"{said}: **{between:.0%}** of that lies between networks and only more networks lower "
        f"it, **{1 - between:.0%}** between {views} of one network."
    )


def buys(mine: Row, lds_T, found: compare.Variance, spec) -> list[str]:
    """What a handful of views, and what one more network would buy and cost."""
    now = compare.measured(mine)
    lines = []
    for count, what, then in compare.more(spec, found):
        (plan,) = compare.plans(mine, lds_T, found, [then])
        gain = compare.difference(now, plan)
        words = "One more network" if what == "network" else f"{count} more {MORE[what]} of each"
        lines.append(
            f"**{words}**: {gain.lds:+.3f} LDS for {span(gain.seconds)}, "
            f"{size(gain.bytes)} and {blink(gain.query_seconds)} a query more"
        )
    return lines


def budget(known: list[Row]) -> None:
    """The cheapest build that is nearly the best within a time."""
    st.subheader("The best for a budget", anchor=False)
    left, right = st.columns([1, 4], gap="large")
    minutes = left.number_input(
        "Minutes for training and attribution",
        0.01,
        100_000.0,
        5.0,
        key="budget",
        bind="query-params",
        persist_state="session",
    )
    offers = []
    for one in known:
        lds_T, found = engine().variance(one["build"], one["truth"])
        spec = spec_from(one["spec"])
        offers.append(((one, spec), compare.measured(one)))
        if found is not None:
            sizes = compare.around(spec, found)
            offers += [((one, spec), plan) for plan in compare.plans(one, lds_T, found, sizes)]
    found = compare.advised(offers, minutes)
    with right:
        if found is None:
            st.info("Nothing that was measured can be had in so little time. Raise the budget.")
            return
        (one, spec), plan = found
        wanted = strategies.resized(spec, plan.networks, plan.views)
        st.markdown(
            f"**{strategies.words(wanted)}, {one['estimator']}** should reach an LDS of "
            f"**{plan.lds:.3f}** in {span(plan.seconds)}, with {size(plan.bytes)} and "
            f"{blink(plan.query_seconds)} a query. It is the cheapest within "
            f"{compare.NEARLY} of the best that {span(60 * minutes)} can buy, over all strategies "
            f"measured here and up to {compare.REACH} times their size."
        )
        options = strategies.options(wanted)
        st.code(command_line(["build", *options]), language="bash", wrap_lines=True)
        if st.button("Start this build", **locked(BUILD, key="start_advised")):
            launch(options)
            go("builds")


VIEWS = {
    "fidelity": fidelity,
    "side by side": side_by_side,
    "agreement": agreement,
    "advice": advice,
}

main()
