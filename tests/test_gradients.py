"""Projected per-example gradients against a loop of backward calls."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
import zoo
from torch import nn
from zoo import CASES, as_matrix, backward_loop, identity, relative

from attribution.features import Examples, projected
from attribution.gradients import featurize, featurize_views, loop_gradients, margin, sites
from attribution.members import View, mask_sites
from attribution.projection import checked_sites, random_projections
from attribution.records import FeatureSpec

DOUBLE = torch.float64


def seen(name: str, masked: bool, dtype: torch.dtype = DOUBLE, count: int = 4):
    """A view of a network of the zoo, plain or under a mask, its examples and trusted sites."""
    case = CASES[name]
    network = case.network(dtype)
    examples = case.examples(count, dtype)
    places = mask_sites(network, examples[0]) if masked else ()
    view = View(network, places, mask=3 if masked else None, p=0.3)
    return view, examples, checked_sites(View(network), *(e[:2] for e in examples))


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("name", CASES)
def test_features_without_projection_are_the_gradients_of_a_backward_loop(name, masked):
    view, examples, (places, _) = seen(name, masked)
    exact = backward_loop(view, *examples)
    phi, logits = featurize(view, *examples, {s: identity(s, DOUBLE) for s in places})
    wanted = torch.cat([as_matrix(s, exact).flatten(1) for s in places], 1)
    assert wanted.abs().max() > 1e-3  # not zeros compared with zeros
    assert relative(phi, wanted) < 1e-9
    start = 0
    for site in places:  # a small site must not hide behind a large one
        width = site.rows * site.columns
        part = slice(start, start + width)
        assert relative(phi[:, part], wanted[:, part]) < 1e-7, site.name
        start += width
    torch.testing.assert_close(logits, view.logits(examples[0], examples[1]).detach())


@pytest.mark.parametrize("name", CASES)
def test_several_masks_at_once_are_each_the_gradients_of_a_backward_loop(name):
    view, examples, (places, _) = seen(name, masked=True)
    views = [replace(view, mask=mask) for mask in (3, None, 8)]
    found = featurize_views(views, *examples, {s: identity(s, DOUBLE) for s in places})
    assert len({phi.sum().item() for phi, _ in found}) == 3
    for one, (phi, logits) in zip(views, found, strict=True):
        exact = backward_loop(one, *examples)
        wanted = torch.cat([as_matrix(s, exact).flatten(1) for s in places], 1)
        assert relative(phi, wanted) < 1e-9
        torch.testing.assert_close(logits, one.logits(examples[0], examples[1]).detach())


class Awkward(nn.Module):
    """Before its mask a layer is called twice, a result is changed in place and one is hooked."""

    def __init__(self):
        super().__init__()
        self.twice, self.added, self.hooked = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(6, 3)
        self.hooked.register_forward_hook(lambda module, args, out: out * 2)

    def forward(self, x):
        x = self.twice(torch.tanh(self.twice(x)))
        y = self.added(torch.tanh(x))
        y += x  # of what a module returned
        x = self.drop(torch.tanh(self.hooked(y)) + x)
        return self.head(x + self.twice(x))


def test_what_no_mask_changes_is_computed_once_and_the_rest_for_each():
    torch.manual_seed(0)
    network = Awkward().double().eval()
    x, key, target = torch.randn(4, 6, dtype=DOUBLE), torch.arange(4), torch.arange(4) % 3
    views = [View(network, ("drop",), mask, 0.4) for mask in range(3)]
    places = [s for s in sites(network) if s.name != "hooked"]
    ran: dict[str, int] = {}

    def counted(name, forward):
        def count(x):
            ran[name] = ran.get(name, 0) + 1
            return forward(x)

        return count

    for name, module in network.named_children():  # beneath what is played back
        vars(module)["forward"] = counted(name, module.forward)
    try:
        found = featurize_views(views, x, key, target, {s: identity(s, DOUBLE) for s in places})
    finally:
        left = {n: vars(m).pop("forward", None) for n, m in network.named_children()}
    assert ran == {"twice": 2 + 3, "added": 3, "hooked": 3, "drop": 3, "head": 3}
    assert all(f.__name__ == "count" for f in left.values())
    for view, (phi, _) in zip(views, found, strict=True):
        exact = backward_loop(view, x, key, target)
        wanted = torch.cat([as_matrix(s, exact).flatten(1) for s in places], 1)
        assert relative(phi, wanted) < 1e-9


@pytest.mark.parametrize("name", CASES)
def test_the_float32_error_is_below_a_ten_thousandth(name, record_property):
    view, examples, (places, _) = seen(name, masked=True, dtype=torch.float32)
    phi, _ = featurize(view, *examples, {s: identity(s, torch.float32) for s in places})
    double = View(copy.deepcopy(view.network).double(), view.places, view.mask, view.p)
    x = examples[0].double() if examples[0].is_floating_point() else examples[0]
    exact = backward_loop(double, x, *examples[1:])
    wanted = torch.cat([as_matrix(s, exact).flatten(1) for s in places], 1)
    error = relative(phi.double(), wanted)
    record_property("float32 relative error", error)
    assert error < 1e-4


@pytest.mark.parametrize("dims", [(5, 3), (6, 1), (2, 4)])  # each order of projecting
@pytest.mark.parametrize("name", CASES)
def test_projected_features_are_the_projection_of_the_exact_gradients(name, dims):
    view, examples, (places, _) = seen(name, masked=True)
    ka, kg = dims
    projections = random_projections(places, ka, kg, 0, torch.zeros(1, dtype=DOUBLE))
    exact = backward_loop(view, *examples)
    wanted = []
    for site in places:
        matrix = as_matrix(site, exact).numpy()
        directions = [d.numpy() for d in projections[site]]
        if site.factorised:
            small = np.einsum("og,boi,ia->bga", directions[1], matrix, directions[0])
            assert small.shape[1:] == (min(kg, site.rows), min(ka, site.columns))
        else:
            small = matrix @ directions[0]
        wanted.append(small.reshape(len(matrix), -1))
    phi, _ = featurize(view, *examples, projections)
    np.testing.assert_allclose(phi, np.concatenate(wanted, 1), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("name", CASES)
def test_the_build_time_oracle_agrees_with_a_backward_loop(name, masked):
    view, examples, (places, _) = seen(name, masked)
    exact = backward_loop(view, *examples)
    found = loop_gradients(view, *examples, places)
    for site in places:
        wanted = as_matrix(site, exact).flatten(1)
        torch.testing.assert_close(found[site], wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_hooks_cover_all_layers_but_those_named(name):
    case = CASES[name]
    view, _, (places, left_out) = seen(name, masked=False)
    assert left_out == case.left_out
    fallback = {s.name for s in places if s.kind == "parameter"}
    assert all(n.startswith(case.fallback) for n in fallback)
    assert {p for p in case.fallback if any(n.startswith(p) for n in fallback)} == set(
        case.fallback
    )
    covered = [n for s in places for n in s.parameters]
    assert len(covered) == len(set(covered))
    assert set(covered) | set(left_out) == {n for n, _ in view.network.named_parameters()}


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet9", "images", "mobilenet"])
def test_coverage_is_the_share_of_parameters_whose_gradient_is_used(name):
    case = CASES[name]
    x, key, target = case.examples(6, torch.float32)
    network = case.network(torch.float32)
    whole = projected(network, Examples(x, key, target), FeatureSpec(ka=4, kg=2), masks=False)
    sizes = {n: p.numel() for n, p in network.named_parameters()}
    left = sum(sizes[n] for n in case.left_out)
    assert whole.coverage == pytest.approx(1 - left / sum(sizes.values()))
    assert whole.left_out == case.left_out
    assert whole.coverage >= 0.95 or name == "images"


@pytest.mark.parametrize("name", ["resnet9", "images"])
def test_the_network_is_left_as_it_was_found(name):
    view, examples, (places, _) = seen(name, masked=True)
    network = view.network
    for i, module in enumerate(network.modules()):
        module.training = i % 3 == 1
    for i, parameter in enumerate(network.parameters()):
        parameter.requires_grad_(i % 2 == 0)
    before = state_of(network)
    stream = torch.random.get_rng_state()
    featurize(view, *examples, random_projections(places, 4, 2, 0, examples[0]))
    loop_gradients(view, *examples, places)
    checked_sites(view, *(e[:2] for e in examples))
    mask_sites(network, examples[0])
    after = state_of(network)
    assert torch.equal(stream, torch.random.get_rng_state())
    assert before[:4] == after[:4]
    for name, value in before[4].items():
        assert torch.equal(value, after[4][name]), name


def state_of(network: nn.Module) -> tuple:
    return (
        [m.training for m in network.modules()],
        [p.requires_grad for p in network.parameters()],
        [p.grad for p in network.parameters()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()],
        {n: v.clone() for n, v in network.state_dict().items()},
    )


def test_a_network_that_raises_is_left_as_it_was_found():
    class Raises(nn.Sequential):
        def forward(self, x):
            super().forward(x)
            raise RuntimeError("no")

    network = Raises(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).train()
    view = View(network, ("1",), 0, 0.5)
    places = sites(network)
    x, y = torch.randn(2, 3), torch.tensor([0, 1])
    with pytest.raises(RuntimeError, match="no"):
        featurize(view, x, torch.arange(2), y, random_projections(places, 2, 2, 0, x))
    assert all(m.training for m in network.modules())
    assert all(p.requires_grad for p in network.parameters())
    assert not any(m._forward_hooks for m in network.modules())


def test_margin_is_the_log_odds_and_stays_finite_where_the_probability_rounds_to_one():
    z = torch.tensor([[1.0, 2.0, 0.5], [300.0, 0.0, -5.0]], dtype=DOUBLE)
    p = np.exp(z[0].numpy()) / np.exp(z[0].numpy()).sum()
    found = margin(z, torch.tensor([1, 0])).numpy()
    np.testing.assert_allclose(found[0], np.log(p[1] / (1 - p[1])))
    np.testing.assert_allclose(found[1], 300 - np.log(1 + np.exp(-5)))
    assert torch.isfinite(margin(z.float(), torch.tensor([1, 0]))).all()


# Networks whose modules the hooks cannot follow. Each must come out exact, by the fallback, or
# with the parameter named as left out; none may raise.


class SequenceFirst(nn.Module):
    """The first axis of its first layer is not the batch (as in windowed attention)."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = self.inner(x.reshape(len(x), 3, 4).transpose(0, 1)).relu()
        return self.head(h.mean(0))


class Positions(nn.Module):
    """An embedding of positions, which has no batch axis at all."""

    def __init__(self):
        super().__init__()
        self.place, self.head = nn.Embedding(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = x.reshape(len(x), 3, 4) + self.place(torch.arange(3))
        return self.head(torch.tanh(h).mean(1))


class FrozenStem(nn.Module):
    """A stem under no_grad, as in linear probing."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(12, 5), nn.Linear(5, 3)

    def forward(self, x):
        with torch.no_grad():
            h = self.stem(x).relu()
        return self.head(h)


class IgnoredBranch(nn.Module):
    """A layer that runs and whose result nobody uses."""

    def __init__(self):
        super().__init__()
        self.ignored, self.head = nn.Linear(12, 5), nn.Linear(12, 3)

    def forward(self, x):
        self.ignored(x)
        return self.head(x)


class OneMore(nn.Module):
    """A linear layer with a parameter that linear layers do not have."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(12, 5), nn.Linear(5, 3)
        self.inner.gain = nn.Parameter(torch.tensor([[2.0]]))

    def forward(self, x):
        return self.head(torch.tanh(self.inner(x) * self.inner.gain))


class NeverCalled(nn.Module):
    """A layer that never runs, and no other use for the fallback."""

    def __init__(self):
        super().__init__()
        self.head, self.spare = nn.Linear(12, 3), nn.Linear(12, 3)

    def forward(self, x):
        return self.head(x)


class Recurrent(nn.Module):
    """A module that vmap cannot run."""

    def __init__(self):
        super().__init__()
        self.memory, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.memory(x.reshape(len(x), 3, 4))[0][:, -1])


class AttentionFirst(nn.Module):
    """An attention layer that would take its inference-only fast path on plain input."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.layers(x.reshape(len(x), 3, 4)).mean(1))


class Pruned(nn.Module):
    """A layer whose weight is made from another parameter each time it is called."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(12, 5), nn.Linear(5, 3)
        nn.utils.prune.l1_unstructured(self.inner, "weight", amount=0.4)

    def forward(self, x):
        return self.head(torch.tanh(self.inner(x)))


@pytest.mark.parametrize(
    ("make", "left_out"),
    [
        (SequenceFirst, set()),
        (Positions, set()),
        (FrozenStem, {"stem.weight", "stem.bias"}),
        (IgnoredBranch, {"ignored.weight", "ignored.bias"}),
        (OneMore, set()),
        (NeverCalled, {"spare.weight", "spare.bias"}),
        (Recurrent, None),
        (AttentionFirst, set()),
        (Pruned, set()),
    ],
    ids=lambda v: v.__name__ if isinstance(v, type) else "",
)
def test_what_hooks_cannot_follow_is_exact_by_the_fallback_or_left_out_by_name(make, left_out):
    torch.manual_seed(0)
    network = make().double().eval()
    x, key, target = torch.randn(5, 12, dtype=DOUBLE), torch.arange(5), torch.arange(5) % 3
    view = View(network)
    places, left = checked_sites(view, x[:2], key[:2], target[:2])
    if left_out is None:  # which of them vmap can run depends on torch
        assert {n for s in places for n in s.parameters} | set(left) == {
            n for n, _ in network.named_parameters()
        }
        assert "head" in {s.name for s in places}
    else:
        assert set(left) >= left_out
        live = {n for n, g in backward_loop(view, x, key, target).items() if g.any()}
        assert live <= {n for s in places for n in s.parameters}
    exact = backward_loop(view, x, key, target)
    phi, _ = featurize(view, x, key, target, {s: identity(s, DOUBLE) for s in places})
    wanted = torch.cat([as_matrix(s, exact).flatten(1) for s in places], 1)
    assert relative(phi, wanted) < 1e-9


def test_a_windowed_transformer_by_name_can_be_featurized():
    torch.manual_seed(0)
    network = zoo.timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=4, depths=(1, 1),
        num_heads=(2, 2), embed_dim=8, num_classes=4,
    )  # fmt: skip
    network = zoo.shaken(network).double().eval()
    x, key = torch.randn(3, 3, 32, 32, dtype=DOUBLE), torch.arange(3)
    target = torch.tensor([0, 1, 2])
    places, _ = checked_sites(View(network), x[:2], key[:2], target[:2])
    exact = backward_loop(View(network), x, key, target)
    phi, _ = featurize(View(network), x, key, target, {s: identity(s, DOUBLE) for s in places})
    wanted = torch.cat([as_matrix(s, exact).flatten(1) for s in places], 1)
    assert relative(phi, wanted) < 1e-9
