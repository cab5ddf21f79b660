"""A real, tiny build that the page and browser tests share."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small work; threads would wait for each other

import pytest

from attribution.build import Build
from attribution.engine import Engine
from attribution.records import BuildSpec, DataSpec, EstimatorSpec, FeatureSpec

if TYPE_CHECKING:
    from playwright.sync_api import Browser


class Tiny(NamedTuple):
    """Where the tiny build is."""

    cache: Path
    workspace: Path
    build: str


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """mnist5k with flipped labels, two small networks of two masks each, few directions."""
    root = tmp_path_factory.mktemp("tiny")
    spec = BuildSpec(
        data=DataSpec(noise=0.1),
        models=2,
        masks=2,
        epochs=3,
        features=FeatureSpec(ka=8, kg=4),
        estimator=EstimatorSpec(),
        index_dims=32,
    )
    made = Engine(root / "cache", root).build(spec)
    return Tiny(root / "cache", root, made["build"])


@pytest.fixture(scope="session")
def mapped(tiny: Tiny) -> Tiny:
    """The same with its images laid out."""
    Engine(tiny.cache).map(tiny.build)
    return tiny


@pytest.fixture
def engine(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The pages' engine on the tiny build, in a workspace of its own."""
    from apptest import at_place

    from pages.parts import opened

    at_place(Tiny(tiny.cache, tmp_path, tiny.build), monkeypatch)
    return opened.engine()


@pytest.fixture
def build(engine: Engine, tiny: Tiny) -> Build:
    return engine.open(tiny.build)


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """A real Chromium for the tests of a file."""
    from chromium import chromium

    with chromium() as found:
        yield found
