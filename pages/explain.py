"""Why a prediction came out as it did: the training images for and against it."""

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from attribution.engine import Build
from attribution.records import Hit
from pages.parts import charts
from pages.parts.asked import card, chosen_test, forget_test, pick, question, test_grid
from pages.parts.grid import (
    consume,
    decide,
    notice,
    undo,
)
from pages.parts.hits import hit_item, hits_grid
from pages.parts.opened import build_or_stop
from pages.parts.trouble import guarded
from pages.parts.whatif import leave, what_if
from pages.parts.words import literal, readable

HITS = 12  # of each kind
ANY = "any"
FILTERS = ("label", "predicted")


def main() -> None:
    build = build_or_stop(
        "Explain", "Why did it say that? Pick a prediction; see the training images behind it."
    )
    left, right = st.columns([4, 9], gap="large")
    with left:
        found = filtered(build)
    show(build, found, left.container(), right.container())


@st.fragment
@guarded
def show(build: Build, found: pd.DataFrame, left: DeltaGenerator, right: DeltaGenerator) -> None:
    """Thumbnails and answer: a click reruns this, and neither the filter nor the page's head."""

    def on_hit(action: dict) -> None:
        if action.get("type") == "undo":
            undo(build)
        elif action.get("type") == "leave" and isinstance(action.get("id"), int):
            leave(action["id"])
        elif action.get("type") == "decide":
            decide(build, action, st.session_state.get("evidence", {}).get(action.get("id"), {}))

    consume("tests", pick)
    consume("hits", on_hit)
    test_id = chosen_test(build, found)
    with left:
        test_grid(build, found, test_id, "No prediction is like that. Widen the filter above.")
    with right:
        notice()
        if test_id is None:
            st.info("Choose a prediction on the left.")
        else:
            explain(build, test_id, on_hit)


def filtered(build: Build) -> pd.DataFrame:
    """The rows of `build.tests()` that the filter lets through, the surest first."""
    names = list(build.classes)
    bound = {"bind": "query-params", "persist_state": "session", "on_change": forget_test}
    top, more = st.columns([3, 2], vertical_alignment="center")
    if "show" not in st.query_params:  # a default of the widget's own cannot be changed by a click
        st.session_state.setdefault("show", "wrong")
    kind = top.segmented_control(
        "Predictions",
        ["wrong", "right", "all"],
        key="show",
        required=True,
        label_visibility="collapsed",
        **bound,
    )
    chosen = tuple(
        None if st.session_state.get(key) in (None, ANY) else st.session_state[key]
        for key in FILTERS
    )
    matrix_key = f"matrix_{st.session_state.get('matrix', 0)}"
    charts.confusion(
        build.confusion_CC(), build.classes, chosen, lambda: cell(matrix_key), matrix_key
    )
    with more.popover("Filter", icon=":material/tune:", width="stretch"):
        label, predicted = (
            st.selectbox(title, [ANY, *names], key=key, **{**bound, "on_change": by_hand})
            for title, key in zip(("Label", "Predicted"), FILTERS, strict=True)
        )
        low, high = st.slider("Confidence, %", 0, 100, (0, 100), key="confidence", **bound)
    tests = build.tests()
    keep = tests.confidence.between(low / 100, high / 100)
    if kind != "all":
        keep &= tests.correct == (kind == "right")
    for value, column in ((label, "label"), (predicted, "predicted")):
        if value != ANY:
            keep &= tests[column] == names.index(value)
    found = tests[keep].sort_values("confidence", ascending=False)
    st.caption(f"{len(found)} of {len(tests)} test images, the surest first.")
    return found


def cell(matrix_key: str) -> None:
    """A cell of the matrix was clicked, or un-clicked."""
    picked = st.session_state[matrix_key]["selection"].get("cell") or []
    chosen = picked[0] if picked else {}
    for key in FILTERS:
        st.session_state[key] = chosen.get(key, ANY)
    if chosen:
        right = chosen["label"] == chosen["predicted"]
        if st.session_state.get("show") != "all":
            st.session_state["show"] = "right" if right else "wrong"
    else:
        st.session_state["show"] = "wrong"
    forget_test()


def by_hand() -> None:
    """Another label was chosen outside of the matrix, whose own selection is now out of date."""
    st.session_state["matrix"] = st.session_state.get("matrix", 0) + 1
    forget_test()


def explain(build: Build, test_id: int, on_hit) -> None:
    """The chosen prediction and the hits of the class that the question is about."""
    target = st.session_state.get("target", "predicted")
    shown = min(HITS, len(build.train_labels_N))
    answer = build.query(test_id, shown, target)
    card(build, answer)
    asked = question(build, answer)
    if asked != target:
        st.session_state["target"] = target = asked
        answer = build.query(test_id, shown, target)
    st.query_params.update({"test": str(test_id), "target": target})

    name = build.classes[answer.target]
    st.markdown(
        f"**Proponents** made the networks surer that this is **{literal(name)}**; "
        f"**opponents** made them less sure."
    )
    hits = (*answer.proponents, *answer.opponents)
    st.session_state["evidence"] = {
        hit.train_id: {
            "test_id": test_id,
            "target": answer.target,
            "score": hit.score,
            "stderr": hit.stderr,
            "agreement": hit.agreement,
        }
        for hit in hits
    }
    suspects = build.mislabels()
    times, said = readable(max((abs(hit.score) for hit in hits), default=1))

    def items(some: tuple[Hit, ...]) -> list[dict]:
        return [hit_item(build, hit, suspects.loc[hit.train_id], times) for hit in some]

    place = st.container()  # above what is left out, which it shows
    left_out = what_if(build, answer)
    with place:
        hits_grid(
            build,
            "hits",
            on_hit,
            [
                (f"Pushed towards {name}", "for", items(answer.proponents)),
                (f"Pushed away from {name}", "against", items(answer.opponents)),
            ],
            left_out=left_out,
        )
        st.caption(
            f"{said}{answer.noise} The band around a score shows two of them each way. *Shaky*: "
            f"the band reaches zero, or members disagree. A dashed label is itself in doubt. Pick "
            f"a training image to keep, relabel or drop it."
        )


main()
