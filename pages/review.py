"""The labels that are most likely wrong, one key press each."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any, NamedTuple

import streamlit as st

from attribution import audit
from attribution.build import Build
from attribution.decisions import UNSURE, Choice, Standing
from attribution.records import Decision, UserError
from pages.parts import access, behind, picked, reach, reckoning, reviewer
from pages.parts.exports import exchange, review_report
from pages.parts.grid import (
    choice,
    class_keys,
    consume,
    decide_all,
    deck,
    notice,
    redo,
    say_about,
    undo,
)
from pages.parts.opened import DOUBT, build_or_stop, engine
from pages.parts.queued import WATCHERS, items, served
from pages.parts.trouble import guarded

PAGE = 48
SENT = 0.5  # seconds after which what was drawn has been sent
REST = 3.0  # seconds without a key after which the page may be drawn anew
ANY = "any"
NOBODY = "nobody named"
SUSPICION = "suspicion"
VIEWS = {  # and what in it waits for a decision, in the deck's words
    "queue": "open",
    "not decided": "open",
    "decided": "each",
    "unsure": "unsure",
    "conflicts": "contested",
}
EMPTY = {
    "queue": "There is no training image to review.",
    "not decided": "Everything here is decided.",
    "decided": "Nothing is decided yet: the queue is where to start.",
    "unsure": "There is nothing that you were unsure of.",
    "conflicts": "Reviewers agree on everything that more than one of them decided.",
}


class View(NamedTuple):
    """What the reader chose to see."""

    build: str
    which: str = "queue"
    labelled: str = ANY
    like: str = ANY
    by: str = SUSPICION
    whom: str = ANY
    text: str = ""
    among: str = ANY  # or positions, as `picked.words` has them

    @property
    def whole(self) -> bool:
        """Whether images come as the queue serves them, spot checks among them."""
        return VIEWS[self.which] == "open" and self[2:] == View("")[2:]


class Listed(NamedTuple):
    """The images of a view, in the order shown; it only grows until another view is chosen."""

    view: View
    ids: tuple[int, ...]


def main() -> None:
    build = build_or_stop(
        "Review", "Training images whose label is probably wrong, the most suspicious first."
    )
    queue(build)
    st.session_state["drawn"] = 0.0  # long ago: what a run of the whole page draws is not dropped
    watch(build)  # after it: by then the page shows what is there


@st.fragment
@guarded
def queue(build: Build) -> None:
    """The page below its head: a decision reruns this and nothing else."""
    with drawing():
        consume("deck", lambda action: act(build, action))
        stand = engine().decisions.standing(build.data_id)
        st.session_state["seen"] = stand.newest
        view = toolbar(build, stand)
        listed = listing(build, view, stand)
        if (wanted := st.session_state.pop("review_at", None)) is not None:
            go_to(wanted)
        found = reckoning.reckoned(build, stand)
        reckoning.sentence(found, len(stand.conflicts()))
        notice()
        show(build, listed, stand)
        if found:
            reckoning.figures(found)


@contextmanager
def drawing() -> Iterator[None]:
    """Note when what is inside came to its end, or that it was cut short."""
    st.session_state["drawn"] = None
    try:
        yield
    except Exception:  # which is told; what cuts short is none
        st.session_state["drawn"] = monotonic()
        raise
    st.session_state["drawn"] = monotonic()


@st.fragment(run_every=2)
def watch(build: Build) -> None:
    """Draw the page anew when another reviewer, tab or program decided something.

    Where many decide all the time, less often: each decision would be drawn for everybody, and a
    visitor's next act shows it anyway. What the visitor did is drawn again if it may be that a
    tick cut its run short, or came when Streamlit had not sent yet what that drew: it drops both.
    Nothing is drawn while keys come: a run of the whole page that the next one cuts short puts the
    deck in place anew. It keeps those keys, but what is seen would stop for a moment.
    """
    now, drawn = monotonic(), st.session_state["drawn"]
    if drawn is None or now - drawn < SENT:
        st.session_state["owed"] = True
    if now - st.session_state.get("acted", -REST) < REST:
        return
    if st.session_state.pop("owed", False):
        st.rerun()
    try:
        newest = engine().decisions.newest(build.data_id)
    except UserError:  # which the queue tells
        return
    calm = WATCHERS.calm(st.session_state.get("epoch", ""), now)
    if newest == st.session_state.get("seen", newest):
        return
    if now - st.session_state.get("redrawn", -calm) >= calm:
        st.session_state["redrawn"] = now
        st.rerun()


def toolbar(build: Build, stand: Standing) -> View:
    """What to see, who decides, and the way out; all of it but the name is in the address."""
    bound = {"bind": "query-params", "persist_state": "session"}
    widths = [10, 3, 4, 3, 4]
    views, filters, name, sent, export = st.columns(widths, vertical_alignment="center")
    which = views.segmented_control(
        "Show",
        list(VIEWS),
        default="queue",
        key="which",
        required=True,
        label_visibility="collapsed",
        **bound,
    )
    names = [ANY, *build.classes]
    reviewers = sorted({d.reviewer for d in stand.acts})
    with filters.popover("Filter", icon=":material/tune:", width="stretch"):
        text = st.text_input("Name or number", key="find_train", **bound)
        labelled = st.selectbox("Labelled", names, key="labelled", **bound)
        like = st.selectbox("Looks like", names, key="like", **bound)
        ways = [SUSPICION, *map(behind.signal_words, signals(build))]
        by = st.selectbox("Rank by", ways, key="by", **bound)
        people = [ANY, *(who or NOBODY for who in reviewers)]
        whom = st.selectbox("Decided by", people, key="whom", **bound)
        among = selection(build)
    with name:
        reviewer.ask()
    with sent:
        review_report(build)
    with export:
        exchange(build)
    return View(build.id, which, labelled, like, by, whom, text.strip(), among)


def selection(build: Build) -> str:
    """The images that were chosen on the map or are in the address, or any."""
    text, some = picked.chosen("review", len(build.train_ids))
    words = f"Not only the {len(some):,} of the map"
    if text and st.button(words, key="unpick", width="stretch"):
        picked.forget("review")
        return ANY
    return text or ANY


def listing(build: Build, view: View, stand: Standing) -> Listed:
    """The images to show. A decision takes none away, so that nothing moves under the keys."""
    found = matching(build, view, stand)
    old = st.session_state.get("listed")
    if old and old.view == view:
        more = found != old.ids
        listed = Listed(view, tuple(dict.fromkeys((*old.ids, *found)))) if more else old
    else:
        listed = Listed(view, found)
        st.session_state["review_page"] = first_open(build, listed, stand)
    st.session_state["listed"] = listed
    return listed


def signals(build: Build) -> list[str]:
    """The columns of single signals."""
    return [c for c in build.mislabels().columns if c.startswith("signal_")]


def matching(build: Build, view: View, stand: Standing) -> tuple[int, ...]:
    """The images that the filters let through, in order."""
    if view.whole and view.which == "queue":
        return served(build).ids
    rows = served(build).rows if view.whole else build.mislabels()
    for name, column in ((view.labelled, "given_label"), (view.like, "suggested_label")):
        if name != ANY:
            rows = rows[rows[column] == build.classes.index(name)]
    if view.among != ANY:
        rows = rows[rows.index.isin(picked.positions(view.among, len(build.train_ids)))]
    if view.by != SUSPICION:
        (column,) = (c for c in signals(build) if behind.signal_words(c) == view.by)
        rows = rows.sort_values(column, ascending=False, kind="stable")
    if view.text:
        rows = rows[rows.index.isin(build.search("train", view.text))]
    latest = stand.latest()
    if view.which == "not decided":
        rows = rows[~audit.among(rows, latest)]
    elif view.which != "queue":
        some: dict[str, Any] = {
            "decided": stand.in_force(),
            "unsure": {key for key, d in latest.items() if d.verdict == UNSURE},
            "conflicts": stand.conflicts(),
        }[view.which]
        rows = rows[audit.among(rows, some)]
    if view.whom != ANY:
        who = "" if view.whom == NOBODY else view.whom
        theirs = {d.example_id for d in stand.acts if d.reviewer == who}
        rows = rows[audit.among(rows, theirs)]
    return tuple(int(i) for i in rows.index)


def first_open(build: Build, listed: Listed, stand: Standing) -> int:
    """The first page with something left to decide."""
    if VIEWS[listed.view.which] != "open":
        return 1
    latest = stand.latest()
    at = (n for n, i in enumerate(listed.ids) if build.train_ids[i] not in latest)
    return next(at, 0) // PAGE + 1


def show(build: Build, listed: Listed, stand: Standing) -> None:
    """The deck with one page of the list."""
    pages = max(1, -(-len(listed.ids) // PAGE))
    page = min(st.session_state["review_page"], pages)
    st.session_state["review_page"] = page
    first = (page - 1) * PAGE
    ids = listed.ids[first : first + PAGE]
    view = listed.view
    likely, decided = served(build).likely, stand.in_force()
    done = sum(one in decided for one in likely)
    chosen = [
        f"{words} {value}"
        for words, value, plain in (
            ("labelled", view.labelled, ANY),
            ("looks like", view.like, ANY),
            ("by", view.by, SUSPICION),
            ("decided by", view.whom, ANY),
            ("called", view.text, ""),
        )
        if value != plain
    ]
    if view.among != ANY:
        chosen.append("chosen on the map")
    deck(
        "deck",
        lambda action: act(build, action),
        items=items(build, ids, view.whole),
        verdicts=verdicts(build, ids, stand),
        classes=list(build.classes),
        keys=class_keys(build),
        focus=st.session_state.get("focus"),
        pending=VIEWS[view.which],
        settle=view.which == "conflicts",
        less=page > 1,
        more=page < pages,
        place=f"{first + 1:,}–{first + len(ids):,} of {len(listed.ids):,}" if ids else "",
        chosen=" · ".join(chosen),
        share=done / max(1, len(likely)),
        progress=f"{done} of {len(likely)} suspicious labels decided",
        tally=tally(stand),
        evidence=behind.address(build),
        evidence_of=build.evidence_id,
        reach=reach.address(build),
        reviewer=reviewer.reviewer(),
        remember=access.rules() is None,
        empty=EMPTY[view.which]
        if view[2:] == View("")[2:]
        else "Nothing is like that. Widen the filter above.",
    )


def tally(stand: Standing) -> str:
    """How many of each verdict."""
    counts = Counter(decision.verdict for decision in stand.latest().values())
    unsure = f", {counts[UNSURE]} unsure" if counts[UNSURE] else ""
    return (
        f"{counts['keep']} kept, {counts['relabel']} relabelled, {counts['drop']} dropped{unsure}"
    )


def verdicts(build: Build, ids: Sequence[int], stand: Standing) -> dict[int, dict[str, Any]]:
    """What stands on these images, and who said what where that was not the visitor alone."""
    shown = {build.train_ids[i]: i for i in ids}
    latest, conflicts, me = stand.latest(), stand.conflicts(), reviewer.reviewer()
    said: dict[str, dict[str, Decision]] = {}
    for d in stand.acts:
        if d.example_id in shown:
            said.setdefault(d.example_id, {})[d.reviewer] = d
    return {
        shown[key]: {
            "verdict": latest[key].verdict,
            "label": latest[key].label,
            "contested": key in conflicts,
            "said": [f"{who or NOBODY}: {words(build, d)}" for who, d in by.items()]
            if set(by) != {me}
            else [],
        }
        for key, by in said.items()
    }


def words(build: Build, decision: Decision) -> str:
    if decision.label is None:
        return decision.verdict
    known = decision.label < len(build.classes)
    return f"it is {build.classes[decision.label] if known else f'class {decision.label}'}"


def act(build: Build, action: dict[str, Any]) -> None:
    """One action of the deck."""
    st.session_state["acted"] = monotonic()
    st.session_state["drawn"] = None
    kind = action.get("type")
    if kind == "decide":
        settles = action.get("settle") is True
        decide_all(build, [chosen(build, one) for one in action.get("each", [action])], settles)
    elif kind in ("undo", "redo"):
        about = undo(build) if kind == "undo" else redo(build)
        one = about[0].example_id if about else ""
        at = build.train_ids.index(one) if one in build.train_ids else None
        if at in st.session_state["listed"].ids:
            go_to(at)
        elif about:
            say_about(build, about, kind)
    elif kind in ("more", "less"):
        by = 1 if kind == "more" else -1
        st.session_state["review_page"] = max(1, st.session_state["review_page"] + by)
    elif kind == "go":
        go_to(action.get("id"))


def chosen(build: Build, action: dict[str, Any]) -> Choice:
    """A choice with its evidence."""
    order = served(build).rows
    if action.get("id") not in order.index:
        return choice(build, action, {})  # which says what is wrong
    row = order.loc[action["id"]]
    names = [c for c in order.columns if c.startswith("signal_") or c.endswith("_probability")]
    view = st.session_state["listed"].view
    way = audit.SPOT_CHECK if row.spot_check else audit.QUEUE if row.score > DOUBT else ""
    evidence = {
        "served": way if view.whole else "",
        "suggested_label": int(row.suggested_label),
        **{name: float(row[name]) for name in ("score", *names)},
    }
    return choice(build, action, evidence)


def go_to(train_id: object) -> None:
    """Put the cursor on an image, if this view has it."""
    ids = st.session_state["listed"].ids
    if train_id not in ids:
        st.session_state["notice"] = "That image is not in this view: widen the filter."
        return
    st.session_state["review_page"] = ids.index(train_id) // PAGE + 1
    turn = st.session_state.get("focus", {}).get("turn", 0) + 1
    st.session_state["focus"] = {"id": train_id, "turn": turn}


main()
