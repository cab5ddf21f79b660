"""Beyond one prediction: confusions as a whole, one class against another, hubs, blind spots."""

from collections.abc import Sized

import streamlit as st

from attribution.build import Build
from attribution.groups import GroupHit
from attribution.records import pushing
from pages.parts import charts, picked
from pages.parts.asked import PAGE, begins, test_item
from pages.parts.grid import TRAIN, class_keys, consume, grid, notice, on_train, verdicts
from pages.parts.hits import hit_item, hits_grid
from pages.parts.opened import DOUBT, build_or_stop, engine, go, thumb
from pages.parts.words import UNLABELLED, literal, readable

HITS = 18
NEAR = 10  # strongest proponents by which hubs are counted
STEADY = 5  # strongest proponents of which some should be told from zero
ASKED = {  # as `query_group` takes it, and in words
    "called so": ("predicted", "what each is called"),
    "labelled so": ("label", "what each is labelled, as given"),
}
TOGETHER = (
    "Ranked by the mean over the test images without the one that is loudest, so that no single "
    "image decides. Under each: the share of the test images that it pushes the same way. Pick a "
    "training image to keep, relabel or drop it."
)
BOUND = {"bind": "query-params", "persist_state": "session"}


def main() -> None:
    build = build_or_stop("Patterns", "What several predictions have in common, and what none has.")
    notice()
    for key in ("group_tests", "unsteady"):
        consume(key, to_explain)
    for key in ("group_hits", "hubs"):
        consume(key, lambda action: on_hit(build, action))
    if "go" in st.session_state:
        go(st.session_state.pop("go"))
    view = st.segmented_control(
        "View", list(VIEWS), key="pattern", default="a confusion", required=True,
        label_visibility="collapsed", **BOUND,
    )  # fmt: skip
    VIEWS[view](build)


def confusion(build: Build) -> None:
    """The training images behind all test images of a cell of the confusion matrix."""
    if not build.labelled:
        st.info(f"{UNLABELLED} So there is no confusion to ask about: choose another view.")
        return
    names = list(build.classes)
    labels = engine().test_labels(build.id)
    matrix_CC = build.confusion_CC(labels)
    wrong_CC = matrix_CC.copy()
    wrong_CC[range(len(names)), range(len(names))] = 0
    left, right = st.columns([4, 9], gap="large")
    with left:
        # By the matrix alone: an index that went with the choice would be the choice's default,
        # which an address leaves out.
        label, predicted = divmod(int(wrong_CC.argmax()), len(names))
        a, b = st.columns(2)
        chosen = [
            place.selectbox(title, names, index=at, key=key, on_change=by_hand, **BOUND)
            for place, title, at, key in (
                (a, "Labelled", label, "group_label"),
                (b, "Called", predicted, "group_predicted"),
            )
        ]
        label, predicted = map(names.index, chosen)
        key = f"group_cell_{st.session_state.get('by_hand', 0)}"
        charts.confusion(
            matrix_CC, build.classes, (names[label], names[predicted]), lambda: cell(key), key
        )
        tests = build.tests(labels)
        whole = tests[tests.kept & (tests.label == label) & (tests.predicted == predicted)]
        some = whole.sort_values("confidence", ascending=False).head(picked.MOST)
        items = [test_item(build, one.Index, one) for one in some.head(PAGE).itertuples()]
        group = {"label": f"Its test images · {count_of(whole)}", "title": True, "items": items,
                 "empty": "No test image is called so."}  # fmt: skip
        grid("group_tests", to_explain, kind="pick", tile=60, groups=[group])
    with right:
        if not len(some):
            st.info("Choose another cell of the matrix.")
            return
        answer = build.query_group([int(t) for t in some.index], hits_of(build))
        name = names[predicted]
        part = f" (the surest of {len(whole):,})" if len(some) < len(whole) else ""
        st.markdown(
            f"What pushed {whom(len(some))}{part} labelled **{literal(names[label])}** towards or "
            f"away from **{literal(name)}**."
        )
        shown(build, answer.proponents, answer.opponents, name, len(some))
        st.caption(TOGETHER)


def by_hand() -> None:
    """Classes were chosen outside of the matrix, whose own selection is now out of date."""
    st.session_state["by_hand"] = st.session_state.get("by_hand", 0) + 1


def cell(key: str) -> None:
    """A cell of the matrix was clicked."""
    picked = st.session_state[key]["selection"].get("cell") or []
    if picked:
        st.session_state["group_label"] = picked[0]["label"]
        st.session_state["group_predicted"] = picked[0]["predicted"]


def selection(build: Build) -> None:
    """The training images behind test images that were chosen on the map."""
    _, some = picked.chosen("groups", len(build.test_labels_T))
    notice()
    some = some[: picked.MOST]
    if not some:
        st.info(
            "Choose test images on the page *Map*: draw around some, then *Explain these together*."
        )
        if st.button("Open the map", key="to_map"):
            go("map")
        return
    left, right = st.columns([4, 9], gap="large")
    with left:
        asked = st.segmented_control(
            "Why they were", list(ASKED)[: 1 + build.labelled], key="group_asked",
            default="called so", required=True,
            **BOUND,
        )  # fmt: skip
        tests = build.tests(engine().test_labels(build.id)).loc[list(some)]
        tests = tests.sort_values(["correct", "confidence"])
        items = [test_item(build, one.Index, one) for one in tests.head(PAGE).itertuples()]
        label = f"Test images · {count_of(some)}"
        grid("group_tests", to_explain, kind="pick", tile=60,
             groups=[{"label": label, "title": True, "items": items, "empty": ""}])  # fmt: skip
    with right:
        target, name = ASKED[asked]
        answer = build.query_group(some, hits_of(build), target)
        st.markdown(f"What pushed {whom(len(some))} towards or away from **{name}**.")
        shown(build, answer.proponents, answer.opponents, name, len(some))
        st.caption(TOGETHER)


def hits_of(build: Build) -> int:
    """How many hits of each kind: few training images have no more."""
    return min(HITS, len(build.train_labels_N))


def count_of(some: Sized) -> str:
    return f"{len(some):,}" + (f", {PAGE} shown" if len(some) > PAGE else "")


def whom(count: int) -> str:
    return "the test image" if count == 1 else f"the {count:,} test images"


def shown(
    build: Build, towards: tuple[GroupHit, ...], away: tuple[GroupHit, ...], name: str, count: int
) -> None:
    """A group's hits, with their support in place of the members' agreement."""
    both = [*towards, *away]
    times, said = readable(max((abs(one.without_loudest) for one in both), default=1))
    suspects = build.mislabels()

    def item(one: GroupHit) -> dict:
        made = hit_item(build, one.hit, suspects.loc[one.hit.train_id], times)
        together = round(one.support * count)
        return made | {
            "score": one.without_loudest,
            "stderr": 0,
            "score_text": f"{one.without_loudest * times:+.1f}",
            "agreement_text": f"{together}/{count}",
            "shaky": one.support < 0.8,
            "title": f"Training image {one.hit.train_id}: pushes {together} of {count} test images "
            "the same way.",
        }

    hits_grid(
        build,
        "group_hits",
        lambda action: on_hit(build, action),
        [
            (f"Pushed towards {name}", "for", [item(one) for one in towards]),
            (f"Pushed away from {name}", "against", [item(one) for one in away]),
        ],
        empty="None that more than one test image supports.",
    )
    if said:
        st.caption(said)


def contrast(build: Build) -> None:
    """What spoke for one class rather than another."""
    names = list(build.classes)
    tests = build.tests(engine().test_labels(build.id))
    wrong = tests[~tests.correct & tests.kept].sort_values("confidence", ascending=False)
    first = int(wrong.index[0]) if len(wrong) else 0
    a, b, c, _ = st.columns([2, 2, 2, 3])
    test_id = int(
        a.number_input("Test image", 0, len(tests) - 1, first, key="contrast_test", **BOUND)
    )
    one = tests.loc[test_id]
    label, said = int(one.label), int(one.predicted)
    begins("rather", names[said], of=(build.id, test_id))
    target = b.selectbox("Rather this", names, key="rather")
    rest = [name for name in names if name != target]
    usual = names[label] if names[label] in rest else rest[0]
    begins("than", usual, of=(build.id, test_id, target))
    other = c.selectbox("than this", rest, key="than")
    picture, hits = st.columns([2, 9], gap="large")
    picture.image(build.image("test", test_id), width="stretch")
    labelled = f"labelled {literal(names[label])}, " if build.labelled else ""
    picture.caption(f"Test image {test_id}, {labelled}called {literal(names[said])}")
    answer = build.contrast(test_id, names.index(target), names.index(other), hits_of(build))
    both = (*answer.proponents, *answer.opponents)
    times, said_scale = readable(max((abs(h.score) for h in both), default=1))
    suspects = build.mislabels()
    with hits:
        sides = [
            (title, tone, [hit_item(build, h, suspects.loc[h.train_id], times) for h in some])
            for title, tone, some in (
                (f"For {target} rather than {other}", "for", pushing(answer.proponents, 1)),
                (f"For {other} rather than {target}", "against", pushing(answer.opponents, -1)),
            )
        ]
        hits_grid(build, "group_hits", lambda action: on_hit(build, action), sides)
        st.caption(f"{said_scale}{answer.noise}")


def hubs(build: Build) -> None:
    """Training images that are behind very many predictions."""
    found = build.hubs(NEAR)
    suspects = build.mislabels()
    st.markdown(
        f"Training images that most test images have among their {NEAR} strongest proponents. "
        "A hub with a wrong label does harm in many places: look at these first."
    )
    items = []
    for train_id, one in found.head(PAGE).iterrows():
        i = int(train_id)
        doubt = suspects.loc[i]
        name = build.classes[int(one.label)]
        items.append(
            {
                "id": i,
                "src": thumb(build, "train", i),
                "alt": f"Training image {i}, behind {int(one.tests)} test images, suspicion "
                f"{doubt.score:.2f}",
                "caption": name,
                "correct": bool(doubt.score <= DOUBT),
                "note": f"{int(one.tests)} tests",
                "given": int(one.label),
                "guess": int(doubt.suggested_label),
            }
        )
    group = {"label": "Hubs", "items": items, "empty": "There is none."}
    grid(
        "hubs",
        lambda action: on_hit(build, action),
        kind="pick",
        tile=76,
        groups=[group],
        split=TRAIN,
        classes=list(build.classes),
        keys=class_keys(build),
        verdicts=verdicts(build, [item["id"] for item in items]),
    )
    st.caption("In red: the label is itself in doubt. Pick one to review it.")


def unsteady(build: Build) -> None:
    """Test images for which no training image speaks clearly."""
    with st.spinner("Looking at the proponents of every test image"):
        labels = engine().test_labels(build.id)
        found = build.unsteady(min(STEADY, len(build.train_labels_N)), labels)
    none = found[found.steady == 0]
    st.markdown(
        f"**{len(none)}** of {len(found)} test images have no steady proponent: of their {STEADY} "
        "strongest none is told apart from zero. The training set has little like them; collect "
        "more of their kind."
    )
    items = [
        {**test_item(build, one.Index, one), "note": f"{one.steady} of {STEADY}"}
        for one in found.head(PAGE).itertuples()
    ]
    group = {"label": "Test images", "items": items, "empty": "There is no test image."}
    grid("unsteady", to_explain, kind="pick", tile=76, groups=[group])


def to_explain(action: dict) -> None:
    st.session_state.update(test=action.get("id"), target="predicted", show="all",
                            go="explain")  # fmt: skip


def on_hit(build: Build, action: dict) -> None:
    """A decision on a hit, its undo, or a hub to be reviewed."""
    seen = {"pattern": st.session_state.get("pattern")}
    if not on_train(build, action, lambda _: seen) and action.get("type") == "pick":
        st.session_state.update(review_at=action.get("id"), go="review")


VIEWS = {
    "a confusion": confusion,
    "a selection": selection,
    "one class rather than another": contrast,
    "hubs": hubs,
    "no steady proponent": unsteady,
}

main()
