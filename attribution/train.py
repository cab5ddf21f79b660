"""Train one network, and note what it believes of each example on the way.

Axes: N training examples, C classes, B a batch.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .records import Report, RunSpec, UserError, silent


@dataclass(frozen=True, eq=False)
class Trained:
    """What a run leaves behind."""

    network: nn.Module  # in evaluation mode
    belief_NC: np.ndarray  # float32, probability of each class, mean over the epochs


def train(
    network: nn.Module, x_N: Tensor, labels_N: Tensor, spec: RunSpec, report: Report = silent
) -> Trained:
    """Fit `network` in place by SGD with momentum; a function of its arguments alone.

    After each epoch the network, in evaluation mode, says what it believes of every training
    example; the mean over epochs is the signal that tells wrong labels best (mean over training
    of probabilities, as in "Area Under the Margin", arXiv 2001.10528).

    Raises `UserError` when the loss is no longer finite.
    """
    draw = torch.Generator().manual_seed(spec.seed)
    optimiser = torch.optim.SGD(
        network.parameters(),
        lr=spec.learning_rate,
        momentum=spec.momentum,
        weight_decay=spec.weight_decay,
    )
    belief_NC = torch.zeros(())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)  # dropout draws from the global stream
        for epoch in range(spec.epochs):
            report("train", epoch, spec.epochs)
            network.train()
            for batch_B in torch.randperm(len(x_N), generator=draw).split(spec.batch):
                if len(batch_B) < 2:  # batch norm needs two
                    continue
                loss = F.cross_entropy(network(x_N[batch_B]), labels_N[batch_B])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
            if not torch.isfinite(loss):
                raise UserError(
                    found=f"a loss of {loss.item()} in epoch {epoch + 1} of {spec.model}",
                    wanted="training that converges",
                    next_step="try another --model or --seed",
                )
            belief_NC = belief_NC + probabilities(network, x_N)
    report("train", spec.epochs, spec.epochs)
    return Trained(network.eval(), (belief_NC / spec.epochs).numpy())


def probabilities(network: nn.Module, x_N: Tensor, batch: int = 512) -> Tensor:
    """Class probabilities in evaluation mode, float32 (N, C)."""
    network.eval()
    with torch.no_grad():
        return torch.cat([network(x_B).softmax(1) for x_B in x_N.split(batch)])
