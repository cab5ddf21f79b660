"""Networks that people bring: their weights, their training, their preprocessing; against networks
made and run by hand."""

import json
import os
import pickle
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from attribution.build import Build
from attribution.engine import Engine
from attribution.folds import FIRST_SEED as FOLD_SEED
from attribution.folds import fold_of
from attribution.making import examples
from attribution.models import inputs, network
from attribution.records import (
    BuildSpec,
    Checkpoint,
    DataSpec,
    EstimatorSpec,
    FeatureSpec,
    UserError,
)
from attribution.stored import load_network
from attribution.truth import FIRST_SEED
from attribution.weights import kept, read, unwrapped
from pages.parts.asked import views

SMALL = BuildSpec(
    data=DataSpec(noise=0.1),
    width=0.1,
    models=2,
    masks=2,
    epochs=1,
    features=FeatureSpec(ka=6, kg=2),
    estimator=EstimatorSpec(q="members", q_power=0.5),
    index_dims=24,
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    root = tmp_path_factory.mktemp("brought")
    return Engine(root / "cache", root)


@pytest.fixture(scope="module")
def trained(engine: Engine) -> Build:
    return engine.open(engine.build(SMALL)["build"])


def states(build: Build) -> list[dict[str, torch.Tensor]]:
    return [build.store.find("run", run).weights() for run in build._networks]


@pytest.fixture(scope="module")
def files(trained: Build, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The weights of the trained build, each in a file of its own kind."""
    folder = tmp_path_factory.mktemp("files")
    one, two = states(trained)
    save_file(one, folder / "one.safetensors")
    wrapped = {f"module.{name}": value for name, value in two.items()}
    torch.save({"epoch": 3, "state_dict": wrapped}, folder / "two.pt")
    return [str(folder / "one.safetensors"), str(folder / "two.pt")]


@pytest.fixture(scope="module")
def given(engine: Engine, files: list[str]) -> Build:
    return engine.open(engine.build(engine.brought(SMALL, files, "", False))["build"])


# Weights that are final.


def test_given_weights_say_what_the_networks_that_they_came_from_say(trained, given):
    assert given.id != trained.id
    np.testing.assert_allclose(given.probs_TC, trained.probs_TC, atol=1e-6)
    assert given.summary["accuracy"] == trained.summary["accuracy"]
    assert given.summary["flops"]["train"] == 0
    assert given.summary["ensemble"] == "2 given networks × 2 masks"
    np.testing.assert_allclose(given.scores(), trained.scores(), rtol=1e-3, atol=1e-6)


def test_a_build_does_not_depend_on_the_file_it_was_given(engine, files, given, tmp_path):
    moved = [str(shutil.copy(file, tmp_path / f"{i}{Path(file).suffix}")) for i, file in
             enumerate(files)]  # fmt: skip
    spec = engine.brought(SMALL, moved, "", False)
    assert engine.finished(spec) and engine.build(spec)["build"] == given.id
    for file in moved:
        Path(file).unlink()
    again = Engine(engine.cache, engine.workspace)
    by_id = again.brought(SMALL, list(spec.weights), "", False)
    assert by_id == spec and again.finished(by_id)
    opened = again.open(given.id)
    target = (int(opened.predicted_T[3]) + 1) % 10  # nobody asked yet, so the network runs
    other = target if target != opened.test_labels_T[3] else (target + 1) % 10
    assert len(opened.query(3, 5, opened.classes[other]).proponents) == 5


def test_the_id_of_weights_follows_from_their_content(engine, files, trained, tmp_path):
    one, two = states(trained)
    ids = [kept(engine.store, file, "--checkpoint") for file in files]
    torch.save(one, tmp_path / "plain.bin")
    torch.save({"model": {"state_dict": one}}, tmp_path / "nested.pth")
    for name in ("plain.bin", "nested.pth"):
        assert kept(engine.store, str(tmp_path / name), "--checkpoint") == ids[0]
    two["1.bias"] = two["1.bias"].clone()
    two["1.bias"][0] += 1e-3
    torch.save(two, tmp_path / "other.pt")
    assert kept(engine.store, str(tmp_path / "other.pt"), "--checkpoint") not in ids


@pytest.mark.parametrize("first", ["", "module.", "_orig_mod.module.", "model.net."])
def test_what_wrappers_put_before_a_name_is_taken_off(first):
    found = unwrapped({f"{first}{n}": torch.ones(1) for n in ("a.b", "c.d")}, ["a.b", "c.d"])
    assert set(found) == {"a.b", "c.d"}
    kept_as_it_is = unwrapped({"x.y": torch.ones(1), "z": torch.ones(1)}, ["a.b"])
    assert set(kept_as_it_is) == {"x.y", "z"}


class Anything:
    pass


def test_what_holds_no_weights_is_a_sentence(tmp_path, trained):
    state = states(trained)[0]
    broken = {**state, "1.weight": state["1.weight"] * torch.inf}
    (tmp_path / "folder").mkdir()
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"a": Anything()}))
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "whole.pt")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(broken, tmp_path / "broken.pt")
    sparse = {"w": torch.eye(3).to_sparse()}
    torch.save(sparse, tmp_path / "sparse.pt")
    torch.save({"w": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "wide.pt")
    torch.save({"w": torch.full((2,), torch.nan, dtype=torch.complex64)}, tmp_path / "complex.pt")
    torch.save({f"w{n}": state["1.weight"] for n in range(99)}, tmp_path / "tied.pt")
    torch.save({"a\n<b>": torch.full((2,), torch.nan)}, tmp_path / "name.pt")
    torch.save({"\ud800": torch.ones(2)}, tmp_path / "half.pt")
    plain = zipfile.ZipFile(tmp_path / "broken.pt")
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in plain.namelist():
            bomb.writestr(name, bytes(len(plain.read(name))))
    says = {
        "missing.pt": "is no file", "folder": "is a folder", "bad.safetensors": "safetensors",
        "text.pt": "cannot be read", "empty.pt": "cannot be read", "pickle.pt": "may run code",
        "whole.pt": "may run code", "none.pt": "no tensors", "list.pt": "list", "broken.pt":
        "1.weight that are not finite", "sparse.pt": "cannot be read", "wide.pt":
        "tensors of 4,000,000,000,000 bytes", "complex.pt": "no plain tensor", "tied.pt":
        "tensors of", "name.pt": "the name a\\n<b>", "half.pt":
        "the name \\ud800", "bomb.pt": "is compressed",
    }  # fmt: skip
    for name, found in says.items():
        with pytest.raises(UserError) as told:
            read(tmp_path / name, "--checkpoint")
        assert found in told.value.found, (name, told.value.found)
        assert name in told.value.found and "\n" not in str(told.value)
        assert "--checkpoint" in told.value.next_step


class Evil:
    """What would leave a trace, if it were unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.trace),)


def test_what_would_run_code_is_refused_and_does_not(tmp_path):
    trace = tmp_path / "trace"
    torch.save({"w": torch.ones(2), "more": Evil(trace)}, tmp_path / "new.pt")
    old = {"_use_new_zipfile_serialization": False}
    torch.save({"w": Evil(trace)}, tmp_path / "old.pt", **old)
    (tmp_path / "bare.pt").write_bytes(pickle.dumps({"w": Evil(trace)}))
    (tmp_path / "named.safetensors").write_bytes(pickle.dumps({"w": Evil(trace)}))
    for path in tmp_path.iterdir():
        with pytest.raises(UserError):
            read(path, "--checkpoint")
    assert not trace.exists()
    pickle.loads((tmp_path / "bare.pt").read_bytes())
    assert trace.exists()  # so that it would have been seen


@pytest.mark.parametrize("size", [2**64 - 1, 2**63, 10**8 + 1, 10**7, 0])
def test_a_header_of_weights_that_says_more_than_there_is_is_refused(tmp_path, size):
    path = tmp_path / "long.safetensors"
    path.write_bytes(size.to_bytes(8, "little") + b'{"w": {}}')
    with pytest.raises(UserError, match="no readable safetensors"):
        read(path, "--checkpoint")


@pytest.mark.parametrize("shape", [(0, 2**63 - 1, 2**63 - 1), (0, 4, 2**64 - 1), (0, 2**40)])
def test_a_tensor_of_nothing_whose_other_dimensions_are_huge_is_refused(tmp_path, shape):
    path = tmp_path / "wide.safetensors"
    of = {"dtype": "F64", "shape": shape, "data_offsets": [0, 0]}
    header = json.dumps({"1.bias": of}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="no readable safetensors|tensors of [0-9,]* bytes"):
        read(path, "--checkpoint")


def test_weights_of_another_network_are_named(engine, trained, tmp_path):
    state = states(trained)[0]
    odd = {**state, "1.weight": torch.ones(13, 700), "more": torch.ones(1)}
    del odd["4.bias"]
    torch.save(odd, tmp_path / "odd.pt")
    spec = engine.brought(replace(SMALL, models=1), [str(tmp_path / "odd.pt")], "", False)
    with pytest.raises(UserError) as told:
        engine.build(spec)
    assert "odd.pt" in told.value.found
    assert "missing 4.bias; unexpected more; of another shape 1.weight (13, 700) for (13, 784)" in (
        told.value.found
    )
    many = {f"layer{i}.weight": torch.ones(1) for i in range(9)}
    torch.save(many, tmp_path / "many.pt")
    spec = engine.brought(replace(SMALL, models=1), [str(tmp_path / "many.pt")], "", False)
    with pytest.raises(UserError, match="layer0.weight, layer1.weight, layer2.weight and 6 more"):
        engine.build(spec)


def test_weights_in_half_precision_work(engine, files, given, tmp_path):
    halves = []
    for i, file in enumerate(files):
        half = {n: v.half() for n, v in read(Path(file), "").items()}
        torch.save(half, tmp_path / f"{i}.pt")
        halves.append(str(tmp_path / f"{i}.pt"))
    found = engine.open(engine.build(engine.brought(SMALL, halves, "", False))["build"])
    assert found.id != given.id
    np.testing.assert_allclose(found.probs_TC, given.probs_TC, atol=1e-2)


def test_what_makes_no_sense_of_given_weights_is_a_sentence(engine, files):
    spec = engine.brought(SMALL, files, "", False)
    for wrong, found in [
        (replace(spec, models=3), "3 networks with weights of 2"),
        (replace(spec, weights=spec.weights[:1] * 2), "given twice"),
        (replace(spec, strategy="snapshots", snapshots=2, masks=0, epochs=2), "--snapshots"),
        (replace(spec, estimator=EstimatorSpec(q="training")), "--q training"),
        (replace(SMALL, train="none"), "--train none without weights"),
        (replace(SMALL, train="some"), "'some'"),
        (replace(spec, weights=("0" * 12, "1" * 12)), "no weights '000000000000'"),
        (replace(SMALL, start="f" * 12), "no weights 'ffffffffffff'"),
    ]:
        with pytest.raises(UserError) as told:
            engine.build(wrong)
        assert found in told.value.found
    for words in [(files, files[0], False), (files, "", True), ((), files[0], True)]:
        with pytest.raises(UserError):
            engine.brought(SMALL, *words)


def test_labels_are_doubted_without_having_watched_the_training(given, trained):
    frame, theirs = given.mislabels(), trained.mislabels()
    assert "signal_training" not in frame and "signal_training" in theirs
    at = np.arange(len(frame))
    member_q = given.index.array("member_q")
    doubt = 1 - frame.sort_index().given_probability.to_numpy()
    np.testing.assert_allclose(doubt, member_q, atol=1e-5)
    probs = np.mean([
        load_network(given.store, given.spec, given.data, Checkpoint(run_id=run))(
            inputs("mlp", given.data, given.data.train.images)).softmax(1).detach().numpy()
        for run in given._networks
    ], 0)  # fmt: skip
    probs[at, given.train_labels_N] = -1
    assert (frame.sort_index().suggested_label.to_numpy() == probs.argmax(1)).mean() > 0.999
    assert given.known()["auc"] > 0.9
    with pytest.raises(UserError, match="nobody watched"):
        given.mislabels("training")


# Training again.


def test_given_networks_are_trained_again_by_our_recipe_and_it_is_said(engine, given, trained):
    assert "by our recipe" in given.retraining and "1 epochs" in given.retraining
    assert trained.retraining == ""
    mine, theirs = (engine.truth(b.id, 2, 1) for b in (given, trained))
    assert mine.id == theirs.id  # of the data and the recipe, whoever asks


def test_train_none_refuses_wherever_networks_would_be_trained_again(engine, files):
    spec = replace(engine.brought(SMALL, files, "", False), train="none")
    build = engine.open(engine.build(spec)["build"])
    assert "--train none" in build.retraining
    for act in (
        lambda: engine.truth(build.id, 2, 1),
        lambda: engine.folds(build.id),
        lambda: engine.verify(build.id, 0, [1, 2]),
        lambda: engine.study(build.id, 2, 1),
        lambda: engine.revise(build.id),
        lambda: engine.revised_spec(build.id, "0" * 12),
    ):
        with pytest.raises(UserError, match="made with --train none"):
            act()


OWN = """
import torch
from torch.nn.functional import cross_entropy

def fit(network, x, y, seed, after_epoch):
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    for epoch in range(2):
        draw = torch.Generator().manual_seed(seed)
        for rows in torch.randperm(len(x), generator=draw).split(500):
            optimiser.zero_grad()
            cross_entropy(network(x[rows]), y[rows]).backward()
            optimiser.step()
        after_epoch(network)

def quiet(network, x, y, seed):
    fit(network, x, y, seed, lambda network: None)
    return network
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("own") / "training.py"
    file.write_text(OWN)
    return str(file)


def by_hand(build: Build, seed: int, rows: np.ndarray, own: str) -> nn.Module:
    """The network of a seed, trained by the file's own function on some rows."""
    names: dict = {}
    exec(Path(own).read_text(), names)
    made = network("mlp", build.data, SMALL.width, seed)
    whole = examples(build.spec, build.data, build.data.train)
    torch.manual_seed(seed)
    made.train()
    names["quiet"](made, whole.x_N[rows], whole.target_N[rows], seed)
    return made.eval()


def test_their_own_training_trains_the_networks_and_trains_them_again(engine, own):
    spec = replace(SMALL, models=1, train=f"{own}:fit")
    build = engine.open(engine.build(spec)["build"])
    count = len(build.train_labels_N)
    test = examples(build.spec, build.data, build.data.test)
    wanted = by_hand(build, 0, np.arange(count), own)(test.x_N).softmax(1).detach()
    np.testing.assert_allclose(build.probs_TC, wanted, atol=1e-5)
    assert "signal_training" in build.mislabels()  # it called after_epoch
    truth = engine.truth(build.id, 2, 1)
    made = by_hand(build, FIRST_SEED, np.flatnonzero(truth.subsets_SN[0]), own)(test.x_N)
    others = made.scatter(1, test.target_N[:, None], -torch.inf).logsumexp(1)
    margin = (made.gather(1, test.target_N[:, None])[:, 0] - others).detach()
    np.testing.assert_allclose(truth.margins_SRT[0, 0], margin, rtol=1e-3, atol=1e-3)
    removed = list(range(40))
    found = engine.verify(build.id, 3, removed, seeds=1)
    assert found["before"] != found["after"]
    assert build.retraining == ""


def test_their_own_training_need_not_tell_what_it_believes(engine, own):
    spec = replace(SMALL, models=1, train=f"{own}:quiet")
    build = engine.open(engine.build(spec)["build"])
    assert "signal_training" not in build.mislabels()
    engine.folds(build.id)
    fold_N = fold_of(build.train_labels_N, build.folds_spec)
    belief_NC = build.evidence().unseen_NC
    most = max((fold_N == k).sum() for k in range(5))
    seen = np.flatnonzero(fold_N != 1)[: len(fold_N) - most]
    whole = examples(build.spec, build.data, build.data.train)
    made = by_hand(build, FOLD_SEED + 1, seen, own)
    wanted = made(whole.x_N[fold_N == 1]).softmax(1).detach().numpy()
    np.testing.assert_allclose(belief_NC[fold_N == 1], wanted, atol=1e-5)
    with pytest.raises(UserError, match="said nothing on the way"):
        engine.build(replace(spec, estimator=EstimatorSpec(q="training")))


def test_an_edited_file_is_refused_until_it_is_built_again(engine, own, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(OWN)
    spec = replace(SMALL, models=1, train=f"{mine}:quiet")
    build = engine.open(engine.build(spec)["build"])
    mine.write_text(OWN.replace("1e-3", "2e-3"))
    with pytest.raises(UserError, match="edited since the build"):
        engine.truth(build.id, 2, 1)
    assert engine.build(spec)["build"] != build.id


WRONG = {
    "raises": ("def fit(network, x, y, seed): raise ValueError('no\\nmore')", "ValueError: no"),
    "another network": (
        "from torch import nn\ndef fit(network, x, y, seed): return nn.Linear(3, 2)",
        "is not the network",
    ),
    "no network": ("def fit(network, x, y, seed): return 3", "returned int"),
    "diverges": (
        "import torch\ndef fit(network, x, y, seed):\n"
        "    with torch.no_grad():\n"
        "        for p in network.parameters(): p.fill_(float('nan'))",
        "not finite",
    ),
    "wants other arguments": ("def fit(network): pass", "TypeError"),
    "no function": ("other = 3", "AttributeError"),
}


@pytest.mark.parametrize("what", WRONG)
def test_their_own_training_that_goes_wrong_is_a_sentence(engine, tmp_path, what):
    source, found = WRONG[what]
    file = tmp_path / "wrong.py"
    file.write_text(source)
    with pytest.raises(UserError) as told:
        engine.build(replace(SMALL, models=1, train=f"{file}:fit"))
    assert found in told.value.found and "wrong.py" in told.value.found
    assert "--train" in told.value.next_step and "\n" not in str(told.value)


# Weights to start from.


def test_a_start_is_where_training_starts(engine, trained, files):
    still = replace(SMALL, models=1, rate=1e-9, epochs=1)
    spec = engine.brought(still, (), files[0], False)
    build = engine.open(engine.build(spec)["build"])
    (found,) = states(build)
    for name, value in states(trained)[0].items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)
    assert build.summary["fresh"] == [] and "signal_training" in build.mislabels()
    assert build.recipe.start == spec.start and build.retraining == ""


def test_a_head_of_other_classes_is_replaced_and_said(engine, trained, tmp_path):
    state = states(trained)[0]
    state["7.weight"], state["7.bias"] = torch.randn(37, 6), torch.randn(37)
    torch.save(state, tmp_path / "classes.pt")
    still = replace(SMALL, models=1, rate=1e-9, epochs=1)
    build = engine.build(engine.brought(still, (), str(tmp_path / "classes.pt"), False))
    assert build["fresh"] == ["7.bias", "7.weight"]
    (found,) = states(engine.open(build["build"]))
    torch.testing.assert_close(found["1.weight"], state["1.weight"], rtol=0, atol=1e-5)
    own_head = network("mlp", trained.data, SMALL.width, 0)[7].weight
    torch.testing.assert_close(found["7.weight"], own_head.detach(), rtol=0, atol=1e-5)
    del state["7.weight"], state["7.bias"]  # and one without a head, as feature extractors are
    torch.save(state, tmp_path / "headless.pt")
    spec = engine.brought(still, (), str(tmp_path / "headless.pt"), False)
    assert engine.build(spec)["fresh"] == ["7.bias", "7.weight"]
    with pytest.raises(UserError, match="missing 7.weight, 7.bias"):
        engine.build(engine.brought(still, [str(tmp_path / "headless.pt")], "", False))


def test_a_frozen_network_trains_its_last_layer_alone_and_is_attributed_by_it(engine, files):
    spec = engine.brought(replace(SMALL, models=1, freeze=True, epochs=2), (), files[0], False)
    build = engine.open(engine.build(spec)["build"])
    (found,) = states(build)
    before = read(Path(files[0]), "")
    for name, value in before.items():
        assert torch.equal(found[name], value) == (not name.startswith("7.")), name
    sites = build.store.find("sites", build.parts["sites"][0]).manifest["sites"]
    assert [s["name"] for s in sites] == ["7"]
    assert build.summary["coverage"] == 1
    assert engine.truth(build.id, 2, 1).margins_SRT.shape == (2, 1, 500)


def test_pretrained_weights_that_cannot_be_downloaded_are_a_sentence(engine, monkeypatch, tmp_path):
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError) as told:
        engine.brought(replace(SMALL, model="torchvision:shufflenet_v2_x0_5"), (), "", True)
    assert "no pretrained weights of torchvision:shufflenet_v2_x0_5" in told.value.found
    assert "--start" in told.value.next_step and "\n" not in str(told.value)
    with pytest.raises(UserError, match="pretrained weights no library knows"):
        engine.brought(SMALL, (), "", True)


def test_pretrained_weights_are_asked_for_once(engine, monkeypatch, tmp_path):
    import torchvision

    torch.manual_seed(0)
    theirs = torchvision.models.shufflenet_v2_x0_5(weights=None).state_dict()
    url = torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT.url
    place = tmp_path / "hub" / "checkpoints"
    place.mkdir(parents=True)
    torch.save(theirs, place / url.rpartition("/")[2])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    asked = replace(SMALL, model="torchvision:shufflenet_v2_x0_5", preprocess="library")
    spec = engine.brought(asked, (), "", True)
    shutil.rmtree(tmp_path / "hub")
    assert engine.brought(asked, (), "", True) == spec
    for name, value in engine.store.find("weights", spec.start).weights().items():
        assert torch.equal(value, theirs[name])


# Their own preprocessing.

PREPARED = """
import torch

def large(images):
    x = images[:, None].float() / 255
    return torch.nn.functional.interpolate(x, size=(32, 32)).expand(-1, 3, -1, -1)

def flat(images): return images.flatten(1).float()
def ints(images): return images[:, None]
def fewer(images): return images[1:, None].float()
def nothing(images): return None
def centred(images): return images[:, None].float() - images.float().mean()
def noisy(images): return images[:, None] + torch.rand(len(images), 1, 28, 28)
def endless(images): return images[:, None].float() / 0
"""


@pytest.fixture
def prepared(tmp_path) -> str:
    (tmp_path / "prepared.py").write_text(PREPARED)
    return str(tmp_path / "prepared.py")


def test_own_preprocessing_makes_what_the_network_sees(trained, prepared):
    images = trained.data.train.images[:300]
    found = inputs("cnn", trained.data, images, f"{prepared}:large")
    wanted = nn.functional.interpolate(torch.from_numpy(images)[:, None].float() / 255, (32, 32))
    assert found.shape == (300, 3, 32, 32)
    assert torch.equal(found[:, 1], wanted[:, 0])
    made = network("cnn", trained.data, 0.1, 0, f"{prepared}:large")
    assert made[0].in_channels == 3 and made(found[:5]).shape == (5, 10)


def test_a_build_with_own_preprocessing(engine, prepared, trained):
    file = Path(prepared).parent / "linear.py"
    file.write_text("from torch import nn\ndef made(): return nn.Linear(784, 10)\n")
    spec = replace(
        SMALL, model=f"{file}:made", models=1, masks=0, strategy="naive", train="",
        preprocess=f"{prepared}:flat",
    )  # fmt: skip
    build = engine.open(engine.build(replace(spec, rate=1e-6))["build"])
    weights = states(build)[0]
    x = trained.data.test.images.reshape(500, -1).astype(np.float32)
    logits = torch.from_numpy(x) @ weights["weight"].T + weights["bias"]
    np.testing.assert_allclose(build.probs_TC, logits.softmax(1), atol=1e-4)
    image = trained.data.test.images[3]  # rows of numbers are no picture to show
    np.testing.assert_array_equal(build.seen("test", 3), image)
    assert views(build, "test", 3)["about"][1] == (
        "28 × 28, grey: the image as it is; its input is what the preprocessing makes of it"
    )
    Path(prepared).write_text(PREPARED + "\n# edited")
    with pytest.raises(UserError, match="edited since the build"):
        load_network(build.store, build.spec, build.data, build.members[0].checkpoint)


@pytest.mark.parametrize(
    ("function", "found"),
    [
        ("ints", "torch.uint8 of shape (256, 1, 28, 28)"),
        ("fewer", "(255, 1, 28, 28) for 256 images"),
        ("nothing", "NoneType"),
        ("endless", "not finite"),
        ("centred", "another one in another batch"),
        ("noisy", "another one in another batch"),
        ("none", "AttributeError"),
    ],
)
def test_own_preprocessing_that_goes_wrong_is_a_sentence(engine, prepared, function, found):
    with pytest.raises(UserError) as told:
        engine.build(replace(SMALL, preprocess=f"{prepared}:{function}"))
    assert found in told.value.found and "prepared.py" in told.value.found
    assert "--preprocess" in told.value.next_step


def test_the_librarys_preprocessing_is_what_its_weights_know(trained):
    images = trained.data.train.images[:2]
    found = inputs("torchvision:resnet18", trained.data, images, "library")
    assert found.shape == (2, 3, 28, 28)
    pixel = images[1, 14, 14] / 255
    wanted = [(pixel - m) / s for m, s in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225),
                                              strict=True)]  # fmt: skip
    np.testing.assert_allclose(found[1, :, 14, 14], wanted, rtol=1e-5)
    for name, preprocess in [("mlp", "library"), ("mlp", "imagenet"), ("mlp", "none.py:f")]:
        with pytest.raises(UserError):
            Engine(trained.store.root).build(replace(SMALL, model=name, preprocess=preprocess))


# Odd networks.

ODD = """
import torch
from torch import nn
from torch.nn import functional as F

class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(784, 12), nn.Linear(12, 10)
    def hidden(self, x): return torch.tanh(self.one(x.flatten(1)))
    def forward(self, x): return self.two(self.hidden(x))

class Pair(Base):
    def forward(self, x):
        h = self.hidden(x)
        return self.two(h), h
class Named(Base):
    def forward(self, x): return {"features": self.hidden(x), "logits": super().forward(x)}
class Output:
    def __init__(self, logits): self.logits = logits
class Attribute(Base):
    def forward(self, x): return Output(super().forward(x))
class Half(Base):
    def __init__(self):
        super().__init__()
        self.half()
class Single(Base):
    def forward(self, x): return super().forward(x.float())
class Tied(Base):
    def __init__(self):
        super().__init__()
        self.again, self.once = nn.Linear(12, 12), nn.Linear(12, 12)
        self.again.weight = self.once.weight
    def forward(self, x): return self.two(torch.tanh(self.again(self.once(self.hidden(x)))))
class Bilinear(Base):
    def __init__(self):
        super().__init__()
        self.pair = nn.Bilinear(12, 12, 12)
        self.scale = nn.Parameter(torch.ones(12))
    def forward(self, x):
        h = self.hidden(x)
        return self.two(self.pair(h, h) * self.scale)
class Recurrent(Base):
    def __init__(self):
        super().__init__()
        self.rows = nn.LSTM(28, 12, batch_first=True)
    def forward(self, x): return self.two(self.rows(x[:, 0])[0][:, -1]) + 0 * super().forward(x)
class Frozen(Base):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)

class Inputs(Base):
    def forward(self, image, text): return super().forward(image)
class Batch(Base):
    def forward(self, x): return super().forward(x - x.mean(0))
class Statistics(Base):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(12, track_running_stats=False)
    def forward(self, x): return self.two(self.norm(self.hidden(x)))
class Training(Base):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(12)
    def forward(self, x):
        self.norm.train()
        return self.two(self.norm(self.hidden(x)))
class Random(Base):
    def forward(self, x): return super().forward(F.dropout(x, 0.5, training=True))
class Twins(Base):
    def forward(self, x): return super().forward(x), super().forward(x)
class Text(Base):
    def forward(self, x): return "cat"
class Sized(Base):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(32 * 32, 12)
"""


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("odd") / "odd.py"
    file.write_text(ODD)
    return str(file)


REFUSED = {
    "Inputs": "2 inputs (image, text)",
    "Batch": "depends on the others in its batch",
    "Statistics": "depends on the others in its batch",
    "Training": "depends on the others in its batch",
    "Random": "another one each time",
    "Twins": "returns tuple ((2, 10), (2, 10))",
    "Text": "returns str",
    "Sized": "fails on images of 28 x 28",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_network_that_cannot_be_attributed_is_refused_in_a_sentence(trained, odd, kind):
    with pytest.raises(UserError) as told:
        network(f"{odd}:{kind}", trained.data, 1.0, 0)
    assert REFUSED[kind] in told.value.found and "odd.py" in told.value.found
    assert "\n" not in str(told.value)


def test_a_network_that_wants_no_gradient_is_not_trained_but_attributed(engine, odd, tmp_path):
    spec = replace(SMALL, model=f"{odd}:Frozen", models=1, masks=0, strategy="naive")
    with pytest.raises(UserError, match="no parameter wants a gradient"):
        engine.build(spec)
    torch.save(network(spec.model, engine.open(engine.newest()).data, 1.0, 5).state_dict(),
               tmp_path / "frozen.pt")  # fmt: skip
    summary = engine.build(engine.brought(spec, [str(tmp_path / "frozen.pt")], "", False))
    assert summary["coverage"] == 1


WORKS: dict[str, tuple[list[str], list[str]]] = {  # by vmap, and left out
    "Pair": ([], []),
    "Named": ([], []),
    "Attribute": ([], []),
    "Half": ([], []),
    "Single": ([], []),
    "Tied": (["again.weight", "again.bias", "once.bias"], []),
    "Bilinear": (["scale", "pair.weight", "pair.bias"], []),
    "Recurrent": ([], ["rows."]),
}


def oracle(build: Build, only: str = "") -> np.ndarray:
    """Grad-Dot scores by one backward call an example, of the parameters that are not left out.

    Of those alone whose names begin with `only`.
    """
    (run,) = build._networks
    made = load_network(build.store, build.spec, build.data, Checkpoint(run_id=run))
    made.requires_grad_(True)
    left = build.summary["left_out"]
    wanted = [p for n, p in made.named_parameters() if n not in left and n.startswith(only)]

    def rows(x: torch.Tensor, labels: np.ndarray) -> torch.Tensor:
        found = []
        for b, label in enumerate(labels.tolist()):
            z = made(x[b : b + 1])[0]
            f = z[label] - torch.cat([z[:label], z[label + 1 :]]).logsumexp(0)
            grads = torch.autograd.grad(f, wanted, materialize_grads=True)
            found.append(torch.cat([g.flatten() for g in grads]))
        return torch.stack(found)

    halves = [(build.data.test, build.test_labels_T), (build.data.train, build.train_labels_N)]
    psi, phi = (
        rows(inputs(build.spec.model, build.data, half.images[:6]), labels[:6])
        for half, labels in halves
    )
    return (psi @ phi.T).numpy()


@pytest.mark.parametrize("kind", WORKS)
def test_an_odd_network_is_attributed_as_autograd_says(engine, odd, kind):
    spec = replace(
        SMALL, model=f"{odd}:{kind}", models=1, masks=0, strategy="naive",
        features=FeatureSpec(ka=2000, kg=100),
        estimator=EstimatorSpec(name="graddot", q="members", q_power=0),
    )  # fmt: skip
    build = engine.open(engine.build(spec)["build"])
    vmapped, left = WORKS[kind]
    assert sorted(build.summary["fallback"]) == sorted(vmapped)
    assert all(any(n.startswith(p) for p in left) for n in build.summary["left_out"])
    assert bool(left) == bool(build.summary["left_out"]) == (build.summary["coverage"] < 1)
    found, wanted = build.scores()[:6, :6], oracle(build)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=5e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("first", [False, True])
def test_given_networks_attributed_by_their_last_layer_share_nothing_with_those_by_all(
    trained, files, tmp_path, first
):
    engine = Engine(tmp_path / "cache", tmp_path)
    spec = replace(
        SMALL, models=1, masks=0, strategy="naive", features=FeatureSpec(ka=2000, kg=100),
        estimator=EstimatorSpec(name="graddot", q="members", q_power=0),
    )  # fmt: skip
    spec = engine.brought(spec, files[:1], "", False)
    for freeze in (first, not first):
        build = engine.open(engine.build(replace(spec, freeze=freeze))["build"])
        names = [s["name"] for s in build._part("sites", build.parts["sites"][0]).manifest["sites"]]
        assert names == (["7"] if freeze else ["1", "4", "7"])
        found, wanted = build.scores()[:6, :6], oracle(build, "7." if freeze else "")
        np.testing.assert_allclose(found, wanted, rtol=0, atol=5e-3 * np.abs(wanted).max())
