"""Why a prediction came out as it did: the training images for and against it."""

from typing import Any

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from attribution.build import Build
from attribution.report import prediction
from attribution.testlabels import Labels
from pages.parts import charts
from pages.parts.asked import (
    card,
    chosen_test,
    deciding,
    forget_test,
    on_test,
    pick,
    question,
    test_grid,
)
from pages.parts.exports import report
from pages.parts.grid import Handle, consume, notice, on_train
from pages.parts.hits import for_and_against
from pages.parts.opened import DOUBT, build_or_stop, engine
from pages.parts.trouble import guarded
from pages.parts.whatif import leave, what_if
from pages.parts.words import UNLABELLED, percent

HITS = 12  # of each kind
ANY = "any"
FILTERS = ("label", "predicted")
DOUBTFUL = "doubtful label"
KINDS = ["wrong", "right", "all", DOUBTFUL]
FAINT = 0.01  # a label that is wrong with a lower probability is not called doubtful


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
        shown = st.session_state.get("evidence", {})
        if on_train(build, action, lambda train_id: shown.get(train_id, {})):
            return
        if action.get("type") == "leave" and isinstance(action.get("id"), int):
            leave(action["id"])

    def on_label(action: dict) -> None:
        on_test(build, action)

    consume("tests", on_label)
    consume("subject", on_label)
    consume("hits", on_hit)
    if engine().decisions.newest(build.test_half.id) != st.session_state["labels_at"]:
        st.rerun()  # accuracy, matrix and list are outside of this fragment
    consume("reached", pick)
    labels = engine().test_labels(build.id)
    test_id = chosen_test(build, found)
    kind = st.session_state["show"] if build.labelled else "all"
    with left:
        test_grid(
            build,
            found,
            test_id,
            "There is no such test image. Widen the filter above.",
            build.doubtful_tests.score.map(percent) if kind == DOUBTFUL else None,
            on_label,
            follow=True,
            **deciding(build, labels),
        )
        if build.labelled:
            st.caption(
                "Shift or Ctrl and click, a frame drawn with the mouse or Ctrl+A select several, "
                "whose labels are then decided on together."
            )
    with right:
        notice()
        if test_id is None:
            st.info("Choose a prediction on the left.")
        else:
            explain(build, test_id, labels, on_hit, on_label)


def filtered(build: Build) -> pd.DataFrame:
    """The rows of `build.tests()` that the filter lets through, the surest first.

    By the labels in force, where there are any. What is decided while a filter stays is not taken
    out of its list, so that nothing moves under the keys.
    """
    names = list(build.classes)
    st.session_state["labels_at"] = engine().decisions.newest(build.test_half.id)
    labels = engine().test_labels(build.id)
    bound = {"bind": "query-params", "persist_state": "session", "on_change": forget_test}
    kind = of_labels(build, labels, bound) if build.labelled else "all"
    look, more = st.columns([3, 2], vertical_alignment="center")
    text = look.text_input(
        "Find",
        key="find",
        placeholder="Name or number",
        icon=":material/search:",
        label_visibility="collapsed",
        **bound,
    )
    with more.popover("Filter", icon=":material/tune:", width="stretch"):
        label, predicted = (
            st.selectbox(title, [ANY, *names], key=key, **{**bound, "on_change": by_hand})
            if build.labelled or key == "predicted"
            else ANY
            for title, key in zip(("Label", "Predicted"), FILTERS, strict=True)
        )
        low, high = st.slider("Confidence, %", 0, 100, (0, 100), key="confidence", **bound)
        decided = build.labelled and st.toggle(
            "Only with a decision on the label", key="decided", **bound
        )
    tests = build.tests(labels)
    if text:
        found, said = tests.loc[build.search("test", text)], "called so or with that number"
    else:
        keep = tests.confidence.between(low / 100, high / 100)
        for value, column in ((label, "label"), (predicted, "predicted")):
            if value != ANY:
                keep &= tests[column] == names.index(value)
        if decided:
            found, said = tests[keep & tests.index.isin(labels.decisions)], "decided on"
        else:
            found, said = of_kind(build, kind, tests[keep], labels)
    view = (build.id, kind, label, predicted, low, high, decided, text)
    found = steady(tests, found, view)
    st.caption(f"{len(found)} of {len(tests)} test images, {said}.")
    accuracy = f"Test accuracy {labels.accuracy(build.predicted_T).words}."
    st.caption(accuracy if build.labelled else UNLABELLED)
    return found


def of_labels(build: Build, labels: Labels, bound: dict[str, Any]) -> str:
    """Right or wrong, and the matrix of what is taken for what; the kind that is chosen."""
    if "show" not in st.query_params:  # a default of the widget's own cannot be changed by a click
        st.session_state.setdefault("show", "wrong")
    kind = st.segmented_control(
        "Predictions",
        KINDS,
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
        build.confusion_CC(labels), build.classes, chosen, lambda: cell(matrix_key), matrix_key
    )
    return kind


def of_kind(
    build: Build, kind: str, tests: pd.DataFrame, labels: Labels
) -> tuple[pd.DataFrame, str]:
    """Those of a kind in the order to show them, and how to say so."""
    if kind == DOUBTFUL:
        doubt = build.doubtful_tests.score
        left = ~tests.index.isin(labels.decisions)
        some = tests[left & (doubt.reindex(tests.index) > FAINT)]
        likely = int((doubt.loc[some.index] > DOUBT).sum())
        order = doubt.loc[some.index].sort_values(ascending=False, kind="stable").index
        return some.loc[order], (
            f"{likely} of them with a label that is more probably wrong than right. The number is "
            "how probable, by networks that never saw the image; it is too high where they all "
            "make the same mistake, so look first"
        )
    if not build.labelled:
        return tests.sort_values("confidence"), "the least sure first"
    if kind != "all":
        tests = tests[tests.kept & (tests.correct == (kind == "right"))]
    return tests.sort_values("confidence", ascending=False), "the surest first"


def steady(tests: pd.DataFrame, found: pd.DataFrame, view: tuple) -> pd.DataFrame:
    """`found`, and where the view is the last one, what that showed, in its place."""
    was = st.session_state.get("tests_shown")
    ids = tuple(int(t) for t in found.index)
    if was and was[0] == view:
        ids = tuple(dict.fromkeys((*was[1], *ids)))
    st.session_state["tests_shown"] = view, ids
    return tests.loc[list(ids)]


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


def explain(build: Build, test_id: int, labels: Labels, on_hit: Handle, on_label: Handle) -> None:
    """The chosen prediction and the hits of the class that the question is about."""
    target = st.session_state.get("target", "predicted")
    count = min(HITS, len(build.train_labels_N))
    answer = build.query(test_id, count, target)
    shown, sent = st.columns([6, 1])
    with shown:
        card(build, answer, labels, on_label)
    label = int(labels.labels_T[test_id])
    corrected = None if answer.label in (None, label) else label
    asked = question(build, answer, corrected)
    if asked != target:
        st.session_state["target"] = target = asked
        answer = build.query(test_id, count, target)
    st.query_params.update({"test": str(test_id), "target": str(target)})
    with sent:
        report(
            lambda: prediction(build, test_id, count, target, labels),
            f"test-{test_id}-{build.id}",
            "One page to send to someone: this prediction and the images behind it.",
            "report",
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
    place = st.container()  # above what is left out, which it shows
    left_out = what_if(build, answer)
    with place:
        for_and_against(
            build,
            "hits",
            on_hit,
            answer,
            " The band around a score shows two of them each way. *Shaky*: the band reaches zero, "
            "or members disagree. A dashed label is itself in doubt. Pick a training image to "
            "keep, relabel or drop it; the key ? on one tells all keys.",
            left_out=left_out,
        )


main()
