"""A training image that was found, as the grid draws it."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st

from attribution.build import Build
from attribution.records import Answer, Hit, Tried, pushing

from .grid import TRAIN, Handle, class_keys, grid, verdicts
from .opened import DOUBT
from .reach import address
from .thumbs import inline
from .words import literal, readable


def hits_grid(
    build: Build,
    key: str,
    handle: Handle,
    sides: Sequence[tuple[str, str, list[dict]]],
    empty: str = "None found.",
    **more: Any,
) -> None:
    """Draw hits, each side a title, a tone ("for" or "against") and its items."""
    items = [item for _, _, some in sides for item in some]
    grid(
        key,
        handle,
        kind="hit",
        split=TRAIN,
        tile=80,
        classes=list(build.classes),
        keys=class_keys(build),
        verdicts=verdicts(build, [item["id"] for item in items]),
        reach=address(build),
        scale=max((abs(i["score"]) + 2 * i["stderr"] for i in items), default=1) or 1,
        groups=[
            {"label": label, "title": True, "tone": tone, "items": some, "empty": empty}
            for label, tone, some in sides
        ],
        **more,
    )


def for_and_against(
    build: Build, key: str, handle: Handle, found: Answer | Tried, about: str = "", **more: Any
) -> None:
    """The hits of a question both ways, with what the two words mean and how to read the scores."""
    name, suspects = build.classes[found.target], build.mislabels()
    both = (*found.proponents, *found.opponents)
    times, said = readable(max((abs(hit.score) for hit in both), default=1))
    st.markdown(
        f"**Proponents** made the networks surer that this is **{literal(name)}**; "
        "**opponents** made them less sure."
    )
    sides = [
        (title, tone, [hit_item(build, h, suspects.loc[h.train_id], times) for h in some])
        for title, tone, some in (
            (f"Pushed towards {name}", "for", pushing(found.proponents, 1)),
            (f"Pushed away from {name}", "against", pushing(found.opponents, -1)),
        )
    ]
    hits_grid(build, key, handle, sides, **more)
    st.caption(f"{said}{found.noise}{about}")


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
        "given": hit.label,
        "likely": [int(suspect.suggested_label)],
        "doubt": int(suspect.suggested_label) if suspect.score > DOUBT else None,
        "score": hit.score,
        "stderr": hit.stderr or 0,
        "score_text": f"{hit.score * times:+.1f}",
        "agreement_text": f"{agree}/{members}",
        "shaky": hit.shaky,
        "title": f"Training image {hit.train_id}, labelled {name}. Score {hit.score:+.3g}{error}; "
        f"{agree} of {members} members agree on the direction.",
    }
