"""Every format read back by the tool that it is for, or as that tool publishes its layout."""

import copy
import csv
import json
import os
import xml.etree.ElementTree as ET
import zipfile
from base64 import b64decode
from io import BytesIO, StringIO
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read by datasets when it is imported

import datasets
import numpy as np
import pandas as pd
import pytest
from cleanlab import Datalab
from cleanlab.classification import CleanLearning
from conftest import Tiny
from hostile import HOSTILE, SOME, decisions_on, hostile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torchvision.datasets import ImageFolder

from attribution.build import Build
from attribution.exchange import facts, folders, legible, names, rows
from attribution.export import FOLDERS, FORMATS, MARK, aside, exported, harmless, packed, plain
from attribution.records import Decision, UserError


@pytest.fixture(scope="module")
def build(tiny: Tiny) -> Build:
    return hostile(tiny)


@pytest.fixture(scope="module")
def decided(build: Build, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Decision]:
    return decisions_on(build, tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def written(build, decided, tmp_path_factory) -> dict[str, Path]:
    """Every format in a file or a folder, by name."""
    root = tmp_path_factory.mktemp("exports")
    places = {}
    for name, form in FORMATS.items():
        content = packed(exported(build, decided, name))
        places[name] = root / f"{name}{form.suffix}"
        places[name].write_bytes(content)
        if name in FOLDERS:
            with zipfile.ZipFile(BytesIO(content)) as archive:
                paths = [Path(one) for one in archive.namelist()]
                assert not any(path.is_absolute() or ".." in path.parts for path in paths)
                places[name] = root / name
                archive.extractall(root / name)
            assert {p.relative_to(root / name) for p in files(root / name)} == set(paths)
    return places


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def final(build, decided) -> dict[str, str]:
    """The class in force of each example that is not dropped, by its id."""
    labels = dict(zip(build.train_ids, build.train_labels_N.tolist(), strict=True))
    for name, one in decided.items():
        if one.verdict == "relabel":
            labels[name] = one.label
    del labels[build.train_ids[11]]
    return {name: legible(HOSTILE[label]) for name, label in labels.items()}


def pixels(build: Build, example_id: str) -> np.ndarray:
    return build.image("train", build.train_ids.index(example_id))


def shown(png: Path | bytes) -> np.ndarray:
    """The pixels of a PNG."""
    return np.asarray(Image.open(BytesIO(png if isinstance(png, bytes) else png.read_bytes())))


def test_parquet_has_the_columns_of_the_csv_with_names_as_they_are(written):
    typed = pd.read_parquet(written["parquet"])
    text = list(csv.DictReader(StringIO(written["csv"].read_bytes().decode(), newline="")))
    assert list(typed.columns) == list(text[0])
    assert typed["train_id"].dtype == np.int64 and typed["suspicion"].dtype == np.float64
    for column in typed.columns.drop(["train_id", "suspicion"]):
        words = [harmless("" if pd.isna(one) else one) for one in typed[column]]
        assert words == [row[column] for row in text], column
    assert [int(row["train_id"]) for row in text] == typed["train_id"].tolist()
    assert set(typed["given_label"]) <= {legible(name) for name in HOSTILE}


def test_a_verdict_of_a_later_version_leaves_the_label_as_it_is(build, decided, written):
    row = pd.read_parquet(written["parquet"]).set_index("example_id").loc[build.train_ids[13]]
    assert row["decision"] == "later" and row["final_label"] == row["given_label"]
    tasks = json.loads(written["label-studio"].read_bytes())
    (task,) = (t for t in tasks if t["data"]["example_id"] == build.train_ids[13])
    assert "annotations" not in task


def test_torchvision_reads_the_image_folder(build, written, final):
    found = ImageFolder(str(written["folder"] / "train"))
    back = json.loads((written["folder"] / "classes.json").read_text())
    assert list(back.values()) == [legible(name) for name in HOSTILE]
    read = {Path(path).stem: back[found.classes[label]] for path, label in found.samples}
    assert read == final
    for path, _ in found.samples:
        assert np.array_equal(shown(Path(path)), pixels(build, Path(path).stem))


def test_hugging_face_reads_the_image_folder(build, written, final, tmp_path):
    cache = str(tmp_path / "cache")
    for words in ({"path": str(written["folder"])}, {"path": "imagefolder"}):
        if words["path"] == "imagefolder":
            words["data_dir"] = str(written["folder"])
        found = datasets.load_dataset(**words, cache_dir=cache)
        assert list(found) == ["train"]  # though a class is called "test"
        read = found["train"]
        assert dict(zip(read["example_id"], read["label"], strict=True)) == final
        for row in read.select(range(5)):
            assert np.array_equal(np.asarray(row["image"]), pixels(build, row["example_id"]))
    assert {"given_label", "decision", "reviewer", "suspicion"} <= set(read.features)


def test_hugging_face_reads_images_and_classes_from_the_parquet(build, written, final, tmp_path):
    path = str(written["huggingface"])
    found = datasets.load_dataset("parquet", data_files=path, cache_dir=str(tmp_path))["train"]
    assert isinstance(found.features["image"], datasets.Image)
    assert found.features["label"].names == [legible(name) for name in HOSTILE]
    labels = map(found.features["label"].int2str, found["label"])
    assert dict(zip(found["example_id"], labels, strict=True)) == final
    for row in found:
        assert np.array_equal(np.asarray(row["image"]), pixels(build, row["example_id"]))
    assert set(found["decision"]) == {None, "keep", "relabel", "later"}


@pytest.mark.filterwarnings("ignore")  # what cleanlab and pandas have to say to each other
def test_cleanlab_has_and_takes_these_issues(build, decided, tmp_path):
    plain_names = copy.copy(build)
    plain_names.classes = tuple(str(digit) for digit in range(10))
    content = exported(plain_names, decided, "cleanlab")
    ours = pd.read_csv(BytesIO(content))
    belief = 0.01 + 0.9 * np.eye(10)[build.train_labels_N]
    lab = Datalab({"label": build.train_labels_N.tolist()}, label_name="label", verbosity=0)
    lab.find_issues(pred_probs=belief, issue_types={"label": {}})
    theirs = lab.get_issues("label")
    assert set(theirs.columns) <= set(ours.columns)
    assert (ours[theirs.columns].dtypes == theirs.dtypes).all()
    assert ours["given_label"].tolist() == theirs["given_label"].tolist()
    assert ours["label_score"].between(0, 1).all()

    # what CleanLearning prunes are the issues
    X = np.random.default_rng(1).normal(size=(SOME, 2))
    learning = CleanLearning(LogisticRegression())
    learning.fit(X, build.train_labels_N, label_issues=ours)
    direct = LogisticRegression().fit(
        X[~ours["is_label_issue"]], build.train_labels_N[~ours["is_label_issue"]]
    )
    np.testing.assert_allclose(learning.clf.coef_, direct.coef_)

    issue = ours.set_index("example_id")["is_label_issue"]
    ids = build.train_ids
    assert issue[list(ids[:12])].tolist() == [False] + [True] * 11
    frame = build.mislabels().sort_index()
    prefers = frame["suggested_probability"] > frame["given_probability"]
    assert issue[list(ids[12:])].tolist() == prefers.iloc[12:].tolist()
    predicted = frame["suggested_label"].where(prefers, frame["given_label"])
    assert ours["predicted_label"].tolist() == predicted.tolist()


def test_label_studio_gets_the_suggestion_and_what_was_decided(build, decided, written, final):
    tasks = json.loads(written["label-studio"].read_bytes())
    frame = build.mislabels().set_index("example_id")
    assert [t["data"]["example_id"] for t in tasks] == frame.index.tolist()
    root = ET.fromstring(written["label-studio-interface"].read_text())
    controls = {
        control.get("name"): [choice.get("value") for choice in control]
        for control in root.iter("Choices")
    }
    assert controls["label"] == [legible(name) for name in HOSTILE]
    for task in tasks:
        one = task["data"]["example_id"]
        kind, _, content = task["data"]["image"].partition(",")
        assert kind == "data:image/png;base64"
        assert np.array_equal(shown(b64decode(content)), pixels(build, one))
        (prediction,) = task["predictions"]
        assert prediction["model_version"] == build.id
        assert prediction["score"] == frame.loc[one, "score"]
        made = [r for a in task.get("annotations", []) for r in a["result"]]
        for result in prediction["result"] + made:  # as its documentation has them
            assert result["type"] == "choices" and result["to_name"] == root.find("Image").get(
                "name"
            )
            assert set(result["value"]["choices"]) <= set(controls[result["from_name"]])
        suggested = legible(HOSTILE[frame.loc[one, "suggested_label"]])
        assert prediction["result"][0]["value"] == {"choices": [suggested]}
        settled = one in decided and decided[one].verdict != "later"
        choices = [r["value"]["choices"][0] for r in made]
        assert choices == ([final.get(one, "drop")] if settled else [])


def test_fiftyone_finds_a_label_for_each_image_as_its_layout_is_published(build, written, final):
    place = written["fiftyone"]
    told = json.loads((place / "labels.json").read_text())
    assert set(told) == {"classes", "labels"}
    assert told["classes"] == [legible(name) for name in HOSTILE]
    images = {path.stem: path for path in (place / "data").iterdir()}
    assert images.keys() == told["labels"].keys() == final.keys()
    for one, label in told["labels"].items():
        assert set(label) == {"label", "attributes"} and label["label"] == final[one]
        assert not {"label", "confidence", "tags", "logits"} & set(label["attributes"])
        assert np.array_equal(shown(images[one]), pixels(build, one))


def test_cvat_finds_a_tag_for_each_image_as_its_layout_is_published(build, written, final):
    place = written["cvat"]
    root = ET.parse(place / "annotations.xml").getroot()
    assert root.tag == "annotations" and root.findtext("version") == "1.1"
    labels = root.findall("meta/task/labels/label")
    assert [label.findtext("name") for label in labels] == [legible(name) for name in HOSTILE]
    assert {label.findtext("type") for label in labels} == {"tag"}
    declared = {name.text for name in labels[0].findall("attributes/attribute/name")}
    images = root.findall("image")
    assert [int(image.get("id")) for image in images] == list(range(len(final)))
    read = {}
    for image in images:
        path = place / "images" / image.get("name")
        assert np.array_equal(shown(path), pixels(build, path.stem))
        assert shown(path).shape == (int(image.get("height")), int(image.get("width")))
        (tag,) = image.findall("tag")
        read[path.stem] = tag.get("label")
        assert {one.get("name") for one in tag} <= declared
    assert read == final
    assert {path.name for path in (place / "images").iterdir()} == {f"{one}.png" for one in final}
    classes = names(build)
    given = {row.example_id: facts(row, classes, "")["given_label"] for row in rows(build, {})}
    for image in images:
        told = {one.get("name"): one.text for one in image.find("tag")}
        assert told["given_label"] == given[Path(image.get("name")).stem]


def test_a_folder_says_what_it_is_and_which_decisions_found_no_example(build, decided, written):
    lost = "0" * 16 + "-0"
    assert [one.example_id for one in aside(build, decided)] == [lost]
    for name in FOLDERS:
        told = json.loads((written[name] / MARK).read_text())
        assert (told["format"], told["build"], told["data"]) == (name, build.id, build.data_id)
        assert [one["example_id"] for one in told["aside"]] == [lost]


def test_an_unknown_format_is_a_mistake(build):
    with pytest.raises(UserError, match="unknown format 'coco'; wanted one of csv, parquet"):
        exported(build, {}, "coco")


NAMES = st.lists(
    st.one_of(
        st.text(max_size=80),
        st.sampled_from(
            ["..", ".", "", "/etc", "a/b", "C:\\x", "con", "NUL.txt", "cat", "CAT", "cat.", " cat",
             "é", "e\u0301", "test", "my-test 2", "a*[b]", "猫" * 300, "cat-1", "class-2", "\ud800"]
        ),
    ),
    unique=True, max_size=12,
)  # fmt: skip


@given(NAMES)
def test_folders_are_safe_and_all_different(classes):
    found = folders(tuple(map(legible, classes)))
    assert len({name.casefold() for name in found}) == len(classes)
    for name in found:
        assert name not in ("", ".", "..") and len(os.fsencode(name)) <= 255
        assert not set(name) & set('/\\:*?"<>|[]{}\0\n\r\t')
        assert name == name.strip(" .") and name.lower() not in ("con", "nul", "test")
        assert Path("root", name).name == name


@pytest.mark.parametrize(
    "name", ["cat", "3", "猫", "great white shark", "T-shirt", "v1.5", "train"]
)
def test_a_harmless_name_is_its_folder(name):
    assert folders((name,)) == (name,)


@given(st.text())
def test_a_harmless_cell_is_read_back(text):
    if not text.startswith("'"):
        assert plain(harmless(text)) == text
