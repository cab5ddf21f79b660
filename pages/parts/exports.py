"""Labels and decisions in the formats of other tools: down, and decisions up again."""

from collections.abc import Callable
from functools import partial

import pandas as pd
import streamlit as st

from attribution.build import Build
from attribution.export import FORMATS, exported, packed
from attribution.imports import Entry, Plan, entries_of, made, planned
from attribution.records import Decision, UserError
from attribution.report import review

from .access import REVIEW
from .opened import engine, locked, may
from .reviewer import reviewer
from .words import literal

MIMES = {
    ".csv": "text/csv",
    ".json": "application/json",
    ".parquet": "application/vnd.apache.parquet",
    ".xml": "application/xml",
    ".zip": "application/zip",
}


LARGEST = 100  # megabytes of an upload
SUFFIXES = {".csv": "csv", ".json": "label-studio"}  # of what can be read back


def exchange(build: Build) -> None:
    """A popover with the ways out and in."""
    with st.popover("Export & import", icon=":material/swap_vert:", key="export", width="stretch"):
        downloads(build)
        uploads(build)


def report(make: Callable[[], str], name: str, about: str, key: str) -> None:
    """The button that gives one page to send to someone, made when it is pressed."""
    st.download_button(
        "Report",
        lambda: make().encode(),
        file_name=f"{name}.html",
        mime="text/html",
        icon=":material/description:",
        on_click="ignore",
        key=key,
        width="stretch",
        help=about,
    )


def review_report(build: Build) -> None:
    report(
        lambda: review(build, engine().decisions.in_force(build.data_id)),
        f"review-{build.data_id}",
        "One page to send to someone: every decision with its picture, in a file of its own.",
        "report",
    )


def uploads(build: Build) -> None:
    """A file of decisions: what it would do, then the button that does it."""
    turn = st.session_state.get("uploads", 0)
    # Any kind of file, so that the wrong one gets our sentence.
    file = st.file_uploader(
        "Import decisions",
        key=f"upload_{turn}",
        max_upload_size=LARGEST,
        help="Our own CSV, also from a spreadsheet, or Label Studio's JSON export.",
    )
    if file is None:
        return
    try:
        form, entries = read(file.file_id, file.name, file.getvalue)
        plan = partial(planned, build, engine().decisions, entries, file.name, form, reviewer())
        found = plan(replace=False)
        replace = bool(found.told.differing) and st.checkbox(
            f"Replace what differs from decisions in force ({len(found.told.differing)})",
            key="replace",
        )
        found = plan(replace=replace)
    except UserError as error:
        st.warning(str(error), icon=":material/info:")
        return
    counts(found)
    count = sum(found.told.decided.values())
    st.button(
        f"Import {count} decision{'' if count == 1 else 's'}",
        on_click=bring,
        args=(build, found),
        **locked(
            REVIEW,
            type="primary",
            key="import",
            disabled=not count,
            width="stretch",
            help="Signed by you, the file's names kept beside; one undo takes all of it back.",
        ),
    )
    doubtful(build, found)


def read(file_id: str, name: str, content: Callable[[], bytes]) -> tuple[str, list[Entry]]:
    """Format and entries of an upload, read once. Raises `UserError` for a bad one."""
    kept = st.session_state.get("uploaded")
    if kept is None or kept[0] != file_id:
        suffix = f".{name.rpartition('.')[2].lower()}"
        size = len(content())
        if suffix not in SUFFIXES or size > LARGEST * 2**20:
            raise UserError(
                found=f"{name}, {size:,} bytes",
                wanted=f"a {' or '.join(SUFFIXES)} file of at most {LARGEST} MB",
                next_step="choose another file",
            )
        form = SUFFIXES[suffix]
        kept = file_id, form, entries_of(content(), name, form)
        st.session_state["uploaded"] = kept
    return kept[1], kept[2]


def counts(plan: Plan) -> None:
    told = plan.told
    made_of = ", ".join(f"{n} {verdict}" for verdict, n in sorted(told.decided.items()))
    st.markdown(
        f"**{sum(told.decided.values())} new decisions**{f' ({made_of})' if made_of else ''}; "
        f"{told.already} standing already; {told.undecided} images undecided."
    )


def doubtful(build: Build, plan: Plan) -> None:
    """What differs from decisions in force, and what is left out, one by one."""
    told = plan.told
    stand = engine().decisions.standing(build.data_id).latest() if told.differing else {}
    where = {name: at for at, name in enumerate(build.train_ids)} if told.differing else {}
    rows = [
        (f"training image {where[one]}", f"{said(build, stand[one])} in force, file: {new}")
        for one, (verdict, label) in told.differing.items()
        if (new := verdict if label is None else build.classes[label])
    ]
    for why, left in (
        ("no such example in this data", told.unknown_examples),
        ("no such class", told.unknown_labels),
        ("no such decision", told.unknown_decisions),
    ):
        rows += [(one[:80], f"left out: {why}") for one in left]
    if rows:
        st.dataframe(
            pd.DataFrame(rows, columns=["what", "why"]), hide_index=True, height=160, key="doubtful"
        )


def said(build: Build, decision: Decision) -> str:
    known = decision.label is not None and decision.label < len(build.classes)
    return build.classes[decision.label] if known else decision.verdict


def bring(build: Build, plan: Plan) -> None:
    """Import what was shown, and put the file away."""
    try:
        made(build, may(REVIEW).decisions, plan)
    except UserError as error:
        st.session_state["notice"] = str(error)
        return
    told = literal(" ".join(plan.told.sentences()))
    st.session_state["notice"] = f"{told} U on an image takes the import back."
    st.session_state["uploads"] = st.session_state.get("uploads", 0) + 1


def downloads(build: Build) -> None:
    """Choose a format and download it, made when the button is pressed."""
    name = st.selectbox(
        "Format", FORMATS, format_func=lambda one: FORMATS[one].title, key="export_format"
    )
    form = FORMATS[name]
    st.caption(form.about)
    st.download_button(
        "Download",
        lambda: packed(exported(build, engine().decisions.in_force(build.data_id), name)),
        file_name=f"{name}-{build.data_id}{form.suffix}",
        mime=MIMES[form.suffix],
        icon=":material/download:",
        on_click="ignore",
        key="download",
        width="stretch",
    )
