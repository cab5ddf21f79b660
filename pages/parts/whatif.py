"""What if these training images had not been there? Predicted at once, proved by retraining."""

from typing import Any

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from attribution.build import Build
from attribution.jobs import Job
from attribution.records import Answer, UserError, natural
from attribution.whatif import LEAST, Forecast, Scale, agreement, columns, predicted, scale_of

from . import charts
from .access import BUILD
from .asked import pick
from .jobs import RUNNING, framed
from .opened import command_line, engine, launch, locked, may
from .reach import expander, unscaled
from .trouble import guarded
from .words import literal, sure

COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
FOR, AGAINST, OWN = SIDES = ("strongest for", "strongest against", "my own choice")
PAIRS = 5  # networks with, and as many without: an interval in about a minute on the demo
Row = dict[str, Any]


def leave(train_id: int) -> None:
    """A training image was put on the list of those to leave out, or taken off it."""
    ids = set(st.session_state.get("left_out", ())) ^ {train_id}
    choose(sorted(ids))


def choose(ids: list[int]) -> None:
    """Leave out these and no others."""
    st.session_state.update(leave=OWN, picked=ids, left_out=ids)


def what_if(build: Build, answer: Answer) -> list[int]:
    """The whole section; returns the training images that it leaves out."""
    st.subheader("What if they had not been there?", anchor=False)
    ids = chosen(build, answer)
    st.session_state["left_out"] = ids
    rows = engine().verifications(build.id)
    scale = scale_of(rows)
    told, here = None, (answer.test_id, answer.target, tuple(sorted(ids)))
    if ids:
        # What is predicted of a removal was not learned from it.
        before = scale_of([r for r in rows if place(r) != here])
        try:
            told = engine().forecast(build.id, answer.test_id, ids, answer.target, before)
        except UserError as error:
            st.warning(str(error), icon=":material/info:")
    if told:
        found = [r for r in rows if place(r) == here]
        outcome(build, told, found)
        with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
            proof(build, told, found)
            smallest(build, answer, rows, scale)
        expander(build, told.removed, pick)
    if rows:
        picture(build, rows, scale, told)
    return ids


def place(row: Row) -> tuple[int, int, tuple[int, ...]]:
    return row["test_id"], row["target"], row["removed"]


def chosen(build: Build, answer: Answer) -> list[int]:
    """The controls, and the training images that they choose; both are in the address."""
    key = build.data_id, answer.test_id, answer.target
    if "picked" not in st.session_state:
        words = st.query_params.get("picked", "").split(",")
        numbers = [natural(word) for word in words]
        st.session_state["picked"] = [n for n in numbers if n is not None]
    elif st.session_state.get("picked_for", key) != key:  # of another prediction
        st.session_state["picked"] = []
        if st.session_state.get("leave") == OWN:
            st.session_state["leave"] = FOR
    st.session_state["picked_for"] = key
    if "leave" not in st.query_params:  # a default of the widget's own cannot be changed by a click
        st.session_state.setdefault("leave", FOR)
    left, right = st.columns([5, 4], gap="large", vertical_alignment="bottom")
    side = left.segmented_control(
        "Leave out",
        SIDES,
        key="leave",
        required=True,
        bind="query-params",
        persist_state="session",
    )
    picked = st.session_state["picked"]
    if side != OWN:
        st.query_params.pop("picked", None)
        every = len(build.train_labels_N)
        limit = min(max(every // 4, COUNTS[1]), every)
        counts = [k for k in COUNTS if k <= limit]
        count = right.select_slider(
            "How many",
            counts,
            key="count",
            value=min(20, counts[-1]),
            bind="query-params",
            persist_state="session",
        )
        return list(build.strongest(answer.test_id, count, answer.target, side == AGAINST))
    st.query_params["picked"] = ",".join(map(str, picked))
    words, action = right.columns([3, 1], vertical_alignment="center")
    words.caption(
        f"**{len(picked)}** chosen. Press **−** on an image above, or the key O, to choose it or "
        "take it back."
    )
    if picked:
        action.button("Clear", key="clear_picked", width="stretch", on_click=choose, args=([],))
    return picked


def outcome(build: Build, told: Forecast, found: list[Row]) -> None:
    """Now, predicted and realised, side by side."""
    name = literal(build.classes[told.target])
    count = f"{len(told.removed)} image{'s' if len(told.removed) > 1 else ''}"
    with st.container(gap="small"):
        now, predicted, realised = st.columns(3)

    def figure(column: DeltaGenerator, label: str, value: str, note: str, said: str = "") -> None:
        column.metric(
            label, value, note, delta_color="off", delta_arrow="off", border=True,
            help=said or None, height="stretch",
        )  # fmt: skip

    figure(
        now,
        f"Sure of {name} now",
        sure(told.margin),
        f"margin {told.margin:+.1f}",
        "The margin says it without an end: 0 is undecided, +3 is 95 %, +7 is 99.9 %.",
    )
    if told.change is None:
        error = "" if told.share_stderr is None else f"± {200 * told.share_stderr:.1f} "
        figure(
            predicted,
            f"Predicted without {count}",
            f"{-100 * told.share:+.{0 if abs(told.share) > 0.095 else 1}f} %",
            f"{error}of the push towards {name}",
            "Scores order removals, but are in a unit of their own: how far the margin falls is "
            f"told once {LEAST} removals are verified. {build.noise}",
        )
    else:
        assert told.after is not None and told.low is not None and told.high is not None
        figure(
            predicted,
            f"Predicted without {count}",
            sure(told.after),
            f"margin {told.change:+.1f} ({told.low:+.1f} to {told.high:+.1f})",
            "From the other removals verified so far; 95 % are to lie within.",
        )
    if not found:
        figure(realised, f"Retrained without {count}", "?", "not tried yet")
        return
    one = found[0]
    between = "" if one["low"] is None else f" ({one['low']:+.1f} to {one['high']:+.1f})"
    figure(
        realised,
        f"Retrained without {count}",
        sure(one["after"]),
        f"margin {one['change']:+.1f}{between}",
        f"{one['seeds']} pairs of networks that differ only in these images; those with all "
        f"images are sure by {sure(one['before'])}.",
    )
    before, after = (literal(build.classes[one[k]]) for k in ("said_before", "said_after"))
    if one["flipped"]:
        badge = ":orange-badge[:material/swap_horiz: It flips]"
        st.markdown(f"{badge} Retrained networks say **{after}** instead of **{before}**.")
    else:
        badge = ":blue-badge[:material/check: It holds]"
        st.markdown(f"{badge} Retrained networks still say **{after}**.")


def proof(build: Build, told: Forecast, found: list[Row]) -> None:
    """The button that retrains, or the progress of what it started."""
    mine = [j for j in engine().jobs() if j.command == "verify" and j.options[:1] == (build.id,)]
    if mine and mine[0].state == RUNNING:
        st.fragment(guarded(watch), run_every=1.0)(build.id)
        return
    here = [build.id, str(told.test_id)]
    if mine and mine[0].state == "failed" and list(mine[0].options[:2]) == here:
        st.error(mine[0].error, icon=":material/error:")
    if build.retraining:
        st.caption(build.retraining)
    if not build.recipe.trains:
        return
    pairs = st.number_input(
        "Pairs of networks",
        1,
        50,
        PAIRS,
        key="pairs",
        width=150,
        help="Each pair starts the same and sees the same batches; one leaves the images out. "
        "More pairs, a narrower interval.",
    )
    again = bool(found) and found[0]["seeds"] >= pairs
    options = [build.id, str(told.test_id), "--target", build.classes[told.target]]
    options += ["--remove", ",".join(map(str, told.removed)), "--seeds", str(pairs)]
    if st.button(
        "Verified" if again else "Verify by retraining",
        **locked(
            BUILD,
            type="primary",
            key="verify",
            disabled=again,
            icon=":material/science:",
            help="Runs in the background; this tab may be closed. In a terminal: "
            f"`{command_line(['verify', *short(options)])}`",
        ),
    ):
        launch(options, "verify")
        st.rerun(scope="fragment")


def short(options: list[str]) -> list[str]:
    """The options with a long list of ids cut."""
    return [o if len(o) < 60 else f"{o[:50].rpartition(',')[0]},..." for o in options]


def watch(build_id: str) -> None:
    """The running verification, with the button that cancels it."""
    busy = [j for j in running() if j.options[:1] == (build_id,)]
    if not busy:
        st.rerun()
    if framed(busy[0], "Cancel", **locked(BUILD, key="cancel_verify")):
        may(BUILD).cancel(busy[0].id)
        st.rerun()


def running() -> list[Job]:
    return [j for j in engine().jobs() if j.command == "verify" and j.state == RUNNING]


def smallest(build: Build, answer: Answer, rows: list[Row], scale: Scale | None) -> None:
    """The smallest set that is predicted to flip the prediction, or why that is not known."""
    if scale is None or not scale.usable:
        why = unscaled(scale, len(rows))
        st.caption(f"The smallest set that flips the prediction: {why}. Meanwhile try a count.")
        return
    st.button(
        "Smallest set that flips it",
        key="smallest",
        icon=":material/target:",
        help="From the strongest on, until the predicted margin crosses zero.",
        on_click=choose_smallest,
        args=(build, answer),
    )


def choose_smallest(build: Build, answer: Answer) -> None:
    found = engine().flipping(build.id, answer.test_id, answer.target)
    if found is None:
        st.session_state["notice"] = "No set is predicted to flip this prediction."
    else:
        choose(list(found))


def picture(build: Build, rows: list[Row], scale: Scale | None, told: Forecast | None) -> None:
    """All verified removals on this data and network: what was predicted, what happened."""
    rank = agreement(*columns(rows))
    title = f"{len(rows)} verified removal{'s' if len(rows) > 1 else ''}"
    with st.expander(f"{title}: predicted against what happened", expanded=True):
        here = told and (told.test_id, told.target, told.removed)
        charts.calibration(
            [
                {
                    **r,
                    "name": f"test image {r['test_id']}, {build.classes[r['target']]}: "
                    f"{len(r['removed'])} left out",
                    "here": place(r) == here,
                }
                for r in rows
            ],
            scale,
        )
        if rank is None:
            st.caption(
                f"{LEAST - len(rows)} more verified removals, and the line from predicted to "
                "realised changes can be drawn. Other test images and sizes of sets count too."
            )
        else:
            assert scale is not None
            st.caption(
                f"Rank correlation {rank:.2f}: 1 would be the right order throughout. The line is "
                f"the best factor from scores to margins, {scale.factor:.0f} "
                f"({scale.low:.0f} to {scale.high:.0f}); 95 % of removals lie in the band. "
                "Whiskers: 95 % over the pairs of networks."
            )
        st.dataframe(
            pd.DataFrame(
                {
                    "test image": [r["test_id"] for r in rows],
                    "class": [build.classes[r["target"]] for r in rows],
                    "left out": [len(r["removed"]) for r in rows],
                    "predicted": predicted(rows, scale),
                    "happened": [r["change"] for r in rows],
                    "pairs": [r["seeds"] for r in rows],
                    "flips": [r["flipped"] for r in rows],
                }
            ),
            hide_index=True,
            column_config={
                "predicted": st.column_config.NumberColumn(format="%.1f" if scale else "%.3f"),
                "happened": st.column_config.NumberColumn(format="%.1f"),
            },
            height=min(38 * (len(rows) + 1), 230),
            key="verified",
        )
