"""What is here, how good it is, what it cost, and what to do next."""

import pandas as pd
import streamlit as st

from attribution.build import Build
from attribution.quantities import span
from pages.parts import charts
from pages.parts.asked import deciding, on_test, test_item
from pages.parts.builds_table import builds_table
from pages.parts.findings import findings
from pages.parts.grid import consume, grid, notice
from pages.parts.opened import DOUBT, build_or_stop, command_line, engine, go, thumb
from pages.parts.words import UNLABELLED, percent

SHOWN = 20  # pictures of each kind; two rows of them are in view
POINTS = 500  # of each kind in the chart, the most suspicious


def main() -> None:
    build = build_or_stop(
        "Probable Cause",
        "Find the training images behind every prediction, and the labels that are wrong.",
    )
    consume("overview_wrong", lambda action: marked(build, action))
    consume("overview_suspects", to_review)
    consume("leaks", to_either)
    consume("clashes", to_either)
    notice()
    if "go" in st.session_state:
        go(st.session_state.pop("go"))
    facts(build)
    left, right = st.columns(2, border=True)
    with left:
        mistakes(build)
    with right:
        suspects(build)
    findings(build, to_either)
    doubts(build)
    st.subheader("Builds", anchor=False)
    builds_table("builds_table")
    if st.button("Start another build", key="to_builds"):
        go("builds")


def facts(build: Build) -> None:
    summary, accuracy = build.summary, engine().accuracies([build.summary])[build.id]
    columns = st.columns(5, border=True)
    columns[0].metric("Training images", f"{summary['train']:,}")
    columns[1].metric("Test images", f"{summary['test']:,}")
    columns[2].metric(
        "Test accuracy",
        "not known" if accuracy.given is None else f"{accuracy.given:.1%}",
        help="By the test labels as given. Wrong ones can be corrected, or images excluded, on the "
        "page Explain."
        if build.labelled
        else UNLABELLED,
    )
    columns[3].metric("Networks × masks", f"{summary['models']} × {summary['masks'] or 1}")
    columns[4].metric("Time to build", span(sum(summary["seconds"].values())))
    if accuracy.note:
        st.caption(f"Test accuracy {accuracy.words}.")
    if build.searched:
        st.caption(build.searched)


def mistakes(build: Build) -> None:
    """The surest wrong predictions; where there are no labels, those that are the least sure."""
    labels = engine().test_labels(build.id)
    tests = build.tests(labels)
    if build.labelled:
        some = tests[~tests.correct & tests.kept].sort_values("confidence", ascending=False)
        label = "Wrong predictions"
        st.subheader(f"{len(some)} test images are called wrong. Why?", anchor=False)
        st.caption("Pick one to see the training images that led there.")
    else:
        some, label = tests.sort_values("confidence"), "Least sure predictions"
        st.subheader(f"{len(some)} test images. Why are they called so?", anchor=False)
        st.caption(f"{UNLABELLED} The least sure first.")
    items = [
        {
            **test_item(build, one.Index, one),
            "note": "" if build.labelled else percent(one.confidence),
        }
        for one in some.head(SHOWN).itertuples()
    ]
    empty = "The networks make no mistake on the test images."
    group = {"label": label, "items": items, "empty": empty}
    grid(
        "overview_wrong",
        lambda action: marked(build, action),
        kind="pick",
        tile=76,
        rows=2,
        groups=[group],
        **deciding(build, labels),
    )
    if st.button("Explain predictions", type="primary", key="to_explain"):
        go("explain")


def suspects(build: Build) -> None:
    """The most suspicious training labels."""
    table: pd.DataFrame = build.mislabels()
    likely = int((table.score > DOUBT).sum())
    decided = len(engine().decisions.in_force(build.data_id))
    st.subheader(f"{likely} training labels look suspicious. Are they wrong?", anchor=False)
    st.caption(f"The most suspicious first; {decided} decided so far.")
    items = [
        {
            "id": int(i),
            "src": thumb(build, "train", i),
            "alt": f"Training image {i}",
            "caption": f"labelled {build.classes[one.given_label]}",
            "correct": True,
        }
        for i, one in table.head(SHOWN).iterrows()
    ]
    empty = "There is no training image."
    group = {"label": "Suspicious training images", "items": items, "empty": empty}
    grid("overview_suspects", to_review, kind="pick", tile=76, rows=2, groups=[group])
    if st.button("Review labels", type="primary", key="to_review"):
        go("review")


def doubts(build: Build) -> None:
    """Wrong labels told from images that are hard to tell, each a point to click."""
    st.subheader("Wrong, or only ambiguous?", anchor=False)
    if not st.toggle("Show the chart", key="doubts", bind="query-params", persist_state="session"):
        return
    table = build.mislabels()
    some = pd.concat([table[table.kind == kind].head(POINTS) for kind in charts.KINDS])
    charts.doubts(some, table.kind.value_counts(), to_point, "points")
    part = f"At most {POINTS:,} of each kind are drawn. " if len(some) < len(table) else ""
    st.caption(
        part
        + f"*Wrong*: {int((table.kind == 'wrong').sum())} labels that are more probably wrong than "
        f"right; {table.score.sum():.0f} are expected to be wrong in all. *Ambiguous*: "
        f"{int((table.kind == 'ambiguous').sum())} that are probably right, but the networks "
        "disagree about them more than about nine in ten. Further right, the example stands more "
        "alone with its label. Click a point to review it."
    )
    if "signal_unseen" not in table and build.recipe.trains:
        st.caption(
            "Networks that leave examples out make this surer, in less time than the build took:"
        )
        st.code(command_line(["folds", build.id]), language="bash")


def to_point() -> None:
    """Put the review's cursor on the clicked point."""
    points = st.session_state["points"].selection.points
    if points:
        to_review({"id": points[0]["customdata"]})


def marked(build: Build, action: dict) -> None:
    """A wrong prediction was picked, or its label decided on."""
    if action.get("type") == "pick":
        to_explain(action)
    else:
        on_test(build, action)


def to_explain(action: dict) -> None:
    """Open the picked prediction."""
    st.session_state.update(test=action.get("id"), target="predicted", go="explain")


def to_review(action: dict) -> None:
    """Put the review's cursor on the picked image."""
    st.session_state.update(review_at=action.get("id"), go="review")


def to_either(action: dict) -> None:
    """Open the picked image of `findings`: a prediction, or a label."""
    position, train = divmod(action.get("id", 0), 2)
    (to_review if train else to_explain)({"id": position})


main()
