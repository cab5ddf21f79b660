"""What the decisions bought: the same test images before and after training again."""

import streamlit as st

from attribution.build import Build
from attribution.changes import KINDS, Changes
from attribution.export import changes_csv
from attribution.revision import Revision
from pages.parts.applying import applying, under_way, watch
from pages.parts.grid import consume, grid, notice
from pages.parts.opened import build_name, build_or_stop, engine, go, thumb
from pages.parts.trouble import guarded
from pages.parts.words import UNLABELLED, literal

SHOWN = 60  # pictures of each kind
TITLES = {
    "mended": "Right now, wrong before",
    "broken": "Wrong now, right before",
    "still wrong": "Still wrong",
}


def main() -> None:
    build = build_or_stop(
        "Before & after", "Decisions applied, networks trained again: did it help?"
    )
    notice()
    consume("changes", to_explain)
    if "go" in st.session_state:
        go(st.session_state.pop("go"))
    if under_way():
        st.fragment(guarded(watch), run_every=1.0)()
    pair = before_and_after(build)
    if pair is not None:
        show(*pair)
        st.divider()
    applying(build)


def before_and_after(build: Build) -> tuple[Build, Build] | None:
    """The build asked for beside the one it was made from, or one made from it."""
    earlier = engine().revised_from(build.id)
    if earlier:
        return engine().open(earlier), build
    later = {one["build"]: one for one in engine().revised(build.id)}
    if not later:
        return None
    names = list(later)
    chosen = names[0]
    if len(names) > 1:
        chosen = st.selectbox(
            "Trained again",
            names,
            format_func=lambda name: build_name(later[name]),
            key="after",
            bind="query-params",
        )
    return build, engine().open(chosen)


def show(before: Build, after: Build) -> None:
    """Accuracy of both, whether the difference may be chance, and the images that changed."""
    if not after.labelled:
        moved(before, after)
        return
    changed, made = engine().changes(before.id, after.id), engine().revision(after.id)
    assert made is not None
    facts(changed, made, before)
    if before.retraining:
        st.caption(before.retraining + " Part of the difference may be due to that.")
    st.session_state["changes_build"] = after.id
    groups = []
    for kind in KINDS[:3]:
        some = changed.table[changed.table.kind == kind]
        order = (some.label_after - some.label_before).abs().sort_values(ascending=False).index
        items = [item(after, int(i), some.loc[i]) for i in order[:SHOWN]]
        title = f"{TITLES[kind]} · {len(some)}"
        groups.append({"label": title, "title": True, "items": items, "empty": "None."})
    grid("changes", to_explain, kind="pick", tile=76, groups=groups)
    st.caption(
        "What each was called before → after, those whose probability moved most first. Pick an "
        "image to see what is behind its prediction now."
    )
    st.download_button(
        "Every test image as CSV",
        changes_csv(after, changed.table).encode(),
        file_name=f"changes-{before.id}-{after.id}.csv",
        mime="text/csv",
        key="changes_csv",
    )


def moved(before: Build, after: Build) -> None:
    """The images that are called otherwise now, where nobody knows which are called right."""
    names = after.classes
    some = (before.predicted_T != after.predicted_T).nonzero()[0]
    st.session_state["changes_build"] = after.id
    st.info(f"{UNLABELLED} So nothing can be called mended or broken.")
    items = [
        {
            "id": int(t),
            "src": thumb(after, "test", t),
            "alt": f"Test image {t}, called {names[before.predicted_T[t]]} before and "
            f"{names[after.predicted_T[t]]} after",
            "caption": f"{names[before.predicted_T[t]]} → {names[after.predicted_T[t]]}",
            "correct": True,
        }
        for t in some[:SHOWN]
    ]
    title = f"Called otherwise now · {len(some)} of {len(after.predicted_T)}"
    group = {"label": title, "title": True, "items": items, "empty": "None."}
    grid("changes", to_explain, kind="pick", tile=76, groups=[group])


def facts(changed: Changes, made: Revision, before: Build) -> None:
    summary = changed.summary
    columns = st.columns(4, border=True)
    gain = summary.after - summary.before
    columns[0].metric(
        "Test accuracy after", f"{summary.after:.1%}", f"{100 * gain:+.1f} points", border=False
    )
    columns[1].metric("Before", f"{summary.before:.1%}")
    columns[2].metric("Mistakes mended", summary.mended)
    columns[3].metric("New mistakes", summary.broken)
    if summary.as_given:
        st.caption(f"{summary.as_given} Excluded images are in no list below.")
    by = ", ".join(literal(r) for r in made.reviewers if r)
    missing = (
        f" {len(made.missing)} were on images this data does not have." if made.missing else ""
    )
    chance = (
        "That is more than equally good networks differ by chance"
        if summary.chance < 0.05
        else "Equally good networks often differ as much by chance"
    )
    st.markdown(
        f"{made.relabelled} training images relabelled, {made.dropped} left out, {made.kept} "
        f"confirmed.{missing} {chance} (p = {summary.chance:.2g})."
    )
    st.caption(
        f"Decisions {span_of(made.decisions)} on the data of build {before.id[:6]}"
        + (f", by {by}" if by else "")
    )


def span_of(numbers: tuple[int, ...]) -> str:
    """How a person says which decisions: the first to the last of so many."""
    return f"no. {numbers[0]} to {numbers[-1]} ({len(numbers)})" if numbers else ""


def item(build: Build, test_id: int, one) -> dict:
    """A test image as the grid draws it."""
    names = build.classes
    return {
        "id": test_id,
        "src": thumb(build, "test", test_id),
        "alt": f"Test image {test_id}, labelled {names[one.label]}, which had "
        f"{one.label_before:.0%} before and has {one.label_after:.0%} after",
        "caption": f"{names[one.before]} → {names[one.after]}",
        "correct": bool(one.after == one.label),
    }


def to_explain(action: dict) -> None:
    """Open the picked test image in the build trained again."""
    st.session_state.update(
        test=action.get("id"), target="predicted", show="all", go="explain",
        go_build=st.session_state.get("changes_build"),
    )  # fmt: skip


main()
