"""The labels that are most likely wrong, one key press each."""

from collections import Counter

import pandas as pd
import streamlit as st

from attribution.engine import Build
from attribution.records import Decision
from pages.parts.exports import downloads
from pages.parts.grid import class_keys, consume, decide, deck, notice, undo, verdicts
from pages.parts.opened import DOUBT, build_or_stop, engine, thumb
from pages.parts.trouble import guarded

PAGE = 48
SIGNALS = {
    "signal_training": "while learning",
    "signal_masks": "across members",
    "signal_influence": "influence",
}


def main() -> None:
    build = build_or_stop(
        "Review", "Training images whose label is probably wrong, the most suspicious first."
    )
    queue(build)


@st.fragment
@guarded
def queue(build: Build) -> None:
    """The page below its head: a decision reruns this and nothing else."""
    suspects = build.mislabels()

    def act(action: dict) -> None:
        kind = action.get("type")
        if kind == "decide":
            row = suspects.loc[action["id"]] if action.get("id") in suspects.index else {}
            decide(
                build, action, {name: float(row[name]) for name in ("score", *SIGNALS) if len(row)}
            )
        elif kind == "undo":
            go_back(build, suspects)
        elif kind == "more":
            turn_to(st.session_state.get("review_page", 1) + 1)

    consume("deck", act)
    wanted = st.session_state.pop("review_at", None)
    if wanted in suspects.index:
        go_to(suspects, wanted)
    stand = engine().decisions.in_force(build.data_id)
    top, middle, right = st.columns([3, 5, 2], vertical_alignment="center")
    with top:
        which = st.segmented_control(
            "Show",
            ["queue", "decided"],
            default="queue",
            key="which",
            required=True,
            bind="query-params",
            persist_state="session",
            label_visibility="collapsed",
            on_change=turn_to,
            args=(1,),
        )
    likely = suspects[suspects.score > DOUBT]
    done = int(likely.example_id.isin(list(stand)).sum())
    middle.progress(
        done / max(1, len(likely)),
        text=f"**{done}** of {len(likely)} suspicious labels decided · {tally(stand)}",
    )
    with right:
        downloads(build)
    notice()
    rows = suspects[suspects.example_id.isin(list(stand))] if which == "decided" else suspects
    pages = max(1, -(-len(rows) // PAGE))
    page = min(st.session_state.setdefault("review_page", first_open(suspects, stand)), pages)
    here = rows.iloc[(page - 1) * PAGE : page * PAGE]
    ids = [int(i) for i in here.index]
    deck(
        "deck",
        act,
        items=[item(build, i, one) for i, one in here.iterrows()],
        verdicts=verdicts(build, ids),
        classes=list(build.classes),
        keys=class_keys(build),
        focus=st.session_state.get("focus"),
        more=page < pages,
        empty="Nothing is decided yet: the queue is where to start."
        if which == "decided"
        else "There is no training image to review.",
    )
    if pages > 1:
        # A new key when the page was turned otherwise: a widget's value cannot be set afterwards.
        key = f"pages_{st.session_state.get('page_turns', 0)}"
        st.pagination(pages, default=page, key=key, on_change=lambda: paged(key))


def paged(key: str) -> None:
    st.session_state["review_page"] = st.session_state[key]


def turn_to(page: int) -> None:
    """Show another page of the list than the reader chose."""
    st.session_state["review_page"] = page
    st.session_state["page_turns"] = st.session_state.get("page_turns", 0) + 1


def first_open(suspects: pd.DataFrame, stand: dict[str, Decision]) -> int:
    """The first page of the queue with something left to decide."""
    is_open = ~suspects.example_id.isin(list(stand)).to_numpy()
    return int(is_open.argmax()) // PAGE + 1 if is_open.any() else 1


def go_to(suspects: pd.DataFrame, train_id: int) -> None:
    """Put the cursor on an image of the queue."""
    turn_to(suspects.index.get_loc(train_id) // PAGE + 1)
    turn = st.session_state.get("focus", {}).get("turn", 0) + 1
    st.session_state["focus"] = {"id": train_id, "turn": turn}


def go_back(build: Build, suspects: pd.DataFrame) -> None:
    """Take the last decision back and go to its image."""
    undone = undo(build)
    if undone and undone.example_id in build.train_ids:
        go_to(suspects, build.train_ids.index(undone.example_id))


def tally(stand: dict[str, Decision]) -> str:
    """How many of each verdict."""
    counts = Counter(decision.verdict for decision in stand.values())
    return f"{counts['keep']} kept, {counts['relabel']} relabelled, {counts['drop']} dropped"


def item(build: Build, train_id: int, one: pd.Series) -> dict:
    given = build.classes[one.given_label]
    return {
        "id": train_id,
        "src": thumb(build, "train", train_id),
        "alt": f"Training image {train_id}, labelled {given}",
        "given": int(one.given_label),
        "suggested": int(one.suggested_label),
        "suspicion": f"{one.score:.0%}",
        "why": one.why,
        "signals": [
            (words, float(one[name]), f"{one[name]:.0%}") for name, words in SIGNALS.items()
        ],
    }


main()
