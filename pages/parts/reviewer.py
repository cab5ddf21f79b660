"""Who decides: whoever logged in; else asked once, remembered by browser and session."""

import os
from urllib.parse import unquote

import streamlit as st

from . import access

REVIEWER = "PROBABLE_CAUSE_REVIEWER"
COOKIE = "probable_cause_reviewer"  # deck.js writes it
LONGEST = 60


def reviewer() -> str:
    """The name that signs decisions; "" while nobody gave one.

    Of a login it is the address: a name could be somebody else's too.
    """
    if access.rules() is not None:
        return access.who()
    if "who" not in st.session_state:
        st.session_state["who"] = cleaned(os.environ.get(REVIEWER, "") or remembered())
    return st.session_state["who"]


def ask() -> None:
    """The field for the name."""
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
        on_change=introduce,
        persist_state="session",
    )


def introduce() -> None:
    """Take the name from the field."""
    st.session_state["who"] = st.session_state["reviewer"] = cleaned(st.session_state["reviewer"])


def remembered() -> str:
    """The name that this browser keeps from an earlier visit, whichever page it begins with."""
    kept = st.context.cookies.get(COOKIE)
    return unquote(kept) if isinstance(kept, str) else ""


def cleaned(name: str) -> str:
    return " ".join(name.split())[:LONGEST]
