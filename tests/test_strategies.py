"""Every strategy and estimator against loops of backward calls and the dense formula.

What a build stores is read without our code; builds share one cache, so networks are trained once.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dense
import faiss
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from scipy.special import expit, logsumexp
from torch import nn
from zoo import as_matrix, backward_loop

from attribution import strategies
from attribution.build import Build
from attribution.data import example_ids
from attribution.engine import Engine
from attribution.gradients import Site
from attribution.members import View, example_keys
from attribution.models import MODELS, inputs
from attribution.records import (
    BuildSpec,
    Checkpoint,
    DataSpec,
    EstimatorSpec,
    FeatureSpec,
    LoraSpec,
    Member,
    RunSpec,
    UserError,
)
from attribution.train import train

PLAIN = BuildSpec(
    data=DataSpec(noise=0.1),
    width=0.1,
    strategy="naive",
    models=2,
    masks=0,
    epochs=2,
    features=FeatureSpec(ka=8, kg=4),
    estimator=EstimatorSpec(),
    index_dims=32,
)
RANDOM = replace(PLAIN.features, basis="random")
LORA = LoraSpec(rank=2, epochs=1, share=0.2)
STRATEGIES: dict[str, dict[str, Any]] = {
    "naive": {},
    "dropout": {"masks": 2},
    "shared masks": {"strategy": "dropout", "masks": 2, "shared_masks": True},
    "forward": {"masks": 3, "forward_only": True},
    "lora": {"adapters": 2, "lora": LORA},
    "snapshots": {"epochs": 4, "snapshots": 2},
    "finetunes": {"finetunes": 2, "finetune_epochs": 1},
    "draws": {"draws": 2, "features": RANDOM},
    "blocks": {"blocks": 3},
    "snapshots x masks": {"strategy": "dropout", "epochs": 4, "snapshots": 2, "masks": 2},
    "adapters x masks": {"strategy": "lora", "adapters": 2, "lora": LORA, "masks": 2},
    "redrawn masks": {"strategy": "dropout", "masks": 2, "redraw": True, "features": RANDOM},
    "draws x blocks": {"strategy": "draws", "draws": 2, "features": RANDOM, "blocks": 2},
}
SPECS = {
    name: replace(PLAIN, **{"strategy": name.split()[0]} | change)
    for name, change in STRATEGIES.items()
}
for name in ("graddot", "gradcos", "ekfac", "tracin"):
    for of in ("dropout", "snapshots"):
        estimator = EstimatorSpec(name=name, damping=0.1, q_power=0.25)
        SPECS[f"{of}, {name}"] = replace(SPECS[of], estimator=estimator)
for of in ("dropout", "blocks"):
    for settings in ({"relative": True}, {"q": "training", "q_power": 1.0}):
        SPECS[f"{of}, {next(iter(settings))}"] = replace(
            SPECS[of], estimator=EstimatorSpec(**settings)
        )
LOSS = ("ekfac", "tracin")  # on gradients of log(1 + exp(-margin))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(tmp_path_factory.mktemp("strategies") / "cache")


def built(engine: Engine, spec: BuildSpec) -> Build:
    return engine.open(engine.build(spec)["build"])


@pytest.fixture(scope="module", params=SPECS)
def build(engine: Engine, request: pytest.FixtureRequest) -> Build:
    return built(engine, SPECS[request.param])


# What is stored, read without our code.


def place(build: Build, kind: str, name: str) -> Path:
    return build.store.root / kind / name


def facts(build: Build, kind: str, name: str) -> dict[str, Any]:
    return json.loads((place(build, kind, name) / "manifest.json").read_text())


def array(build: Build, kind: str, name: str, file: str) -> np.ndarray:
    return np.load(place(build, kind, name) / f"{file}.npy")


def made_of(build: Build) -> list[tuple[dict[str, Any], str]]:
    """Each member with the id of its features."""
    manifest = facts(build, "build", build.id)
    return list(zip(manifest["members"], manifest["features"], strict=True))


def taken(phi_NK: np.ndarray, margin_N: np.ndarray, member: dict, build: Build) -> np.ndarray:
    """A member's columns, of the gradient that its estimator takes."""
    blocks = member["blocks"]
    whole = phi_NK.shape[1] // blocks * blocks
    phi_NK = phi_NK[:, :whole].reshape(len(phi_NK), -1, blocks)[:, :, member["block"]]
    of_loss = build.spec.estimator.name in LOSS
    return phi_NK * expit(-margin_N)[:, None] if of_loss else phi_NK


def stored(build: Build, split: str) -> list[np.ndarray]:
    """Features of every member."""
    found = []
    for member, name in made_of(build):
        phi_NK = array(build, "features", name, f"{split}_phi").astype(float)
        phi_NK *= facts(build, "features", name)[f"{split}_scale"]
        margin_N = array(build, "features", name, f"{split}_margin").astype(float)
        found.append(taken(phi_NK, margin_N, member, build))
    return found


def q_of(build: Build) -> np.ndarray:
    """The mean q (N,), as its spec says."""
    if build.spec.estimator.q == "training":
        beliefs = [array(build, "run", r, "belief").astype(float) for r in build.parts["runs"]]
        return 1 - np.mean(beliefs, 0)[np.arange(4500), build.train_labels_N]
    names = [name for _, name in made_of(build)]
    kind, names = ("margins", build.parts["margins"]) if build.spec.forward_only else (
        "features", names,
    )  # fmt: skip
    margins = [array(build, kind, name, "train_margin").astype(float) for name in names]
    return np.mean([expit(-m) for m in margins], 0)


def wanted_scores(build: Build) -> np.ndarray:
    spec, train_M = build.spec.estimator, stored(build, "train")
    scores_TN = dense.scores(train_M, stored(build, "test"), q_of(build)[None], spec)
    if spec.relative:
        own = [np.square(dense.whitened(phi, spec)).sum(1) for phi in train_M]
        scores_TN /= np.sqrt(np.mean(own, 0))
    return scores_TN


def network_of(build: Build, checkpoint: dict[str, Any]) -> nn.Module:
    """The network of a checkpoint from its files alone; every parameter wants a gradient."""
    network = MODELS["mlp"](1, 28, 10, build.spec.width)
    epoch = checkpoint["epoch"]
    file = "weights.safetensors" if epoch is None else f"weights-{epoch}.safetensors"
    network.load_state_dict(load_file(place(build, "run", checkpoint["run_id"]) / file))
    if checkpoint["adapter"]:
        network = PeftModel.from_pretrained(
            network, str(place(build, "adapter", checkpoint["adapter"]))
        )
    return network.requires_grad_(True).eval()


def inputs_of(build: Build, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = build.data.train.images / 255
    images = build.data.train.images if split == "train" else build.data.test.images
    x = (images / 255 - pixels.mean()) / pixels.std()
    return torch.from_numpy(x).float()[:, None], torch.from_numpy(
        example_keys(example_ids(images)).copy()
    )


def by_loop(build: Build, split: str, which: list[int], target: np.ndarray) -> list[np.ndarray]:
    """`stored` of some examples, by one backward call each."""
    x, key = (t[which] for t in inputs_of(build, split))
    target_B = torch.from_numpy(target)
    found = []
    for member, name in made_of(build):
        sites = facts(build, "features", name)["made_by"]["sites"]
        directions = load_file(place(build, "sites", sites) / "directions.safetensors")
        manifest = facts(build, "sites", sites)
        network = network_of(build, member["checkpoint"])
        places = tuple(manifest["mask_places"])
        view = View(network, places, member["mask"], member["p"], member["shared"])
        exact, columns = backward_loop(view, x, key, target_B), []
        for s, fields in enumerate(manifest["sites"]):
            site = Site(**{**fields, "parameters": tuple(fields["parameters"])})
            A, G = (directions[f"{s}.{side}"].numpy() for side in (0, 1))
            small = np.einsum("og,boi,ia->bga", G, as_matrix(site, exact).numpy(), A)
            columns.append(small.reshape(len(which), -1))
        logits_BC = view.logits(x, key).detach().double().numpy()
        rows = np.arange(len(which))
        others_BC = np.where(np.arange(10) == target[:, None], -np.inf, logits_BC)
        margin_B = logits_BC[rows, target] - logsumexp(others_BC, 1)
        found.append(taken(np.concatenate(columns, 1).astype(float), margin_B, member, build))
    return found


# Scores, queries and features of each.


def test_features_are_the_gradients_of_the_members_own_network_and_mask(build):
    for split, labels in (("train", build.train_labels_N), ("test", build.test_labels_T)):
        which = [3, 77, 250, 499]
        exact = by_loop(build, split, which, labels[which])
        for phi_NK, wanted in zip(stored(build, split), exact, strict=True):
            assert dense.off(phi_NK[which], wanted) < 2e-3  # half precision


def test_scores_are_the_dense_formula_on_the_stored_features(build):
    found = build.scores()
    assert found.shape == (500, 4500) and found.dtype == np.float32
    assert dense.off(found, wanted_scores(build)) < 1e-4


def test_the_members_sums_over_subsets_are_those_of_the_scores(build):
    subsets_SN = np.random.default_rng(0).random((5, 4500)) < 0.5
    sums_MTS = build.sums(subsets_SN)
    assert sums_MTS.shape == (build.summary["members"], 500, 5)
    summed = build.scores().astype(float) @ subsets_SN.T
    assert dense.off(sums_MTS.mean(0), summed) < 1e-4
    member = dense.member_scores(
        stored(build, "train")[-1], stored(build, "test")[-1], build.spec.estimator
    )
    if not build.spec.estimator.relative:
        weighted = member * q_of(build) ** build.spec.estimator.q_power
        assert dense.off(sums_MTS[-1], weighted @ subsets_SN.T) < 1e-4


def test_an_answer_is_that_of_a_backward_call_whether_its_query_is_stored_or_fresh(build):
    test = int(np.flatnonzero(build.predicted_T != build.test_labels_T)[1])
    taken = [int(build.test_labels_T[test]), int(build.predicted_T[test])]
    third = next(c for c in range(10) if c not in taken)
    (index,) = build.parts["index"]
    rows = faiss.read_index(str(place(build, "index", index) / "rows.faiss"))
    rows_Nd = rows.reconstruct_n(0, rows.ntotal).astype(float)
    manifest = facts(build, "index", index)
    for target in (*taken, third):
        u_Md = []
        for psi_1K, projector_Kd in zip(
            by_loop(build, "test", [test], np.array([target])),
            array(build, "index", index, "projectors").astype(float),
            strict=True,
        ):
            if build.spec.estimator.name == "gradcos":
                psi_1K = psi_1K / np.linalg.norm(psi_1K)
            u_Md.append(psi_1K[0] @ projector_Kd * manifest["projector_scale"])
        mean_N = rows_Nd @ np.mean(u_Md, 0) * manifest["scale"]
        answer = build.query(test, 30, str(target))
        for hits, sign in ((answer.proponents, 1), (answer.opponents, -1)):
            found = [h.score for h in hits]
            size = np.abs(mean_N).max()
            np.testing.assert_allclose(
                found, sign * np.sort(sign * mean_N)[::-1][:30], atol=0.01 * size
            )
            np.testing.assert_allclose(found, mean_N[[h.train_id for h in hits]], atol=0.01 * size)


def test_members_of_one_network_are_side_by_side_and_named_in_the_summary(build):
    summary, spec = build.summary, build.spec
    assert summary["members"] == len(build.members) == spec.models * strategies.views(spec)
    roots = []
    for member in build.members:
        run = facts(build, "run", member.checkpoint.run_id)["made_by"]
        roots.append(run["parent"] or member.checkpoint.run_id)
    each = len(roots) // spec.models
    assert roots == [root for root in dict.fromkeys(roots) for _ in range(each)]
    assert len(set(roots)) == spec.models
    assert len(set(build.members)) == len(build.members)
    assert summary["ensemble"] == strategies.words(spec)


# Facts of single strategies.


def weights(build: Build, run_id: str, name: str = "weights") -> dict[str, torch.Tensor]:
    return load_file(place(build, "run", run_id) / f"{name}.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_snapshot_is_bit_by_bit_a_run_that_ended_there(engine):
    shorter, longer = built(engine, SPECS["naive"]), built(engine, SPECS["snapshots"])
    for short, long in zip(shorter.parts["runs"], longer.parts["runs"], strict=True):
        assert short != long
        assert same(weights(shorter, short), weights(longer, long, "weights-2"))
        assert same(weights(longer, long), weights(longer, long, "weights-4"))
        assert not same(weights(longer, long), weights(shorter, short))
    named = [(m.checkpoint.run_id, m.checkpoint.epoch) for m in longer.members]
    assert named == [(run, epoch) for run in longer.parts["runs"] for epoch in (2, 4)]
    for run in longer.parts["runs"]:
        kept = {p.stem for p in place(longer, "run", run).glob("weights-*.safetensors")}
        assert kept == {"weights-2", "weights-4"}


def test_a_fine_tune_is_training_on_from_its_parents_weights(engine):
    build = built(engine, SPECS["finetunes"])
    x = inputs("mlp", build.data, build.data.train.images)
    labels = torch.from_numpy(build.train_labels_N)
    runs = [m.checkpoint.run_id for m in build.members]
    parents = [facts(build, "run", run)["made_by"]["parent"] for run in runs]
    plain = built(engine, SPECS["naive"]).parts["runs"]
    assert parents == [plain[0], plain[0], plain[1], plain[1]]
    for run in runs:
        recipe = RunSpec(**facts(build, "run", run)["made_by"])
        assert recipe.epochs == 1
        network = MODELS["mlp"](1, 28, 10, 0.1)
        network.load_state_dict(weights(build, recipe.parent))
        train(network, x, labels, recipe)
        assert same(weights(build, run), network.state_dict())
    assert len({v["7.bias"].numpy().tobytes() for v in (weights(build, r) for r in runs)}) == 4


def test_what_starts_from_other_networks_is_drawn_otherwise(engine):
    tuned, lora = built(engine, SPECS["finetunes"]), built(engine, SPECS["lora"])
    runs = [m.checkpoint.run_id for m in tuned.members]
    adapters = [m.checkpoint.adapter for m in lora.members]
    for kind, build, names in (("run", tuned, runs), ("adapter", lora, adapters)):
        seeds = [facts(build, kind, name)["made_by"]["seed"] for name in names]
        assert len(set(seeds)) == len(names) == 4


def test_forward_only_has_the_gradients_of_the_plain_networks_and_q_of_the_masks(engine):
    plain, forward = built(engine, SPECS["naive"]), built(engine, SPECS["forward"])
    assert forward.parts["runs"] == plain.parts["runs"]
    for ours, theirs in zip(stored(forward, "train"), stored(plain, "train"), strict=True):
        assert dense.off(ours, theirs) < 1e-3
    assert [m.mask for m in forward.members] == [None, None]
    assert len(forward.parts["margins"]) == 2 * 3
    q_N = np.zeros(6)
    which = [0, 9, 90, 900, 2000, 4499]
    x, key = (t[which] for t in inputs_of(forward, "train"))
    for run in forward.parts["runs"]:
        checkpoint = {"run_id": run, "epoch": None, "adapter": ""}
        network = network_of(forward, checkpoint)
        for mask in range(3):
            p_BC = View(network, ("3", "6"), mask, 0.1).logits(x, key).softmax(1)
            q_N += 1 - p_BC.detach().numpy()[np.arange(6), forward.train_labels_N[which]]
    np.testing.assert_allclose(forward.q_N[which], q_N / 6, atol=1e-5)
    assert not np.allclose(forward.q_N, plain.q_N, atol=1e-3)


def test_blocks_part_the_columns_of_one_feature_file(engine):
    plain, blocks = built(engine, SPECS["naive"]), built(engine, SPECS["blocks"])
    assert blocks.parts["features"] == plain.parts["features"]
    for n, whole in enumerate(stored(plain, "train")):
        parts = stored(blocks, "train")[3 * n : 3 * n + 3]
        count = parts[0].shape[1]
        assert count == whole.shape[1] // 3
        for b, part in enumerate(parts):
            np.testing.assert_array_equal(part, whole[:, [3 * j + b for j in range(count)]])


def test_draws_are_other_random_directions_of_the_same_networks(engine):
    build = built(engine, SPECS["draws"])
    assert [m.draw for m in build.members] == [0, 1, 0, 1]
    assert len(build.parts["runs"]) == 2 and len(set(build.parts["sites"])) == 4
    A = [load_file(place(build, "sites", s) / "directions.safetensors")["0.0"]
         for s in build.parts["sites"]]  # fmt: skip
    assert dense.off(A[0], A[1]) > 0.5 and dense.off(A[2], A[3]) > 0.5


def test_redrawn_directions_are_every_members_own(engine):
    build = built(engine, SPECS["redrawn masks"])
    assert [(m.mask, m.draw) for m in build.members] == [(0, 0), (1, 1), (0, 2), (1, 3)]
    found = {
        load_file(place(build, "sites", s) / "directions.safetensors")["0.0"].numpy().tobytes()
        for s in build.parts["sites"]
    }
    assert len(found) == 4


def test_masks_are_shared_by_all_examples_only_where_asked(engine):
    each, shared = built(engine, SPECS["dropout"]), built(engine, SPECS["shared masks"])
    assert {m.shared for m in each.members} == {False}
    assert {m.shared for m in shared.members} == {True}
    assert each.parts["runs"] == shared.parts["runs"]
    assert not set(each.parts["features"]) & set(shared.parts["features"])


def test_an_adapters_build_leaves_the_networks_of_the_plain_one_alone(engine):
    plain, lora = built(engine, SPECS["naive"]), built(engine, SPECS["lora"])
    assert lora.parts["runs"] == plain.parts["runs"]
    assert [m.checkpoint.run_id for m in lora.members] == [
        run for run in plain.parts["runs"] for _ in range(2)
    ]
    assert len({m.checkpoint.adapter for m in lora.members}) == 4
    for name in lora.parts["sites"]:
        named = [p for s in facts(lora, "sites", name)["sites"] for p in s["parameters"]]
        assert named and all("lora_" in parameter for parameter in named)


def test_an_adapter_that_diverges_names_its_own_learning_rate(tmp_path):
    spec = replace(SPECS["lora"], lora=replace(LORA, learning_rate=1000))
    with pytest.raises(UserError) as told:
        Engine(tmp_path / "cache").build(spec)
    assert "loss" in told.value.found and "the adapter" in told.value.found
    assert "--lora-rate" in told.value.next_step


def test_masks_of_an_adapted_network_are_at_the_networks_own_dropout(engine):
    build = built(engine, SPECS["adapters x masks"])
    for name in build.parts["sites"]:
        places = facts(build, "sites", name)["mask_places"]
        assert places == ["base_model.model.3", "base_model.model.6"]


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_damaged_adapter_is_named_before_peft_reads_it(engine, tmp_path, file):
    build = built(engine, SPECS["lora"])
    cache = shutil.copytree(engine.cache, tmp_path / "cache")
    path = cache / "adapter" / build.members[-1].checkpoint.adapter / file
    content = path.read_bytes()
    path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    asked = {build.test_labels_T[0], build.predicted_T[0]}
    third = next(str(c) for c in range(10) if c not in asked)
    with pytest.raises(UserError) as told:
        Engine(cache).open(build.id).query(0, 3, third)
    assert str(path) in told.value.found and "again" in told.value.next_step
    path.write_bytes(content)
    assert Engine(cache).open(build.id).query(0, 3, third) == build.query(0, 3, third)


def test_costs_name_what_each_strategy_trains(engine):
    plain, lora, tuned, longer = (
        built(engine, SPECS[name]).summary for name in ("naive", "lora", "finetunes", "snapshots")
    )
    assert longer["flops"]["train"] == pytest.approx(2 * plain["flops"]["train"])  # 4 epochs
    assert tuned["flops"]["train"] == pytest.approx(2 * plain["flops"]["train"])  # 2 + 2 x 1
    assert lora["flops"]["train"] > plain["flops"]["train"]
    for more in (lora, tuned, longer):
        assert more["bytes"]["checkpoints"] > plain["bytes"]["checkpoints"]


def test_the_time_of_training_is_that_of_networks_and_adapters(engine):
    build = built(engine, SPECS["lora"])
    places = [m.checkpoint for m in build.members]
    trained = {f"run/{p.run_id}" for p in places} | {f"adapter/{p.adapter}" for p in places}
    assert len(trained) == 2 + 4
    each = [
        json.loads((engine.cache / t / "manifest.json").read_text())["seconds"] for t in trained
    ]
    assert all(s > 0 for s in each)
    assert build.summary["seconds"]["train"] == pytest.approx(sum(each), abs=1e-3)


# The axes themselves.

FEW = [Checkpoint(run_id=run, epoch=e) for run in ("a", "b") for e in (1, 2)]


def test_members_are_the_product_of_the_axes_network_by_network():
    spec = replace(PLAIN, masks=3, p=0.3, draws=2, blocks=2, shared_masks=True)
    found = strategies.members(spec, FEW)
    assert found == [
        Member(checkpoint=c, mask=mask, p=0.3, shared=True, draw=draw, block=block, blocks=2)
        for c in FEW
        for draw in (0, 1)
        for mask in (0, 1, 2)
        for block in (0, 1)
    ]
    assert strategies.members(PLAIN, FEW) == [Member(checkpoint=c) for c in FEW]


def test_beliefs_of_a_forward_only_ensemble_are_all_masks_and_its_members_none():
    spec = replace(PLAIN, masks=2, p=0.2, forward_only=True)
    assert strategies.members(spec, FEW) == [Member(checkpoint=c) for c in FEW]
    assert strategies.beliefs(spec, FEW) == [
        Member(checkpoint=c, mask=m, p=0.2) for c in FEW for m in (0, 1)
    ]


NOTHING = {"finetunes": 0, "snapshots": 0, "adapters": 0, "masks": 0, "draws": 1, "blocks": 1}
NOTHING |= {"forward_only": False}


@pytest.mark.parametrize(
    ("name", "usual"),
    [
        ("naive", {}),
        ("dropout", {"masks": 20}),
        ("forward", {"masks": 20, "forward_only": True}),
        ("lora", {"adapters": 5}),
        ("snapshots", {"snapshots": 5}),
        ("finetunes", {"finetunes": 5}),
        ("draws", {"draws": 5}),
        ("blocks", {"blocks": 4}),
    ],
)
def test_a_name_chooses_the_axes_that_are_not_given(name, usual):
    assert strategies.axes(name, {}) == NOTHING | usual
    assert strategies.axes(name, {"masks": None, "snapshots": 3}) == NOTHING | usual | {
        "snapshots": 3
    }
    for axis in set(usual) - {"forward_only"}:
        assert strategies.axes(name, {axis: 7})[axis] == 7


def bad() -> Iterator[tuple[BuildSpec, str, str, str]]:
    """A spec, and words of what is found, wanted and the next step."""
    plain = PLAIN
    yield replace(plain, masks=3), "naive with 3 masks", "independent networks", "--masks"
    yield replace(plain, blocks=2), "naive with 2 blocks", "independent networks", "--blocks"
    yield (
        replace(plain, strategy="finetunes", finetunes=2, adapters=2),
        "finetunes and adapters", "one of finetunes, snapshots and adapters", "--adapters",
    )  # fmt: skip
    yield (
        replace(plain, strategy="snapshots", snapshots=2, finetunes=1),
        "finetunes and snapshots", "one of", "--snapshots",
    )  # fmt: skip
    yield (
        replace(plain, strategy="draws", draws=3),
        "--draws 3 of the data's own basis", "random directions", "--basis random",
    )  # fmt: skip
    yield (
        replace(plain, strategy="snapshots", snapshots=3),
        "--snapshots 3 of 2 epochs", "one snapshot an epoch", "raise --epochs",
    )  # fmt: skip
    yield (
        replace(plain, strategy="dropout", masks=2, redraw=True),
        "--redraw of the data's own basis", "random directions", "--basis random",
    )  # fmt: skip
    for name, axis in (
        ("dropout", "masks"), ("forward", "masks"), ("lora", "adapters"),
        ("snapshots", "snapshots"), ("finetunes", "finetunes"), ("draws", "draws"),
        ("blocks", "blocks"),
    ):  # fmt: skip
        none = replace(plain, strategy=name, **{axis: 0})
        yield none, f"--{axis} 0", "a number from 1", f"--{axis}"
    yield (
        replace(
            plain, strategy="forward", masks=2, forward_only=True,
            estimator=EstimatorSpec(q="training"),
        ),
        "--q training with masks for q only", "q of the members", "--q members",
    )  # fmt: skip
    yield (
        replace(plain, strategy="forward", masks=2),
        "forward with masks that are members", "masks for q only", "forward_only=True",
    )  # fmt: skip
    yield (
        replace(plain, forward_only=True),
        "0 masks for q only", "at least one", "--masks",
    )  # fmt: skip
    yield replace(plain, snapshots=-1), "--snapshots -1", "from 0", "--snapshots"
    lora = replace(plain, strategy="lora", adapters=1)
    for option, settings in {
        "--rank 0": {"rank": 0},
        "--lora-epochs 0": {"epochs": 0},
        "--lora-rate 0": {"learning_rate": 0},
        "--lora-share 1.5": {"share": 1.5},
        "--lora-share nan": {"share": float("nan")},
        "--alpha 0": {"alpha": 0},
        "--alpha -4": {"alpha": -4},
    }.items():
        changed = replace(lora, lora=LoraSpec(**settings))
        yield changed, option, "a number from", option.split()[0]
    tuned = replace(plain, strategy="finetunes", finetunes=1, finetune_epochs=0)
    yield tuned, "--finetune-epochs 0", "a number from 1", "--finetune-epochs"


@pytest.mark.parametrize(
    ("spec", "found", "wanted", "next_step"), [pytest.param(*case, id=case[1]) for case in bad()]
)
def test_a_mixture_that_makes_no_sense_is_refused_before_anything_is_written(
    tmp_path, spec, found, wanted, next_step
):
    with pytest.raises(UserError) as told:
        Engine(tmp_path / "cache").build(spec)
    assert found in told.value.found
    assert wanted in told.value.wanted
    assert next_step in told.value.next_step
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "found", "wanted", "next_step"),
    [
        ({"rank": 9, "targets": ("4",)}, "--rank 9 for layer 4", "from 1 to 6", "--targets"),
        ({"rank": 99}, "--rank 99 for layer 1", "from 1 to ", "--targets"),
        ({"rank": 7, "targets": ("7",)}, "--rank 7 for layer 7", "from 1 to 6", "lower --rank"),
        ({"targets": ("attn.qkv",)}, "no layer named attn.qkv", "1, 4, 7", "--targets"),
    ],
)
def test_adapters_that_fit_no_layer_are_refused_before_anything_is_trained(
    tmp_path, change, found, wanted, next_step
):
    spec = replace(SPECS["lora"], lora=replace(LORA, **change))
    with pytest.raises(UserError) as told:
        Engine(tmp_path / "cache").build(spec)
    assert found in told.value.found
    assert wanted in told.value.wanted
    assert next_step in told.value.next_step
    assert not (tmp_path / "cache" / "run").exists()


def test_more_blocks_than_features_are_refused_before_anything_is_fitted(engine):
    one = replace(SPECS["blocks"], models=1)
    build = built(engine, one)  # whose features they would share
    K = array(build, "features", build.parts["features"][0], "train_phi").shape[1]
    with pytest.raises(UserError) as told:
        engine.build(replace(one, blocks=K + 1))
    assert told.value.found == f"--blocks {K + 1} of {K} features"
    assert "--dims" in told.value.next_step
    assert built(engine, replace(one, blocks=K)).summary["members"] == K


def test_a_study_builds_every_other_strategy_evaluates_all_and_leaves_the_builds_asked_for(
    tmp_path,
):
    engine = Engine(tmp_path / "cache")
    spec = BuildSpec(models=2, masks=2, epochs=1, features=FeatureSpec(ka=6, kg=2), index_dims=24)
    mine = engine.build(spec)["build"]
    rows = engine.study(mine, subsets=4, seeds=1)
    builds = [engine.open(row["build"]) for row in rows]
    assert [b.spec.strategy for b in builds] == [
        "dropout", "naive", "forward", "snapshots", "finetunes", "lora",
    ]  # fmt: skip
    assert engine.newest() == mine
    assert len({row["truth"] for row in rows}) == 1
    naive, forward = builds[1].scores(), builds[2].scores()  # masks for q are not without effect
    assert np.abs(naive - forward).max() > 0.01 * np.abs(naive).max()
    told: list[str] = []
    assert engine.study(mine, 4, 1, lambda stage, *_: told.append(stage)) == rows
    assert not any("features" in stage for stage in told)  # everything was there
