"""How ResNet-9 is trained: one low rate throughout, or a high one that falls to zero.

A ResNet-9 of 1/8 of its width for 10 epochs on CIFAR-10's first 10,000 images (--cifar10), by the
recipe that other networks have and by `strategies.usual_training` for this one: accuracy on 2,000
test images, with true labels and with 10 % flipped by class; with those also the average precision
of flipped labels ranked by what the network believed of them while it was trained. A repeat has
another network, other batches and other flips.
"""

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score

from attribution.data import noisy
from attribution.models import resnet9
from attribution.records import DataSpec, RunSpec
from attribution.strategies import usual_training
from attribution.train import probabilities, train

from .images import cifar10_start, named, scaled
from .rows import Options, Row, row

TRAIN, TEST = 10_000, 2_000
WIDTH, EPOCHS = 0.125, 10
NOISE = 0.1
RECIPES = {"one low rate": "mlp", "a rate that falls": "resnet9"}  # whose recipe it is


def measure(options: Options) -> list[Row]:
    images = cifar10_start(named(options.cifar10), TRAIN, TEST)
    x_N, x_T = (scaled(images[f"{half}_images"]) for half in ("train", "test"))
    labels_N, labels_T = images["train_labels"], images["test_labels"]
    found: dict[str, list[float]] = defaultdict(list)
    for seed in range(options.times(3)):
        flips = DataSpec(noise=NOISE, noise_kind="class", noise_seed=seed)
        for noise in (0.0, NOISE):
            flipped_N = noisy(labels_N, 10, flips) if noise else labels_N
            for name, model in RECIPES.items():
                network, belief_NC = fitted(x_N, flipped_N, seed, usual_training(model))
                what = f"{noise:.0%} flipped: {name}"
                said_T = probabilities(network, x_T).argmax(1).numpy()
                found[f"{what}, test accuracy"].append(float((said_T == labels_T).mean()))
                if noise:
                    doubt_N = 1 - belief_NC[np.arange(TRAIN), flipped_N]
                    precision = average_precision_score(flipped_N != labels_N, doubt_N)
                    found[f"{what}, average precision of its doubt"].append(float(precision))
    return [row(what, values, "") for what, values in found.items()]


def fitted(
    x_N: torch.Tensor, labels_N: np.ndarray, seed: int, recipe: dict[str, Any]
) -> tuple[torch.nn.Module, np.ndarray]:
    """A network, and what it believed of its training examples on the way."""
    torch.manual_seed(seed)
    spec = RunSpec(
        data_id="",
        model="resnet9",
        width=WIDTH,
        epochs=EPOCHS,
        seed=seed,
        learning_rate=recipe["rate"],
        schedule=recipe["schedule"],
        weight_decay=recipe["decay"],
    )
    fresh = resnet9(3, 32, 10, WIDTH)
    done = train(fresh, x_N, torch.from_numpy(labels_N), spec)
    assert done.belief_NC is not None
    return done.network, done.belief_NC
