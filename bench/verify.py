"""Predicted against realised: removals verified by retraining, and what proponents are worth.

MNIST-5k, the paper's MLP, the demo's settings on five networks without masks. Thirty sets are
removed, each kind and size of them for each of three test images: proponents by their rank,
opponents, neighbours by pixels and by the last layer's input, and random ones; every set counts
for every image. Each is retrained without on ten seeds, paired with networks on all examples.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from attribution import whatif
from attribution.build import Build
from attribution.engine import Engine
from attribution.gradients import margin
from attribution.making import examples
from attribution.metrics import interval, lds
from attribution.records import BuildSpec, Checkpoint, silent
from attribution.store import Store
from attribution.stored import load_network

from .rows import Options, Row, row

SPEC = BuildSpec(strategy="naive", masks=0)
IMAGES = 3  # test images, drawn among those classified right
SEEDS = 10
SIZES = (10, 20, 50, 100, 200)
FIXED = 100  # what the kinds of sets are compared at
Kind = tuple[int, str, int]  # image (-1: of all), kind of set, size


def measure(options: Options) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(options.cache or Path(folder) / "cache")
        build = engine.open(engine.build(SPEC)["build"])
        draw = np.random.default_rng(options.seed)
        right = np.flatnonzero(build.predicted_T == build.test_labels_T)
        tests = np.sort(draw.permutation(right)[:IMAGES])
        scores_TN = build.scores()[tests]
        sets = removals(build, tests, scores_TN, draw)
        realised_RST = retrained(engine.store, build, list(sets.values()), options.times(SEEDS))
        moved_ST = realised_RST[..., tests].mean(0)
        predicted_TS = -np.stack([scores_TN[:, list(s)].sum(1) for s in sets.values()], 1)
        return rows(list(sets), predicted_TS, moved_ST)


def removals(
    build: Build, tests: np.ndarray, scores_TN: np.ndarray, draw: np.random.Generator
) -> dict[Kind, tuple[int, ...]]:
    """The sets to remove, rising positions."""
    found: dict[Kind, np.ndarray] = {}
    last_N, last_T = (last_inputs(build, half) for half in ("train", "test"))
    pixels_N, pixels_T = (
        h.images.reshape(len(h), -1).astype(np.float32) for h in (build.data.train, build.data.test)
    )
    for size in SIZES[:1:-1]:
        found[-1, "random", size] = draw.permutation(len(build.train_ids))[:size]
    for j, t in enumerate(tests):
        order_N = np.argsort(-scores_TN[j], kind="stable")
        found |= {(j, "proponents", size): order_N[:size] for size in SIZES}
        found[j, "proponents of rank 101 to 200", FIXED] = order_N[FIXED : 2 * FIXED]
        found[j, "opponents", FIXED] = order_N[-FIXED:]
        found[j, "neighbours by pixels", FIXED] = nearest(pixels_N, pixels_T[t])
        found[j, "neighbours by the last layer's input", FIXED] = nearest(last_N, last_T[t])
    return {kind: tuple(sorted(ids.tolist())) for kind, ids in found.items()}


def nearest(values_NF: np.ndarray, value_F: np.ndarray) -> np.ndarray:
    return np.argsort(np.square(values_NF - value_F).sum(1), kind="stable")[:FIXED]


def last_inputs(build: Build, half: str) -> np.ndarray:
    """What the last layer of the first network sees of each example, (N, F)."""
    checkpoint = Checkpoint(run_id=build.parts["runs"][0])
    module = load_network(build.store, build.spec, build.data, checkpoint)
    last = [m for m in module.modules() if isinstance(m, nn.Linear)][-1]
    seen: list[Tensor] = []
    last.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    split = build.data.train if half == "train" else build.data.test
    with torch.no_grad():
        module(examples(build.spec, build.data, split).x_N)
    return seen[0].numpy()


def retrained(store: Store, build: Build, sets: list[tuple[int, ...]], seeds: int) -> np.ndarray:
    """Changes (R, S, T) of the label's margin of every test example, without each set."""
    run = replace(build.recipe, seed=0, snapshots=0)
    data = build.data
    train_half, test_half = (examples(build.spec, data, h) for h in (data.train, data.test))
    # One set a stack: the same seeds together have the same dropout masks, whatever is removed.
    logits = [
        whatif.part(store, data, train_half, test_half, run, removed, range(seeds), silent).array(
            "logits"
        )
        for removed in (whatif.NONE, *sets)
    ]
    label_T = torch.from_numpy(build.test_labels_T)
    margin_MT = [
        margin(torch.from_numpy(one_TC), label_T).numpy() for one_TC in np.concatenate(logits)
    ]
    margin_SRT = np.stack(margin_MT).reshape(1 + len(sets), seeds, -1)
    return (margin_SRT[1:] - margin_SRT[0]).transpose(1, 0, 2)


def rows(kinds: list[Kind], predicted_TS: np.ndarray, moved_ST: np.ndarray) -> list[Row]:
    """Rank correlations within an image, and the drop of the margin by kind of set."""
    each_T = lds(predicted_TS, moved_ST)
    low, high = interval(predicted_TS, moved_ST, np.random.default_rng(0), 1000)
    sized = np.array([size for _, _, size in kinds])
    same = sized == FIXED
    number_TS = -np.tile(sized.astype(float), (len(each_T), 1))
    what = f"rank correlation, {len(kinds)} sets"
    found = [
        row(f"{what}, mean of {len(each_T)} images", float(each_T.mean()), "", at_least=0.6),
        row("of it: 95 % interval over the sets, from", low, ""),
        row("of it: 95 % interval over the sets, to", high, ""),
        *(row(f"{what}, image {j + 1}", float(v), "") for j, v in enumerate(each_T)),
        row(
            f"the same among the {same.sum()} sets of {FIXED}",
            float(lds(predicted_TS[:, same], moved_ST[same]).mean()),
            "",
        ),
        row("by the number removed alone", float(lds(number_TS, moved_ST).mean()), ""),
    ]
    drops: dict[str, list[float]] = {}
    for j in range(len(each_T)):
        for s, (image, kind, size) in enumerate(kinds):
            if image in (j, -1) and size == FIXED:
                drops.setdefault(kind, []).append(-float(moved_ST[s, j]))
    for kind, values in drops.items():
        found.append(row(f"drop of the margin without {FIXED}: {kind}", values, ""))
    ours = np.array(drops["proponents"])
    for kind, values in drops.items():
        if kind.startswith(("neighbours", "random")):
            more = (ours - values).tolist()
            found.append(row(f"proponents' drop less that of {kind}", more, "", at_least=0))
    return found
