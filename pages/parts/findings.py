"""What reading a person's own files found: leaks into test, contradictions, unreadable files."""

import pandas as pd
import streamlit as st

from attribution.build import Build

from .grid import Handle, grid
from .opened import thumb

SHOWN = 12  # pairs; one row of them is in view
SAME = 1.0  # how alike the same file is
LEAKS = (
    "The networks have seen the answer, so the accuracy looks better than it is. Drop the training "
    "image, or leave the test image out of your files."
)
CLASHES = "One of the two labels is wrong. Pick an image to relabel or drop it."


def findings(build: Build, on_pick: Handle) -> None:
    """Draw what there is to say; nothing for data that came with the program or has no fault.

    A picked tile's number is twice the position, and one more for a training image.
    """
    found = build.findings
    if found is None:
        return
    kinds = (
        ("leaks", "test", f"In training too: {many(len(found.leaks), 'test image')}", LEAKS),
        ("clashes", "train", f"Two labels: {many(len(found.clashes), 'training image')}", CLASHES),
    )
    drawn = [kind for kind in kinds if getattr(found, kind[0])]
    places = st.columns(len(drawn), border=True) if drawn else []
    for place, (key, split, title, about) in zip(places, drawn, strict=True):
        with place:
            st.subheader(title, anchor=False)
            if key == "clashes" or build.labelled:
                st.caption(about)
            pairs(build, key, getattr(found, key), split, on_pick)
    if found.aside:
        with st.expander(f"Set aside when your data was read: {many(len(found.aside), 'file')}"):
            st.dataframe(
                pd.DataFrame([(a.path, a.reason) for a in found.aside], columns=["file", "why"]),
                hide_index=True,
                key="aside",
            )


def pairs(
    build: Build,
    key: str,
    some: tuple[tuple[int, int, float], ...],
    split: str,
    on_pick: Handle,
) -> None:
    """Each pair above each other, the surest first: an image of `split`, its twin in training."""
    upper = [item(build, split, one, alike) for one, _, alike in some[:SHOWN]]
    lower = [item(build, "train", twin, alike) for _, twin, alike in some[:SHOWN]]
    groups = [
        {"label": label, "items": items, "empty": ""}
        for label, items in (("Images", upper), ("The same again", lower))
    ]
    grid(key, on_pick, kind="pick", tile=76, rows=1, groups=groups)


def item(build: Build, split: str, position: int, alike: float) -> dict:
    half = build.data.train if split == "train" else build.data.test
    return {
        "id": 2 * position + (split == "train"),
        "src": thumb(build, split, position),
        "alt": f"{split} image {position}, {half.paths[position]}",
        "caption": build.classes[half.labels_N[position]] if half.labelled else "no label",
        "note": "same" if alike >= SAME else "alike",
        "correct": True,
    }


def many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
