"""What a build will take, against builds that were made; settings that are proposed for data."""

import json
import shutil
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from attribution import estimate, strategies
from attribution.__main__ import main
from attribution.engine import Engine
from attribution.proposal import WORK, flops, proposed
from attribution.records import BuildSpec, EstimatorSpec, FeatureSpec, LoraSpec, UserError

SMALL: dict[str, Any] = {"features": FeatureSpec(ka=16, kg=4), "index_dims": 64, "epochs": 2}


def spec(strategy: str, **given: Any) -> BuildSpec:
    axes = strategies.axes(strategy, {k: given.pop(k) for k in strategies.AXES if k in given})
    return BuildSpec(strategy=strategy, **SMALL | given, **axes)


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    engine = Engine(tmp_path_factory.mktemp("estimate") / "cache")
    engine.build(spec("naive", models=1, width=0.1))  # the data are there, libraries loaded
    return engine


SPECS = [
    spec("dropout", masks=3, models=2, width=0.5),
    spec("naive", models=1, model="cnn", width=0.3),
    spec("snapshots", snapshots=2, models=2, blocks=2),
    spec("finetunes", finetunes=2, models=1, finetune_epochs=1, width=0.3),
    spec("lora", adapters=2, models=1, lora=LoraSpec(epochs=1)),
    spec("forward", masks=3, models=1, width=0.3, estimator=EstimatorSpec(q="members")),
]


@pytest.mark.parametrize("asked", SPECS, ids=lambda asked: asked.strategy)
def test_an_estimate_is_near_what_the_build_took(
    asked: BuildSpec, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that counts multiplications and additions, which goes alike on every machine."""
    with FlopCounterMode(display=False) as probing, monkeypatch.context() as patch:
        patch.setattr(estimate.time, "perf_counter", lambda: probing.get_total_flops() / 1e9)
        found = engine.estimate(asked)
    before = bytes_in(engine.cache)
    with FlopCounterMode(display=False) as building:
        engine.build(asked)
    took, written = building.get_total_flops() / 1e9, bytes_in(engine.cache) - before
    # Without the manifests, of which larger builds have no more.
    manifests = sum(p.stat().st_size for p in engine.cache.rglob("manifest.json"))
    assert written - manifests < 1.2 * found.room and found.room < 1.2 * written
    assert 0.7 * took < found.time < 1.3 * took, (asked.strategy, found.seconds, took)


def test_a_disk_without_room_refuses_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10**9, 10**9, 10**5))
    engine = Engine(tmp_path / "cache")
    with pytest.raises(UserError, match="free on the disk"):
        engine.room(SPECS[0])
    words = ["build", "--estimate", "--json", "--epochs", "1", "--cache", str(engine.cache)]
    monkeypatch.setattr(sys, "argv", ["attribution", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 2 and "free on the disk" in said.err
    told = json.loads(said.out)
    assert told["free"] == 10**5 and set(told["seconds"]) == {"train", "basis", "features", "fit"}
    assert not (engine.cache / "run").exists()


def described(train: int, size: int, channels: int, classes: int = 10) -> dict[str, Any]:
    names = [str(c) for c in range(classes)]
    return {"train": train, "size": size, "channels": channels, "classes": names}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 28, 64])
@pytest.mark.parametrize("train", [10, 900, 4500, 60_000])
def test_settings_are_proposed_that_can_be_built(train: int, size: int, channels: int) -> None:
    found = proposed(described(train, size, channels))
    made = spec(
        "dropout", model=found.model, width=found.width, models=found.models, masks=found.masks,
        epochs=found.epochs,
    )  # fmt: skip
    Engine(Path("unused")).check(made)
    assert found.why.endswith(".") and found.model in found.why
    if found.model == "resnet9":
        assert channels == 3 and train >= 1000
        one = flops("resnet9", channels, size, 10, found.width)
        assert 3 * one * train * found.epochs * found.models <= WORK


def test_more_pixels_never_propose_a_wider_network() -> None:
    widths = [
        found.width if found.model == "resnet9" else 0
        for size in range(8, 65, 8)
        if (found := proposed(described(2000, size, 3)))
    ]
    assert widths == sorted(widths, reverse=True) and widths[0] > 0
