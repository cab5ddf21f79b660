"""A build's answers against loops of backward calls, numpy and scikit-learn; and its artifacts:
made once, made again where missing, kept through kills, named where damaged."""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import dense
import faiss
import numpy as np
import pytest
import torch
from conftest import Tiny, copied
from safetensors.torch import load_file
from scipy.special import expit
from sklearn.metrics import average_precision_score, roc_auc_score
from zoo import as_matrix, backward_loop

from attribution import build as build_module
from attribution import features
from attribution.build import Build
from attribution.data import example_ids
from attribution.engine import Engine
from attribution.gradients import Site
from attribution.members import View, example_keys
from attribution.models import MODELS
from attribution.records import BuildSpec, DataSpec, EstimatorSpec, FeatureSpec, Hit, UserError

# Small enough to build in a second or two wherever it must be built.
SMALL = BuildSpec(
    data=DataSpec(noise=0.1),
    width=0.1,
    models=2,
    masks=2,
    epochs=1,
    features=FeatureSpec(ka=6, kg=2),
    index_dims=24,
)
HALF = 2e-3  # what half precision leaves, in units of the largest entry


@pytest.fixture(scope="module")
def opened(tiny: Tiny) -> Build:
    return Engine(tiny.cache, tiny.workspace).open(tiny.build)


@pytest.fixture
def copy(tiny: Tiny, tmp_path: Path) -> Path:
    """A cache with the tiny build in it, to be changed."""
    return copied(tiny, tmp_path / "cache")


def part(build: Build, kind: str, name: str) -> Path:
    return build.store.root / kind / name


def manifest(build: Build, kind: str, name: str) -> dict:
    return json.loads((part(build, kind, name) / "manifest.json").read_text())


def stored(build: Build, name: str) -> np.ndarray:
    """An array of the build's index, read without our code."""
    return np.load(part(build, "index", build.parts["index"][0]) / f"{name}.npy")


def rows_of(build: Build) -> np.ndarray:
    """The searched training rows (N, d), read by faiss alone."""
    path = part(build, "index", build.parts["index"][0]) / "rows.faiss"
    rows = faiss.read_index(str(path))
    return rows.reconstruct_n(0, rows.ntotal).astype(float)


def blocks_of(build: Build, split: str) -> list[np.ndarray]:
    """Stored features of every member, read without our code."""
    blocks = []
    for name in build.parts["features"]:
        scale = manifest(build, "features", name)[f"{split}_scale"]
        path = part(build, "features", name) / f"{split}_phi.npy"
        blocks.append(np.load(path).astype(float) * scale)
    return blocks


def margins_of(build: Build) -> np.ndarray:
    names = build.parts["features"]
    return np.stack([np.load(part(build, "features", n) / "train_margin.npy") for n in names])


def dense_scores(build: Build, tests: np.ndarray) -> np.ndarray:
    """The formula on the stored features, (len(tests), N)."""
    asked = [block[tests] for block in blocks_of(build, "test")]
    q_MN = expit(-margins_of(build).astype(float))
    return dense.scores(blocks_of(build, "train"), asked, q_MN, build.spec.estimator)


def examples_of(build: Build, split: str, which: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and keys of some examples, from the images."""
    pixels = build.data.train.images / 255
    images = (build.data.train if split == "train" else build.data.test).images
    x = (images[which] / 255 - pixels.mean()) / pixels.std()
    ids = np.array(example_ids(images))[which].tolist()
    return torch.from_numpy(x).float()[:, None], torch.from_numpy(example_keys(ids).copy())


def loop_features(
    build: Build, split: str, which: np.ndarray, target: torch.Tensor
) -> list[np.ndarray]:
    """Every member's features of some examples by one backward call each, and the directions."""
    masks = build.spec.masks
    examples = (*examples_of(build, split, which), target)
    blocks = []
    for run_id, sites_id in zip(build.parts["runs"], build.parts["sites"], strict=True):
        network = MODELS["mlp"](1, 28, 10, build.spec.width).eval()
        network.load_state_dict(load_file(part(build, "run", run_id) / "weights.safetensors"))
        directions = load_file(part(build, "sites", sites_id) / "directions.safetensors")
        facts = manifest(build, "sites", sites_id)
        for mask in range(masks):
            view = View(network, tuple(facts["mask_places"]), mask, build.spec.p)
            exact, columns = backward_loop(view, *examples), []
            for s, fields in enumerate(facts["sites"]):
                site = Site(**{**fields, "parameters": tuple(fields["parameters"])})
                A, G = directions[f"{s}.0"].numpy(), directions[f"{s}.1"].numpy()
                small = np.einsum("og,boi,ia->bga", G, as_matrix(site, exact).numpy(), A)
                columns.append(small.reshape(len(which), -1))
            blocks.append(np.concatenate(columns, 1))
    return blocks


def wrong_tests(build: Build) -> np.ndarray:
    return np.flatnonzero(build.predicted_T != build.test_labels_T)


def files(root: Path, kinds: tuple[str, ...] = ("*",)) -> dict[str, tuple[int, str]]:
    """Time and content of every artifact's files; a build's locks are none of them."""
    found = [p for kind in kinds for p in root.glob(f"{kind}/[0-9a-f]*/*") if p.is_file()]
    return {
        p.relative_to(root).as_posix(): (
            p.stat().st_mtime_ns,
            hashlib.sha256(p.read_bytes()).hexdigest(),
        )
        for p in found
    }


def contents(root: Path) -> dict[str, str]:
    """Arrays, weights and index of every artifact; manifests tell times, so they are left out."""
    return {k: v[1] for k, v in files(root).items() if not k.endswith("manifest.json")}


# Scores.


def test_stored_features_are_the_projected_gradients_of_a_backward_loop(opened):
    draw = np.random.default_rng(0)
    for split, labels in (("train", opened.train_labels_N), ("test", opened.test_labels_T)):
        which = draw.choice(len(labels), 10, replace=False)
        found = loop_features(opened, split, which, torch.from_numpy(labels[which]))
        for stored_block, exact in zip(blocks_of(opened, split), found, strict=True):
            assert dense.off(stored_block[which], exact) < 1e-3  # half precision


def test_scores_are_the_dense_formula_on_features_made_by_a_backward_loop(opened):
    draw = np.random.default_rng(1)
    tests, trains = draw.choice(500, 8, replace=False), draw.choice(4500, 12, replace=False)
    psi = loop_features(opened, "test", tests, torch.from_numpy(opened.test_labels_T[tests]))
    phi = loop_features(opened, "train", trains, torch.from_numpy(opened.train_labels_N[trains]))
    spec, each = opened.spec.estimator, []
    for block, z, i in zip(blocks_of(opened, "train"), psi, phi, strict=True):
        kernel = block.T @ block
        ridge = spec.damping * np.diag(kernel).mean() * np.eye(len(kernel))
        each.append(z @ np.linalg.inv(kernel + ridge) @ i.T)
    q = expit(-margins_of(opened)[:, trains].astype(float)).mean(0)
    found = opened.scores()[np.ix_(tests, trains)]
    assert dense.off(found, np.mean(each, 0) * q**spec.q_power) < HALF


def test_scores_are_mean_over_members_times_mean_q_to_the_power(opened):
    found = opened.scores()
    assert found.dtype == np.float32 and found.shape == (500, 4500)
    assert dense.off(found, dense_scores(opened, np.arange(500))) < 1e-5
    margins = margins_of(opened)
    trains = np.arange(0, 4500, 900)
    x, key = examples_of(opened, "train", trains)
    network = MODELS["mlp"](1, 28, 10, 1).eval()
    run_id = opened.parts["runs"][0]
    network.load_state_dict(load_file(part(opened, "run", run_id) / "weights.safetensors"))
    p = View(network, ("3", "6"), 0, opened.spec.p).logits(x, key).double().softmax(1)
    given = p[torch.arange(len(p)), torch.from_numpy(opened.train_labels_N[trains])]
    np.testing.assert_allclose(expit(-margins[0, trains]), (1 - given).detach(), atol=1e-5)


# Queries.


def member_scores(build: Build, u_Md: np.ndarray) -> np.ndarray:
    """(M, N) by plain inner products with the searched rows."""
    return u_Md.astype(float) @ rows_of(build).T * build.index.manifest["scale"]


def stored_query(build: Build, test: int, target: int) -> np.ndarray:
    asked = np.stack([stored(build, "query_tests"), stored(build, "query_targets")], 1)
    (row,) = np.flatnonzero((asked == (test, target)).all(1))
    return stored(build, "queries")[row]


def fresh_query(build: Build, test: int, target: int) -> np.ndarray:
    """Query vectors from a backward call, as cache/README.md describes them."""
    phi_M = loop_features(build, "test", np.array([test]), torch.tensor([target]))
    projectors = stored(build, "projectors").astype(float)
    u_M = [phi[0] @ P for phi, P in zip(phi_M, projectors, strict=True)]
    return np.stack(u_M) * build.index.manifest["projector_scale"]


def assert_hits(build: Build, hits: tuple[Hit, ...], scores_MN: np.ndarray, sign: int) -> None:
    """The k best of these members' scores, in order, each described as it is."""
    mean_N = scores_MN.mean(0)
    ids = [h.train_id for h in hits]
    size = np.abs(mean_N).max()
    assert len(set(ids)) == len(ids)
    best = sign * np.sort(sign * mean_N)[::-1][: len(ids)]
    np.testing.assert_allclose([h.score for h in hits], best, atol=1e-5 * size)
    np.testing.assert_allclose(mean_N[ids], best, atol=1e-5 * size)
    assert [h.label for h in hits] == build.train_labels_N[ids].tolist()
    agree = (np.sign(scores_MN[:, ids]) == np.sign(mean_N[ids])).mean(0)
    assert [h.agreement for h in hits] == agree.tolist()
    spread = build.index.manifest["spread"]
    if len(scores_MN) == 1:
        assert {h.stderr for h in hits} == {None}
        return
    networks = len(build.parts["runs"])
    apart_SH = scores_MN[:, ids]
    if networks > 1:
        apart_SH = apart_SH.reshape(networks, -1, len(ids)).mean(1)
    error_H = np.std(apart_SH, axis=0, ddof=1) / np.sqrt(len(apart_SH)) / spread
    np.testing.assert_allclose([h.stderr for h in hits], error_H, rtol=1e-3, atol=1e-6 * size)


@pytest.mark.parametrize("target", ["label", "predicted"])
def test_hits_are_the_best_inner_products_of_the_searched_rows(opened, target):
    for test in (0, 17, *wrong_tests(opened)[:2]):
        asked = (opened.test_labels_T if target == "label" else opened.predicted_T)[test]
        scores_MN = member_scores(opened, stored_query(opened, test, asked))
        answer = opened.query(int(test), 40, target)
        assert (answer.test_id, answer.target) == (test, asked)
        assert answer.label == opened.test_labels_T[test]
        assert answer.predicted == opened.probs_TC[test].argmax()
        assert_hits(opened, answer.proponents, scores_MN, 1)
        assert_hits(opened, answer.opponents, scores_MN, -1)
        assert answer.proponents[0].score > 0 > answer.opponents[0].score


def test_an_answer_of_all_training_examples_is_the_same_from_either_end(opened):
    answer = opened.query(3, 4500)
    assert {h.train_id for h in answer.proponents} == set(range(4500))
    up, down = ([h.score for h in hits] for hits in (answer.proponents, answer.opponents))
    np.testing.assert_allclose(up, down[::-1], atol=1e-5 * max(up))


def test_the_searched_scores_resemble_the_exact_ones(opened):
    tests = np.arange(0, 500, 25)
    exact = dense_scores(opened, tests)
    for test, row in zip(tests, exact, strict=True):
        found = opened.query(int(test), 4500, "label").proponents
        by_id = np.empty(4500)
        by_id[[h.train_id for h in found]] = [h.score for h in found]
        assert np.corrcoef(by_id, row)[0, 1] > 0.8  # 32 of 384 dimensions


def test_error_bars_are_as_long_as_those_of_the_exact_scores(opened):
    spec, ratios = opened.spec.estimator, []
    weight_N = expit(-margins_of(opened).astype(float)).mean(0) ** spec.q_power
    train, test = blocks_of(opened, "train"), blocks_of(opened, "test")
    tests = np.arange(5, 500, 33)
    exact_MTN = np.stack(
        [dense.member_scores(a, b[tests], spec) for a, b in zip(train, test, strict=True)]
    )
    by_network = exact_MTN.reshape(2, 2, *exact_MTN.shape[1:]).mean(1) * weight_N
    error_TN = by_network.std(0, ddof=1) / np.sqrt(2)
    for t, exact_N in zip(tests, error_TN, strict=True):
        hits = opened.query(int(t), 16, "label").proponents
        ratios += [h.stderr / exact_N[h.train_id] for h in hits]
    assert 0.8 < np.median(ratios) < 1.25


def test_the_two_questions_about_a_wrong_prediction_have_other_answers(opened):
    wrong = wrong_tests(opened)
    assert len(wrong) > 10
    for test in wrong[:10].tolist():
        label, predicted = (opened.query(test, 12, t) for t in ("label", "predicted"))
        assert label.target == opened.test_labels_T[test] != predicted.target
        ids = [{h.train_id for h in a.proponents} for a in (label, predicted)]
        assert ids[0] != ids[1]
    right = np.flatnonzero(opened.predicted_T == opened.test_labels_T)[:3]
    for test in right.tolist():
        assert opened.query(test, 5, "label") == opened.query(test, 5, "predicted")


def test_a_class_is_asked_about_by_name_or_number(opened):
    test = int(wrong_tests(opened)[0])
    for target in ("label", "predicted"):
        wanted = opened.query(test, 9, target)
        assert opened.query(test, 9, str(wanted.target)) == wanted
        assert opened.query(test, 9, opened.classes[wanted.target]) == wanted


@pytest.mark.parametrize("which", ["label", "predicted", "another"])
def test_a_query_is_the_projection_of_a_backward_call_whether_stored_or_fresh(opened, which):
    test = int(wrong_tests(opened)[1])
    label, predicted = int(opened.test_labels_T[test]), int(opened.predicted_T[test])
    other = next(c for c in range(10) if c not in (label, predicted))
    target = {"label": label, "predicted": predicted, "another": other}[which]
    scores_MN = member_scores(opened, fresh_query(opened, test, target))
    mean_N = scores_MN.mean(0)
    if which != "another":
        same = member_scores(opened, stored_query(opened, test, target))
        assert dense.off(same, scores_MN) < 2 * HALF
    answer = opened.query(test, 30, str(target))
    assert answer.target == target
    for hits, sign in ((answer.proponents, 1), (answer.opponents, -1)):
        found = np.array([h.score for h in hits])
        assert dense.off(found, sign * np.sort(sign * mean_N)[::-1][:30]) < 2 * HALF
        assert dense.off(found, mean_N[[h.train_id for h in hits]]) < 2 * HALF


@pytest.mark.parametrize(
    ("ask", "found", "wanted", "next_step"),
    [
        (lambda b: b.query(500), "test id 500", "from 0 to 499", "choose"),
        (lambda b: b.query(-1), "test id -1", "from 0 to 499", "choose"),
        (lambda b: b.query(0, 0), "k = 0", "from 1 to 4500", "larger"),
        (lambda b: b.query(0, 4501), "k = 4501", "from 1 to 4500", "smaller"),
        (lambda b: b.query(0, 3, "cat"), "'cat'", "label, predicted or a class (0, 1", "choose"),
        (lambda b: b.query(0, 3, "10"), "'10'", "0, 1, 2, 3, 4, 5, 6, 7, 8, 9", "choose"),
        (lambda b: b.query(0, 3, "-1"), "'-1'", "a class", "choose"),
        (lambda b: b.query(0, 3, ""), "''", "a class", "choose"),
        (lambda b: b.query_group([]), "an empty group", "at least one", "choose"),
        (lambda b: b.query_group([0, 500]), "test id 500", "from 0 to 499", "choose"),
        (lambda b: b.query_group([0], 4501), "k = 4501", "from 1 to 4500", "smaller"),
        (lambda b: b.image("train", 4500), "train image 4500", "from 0 to 4499", "choose"),
        (lambda b: b.image("test", -1), "test image -1", "from 0 to 499", "choose"),
        (lambda b: b.image("both", 0), "'both'", "train, test", "choose"),
    ],
)
def test_a_question_out_of_range_is_a_users_mistake(opened, ask, found, wanted, next_step):
    with pytest.raises(UserError) as told:
        ask(opened)
    assert found in told.value.found
    assert wanted in told.value.wanted
    assert next_step in told.value.next_step


@pytest.mark.parametrize("name", ["0123456789ab", "", "..", "../run", "ABCDEF012345"])
def test_an_unknown_build_is_told_with_the_known_ones(tiny, name):
    with pytest.raises(UserError) as told:
        Engine(tiny.cache).open(name)
    assert repr(name) in told.value.found and str(tiny.cache) in told.value.found
    assert tiny.build in told.value.wanted
    assert "list" in told.value.next_step


# Builds of other kinds, from the tiny one's networks.


def tiny_spec(tiny: Tiny) -> BuildSpec:
    return Engine(tiny.cache).open(tiny.build).spec


@pytest.mark.parametrize(
    ("change", "noise"),
    [
        ({"estimator": EstimatorSpec(name="graddot")}, "2 independently trained networks"),
        ({"estimator": EstimatorSpec(name="gradcos", q_power=1)}, "2 independently trained"),
        ({"strategy": "naive", "masks": 0}, "2 independently trained networks"),
        ({"models": 1}, "2 dropout masks of one network only"),
        ({"models": 1, "masks": 1}, "a single member"),
        ({"models": 1, "strategy": "naive", "masks": 0}, "a single member"),
        ({"features": FeatureSpec(basis="random", ka=8, kg=4)}, "2 independently trained"),
    ],
    ids=["graddot", "gradcos", "naive", "one network", "one member", "one naive", "random basis"],
)
def test_every_kind_of_build_answers_by_its_formula_and_names_its_noise(tiny, copy, change, noise):
    before = files(copy, ("run", "pixels", "data"))
    engine = Engine(copy)
    build = engine.open(engine.build(replace(tiny_spec(tiny), **change))["build"])
    assert build.id != tiny.build
    assert files(copy, ("run", "pixels", "data")) == before  # the networks were there
    tests = np.arange(0, 500, 50)
    assert dense.off(build.scores()[tests], dense_scores(build, tests)) < 1e-5
    answer = build.query(7, 25, "label")
    scores_MN = member_scores(build, stored_query(build, 7, build.test_labels_T[7]))
    assert len(scores_MN) == build.summary["members"]
    assert_hits(build, answer.proponents, scores_MN, 1)
    assert_hits(build, answer.opponents, scores_MN, -1)
    assert noise in answer.noise
    assert ("masks" in answer.noise) == (build.summary["models"] == 1 < len(scores_MN))
    assert set(build.mislabels().index) == set(range(4500))


def test_with_one_network_the_error_bar_is_between_its_masks(tiny, copy):
    engine = Engine(copy)
    spec = replace(tiny_spec(tiny), models=1, masks=5)
    build = engine.open(engine.build(spec)["build"])
    scores_MN = member_scores(build, stored_query(build, 2, build.test_labels_T[2]))
    for h in build.query(2, 15, "label").proponents:
        between = scores_MN[:, h.train_id].std(ddof=1) / np.sqrt(5)
        assert h.stderr == pytest.approx(between / build.index.manifest["spread"], rel=1e-3)


def test_another_estimator_leaves_runs_and_features_as_they_are(tiny, copy):
    before = files(copy)
    summary = Engine(copy).build(replace(tiny_spec(tiny), estimator=EstimatorSpec(damping=1.0)))
    after = files(copy)
    assert {k: after[k] for k in before} == before
    added = {k.split("/")[0] for k in after.keys() - before.keys()}
    assert added == {"index", "votes", "build"}
    assert summary["build"] != tiny.build


# Artifacts: made once, and again where missing.


def test_a_second_identical_build_changes_nothing(tiny, copy):
    before = files(copy)
    engine, said = Engine(copy), []
    assert engine.finished(tiny_spec(tiny))
    summary = engine.build(tiny_spec(tiny), lambda stage, done, total: said.append(stage))
    assert files(copy) == before
    assert set(said) <= {"data"}
    listed = summary | {"name": "", "note": ""}
    assert [listed] == engine.builds() == Engine(tiny.cache).builds()


@pytest.mark.parametrize("kind", ["pixels", "data", "run", "features", "index", "build", "file"])
def test_a_missing_part_is_made_again_bit_by_bit(tiny, opened, copy, kind):
    before, wanted = contents(copy), files(copy)
    if kind == "file":  # one file of an artifact is enough
        gone = next(copy.glob("features/*/test_phi.npy"))
        gone.unlink()
        gone = gone.parent
    else:
        gone = sorted((copy / kind).glob("[0-9a-f]*"))[0]
        shutil.rmtree(gone)
    engine = Engine(copy)
    assert engine.finished(tiny_spec(tiny)) == (kind in ("pixels", "data"))  # asking makes these
    assert engine.build(tiny_spec(tiny))["build"] == tiny.build
    assert contents(copy) == before
    name = gone.relative_to(copy).as_posix()
    after = files(copy)
    assert {k: v for k, v in after.items() if not k.startswith(name)} == {
        k: v for k, v in wanted.items() if not k.startswith(name)
    }
    build = Engine(copy).open(tiny.build)
    assert build.query(11, 20) == opened.query(11, 20)
    use(copy, tiny.build)


def use(cache: Path, build_id: str) -> None:
    """Everything that a finished build can be asked."""
    build = Engine(cache).open(build_id)
    test = int(wrong_tests(build)[0])
    taken = {build.test_labels_T[test], build.predicted_T[test]}
    build.query(test, 5)
    build.query(test, 5, next(str(c) for c in range(10) if c not in taken))
    build.mislabels()
    build.known()
    build.scores()


READ = {
    "pixels": ["train_images", "train_labels", "test_images", "test_labels", "classes"],
    "data": ["train_labels"],
    "run": ["weights.safetensors", "belief"],
    "sites": ["directions.safetensors"],
    "features": ["train_phi", "test_phi"],
    "index": [
        "rows.faiss", "queries", "projectors", "self_influence", "q", "query_tests",
        "query_targets",
    ],
    "build": ["test_probs"],
}  # fmt: skip


@pytest.mark.parametrize("kind", READ)
def test_a_flipped_byte_of_a_file_that_is_read_is_named_with_the_way_to_mend_it(tiny, copy, kind):
    use(copy, tiny.build)
    folder = sorted((copy / kind).glob("[0-9a-f]*"))[-1]
    manifest = ["manifest.json"] if kind not in ("pixels", "data") else []  # those mend themselves
    for name in READ[kind] + manifest:
        path = folder / (name if "." in name else f"{name}.npy")
        content = path.read_bytes()
        at = len(content) * 2 // 3
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(UserError) as told:
            use(copy, tiny.build)
        assert str(path) in told.value.found
        assert "manifest" in told.value.wanted
        assert "remove that folder and run the same `build` again" in told.value.next_step
        path.write_bytes(content)
    use(copy, tiny.build)


def test_a_data_set_without_a_readable_manifest_is_made_again_at_once(tiny, copy):
    before = contents(copy)
    for path in (*copy.glob("data/*/manifest.json"), *copy.glob("pixels/*/manifest.json")):
        path.write_bytes(path.read_bytes()[:-9])
    use(copy, tiny.build)
    assert contents(copy) == before


@pytest.mark.parametrize("kind", ["run", "sites", "features", "index"])
def test_a_build_without_one_of_its_parts_says_so(tiny, copy, kind):
    shutil.rmtree(sorted((copy / kind).glob("[0-9a-f]*"))[0])
    with pytest.raises(UserError) as told:
        use(copy, tiny.build)
    assert kind in told.value.found
    assert told.value.wanted
    assert "run the same `build` again" in told.value.next_step


# Kills.

KILLED = replace(SMALL, masks=4, epochs=3, index_dims=1024)
OPTIONS = (
    "--noise 0.1 --width 0.1 --models 2 --masks 4 --epochs 3 --dims 6x2 --index-dims 1024"
).split()
BOUND = 600  # seconds; each stage takes about one where nothing else runs


def finished(cache: Path, kind: str) -> int:
    return len(list(cache.glob(f"{kind}/[0-9a-f]*/manifest.json")))


STAGES: Mapping[str, Callable[[Path], bool]] = {
    "a network is trained": lambda cache: finished(cache, "run") >= 1,
    "some features are there": lambda cache: finished(cache, "features") >= 3,
    "the index is being made": lambda cache: any(cache.glob("index/.*-*")),
}


def kill_when(reached: Callable[[Path], bool], cache: Path) -> None:
    """Start a build and kill it as soon as its cache shows the stage."""
    command = [sys.executable, "-m", "attribution", "build", *OPTIONS, "--cache", str(cache)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[1],
    )
    try:
        end = time.monotonic() + BOUND
        while not reached(cache):
            assert process.poll() is None and time.monotonic() < end, "the stage never came"
            time.sleep(0.001)
    finally:
        process.kill()
    assert process.wait() == -9


def undisturbed(root: Path) -> tuple[str, dict[str, str]]:
    made = Engine(root).build(KILLED)["build"]
    return made, contents(root)


def test_a_build_killed_at_every_stage_resumes_and_ends_as_an_undisturbed_one(tmp_path):
    cache, kept = tmp_path / "killed", {}
    for reached in STAGES.values():
        kill_when(reached, cache)
        now = files(cache)
        assert {k: now[k] for k in kept} == kept  # nothing finished was made a second time
        assert len(now) > len(kept)
        kept = now
        assert Engine(cache).builds() == []
    assert finished(cache, "index") == 0
    ended = Engine(cache).build(KILLED)["build"]
    after = files(cache)
    assert {k: after[k] for k in kept} == kept
    assert (ended, contents(cache)) == undisturbed(tmp_path / "undisturbed")
    assert not list(cache.glob("index/.*"))  # what the kill left is gone


def test_a_build_killed_when_all_but_the_votes_is_there_makes_them_when_it_is_asked_for(tiny, copy):
    before = contents(copy)
    shutil.rmtree(copy / "votes")
    assert Engine(copy).build(tiny_spec(tiny))["build"] == tiny.build
    assert contents(copy) == before


# Shards.


@pytest.fixture(scope="module")
def sharded(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The tiny build with its training examples in three shards, the last one short."""
    root = tmp_path_factory.mktemp("shards") / "cache"
    copied(tiny, root)
    for kind in ("build", "index", "features", "votes"):
        shutil.rmtree(root / kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "SHARD", 2000)
        made = Engine(root).build(tiny_spec(tiny))["build"]
    return Engine(root).open(made)


def test_features_in_shards_are_those_of_one_shard_side_by_side(opened, sharded):
    names, whole = sharded.parts["features"], opened.parts["features"]
    assert len(names) == 3 * len(whole) and not set(names) & set(whole)
    phi, margin = blocks_of(sharded, "train"), [
        np.load(part(sharded, "features", name) / "train_margin.npy") for name in names
    ]  # fmt: skip
    assert [len(some) for some in phi] == [2000, 2000, 500] * len(whole)
    for m, wanted in enumerate(blocks_of(opened, "train")):
        assert dense.off(np.concatenate(phi[3 * m : 3 * m + 3]), wanted) < HALF
        found = np.concatenate(margin[3 * m : 3 * m + 3])
        np.testing.assert_allclose(found, margins_of(opened)[m], rtol=1e-4, atol=1e-4)
    with_tests = [(part(sharded, "features", name) / "test_phi.npy").exists() for name in names]
    assert with_tests == [True, False, False] * len(whole)


def test_answers_of_a_build_in_shards_are_those_of_one_shard(opened, sharded):
    assert dense.off(sharded.scores(), opened.scores()) < HALF
    subsets_SN = np.random.default_rng(0).random((5, 4500)) < 0.5
    assert dense.off(sharded.sums(subsets_SN), opened.sums(subsets_SN)) < HALF
    assert dense.off(sharded.q_N, opened.q_N) < 1e-4
    wrong = int(wrong_tests(opened)[0])
    for target in ("label", "predicted", "3"):
        found, wanted = (b.query(wrong, 20, target) for b in (sharded, opened))
        score_of = {h.train_id: h for h in wanted.proponents}
        shared = [h for h in found.proponents if h.train_id in score_of]
        assert len(shared) >= 19  # two may be as strong as each other
        for hit in shared:
            other = score_of[hit.train_id]
            assert hit.score == pytest.approx(other.score, rel=2e-2)
            assert hit.stderr == pytest.approx(other.stderr, rel=0.1)
    pair = [b.exact(wrong, int(b.predicted_T[wrong])) for b in (sharded, opened)]
    assert dense.off(*pair) < HALF
    seen, alike = (b.evidence() for b in (sharded, opened))
    np.testing.assert_allclose(seen.disagreement_N, alike.disagreement_N, rtol=1e-3, atol=1e-5)


def test_scores_of_some_tests_after_the_others_are_all_scores(sharded, monkeypatch):
    wanted = sharded.scores()
    monkeypatch.setattr(build_module, "TOGETHER", 8 * 4500 * 130)
    parts = list(sharded.score_blocks())
    assert [len(some) for some in parts] == [130, 130, 130, 110]
    assert dense.off(np.concatenate(parts), wanted) < 1e-5


def test_a_shard_is_made_again_alone_and_bit_by_bit(tiny, sharded, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "SHARD", 2000)
    root = shutil.copytree(sharded.store.root, tmp_path / "cache")
    before = contents(root)
    shutil.rmtree(root / "features" / sharded.parts["features"][4])
    assert not Engine(root).finished(tiny_spec(tiny))
    Engine(root).build(tiny_spec(tiny))
    assert contents(root) == before


def test_a_disk_that_is_too_small_for_the_features_refuses_before_any_is_made(
    tiny, tmp_path, monkeypatch
):
    root = copied(tiny, tmp_path / "cache")
    for kind in ("build", "index", "features"):
        shutil.rmtree(root / kind)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10**9, 10**9, 10**6))
    with pytest.raises(UserError, match="free on the disk"):
        Engine(root).build(tiny_spec(tiny))
    assert not (root / "features").exists()


# Labels before noise.


def test_only_the_scores_of_scores_read_the_labels_before_noise(tiny, opened, copy):
    (path,) = copy.glob("pixels/*/train_labels.npy")
    path.write_bytes(path.read_bytes()[::-1])
    for kind in ("build", "index", "features", "sites", "run"):
        shutil.rmtree(copy / kind)
    engine = Engine(copy)
    assert engine.build(tiny_spec(tiny))["build"] == tiny.build  # all of it, from given labels
    build = engine.open(tiny.build)
    assert build.query(5, 9) == opened.query(5, 9)
    assert build.mislabels().equals(opened.mislabels())
    np.testing.assert_array_equal(build.scores(), opened.scores())
    with pytest.raises(UserError, match="train_labels.npy is damaged"):
        build.known()


def test_known_is_scikit_learns_on_the_flips(tiny, opened):
    (path,) = tiny.cache.glob("pixels/*/train_labels.npy")
    flipped_N = np.load(path) != opened.train_labels_N
    assert flipped_N.sum() == 450
    frame = opened.mislabels()
    assert frame["score"].is_monotonic_decreasing
    found = opened.known()
    wrong_ranked = flipped_N[frame.index]
    assert found["ap"] == pytest.approx(average_precision_score(wrong_ranked, frame["score"]))
    assert found["auc"] == pytest.approx(roc_auc_score(wrong_ranked, frame["score"]))
    assert found["precision_at_k"] == {
        str(k): pytest.approx(wrong_ranked[:k].mean()) for k in (50, 100, 200, 450)
    }
    assert found["ap"] > 0.5  # chance is 0.1


def test_where_nothing_was_flipped_nothing_is_known(tmp_path):
    engine = Engine(tmp_path / "cache")
    spec = replace(SMALL, data=DataSpec(), models=1, masks=1)
    assert engine.open(engine.build(spec)["build"]).known() is None


# Specs that make no sense.


def bad_specs() -> Iterator[tuple[str, BuildSpec, str, str]]:
    """What is wrong, and words of what is wanted and of the next step."""
    numbers: list[tuple[str, str, list[float], type]] = [
        ("--models", "models", [0, -3, 1001], int),
        ("--masks", "masks", [0, -1, 10_001], int),
        ("--epochs", "epochs", [0, 100_001], int),
        ("--width", "width", [0, -1, 101, float("nan")], float),
        ("--dropout", "p", [0, -0.1, 1, 1.5, float("nan")], float),
        ("--index-dims", "index_dims", [0, -8, 10**7], int),
        ("--seed", "seed", [-1, 10**10], int),
    ]
    for option, field, values, kind in numbers:
        for value in values:
            yield f"{option} {value:g}", replace(SMALL, **{field: kind(value)}), "from", option
    for damping in (-1, float("nan"), float("inf")):
        changed = replace(SMALL, estimator=EstimatorSpec(damping=damping))
        yield f"--damping {damping:g}", changed, "from 0 to", "--damping"
    for power in (-0.1, 11):
        changed = replace(SMALL, estimator=EstimatorSpec(q_power=power))
        yield f"--q-power {power:g}", changed, "from 0 to 10", "--q-power"
    for dims in ((0, 4), (4, 0), (10**7, 10**7)):
        changed = replace(SMALL, features=FeatureSpec(ka=dims[0], kg=dims[1]))
        yield f"--dims {min(dims):g}", changed, "from 1 to", "--dims"
    for noise in (1, -0.1, 7, float("nan")):
        changed = replace(SMALL, data=DataSpec(noise=noise))
        yield f"label noise of {noise:g}", changed, "at least 0 and below 1", "--noise"
    for decay in (-0.1, float("inf")):
        yield f"--weight-decay {decay:g}", replace(SMALL, decay=decay), "0 to", "--weight-decay"
    changed = replace(SMALL, schedule="cosine")
    yield "unknown schedule 'cosine'", changed, "constant, linear", "--schedule"
    changed = replace(SMALL, data=DataSpec(noise=0.1, noise_seed=-1))
    yield "--noise-seed -1", changed, "from 0 to", "--noise-seed"
    changed = replace(SMALL, data=DataSpec(name="mnist"))
    yield "unknown data set 'mnist'", changed, "mnist5k", "--data"
    changed = replace(SMALL, data=DataSpec(noise=0.1, noise_kind="loud"))
    yield "unknown kind of noise 'loud'", changed, "uniform, class", "--noise-kind"
    yield "unknown network 'mpl'", replace(SMALL, model="mpl"), "mlp, cnn, resnet9", "--model"
    changed = replace(SMALL, model="timm:resnet999")
    yield "'resnet999'", changed, "resnet", "--model"
    changed = replace(SMALL, model="no/such/file.py:net")
    yield "no file no/such/file.py", changed, "FILE.py:FUNCTION", "--model"
    yield "unknown strategy 'lora2'", replace(SMALL, strategy="lora2"), "dropout", "--strategy"
    changed = replace(SMALL, estimator=EstimatorSpec(name="shapley"))
    yield "unknown estimator 'shapley'", changed, "trak, graddot, gradcos", "--estimator"
    changed = replace(SMALL, features=FeatureSpec(precision="float8"))
    yield "unknown precision 'float8'", changed, "float32, bfloat16", "--precision"
    changed = replace(SMALL, features=FeatureSpec(basis="yours"))
    yield "unknown basis 'yours'", changed, "own, random", "--basis"


@pytest.mark.parametrize(
    ("found", "spec", "wanted", "next_step"),
    [pytest.param(*case, id=case[0]) for case in bad_specs()],
)
def test_a_spec_that_makes_no_sense_is_refused_before_anything_is_written(
    tmp_path, found, spec, wanted, next_step
):
    engine = Engine(tmp_path / "cache")
    for act in (engine.build, engine.finished):
        with pytest.raises(UserError) as told:
            act(spec)
        assert found in told.value.found
        assert wanted in told.value.wanted
        assert next_step in told.value.next_step
    assert list(tmp_path.iterdir()) == []


def test_masks_and_dropout_do_not_matter_to_a_naive_build(tiny, copy):
    engine = Engine(copy)
    spec = replace(tiny_spec(tiny), strategy="naive", masks=0, p=0.0)
    assert engine.build(spec)["members"] == 2


def test_the_newest_build_is_the_one_that_was_asked_for(tmp_path):
    engine = Engine(tmp_path / "cache")
    assert engine.newest() == ""
    mine = engine.build(SMALL)["build"]
    other = engine.build(replace(SMALL, masks=1), beside=mine)["build"]
    assert other != mine and engine.newest() == mine
    last = engine.build(replace(SMALL, masks=3))["build"]
    assert engine.newest() == last
    for name in (mine, last):
        shutil.rmtree(tmp_path / "cache" / "build" / name)
    assert Engine(tmp_path / "cache").newest() == other  # there is no other
