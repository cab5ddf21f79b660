"""quanda's metrics on our explainer and on the explainers that quanda wraps: TRAK and Captum's.

One of the paper's MLPs on 1,500 MNIST images, as it is with quanda: class detection (share of the
five strongest proponents that have the prediction's class), mislabeling detection (area under the
curve of wrong labels found by falling self-influence, 10 % flipped), shortcut detection (average
precision with which the training images that carry a white square are found behind predictions
that fell for one), and the randomised network (rank correlation with the scores of a network with
random weights; the nearer to zero, the better). Ours are dropout ensembles of the same network,
with q of the members; "little damping" was chosen by mislabeling on the first repeat, "no masks or
damping" by the randomised network on it. Each repeat has another network, other flips and other
test images.
"""

import io
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from attribution.data import dataset
from attribution.models import inputs, network
from attribution.peers import explainer
from attribution.records import DataSpec, EstimatorSpec, RunSpec
from attribution.store import Store
from attribution.train import train

from .peers import installed
from .rows import Options, Row, row

TRAIN, TEST = 1500, 200
MASKS = 10
SQUARE = 4  # pixels
LAST = "7"  # the layers' names in the MLP
HIDDEN = "5"
Make = Callable[[nn.Module, TensorDataset, str, Path], tuple[type, dict[str, Any]]]


def ours(estimator: EstimatorSpec, p: float = 0.1, masks: int = MASKS) -> Make:
    def make(model: nn.Module, half: TensorDataset, file: str, place: Path) -> tuple[type, dict]:
        return explainer(), {"masks": masks, "p": p, "estimator": estimator}

    return make


def trak(model: nn.Module, half: TensorDataset, file: str, place: Path) -> tuple[type, dict]:
    from quanda.explainers.wrappers import TRAK

    return TRAK, {
        "model_id": "net", "cache_dir": str(place / "trak"), "proj_dim": 512, "batch_size": 500,
        "projector": "basic", "load_from_disk": False,
    }  # fmt: skip


def arnoldi(model: nn.Module, half: TensorDataset, file: str, place: Path) -> tuple[type, dict]:
    from quanda.explainers.wrappers import CaptumArnoldi

    return CaptumArnoldi, {"batch_size": 500}


def tracin(model: nn.Module, half: TensorDataset, file: str, place: Path) -> tuple[type, dict]:
    from quanda.explainers.wrappers import CaptumTracInCP

    return CaptumTracInCP, {"batch_size": 500}


def tracin_fast(model: nn.Module, half: TensorDataset, file: str, place: Path) -> tuple[type, dict]:
    from quanda.explainers.wrappers import CaptumTracInCPFast

    return CaptumTracInCPFast, {"batch_size": 500, "final_fc_layer": LAST}


def similarity(model: nn.Module, half: TensorDataset, file: str, place: Path) -> tuple[type, dict]:
    from quanda.explainers.wrappers import CaptumSimilarity

    return CaptumSimilarity, {
        "model_id": "net", "cache_dir": str(place / "captum"), "layers": HIDDEN, "batch_size": 500,
        "load_from_disk": False,
    }  # fmt: skip


OURS: dict[str, Make] = {
    "ours, TRAK": ours(EstimatorSpec()),
    "ours, TRAK, little damping": ours(EstimatorSpec(damping=0.003, q_power=0.25), p=0.02),
    "ours, TRAK, no masks or damping": ours(EstimatorSpec(damping=1e-6, q_power=0.25), masks=0),
    "ours, Grad-Dot": ours(EstimatorSpec(name="graddot", q_power=0)),
    "ours, TracIn": ours(EstimatorSpec(name="tracin", q_power=0)),
}
THEIRS: dict[str, Make] = {
    "TRAK, 512 dims": trak,
    "Captum Arnoldi": arnoldi,
    "Captum TracInCP": tracin,
    "Captum TracInCPFast": tracin_fast,
    "Captum similarity": similarity,
}
EXPLAINERS = {**OURS, **THEIRS}


def measure(options: Options) -> list[Row]:
    installed("quanda", "captum")
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder, quiet():
        store = Store(options.cache or Path(folder) / "cache")
        for seed in range(options.times(3)):
            for task, name, score in judged(store, seed, Path(folder)):
                found[task, name].append(score)
    rows = []
    for task in dict.fromkeys(task for task, _ in found):
        rows += [row(f"{task}: {name}", found[task, name], "") for name in EXPLAINERS]
        best = [
            [max(values) for values in zip(*(found[task, n] for n in some), strict=True)]
            for some in (OURS, THEIRS)
        ]
        less = [a - b for a, b in zip(*best, strict=True)]
        rows.append(row(f"{task}: best of ours less best of the others", less, "", at_least=0))
    return rows


@contextmanager
def quiet() -> Iterator[None]:
    """Progress bars and warnings of the other libraries unseen."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def judged(store: Store, seed: int, folder: Path) -> Iterator[tuple[str, str, float]]:
    """Task, explainer and score."""
    from quanda.metrics.downstream_eval import (
        ClassDetectionMetric,
        MislabelingDetectionMetric,
        ShortcutDetectionMetric,
    )
    from quanda.metrics.heuristics import ModelRandomizationMetric

    draw = np.random.default_rng(seed)
    data = dataset(store, DataSpec())
    some_N = draw.permutation(len(data.train))[:TRAIN]
    some_T = draw.permutation(len(data.test))[:TEST]
    x_N, x_T = (
        inputs("mlp", data, half.images[some])
        for half, some in ((data.train, some_N), (data.test, some_T))
    )
    y_N, y_T = (
        torch.from_numpy(half.labels_N[some])
        for half, some in ((data.train, some_N), (data.test, some_T))
    )
    white = float(x_N.max())

    def fitted(x: Tensor, y: Tensor, name: str) -> tuple[nn.Module, str]:
        fresh = network("mlp", data, 1.0, seed)
        spec = RunSpec(data_id=data.id, model="mlp", epochs=30, seed=seed)
        model = train(fresh, x, y, spec, beliefs=False).network
        file = folder / f"{name}-{seed}.pt"
        torch.save(model.state_dict(), file)
        return model, str(file)

    def explained(
        model: nn.Module, half: TensorDataset, file: str, name: str, make: Make
    ) -> tuple[Any, type, dict]:
        kind, more = make(model, half, file, folder / f"{name}-{seed}")
        return kind(model=model, train_dataset=half, checkpoints=[file], **more), kind, more

    model, file = fitted(x_N, y_N, "plain")
    plain = TensorDataset(x_N, y_N)
    with torch.no_grad():
        predicted_T = model(x_T).argmax(1)
    for name, make in EXPLAINERS.items():
        made, kind, more = explained(model, plain, file, "plain", make)
        scores_TN = made.explain(x_T, predicted_T)
        classes = ClassDetectionMetric(model=model, train_dataset=plain, s=5)
        classes.update(scores_TN, predicted_T)
        yield "class detection", name, classes.compute()["score"]
        random = ModelRandomizationMetric(
            model=model,
            model_id="net",
            cache_dir=str(folder / f"random-{name}-{seed}"),
            train_dataset=plain,
            checkpoints=[file],
            explainer_cls=kind,
            expl_kwargs=more,
        )
        random.update(scores_TN, x_T, predicted_T)
        yield "randomised network, less |correlation|", name, -abs(random.compute()["score"])

    wrong_N = draw.permutation(TRAIN)[: TRAIN // 10]
    flipped_N = y_N.clone()
    flipped_N[wrong_N] = (y_N[wrong_N] + torch.from_numpy(draw.integers(1, 10, len(wrong_N)))) % 10
    model, file = fitted(x_N, flipped_N, "flipped")
    noisy = TensorDataset(x_N, flipped_N)
    for name, make in EXPLAINERS.items():
        made, _, _ = explained(model, noisy, file, "flipped", make)
        found = MislabelingDetectionMetric(
            model=model,
            train_dataset=noisy,
            mislabeling_indices=wrong_N.tolist(),
            precomputed_self_influence=made.self_influence(batch_size=500),
        )
        yield "mislabeling detection", name, found.compute()["score"]

    target = 0
    marked_N = torch.from_numpy(draw.permutation(np.flatnonzero(y_N == target))[::2].copy())
    with_square_N = x_N.clone()
    with_square_N[marked_N, :, :SQUARE, :SQUARE] = white
    model, file = fitted(with_square_N, y_N, "square")
    squares = TensorDataset(with_square_N, y_N)
    asked_T = x_T.clone()
    asked_T[:, :, :SQUARE, :SQUARE] = white
    for name, make in EXPLAINERS.items():
        made, _, _ = explained(model, squares, file, "square", make)
        scores_TN = made.explain(asked_T, torch.full((TEST,), target))
        fell = ShortcutDetectionMetric(
            model=model, train_dataset=squares, shortcut_indices=marked_N, shortcut_cls=target
        )
        fell.update(scores_TN, asked_T, y_T)
        yield "shortcut detection", name, fell.compute()["score"]
