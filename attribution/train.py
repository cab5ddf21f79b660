"""Train one network, and note what it believes of each example on the way.

By the recipe here, or by the user's own FUNCTION of a FILE.py (`by_own`).

Axes: N training examples, C classes, B a batch.
"""

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .models import own, owned
from .records import Report, RunSpec, UserError, silent

SCHEDULES = ("constant", "linear")  # of the learning rate


@dataclass(frozen=True, eq=False)
class Trained:
    """What a run leaves behind."""

    network: nn.Module  # in evaluation mode
    belief_NC: np.ndarray | None  # float32, probability of each class, mean over the epochs
    snapshots: Mapping[int, Mapping[str, Tensor]]  # weights by the number of epochs behind them


def train(
    network: nn.Module,
    x_N: Tensor,
    labels_N: Tensor,
    spec: RunSpec,
    report: Report = silent,
    *,
    beliefs: bool = True,
    kept_N: Tensor | None = None,
    asked_H: Tensor | None = None,
) -> Trained:
    """Fit `network` in place by SGD with momentum; a function of its arguments alone.

    Only parameters that want a gradient are fitted: of a network with an adapter, the adapter.
    The statistics of its batch norms are then left alone too.

    After each epoch the network, in evaluation mode, says what it believes of every training
    example; the mean over epochs is the signal that tells wrong labels best (mean over training
    of probabilities, as in "Area Under the Margin", arXiv 2001.10528). Without `beliefs` it is
    left out, and zero; given `asked_H`, it is of those inputs and not of the training examples.

    Examples that are not `kept_N` (bool) are left out of their batches, which are otherwise those
    of a training on all.

    Raises `UserError` when the loss is no longer finite, there is nothing to fit, or less than two
    examples to fit it on.
    """
    if spec.train:
        return by_own(network, x_N, labels_N, spec, report, kept_N=kept_N, asked_H=asked_H)
    if not any(p.requires_grad for p in network.parameters()):
        raise UserError(
            found=f"network {spec.model!r}, in which no parameter wants a gradient",
            wanted="at least one to train",
            next_step="give its weights with --checkpoint, or let it want some",
        )
    count = len(x_N) if kept_N is None else int(kept_N.sum())
    if count < 2:
        raise UserError(
            found=f"{count} training image{'' if count == 1 else 's'}",
            wanted="at least two to train a network on",
            next_step="give more training images",
        )
    draw = torch.Generator().manual_seed(spec.seed)
    if x_N.dim() == 4 and x_N.shape[1] > 1:  # a third faster on a processor
        network.to(memory_format=torch.channels_last)
        x_N = x_N.contiguous(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(
        [p for p in network.parameters() if p.requires_grad],
        lr=spec.learning_rate,
        momentum=spec.momentum,
        weight_decay=spec.weight_decay,
    )
    belief_NC = torch.zeros(1, 1)
    adapting = any(not p.requires_grad for p in network.parameters())
    norms = [m for m in network.modules() if adapting and isinstance(m, BATCH_NORMS)]
    kept = snapshot_epochs(spec.epochs, spec.snapshots)
    snapshots: dict[int, dict[str, Tensor]] = {}
    rates = learning_rates(spec, len(x_N))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)  # dropout draws from the global stream
        for epoch in range(spec.epochs):
            report("train", epoch, spec.epochs)
            network.train()
            for norm in norms:
                norm.eval()
            loss = torch.zeros(())  # of an epoch without a batch of two
            for batch_B in torch.randperm(len(x_N), generator=draw).split(spec.batch):
                optimiser.param_groups[0]["lr"] = next(rates)
                if kept_N is not None:
                    batch_B = batch_B[kept_N[batch_B]]
                if len(batch_B) < 2:  # batch norm needs two
                    continue
                loss = F.cross_entropy(network(x_N[batch_B]), labels_N[batch_B])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
            finite(loss, epoch, spec)
            if beliefs:
                belief_NC = belief_NC + probabilities(network, x_N if asked_H is None else asked_H)
            if epoch + 1 in kept:
                snapshots[epoch + 1] = {k: plain(v) for k, v in network.state_dict().items()}
    report("train", spec.epochs, spec.epochs)
    network.to(memory_format=torch.contiguous_format)
    return Trained(network.eval(), (belief_NC / spec.epochs).numpy(), snapshots)


def by_own(
    network: nn.Module,
    x_N: Tensor,
    labels_N: Tensor,
    spec: RunSpec,
    report: Report = silent,
    *,
    kept_N: Tensor | None = None,
    asked_H: Tensor | None = None,
) -> Trained:
    """Fit `network` by the user's own FUNCTION of a FILE.py, called as

        FUNCTION(network, x, y, seed=seed)                 # or also after_epoch=after_epoch

    `network` is the fresh one, its weights a function of the seed; `x` (n, ...) float32 are the
    training inputs as the network takes them, `y` (n,) int64 their labels, `seed` a whole number.
    It fits the network in place or returns another of the same kind; the global random stream of
    torch is seeded and put back. For removals it is called with fewer examples, so it must be a
    function of its arguments alone.

    If it takes ``after_epoch`` it may call ``after_epoch(network)`` after each of its epochs, for
    what the network believes while training to be noted, which tells wrong labels best. Else the
    belief is None.
    """
    x_n, labels_n = (x_N, labels_N) if kept_N is None else (x_N[kept_N], labels_N[kept_N])
    asked = x_N if asked_H is None else asked_H
    epochs, total_NC = 0, torch.zeros(1, 1)

    def after_epoch(now: nn.Module) -> None:
        nonlocal epochs, total_NC
        training = now.training
        total_NC = total_NC + probabilities(now, asked)
        now.train(training)
        epochs += 1
        report("train", epochs, max(spec.epochs, epochs + 1))

    report("train", 0, 1)
    function = own(spec.train, "--train")
    with torch.random.fork_rng(devices=[]), owned(spec.train, "--train"):
        torch.manual_seed(spec.seed)
        takes = inspect.signature(function).parameters
        more = {"after_epoch": after_epoch} if "after_epoch" in takes else {}
        made = function(network.train(), x_n, labels_n, seed=spec.seed, **more)
    if made is not None and made is not network:
        try:
            network.load_state_dict(made.state_dict())
        except (AttributeError, RuntimeError) as error:
            raise UserError(
                found=f"{spec.train} returned {type(made).__name__} that is not the network",
                wanted="the network that it was given, or another of the same kind",
                next_step="mend the file given to --train",
            ) from error
    if not all(torch.isfinite(v).all() for v in network.state_dict().values()):
        raise UserError(
            found=f"{spec.train} left weights that are not finite",
            wanted="training that converges",
            next_step="mend the file given to --train",
        )
    report("train", 1, 1)
    return Trained(network.eval(), (total_NC / epochs).numpy() if epochs else None, {})


def learning_rates(spec: RunSpec, count: int) -> Iterator[float]:
    """The learning rate of each step of a training on `count` examples.

    Constant, or from the rate given towards zero in a straight line, a step at a time.
    """
    steps = spec.epochs * -(-count // spec.batch)
    for step in range(steps):
        left = 1 - step / steps if spec.schedule == "linear" else 1
        yield spec.learning_rate * left


def plain(value: Tensor) -> Tensor:
    """A copy that lies in memory as others expect it."""
    return value.clone(memory_format=torch.contiguous_format)


def snapshot_epochs(epochs: int, snapshots: int) -> tuple[int, ...]:
    """After which epochs weights are kept: evenly spaced, the last after the last epoch."""
    return tuple(round(epochs * (s + 1) / snapshots) for s in range(snapshots))


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
STACKED = (nn.Flatten, nn.Linear, nn.ReLU, nn.GELU, nn.Tanh, nn.Dropout, nn.Identity, nn.LayerNorm)


def stackable(network: nn.Module, spec: RunSpec | None = None) -> bool:
    """Whether several networks of this kind train faster together: no convolution, no batch norm.

    A stack of convolutions is a grouped convolution, which a processor does one by one. The user's
    own training of a `spec` gets one network at a time, and so does one that is frozen in part.
    """
    if (spec and spec.train) or not all(p.requires_grad for p in network.parameters()):
        return False
    leaves = [m for m in network.modules() if not list(m.children())]
    return all(type(m) in STACKED for m in leaves)


def train_together(
    networks: Sequence[nn.Module],
    x_N: Tensor,
    labels_N: Tensor,
    rows_Mn: Tensor,
    spec: RunSpec,
    report: Report = silent,
    *,
    seeds: Sequence[int] = (),
    kept_MN: Tensor | None = None,
    asked_MH: Tensor | None = None,
) -> np.ndarray:
    """Fit M networks of one kind in place, the m-th on the examples `rows_Mn[m]`, as `train` does.

    But for batches of less than two examples, which `train` leaves out: here one of a single
    example is a step too, and one of none is a step of momentum and decay alone.

    Their weights are stacked, so that every step is one batched matrix product for all. SGD is
    elementwise, and the sum of the losses has each network's own gradient, so each is trained as
    if alone; only dropout and the order of examples are drawn from one stream, `spec.seed`'s.

    With `seeds`, one for each network, its order is the one that `train` draws with that seed.
    Examples that are not `kept_MN` (bool) are left out of their batches, which are otherwise those
    of a training on all.

    Returns what the m-th network believes of the examples `asked_MH[m]`, probabilities of the
    classes in evaluation mode, mean over the epochs, float32 (M, H, C); nobody asked, (M, 0, 0).
    """
    draws = [torch.Generator().manual_seed(seed) for seed in seeds or (spec.seed,)]
    stacked, buffers = torch.func.stack_module_state(list(networks))
    alike = copy.deepcopy(networks[0]).train()

    def loss(
        weights: dict[str, Tensor], state: dict[str, Tensor], x: Tensor, y: Tensor, kept: Tensor
    ) -> Tensor:
        logits = torch.func.functional_call(alike, (weights, state), (x,))
        if kept_MN is None:
            return F.cross_entropy(logits, y)
        each = F.cross_entropy(logits, y, reduction="none")
        return (each * kept).sum() / kept.sum().clamp_min(1)

    losses = torch.func.vmap(loss, randomness="different")
    still = copy.deepcopy(networks[0]).eval()

    def believed(weights: dict[str, Tensor], state: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(still, (weights, state), (x,)).softmax(1)

    beliefs = torch.func.vmap(believed)
    belief_MHC = torch.zeros(len(networks), 0, 0)
    optimiser = torch.optim.SGD(
        stacked.values(),
        lr=spec.learning_rate,
        momentum=spec.momentum,
        weight_decay=spec.weight_decay,
    )
    rates = learning_rates(spec, rows_Mn.shape[1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        for epoch in range(spec.epochs):
            report("train", epoch, spec.epochs)
            if seeds:
                orders = [torch.randperm(rows_Mn.shape[1], generator=draw) for draw in draws]
                order_Mn = torch.stack(orders)
            else:
                order_Mn = torch.rand(rows_Mn.shape, generator=draws[0]).argsort(1)
            for batch_MB in rows_Mn.gather(1, order_Mn).split(spec.batch, dim=1):
                optimiser.param_groups[0]["lr"] = next(rates)
                used_MB = batch_MB if kept_MN is None else kept_MN.gather(1, batch_MB)
                some = x_N[batch_MB], labels_N[batch_MB], used_MB
                total = losses(stacked, buffers, *some).sum()
                optimiser.zero_grad(set_to_none=True)
                total.backward()
                optimiser.step()
            finite(total, epoch, spec)
            if asked_MH is not None:
                with torch.no_grad():
                    parts = [beliefs(stacked, buffers, x_N[h]) for h in asked_MH.split(512, dim=1)]
                now_MHC = torch.cat(parts, 1)
                belief_MHC = belief_MHC + now_MHC if epoch else now_MHC
    report("train", spec.epochs, spec.epochs)
    for m, network in enumerate(networks):
        found = {n: v[m].detach() for n, v in {**stacked, **buffers}.items()}
        network.load_state_dict(found, strict=False)  # without second names of tied weights
        network.eval()
    return (belief_MHC / spec.epochs).numpy()


def finite(loss: Tensor, epoch: int, spec: RunSpec) -> None:
    if not torch.isfinite(loss):
        raise UserError(
            found=f"a loss of {loss.item()} in epoch {epoch + 1} of {spec.model}",
            wanted="training that converges",
            next_step="try another --model or --seed",
        )


def probabilities(network: nn.Module, x_N: Tensor, batch: int = 512) -> Tensor:
    """Class probabilities in evaluation mode, float32 (N, C)."""
    network.eval()
    with torch.no_grad():
        return torch.cat([network(x_B).softmax(1) for x_B in x_N.split(batch)])
