"""All images at once, near those that the networks see alike; choose some and ask about them."""

from base64 import b64decode, b64encode

import numpy as np
import streamlit as st

from attribution.build import Build
from attribution.jobs import Job
from attribution.records import UserError
from pages.parts import picked, points
from pages.parts.access import BUILD
from pages.parts.asked import test_item, views
from pages.parts.grid import consume, grid, notice, plane, subject
from pages.parts.jobs import RUNNING, framed
from pages.parts.opened import (
    DOUBT,
    build_or_stop,
    command_line,
    engine,
    go,
    launch,
    locked,
    thumb,
)
from pages.parts.thumbs import inline
from pages.parts.trouble import guarded
from pages.parts.words import UNLABELLED

ANY = "all classes"
COLOURS = ("class", "suspicion", "decision")
IMAGES = ("both", "training", "test")
ONLY = ("everything", "wrong predictions", "undecided suspects")
CODES = {"keep": 1, "relabel": 2, "drop": 3, "unsure": 4}  # as plane.js has them
PAGE = 60  # thumbnails of each kind below the map


def main() -> None:
    build = build_or_stop(
        "Map",
        "Every image a point, near those that the networks see alike. Who is in the wrong crowd?",
    )
    consume("map", lambda action: act(build, action))
    if "go" in st.session_state:
        go(st.session_state.pop("go"))
    notice()
    if build.map is None:
        missing(build)
    else:
        show(build)


def missing(build: Build) -> None:
    """One sentence, and the button that makes the map; progress while it is on its way."""
    mine = making(build)
    if mine and mine[0].state == RUNNING:
        st.fragment(guarded(watch), run_every=1.0)(build)
        return
    if mine and mine[0].error:
        st.error(mine[0].error, icon=":material/error:")
    with st.container(border=True):
        words, action = st.columns([4, 1], vertical_alignment="center")
        words.write(
            "**The images are not laid out yet.** It takes about two minutes for 50,000 and "
            "runs in the background."
        )
        words.caption("Or in a terminal:")
        words.code(command_line(["map", build.id]), language="bash", wrap_lines=True)
        primary = locked(BUILD, type="primary", key="make_map", width="stretch")
        if action.button("Make the map", **primary):
            launch([build.id], "map")
            st.rerun()


def making(build: Build) -> list[Job]:
    """The jobs that make this build's map, newest first."""
    return [j for j in engine().jobs() if j.command == "map" and build.id in j.options]


def watch(build: Build) -> None:
    """The map on its way; the page is drawn anew when it is there."""
    busy = [job for job in making(build) if job.state == RUNNING]
    if not busy:
        st.rerun()
    if framed(busy[0], "Log and cancel", key="to_builds"):
        go("builds")


@st.fragment
@guarded
def show(build: Build) -> None:
    """The map and what is selected on it: a click reruns this, and not the page's head."""
    consume("map", lambda action: act(build, action))
    for key in ("map_tests", "map_trains"):
        consume(key, lambda action, key=key: to_one(key == "map_tests", action.get("id")))
    if "go" in st.session_state:
        st.rerun()
    colour, images, label, only = choices(build)
    plane(
        "map",
        lambda action: act(build, action),
        points=points.address(build),
        train=len(build.train_labels_N),
        test=len(build.test_labels_T),
        labelled=build.labelled,
        thumbs=thumb(build, "", 0).removesuffix("/0.png"),
        classes=list(build.classes),
        hidden=hidden(build),
        colour=colour,
        images=images,
        label=label,
        only=only,
        decided=encoded(decided(build)),
        selected=encoded(selected(build)),
    )
    below(build)


def choices(build: Build) -> tuple[str, str, int | None, str]:
    """Colour, which images, which class and what of them; all in the address."""
    bound = {"bind": "query-params", "persist_state": "session"}
    places = st.columns([4, 4, 3, 3], vertical_alignment="bottom")
    colour = places[0].segmented_control(
        "Colour by", COLOURS, default="class", key="map_colour", required=True, **bound
    )
    images = places[1].segmented_control(
        "Images", IMAGES, default="both", key="map_images", required=True, **bound
    )
    names = [ANY, *build.classes]
    label = places[2].selectbox("Labelled", names, key="map_label", **bound)
    known = [one for one in ONLY if build.labelled or one != "wrong predictions"]
    only = places[3].selectbox("Only", known, key="map_only", **bound)
    return colour, images, None if label == ANY else build.classes.index(label), only


def act(build: Build, action: dict) -> None:
    """Images were selected on the map, or classes hidden."""
    if action.get("type") == "select":
        st.session_state["map_selected"] = (build.data_id, checked(build, action.get("points")))
    elif action.get("type") == "hide":
        text = ",".join(str(c) for c in action.get("classes", []) if isinstance(c, int))
        if text:
            st.query_params["map_hidden"] = text
        else:
            st.query_params.pop("map_hidden", None)


def checked(build: Build, text: object) -> np.ndarray:
    """Positions that came from the browser. Raises UserError when they make no sense."""
    try:
        found = np.frombuffer(b64decode(str(text), validate=True), "<u4")
    except ValueError:
        found = np.array([-1])
    if len(found) and not 0 <= found.max() < len(build.train_labels_N) + len(build.test_labels_T):
        raise UserError(
            found="a selection of images that are not there",
            wanted="images of this build",
            next_step="reload the page",
        )
    return found


def encoded(numbers: np.ndarray) -> str:
    return b64encode(numbers.astype("<u4").tobytes()).decode()


def selected(build: Build) -> np.ndarray:
    """Positions among all images, the training images first; of another data set they are gone."""
    data_id, found = st.session_state.get("map_selected", ("", np.array([], int)))
    return found if data_id == build.data_id else np.array([], int)


def hidden(build: Build) -> list[int]:
    """Classes that the legend hides; what the address has besides is left out."""
    words = st.query_params.get("map_hidden", "").split(",")
    found = {int(w) for w in words if w.isdecimal() and len(w) < 7}
    return sorted(c for c in found if c < len(build.classes))


def decided(build: Build) -> np.ndarray:
    """Training images with a decision, position * 8 + its code."""
    latest = engine().decisions.standing(build.data_id).latest()
    if not latest:
        return np.array([], int)
    pairs = ((i, latest.get(example)) for i, example in enumerate(build.train_ids))
    return np.array([i * 8 + CODES[d.verdict] for i, d in pairs if d], int)


def below(build: Build) -> None:
    """What is selected, and what can be asked of it."""
    every, count = selected(build), len(build.train_labels_N)
    trains, tests = every[every < count], every[every >= count] - count
    if not build.labelled:
        st.caption(UNLABELLED)
    if not len(every):
        st.caption(
            "Click a point, or press **L** and draw around many (with Shift to add). Of an image's "
            f"ten nearest in the networks' eyes, {10 * build.map.manifest['kept']:.0f} are among "
            "its ten nearest here; how far apart two groups lie says little."
        )
    elif len(every) == 1:
        one(build, len(tests) == 1, int((tests if len(tests) else trains)[0]))
    else:
        several(build, trains, tests)


def one(build: Build, test: bool, i: int) -> None:
    """The only image selected, large."""
    names = build.classes
    picture, act_on = st.columns([4, 1], vertical_alignment="center")
    with picture:
        if test:
            row = build.tests(engine().test_labels(build.id)).loc[i]
            facts = [
                (f"Predicted {names[row.predicted]}", "right" if row.correct else "wrong"),
                (f"Labelled {names[row.label]}", "right" if row.correct else ""),
            ]
            if not build.labelled:
                facts = [(f"Predicted {names[row.predicted]}", "")]
            given, other = build.probs_TC[i, row.label], row.confidence
            label, believed = row.label, row.predicted
        else:
            row = build.mislabels().loc[i]
            doubtful = row.score > DOUBT
            facts = [(f"Labelled {names[row.given_label]}", "wrong" if doubtful else "")]
            facts.append((f"{row.score:.0%} that the label is wrong", "wrong" if doubtful else ""))
            given, other = row.given_probability, row.suggested_probability
            label, believed = row.given_label, row.suggested_label
        kinds = {label: ("label", given)}
        if believed != label:
            kinds = {believed: ("predicted", other), **kinds}
        split = "test" if test else "train"
        subject(
            "map_one",
            lambda _: None,
            **views(build, split, i),
            src=inline(build, split, i),
            alt=f"{'Test' if test else 'Training'} image {i}",
            title=f"{'Test' if test else 'Training'} image {i}",
            facts=facts,
            bars=[
                {"name": names[c], "value": float(v), "text": f"{v:.1%}", "tone": tone}
                for c, (tone, v) in kinds.items()
            ],
        )
    text = "Explain it" if test else "Review it"
    if act_on.button(text, type="primary", key="map_act", width="stretch"):
        to_one(test, i)
        st.rerun()


def several(build: Build, trains: np.ndarray, tests: np.ndarray) -> None:
    """The images selected as thumbnails, with what can be done with them together."""
    suspects = build.mislabels()
    score_N = suspects.score.sort_index().to_numpy()
    trains = trains[np.argsort(-score_N[trains], kind="stable")]
    table = build.tests(engine().test_labels(build.id))
    order = table.loc[tests].sort_values(["correct", "confidence"], ascending=[True, False])
    doubtful = int((score_N[trains] > DOUBT).sum())
    halves = [half for half in (len(tests), len(trains)) if half]
    places = iter(st.columns(len(halves), gap="large"))
    if len(tests):
        with next(places):
            mistakes = int((~order.correct & order.kept).sum())
            wrong = f", {mistakes:,} predicted wrong" if build.labelled else ""
            group(
                f"{len(tests):,} test images{wrong}",
                "Explain these together", "Find the training images behind all of them",
                len(tests), "groups", words=picked.words(tests.tolist()),
            )  # fmt: skip
            items = [test_item(build, one.Index, one) for one in order.head(PAGE).itertuples()]
            tiles("map_tests", "Selected test images", items)
    if len(trains):
        with next(places):
            group(
                f"{len(trains):,} training images, {doubtful:,} suspicious",
                "Review these", "Decide on their labels, the most suspicious first",
                len(trains), "review", words=picked.words(trains.tolist()),
            )  # fmt: skip
            items = [train_item(build, int(i), score_N[i]) for i in trains[:PAGE]]
            tiles("map_trains", "Selected training images", items)


def group(said: str, action: str, about: str, count: int, page: str, words: str) -> None:
    """How many are selected, and the button that opens a page on them."""
    text, button = st.columns([3, 2], vertical_alignment="center")
    shown = f", {PAGE} shown" if count > PAGE else ""
    text.markdown(f"**{said}**{shown}")
    many = count > picked.MOST
    help_text = f"At most {picked.MOST:,} at a time: select fewer." if many else about
    if button.button(
        action, type="primary", key=f"to_{page}", width="stretch", disabled=many, help=help_text
    ):
        picked.give(page, words)
        if page == "groups":
            st.session_state["pattern"] = "a selection"
        st.session_state["go"] = page
        st.rerun()


def tiles(key: str, label: str, items: list[dict]) -> None:
    def handle(action: dict) -> None:
        to_one(key == "map_tests", action.get("id"))

    grid(key, handle, kind="pick", tile=60, groups=[{"label": label, "items": items, "empty": ""}])


def train_item(build: Build, i: int, score: float) -> dict:
    name = build.classes[build.train_labels_N[i]]
    return {
        "id": i,
        "src": thumb(build, "train", i),
        "alt": f"Training image {i}, labelled {name}",
        "caption": name,
        "correct": bool(score <= DOUBT),
        "note": f"{score:.0%}",
    }


def to_one(test: bool, i: object) -> None:
    """Open the page about one image."""
    if test:
        st.session_state.update(test=i, target="predicted", show="all", go="explain")
    else:
        picked.give("review", "")  # which might not have it
        st.session_state.update(review_at=i, go="review")


main()
