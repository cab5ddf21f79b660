"""Who the visitor is, what they may do, and the way out."""

import streamlit as st

from pages.parts.access import BUILD, MAY, role, who
from pages.parts.opened import head
from pages.parts.words import code


def main() -> None:
    head(st, "Account", "Who you are here, and what you may do.")
    mine = role()
    left, _ = st.columns(2)
    with left.container(border=True):
        st.markdown(f"You are logged in as {code(who())}, which signs your decisions.")
        for one, words in MAY.items():
            mark, may = ("check", "You may") if one <= mine else ("block", "You may not")
            st.markdown(f":material/{mark}: {may} {words}.")
        if mine < BUILD:
            st.caption("Whoever runs this app can give you more.")
        st.button("Log out", on_click=st.logout, key="log_out", icon=":material/logout:")


main()
