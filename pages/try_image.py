"""An image of the visitor's own: what the networks say of it, and the training images behind it."""

from base64 import b64encode
from hashlib import sha256
from typing import NamedTuple

import numpy as np
import streamlit as st

from attribution.build import Build
from attribution.exchange import png
from attribution.pictures import ENDINGS, Aside, alike
from attribution.records import Tried
from pages.parts.asked import as_seen, pixels
from pages.parts.grid import consume, notice, on_train, subject
from pages.parts.hits import for_and_against
from pages.parts.opened import build_or_stop
from pages.parts.thumbs import shrunk
from pages.parts.words import literal

HITS = 12  # of each kind
LARGEST = 20  # MB of an upload
SHOWN = 512  # pixels of the longer side of the picture as it was brought
LIKELY = 5  # classes beside the picture
SEEN = {"page": "try an image"}  # what stands behind a decision here


class Brought(NamedTuple):
    """A picture that was uploaded or pasted."""

    name: str
    content: bytes


def main() -> None:
    build = build_or_stop(
        "Try an image", "What do the networks say of it, and because of which training images?"
    )
    consume("tried_hits", lambda action: on_train(build, action, lambda _: SEEN))
    notice()
    left, right = st.columns([4, 9], gap="large")
    with left:
        brought = bring()
        invert = st.toggle(
            "Dark for light",
            key="invert",
            bind="query-params",
            persist_state="session",
            help="For a drawing on white paper, where the networks know white on black.",
        )
    if brought is None:
        with right:
            st.info(
                "Bring a picture: it is shown to the networks as it is, brought to the size of the "
                f"training images ({pixels(build.data.train.images[0])}). It stays on this machine."
            )
        return
    try:
        image = alike(brought.content, build.data.train.images, invert)
    except Aside as reason:
        with right:
            st.warning(
                f"{literal(brought.name)}: {literal(str(reason))}. Bring another picture, for "
                "example a PNG or a JPEG.",
                icon=":material/info:",
            )
        return
    with right:
        asked(build, brought, image)


def bring() -> Brought | None:
    """The picture that was uploaded or pasted last; it stays when the visitor comes back."""
    file = st.file_uploader(
        "A picture",
        type=[ending.removeprefix(".") for ending in ENDINGS],
        key="tried_file",
        max_upload_size=LARGEST,
    )
    pasted = st.chat_input(
        "Or paste one here (Ctrl+V)",
        key="tried_paste",
        accept_file=True,
        file_type=[ending.removeprefix(".") for ending in ENDINGS],
        max_upload_size=LARGEST,
    )
    if pasted and pasted.files:
        st.session_state["tried"] = Brought(pasted.files[0].name, pasted.files[0].getvalue())
    elif file is not None and st.session_state.get("tried_from") != file.file_id:
        st.session_state["tried_from"] = file.file_id
        st.session_state["tried"] = Brought(file.name, file.getvalue())
    return st.session_state.get("tried")


def asked(build: Build, brought: Brought, image: np.ndarray) -> None:
    """What the networks say of the picture, and the hits of the class asked about."""
    key = f"tried_{build.id}_{digest(image)}"
    named = st.session_state.get(key)
    target = "predicted" if named is None else named
    found = answered(build, image, target)
    card(build, brought, image, found)
    first = [found.predicted]
    options = first + [c for c in range(len(build.classes)) if c not in first]
    few = len(options) <= 12
    names = [literal(name) if few else name for name in build.classes]
    (st.pills if few else st.selectbox)(
        "Why that, or as if it were",
        options,
        format_func=lambda c: f"Why {names[c]}?" if c == found.predicted else names[c],
        key=key,
        required=True,
        **({"default": found.predicted} if few else {"index": 0}),
    )
    for_and_against(
        build, "tried_hits", lambda action: on_train(build, action, lambda _: SEEN), found
    )


def answered(build: Build, image: np.ndarray, target: str | int) -> Tried:
    """What the networks say, remembered for the picture and the class."""
    key = build.id, digest(image), target
    kept = st.session_state.setdefault("tried_answers", {})
    if key not in kept:
        bar = st.progress(0.0, text="Looking at it")

        def report(_: str, done: int, total: int) -> None:
            bar.progress(done / total, text=f"Looking at it: member {done + 1} of {total}")

        count = min(HITS, len(build.train_labels_N))
        found = build.attempt(image, target, count, report)
        bar.empty()
        while len(kept) >= 20:
            kept.pop(next(iter(kept)))
        kept[key] = found
    return kept[key]


def digest(image: np.ndarray) -> str:
    return sha256(image.tobytes()).hexdigest()[:12]


def card(build: Build, brought: Brought, image: np.ndarray, found: Tried) -> None:
    """The picture beside the probabilities of its classes; Z shows what the network gets."""
    picture = shrunk(brought.content, SHOWN)
    network = build.as_seen(image)
    top = sorted(range(len(build.classes)), key=lambda c: -found.probs[c])[:LIKELY]
    if found.target not in top:
        top.append(found.target)
    subject(
        "tried_subject",
        lambda _: None,
        src=data_url(image),
        alt=f"The picture {brought.name}, as the networks get it",
        title="Your picture",
        name=brought.name,
        facts=[(f"Predicted {build.classes[found.predicted]}", "right")],
        bars=[
            {
                "name": build.classes[c],
                "value": found.probs[c],
                "text": f"{found.probs[c]:.1%}",
                "tone": "label" if c == found.predicted else "",
            }
            for c in top
        ],
        original=data_url(picture.pixels),
        seen=data_url(network),
        about=[
            f"{picture.width} × {picture.height}, as it was brought",
            as_seen(build, image, network),
        ],
    )


def data_url(image: np.ndarray) -> str:
    return f"data:image/png;base64,{b64encode(png(image)).decode()}"


main()
