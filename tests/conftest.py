"""A real, tiny build that the page and browser tests share."""

import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"  # small work; threads would wait for each other
os.environ.pop("COLUMNS", None)  # pytest-xdist's: tables would be as narrow as its terminal
os.environ.pop("FORCE_COLOR", None)  # these three would have a terminal where there is none
os.environ.pop("PY_COLORS", None)
os.environ.pop("GITHUB_ACTIONS", None)

import pytest
from hypothesis import HealthCheck, settings

from attribution.build import Build
from attribution.engine import Engine
from attribution.records import BuildSpec, DataSpec, EstimatorSpec, FeatureSpec

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# A slow machine breaks no property, and luck decides nothing. What sets its own keeps that.
settings.register_profile(
    "tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")


class Tiny(NamedTuple):
    """Where the tiny build is."""

    cache: Path
    workspace: Path
    build: str
    born: frozenset[tuple[str, str]] = frozenset()  # artifacts, before a test has added others


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
    engine = Engine(root / "cache", root)
    made = engine.build(spec)
    return Tiny(root / "cache", root, made["build"], frozenset(engine.store.names()))


def copied(tiny: Tiny, cache: Path) -> Path:
    """The tiny build in a cache of its own, without what other tests have made, left or begun."""
    for kind, name in tiny.born:
        shutil.copytree(tiny.cache / kind / name, cache / kind / name)
    return cache


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
def place(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The tiny build, with a workspace for the tests of a file."""
    return Tiny(tiny.cache, tmp_path_factory.mktemp("workspace"), tiny.build)


@pytest.fixture(scope="module")
def url(place: Tiny) -> Iterator[str]:
    """Where a real server has the app on it."""
    from chromium import app_server

    with app_server(place.cache, place.workspace) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """A real Chromium for the tests of a file."""
    from chromium import chromium

    with chromium() as found:
        yield found


@contextmanager
def room(size: int) -> Iterator[None]:
    """The system refuses to write files larger than `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
