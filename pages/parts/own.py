"""A person's own images on the page of builds: uploaded, looked at, and what suits them."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import streamlit as st

from attribution.archives import KINDS, LIMITS, own_name
from attribution.records import UserError

from .access import BUILD
from .managing import upload_names
from .opened import engine, may
from .words import UNLABELLED, literal

DESCRIBED = "described"  # in the session: what was found, by what was given as data
SHOWN = 5  # files of a kind that are named
STAGES = {"unpack": "Unpacking", "read": "Reading the images", "resize": "Bringing to one size",
          "twins": "Looking for the same image twice"}  # fmt: skip


def uploaded() -> None:
    """A place to drop an archive; unpacked and looked at, it is the data that is chosen."""
    turn = st.session_state.setdefault("upload", 0)
    file = st.file_uploader(
        "Or upload your own images",
        [kind.removeprefix(".") for kind in KINDS],
        key=f"upload_{turn}",
        max_upload_size=LIMITS.packed // 10**6,
        help="An archive of a folder of images for each class (in train and test, or split for "
        "you), of Parquet files, or of a .csv with columns path and label and its images. At most "
        f"{LIMITS.packed // 10**6} MB, {LIMITS.files:,} files and "
        f"{LIMITS.unpacked // 10**9} GB unpacked. It stays on the machine this app runs on.",
    )
    if file is None:
        if trouble := st.session_state.pop("upload_trouble", ""):
            st.warning(trouble, icon=":material/info:")
        return
    try:
        with Progress() as report:
            found = may(BUILD).unpacked(file, file.name, report)
            data = str(found.folder)
            look(data, report)
        st.session_state[DESCRIBED][data]["left"] = found.words
        st.session_state["data"] = data
    except UserError as error:
        st.session_state["upload_trouble"] = str(error)
    st.session_state["upload"] = turn + 1  # an empty one: the file is not kept in memory
    st.rerun()


def look(data: str, report: Callable[[str, int, int], None]) -> None:
    """Read the images of `data`, for `described`."""
    found = may(BUILD).described(data, report=report)
    st.session_state.setdefault(DESCRIBED, {})[data] = found


def described(data: str) -> dict[str, Any] | None:
    """What the data are, once they were looked at; else a button that looks."""
    found = st.session_state.get(DESCRIBED, {}).get(data)
    words = "Reads them: classes, what cannot be used, settings that suit."
    again = "Look at these images" if found is None else "Look again"
    # What a build is of and what was uploaded stays as it is; a folder may have been mended.
    if (found is None or data not in choices()) and st.button(
        again, key="look", icon=":material/search:", help=words
    ):
        with Progress() as report:
            look(data, report)
        st.rerun()
    if found is None:
        return None
    colour = "colour" if found["channels"] == 3 else "grey"
    st.markdown(
        f"**{literal(own_name(found['name']))}**: {found['train']:,} training and "
        f"{found['test']:,} test images of {len(found['classes'])} classes, brought to "
        f"{found['size']} × "
        f"{found['size']} pixels, {colour}."
    )
    unlabelled = "" if found["labelled"] else UNLABELLED
    for words in (unlabelled, *found["notes"], found.get("left", "")):
        if words:
            st.caption(literal(words))
    faults(found)
    return found


def faults(found: dict[str, Any]) -> None:
    """What reading had to say: images set aside, leaks, contradictions."""
    lists = {
        "Set aside, because they cannot be used": [
            f"{one['path']}: {one['reason']}" for one in found["aside"]
        ],
        "Test images that are in the training half too": [
            f"{one['test']} = {one['train']}" for one in found["leaks"]
        ],
        "The same image under two labels": [
            f"{one['first']} ({one['labels'][0]}) = {one['second']} ({one['labels'][1]})"
            for one in found["clashes"]
        ],
    }
    some = {title: lines for title, lines in lists.items() if lines}
    if not some:
        return
    title = " · ".join(f"{title}: {len(lines):,}" for title, lines in some.items())
    with st.expander(title, icon=":material/info:", key="faults"):
        for title, lines in some.items():
            more = f"\n... and {len(lines) - SHOWN:,} more" if len(lines) > SHOWN else ""
            st.caption(title)
            st.code("\n".join(lines[:SHOWN]) + more, language=None, wrap_lines=True)


def choices() -> dict[str, str]:
    """What a build can be of, and how a person calls it."""
    found = {one.folder.name: one for one in engine().uploads()}
    called = upload_names(list(found))
    uploads = {str(one.folder): f"{called[name]} (uploaded)" for name, one in found.items()}
    names = {data: own_name(name) for data, name in engine().datasets().items()}
    twice = Counter(names.values())  # a folder that was built on, changed and built on again
    return {d: n if twice[n] == 1 else f"{n} ({d[:6]})" for d, n in names.items()} | uploads


class Progress:
    """A bar while something is read on the page; gives its `Report`."""

    def __enter__(self) -> Callable[[str, int, int], None]:
        self.bar = st.progress(0.0, text="starting")
        return self.report

    def report(self, stage: str, done: int, total: int) -> None:
        share = min(done / total, 1.0) if total else 0.0
        self.bar.progress(share, text=STAGES.get(stage, stage))

    def __exit__(self, *_: object) -> None:
        self.bar.empty()
