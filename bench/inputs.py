"""What the inputs of `fuzz` are made of: files, names, numbers, JSON, small pictures."""

import json
from collections.abc import Mapping
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from . import mutation
from .mutation import LONE, NAMES


class Link(NamedTuple):
    """A symbolic link in an input."""

    to: str


class Pipe(NamedTuple):
    """A named pipe in an input, which never has anything to read."""


Case = Mapping[str, bytes | Link | Pipe]


text = st.one_of(st.sampled_from(NAMES), st.text(max_size=12))
name = text.filter(lambda one: "/" not in one and "\0" not in one and one not in ("", ".", ".."))
whole = st.one_of(st.sampled_from((*mutation.EDGES, -1, -(2**63))), st.integers(-3, 300))


def one_file(path: str, content: st.SearchStrategy[bytes]) -> st.SearchStrategy[Case]:
    return content.map(lambda found: {path: found})


json_leaf = st.one_of(
    st.none(), st.booleans(), whole, st.floats(), text, st.sampled_from(LONE), st.just("=x")
)
json_value = st.recursive(
    json_leaf,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(text, inner, max_size=4)),
    max_leaves=12,
)
json_text = st.one_of(
    json_value.map(lambda found: json.dumps(found).encode()),
    st.integers(900, 1100).map(lambda deep: b"[" * deep + b"]" * deep),
    st.integers(900, 1100).map(lambda deep: b'{"a":' * deep + b"1" + b"}" * deep),
    st.just(b"[" * 100_000),
)


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    out = BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


PNG = [encoded(noise(n, 9, 9, 3)) for n in range(12)]
GREY = np.zeros((4, 28, 28), np.uint8)
