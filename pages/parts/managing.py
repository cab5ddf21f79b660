"""A finished build's name and note, and its end."""

import streamlit as st

from attribution.archives import own_name
from attribution.quantities import size
from attribution.records import UserError
from attribution.stored import facts

from .access import BUILD
from .opened import build_name, by_data, engine, locked, may
from .words import literal


def managing() -> None:
    """Choose a build; call it something, note what to remember of it, or delete it."""
    names = {one["build"]: one for one in by_data(engine().builds())}
    with st.expander("Name, note or delete a build", key="managing", on_change="rerun") as box:
        if not box.open:
            return
        chosen = st.selectbox(
            "Build", names, format_func=lambda name: build_name(names[name]), key="managed"
        )
        about = names[chosen]
        with st.form(f"about_{chosen}", border=False):
            name = st.text_input("Name", about["name"], max_chars=60, key=f"name_{chosen}")
            note = st.text_area("Note", about["note"], max_chars=2000, key=f"note_{chosen}")
            primary = locked(BUILD, type="primary", key=f"save_{chosen}")
            save = st.form_submit_button("Save", **primary)
        if save:
            said(chosen, name, note)
        before = st.session_state.get("said_before")
        if before is not None and before[0] == chosen:
            st.button("Undo", key="unsay", on_click=unsay, icon=":material/undo:")
        ending(chosen)


def removing() -> None:
    """Choose an upload that no build is of, and remove it after a second word."""
    names = {one.folder.name: one for one in engine().unused_uploads()}
    if not names:
        return
    with st.expander("Remove an upload", key="removing", on_change="rerun") as box:
        if not box.open:
            return
        chosen = st.selectbox(
            "Upload that no build is of", names, format_func=upload_names(list(names)).get,
            key="removed",
        )  # fmt: skip
        st.write(
            f"Its {names[chosen].kept:,} unpacked files and its images in the cache would be gone "
            "for good. Your archive, which is elsewhere, and your decisions stay."
        )
        if st.toggle("Remove this upload", key=f"removing_{chosen}"):
            st.button(
                "Remove it for good",
                **locked(BUILD, key=f"remove_{chosen}", icon=":material/delete:"),
                on_click=remove,
                args=(chosen,),
            )


def remove(name: str) -> None:
    """Runs before the page is drawn, so that the form does not go on with what is gone."""
    try:
        may(BUILD).remove_upload(name)
    except UserError as error:
        st.session_state["notice"] = str(error)
        return
    for key in ("data", "removed"):
        if name in str(st.session_state.get(key)):
            del st.session_state[key]
    st.session_state["notice"] = f"The upload {literal(own_name(name))} is removed."


def upload_names(names: list[str]) -> dict[str, str]:
    """What a person calls each upload, told apart where two archives had the same name."""
    called = [own_name(name) for name in names]
    return {
        name: own if called.count(own) == 1 else f"{own} ({name.rpartition('-')[2][:6]})"
        for name, own in zip(names, called, strict=True)
    }


def said(build_id: str, name: str, note: str) -> None:
    try:
        before = may(BUILD).say(build_id, name, note)
    except UserError as error:
        st.warning(str(error), icon=":material/info:")
        return
    st.session_state["said_before"] = (build_id, before.name, before.note)
    st.session_state["notice"] = "Saved."
    st.rerun()


def unsay() -> None:
    """Take the last name and note back."""
    build_id, name, note = st.session_state.pop("said_before")
    may(BUILD).say(build_id, name, note)
    for key in (f"name_{build_id}", f"note_{build_id}"):
        st.session_state.pop(key, None)


def ending(build_id: str) -> None:
    """What deleting would remove, and the button that does after a second word."""
    if not st.toggle("Delete this build", key=f"ending_{build_id}"):
        return
    rows = [facts(artifact) for artifact in engine().removal(build_id)]
    kinds = {row["kind"]: 0 for row in rows}
    for row in rows:
        kinds[row["kind"]] += row["bytes"]
    total = size(sum(kinds.values()))
    parts = ", ".join(f"{kind} {size(count)}" for kind, count in kinds.items() if count)
    st.write(
        f"{total} that no other build uses would be gone for good ({parts}). The data, your "
        "decisions and ground truths stay; a build can be made again by the same command."
    )
    options = locked(BUILD, key=f"delete_{build_id}", icon=":material/delete:")
    if st.button(f"Delete {total} for good", **options):
        try:
            may(BUILD).delete(build_id)
        except UserError as error:
            st.warning(str(error), icon=":material/info:")
            return
        if st.session_state.get("build") == build_id:
            del st.session_state["build"]
        there = engine().remote
        where = f" here; {there} keeps it, if it had it" if there else ""
        st.session_state["notice"] = f"Build {build_id[:6]} is deleted{where}."
        st.query_params.clear()
        st.rerun()
