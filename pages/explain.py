"""Why a prediction came out as it did: the training images for and against it."""

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from attribution.engine import Build
from attribution.records import Answer, Hit, UserError
from pages.parts import charts
from pages.parts.grid import (
    class_keys,
    consume,
    decide,
    grid,
    notice,
    subject,
    undo,
    verdicts,
)
from pages.parts.opened import DOUBT, build_or_stop, thumb
from pages.parts.thumbs import inline
from pages.parts.trouble import guarded
from pages.parts.words import readable

HITS = 12  # of each kind
PAGE = 120  # test thumbnails at a time
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

    def pick(action: dict) -> None:
        if action.get("type") == "pick" and isinstance(action.get("id"), int):
            st.session_state["test"] = action["id"]
            st.session_state["target"] = "predicted"

    def on_hit(action: dict) -> None:
        if action.get("type") == "undo":
            undo(build)
        elif action.get("type") == "decide":
            decide(build, action, st.session_state.get("evidence", {}).get(action.get("id"), {}))

    consume("tests", pick)
    consume("hits", on_hit)
    test_id = chosen_test(build, found)
    with left:
        pages = -(-len(found) // PAGE)
        page = st.pagination(pages, key="tests_page") if pages > 1 else 1
        here = found.iloc[(page - 1) * PAGE : page * PAGE]
        tests = {
            "label": "Test predictions",
            "items": [test_item(build, *one) for one in here.itertuples()],
            "empty": "No prediction is like that. Widen the filter above.",
        }
        grid("tests", pick, kind="pick", tile=66, selected=test_id, groups=[tests])
    with right:
        notice()
        if test_id is None:
            st.info("Choose a prediction on the left.")
        else:
            explain(build, test_id, on_hit)


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


def explain(build: Build, test_id: int, on_hit) -> None:
    """The chosen prediction and the hits of the class that the question is about."""
    target = st.session_state.get("target", "predicted")
    answer = build.query(test_id, HITS, target)
    card(build, answer)
    asked = question(build, answer)
    if asked != target:
        st.session_state["target"] = target = asked
        answer = build.query(test_id, HITS, target)
    st.query_params.update({"test": str(test_id), "target": target})

    name = build.classes[answer.target]
    st.markdown(
        f"**Proponents** made the networks surer that this is **{name}**; "
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

    def group(label: str, tone: str, some: tuple[Hit, ...]) -> dict:
        items = [hit_item(build, hit, suspects.loc[hit.train_id], times) for hit in some]
        return {"label": label, "title": True, "tone": tone, "items": items, "empty": "None found."}

    grid(
        "hits",
        on_hit,
        kind="hit",
        tile=80,
        classes=list(build.classes),
        keys=class_keys(build),
        verdicts=verdicts(build, [hit.train_id for hit in hits]),
        scale=max((abs(hit.score) + 2 * (hit.stderr or 0) for hit in hits), default=1) or 1,
        groups=[
            group(f"Pushed towards {name}", "for", answer.proponents),
            group(f"Pushed away from {name}", "against", answer.opponents),
        ],
    )
    st.caption(
        f"{said}{answer.noise} The band around a score shows two of them each way. *Shaky*: the "
        f"band reaches zero, or members disagree. A dashed label is itself in doubt. Pick a "
        f"training image to keep, relabel or drop it."
    )


def card(build: Build, answer: Answer) -> None:
    """The test image, large, with its probabilities."""
    probs_C = build.probs_TC[answer.test_id]
    top = [int(c) for c in (-probs_C).argsort()[:5]]
    if answer.label not in top:
        top[-1] = answer.label
    right = answer.label == answer.predicted
    tone = {answer.label: "label", answer.predicted: "label" if right else "predicted"}
    subject(
        "subject",
        src=inline(build, "test", answer.test_id),
        alt=f"Test image {answer.test_id}",
        title=f"Test image {answer.test_id}",
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

    def words(c: int) -> str:
        name = build.classes[c]
        if c == answer.predicted:
            return f"Why {name}?"
        return f"Why not {name}, its label?" if c == answer.label else name

    key = f"question_{build.id}_{answer.test_id}"
    control = st.pills if len(options) <= 12 else st.selectbox
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


def hit_item(build: Build, hit: Hit, suspect: pd.Series, times: float) -> dict:
    members = build.summary["members"]
    agree = round(hit.agreement * members)
    name = build.classes[hit.label]
    error = "" if hit.stderr is None else f" ± {2 * hit.stderr:.2g}"
    return {
        "id": hit.train_id,
        "src": inline(build, "train", hit.train_id),
        "alt": f"Training image {hit.train_id}, labelled {name}",
        "caption": name,
        "doubt": int(suspect.suggested_label) if suspect.score > DOUBT else None,
        "score": hit.score,
        "stderr": hit.stderr or 0,
        "score_text": f"{hit.score * times:+.1f}",
        "agreement_text": f"{agree}/{members}",
        "shaky": hit.shaky,
        "title": f"Training image {hit.train_id}, labelled {name}. Score {hit.score:+.3g}{error}; "
        f"{agree} of {members} members agree on the direction.",
    }


main()
