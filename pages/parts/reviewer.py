"""Who decides: whoever logged in; else asked once, remembered by browser and session."""

import os

import streamlit as st

from . import access

REVIEWER = "PROBABLE_CAUSE_REVIEWER"
LONGEST = 60


def reviewer() -> str:
    """The name that signs decisions; "" while nobody gave one.

    Of a login it is the address: a name could be somebody else's too.
    """
    if access.rules() is not None:
        return access.who()
    if "who" not in st.session_state:
        st.session_state["who"] = cleaned(os.environ.get(REVIEWER, ""))
    return st.session_state["who"]


def ask() -> None:
    """The field for the name. Once in a fragment, after `introduce`."""
    if access.rules() is not None:
        st.text_input(
            "You",
            access.who(),
            key="signed_as",
            label_visibility="collapsed",
            icon=":material/person:",
            disabled=True,
            help="Signs your decisions; undo takes back only what you decided.",
        )
        return
    if "reviewer" not in st.session_state:
        st.session_state["reviewer"] = reviewer()
    st.text_input(
        "Your name",
        key="reviewer",
        placeholder="Your name",
        label_visibility="collapsed",
        max_chars=LONGEST,
        icon=":material/person:",
        help="Signs your decisions; undo takes back only what you decided.",
        on_change=lambda: introduce(st.session_state["reviewer"]),
        persist_state="session",
    )


def introduce(name: object) -> None:
    """Take a name from the field, or from what the browser remembers."""
    if isinstance(name, str) and access.rules() is None:
        st.session_state["who"] = st.session_state["reviewer"] = cleaned(name)


def cleaned(name: str) -> str:
    return " ".join(name.split())[:LONGEST]
