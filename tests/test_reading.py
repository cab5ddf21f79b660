"""A person's own files against the libraries that read them too; one id for one content."""

import csv
import gzip
import json
import os
import resource
import shutil
from collections import Counter
from contextlib import suppress
from io import StringIO
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read by datasets when it is imported

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torchvision
from pictures import CLASSES, encoded, half, noise, photos, table, written
from PIL import Image

from attribution import reading
from attribution.data import Dataset, dataset
from attribution.reading import described, read
from attribution.records import DataSpec, ReadSpec, UserError
from attribution.sources import Entry
from attribution.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture
def files() -> dict[str, bytes]:
    return photos()


def opened(store: Store, path: Path | str, **settings: object) -> Dataset:
    return dataset(store, read(store, str(path), ReadSpec(**settings)))


def by_path(data: Dataset) -> dict[str, tuple[bytes, str]]:
    """Pixels and class of every image."""
    return {
        path: (image.tobytes(), data.classes[label])
        for part in (data.train, data.test)
        for path, image, label in zip(part.paths, part.images, part.labels_N, strict=True)
    }


def test_a_folder_is_what_image_folder_reads(store, tmp_path, files):
    root = written(tmp_path / "photos", files)
    data = opened(store, root)
    found = by_path(data)
    for name in ("train", "test"):
        wanted = torchvision.datasets.ImageFolder(str(root / name))
        assert data.classes == tuple(wanted.classes)
        assert len(wanted) == len(getattr(data, name))
        for path, label in wanted.samples:
            pixels, said = found[Path(path).relative_to(root).as_posix()]
            assert said == wanted.classes[label]
            assert pixels == np.asarray(Image.open(path).convert("RGB")).tobytes()
    assert data.train.images.shape == (18, 12, 12, 3) and data.spec.name == "photos"
    assert data.mean == pytest.approx(data.train.images.mean((0, 1, 2)) / 255)
    assert data.std == pytest.approx(data.train.images.std((0, 1, 2)) / 255)


def test_parquet_is_what_datasets_reads_and_the_folder_of_the_same_pictures(
    store, tmp_path, files, monkeypatch
):
    root = tmp_path / "hub"
    train = half(files, "train")
    some = dict(list(train.items())[:7])
    table(root / "data" / "train-00000-of-00002.parquet", some)
    rest = {p: c for p, c in train.items() if p not in some}
    table(root / "data" / "train-00001-of-00002.parquet", rest)
    table(root / "data" / "test-00000-of-00001.parquet", half(files, "test"))
    data = opened(store, root)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    shards = sorted(map(str, (root / "data").glob("train-*")))
    loaded = datasets.load_dataset("parquet", data_files=shards, cache_dir=str(tmp_path / "hf"))
    wanted = Counter(
        (
            np.asarray(row["image"]).tobytes(),
            loaded["train"].features["label"].int2str(row["label"]),
        )
        for row in loaded["train"]
    )
    found = by_path(data)
    assert Counter(found[path] for path in data.train.paths) == wanted
    folder = opened(store, written(tmp_path / "photos", files))
    assert folder.id == data.id and folder.train.ids == data.train.ids
    np.testing.assert_array_equal(folder.train.images, data.train.images)
    by_hub = opened(store, f"hf:{root}")
    assert by_hub.id == data.id


def test_the_id_is_that_of_the_content_wherever_it_lies(store, tmp_path, files, monkeypatch):
    first = opened(store, written(tmp_path / "one", files))
    walk = os.walk

    def shuffled(top, **options):  # as another file system lists it
        for folder, below, names in walk(top, **options):
            below.reverse()
            yield folder, below, names[::-1]

    monkeypatch.setattr(os, "walk", shuffled)
    monkeypatch.setattr(
        "attribution.sources.sorted", lambda some, **_: list(some)[::-1], raising=False
    )
    moved = written(tmp_path / "elsewhere" / "two", dict(reversed(files.items())))
    again = opened(store, moved)
    assert again.id == first.id and again.train.ids == first.train.ids
    assert again.spec.name == "two"
    monkeypatch.undo()
    elsewhere = Store(tmp_path / "another cache")
    assert opened(elsewhere, moved).id == first.id
    changed = files | {"train/cat/000.png": encoded(noise(77))}
    assert opened(store, written(tmp_path / "three", changed)).id != first.id
    assert opened(store, tmp_path / "one", size=20).id != first.id


def test_examples_keep_their_ids_among_others_and_at_another_size(store, tmp_path, files):
    first = opened(store, written(tmp_path / "one", files))
    more = files | {"train/dog/new.png": encoded(noise(5)), "train/emu/copy.png": noise_copy(files)}
    other = opened(store, written(tmp_path / "two", more), size=30)
    known = dict(zip(first.train.paths, first.train.ids, strict=True))
    now = dict(zip(other.train.paths, other.train.ids, strict=True))
    assert known.items() <= now.items() and len(set(now.values())) == len(now) == 20
    assert other.train.images.shape == (20, 30, 30, 3)


def noise_copy(files: dict[str, bytes]) -> bytes:
    return files["train/cat/000.png"]


def test_what_was_read_opens_without_its_files_and_unchanged_files_are_not_read_again(
    store, tmp_path, files, monkeypatch
):
    root = written(tmp_path / "photos", files)
    spec = read(store, str(root))
    first = dataset(store, spec)
    with monkeypatch.context() as closed:
        closed.setattr(reading, "pictures", None)  # nothing may be decoded
        assert read(store, str(root)) == spec
        os.utime(root / "train/cat/000.png", ns=(1, 1))
        with pytest.raises(TypeError):
            read(store, str(root))
    assert read(store, str(root)) == spec  # read again, found the same
    shutil.rmtree(root)
    assert dataset(Store(store.root), spec).train.ids == first.train.ids
    assert read(store, spec.pixels) == spec
    shutil.rmtree(store.root / "pixels")
    with pytest.raises(UserError, match="'photos'.* are not in the cache"):
        dataset(Store(store.root), spec)


def flat(files: dict[str, bytes]) -> dict[str, bytes]:
    return {p.removeprefix("train/"): c for p, c in half(files, "train").items()}


def test_a_folder_without_halves_is_split_in_each_class_by_the_seed(store, tmp_path):
    root = written(tmp_path / "flat", flat(photos(train=20)))
    data = opened(store, root)
    assert np.bincount(data.test.labels_N).tolist() == [4, 4, 4]
    assert np.bincount(data.train.labels_N).tolist() == [16, 16, 16]
    assert set(data.test.ids).isdisjoint(data.train.ids)
    assert opened(store, root, split_seed=1).test.ids != data.test.ids
    assert np.bincount(opened(store, root, test_share=0.5).test.labels_N).tolist() == [10] * 3
    moved = written(tmp_path / "again", flat(photos(train=20)))
    assert opened(store, moved).id == data.id


def test_our_own_split_puts_no_copy_on_both_sides(store, tmp_path):
    some = flat(photos(train=10))
    copies = {f"dog/{n}-{p.replace('/', '-')}": c for n in range(3) for p, c in some.items()}
    root = written(tmp_path / "copies", some | copies)
    for seed in range(5):
        found = described(store, str(root), ReadSpec(split_seed=seed))
        assert found["leaks"] == [] and found["test"]


def test_classes_are_in_the_order_of_image_folder_and_numbers_of_a_table_by_value(
    store, tmp_path, files
):
    names = ["10", "2", "Ä", "b", "A"]
    root = written(
        tmp_path / "named",
        {f"{h}/{n}/{k}.png": encoded(noise(k + 7 * j)) for h in ("train", "test")
         for j, n in enumerate(names) for k in range(2)},
    )  # fmt: skip
    wanted = torchvision.datasets.ImageFolder(str(root / "train")).classes
    assert opened(store, root).classes == tuple(wanted) == ("10", "2", "A", "b", "Ä")
    rows = [{"path": f"train/2/{k}.png", "label": str(n)} for k in range(2) for n in (10, 9, 2)]
    assert opened(store, manifest(root / "m.csv", rows)).classes == ("2", "9", "10")


def manifest(path: Path, rows: list[dict[str, str]]) -> Path:
    text = StringIO()
    table = csv.DictWriter(text, list(rows[0]))
    table.writeheader()
    table.writerows(rows)
    path.write_text(text.getvalue(), "utf-8")
    return path


def test_a_manifest_names_paths_labels_and_halves(store, tmp_path, files):
    root = written(tmp_path / "photos", files)
    rows = [{"path": p, "label": p.split("/")[1], "split": p.split("/")[0]} for p in files]
    found = opened(store, manifest(root / "list.csv", rows))
    assert found.id == opened(store, root).id
    semicolons = (root / "list.csv").read_text().replace(",", ";").replace("path", "\ufefffile")
    (root / "list2.csv").write_text(semicolons, "utf-8")
    assert opened(store, root / "list2.csv").id == found.id


def test_a_manifest_reaches_no_file_outside_of_its_folder_unless_allowed(store, tmp_path, files):
    root = written(tmp_path / "inside", files)
    away = written(tmp_path / "away", {"x.png": encoded(noise(99))})
    (root / "link.png").symlink_to(away / "x.png")
    rows = [{"path": p, "label": p.split("/")[1]} for p in files]
    strange = ["../away/x.png", str(away / "x.png"), "link.png", "missing.png", "", "train",
               "a\0b.png"]  # fmt: skip
    rows += [{"path": p, "label": "cat"} for p in strange]
    rows += [{"path": "train/cat/000.png", "label": ""}]
    listed = manifest(root / "list.csv", rows)
    found = described(store, str(listed))
    assert found["train"] + found["test"] == 24
    reasons = {one["path"]: one["reason"] for one in found["aside"]}
    assert len(found["aside"]) == 8
    assert "--anywhere" in reasons["../away/x.png"] and "--anywhere" in reasons[str(away / "x.png")]
    assert reasons["link.png"] == "outside of the folder"
    assert reasons["missing.png"] == "no such file"
    assert reasons[""] == "a row without a path"
    assert reasons["train"] == "no regular file"
    assert reasons["train/cat/000.png"] == "no label"
    allowed = described(store, str(listed), ReadSpec(anywhere=True))
    assert allowed["train"] + allowed["test"] == 27


def test_mnists_files_are_what_torchvision_reads(store, tmp_path):
    draw = np.random.default_rng(0)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 40), ("t10k", 10)):
        images = draw.integers(0, 256, (count, 28, 28), np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
            (raw / f"{name}-{kind}-ubyte").write_bytes(header + values.tobytes())
    data = opened(store, raw)
    wanted = torchvision.datasets.MNIST(str(tmp_path), train=True, download=False)
    order = [int(p.split("/")[1]) for p in data.train.paths]
    np.testing.assert_array_equal(data.train.images, wanted.data.numpy()[order])
    np.testing.assert_array_equal(data.train.labels_N, wanted.targets.numpy()[order])
    assert data.classes == tuple("0123456789") and len(data.test) == 10
    named = opened(store, "torchvision:MNIST", root=str(tmp_path))
    np.testing.assert_array_equal(named.train.images, data.train.images)
    assert named.classes[0] == "0 - zero"
    zipped = tmp_path / "zipped"
    zipped.mkdir()
    for path in raw.iterdir():
        (zipped / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert opened(store, zipped).id == data.id


def test_size_is_the_median_pictures_and_colour_only_where_there_is_any(store, tmp_path):
    def set_of(side: int, grey: bool) -> dict[str, bytes]:
        found = {}
        for n in range(12):
            pixels = noise(n, side, side)
            picture = Image.fromarray(pixels).convert("L").convert("RGB") if grey else pixels
            found[f"{'ab'[n % 2]}/{n}.png"] = encoded(picture)
        return found

    for side, wanted in ((3, 8), (31, 31), (64, 64), (90, 64)):
        root = written(tmp_path / f"grey{side}", set_of(side, grey=True))
        assert opened(store, root).train.images.shape[1:] == (wanted, wanted)
    one = set_of(31, grey=True) | {"a/colour.png": encoded(noise(50, 31, 31))}
    found = described(store, str(written(tmp_path / "one", one)))
    assert (found["size"], found["channels"]) == (31, 3)


def test_unreadable_pictures_and_links_out_are_listed_and_the_rest_goes_on(store, tmp_path, files):
    root = written(
        tmp_path / "photos",
        files
        | {
            "train/cat/zip.jpg": b"PK\x03\x04" + bytes(50),
            "train/cat/notes.txt": b"-",
            "train/cat/.hidden.png": b"-",
            "train/<b>x/&lt;.png": encoded(noise(90)),
            "train/<b>x/ü 猫\n.png": encoded(noise(91)),
            "train/dog/deep/er/000.png": encoded(noise(92)),
            "test/no label.png": encoded(noise(93)),
        },
    )
    no_text = os.fsdecode(b"\xff\xfe.png")  # is no UTF-8
    (root / "train/dog" / no_text).write_bytes(encoded(noise(94)))
    (root / "train/dog/link.png").symlink_to("/etc/hostname")
    (root / "train/dog/inside.png").symlink_to(root / "train/cat/000.png")
    (root / "train/dog/loop.png").symlink_to("loop.png")
    (root / "train/up").symlink_to(root, target_is_directory=True)
    os.mkfifo(root / "train/dog/pipe.png")
    found = described(store, str(root))
    reasons = {one["path"]: one["reason"] for one in found["aside"]}
    assert reasons == {
        "train/cat/zip.jpg": "a zip archive, not a picture",
        "train/dog/link.png": "outside of the folder",
        "train/dog/loop.png": reasons["train/dog/loop.png"],
        "train/dog/pipe.png": "no regular file",
        "train/up": "a link to a folder, which is not followed",
        "test/no label.png": "no label",
    }
    assert list(found["classes"]) == ["<b>x", *CLASSES]
    assert found["train"] == 18 + 2 + 1 + 1 + 1 and found["test"] == 6
    assert any("no pictures by their names: 1" in note for note in found["notes"])


def test_a_manifest_may_hold_any_name_in_quotes(store, tmp_path):
    names = ["a,b.png", 'say "x".png', "two\nlines.png", "ü 猫\u2028.png", "=cmd().png", "t\tb.png"]
    root = written(tmp_path / "odd", {n: encoded(noise(k)) for k, n in enumerate(names)})
    rows = [{"path": n, "label": "[b]" if k % 2 else "c, d"} for k, n in enumerate(names)]
    data = opened(store, manifest(root / "list.csv", rows))
    assert sorted((*data.train.paths, *data.test.paths)) == sorted(names)
    assert data.classes == ("[b]", "c, d")


def test_one_id_and_one_class_for_names_composed_in_two_ways(store, tmp_path):
    composed, apart = "é", "e\u0301"
    some = {n: encoded(noise(n)) for n in range(8)}
    one = {f"{composed if n % 2 else 'b'}/{n}.png": c for n, c in some.items()}
    two = {f"{apart if n % 2 else 'b'}/{n}.png": c for n, c in some.items()}
    first = opened(store, written(tmp_path / "one", one))
    assert opened(store, written(tmp_path / "two", two)).id == first.id
    assert first.classes == ("b", composed)


def said(store: Store, path: object, **settings: object) -> str:
    with pytest.raises(UserError) as told:
        read(store, str(path), ReadSpec(**settings))
    text = str(told.value)
    assert text.count("\n") == 0 and text.endswith(".")
    return text


def test_what_holds_no_data_set_is_said_in_one_sentence(store, tmp_path, files):
    (tmp_path / "empty").mkdir()
    assert "no pictures in the folder 'empty'" in said(store, tmp_path / "empty")
    assert "unknown data set 'cifra'" in said(store, "cifra")
    assert "in no class's folder" in said(
        store, written(tmp_path / "loose", {"a.png": encoded(noise(0))})
    )
    one = {p: c for p, c in files.items() if "/cat/" in p}
    assert "one class only, 'cat'" in said(store, written(tmp_path / "one", one))
    alone = files | {"test/zebra/0.png": encoded(noise(60))}
    text = said(store, written(tmp_path / "alone", alone))
    assert "classes in test that train lacks: 'zebra' (1 images)" in text
    broken = dict.fromkeys(files, b"PK\x03\x04")
    text = said(store, written(tmp_path / "broken", broken))
    assert "none of the 24 pictures" in text and "24 of them: a zip archive" in text
    assert "only test" in said(store, written(tmp_path / "tests", half(files, "test")))
    assert "of an unknown kind" in said(store, written(tmp_path / "odd", {"a.png": b""}) / "a.png")
    assert "--size 9999" in said(store, tmp_path / "one", size=9999)
    assert "no data set 'Nope'" in said(store, "torchvision:Nope")
    assert "hf:" in said(store, f"hf:{tmp_path / 'nowhere'}")


def test_a_table_that_is_none_is_said_in_one_sentence(store, tmp_path, files):
    wrong = tmp_path / "wrong.parquet"
    pq.write_table(pa.table({"label": [1, 2], "score": [0.5, 0.1]}), wrong)
    text = said(store, wrong)
    assert "columns label, score" in text and "images" in text
    wrong.write_bytes(b"PAR1 not at all PAR1")
    assert "cannot be read as Parquet" in said(store, wrong)
    two = tmp_path / "two.parquet"
    cell = {"bytes": encoded(noise(1)), "path": None}
    pq.write_table(pa.table({"left": [cell], "right": [cell], "label": ["a"]}), two)
    assert "--image-column" in said(store, two)
    assert "no column 'up'" in said(store, two, image_column="up")
    outside = table(tmp_path / "out.parquet", half(files, "train"), names=(*CLASSES, "x"))
    found = pq.read_table(outside).to_pylist()
    found[3]["label"] = 4
    schema = pq.read_schema(outside)
    pq.write_table(pa.Table.from_pylist(found, schema), outside)
    assert "label 4 in out.parquet:3; wanted from 0 to 3" in said(store, outside)
    (tmp_path / "bare.csv").write_text("a,b\n1,2\n")
    assert "columns a, b" in said(store, tmp_path / "bare.csv")
    (tmp_path / "bytes.csv").write_bytes(b"path,label\n\xff\xfe,1\n")
    assert "cannot be read as CSV" in said(store, tmp_path / "bytes.csv")


@pytest.mark.parametrize(
    "header",
    [
        b"\0\0\x08\x03" + np.array([2**32 - 1] * 3, ">u4").tobytes(),
        b"\0\0\x08\x03" + np.array([10**6, 28, 28], ">u4").tobytes(),
        b"\0\0\x0d\x03" + np.array([2, 2, 2], ">u4").tobytes() + bytes(8),
        b"\0\0\x08",
        b"",
    ],
)
def test_a_header_that_says_more_than_its_file_holds_is_refused(store, tmp_path, header):
    labels = b"\0\0\x08\x01" + np.array([2], ">u4").tobytes() + b"\0\1"
    for end, pack in (("", bytes), (".gz", gzip.compress)):
        root = tmp_path / f"idx{end}"
        files = {f"train-images-idx3-ubyte{end}": pack(header),
                 f"train-labels-idx1-ubyte{end}": pack(labels)}  # fmt: skip
        assert "MNIST's format" in said(store, written(root, files))


@pytest.mark.parametrize("start", [b"\0\0\x08\x03\0\0\1", b"\0\0\x08\x03" + b"\0" * 11])
def test_a_header_that_ends_within_a_number_is_refused(store, tmp_path, start):
    labels = b"\0\0\x08\x01" + np.array([2], ">u4").tobytes() + b"\0\1"
    files = {"train-images-idx3-ubyte": start, "train-labels-idx1-ubyte": labels}
    assert "the end of the file in its header" in said(store, written(tmp_path / "cut", files))


def test_a_zipped_header_that_is_damaged_or_unpacks_for_ever_is_refused(store, tmp_path):
    zeros, count = bytes(60 * 10**6), np.array([60 * 10**6], ">u4").tobytes()
    labels = gzip.compress(b"\0\0\x08\x01" + np.array([2], ">u4").tobytes() + b"\0\1")
    bomb = gzip.compress(b"\0\0\x08\x01" + count + zeros, 1)
    stripes = np.array([60_000, 1, 1000], ">u4").tobytes()
    long = gzip.compress(b"\0\0\x08\x03" + stripes + zeros, 1)
    assert len(bomb) < 10**6 > len(long)
    spoilt = labels[:10] + b"\x04\xff\xff" + labels[13:]
    for n, (images, numbers) in enumerate([(labels, bomb), (long, labels), (labels, spoilt)]):
        files = {"train-images-idx3-ubyte.gz": images, "train-labels-idx1-ubyte.gz": numbers}
        assert "MNIST's format" in said(store, written(tmp_path / str(n), files))


def cells(*values: object) -> pa.Array:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return pa.array([{"bytes": encoded(noise(n)), "path": p} for n, p in enumerate(values)], kind)


NOTES = {
    "deep": b"[" * 100_000,
    "no list": json.dumps({"info": {"features": {"label": {"_type": "ClassLabel", "names": 5}}}}),
    "no text": b"\xff\xfe",
    "half a letter": json.dumps(
        {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["\ud800", "b"]}}}}
    ),
}


@pytest.mark.parametrize("note", NOTES)
def test_notes_in_parquet_that_make_no_sense_are_none(store, tmp_path, note):
    table = pa.table({"image": cells(*"abcd"), "label": [0, 1, 0, 1]})
    path = tmp_path / "noted.parquet"
    pq.write_table(table.replace_schema_metadata({"huggingface": NOTES[note]}), path)
    named = ("\ufffd", "b") if note == "half a letter" else ("0", "1")
    assert opened(store, path).classes == named


def test_labels_in_words_are_names_of_the_classes_or_a_mistake(store, tmp_path):
    features = {"label": {"_type": "ClassLabel", "names": ["b", "a"]}}
    for last, path in (("a", tmp_path / "fits.parquet"), ("c", tmp_path / "not.parquet")):
        table = pa.table({"image": cells(*"abcd"), "label": ["a", "b", "b", last]})
        note = json.dumps({"info": {"features": features}})
        pq.write_table(table.replace_schema_metadata({"huggingface": note}), path)
    assert opened(store, tmp_path / "fits.parquet").classes == ("b", "a")
    assert "label 'c' in not.parquet:3; wanted from 0 to 1" in said(store, path)


def test_parquet_that_holds_no_text_or_odd_halves_is_one_sentence(store, tmp_path):
    path = tmp_path / "odd.parquet"
    labels, halves = ["a", "b"] * 2, [["train"], ["test"], None, ["train"]]
    image = cells(*"abcd")
    pq.write_table(pa.table({"image": image, "label": labels, "split": halves}), path)
    assert len(opened(store, path).train)  # no half of theirs is one
    pq.write_table(pa.table({"image": image, "label": labels}), path, compression="none")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\1\0\0\0b", b"\1\0\0\0\xff"))
    assert path.read_bytes() != content
    assert "is damaged after row" in said(store, path)


def test_a_few_bytes_of_parquet_do_not_become_many_in_memory(store, tmp_path):
    large, count = bytes(3 * 10**6), 40
    one = pa.array([large], pa.binary())
    image = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int8()), one)
    path = tmp_path / "bomb.parquet"
    pq.write_table(
        pa.table({"image": image, "label": [0, 1] * (count // 2)}), path, compression="zstd",
        store_schema=False, dictionary_pagesize_limit=10**9,
    )  # fmt: skip
    assert path.stat().st_size < 10**4
    usual = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(pool)
    try:
        text = said(store, path)
    finally:
        pa.set_memory_pool(usual)
    assert "40 of them: not a picture" in text
    assert pool.max_memory() < 20 * len(large)  # of 40


def test_pictures_that_are_held_in_memory_are_counted_by_their_bytes():
    each = reading.HELD // 10
    some = [Entry("", str(n), "a", bytes, each) for n in range(30)]
    assert [len(chunk) for chunk in reading.chunks(iter(some))] == [11, 11, 8]
    light = [e._replace(held=0) for e in some] * 3
    assert [len(chunk) for chunk in reading.chunks(iter(light))] == [reading.CHUNK, 26]


@pytest.mark.parametrize("name", ["list.csv", "a.parquet", "train-labels-idx1-ubyte"])
def test_a_pipe_or_a_link_out_is_no_table(store, tmp_path, name):
    outside = written(tmp_path / "outside", {"x": b"path,label\nsecret,1\n"}) / "x"
    for n, make in enumerate((os.mkfifo, lambda path: path.symlink_to(outside),
                              lambda path: path.symlink_to("/dev/zero"))):  # fmt: skip
        root = written(tmp_path / str(n), {"train-images-idx3-ubyte": b""} if "idx" in name else {})
        root.mkdir(exist_ok=True)
        make(root / name)
        text = said(store, root)
        assert "secret" not in text
        assert ("no regular file" if n == 0 else "outside of the folder") in text


def test_what_stands_for_the_names_of_classes_is_no_link_out(store, tmp_path, files):
    root = written(tmp_path / "photos", files)
    (root / "export.json").write_text("{}")
    (root / "classes.json").symlink_to("/dev/zero")
    assert opened(store, root).classes == CLASSES
    (root / "classes.json").unlink()
    (root / "classes.json").write_text(json.dumps({"cat": "\ud800", "dog": "<b>\n"}))
    assert opened(store, root).classes == ("<b>\n", "emu", "\ufffd")


def test_no_code_runs_that_lies_beside_the_data(store, tmp_path, files):
    trace = tmp_path / "trace"
    code = f"import pathlib; pathlib.Path({str(trace)!r}).touch()"
    names = ("photos.py", "__init__.py", "conftest.py", "train/cat/sitecustomize.py")
    root = written(tmp_path / "photos", files | dict.fromkeys(names, code.encode()))
    assert len(opened(store, root).train)
    with suppress(UserError):  # what `datasets` took for a script that loads the data
        read(store, f"hf:{root}")
    assert not trace.exists()
    exec(code)
    assert trace.exists()  # so that it would have been seen


def test_a_text_is_no_class(store, tmp_path, files):
    rows = [{"path": p, "label": p.split("/")[1] * (200 if "cat" in p else 1)} for p in files]
    root = written(tmp_path / "photos", files)
    text = said(store, manifest(root / "list.csv", rows))
    assert "whose name has more than 255 characters" in text and len(text) < 400
    rows = [{"path": p, "label": p.split("/")[1] + "\0" * ("0.png" in p)} for p in files]
    assert len(set(opened(store, manifest(root / "list.csv", rows)).classes)) == 6


def test_string_labels_null_cells_and_a_split_column(store, tmp_path, files):
    rows = [
        {"img": {"bytes": c, "path": p}, "class": p.split("/")[1], "split": p.split("/")[0]}
        for p, c in files.items()
    ]
    rows += [
        {"img": None, "class": "cat", "split": "train"},
        {"img": {"bytes": None, "path": "/etc/hostname"}, "class": "cat", "split": "train"},
        {"img": {"bytes": b"x", "path": "bad.png"}, "class": None, "split": "train"},
    ]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    found = described(store, str(path))
    assert (found["train"], found["test"]) == (18, 6)
    assert found["data"] == read(store, str(written(tmp_path / "p", files))).pixels
    reasons = sorted(one["reason"] for one in found["aside"])
    assert reasons == [
        "a path but no picture in its cell", "no label", "no picture in its cell",
    ]  # fmt: skip


def test_leaks_and_contradictions_are_found_and_nothing_else(store, tmp_path, files):
    y, x = np.mgrid[:40, :40] / 6
    photo = np.stack([np.sin(x * y / 3), np.cos(x) * np.sin(y), np.cos(y * 2 - x)], 2) * 100 + 120
    photo = photo.astype(np.uint8)
    root = written(
        tmp_path / "photos",
        files
        | {
            "test/dog/same.png": files["train/dog/001.png"],
            "train/emu/wrong.png": files["train/cat/002.png"],
            "train/cat/photo.png": encoded(photo),
            "test/cat/again.jpg": encoded(photo, "JPEG", quality=70),
        },
    )
    found = described(store, str(root))
    assert {(one["test"], one["train"]) for one in found["leaks"]} == {
        ("test/dog/same.png", "train/dog/001.png"),
        ("test/cat/again.jpg", "train/cat/photo.png"),
    }
    assert all(one["same_label"] for one in found["leaks"])
    (clash,) = found["clashes"]
    assert {clash["first"], clash["second"]} == {"train/emu/wrong.png", "train/cat/002.png"}
    assert set(clash["labels"]) == {"emu", "cat"} and clash["alike"] == 1
    json.dumps(found)
    data = opened(store, root)
    told = reading.findings(store, data)
    assert {(data.test.paths[t], data.train.paths[i]) for t, i, _ in told.leaks} == {
        (one["test"], one["train"]) for one in found["leaks"]
    }
    assert reading.findings(store, dataset(store, DataSpec())) is None


@pytest.mark.parametrize("room", [1_000, 9_000])  # of a file: too little for the scratch, the array
def test_a_disk_without_room_is_one_sentence_and_leaves_nothing(store, tmp_path, room):
    some = {f"{'ab'[n % 2]}/{n}.png": encoded(noise(n, 8, 8)) for n in range(30)}
    root = written(tmp_path / "photos", some)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(UserError, match="cannot be written"):
            read(store, str(root), ReadSpec(size=64))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not any((store.root / "pixels").glob("*")) and not store.all("reading")
    assert len(opened(store, root).train) == 24


def test_which_folders_are_halves_and_which_are_classes(store, tmp_path):
    def found(name: str, *paths: str) -> dict:
        files = {p: encoded(noise(k)) for k, p in enumerate(paths)}
        return described(store, str(written(tmp_path / name, files)))

    def each(*folders: str) -> list[str]:
        return [f"{folder}/{k}.png" for folder in folders for k in range(4)]

    vehicles = found("vehicles", *each("car", "train", "test"))
    assert vehicles["classes"] == {n: {"train": 3, "test": 1} for n in ("car", "test", "train")}
    several = found("several", *each("Train/a", "Train/b", "Val/a", "test/a", "test/b", "more/a"))
    assert several["classes"] == {n: {"train": 4, "test": 4} for n in "ab"}
    assert several["notes"] == ["Passed over beside train and test: Val, more."]
    valid = found("valid", *each("training/a", "training/b", "valid/a"))
    assert (valid["train"], valid["test"]) == (8, 4)
    flat = found("flat", *each("train/a", "train/b", "test"), "loose.png")
    assert (flat["train"], flat["test"], flat["labelled"]) == (8, 4, False)  # no label in test
    assert not flat["aside"]
    assert flat["notes"] == ["Passed over beside train and test: loose.png."]
