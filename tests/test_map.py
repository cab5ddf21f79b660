"""The map of the images against scikit-learn's measures, and what of it reaches the browser."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Tiny
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from sklearn.manifold import trustworthiness
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from starlette.applications import Starlette
from starlette.testclient import TestClient

from attribution import signals
from attribution.build import Build
from attribution.engine import Engine
from attribution.making import examples
from attribution.map import MapSpec, laid_out, neighbours_kept, side_by_side
from attribution.records import Checkpoint, UserError
from attribution.stored import load_network
from pages.parts import opened, picked, points


@pytest.fixture(scope="module")
def build(mapped: Tiny) -> Build:
    return Engine(mapped.cache).open(mapped.build)


@pytest.fixture(scope="module")
def features_PH(build: Build) -> np.ndarray:
    """What the last layers see, nothing reduced."""
    seen = []
    for run in build.parts["runs"]:
        network = load_network(build.store, build.spec, build.data, Checkpoint(run_id=run))
        halves = (examples(build.spec, build.data, h) for h in (build.data.train, build.data.test))
        each = [signals.embedded(network, half, len(build.classes)) for half in halves]
        seen.append(np.concatenate(each))
    return np.concatenate(seen, 1)


@pytest.fixture(scope="module")
def clouds() -> np.ndarray:
    draw = np.random.default_rng(0)
    return (
        draw.normal(size=(4, 8))[draw.integers(0, 4, 300)] * 3 + draw.normal(size=(300, 8))
    ).astype(np.float32)


def test_neighbours_stay_neighbours(build: Build, features_PH: np.ndarray) -> None:
    xy_P2 = build.map.array("xy")
    assert xy_P2.shape == (len(features_PH), 2) and np.isfinite(xy_P2).all()
    some = np.random.default_rng(0).permutation(len(xy_P2))[:1500]
    found = trustworthiness(features_PH[some], xy_P2[some], n_neighbors=10)
    chance = trustworthiness(features_PH[some], xy_P2[some[::-1]], n_neighbors=10)
    assert found > 0.93 and chance < 0.6


def test_kept_is_the_share_of_common_neighbours(build: Build, features_PH: np.ndarray) -> None:
    def near(x: np.ndarray) -> np.ndarray:
        return NearestNeighbors(n_neighbors=10).fit(x).kneighbors(return_distance=False)

    reduced_PD = side_by_side([features_PH], MapSpec().directions)
    pairs = zip(near(reduced_PD), near(build.map.array("xy")), strict=True)
    share = np.mean([len(set(a) & set(b)) / 10 for a, b in pairs])
    assert build.map.manifest["kept"] == pytest.approx(share, abs=0.01)
    assert share > 0.3


def test_test_images_lie_among_training_images_of_their_class(
    build: Build, features_PH: np.ndarray
) -> None:
    count = len(build.train_labels_N)

    def accuracy(x: np.ndarray) -> float:
        by = KNeighborsClassifier(15).fit(x[:count], build.train_labels_N)
        return by.score(x[count:], build.test_labels_T)

    assert abs(accuracy(build.map.array("xy")) - accuracy(features_PH)) < 0.05


def test_the_same_input_is_the_same_bytes(clouds: np.ndarray) -> None:
    one, two = (laid_out(clouds.copy(), MapSpec()).tobytes() for _ in range(2))
    assert one == two


@pytest.mark.parametrize("count", [2, 3, 9, 10, 11, 40])
def test_few_images_and_equal_ones_have_places(count: int) -> None:
    x_PD = np.repeat(np.eye(3, dtype=np.float32), -(-count // 3), 0)[:count]
    xy_P2 = laid_out(side_by_side([x_PD], 50), MapSpec())
    assert xy_P2.shape == (count, 2) and np.isfinite(xy_P2).all()


def test_with_all_directions_networks_side_by_side_keep_distances(clouds: np.ndarray) -> None:
    halves = [clouds[:, :5], clouds[:, 5:]]
    np.testing.assert_allclose(pdist(side_by_side(halves, 50)), pdist(clouds), rtol=1e-3)


def test_of_a_map_that_is_the_data_everything_is_kept(clouds: np.ndarray) -> None:
    assert neighbours_kept(clouds[:, :2], clouds[:, :2] * 7) == 1
    mixed = np.random.default_rng(1).permutation(clouds[:, :2])
    assert neighbours_kept(clouds[:, :2], mixed) < 0.15


def test_builds_on_the_same_networks_share_a_map(mapped: Tiny, build: Build) -> None:
    command = [sys.executable, "-m", "attribution", "map", "--json", "--cache", str(mapped.cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["map"] == build.map.manifest["id"] and found["build"] == build.id
    assert found["images"] == len(build.train_labels_N) + len(build.test_labels_T)
    assert len(list((mapped.cache / "map").glob("[!.]*"))) == 1


def test_the_browser_gets_the_points(
    build: Build, mapped: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(opened.CACHE, str(mapped.cache))
    monkeypatch.setenv(opened.WORKSPACE, str(tmp_path))
    client = TestClient(Starlette(routes=points.ROUTES))
    answer = client.get(points.address(build))
    assert answer.status_code == 200 and "immutable" in answer.headers["cache-control"]
    count, content = len(build.train_labels_N) + len(build.test_labels_T), answer.content
    assert len(content) == 10 * count
    xy_P2 = np.frombuffer(content, "<u2", 2 * count).reshape(-1, 2).astype(float)
    given_P, other_P = np.frombuffer(content, "<u2", 2 * count, 4 * count).reshape(2, -1)
    chance_P, doubt_P = np.frombuffer(content, "u1", 2 * count, 8 * count).reshape(2, -1)
    assert xy_P2.min() == 0 and xy_P2.max() == 65_535
    wanted, some = build.map.array("xy"), slice(0, count, 25)
    shrunk = pdist(xy_P2[some]) / pdist(wanted[some].astype(float))
    assert np.quantile(shrunk, 0.99) / np.quantile(shrunk, 0.01) < 1.01  # both axes alike
    suspects, tests = build.mislabels().sort_index(), build.tests()
    assert given_P.tolist() == [*build.train_labels_N, *build.test_labels_T]
    assert other_P.tolist() == [*suspects.suggested_label, *tests.predicted]
    assert doubt_P.tolist() == [*(suspects.score > 0.5), *~tests.correct]
    np.testing.assert_allclose(chance_P / 255, [*suspects.score, *tests.confidence], atol=0.002)
    assert client.get("/points/nonsense/0.bin").status_code == 404
    # A test label that was corrected to what the networks say makes the prediction right.
    wrong, before = int(tests.index[~tests.correct][0]), points.address(build)
    log = Engine(mapped.cache, tmp_path).decisions
    label = int(tests.predicted[wrong])
    log.decide(build.test_half.id, build.test_ids[wrong], "relabel", label=label)
    now = np.frombuffer(client.get(points.address(build)).content, "u1")
    assert points.address(build) != before and not now[-len(tests) + wrong]
    assert now[-len(tests) :].sum() == (~tests.correct).sum() - 1


@given(st.sets(st.integers(0, 99)))
def test_a_selection_survives_the_address(chosen: set[int]) -> None:
    text = picked.words(chosen)
    if chosen:
        assert picked.positions(text, 100) == tuple(sorted(chosen))
        with pytest.raises(UserError):
            picked.positions(text, max(chosen))


def test_runs_are_short_in_the_address() -> None:
    assert picked.words([5, 3, 4, 9, 11, 12]) == "3-5,9,11-12"


@pytest.mark.parametrize("text", ["", "x", "-1", "3-", "5-3", "1,,2", "100", "0-100", "1;2", "٣"])
def test_what_is_no_selection_is_a_sentence(text: str) -> None:
    with pytest.raises(UserError, match="selection.*wanted positions from 0 to 99.*Map"):
        picked.positions(text, 100)
