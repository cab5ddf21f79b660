"""The prediction that a page asks about: which test image, and about which of its classes."""

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from attribution.build import Build
from attribution.records import Answer, UserError, natural
from attribution.testlabels import Labels

from .grid import TEST, Action, Handle, class_keys, decide, drawn, grid, redo, subject, undo
from .opened import seen, thumb
from .thumbs import inline
from .words import literal, percent

PAGE = 120  # test thumbnails at a time
LIKELY = 5  # classes offered for a test image


def on_test(build: Build, action: Action) -> None:
    """A thumbnail was picked, or something decided on test labels, here or in the card."""
    if action.get("type") == "decide":
        decide(build, action, lambda test_id: shown_of(build, test_id), TEST)
    elif action.get("type") in ("undo", "redo"):
        about = (undo if action["type"] == "undo" else redo)(build, TEST)
        if len(about) == 1 and about[0].example_id in build.test_ids:
            st.session_state["test"] = build.test_ids.index(about[0].example_id)
    else:
        pick(action)


def shown_of(build: Build, test_id: object) -> dict[str, float]:
    """What was to be seen of a test label when it was decided on."""
    if test_id not in build.doubtful_tests.index:
        return {}
    one = build.doubtful_tests.loc[test_id]
    return {"score": float(one.score), "suggested_label": int(one.suggested)}


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
    handle: Handle = pick,
    **more: Any,
) -> None:
    """The test images of `found` (rows of `build.tests()`), to pick from; `consume` them first.

    `notes` is what to say of each in place of the confidence; `more` goes to the grid.
    """
    pages = -(-len(found) // PAGE)
    page = st.pagination(pages, key="tests_page") if pages > 1 else 1
    here = found.iloc[(page - 1) * PAGE : page * PAGE]
    items = [test_item(build, one.Index, one) for one in here.itertuples()]
    if notes is not None:
        items = [{**item, "note": notes[item["id"]]} for item in items]
    group = {"label": "Test predictions", "items": items, "empty": empty}
    grid("tests", handle, kind="pick", tile=66, selected=selected, groups=[group], **more)


def test_item(build: Build, test_id: int, one: Any) -> dict:
    """A test image as the grid draws it, from its row of `build.tests()`.

    The caption has the label as given, if there is one: what was decided on it is drawn over the
    image.
    """
    label, said = int(build.test_labels_T[test_id]), build.classes[one.predicted]
    given = build.classes[label]
    called = "" if label == one.predicted else f", called {said}"
    about = f"labelled {given}{called}" if build.labelled else f"called {said}"
    return {
        "id": int(test_id),
        "src": thumb(build, "test", test_id),
        "alt": f"Test image {test_id}, {about}",
        "caption": f"{given} → {said}" if called else given,
        "correct": bool(one.correct),
        "note": f"{one.confidence:.0%}",
        "title": f"{build.name('test', test_id)}\nTest image {test_id}, {about}",
        "given": label,
        "likely": likely(build, test_id),
    }


def likely(build: Build, test_id: int) -> list[int]:
    """The classes that the networks believe most of a test image."""
    return [int(c) for c in (-build.probs_TC[test_id]).argsort()[:LIKELY]]


def deciding(build: Build, labels: Labels) -> dict[str, Any]:
    """What a grid of test images needs for decisions on their labels, if they have any."""
    if not build.labelled:
        return {}
    return {
        "split": TEST,
        "classes": list(build.classes),
        "keys": class_keys(build),
        "verdicts": drawn(labels.decisions),
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
    """Take test image and target from the address; of a bad one only a notice remains.

    A number there is a class's position, as pages write it, whatever the classes are called.
    """
    text = st.query_params.get("test")
    if text is None:
        return
    words = st.query_params.get("target", "predicted")
    target = words if (number := natural(words)) is None else number
    try:
        test_id = natural(text)
        if test_id is None:
            raise UserError(
                found=f"test id {text!r} in the address",
                wanted=f"a position from 0 to {len(build.test_labels_T) - 1}",
                next_step="choose a prediction on the left",
            )
        build.query(test_id, 1, target)
    except UserError as error:
        st.session_state["notice"] = str(error)
        return
    st.session_state.update(test=test_id, target=target)


def card(build: Build, answer: Answer, labels: Labels, handle: Handle) -> None:
    """The test image, large, with its probabilities and what can be decided on its label."""
    test_id = answer.test_id
    probs_C = build.probs_TC[test_id]
    top = likely(build, test_id)
    facts, tone, about = [(f"Predicted {build.classes[answer.predicted]}", "")], {}, {}
    if answer.label is not None:
        facts, tone, about = of_label(build, answer, answer.label, labels)
        top += [c for c in tone if c not in top]
        about["likely"] = top
    subject(
        "subject",
        handle,
        id=test_id,
        src=inline(build, "test", test_id),
        alt=f"Test image {test_id}",
        title=f"Test image {test_id}",
        facts=facts,
        **about,
        **views(build, "test", test_id),
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


def of_label(
    build: Build, answer: Answer, given: int, labels: Labels
) -> tuple[list[tuple[str, str]], dict[int, str], dict[str, Any]]:
    """What the card says of a label, the tones of its classes, and what can be decided on it."""
    test_id = answer.test_id
    label = int(labels.labels_T[test_id])
    right = label == answer.predicted
    tone = {given: "", label: "label", answer.predicted: "label" if right else "predicted"}
    facts = [(f"Predicted {build.classes[answer.predicted]}", "right" if right else "wrong")]
    if label == given:
        facts.append((f"Labelled {build.classes[label]}", "right" if right else ""))
    else:
        facts.append((f"Labelled {build.classes[given]}", "gone"))
        facts.append((f"corrected to {build.classes[label]}", "right" if right else "changed"))
    if not labels.kept_T[test_id]:
        facts.append(("excluded", "changed"))
    doubt = build.doubtful_tests.score[test_id]
    said = f"Going by the networks alone, the given label is wrong: {percent(doubt)}."
    about = {
        "doubt": said if doubt > 0.01 else "",
        "verdict": drawn({0: labels.decisions.get(test_id)}).get(0),
        "given": given,
        "classes": list(build.classes),
        "keys": class_keys(build),
    }
    return facts, tone, about


def views(build: Build, split: str, i: int) -> dict[str, Any]:
    """The name of an image, and its pixels as stored and as the network sees them."""
    original = build.image(split, i)
    return {
        "name": build.name(split, i),
        "original": thumb(build, split, i),
        "seen": seen(build, split, i),
        "about": [
            f"{pixels(original)}, as in the data set",
            as_seen(build, original, build.seen(split, i)),
        ],
    }


def as_seen(build: Build, image: np.ndarray, network: np.ndarray) -> str:
    """How the network's input differs from an image, in words."""
    same = "the same pixels, brought to mean 0 and deviation 1"
    if build.spec.preprocess:
        same = "the image as it is; its input is what the preprocessing makes of it"
    how = same if np.array_equal(image, network) else "its input mapped back to pixels"
    return f"{pixels(network)}: {how}"


def pixels(image: np.ndarray) -> str:
    """The size of an image in words."""
    high, wide, *channels = image.shape
    return f"{wide} × {high}, {'colour' if channels else 'grey'}"


def question(build: Build, answer: Answer, corrected: int | None = None) -> str | int:
    """Which class the question is about, as `Build.query` takes it.

    `corrected` is the label by a decision in force, where that is another than the given one.
    """
    first = [answer.predicted, answer.label, corrected]
    first = [c for c in dict.fromkeys(first) if c is not None]
    options = first + [c for c in range(len(build.classes)) if c not in first]

    few = len(options) <= 12

    def words(c: int) -> str:
        name = literal(build.classes[c]) if few else build.classes[c]
        if c == answer.predicted:
            return f"Why {name}?"
        if c == corrected:
            return f"Why not {name}, its label as corrected?"
        return f"Why not {name}, its label?" if c == answer.label else name

    begins("question", answer.target, of=(build.id, answer.test_id))
    picked = (st.pills if few else st.selectbox)(
        "Question",
        options,
        format_func=words,
        key="question",
        label_visibility="collapsed",
        required=True,
    )
    if picked == answer.predicted:
        return "predicted"
    return "label" if picked == answer.label else picked


def begins(key: str, value: object, of: object) -> None:
    """Have a widget begin at a value whenever what it is about (`of`) is something else.

    A key for each would do so too, but Streamlit keeps what it knows of a widget, its options and
    functions, under each key for as long as the session lives.
    """
    if st.session_state.get(f"{key}_of") != of or key not in st.session_state:
        st.session_state.update({key: value, f"{key}_of": of})
