"""Training against a plain loop, scikit-learn's optimum, and itself with another seed."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from zoo import CASES

from attribution.records import RunSpec, UserError
from attribution.train import (
    Trained,
    probabilities,
    snapshot_epochs,
    stackable,
    train,
    train_together,
)

SPEC = RunSpec(
    data_id="d" * 12, model="mlp", epochs=4, batch=16, weight_decay=0.01, learning_rate=0.05
)


def fresh(seed: int = 0) -> nn.Module:
    """Dropout and batch norm, so that the mode and every random stream matter."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 3)
    )


def iris() -> tuple[Tensor, Tensor]:
    x, y = load_iris(return_X_y=True)
    return torch.from_numpy((x - x.mean(0)) / x.std(0)).float(), torch.from_numpy(y).long()


def run(seed: int = 5, network: nn.Module | None = None) -> Trained:
    spec = RunSpec(**{**vars(SPEC), "seed": seed})
    return train(network or fresh(), *iris(), spec)


def same(a: Trained, b: Trained) -> bool:
    weights = zip(a.network.state_dict().values(), b.network.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in weights) and np.array_equal(a.belief_NC, b.belief_NC)


def test_a_run_is_a_function_of_its_arguments():
    network = fresh()
    torch.manual_seed(1)
    one = run(5, copy.deepcopy(network))
    torch.manual_seed(2)
    assert same(one, run(5, copy.deepcopy(network)))
    assert not same(one, run(6, copy.deepcopy(network)))
    assert not same(one, run(5, fresh(1)))


def test_the_global_random_streams_are_left_as_they_were():
    network = fresh()
    before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    run(5, network)
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])  # noqa: NPY002


def by_hand(network: nn.Module, seed: int) -> tuple[nn.Module, Tensor]:
    """Stochastic gradient descent with momentum and weight decay, each step written out."""
    x, y = iris()
    order = torch.Generator().manual_seed(seed)
    speed = {n: torch.zeros_like(p) for n, p in network.named_parameters()}
    beliefs = []
    torch.manual_seed(seed)
    for _ in range(SPEC.epochs):
        network.train()
        shuffled = torch.randperm(len(x), generator=order)
        for start in range(0, len(x), SPEC.batch):
            some = shuffled[start : start + SPEC.batch]
            logits = network(x[some])
            loss = -(logits.log_softmax(1)[torch.arange(len(some)), y[some]]).mean()
            named = dict(network.named_parameters())
            grads = torch.autograd.grad(loss, list(named.values()))
            with torch.no_grad():
                for (name, p), grad in zip(named.items(), grads, strict=True):
                    pull = grad + SPEC.weight_decay * p
                    speed[name] = SPEC.momentum * speed[name] + pull
                    p.sub_(SPEC.learning_rate * speed[name])
        network.eval()
        with torch.no_grad():
            beliefs.append(torch.stack([network(row[None])[0].softmax(0) for row in x]))
    return network, torch.stack(beliefs).mean(0)


def test_weights_and_beliefs_are_those_of_a_plain_loop():
    network = fresh()
    found = run(5, copy.deepcopy(network))
    wanted, belief = by_hand(copy.deepcopy(network), 5)
    for name, value in wanted.state_dict().items():
        torch.testing.assert_close(found.network.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.belief_NC, belief, atol=1e-4)
    last = probabilities(found.network, iris()[0]).numpy()
    assert np.abs(found.belief_NC - last).max() > 0.01  # the mean over the epochs, not the last


def test_a_convolutional_network_is_that_of_a_plain_loop_and_lies_in_memory_as_others_do():
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 3, 6, 6, generator=draw), torch.arange(40) % 3
    torch.manual_seed(0)
    own = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(),
                        nn.Linear(80, 3))  # fmt: skip
    spec = RunSpec(data_id="", model="", epochs=3, batch=16, snapshots=3, learning_rate=0.05)
    plain = copy.deepcopy(own).train()
    order = torch.Generator().manual_seed(spec.seed)
    optimiser = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=spec.momentum)
    for _ in range(spec.epochs):
        for some in torch.randperm(40, generator=order).split(16):
            optimiser.zero_grad()
            nn.functional.cross_entropy(plain(x[some]), y[some]).backward()
            optimiser.step()
    found = train(own, x, y, spec, beliefs=False)
    for weights in (found.network.state_dict(), found.snapshots[3]):
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5)
            assert weights[name].is_contiguous()
    assert not found.belief_NC.any()


def falling(network: nn.Module, batches: list[Tensor]) -> nn.Module:
    """A plain loop over the batches under torch's own linear schedule, from .05 to nothing."""
    x, y = iris()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1, 0, len(batches))
    for some in batches:
        optimiser.zero_grad()
        F.cross_entropy(network(x[some]), y[some]).backward()
        optimiser.step()
        schedule.step()
    return network


def same_weights(one: nn.Module, other: nn.Module) -> None:
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_a_linear_schedule_is_that_of_torch():
    spec = replace(SPEC, schedule="linear", seed=3)
    network = steady(0)
    order = torch.Generator().manual_seed(3)
    batches = [
        some
        for _ in range(spec.epochs)
        for some in torch.randperm(150, generator=order).split(spec.batch)
    ]
    wanted = falling(copy.deepcopy(network), batches)
    other = train(copy.deepcopy(network), *iris(), replace(spec, schedule="constant")).network
    same_weights(train(network, *iris(), spec).network, wanted)
    assert (other[0].weight - wanted[0].weight).abs().max() > 1e-3


def test_networks_trained_together_fall_as_those_alone():
    spec = replace(STACK, schedule="linear")
    networks, rows_Mn = [steady(m) for m in range(3)], drawn_rows(3)
    wanted = copy.deepcopy(networks)
    train_together(networks, *iris(), rows_Mn, spec)
    draw = torch.Generator().manual_seed(spec.seed)
    orders = [torch.rand(3, 75, generator=draw).argsort(1) for _ in range(spec.epochs)]
    for m, network in enumerate(wanted):
        batches = [b for order_Mn in orders for b in rows_Mn[m][order_Mn[m]].split(spec.batch)]
        same_weights(networks[m], falling(network, batches))


def test_beliefs_are_probabilities_of_every_training_example():
    belief = run().belief_NC
    assert belief.shape == (150, 3) and belief.dtype == np.float32
    assert belief.min() >= 0
    np.testing.assert_allclose(belief.sum(1), 1, atol=1e-5)


def test_a_linear_network_reaches_the_optimum_of_scikit_learn():
    x, y = iris()
    x = torch.cat([x, torch.ones(len(x), 1)], 1)  # the intercept decays as the rest does
    decay = 0.01
    network = nn.Linear(5, 3, bias=False)
    spec = RunSpec(
        data_id="d" * 12, model="linear", epochs=400, batch=150, weight_decay=decay,
        learning_rate=0.3,
    )  # fmt: skip
    train(network, x, y, spec)
    best = LogisticRegression(C=1 / (decay * len(x)), fit_intercept=False, tol=1e-10, max_iter=1000)
    best.fit(x.numpy(), y.numpy())

    def loss(weight: Tensor) -> float:
        fit = F.cross_entropy(x.double() @ weight.mT.double(), y)
        return float(fit + decay / 2 * weight.double().square().sum())

    wanted = torch.from_numpy(best.coef_)
    assert loss(network.weight.detach()) == pytest.approx(loss(wanted), rel=1e-5)
    np.testing.assert_allclose(network.weight.detach(), wanted, atol=0.01)


def test_progress_counts_every_epoch_once_and_ends_complete():
    told: list[tuple[str, int, int]] = []
    train(fresh(), *iris(), SPEC, lambda *what: told.append(what))
    assert told == [("train", n, SPEC.epochs) for n in range(SPEC.epochs + 1)]


def test_the_network_is_trained_in_place_and_left_in_evaluation_mode():
    network = fresh().train()
    before = copy.deepcopy(network.state_dict())
    found = run(5, network)
    assert found.network is network
    assert not any(m.training for m in network.modules())
    assert not torch.equal(before["0.weight"], network.state_dict()["0.weight"])


def test_a_last_batch_of_one_example_is_left_to_the_other_epochs():
    x, y = iris()
    some = torch.randperm(150, generator=torch.Generator().manual_seed(0))[:33]  # 16 + 16 + 1
    found = train(fresh(), x[some], y[some], SPEC)
    assert np.isfinite(found.belief_NC).all() and len(found.belief_NC) == 33


def test_a_loss_that_diverges_is_a_users_mistake():
    torch.manual_seed(0)
    wild = RunSpec(**{**vars(SPEC), "learning_rate": 1e20, "epochs": 50})
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(UserError) as told:
        train(network, *iris(), wild)
    assert "loss of" in told.value.found and "epoch" in told.value.found
    assert SPEC.model in told.value.found
    assert told.value.wanted == "training that converges"
    assert "--model" in told.value.next_step and "--seed" in told.value.next_step


@pytest.mark.parametrize("batch", [1, 7, 150, 1000])
def test_probabilities_are_softmax_in_evaluation_mode_whatever_the_batch(batch):
    network, (x, _) = fresh().train(), iris()
    found = probabilities(network, x, batch)
    network.eval()
    with torch.no_grad():
        odds = network(x).double().exp()
    torch.testing.assert_close(found.double(), odds / odds.sum(1, keepdim=True), atol=1e-6, rtol=0)
    assert not found.requires_grad


# Several networks at once.

STACK = RunSpec(
    data_id="d" * 12, model="mlp", epochs=3, batch=16, weight_decay=0.01, learning_rate=0.05,
    seed=7,
)  # fmt: skip


def steady(seed: int) -> nn.Module:
    """Nothing in it is drawn at random while it is trained."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.LayerNorm(9), nn.Linear(9, 3))


def alone(network: nn.Module, rows_n: Tensor, orders: list[Tensor]) -> nn.Module:
    """One network on its rows by a plain loop, the examples of each epoch in the order given."""
    x, y = iris()
    optimiser = torch.optim.SGD(
        network.parameters(), lr=STACK.learning_rate, momentum=0.9, weight_decay=0.01
    )
    for order_n in orders:
        for some in rows_n[order_n].split(STACK.batch):
            optimiser.zero_grad()
            (-network(x[some]).log_softmax(1)[torch.arange(len(some)), y[some]]).mean().backward()
            optimiser.step()
    return network


def drawn_rows(networks: int, count: int = 75) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.stack([torch.randperm(150, generator=draw)[:count] for _ in range(networks)])


@pytest.mark.parametrize("count", [1, 2, 5])
def test_networks_trained_together_are_those_trained_alone_on_their_own_rows(count):
    networks, rows_Mn = [steady(m) for m in range(count)], drawn_rows(count)
    wanted = copy.deepcopy(networks)
    train_together(networks, *iris(), rows_Mn, STACK)
    draw = torch.Generator().manual_seed(STACK.seed)
    orders = [torch.rand(count, 75, generator=draw).argsort(1) for _ in range(STACK.epochs)]
    for m, network in enumerate(wanted):
        start = copy.deepcopy(network.state_dict())
        alone(network, rows_Mn[m], [order_Mn[m] for order_Mn in orders])
        for name, value in networks[m].state_dict().items():
            torch.testing.assert_close(value, network.state_dict()[name], rtol=1e-4, atol=1e-5)
            assert not torch.equal(value, start[name])
        assert not any(module.training for module in networks[m].modules())


class Tied(nn.Module):
    """Two layers with one weight, and a buffer that no file has."""

    def __init__(self) -> None:
        super().__init__()
        self.once, self.again, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.again.weight = self.once.weight
        self.register_buffer("mean", torch.full((4,), 0.1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.again(torch.relu(self.once(x - self.mean)))))


def test_networks_with_tied_weights_are_trained_together_too():
    torch.manual_seed(0)
    networks, rows_Mn = [Tied() for _ in range(2)], drawn_rows(2)
    assert stackable(networks[0])
    wanted = copy.deepcopy(networks)
    train_together(networks, *iris(), rows_Mn, STACK)
    draw = torch.Generator().manual_seed(STACK.seed)
    orders = [torch.rand(2, 75, generator=draw).argsort(1) for _ in range(STACK.epochs)]
    for m, network in enumerate(wanted):
        alone(network, rows_Mn[m], [order_Mn[m] for order_Mn in orders])
        same_weights(networks[m], network)
        assert networks[m].again.weight is networks[m].once.weight


def test_an_epoch_without_a_batch_of_two_trains_nothing():
    network, spec = steady(0), replace(SPEC, batch=2, epochs=1, seed=3)
    before = copy.deepcopy(network)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(3))
    kept = torch.zeros(150, dtype=torch.bool)
    kept[order[[0, 2]]] = True  # never in one batch
    same_weights(train(network, *iris(), spec, beliefs=False, kept_N=kept).network, before)


def test_what_is_trained_beside_a_network_does_not_move_it():
    """Other data for the others, the same for it."""
    rows_Mn = drawn_rows(3)
    other = rows_Mn.clone()
    other[1:] = other[1:].flip(1) // 2
    one, two = ([steady(m) for m in range(3)] for _ in range(2))
    train_together(one, *iris(), rows_Mn, STACK)
    train_together(two, *iris(), other, STACK)
    for a, b in zip(one[0].parameters(), two[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert not torch.allclose(one[1][0].weight, two[1][0].weight, atol=1e-3)


def test_dropout_differs_between_networks_that_are_trained_together():
    networks = [copy.deepcopy(fresh_without_norm()) for _ in range(3)]
    rows_Mn = torch.arange(150).expand(3, 150)
    whole = RunSpec(**{**vars(STACK), "batch": 150, "epochs": 1})  # the order does not matter
    train_together(networks, *iris(), rows_Mn, whole)
    first = [n[0].weight.detach() for n in networks]
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert (first[a] - first[b]).abs().max() > 1e-4


def fresh_without_norm() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 3))


def test_training_together_is_a_function_of_its_arguments_and_of_no_random_stream():
    found = []
    for stream in (1, 2):
        networks = [fresh_without_norm() for _ in range(2)]
        torch.manual_seed(stream)
        before = torch.random.get_rng_state()
        train_together(networks, *iris(), drawn_rows(2), STACK)
        assert torch.equal(before, torch.random.get_rng_state())
        found.append(torch.cat([p.flatten() for n in networks for p in n.parameters()]))
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet9", "vit"])
def test_only_networks_without_convolution_and_batch_norm_are_stacked(name):
    assert stackable(CASES[name].network(torch.float32)) == (name == "mlp")


def test_what_can_be_stacked():
    assert stackable(steady(0)) and stackable(fresh_without_norm())
    assert not stackable(fresh())  # batch norm
    assert not stackable(nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 3, 4), nn.Flatten()))


def test_networks_that_diverge_together_are_a_users_mistake():
    torch.manual_seed(0)
    wild = RunSpec(**{**vars(STACK), "learning_rate": 1e20, "epochs": 50})
    networks = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(2)]
    with pytest.raises(UserError) as told:
        train_together(networks, *iris(), drawn_rows(2), wild)
    assert "loss of" in told.value.found and "epoch" in told.value.found
    assert told.value.wanted == "training that converges"


# Snapshots.


@pytest.mark.parametrize(
    ("epochs", "snapshots", "kept"),
    [(4, 0, ()), (4, 1, (4,)), (4, 2, (2, 4)), (4, 4, (1, 2, 3, 4)), (10, 3, (3, 7, 10))],
)
def test_snapshots_are_evenly_spaced_and_end_with_the_run(epochs, snapshots, kept):
    assert snapshot_epochs(epochs, snapshots) == kept
    spec = RunSpec(**{**vars(SPEC), "epochs": epochs, "snapshots": snapshots})
    found = train(fresh(), *iris(), spec)
    assert tuple(found.snapshots) == kept
    for epoch, weights in found.snapshots.items():
        until = RunSpec(**{**vars(SPEC), "epochs": epoch})
        ended = train(fresh(), *iris(), until).network.state_dict()
        assert all(torch.equal(weights[k], v) for k, v in ended.items())


def test_there_are_as_many_snapshots_as_asked_for_up_to_one_an_epoch():
    for epochs in range(1, 30):
        for snapshots in range(1, epochs + 1):
            found = snapshot_epochs(epochs, snapshots)
            assert len(set(found)) == snapshots and found == tuple(sorted(found))
            assert found[0] >= 1 and found[-1] == epochs


@pytest.mark.parametrize("left", [0, 1])
def test_training_on_less_than_two_examples_is_refused(left):
    x, y = iris()
    kept_N = torch.arange(len(x)) < left
    for act in (
        lambda: train(fresh(), x[:left], y[:left], SPEC),
        lambda: train(fresh(), x, y, SPEC, kept_N=kept_N),
    ):
        with pytest.raises(UserError) as told:
            act()
        assert told.value.found == f"{left} training image{'' if left else 's'}"
