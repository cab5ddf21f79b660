"""Our own elements: a grid of thumbnails, the chosen image, the review deck, and the map.

Native widgets are too slow for a hundred images and lose keys that come while a run is under way.
These are plain HTML, CSS and JavaScript. What the user does comes as a queue of numbered actions
in the element's state; `consume` applies those that are new.
"""

import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, get_args

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from attribution.build import Build
from attribution.decisions import Choice
from attribution.records import Decision, UserError, Verdict

from .access import REVIEW
from .opened import engine, may
from .reviewer import reviewer
from .words import literal

Action = dict[str, Any]
Handle = Callable[[Action], None]

NOTHING: dict[str, Any] = {
    "verdicts": {}, "classes": [], "keys": [], "selected": None, "rows": 0, "left_out": None,
    "reach": "", "split": "",
}  # fmt: skip
TRAIN, TEST = "train", "test"  # whose labels are decided on
NAMES = {TRAIN: "training", TEST: "test"}
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


def _element(name: str):
    folder = Path(__file__).parent

    def text(suffix: str) -> str:
        return "\n".join((folder / f"{n}{suffix}").read_text("utf-8") for n in ("common", name))

    return st.components.v2.component(
        f"probable_cause.{name}", html='<div class="pc"></div>', css=text(".css"), js=text(".js")
    )


_GRID, _DECK, _SUBJECT, _PLANE = map(_element, ("grid", "deck", "subject", "plane"))


def consume(key: str, handle: Handle) -> None:
    """Apply the actions of element `key` that were not applied yet, in order, each once.

    Called both as callback (it also runs when the user has already left the page) and at the top
    of the script (tests seed the state, which fires no callback).
    """
    _consume(key, _queue(key), handle)


def _consume(key: str, name: str, handle: Handle) -> None:
    state = st.session_state.get(key)
    queue = state.get("queue") if state else None
    if not isinstance(queue, dict) or (queue.get("name"), queue.get("epoch")) != (name, _epoch()):
        return
    with _to_its_end():
        for action in queue.get("actions", []):
            seq = action.get("seq")
            if not isinstance(seq, int) or seq <= _ack(name):
                continue
            st.session_state[f"{name}.ack"] = seq
            try:
                handle(action)
            except UserError as error:
                st.session_state["notice"] = str(error)


@contextmanager
def _to_its_end() -> Iterator[None]:
    """What is inside is not cut short by the next key.

    Streamlit ends a run at any touch of the session's state once another run is asked for: an
    action would be acknowledged and not applied. It asks through a hook that has no public name;
    it is asked again right after.
    """
    context = get_script_run_ctx(suppress_warning=True)
    if context is None:  # outside of a session nothing cuts short
        yield
        return
    state, hook = context.session_state, "_yield_callback"
    before = getattr(state, hook)
    object.__setattr__(state, hook, lambda: None)  # its own assignment is of the session's keys
    try:
        yield
    finally:
        object.__setattr__(state, hook, before)


def _epoch() -> str:
    """Names this session, so that a queue meant for an earlier one is not applied to it."""
    return st.session_state.setdefault("epoch", secrets.token_hex(8))


def _queue(key: str) -> str:
    """Names the queue of an element on the build that is shown: an act is of the build it was
    done on, whichever is shown when it arrives.
    """
    return f"{key} {st.session_state.get('build', '')}"


def _ack(name: str) -> int:
    return st.session_state.get(f"{name}.ack", 0)


def _mount(element, key: str, handle: Handle, data: dict[str, Any]) -> None:
    name = _queue(key)
    data = {"key": key, "queue": name, "epoch": _epoch(), "ack": _ack(name), **data}
    element(key=key, data=data, on_queue_change=partial(_consume, key, name, handle))


def grid(key: str, handle: Handle, **data: Any) -> None:
    """Draw a grid; `data` is described in grid.js."""
    _mount(_GRID, key, handle, {**NOTHING, **data})


def deck(key: str, handle: Handle, **data: Any) -> None:
    """Draw the review deck; `data` is described in deck.js."""
    _mount(_DECK, key, handle, data)


def plane(key: str, handle: Handle, **data: Any) -> None:
    """Draw the map; `data` is described in plane.js."""
    _mount(_PLANE, key, handle, data)


def subject(key: str, handle: Handle, **data: Any) -> None:
    """Draw the chosen image beside its probabilities; `data` is described in subject.js."""
    _mount(_SUBJECT, key, handle, data)


def decide(
    build: Build, action: Action, evidence: Callable[[Any], dict[str, Any]], split: str = TRAIN
) -> None:
    """Write the decisions of an action from the browser, on one image or on several at once.

    `evidence` gives what was shown of an image. Raises UserError for one that makes no sense.
    """
    each = action.get("each", [action])
    choices = [choice(build, one, evidence(one.get("id")), split) for one in each]
    decide_all(build, choices, split=split)


def choice(build: Build, action: Action, evidence: dict[str, Any], split: str = TRAIN) -> Choice:
    """What the browser wants of one image. Raises UserError when it makes no sense."""
    position, verdict, label = action.get("id"), action.get("verdict"), action.get("label")
    ids = build.test_ids if split == TEST else build.train_ids
    known = type(position) is int and 0 <= position < len(ids)  # True is an int, too
    if not known or verdict not in VERDICTS:
        raise UserError(
            found=f"decision {verdict!r} on {NAMES[split]} image {position!r}",
            wanted=f"{', '.join(VERDICTS)} on an image of this build",
            next_step="reload the page",
        )
    if verdict == "relabel" and not (type(label) is int and 0 <= label < len(build.classes)):
        raise UserError(
            found=f"new label {label!r}",
            wanted=f"a class number below {len(build.classes)}",
            next_step="reload the page",
        )
    return Choice(
        example_id=ids[position],
        verdict=verdict,
        label=label if verdict == "relabel" else None,
        evidence=json.dumps(evidence),
    )


def decide_all(
    build: Build, choices: list[Choice], settles: bool = False, split: str = TRAIN
) -> None:
    """Write decisions of the visitor, which one undo takes back."""
    may(REVIEW).decisions.decide_all(
        log_id(build, split), choices, reviewer=reviewer(), build_id=build.id, settles=settles
    )


def log_id(build: Build, split: str) -> str:
    """Under which id the log has the decisions on a half of the data."""
    return build.test_half.id if split == TEST else build.data_id


def on_train(build: Build, action: Action, evidence: Callable[[Any], dict[str, Any]]) -> bool:
    """Write, undo or redo decisions on training images; whether the action was one of these."""
    if action.get("type") == "decide":
        decide(build, action, evidence)
    elif action.get("type") in ("undo", "redo"):
        about = (undo if action["type"] == "undo" else redo)(build)
        if about:  # it may be about images that are not shown here
            say_about(build, about, action["type"])
    else:
        return False
    return True


def say_about(build: Build, about: tuple[Decision, ...], what: str) -> None:
    """Have `notice` say what was undone or redone, without moving the page."""
    done = "undone" if what == "undo" else "made again"
    one = about[0].example_id
    if len(about) > 1:
        text = f"{len(about)} decisions are {done}."
    elif one in build.train_ids:
        text = f"The decision on training image {build.train_ids.index(one)} is {done}."
    else:
        text = f"A decision on an image that is not among these is {done}."
    st.session_state["done"] = text


def undo(build: Build, split: str = TRAIN) -> tuple[Decision, ...]:
    """Take the visitor's last act back; leaves a notice where there is none."""
    undone = may(REVIEW).decisions.undo(log_id(build, split), reviewer())
    if not undone:
        st.session_state["notice"] = f"There is no decision{of_whom(split)} to undo."
    return undone


def redo(build: Build, split: str = TRAIN) -> tuple[Decision, ...]:
    """Put back what the visitor took back last; leaves a notice where there is nothing."""
    redone = may(REVIEW).decisions.redo(log_id(build, split), reviewer())
    if not redone:
        st.session_state["notice"] = f"There is no decision{of_whom(split)} to redo."
    return redone


def of_whom(split: str) -> str:
    about = " on test images" if split == TEST else ""
    return about + (f" of {literal(reviewer())}" if reviewer() else "")


def class_keys(build: Build) -> list[str]:
    """The keys that relabel, as printed on the chips; of more than ten classes none has one.

    Of classes called by digits each has its own, else they are counted from 0.
    """
    names = list(build.classes)
    if len(names) > 10:
        return []
    digits = len(set(names)) == len(names) and all(n in set("0123456789") for n in names)
    return names if digits else [str(c) for c in range(len(names))]


def verdicts(build: Build, positions: list[int]) -> dict[int, dict[str, Any]]:
    """The decisions in force on these training images, as the elements draw them."""
    stand = engine().decisions.in_force(build.data_id)
    return drawn({i: stand.get(build.train_ids[i]) for i in positions})


def drawn(found: Mapping[int, Decision | None]) -> dict[int, dict[str, Any]]:
    """Decisions by position, as the elements draw them."""
    return {i: {"verdict": d.verdict, "label": d.label} for i, d in found.items() if d}


def notice() -> None:
    """Show once what the last action had to say."""
    text = st.session_state.pop("notice", None)
    if text:
        st.warning(text, icon=":material/info:")
    if done := st.session_state.pop("done", None):
        st.toast(done, icon=":material/undo:")
