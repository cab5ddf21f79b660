"""Test images without labels: read, explained for what they are called, and never scored."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from apptest import at_place, element, fine, items, page
from conftest import Tiny
from pictures import CLASSES, half, photos, table, written

from attribution.__main__ import main
from attribution.data import dataset
from attribution.decisions import Choice
from attribution.engine import Engine
from attribution.reading import described, read
from attribution.records import BuildSpec, FeatureSpec, UserError
from attribution.report import prediction
from attribution.store import Store
from pages.parts.words import UNLABELLED

SPEC = BuildSpec(
    model="cnn", width=0.2, models=2, masks=2, epochs=3, features=FeatureSpec(ka=4, kg=2),
    index_dims=8,
)  # fmt: skip
FILES = photos(train=12, test=4)
BARE = {f"test/{p.replace('/', '-')}": c for p, c in half(FILES, "test").items()}


def manifest(root: Path, blank: dict[str, str]) -> Path:
    """A CSV of `FILES`, test rows with the label that `blank` gives for theirs."""
    rows = ["path,label,split"]
    for path in FILES:
        split, label, _ = path.split("/")
        rows.append(f"{path},{blank.get(label, label) if split == 'test' else label},{split}")
    written(root, FILES)
    (root / "list.csv").write_text("\n".join(rows))
    return root / "list.csv"


def of_parquet(root: Path, kind: str) -> Path:
    """Shards in Hugging Face's layout whose test half has the label -1, or no such column."""
    table(root / "train-00000-of-00001.parquet", half(FILES, "train"))
    place = table(root / "test-00000-of-00001.parquet", half(FILES, "test"))
    whole = pq.read_table(place)
    bare = whole.drop_columns(["label"])
    if kind == "minus one":
        field = whole.schema.field("label")
        bare = bare.append_column(field, [[-1] * len(whole)])
    pq.write_table(bare, place)
    return root


WAYS = {
    "a folder": lambda root: written(root, half(FILES, "train") | BARE),
    "a folder called unknown": lambda root: written(
        root,
        half(FILES, "train") | {p.replace("test/", "test/Unknown/"): c for p, c in BARE.items()},
    ),
    "a manifest": lambda root: manifest(root, dict.fromkeys(CLASSES, "")),
    "a column of -1": lambda root: of_parquet(root, "minus one"),
    "no column": lambda root: of_parquet(root, "no column"),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_kind_of_source_may_leave_the_test_labels_out(tmp_path: Path, way: str) -> None:
    store = Store(tmp_path / "cache")
    data = dataset(store, read(store, str(WAYS[way](tmp_path / "own"))))
    labelled = dataset(store, read(store, str(written(tmp_path / "all", FILES))))
    assert labelled.test.labelled and not data.test.labelled
    assert data.test.labels_N.tolist() == [-1] * 12
    assert np.array_equal(data.test.images, labelled.test.images)
    assert np.array_equal(data.train.labels_N, labelled.train.labels_N)
    assert data.classes == labelled.classes == CLASSES


def test_where_only_some_are_missing_those_are_set_aside(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    found = described(store, str(manifest(tmp_path / "own", {"emu": ""})))
    assert found["labelled"] and found["test"] == 8
    assert {one["reason"] for one in found["aside"]} == {"no label"}
    assert sorted(one["path"] for one in found["aside"]) == sorted(
        p for p in half(FILES, "test") if "/emu/" in p
    )


def test_a_test_class_that_train_lacks_is_still_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    with pytest.raises(UserError, match="'unknown' .4 images"):
        read(store, str(manifest(tmp_path / "own", {"emu": "unknown"})))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A build whose test images have no labels, and it again with one training label changed."""
    root = tmp_path_factory.mktemp("unlabelled")
    folder = WAYS["a folder"](root / "own")
    engine = Engine(root / "cache", root)
    made = engine.build(replace(SPEC, data=engine.read(str(folder))))["build"]
    first = engine.open(made)
    other = (int(first.train_labels_N[0]) + 1) % 3
    choice = Choice(example_id=first.train_ids[0], verdict="relabel", label=other)
    engine.decisions.decide_all(first.data_id, [choice], reviewer="", build_id=made)
    engine.build(engine.revised_spec(made, engine.revise(made).id))
    engine.map(made)
    return Tiny(root / "cache", root, made)


@pytest.fixture
def opened(own: Tiny, monkeypatch: pytest.MonkeyPatch) -> Engine:
    from pages.parts import opened as pages

    at_place(own, monkeypatch)
    return pages.engine()


def test_answers_are_those_of_the_same_images_labelled_as_they_are_called(tmp_path: Path) -> None:
    """The independent check: a manifest that has the networks' own predictions as test labels."""
    engine = Engine(tmp_path / "cache", tmp_path)

    def built(place: Path):
        return engine.open(engine.build(replace(SPEC, data=engine.read(str(place))))["build"])

    place = manifest(tmp_path / "own", dict.fromkeys(CLASSES, ""))
    bare = built(place)
    called = {
        p: bare.classes[c] for p, c in zip(bare.data.test.paths, bare.predicted_T, strict=True)
    }
    rows = [line.split(",") for line in place.read_text().splitlines()]
    rows = [[p, label or called[p], split] for p, label, split in rows]
    place.with_name("called.csv").write_text("\n".join(map(",".join, rows)))
    told = built(place.with_name("called.csv"))
    assert (bare.summary["accuracy"], told.summary["accuracy"]) == (None, 1)
    assert (bare.train_ids, bare.test_ids) == (told.train_ids, told.test_ids)
    for t in range(12):
        assert bare.query(t, 5) == replace(told.query(t, 5), label=None)
    assert bare.query(0, 3, "label") == bare.query(0, 3)  # there is none to ask about
    assert np.array_equal(bare.scores(), told.scores())
    away = [c for c in range(3) if c != bare.predicted_T[0]][0]
    assert np.array_equal(bare.exact(0, away), told.exact(0, away))
    assert bare.mislabels().equals(told.mislabels())


def test_what_needs_labels_is_refused_in_one_sentence(opened: Engine, own: Tiny) -> None:
    build = opened.open(own.build)
    after = opened.revised(own.build)[0]["build"]
    for ask in (
        lambda: build.doubtful_tests,
        lambda: opened.truth(own.build, 2, 1),
        lambda: opened.evaluate(own.build),
        lambda: opened.study(own.build, 2, 1),
        lambda: opened.changes(own.build, after),
    ):
        with pytest.raises(UserError, match="test images have no labels"):
            ask()
    assert opened.test_labels(own.build).accuracy(build.predicted_T).given is None
    assert "without a label" in (html := prediction(build, 0)) and "wrongly" not in html
    assert "accuracy" not in html
    assert all(one.label is None for one in opened.blast(own.build, [0], 1))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def command(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["attribution", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "250")
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out + captured.err

    return command


def test_the_command_line_says_so(own: Tiny, run) -> None:
    at = ["--cache", own.cache]
    told = json.loads(run("query", own.build, 0, "--json", *at)[1])
    assert told["label"] is None and told["target"] == told["predicted"]
    assert "without a label, predicted" in run("query", own.build, 0, *at)[1]
    assert "not known" in run("list", *at)[1]
    assert "no labels" in run("data", own.workspace / "own", *at)[1]
    for words in (
        ["testlabels", own.build, "-k", 5],
        ["evaluate", own.build],
        ["truth", own.build],
    ):
        code, said = run(*words, *at)
        assert code == 2 and said.count("no labels") == 1 and "Traceback" not in said
    assert json.loads(run("list", "--json", *at)[1])[0]["accuracy"] is None


def words(app) -> str:
    """Everything that the page says."""
    kinds = (app.caption, app.info, app.markdown, app.metric, app.subheader)
    return " ".join(str(one.value) for kind in kinds for one in kind)


def test_pages_say_it_once_and_show_no_score(opened: Engine, own: Tiny) -> None:
    build = opened.open(own.build)
    for name in ("overview", "groups", "map", "compare", "changes", "explain"):
        app = fine(page(name, build=own.build))
        assert UNLABELLED in words(app) and "wrong predictions" not in words(app), name
    least_sure = build.tests().sort_values("confidence").index.tolist()
    assert [one["id"] for one in items(app, "tests")] == least_sure
    card = element(app, "subject")
    assert card["facts"] == [[f"Predicted {build.classes[build.predicted_T[least_sure[0]]]}", ""]]
    assert "classes" not in card  # nothing is decided on a label that is not there
    assert not app.get("vega_lite_chart") and "show" not in app.query_params
    assert element(app, "hits")["groups"][0]["items"]
    contrast = fine(page("groups", build=own.build, pattern="one class rather than another"))
    assert "labelled" not in words(contrast)
    beside = fine(page("compare", build=own.build, view="side by side"))
    assert [one["id"] for one in items(beside, "tests")][0] == least_sure[0]
