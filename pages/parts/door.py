"""What those see who are not let in, or not yet."""

import streamlit as st

from .access import address, rules
from .opened import head
from .words import code


def door() -> None:
    """A page with one button."""
    _, middle, _ = st.columns(3)
    with middle, st.container(border=True, key="door"):
        head(
            st,
            "Probable Cause",
            "Find the training images behind every prediction, and the labels that are wrong.",
        )
        if not st.user.is_logged_in:
            st.button("Log in", on_click=st.login, type="primary", key="log_in", width="stretch")
            return
        st.warning(outside(st.user.to_dict()), icon=":material/info:")
        st.button("Log out", on_click=st.logout, key="log_out", width="stretch")


def outside(user: dict) -> str:
    """Why somebody who has logged in is not let in."""
    email, known = address(user), rules()
    if not email:
        return "You are logged in, but the provider tells no address of yours that can be used."
    why = "nobody gave this address a role here: ask whoever runs this app"
    if known and not known.verified(user):
        why = "the provider does not say that this address is verified"
    return f"You are logged in as {code(email)}, but {why}."
