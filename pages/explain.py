"""Why a prediction came out as it did: the training images for and against it."""

import pandas as pd
import streamlit as st

from attribution.engine import Build
from attribution.records import Answer, Hit, UserError
from pages.parts import charts
from pages.parts.grid import consume, decide, grid, notice, subject, verdicts
from pages.parts.opened import build_or_stop, engine, member_count, thumb

HITS = 12  # of each kind
PAGE = 120  # test thumbnails at a time
ANY = "any"
FILTERS = ("label", "predicted")


def main() -> None:
    build = build_or_stop(
        "Explain", "Why did it say that? Pick a prediction; see the training images behind it."
    )
    show(build)


@st.fragment
def show(build: Build) -> None:
    """The whole page below its head: a click reruns this and nothing else."""

    def pick(action: dict) -> None:
        if action.get("type") == "pick" and isinstance(action.get("id"), int):
            st.session_state["test"] = action["id"]
            st.session_state["target"] = "predicted"

    def on_hit(action: dict) -> None:
        if action.get("type") == "undo":
            engine().decisions.undo(build.data_id)
        elif action.get("type") == "decide":
            decide(build, action, evidence=st.session_state.get("evidence", {}).get(
                action.get("id"), {}
            ))

    for key, handle in (("tests", pick), ("proponents", on_hit), ("opponents", on_hit)):
        consume(key, handle)
    left, right = st.columns([4, 9], gap="large")
    with left:
        found = filtered(build)
    test_id = chosen_test(found)
    with left:
        pages = -(-len(found) // PAGE)
        page = st.pagination(pages, key="tests_page") if pages > 1 else 1
        grid(
            "tests",
            pick,
            kind="pick",
            label="Test predictions",
            tile=66,
            selected=test_id,
            items=[test_item(build, i, one) for i, one in tile_rows(found, page)],
            empty="No prediction is like that. Widen the filter above.",
        )
    with right:
        notice()
        if test_id is None:
            st.info("Choose a prediction on the left.")
        else:
            explain(build, test_id, on_hit)


def tile_rows(found: pd.DataFrame, page: int):
    return found.iloc[(page - 1) * PAGE : page * PAGE].iterrows()


def test_item(build: Build, test_id: int, one: pd.Series) -> dict:
    label, predicted = build.classes[one.label], build.classes[one.predicted]
    return {
        "id": int(test_id),
        "src": thumb(build, "test", test_id),
        "alt": f"Test image {test_id}: label {label}, predicted {predicted}",
        "caption": label if one.correct else f"{label} → {predicted}",
        "correct": bool(one.correct),
        "note": f"{one.confidence:.0%}",
    }


def filtered(build: Build) -> pd.DataFrame:
    """The rows of `build.tests()` that the filter lets through, the surest first."""
    names = list(build.classes)
    bound = {"bind": "query-params", "persist_state": "session", "on_change": forget_test}
    kind = st.segmented_control(
        "Predictions", ["wrong", "right", "all"], default="wrong", key="show", required=True, **bound
    )
    chosen = tuple(
        None if st.session_state.get(key) in (None, ANY) else st.session_state[key]
        for key in FILTERS
    )
    matrix_key = f"matrix_{st.session_state.get('matrix', 0)}"
    charts.confusion(build.confusion_CC(), build.classes, chosen, lambda: cell(matrix_key), matrix_key)
    columns = st.columns(2)
    label, predicted = (
        column.selectbox(title, [ANY, *names], key=key, **{**bound, "on_change": by_hand})
        for column, title, key in zip(columns, ("Label", "Predicted"), FILTERS, strict=True)
    )
    low, high = st.slider("Confidence, %", 0, 100, (0, 100), key="confidence", **bound)
    tests = build.tests()
    keep = tests.confidence.between(low / 100, high / 100)
    if kind != "all":
        keep &= tests.correct == (kind == "right")
    for value, column in ((label, "label"), (predicted, "predicted")):
        if value != ANY:
            keep &= tests[column] == names.index(value)
    return tests[keep].sort_values("confidence", ascending=False)


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


def chosen_test(found: pd.DataFrame) -> int | None:
    """The test image that was clicked, or the link's, or the first that the filter lets through."""
    if "test" not in st.session_state:
        text = st.query_params.get("test")
        if text is not None and not text.isdecimal():
            raise UserError(
                found=f"test id {text!r} in the address",
                wanted="a whole number",
                next_step="choose a prediction on the left",
            )
        st.session_state["test"] = None if text is None else int(text)
        st.session_state["target"] = st.query_params.get("target", "predicted")
    chosen = st.session_state["test"]
    if chosen is None and len(found):
        chosen = int(found.index[0])
    return chosen


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
    shared = {
        "kind": "hit",
        "tile": 88,
        "classes": list(build.classes),
        "verdicts": verdicts(build, [hit.train_id for hit in hits]),
        "scale": max((abs(hit.score) + 2 * hit.stderr for hit in hits), default=1) or 1,
        "empty": "None found.",
    }
    for column, title, key, tone in zip(
        st.columns(2, gap="medium"),
        (f"Pushed towards {name}", f"Pushed away from {name}"),
        ("proponents", "opponents"),
        ("for", "against"),
        strict=True,
    ):
        with column:
            st.subheader(title, anchor=False)
            items = [hit_item(build, hit) for hit in getattr(answer, key)]
            grid(key, on_hit, label=title, tone=tone, items=items, **shared)
    st.caption(
        f"The band around a score is two standard errors each way; it carries {answer.noise}. "
        f"*Shaky* hits may be noise: the band reaches zero, or members of the ensemble disagree. "
        f"Pick a training image to keep, relabel or drop it."
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
        src=thumb(build, "test", answer.test_id),
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
    default = {"default": answer.target} if control is st.pills else {
        "index": options.index(answer.target)
    }
    picked = control(
        "Question", options, format_func=words, key=key, label_visibility="collapsed",
        required=True, **default,
    )
    if picked == answer.predicted:
        return "predicted"
    return "label" if picked == answer.label else str(picked)


def hit_item(build: Build, hit: Hit) -> dict:
    members = member_count(build.summary)
    agree = f"{round(hit.agreement * members)} of {members}"
    name = build.classes[hit.label]
    return {
        "id": hit.train_id,
        "src": thumb(build, "train", hit.train_id),
        "alt": f"Training image {hit.train_id}, labelled {name}",
        "caption": name,
        "score": hit.score,
        "stderr": hit.stderr,
        "score_text": f"{hit.score:+.2g}",
        "agreement_text": f"{round(hit.agreement * members)}/{members}",
        "shaky": hit.shaky,
        "title": f"Training image {hit.train_id}, labelled {name}. Score {hit.score:+.3g} "
        f"± {2 * hit.stderr:.2g}; {agree} members agree on the direction.",
    }


main()
