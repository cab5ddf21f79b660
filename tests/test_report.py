"""Pages that can be sent: read back by a parser, and harmless whatever names say."""

import base64
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from conftest import Tiny
from PIL import Image
from typer.testing import CliRunner

from attribution import report
from attribution.__main__ import app
from attribution.build import Build
from attribution.engine import Engine
from attribution.records import UserError
from attribution.testlabels import untouched

NASTY = '<script>alert("1")</script>'


class Read(HTMLParser):
    """Tags with their attributes, and all the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data) -> None:
        self.text += data

    @property
    def images(self) -> list[np.ndarray]:
        sources = [a["src"] for t, a in self.tags if t == "img"]
        assert all(s.startswith("data:image/png;base64,") for s in sources)
        return [
            np.asarray(Image.open(BytesIO(base64.b64decode(s.partition(",")[2])))) for s in sources
        ]


@pytest.fixture
def build(tiny: Tiny) -> Build:
    return Engine(tiny.cache, tiny.workspace).open(tiny.build)


def test_a_prediction_is_told_with_its_hits_in_order(build: Build) -> None:
    found = Read(report.prediction(build, 5, k=4, target="label"))
    answer = build.query(5, 4, "label")
    hits = [*answer.proponents, *answer.opponents]
    images = [build.image("test", 5), *(build.image("train", h.train_id) for h in hits)]
    assert len(found.images) == len(images)
    for shown, wanted in zip(found.images, images, strict=True):
        np.testing.assert_array_equal(shown, wanted)
    for hit in hits:
        assert f"training image {hit.train_id}" in found.text and f"{hit.score:+.2g}" in found.text
    assert build.id in found.text and f"{build.probs_TC[5].max():.1%}" in found.text


def test_a_prediction_is_right_or_wrong_by_the_labels_in_force(build: Build) -> None:
    test_id = int(np.flatnonzero(build.predicted_T != build.test_labels_T)[0])
    given, said = (build.classes[c[test_id]] for c in (build.test_labels_T, build.predicted_T))
    labels = untouched(build.test_labels_T)
    assert f"Called <b>{said}</b>, wrongly" in report.prediction(build, test_id, labels=labels)
    corrected = replace(labels, labels_T=build.predicted_T)
    page = report.prediction(build, test_id, labels=corrected)
    assert f"labelled <b>{given}</b>, corrected to <b>{said}</b>" in page
    assert f"Called <b>{said}</b>, correctly" in page
    excluded = replace(labels, kept_T=np.zeros(len(build.test_labels_T), bool))
    page = report.prediction(build, test_id, labels=excluded)
    assert f"labelled <b>{given}</b>, excluded" in page and f"Called <b>{said}</b>." in page


def test_names_are_text_and_nothing_is_run_or_fetched(build: Build, tiny: Tiny) -> None:
    engine = Engine(tiny.cache, tiny.workspace / "nasty")
    build.classes = (NASTY, *build.classes[1:])
    engine.decisions.decide(
        build.data_id, build.train_ids[0], "relabel", label=0, reviewer=NASTY, build_id=build.id
    )
    test_id = int(np.flatnonzero(build.test_labels_T == 0)[0])
    for page in (
        report.prediction(build, test_id, target="label"),
        report.review(build, engine.decisions.in_force(build.data_id)),
    ):
        found = Read(page)
        assert NASTY in found.text and "<script" not in page
        assert {t for t, _ in found.tags} <= {
            "html", "meta", "title", "style", "h1", "h2", "p", "table", "tr", "td", "div",
            "figure", "img", "figcaption", "b", "br",
        }  # fmt: skip
        assert "http" not in page.replace("http-equiv", "")
        (policy,) = [a["content"] for t, a in found.tags if a.get("content", "").startswith("def")]
        assert policy.startswith("default-src 'none'")


def test_a_review_counts_every_decision(build: Build, tiny: Tiny) -> None:
    log = Engine(tiny.cache, tiny.workspace / "counted").decisions
    for n, verdict in enumerate(("drop", "keep", "relabel", "drop")):
        label = 3 if verdict == "relabel" else None
        log.decide(
            build.data_id, build.train_ids[n], verdict, label=label, reviewer="ada",
            build_id=build.id,
        )  # fmt: skip
    log.decide(build.data_id, "gone-0", "drop", label=None, build_id=build.id)
    found = Read(report.review(build, log.in_force(build.data_id)))
    assert "4 of 4,500 training images decided: 2 drop, 1 keep, 1 relabel" in found.text
    assert "1 decisions are on images that are gone" in found.text
    assert sorted(i.tobytes() for i in found.images) == sorted(
        build.image("train", n).tobytes() for n in range(4)
    )


def test_the_command_writes_the_page_whole(tiny: Tiny, tmp_path: Path) -> None:
    where = ["--cache", str(tiny.cache), "--workspace", str(tmp_path)]
    path = tmp_path / ("long" * 25) / "why.html"  # a line of its own would be wider than a screen
    path.parent.mkdir()
    told = CliRunner().invoke(app, ["report", tiny.build, "--test", "5", "-o", str(path), *where])
    assert told.exit_code == 0 and str(path) in told.stdout
    opened = Engine(tiny.cache, tmp_path).open(tiny.build)
    assert path.read_text("utf-8") == report.prediction(opened, 5)
    CliRunner().invoke(app, ["report", tiny.build, "-o", str(path), *where])
    assert "0 of 4,500" in path.read_text("utf-8")
    bad = CliRunner().invoke(app, ["report", tiny.build, "--test", "900", "-o", str(path), *where])
    assert isinstance(bad.exception, UserError) and "0 of 4,500" in path.read_text("utf-8")


def test_classes_of_any_length_stay_inside(build: Build) -> None:
    build.classes = tuple("long name " * 40 for _ in build.classes)
    assert report.prediction(build, 0).count("overflow-wrap") == 1
