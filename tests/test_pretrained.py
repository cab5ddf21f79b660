"""Networks with knowledge of their own, started from and attributed: real ImageNet weights out of a
package, and a vision transformer; on a handful of images."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from sklearn.datasets import load_sample_image
from torch.nn.functional import interpolate

from attribution.build import Build
from attribution.data import DATASETS, mnist5k
from attribution.engine import Engine
from attribution.records import BuildSpec, EstimatorSpec, FeatureSpec, LoraSpec
from bench import lite0

CODE = str(Path(lite0.__file__))
BY_THE_LAKE = {442, 449, 538, 698, 975}  # bell cote, boathouse, dome, palace, lakeside


def digits() -> dict[str, np.ndarray]:
    """The first 24 and 8 of MNIST-5k."""
    whole = mnist5k()
    count = {"train": 24, "test": 8}
    return {n: v[: count.get(n.partition("_")[0])] for n, v in whole.items()}


def colours() -> dict[str, np.ndarray]:
    """Noise around a colour of the class, 32 x 32."""
    draw = np.random.default_rng(0)
    found: dict[str, np.ndarray] = {"classes": np.array(["red", "green", "blue"])}
    for half, count in (("train", 24), ("test", 9)):
        labels = np.arange(count) % 3
        images = draw.integers(0, 120, (count, 32, 32, 3))
        images[np.arange(count), :, :, labels] += 100
        found |= {f"{half}_images": images.astype(np.uint8), f"{half}_labels": labels}
    return found


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    root = tmp_path_factory.mktemp("pretrained")
    DATASETS.update(digits=digits, colours=colours)
    yield Engine(root / "cache", root)
    del DATASETS["digits"], DATASETS["colours"]


SPEC = BuildSpec(
    models=1,
    masks=0,
    strategy="naive",
    epochs=1,
    batch_size=8,
    features=FeatureSpec(ka=4, kg=2),
    estimator=EstimatorSpec(q="members", q_power=0.5),
    index_dims=16,
    lora=LoraSpec(rank=4, epochs=1, targets=("conv_pw", "classifier")),
)


def seen_well(build: Build, members: int) -> None:
    """Finite scores of everybody, all of which are not alike."""
    scores_TN = build.scores()
    assert scores_TN.shape == (len(build.test_labels_T), len(build.train_labels_N))
    assert np.isfinite(scores_TN).all() and scores_TN.std(1).min() > 0
    assert build.summary["members"] == members
    assert len(build.query(0, 3).proponents) == 3


def test_the_weights_in_the_package_know_the_summer_palace():
    made = timm.create_model(lite0.NAME).eval()
    made.load_state_dict(lite0.state())
    photo = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        x = interpolate((photo - 127) / 128, size=(224, 224), mode="bilinear", antialias=True)
        best = made(x)[0].topk(3).indices.tolist()
    assert set(best) <= BY_THE_LAKE


@pytest.fixture(scope="module")
def started(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> BuildSpec:
    file = tmp_path_factory.mktemp("weights") / "lite0.pt"
    torch.save(lite0.state(), file)
    spec = replace(
        SPEC,
        data=replace(SPEC.data, name="digits"),
        model=f"{CODE}:network",
        preprocess=f"{CODE}:large",
    )
    spec = engine.brought(spec, (), str(file), False)
    file.unlink()
    return spec


@pytest.mark.slow
def test_training_starts_from_the_packages_weights(engine, started):
    build = engine.build(replace(started, rate=1e-9))
    assert build["fresh"] == ["classifier.bias", "classifier.weight"]
    assert build["coverage"] > 0.98
    opened = engine.open(build["build"])
    found = opened.store.find("run", opened._networks[0]).weights()
    for name, value in lite0.state().items():
        if name.endswith("weight") and not name.startswith("classifier"):
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_masks_and_adapters_of_a_pretrained_network(engine, started):
    masked = replace(started, strategy="dropout", masks=2, freeze=True)
    seen_well(engine.open(engine.build(masked)["build"]), 2)
    lora = engine.open(engine.build(replace(started, strategy="lora", adapters=2))["build"])
    seen_well(lora, 2)
    sites = lora.store.find("sites", lora.parts["sites"][0]).manifest["sites"]
    assert all("lora" in s["name"] for s in sites)  # the adapters' own gradients


@pytest.mark.slow
def test_a_vision_transformer_with_weights_to_start_from(engine, tmp_path):
    torch.manual_seed(1)
    made = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=7)
    torch.save({"model": made.state_dict()}, tmp_path / "vit.pt")
    spec = replace(
        SPEC,
        data=replace(SPEC.data, name="colours"),
        model="timm:vit_tiny_patch16_224",
        preprocess="library",
        lora=LoraSpec(rank=2, epochs=1, targets=("qkv",)),
    )
    spec = engine.brought(spec, (), str(tmp_path / "vit.pt"), False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vmap says where it is slow
        summary = engine.build(replace(spec, strategy="dropout", masks=2))
        lora = engine.build(replace(spec, strategy="lora", adapters=2))
    assert summary["fresh"] == ["head.bias", "head.weight"]
    assert summary["coverage"] == 1 and set(summary["fallback"]) == {"cls_token", "pos_embed"}
    for one in (summary, lora):
        seen_well(engine.open(one["build"]), 2)
