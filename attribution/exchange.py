"""The data set with the decisions in force, in the layouts of other tools.

A layout is the bytes of one file, or `Files`: the paths and contents of a folder. Those that hold a
data set to train on (`image_folder`, `hub_parquet`, `fiftyone`, `cvat`) have relabelled examples
under their new label and leave dropped ones out; the others have an entry for every training
example. Nothing here writes to a disk. Paths are made of content ids and of `folders`, never of a
class's name as it stands.
"""

import json
import re
import unicodedata
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from .records import Decision, fits

if TYPE_CHECKING:
    from .build import Build

Files = Iterator[tuple[str, bytes]]
COLUMNS = (
    "example_id", "train_id", "path", "given_label", "suggested_label", "suspicion",
    "decision", "new_label", "final_label", "reviewer", "decided_at", "build",
)  # fmt: skip
TYPES = {"train_id": "int64", "suspicion": "float64"}  # the other columns are text
ILLEGIBLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# What any file system takes as the name of a folder, and no shell or glob reads otherwise.
PLAIN = re.compile(r"\w(?:[\w .-]{0,58}\w)?")
RESERVED = re.compile(
    r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?"  # to Windows
    r"|(.*[\d ._-])?(test|testing|eval|evaluation|val|valid|validation|dev)([\d ._-].*)?",
    re.IGNORECASE,
)  # a folder so called would be another split to Hugging Face
DROP = "drop"  # the control of Label Studio that drops an example, and its only choice


@dataclass(frozen=True, kw_only=True)
class Row:
    """A training example; labels by position among the classes."""

    train_id: int
    example_id: str
    path: str | None  # in a person's own files
    given: int
    suggested: int
    believed: int  # what the networks hold most likely: the given or the suggested label
    suspicion: float
    decision: Decision | None

    @property
    def final(self) -> int | None:
        """The label in force, None where it is dropped. Other verdicts leave it as it is."""
        if self.decision is None:
            return self.given
        if self.decision.verdict == "drop":
            return None
        return self.given if self.decision.label is None else self.decision.label


def rows(build: "Build", decisions: dict[str, Decision]) -> list[Row]:
    """One for each training example, by train_id; a decision for no class is none."""
    sound = {e: d for e, d in decisions.items() if fits(d, len(build.classes))}
    return [
        Row(
            train_id=one.Index,
            example_id=one.example_id,
            path=build.train_paths[one.Index] if build.train_paths else None,
            given=one.given_label,
            suggested=one.suggested_label,
            believed=one.suggested_label
            if one.suggested_probability > one.given_probability
            else one.given_label,
            suspicion=float(one.score),
            decision=sound.get(one.example_id),
        )
        for one in build.mislabels().sort_index().itertuples()
    ]


def kept(build: "Build", decisions: dict[str, Decision]) -> Iterator[tuple[Row, int]]:
    """The examples that are not dropped, each with its label in force."""
    for row in rows(build, decisions):
        if row.final is not None:
            yield row, row.final


def names(build: "Build") -> tuple[str, ...]:
    """The classes' names as every format can hold them."""
    return tuple(legible(name) for name in build.classes)


def legible(text: str) -> str:
    """Characters that UTF-8 or XML cannot hold, spelled out as in ``\\x00``."""
    return ILLEGIBLE.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def facts(row: Row, classes: tuple[str, ...], build_id: str) -> dict[str, Any]:
    """What `COLUMNS` say of an example, labels by name; None where there is nothing to say."""
    decision, final = row.decision, row.final
    new = None if decision is None or decision.label is None else classes[decision.label]
    values = (
        row.example_id, row.train_id, row.path and legible(row.path),
        classes[row.given], classes[row.suggested], row.suspicion,
        decision.verdict if decision else None, new, None if final is None else classes[final],
        legible(decision.reviewer) if decision else None,
        decision.time if decision else None, build_id,
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def png(image: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def picture(build: "Build", row: Row) -> bytes:
    return png(build.image("train", row.train_id))


def folders(classes: tuple[str, ...]) -> tuple[str, ...]:
    """A name of a folder for each class: the class's own where that is safe, all different.

    Different also where a file system takes upper for lower case or composes accents.
    """
    taken: set[str] = set()
    found = []
    for at, name in enumerate(classes):
        plain = unicodedata.normalize("NFC", name)
        if not PLAIN.fullmatch(plain) or RESERVED.fullmatch(plain) or folded(plain) in taken:
            stem = re.sub(r"\W+", "-", plain)[:40].strip("-_")
            plain = f"{stem}-{at}"
            if not stem or RESERVED.fullmatch(plain):
                plain = f"class-{at}"
            while folded(plain) in taken:
                plain = f"{plain}-{at}"
        taken.add(folded(plain))
        found.append(plain)
    return tuple(found)


def folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


CARD = """\
The training images with the decisions in force: relabelled ones under their new class, dropped
ones left out. train/metadata.jsonl has a line for each image, classes.json the name of the class
that each folder of train stands for.
"""


def image_folder(build: "Build", decisions: dict[str, Decision]) -> Files:
    """A folder a class, as torchvision's ImageFolder and Hugging Face's read it."""
    classes = names(build)
    places = folders(classes)
    lines = []
    for row, label in kept(build, decisions):
        path = f"{places[label]}/{row.example_id}.png"
        told = facts(row, classes, build.id)
        told = {"file_name": path, "label": told.pop("final_label"), **told}
        lines.append(json.dumps(told))
        yield f"train/{path}", picture(build, row)
    yield "train/metadata.jsonl", "".join(f"{line}\n" for line in lines).encode()
    yield "classes.json", json.dumps(dict(zip(places, classes, strict=True)), indent=1).encode()
    yield "README.txt", CARD.encode()


def hub_parquet(build: "Build", decisions: dict[str, Decision]) -> bytes:
    """Parquet whose schema tells Hugging Face `datasets` what is an image and what a class."""
    classes = names(build)
    columns: dict[str, tuple[pa.DataType, dict[str, Any]]] = {
        "image": (pa.struct({"bytes": pa.binary(), "path": pa.string()}), {"_type": "Image"}),
        "label": (pa.int64(), {"names": list(classes), "_type": "ClassLabel"}),
    }
    for name in COLUMNS:
        if name != "final_label":  # is the label
            kind = TYPES.get(name, "string")
            columns[name] = (pa.type_for_alias(kind), {"dtype": kind, "_type": "Value"})
    features = {name: feature for name, (_, feature) in columns.items()}
    schema = pa.schema(
        {name: kind for name, (kind, _) in columns.items()},
        {"huggingface": json.dumps({"info": {"features": features}})},
    )
    table = [
        facts(row, classes, build.id)
        | {
            "image": {"bytes": picture(build, row), "path": f"{row.example_id}.png"},
            "label": label,
        }
        for row, label in kept(build, decisions)
    ]
    return parquet_of(pa.Table.from_pylist(table, schema))


def parquet_of(table: pa.Table) -> bytes:
    buffer = BytesIO()
    pq.write_table(table, buffer, row_group_size=1000)
    return buffer.getvalue()


def label_studio(build: "Build", decisions: dict[str, Decision]) -> bytes:
    """Label Studio's tasks, the most suspicious first, for the interface of `studio_interface`.

    The suggestion is a prediction, a decision an annotation. An annotation names no user, because
    Label Studio refuses those that it does not have; the reviewer is among the task's data.
    """
    classes = names(build)

    def chosen(row: Row, control: str, choice: str) -> dict[str, Any]:
        return {
            "id": f"{row.example_id}-{control}",
            "from_name": control,
            "to_name": "image",
            "type": "choices",
            "value": {"choices": [choice]},
        }

    tasks = []
    for row in sorted(rows(build, decisions), key=lambda row: -row.suspicion):
        told = {k: v for k, v in facts(row, classes, build.id).items() if v is not None}
        image = f"data:image/png;base64,{b64encode(picture(build, row)).decode()}"
        task: dict[str, Any] = {
            "data": {"image": image, **told},
            "predictions": [
                {
                    "model_version": build.id,
                    "score": row.suspicion,
                    "result": [chosen(row, "label", classes[row.suggested])],
                }
            ],
        }
        verdict = row.decision.verdict if row.decision else ""
        if verdict == "drop":
            task["annotations"] = [{"result": [chosen(row, DROP, DROP)]}]
        elif verdict in ("keep", "relabel"):
            task["annotations"] = [{"result": [chosen(row, "label", told["final_label"])]}]
        tasks.append(task)
    return json.dumps(tasks).encode()


def studio_interface(build: "Build", decisions: dict[str, Decision]) -> bytes:
    """The labelling interface (XML) that Label Studio needs for our tasks."""
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in names(build))
    return (
        '<View>\n  <Image name="image" value="$image"/>\n'
        f'  <Choices name="label" toName="image" choice="single-radio">\n{choices}\n  </Choices>\n'
        f'  <Choices name="{DROP}" toName="image" choice="single">\n'
        f'    <Choice value="{DROP}"/>\n  </Choices>\n</View>\n'
    ).encode()


def fiftyone(build: "Build", decisions: dict[str, Decision]) -> Files:
    """FiftyOneImageClassificationDataset: images in ``data``, classes and labels in one JSON."""
    classes = names(build)
    labels = {}
    for row, _ in kept(build, decisions):
        told = {k: v for k, v in facts(row, classes, build.id).items() if v is not None}
        label = told.pop("final_label")
        labels[row.example_id] = {"label": label, "attributes": told}
        yield f"data/{row.example_id}.png", picture(build, row)
    yield "labels.json", json.dumps({"classes": classes, "labels": labels}).encode()


def cvat(build: "Build", decisions: dict[str, Decision]) -> Files:
    """CVAT for images 1.1: a tag an image, with what we know of it as the tag's attributes."""
    classes = names(build)
    told = ("given_label", "suggested_label", "suspicion", "decision", "reviewer")
    declared = "".join(
        f"<attribute><name>{name}</name><mutable>False</mutable><input_type>text</input_type>"
        "<default_value></default_value><values></values></attribute>"
        for name in told
    )
    labels = "".join(
        f"<label><name>{character_data(name)}</name><type>tag</type>"
        f"<attributes>{declared}</attributes></label>\n"
        for name in classes
    )
    images: list[str] = []
    for row, label in kept(build, decisions):
        path = f"{row.example_id}.png"
        height, width = build.image("train", row.train_id).shape[:2]
        values = facts(row, classes, build.id)
        attributes = "".join(
            f'<attribute name="{name}">{character_data(str(values[name]))}</attribute>'
            for name in told
            if values[name] is not None
        )
        images.append(
            f'<image id="{len(images)}" name="{path}" width="{width}" height="{height}">'
            f'<tag label={quoteattr(classes[label])} source="manual">{attributes}</tag></image>\n'
        )
        yield f"images/{path}", picture(build, row)
    yield (
        "annotations.xml",
        (
            '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
            f"<meta><task><name>{build.id}</name><size>{len(images)}</size><mode>annotation</mode>"
            f"<labels>\n{labels}</labels></task></meta>\n{''.join(images)}</annotations>\n"
        ).encode(),
    )


def character_data(text: str) -> str:
    return escape(text, {"\r": "&#13;"})  # which a parser would take for the end of a line
