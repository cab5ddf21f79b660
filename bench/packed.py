"""Hostile archives, weights and artifacts, and what reads them."""

import gzip
import json
import os
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.torch import save as safetensors

from attribution import weights
from attribution.archives import KINDS, Limits, unpacked
from attribution.doctor import artifacts
from attribution.engine import Engine
from attribution.records import silent
from attribution.store import Draft, Store

from . import mutation
from .datasets import read_data
from .inputs import (
    PNG,
    Case,
    json_leaf,
    json_text,
    json_value,
    one_file,
    text,
    whole,
)
from .mutation import mutations

# --- archives ---


GOOD = {f"set/{half}/{c}/{n}.png": PNG[4 * k + n] for half in ("train", "test")
        for k, c in enumerate("ab") for n in range(3)}  # fmt: skip
LIMITS = Limits(packed=10**8, unpacked=3 * 10**7, files=2000, small=5 * 10**6)


def zip_of(files: Mapping[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w", packing) as archive:
        for path, content in files.items():
            archive.writestr(zipfile.ZipInfo(path), content, packing)  # of no time
    return out.getvalue()


def tar_of(files: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for path, content in files.items():
            one = tarfile.TarInfo(path)
            one.size = len(content)
            archive.addfile(one, BytesIO(content))
    return out.getvalue()


@st.composite
def hostile_zips(draw: Any) -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path in draw(st.lists(st.one_of(paths, st.sampled_from(sorted(GOOD))), max_size=8)):
            one = zipfile.ZipInfo(path[:60_000].encode("utf-8", "replace").decode() or "x")
            one.create_system = draw(st.sampled_from((0, 3)))
            one.external_attr = draw(st.sampled_from((0, 0o120777, 0o040755, 0o100644, 0o010644)))
            one.external_attr <<= 16
            one.compress_type = draw(st.sampled_from((0, 8, 8, 12, 14)))
            with warnings.catch_warnings(action="ignore"):  # of a name that is there twice
                archive.writestr(one, draw(contents))
            if draw(st.integers(0, 9)) == 0:
                one.filename = path.encode("utf-8", "replace").decode()[:60_000]  # in the directory
    return out.getvalue()


@st.composite
def hostile_tars(draw: Any) -> bytes:
    out = BytesIO()
    form = draw(st.sampled_from((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)))
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for path in draw(st.lists(st.one_of(paths, st.sampled_from(sorted(GOOD))), max_size=8)):
            one = tarfile.TarInfo(path)
            one.type = draw(st.sampled_from((b"0", b"0", b"0", b"1", b"2", b"3", b"5", b"6", b"S",
                                             b"x", b"g", b"L", b"K", b"z")))  # fmt: skip
            one.linkname = draw(st.sampled_from(("", "/etc/passwd", "../x", "set")))
            if draw(st.booleans()):
                one.pax_headers = {"path": draw(text), "size": str(draw(whole))}
            body = draw(contents)
            one.size = len(body)
            try:
                archive.addfile(one, BytesIO(body))
            except (ValueError, UnicodeError, OverflowError):
                continue
    return out.getvalue()


paths = (
    st.lists(text, min_size=1, max_size=4)
    .map("/".join)
    .flatmap(lambda path: st.sampled_from((path, f"{path}.png", f"/{path}.png", f"../{path}.png")))
)
contents = st.one_of(
    st.sampled_from(PNG), st.binary(max_size=20), st.sampled_from((10**5, 6 * 10**6)).map(bytes)
)


def archives() -> st.SearchStrategy[Case]:
    zips = [zip_of(GOOD), zip_of(GOOD, zipfile.ZIP_STORED), zip_of(GOOD, zipfile.ZIP_BZIP2),
            zip_of(GOOD, zipfile.ZIP_LZMA)]  # fmt: skip
    forms = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)
    tars = [tar_of(GOOD, form) for form in forms]
    packed = [gzip.compress(one, mtime=0) for one in tars]
    kinds = st.one_of(
        mutations(zips, mutation.zipped()),
        mutations(tars, mutation.tar),
        mutations(packed, mutation.gzipped(mutation.tar), mutation.gzipped(mutation.some)),
        hostile_zips(),
        hostile_tars(),
        hostile_tars().map(lambda content: gzip.compress(content, 1, mtime=0)),
    )
    called = st.builds("{}{}".format, text, st.sampled_from((*KINDS, ".TAR", "")))
    return st.builds(
        lambda content, called: {"archive": content, "name": called.encode("utf-8", "replace")},
        kinds, called,
    )  # fmt: skip


def read_archive(place: Path, work: Path) -> None:
    called = (place / "name").read_text("utf-8", "replace")
    with (place / "archive").open("rb") as archive:
        found = unpacked(archive, called, work / "data", LIMITS)
    inside = [p for p in work.rglob("*") if p.is_file()]
    assert found.folder.is_relative_to(work / "data"), found.folder
    assert not any(p.is_symlink() or p.is_fifo() for p in work.rglob("*")), "a link was made"
    assert sum(p.stat().st_size for p in inside) <= LIMITS.unpacked + 10**4
    read_data(found.folder, work)


# --- weights ---


class Evil:
    """What would leave a trace, if it were unpickled."""

    def __init__(self, call: Callable[..., Any], *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.args


def saved(value: Any, **options: Any) -> bytes:
    out = BytesIO()
    torch.save(value, out, **options)
    return out.getvalue()


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(value.shape) for name, value in tiny_network().state_dict().items()}


DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "C64",
          "F4", "U16", "U64", "F8_E8M0", "<b>")  # fmt: skip


@st.composite
def tensors_headers(draw: Any) -> bytes:
    """A safetensors file whose header says anything."""
    body = draw(st.sampled_from((b"", bytes(64), b"\xff" * 64, bytes(10**5))))
    entries: dict[str, Any] = {}
    for key in draw(st.lists(st.one_of(text, st.just("1.bias")), max_size=3)):
        shape = draw(st.lists(st.one_of(st.integers(0, 8), whole), max_size=3))
        start = draw(st.one_of(st.just(0), whole))
        stop = draw(st.one_of(st.just(len(body)), whole))
        entries[key] = {"dtype": draw(st.sampled_from(DTYPES)), "shape": shape,
                        "data_offsets": [start, stop]}  # fmt: skip
    if draw(st.booleans()):
        entries["__metadata__"] = draw(json_value)
    fitting = draw(st.booleans())
    if fitting:
        kind, each = draw(st.sampled_from((("F32", 4), ("F16", 2), ("C64", 8), ("F8_E4M3", 1),
                                           ("BOOL", 1), ("F64", 8))))  # fmt: skip
        entries = {draw(text): {"dtype": kind, "shape": [len(body) // each],
                                "data_offsets": [0, len(body) // each * each]}}  # fmt: skip
        body = body[: len(body) // each * each]
    header = draw(st.one_of(st.just(json.dumps(entries).encode()), json_text))
    size = draw(st.one_of(st.just(len(header)), st.just(len(header)), whole)) & (2**64 - 1)
    return struct.pack("<Q", size) + header + body


def odd_states() -> list[bytes]:
    """What `torch.save` can write that is no plain state dict."""
    own = state()
    wide = torch.zeros(1).expand(10**6, 10**6)
    looped: dict[str, Any] = {}
    looped["state_dict"] = looped
    found: list[Any] = [
        own, {"state_dict": own}, {"model": {"state_dict": own}}, OrderedDict(own), [own], None, 7,
        looped, {"w": wide}, {"w": torch.zeros(1).expand(10**5, 10**4)}, {1: torch.ones(2)},
        {"w": torch.eye(3).to_sparse()}, {"w": torch.ones(3, dtype=torch.complex64) * float("nan")},
        {"w": torch.full((3,), float("nan"))}, {"w": torch.full((3,), float("inf")).half()},
        {"w": torch.ones(3, device="meta")}, {"w\n<b>": torch.full((3,), float("nan"))},
        {"w" * 10**5: torch.full((3,), float("nan"))}, {"w": torch.ones(3).to(torch.float8_e5m2)},
        {f"w{n}": own["1.weight"] for n in range(3000)}, {"w": torch.zeros(0, 7)},
        {"w": torch.nn.Parameter(torch.ones(2))}, {"w": torch.ones(2, 2).t()},
        {"\ud800": own["1.bias"]},
        {"w": torch.ones(2, dtype=torch.complex64).conj().imag}, {"": torch.ones(1)},
        {"state_dict": {"state_dict": {"state_dict": {"state_dict": own}}}},
        {"w": torch.tensor(float("-inf"))}, {"w": np.ones(3)}, {"w": {1, 2}},
    ]  # fmt: skip
    made = []
    for one in found:
        for options in ({}, {"_use_new_zipfile_serialization": False}):
            try:
                made.append(saved(one, **options))
            except (RuntimeError, UnicodeError):  # NotImplementedError is one, too
                continue  # torch writes no such file, so nobody can bring one by it
    evil = [
        Evil(eval, "open('was-here', 'w')"),
        Evil(os.system, "touch was-here"),
        Evil(torch.load, "/etc/passwd"), Evil(open, "/etc/passwd"), Evil(__import__, "antigravity"),
    ]  # fmt: skip
    made += [pickle.dumps({"w": one}) for one in evil] + [saved({"w": one}) for one in evil]
    bomb = BytesIO()
    with zipfile.ZipFile(BytesIO(saved({"w": torch.zeros(3 * 10**7)}))) as old:
        with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
            for entry in old.namelist():
                new.writestr(zipfile.ZipInfo(entry), old.read(entry), zipfile.ZIP_DEFLATED)
    return [*made, bomb.getvalue()]


def checkpoints() -> st.SearchStrategy[Case]:
    odd, valid = odd_states(), [safetensors(state()), safetensors({"w": torch.ones(2).half()})]
    plain = [saved(state()), saved({"state_dict": state()})]
    legacy = [saved(state(), _use_new_zipfile_serialization=False)]
    small = [saved({"w": torch.ones(3)}), saved({"w": torch.ones(3).half()})]
    tensors = st.one_of(tensors_headers(), mutations(valid), tensors_headers())
    pickles = st.one_of(
        st.sampled_from(odd), mutations(plain, mutation.zipped()), mutations(legacy),
        mutations(small, mutation.zipped(), mutation.zipped()), mutations(small),
    )  # fmt: skip
    return st.one_of(one_file("w.safetensors", tensors), one_file("w.pt", pickles))


def read_weights(place: Path, work: Path) -> None:
    (path,) = place.iterdir()
    store = Store(work / "cache")
    kept = weights.kept(store, str(path), "--checkpoint")
    weights.load(tiny_network(), weights.found(Store(work / "cache"), kept), kept, 10)


def tiny_network() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(784, 8), torch.nn.ReLU(), torch.nn.Dropout(),
        torch.nn.Linear(8, 10),
    )  # fmt: skip


# --- artifacts ---

ARTIFACT = "0123456789ab"


def stored() -> st.SearchStrategy[Case]:
    """An artifact of the store whose manifest, or array, is not as it was written."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))

        def fill(draft: Draft) -> None:
            draft.array("numbers", np.arange(5))
            draft.weights({"w": torch.ones(2)})
            draft.bytes_of("names.json", b"{}")
            draft.note(facts={"n": 1}, **{"name": "x"})

        made = store.make("pixels", ARTIFACT, fill, {"name": "x"}).place
        files = {p.name: p.read_bytes() for p in made.iterdir()}
    manifest = json.loads(files["manifest.json"])
    manifest.pop("sha256")
    value = st.one_of(json_value, st.sampled_from(list(manifest.values())))
    odd = st.builds(
        lambda more, less: mutation.seal(
            {k: v for k, v in {**manifest, **more}.items() if k not in less}
        ),
        st.dictionaries(st.sampled_from(sorted(manifest)), value, max_size=2),
        st.lists(st.sampled_from(sorted(manifest)), max_size=2),
    )
    facts = st.dictionaries(
        st.one_of(st.sampled_from((*files, "../x.npy", "/etc/passwd", "a\nb", "")), text),
        st.one_of(json_value, st.fixed_dictionaries({"bytes": json_leaf, "sha256": json_leaf})),
        max_size=3,
    )
    listed = facts.map(lambda found: mutation.seal({**manifest, "files": found}))
    damaged = mutations([files["manifest.json"]], mutation.sealed)
    content = st.one_of(odd, listed, damaged, json_text)
    return content.map(
        lambda found: (
            {f"pixels/{ARTIFACT}/{n}": c for n, c in files.items()}
            | {f"pixels/{ARTIFACT}/manifest.json": found}
        )
    )


def read_artifact(place: Path, work: Path) -> None:
    """All that looks at an artifact that others made."""
    engine = Engine(place, work)
    for one in engine.store.all("pixels"):
        assert one.size >= 0
    list(artifacts(engine, False, silent))
    engine.uploads()
    store = Store(place)
    store.has("pixels", ARTIFACT)
    found = store.find("pixels", ARTIFACT)
    assert found is not None
    found.array("numbers")
    found.weights()
    found.bytes_of("names.json")
