"""The prediction that a page asks about: which test image, and about which of its classes."""

import pandas as pd
import streamlit as st

from attribution.engine import Build
from attribution.records import Answer, UserError

from .grid import Action, grid, subject
from .opened import thumb
from .thumbs import inline
from .words import literal

PAGE = 120  # test thumbnails at a time


def pick(action: Action) -> None:
    """A thumbnail was picked."""
    if action.get("type") == "pick" and isinstance(action.get("id"), int):
        st.session_state["test"] = action["id"]
        st.session_state["target"] = "predicted"


def test_grid(
    build: Build,
    found: pd.DataFrame,
    selected: int | None,
    empty: str,
    notes: pd.Series | None = None,
) -> None:
    """The test images of `found` (rows of `build.tests()`), to pick from; `consume` them first.

    `notes` is what to say of each in place of the confidence.
    """
    pages = -(-len(found) // PAGE)
    page = st.pagination(pages, key="tests_page") if pages > 1 else 1
    here = found.iloc[(page - 1) * PAGE : page * PAGE]
    items = [test_item(build, *one) for one in here.itertuples()]
    if notes is not None:
        items = [{**item, "note": notes[item["id"]]} for item in items]
    group = {"label": "Test predictions", "items": items, "empty": empty}
    grid("tests", pick, kind="pick", tile=66, selected=selected, groups=[group])


def test_item(
    build: Build, test_id: int, label: int, predicted: int, confidence: float, correct: bool
) -> dict:
    given, said = build.classes[label], build.classes[predicted]
    return {
        "id": test_id,
        "src": thumb(build, "test", test_id),
        "alt": f"Test image {test_id}",
        "caption": given if correct else f"{given} → {said}",
        "correct": bool(correct),
        "note": f"{confidence:.0%}",
    }


def forget_test() -> None:
    """Another filter shows its own first prediction."""
    st.session_state["test"] = None
    st.session_state["target"] = "predicted"


def chosen_test(build: Build, found: pd.DataFrame) -> int | None:
    """The test image that was clicked, or the link's, or the first that the filter lets through."""
    if "test" not in st.session_state:
        forget_test()
        follow_link(build)
    chosen = st.session_state["test"]
    if chosen not in build.tests().index:  # of another build
        chosen = None
    return int(found.index[0]) if chosen is None and len(found) else chosen


def follow_link(build: Build) -> None:
    """Take test image and target from the address; of a bad one only a notice remains."""
    text = st.query_params.get("test")
    if text is None:
        return
    target = st.query_params.get("target", "predicted")
    try:
        if not text.isdecimal():
            raise UserError(
                found=f"test id {text!r} in the address",
                wanted=f"a position from 0 to {len(build.test_labels_T) - 1}",
                next_step="choose a prediction on the left",
            )
        build.query(int(text), 1, target)
    except UserError as error:
        st.session_state["notice"] = str(error)
        return
    st.session_state.update(test=int(text), target=target)


def card(build: Build, answer: Answer) -> None:
    """The test image, large, with its probabilities."""
    probs_C = build.probs_TC[answer.test_id]
    top = [int(c) for c in (-probs_C).argsort()[:5]]
    if answer.label not in top:
        top[-1] = answer.label
    paths = build.data.test.paths  # none for data that came with the program
    right = answer.label == answer.predicted
    tone = {answer.label: "label", answer.predicted: "label" if right else "predicted"}
    subject(
        "subject",
        src=inline(build, "test", answer.test_id),
        alt=f"Test image {answer.test_id}",
        title=" · ".join([f"Test image {answer.test_id}", *paths[answer.test_id :][:1]]),
        facts=[
            (f"Predicted {build.classes[answer.predicted]}", "right" if right else "wrong"),
            (f"Labelled {build.classes[answer.label]}", "right" if right else ""),
        ],
        bars=[
            {
                "name": build.classes[c],
                "value": float(probs_C[c]),
                "text": f"{probs_C[c]:.1%}",
                "tone": tone.get(c, ""),
            }
            for c in top
        ],
    )


def question(build: Build, answer: Answer) -> str:
    """Which class the question is about, as `Build.query` takes it."""
    first = list(dict.fromkeys([answer.predicted, answer.label]))
    options = first + [c for c in range(len(build.classes)) if c not in first]

    control = st.pills if len(options) <= 12 else st.selectbox

    def words(c: int) -> str:
        name = build.classes[c] if control is st.selectbox else literal(build.classes[c])
        if c == answer.predicted:
            return f"Why {name}?"
        return f"Why not {name}, its label?" if c == answer.label else name

    key = f"question_{build.id}_{answer.test_id}"
    default = (
        {"default": answer.target}
        if control is st.pills
        else {"index": options.index(answer.target)}
    )
    picked = control(
        "Question",
        options,
        format_func=words,
        key=key,
        label_visibility="collapsed",
        required=True,
        **default,
    )
    if picked == answer.predicted:
        return "predicted"
    return "label" if picked == answer.label else str(picked)
