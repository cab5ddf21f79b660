"""What is here, how good it is, what it cost, and what to do next."""

import streamlit as st

from pages.parts.grid import grid
from pages.parts.opened import DOUBT, build_or_stop, engine, members, thumb
from pages.parts.words import size, span

SHOWN = 20  # pictures of each kind; two rows of them are in view

build = build_or_stop(
    "Probable Cause",
    "Find the training images behind every prediction, and the labels that are wrong.",
)
summary = build.summary
tests = build.tests()
wrong = tests[~tests.correct].sort_values("confidence", ascending=False)
suspects = build.mislabels()
likely = int((suspects.score > DOUBT).sum())
decisions = engine().decisions.in_force(build.data_id)

facts = st.columns(5, border=True)
facts[0].metric("Training images", f"{summary['train']:,}")
facts[1].metric("Test images", f"{summary['test']:,}")
facts[2].metric("Test accuracy", f"{summary['accuracy']:.1%}")
facts[3].metric("Networks × masks", f"{summary['models']} × {summary['masks'] or 1}")
facts[4].metric("Time to build", span(sum(summary["seconds"].values())))

left, right = st.columns(2, border=True)
with left:
    st.subheader(f"{len(wrong)} test images are called wrong. Why?", anchor=False)
    st.caption("Pick one to see the training images that led there.")

    def explain(action: dict) -> None:
        st.session_state["go"] = action.get("id")

    grid(
        "overview_wrong",
        explain,
        kind="pick",
        tile=76,
        rows=2,
        groups=[
            {
                "label": "Wrong predictions",
                "items": [
                    {
                        "id": int(i),
                        "src": thumb(build, "test", i),
                        "alt": f"Test image {i}",
                        "caption": f"{build.classes[one.label]} → {build.classes[one.predicted]}",
                        "correct": False,
                    }
                    for i, one in wrong.head(SHOWN).iterrows()
                ],
                "empty": "The networks make no mistake on the test images.",
            }
        ],
    )
    if st.button("Explain predictions", type="primary", key="to_explain"):
        st.switch_page("pages/explain.py")
with right:
    st.subheader(f"{likely} training labels look wrong. Are they?", anchor=False)
    st.caption(f"The most suspicious first; {len(decisions)} decided so far.")

    def review(action: dict) -> None:
        st.session_state["go_review"] = action.get("id")

    grid(
        "overview_suspects",
        review,
        kind="pick",
        tile=76,
        rows=2,
        groups=[
            {
                "label": "Suspicious training images",
                "items": [
                    {
                        "id": int(i),
                        "src": thumb(build, "train", i),
                        "alt": f"Training image {i}",
                        "caption": f"labelled {build.classes[one.given_label]}",
                        "correct": True,
                    }
                    for i, one in suspects.head(SHOWN).iterrows()
                ],
                "empty": "No label looks wrong.",
            }
        ],
    )
    if st.button("Review labels", type="primary", key="to_review"):
        st.switch_page("pages/review.py")

chosen = st.session_state.pop("go", None)
if chosen is not None:
    st.switch_page("pages/explain.py", query_params={"build": build.id, "test": str(chosen)})
chosen = st.session_state.pop("go_review", None)
if chosen is not None:
    st.session_state["review_at"] = chosen
    st.switch_page("pages/review.py")

st.subheader("Builds", anchor=False)
st.dataframe(
    [
        {
            "build": one["build"],
            "data": one["data"],
            "wrong on purpose": one["noise"],
            "network": one["model"],
            "ensemble": members(one),
            "accuracy": one["accuracy"],
            "time": span(sum(one["seconds"].values())),
            "size": size(sum(one["bytes"].values())),
        }
        for one in engine().builds()
    ],
    hide_index=True,
    column_config={
        "accuracy": st.column_config.NumberColumn(format="percent"),
        "wrong on purpose": st.column_config.NumberColumn(format="percent"),
    },
    key="builds_table",
)
if st.button("Start another build", key="to_builds"):
    st.switch_page("pages/builds.py")
