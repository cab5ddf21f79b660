"""What several sides say of every training label; none of them sees the labels before noise.

Axes: N training examples, T test examples, C classes, M networks, H features, k hits.
"""

from dataclasses import dataclass

import numpy as np
from torch import nn
from torch.nn.functional import normalize

from .features import Examples
from .index import nearest
from .models import last_layer
from .train import probabilities
from .tuning import reaching

NEIGHBOURS = 50
OPPONENTS = 50  # of each test example


@dataclass(frozen=True, eq=False, kw_only=True)
class Evidence:
    """All that the ranking of suspicious labels goes by."""

    belief_NC: np.ndarray  # probability of each class, mean over the networks and their epochs
    watched: bool = True  # else nothing is known of their training: `at_the_end`
    disagreement_N: np.ndarray  # `disagreement`
    q_N: np.ndarray  # mean 1 - p of the given label under the members
    self_influence_N: np.ndarray  # the score of each example on itself, without q
    neighbours_NC: np.ndarray  # `neighbour_votes`, mean over the networks
    opponents_NC: np.ndarray  # `opponent_votes`
    unseen_NC: np.ndarray | None = None  # belief of networks that did not train on the example


def embedded(network: nn.Module, examples: Examples, classes: int) -> np.ndarray:
    """What reaches the last layer, each row of length one, float32 (N, H).

    Of a network that does not end in a linear layer, its probabilities.
    """
    last = last_layer(network, classes)
    x_NH = None if last is None else reaching(network, last, examples)
    if x_NH is None:
        return probabilities(network, examples.x_N).numpy()
    return normalize(x_NH[:, :-1]).numpy()


def neighbour_votes(
    x_NH: np.ndarray, labels_N: np.ndarray, classes: int, k: int = NEIGHBOURS
) -> np.ndarray:
    """Share of each class among the k nearest others, the near ones counting more, (N, C).

    A neighbour at distance d weighs exp(-(d / the k-th's) ** 2).
    """
    distance_Nk, near_Nk = nearest(x_NH, min(k, len(x_NH) - 1))
    weight_Nk = np.exp(-((distance_Nk / np.maximum(distance_Nk[:, -1:], 1e-12)) ** 2))
    votes_NC = np.zeros((len(x_NH), classes))
    for column, each_N in enumerate(near_Nk.T):
        votes_NC[np.arange(len(x_NH)), labels_N[each_N]] += weight_Nk[:, column]
    return votes_NC / votes_NC.sum(1, keepdims=True)


def opponent_votes(
    opponents_Tk: np.ndarray, test_labels_T: np.ndarray, count: int, classes: int
) -> np.ndarray:
    """How many test examples of each class have an example among their strongest opponents, (N, C).

    A label that should have been c pulls what looks like c away from c: its example opposes the
    test examples of the class that it belongs to.
    """
    votes_NC = np.zeros((count, classes))
    label_Tk = np.broadcast_to(test_labels_T[:, None], opponents_Tk.shape)
    np.add.at(votes_NC, (opponents_Tk, label_Tk), 1)
    return votes_NC


def at_the_end(probs_NC: np.ndarray, q_N: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """A belief (N, C) for want of that during training: of trained networks and of their members.

    The given label has 1 - `q_N`, what the members believe; the rest is shared among the other
    classes as the networks' last probabilities are.
    """
    at = np.arange(len(labels_N))
    belief_NC = probs_NC.astype(np.float64) + 1e-9
    belief_NC[at, labels_N] = 0
    belief_NC *= (q_N / belief_NC.sum(1))[:, None]
    belief_NC[at, labels_N] = 1 - q_N.astype(np.float64)
    return belief_NC.astype(np.float32)


def disagreement(doubt_MN: np.ndarray) -> np.ndarray:
    """Standard deviation over networks (or members) of 1 - p of the given label, (N,)."""
    return doubt_MN.std(0, ddof=1) if len(doubt_MN) > 1 else np.zeros(doubt_MN.shape[1])
