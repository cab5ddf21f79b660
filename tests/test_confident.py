"""Images of which networks are far surer than of others, in builds on gradients of the loss.

The gradient of the loss is 1 - p times that of the margin: for such an image smaller by many powers
of ten than for one that is called wrong.
"""

import json
from dataclasses import replace
from typing import Any

import dense
import numpy as np
import pytest
from safetensors.torch import save_file
from scipy.special import expit

from attribution.build import Build
from attribution.engine import Engine
from attribution.records import BuildSpec, DataSpec, EstimatorSpec, FeatureSpec, Hit, content_id
from attribution.store import is_id

SURER = 40.0  # times: the logits of the networks
SMALL = BuildSpec(
    data=DataSpec(noise=0.1), width=0.1, strategy="naive", models=2, masks=0, epochs=2,
    features=FeatureSpec(ka=4, kg=2), estimator=EstimatorSpec(q="members"), index_dims=256,
)  # fmt: skip


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    root = tmp_path_factory.mktemp("sure")
    return Engine(root / "cache", root)


@pytest.fixture(scope="module")
def files(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Weights of two networks that say what they say, but louder."""
    folder = tmp_path_factory.mktemp("files")
    plain = engine.open(engine.build(SMALL)["build"])
    for name in plain.parts["runs"]:
        state = engine.store.find("run", name).weights()
        last = list(state)[-1].rpartition(".")[0]
        louder = {k: v * SURER if k.startswith(f"{last}.") else v for k, v in state.items()}
        save_file(louder, folder / f"{name}.safetensors")
    return sorted(map(str, folder.iterdir()))


@pytest.fixture(scope="module", params=["ekfac", "tracin"])
def build(engine: Engine, files: list[str], request: pytest.FixtureRequest) -> Build:
    """An index as wide as the features, so that it loses nothing but digits."""
    estimator = EstimatorSpec(name=request.param, q="members", q_power=0.0)
    spec = engine.brought(replace(SMALL, estimator=estimator), files, "", False)
    return engine.open(engine.build(spec)["build"])


# The formula in double precision, of what is stored, read without our code.


def array(build: Build, kind: str, name: str, file: str) -> np.ndarray:
    return np.load(build.store.root / kind / name / f"{file}.npy")


def facts(build: Build, kind: str, name: str) -> dict[str, Any]:
    return json.loads((build.store.root / kind / name / "manifest.json").read_text())


def margins(build: Build) -> np.ndarray:
    """Margins of the test images' labels, (M, T)."""
    names = build.parts["features"]
    return np.stack([array(build, "features", n, "test_margin").astype(float) for n in names])


def dense_scores(build: Build) -> np.ndarray:
    """(M, T, N) for the test images' labels."""
    each = []
    for name in build.parts["features"]:
        halves = []
        for half in ("train", "test"):
            phi_NK = array(build, "features", name, f"{half}_phi").astype(float)
            phi_NK *= facts(build, "features", name)[f"{half}_scale"]
            margin_N = array(build, "features", name, f"{half}_margin").astype(float)
            halves.append(phi_NK * expit(-margin_N)[:, None])
        each.append(dense.member_scores(*halves, build.spec.estimator))
    return np.stack(each)


def sure(build: Build) -> list[int]:
    """Images of margins from 16 to 70 that both networks call right, the quietest last."""
    most_T = margins(build).max(0)
    least_T = margins(build).min(0)
    some = np.flatnonzero((least_T > 16) & (most_T < 70))
    order = some[np.argsort(least_T[some])]
    return [int(order[i]) for i in np.linspace(0, len(order) - 1, 12).astype(int)]


def test_the_networks_are_sure_of_some_images_and_wrong_about_others(build):
    margin_T = margins(build).min(0)
    assert margin_T.min() < -1 and len(set(sure(build))) == 12
    assert margin_T[sure(build)].max() > 40


def test_an_answer_about_a_sure_image_is_the_dense_formulas(build):
    wanted_MTN = dense_scores(build)
    for test in sure(build):
        wanted_N = wanted_MTN[:, test].mean(0)
        answer = build.query(test, 12, "label")
        for hits, sign in ((answer.proponents, 1), (answer.opponents, -1)):
            found = np.array([hit.score for hit in hits])
            best = sign * np.sort(sign * wanted_N)[::-1][:12]
            size = np.abs(wanted_N).max()
            assert size > 0
            np.testing.assert_allclose(found / size, best / size, atol=5e-3)
            at = [hit.train_id for hit in hits]
            np.testing.assert_allclose(found / size, wanted_N[at] / size, atol=5e-3)


def test_exact_scores_of_a_sure_image_are_the_dense_formulas(build):
    wanted_MTN = dense_scores(build)
    for test in sure(build):
        found_GN = build.exact(test, int(build.test_labels_T[test]))
        assert dense.off(found_GN, wanted_MTN[:, test]) < 2e-3
        again_Gn, whether = build.pull(test, int(build.test_labels_T[test]), [7, 3])
        assert whether
        np.testing.assert_array_equal(again_Gn, found_GN[:, [7, 3]])


def test_an_index_that_loses_nothing_shows_the_networks_as_far_apart_as_they_are(build):
    assert build.index.manifest["spread"] == pytest.approx(1, abs=0.02)


def test_moves_and_means_are_of_the_same_queries(build):
    """What an image's removal does, by sums over scores: for sure images and others alike."""
    removed = [int(h.train_id) for h in build.query(sure(build)[-1], 3).proponents]
    change_d = build.edit(removed)
    agreed = np.flatnonzero(build.predicted_T == build.test_labels_T)
    wanted_kN = dense_scores(build).mean(0)[agreed]
    wanted_k, size_k = -wanted_kN[:, removed].sum(1), np.abs(wanted_kN).max(1)
    some = size_k > 1e-30
    found_k = build.moves(change_d)[agreed]
    np.testing.assert_allclose((found_k / size_k)[some], (wanted_k / size_k)[some], atol=0.02)
    by_network_Gk = build.moves_by_network(change_d, agreed)
    np.testing.assert_allclose(by_network_Gk.mean(0)[some], found_k[some], rtol=1e-3,
                               atol=1e-3 * size_k[some].min())  # fmt: skip


def silent(build: Build) -> int:
    """An image of margins that leave nothing of 1 - p in single precision."""
    return int(margins(build).min(0).argmax())


def test_a_group_hears_sure_images_and_is_not_silenced_by_one_that_says_nothing(build):
    assert margins(build)[:, silent(build)].min() > 110
    quiet = sure(build)[-4:]
    for group in (quiet, [*quiet, silent(build)]):
        answer = build.query_group(group, 5)
        assert len(answer.proponents) == len(answer.opponents) == 5
        for one in (*answer.proponents, *answer.opponents):
            each = [build.rescored(t, "label", [one.hit.train_id])[0].score for t in group]
            assert one.hit.score == pytest.approx(np.mean(each), rel=1e-3)


def test_what_is_said_of_an_image_that_says_nothing_is_not_told_apart_from_zero(build):
    answer = build.query(silent(build), 5, "label")
    hits = (*answer.proponents, *answer.opponents)
    assert [(hit.score, hit.shaky) for hit in hits] == [(0, True)] * 10
    assert not np.any(build.exact(silent(build), answer.target))
    for stderr in (0.0, None):
        tiny = Hit(train_id=0, score=1e-20, stderr=stderr, agreement=1.0, label=0)
        assert not tiny.shaky and replace(tiny, score=0.0).shaky


def test_each_query_is_kept_in_a_unit_of_its_own(build):
    (name,) = build.parts["index"]
    most_T = np.abs(array(build, "index", name, "queries")).max((1, 2))
    unit_T = array(build, "index", name, "query_units")
    assert unit_T.dtype == np.float32 and unit_T.max() == 1 and unit_T.min() < 1e-9
    np.testing.assert_allclose(most_T[most_T > 0], 1, rtol=1e-3)
    assert (unit_T[most_T == 0] == 1).all()


def test_an_index_of_the_margins_gradients_is_kept_and_named_as_before(tiny):
    """In one unit for all, as builds have it that were made when there was no other."""
    build = Engine(tiny.cache).open(tiny.build)
    (name,) = build.parts["index"]
    assert not (tiny.cache / "index" / name / "query_units.npy").exists()
    most_T = np.abs(array(build, "index", name, "queries").astype(float)).max((1, 2))
    assert most_T.max() == 1 and most_T.min() < 0.5
    assert build.id == content_id("build", build.data_id, build.spec, "")
    build.exact(3, int(build.test_labels_T[3]))
    (exact,) = (path.name for path in (tiny.cache / "exact").iterdir() if is_id(path.name))
    assert facts(build, "exact", exact)["unit"] > 0
    assert not (tiny.cache / "exact" / exact / "units.npy").exists()
