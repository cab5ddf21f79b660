"""The same picture twice: in train and test, which makes the test too easy, or under two labels.

Candidates are the nearest of each image by its grey values on 8 x 8 squares. Twins among them are
those whose differences between neighbouring pixels correlate far more than is usual in this data:
digits on black resemble each other more than photographs do, so no one threshold fits both. They
have to correlate in the inner half too, or a frame would make twins of what it frames.

Axes: N, T images, K candidates of each, P pairs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

SQUARES = 8
CANDIDATES = 3
MOST = 60_000  # images among which near ones are looked for; it takes their square
LEAST, ENOUGH = 0.6, 0.95  # below which nothing is a twin, above which everything is
SURE = 0.7  # where two labels say otherwise
BEYOND = 3.5  # times the distance from the median to the upper quartile, beyond that
PART = 256


@dataclass(frozen=True, eq=False)
class Twins:
    """Pairs of positions and how alike they are: 1 where the files are the same."""

    pairs_P2: np.ndarray  # int64
    alike_P: np.ndarray  # float32

    def __len__(self) -> int:
        return len(self.alike_P)


def across(
    test: np.ndarray, train: np.ndarray, test_ids: Sequence[str], train_ids: Sequence[str]
) -> Twins:
    """(test, train) for each test image that training has too, the surest first."""
    same = {digest(name): i for i, name in reversed(list(enumerate(train_ids)))}
    found = {t: (same[d], 1.0) for t, d in enumerate(map(digest, test_ids)) if d in same}
    for t, i, alike in near(test, train):
        if alike > found.get(t, (0, 0.0))[1]:
            found[t] = i, alike
    return ordered({(t, i): alike for t, (i, alike) in found.items()})


def within(train: np.ndarray, train_ids: Sequence[str]) -> Twins:
    """(earlier, later) among the training images, the surest first."""
    found: dict[tuple[int, int], float] = {}
    first: dict[str, list[int]] = {}
    for i, name in enumerate(train_ids):
        others = first.setdefault(digest(name), [])
        found |= {(j, i): 1.0 for j in others[:CANDIDATES]}
        others.append(i)
    for i, j, alike in near(train, train):
        pair = min(i, j), max(i, j)
        found[pair] = max(alike, found.get(pair, 0.0))
    return ordered(found)


def digest(name: str) -> str:
    """The part of an example's id that names its content."""
    return name.partition("-")[0]


def ordered(found: dict[tuple[int, int], float]) -> Twins:
    some = sorted(found, key=lambda pair: (-found[pair], pair))
    return Twins(
        np.array(some, np.int64).reshape(-1, 2), np.array([found[p] for p in some], np.float32)
    )


def near(asked: np.ndarray, among: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """(asked, among, how alike) of the pairs that are twins by their pixels, at most .999."""
    itself = asked is among
    wanted = min(CANDIDATES, len(among) - itself)
    if wanted < 1 or not len(asked) or max(len(asked), len(among)) > MOST:
        return
    all_Nd = torch.cat([squares(some) for some in parts(among)])
    best_TK, nearest_TK = [], []
    for at, some in enumerate(parts(asked)):
        alike_BN = squares(some) @ all_Nd.T
        if itself:
            rows = torch.arange(len(some))
            alike_BN[rows, at * PART + rows] = -2
        nearest_BK = alike_BN.topk(wanted, 1).indices
        found_KB = [alike(some, among[nearest_BK[:, k].numpy()]) for k in range(wanted)]
        best_TK.append(torch.stack(found_KB, 1))
        nearest_TK.append(nearest_BK)
    found_TK, places_TK = torch.cat(best_TK).numpy(), torch.cat(nearest_TK).numpy()
    least = threshold(found_TK.max(1))
    for t, k in zip(*np.nonzero(found_TK > least), strict=True):
        yield int(t), int(places_TK[t, k]), min(float(found_TK[t, k]), 0.999)


def threshold(best_T: np.ndarray) -> float:
    """How alike twins are in data whose images are so like their nearest.

    From quartiles, because a fifth of a test half may be in training.
    """
    middle, high = np.quantile(best_T, [0.5, 0.75])
    return float(np.clip(high + BEYOND * (high - middle), LEAST, ENOUGH))


def parts(images: np.ndarray) -> Iterator[np.ndarray]:
    for at in range(0, len(images), PART):
        yield images[at : at + PART]


def lightness(images: np.ndarray) -> Tensor:
    """uint8 (B, H, W[, 3]) to float (B, H, W): of colours, what a JPEG keeps best."""
    x = torch.from_numpy(np.array(images, np.float32))
    return x if x.dim() == 3 else x @ torch.tensor([0.299, 0.587, 0.114])


def squares(images: np.ndarray) -> Tensor:
    """Mean lightness of 8 x 8 squares, centred and of length 1, (B, 64)."""
    coarse = interpolate(lightness(images)[:, None], (SQUARES, SQUARES), mode="area")
    coarse = coarse.flatten(1)
    return normalize(coarse - coarse.mean(1, keepdim=True))


def alike(some: np.ndarray, others: np.ndarray) -> Tensor:
    """How well the edges of each image correlate with its other's, (B,)."""
    side = some.shape[1]
    inner = slice(side // 4, side - side // 4)
    whole_B = (edges(some) * edges(others)).sum(1)
    inner_B = (edges(some[:, inner, inner]) * edges(others[:, inner, inner])).sum(1)
    return torch.minimum(whole_B, inner_B)


def edges(images: np.ndarray) -> Tensor:
    """Differences between neighbouring pixels, of length 1, (B, p)."""
    x = lightness(images)
    across, down = x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]
    return normalize(torch.cat([across.flatten(1), down.flatten(1)], 1))
