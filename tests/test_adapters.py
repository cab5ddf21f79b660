"""LoRA adapters against peft alone, plain loops of backward calls, and data with traps in it."""

import copy
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from zoo import CASES, as_matrix, relative

from attribution.adapters import adapted, candidates, checked, fitted, loaded, saved
from attribution.data import Dataset, Split, example_ids
from attribution.features import Examples, block, projected
from attribution.gradients import Projection, Site, sites
from attribution.members import View
from attribution.models import inputs
from attribution.models import network as made
from attribution.records import DataSpec, FeatureSpec, LoraSpec, UserError

SPEC = LoraSpec(rank=2, epochs=2, learning_rate=0.05)
NAMES = ("mlp", "cnn", "resnet9", "vit")


def some(name: str, count: int = 24) -> Examples:
    return Examples(*CASES[name].examples(count, torch.float32))


def network(name: str) -> nn.Module:
    return CASES[name].network(torch.float32)


def fit(name: str, seed: int = 3) -> PeftModel:
    return fitted(network(name), SPEC, some(name), seed)


def matrices(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if "lora_" in n}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(x)


def base_of(model: PeftModel, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What became of the entries of the network's own state."""
    state = model.state_dict()
    found = {}
    for name in kept:
        module, _, leaf = name.rpartition(".")
        inside = f"base_model.model.{module}.base_layer.{leaf}"
        found[name] = state[inside if inside in state else f"base_model.model.{name}"]
    return found


# In peft's own layout.


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_on_disk_is_one_that_peft_loads_by_itself_to_the_same_logits(tmp_path, name):
    model, x = fit(name), some(name).x_N
    saved(model, tmp_path)
    kept = {p.name for p in tmp_path.iterdir()}
    assert kept == {"adapter_config.json", "adapter_model.safetensors"}
    alone = PeftModel.from_pretrained(network(name), str(tmp_path))
    torch.testing.assert_close(logits(alone, x), logits(model, x), rtol=0, atol=0)
    ours = loaded(network(name), tmp_path)
    torch.testing.assert_close(logits(ours, x), logits(model, x), rtol=0, atol=0)
    assert (logits(network(name), x) - logits(model, x)).abs().max() > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_adapter_wants_gradients_for_its_matrices_and_nothing_else(tmp_path, name):
    saved(fit(name), tmp_path)
    ours = loaded(network(name), tmp_path)
    wanting = {n for n, p in ours.named_parameters() if p.requires_grad}
    assert wanting == set(matrices(ours)) != set()


@pytest.mark.parametrize("name", NAMES)
def test_the_networks_own_weights_and_statistics_stay_as_they_were(name):
    own = network(name)
    before = copy.deepcopy(own.state_dict())
    assert same(base_of(fitted(own, SPEC, some(name), 0), before), before)


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_has_an_adapter_of_the_rank_asked_for(name):
    layers = candidates(network(name))
    plain = {
        n
        for n, m in network(name).named_modules()
        if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.groups == 1)
    }
    assert set(layers) == plain
    found = matrices(fit(name))
    assert len(found) == 2 * len(layers)
    for label, matrix in found.items():
        assert matrix.shape[0 if "lora_A" in label else 1] == 2
    assert all(matrix.any() for matrix in found.values())  # fitted: the second begins at zero


def test_a_fresh_adapter_changes_nothing_before_it_is_fitted():
    x = some("cnn").x_N
    torch.testing.assert_close(
        logits(adapted(network("cnn"), SPEC, 0), x), logits(network("cnn"), x)
    )


def test_a_timm_network_by_name_takes_an_adapter_that_peft_loads(tmp_path):
    name, draw = "timm:vit_tiny_patch16_224", np.random.default_rng(0)
    images = draw.integers(0, 256, (8, 28, 28), np.uint8)
    half = Split(images, np.arange(8) % 3, example_ids(images))
    data = Dataset("d" * 12, DataSpec(), ("a", "b", "c"), half, half, (0.5,), (0.3,))
    x = inputs(name, data, images)
    examples = Examples(x, torch.arange(8), torch.from_numpy(half.labels_N))
    model = fitted(made(name, data, 1.0, 0), LoraSpec(rank=4, targets=("qkv",)), examples, 0)
    saved(model, tmp_path)
    alone = PeftModel.from_pretrained(made(name, data, 1.0, 0), str(tmp_path))
    torch.testing.assert_close(logits(alone, x), logits(model, x), rtol=0, atol=0)
    assert len(matrices(alone)) == 2 * 12


# Gradients over adapter parameters only.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mask", [None, 1])
def test_features_are_a_loop_of_backward_calls_over_the_adapters_parameters(name, mask):
    model, examples = fit(name), some(name, 6)
    whole = projected(model, examples, FeatureSpec(ka=3, kg=2))
    view: View = whole.view(mask, 0.3)
    assert whole.coverage == 1 and not whole.left_out and not whole.fallback
    parameters = matrices(model).keys()
    assert {p for s in whole.projections for p in s.parameters} == set(parameters)
    exact = by_loop(view, examples)
    found = block(view, examples, whole.projections)
    columns = [small(s, d, exact) for s, d in whole.projections.items()]
    assert relative(found.phi_NK, torch.cat(columns, 1)) < 1e-3


def by_loop(view: View, examples: Examples) -> dict[str, Tensor]:
    named = {n: p for n, p in view.network.named_parameters() if "lora_" in n}
    rows: dict[str, list[Tensor]] = {n: [] for n in named}
    for b in range(len(examples)):
        one = examples[slice(b, b + 1)]
        z = view.logits(one.x_N, one.key_N)[0]
        target = int(one.target_N)
        others = torch.stack([z[c] for c in range(len(z)) if c != target])
        grads = torch.autograd.grad(z[target] - others.logsumexp(0), list(named.values()))
        for label, grad in zip(named, grads, strict=True):
            rows[label].append(grad)
    return {n: torch.stack(r) for n, r in rows.items()}


def small(site: Site, directions: Projection, exact: Mapping[str, Tensor]) -> Tensor:
    A, G = directions
    return torch.einsum("og,boi,ia->bga", G, as_matrix(site, exact), A).flatten(1)


@pytest.mark.parametrize("name", NAMES)
def test_all_sites_of_an_adapted_network_are_its_adapters(name):
    found = sites(fit(name))
    assert found and all("lora_" in p for site in found for p in site.parameters)


# What an adapter sees.


def drawn_by(seed: int, count: int, spec: LoraSpec) -> set[int]:
    """The examples an adapter is fitted on: those that are not numbers are noticed."""
    examples = some("mlp", count)
    noticed = set()
    for i in range(count):
        x_N = examples.x_N.clone()
        x_N[i] = torch.nan
        try:
            fitted(network("mlp"), spec, Examples(x_N, examples.key_N, examples.target_N), seed)
        except UserError:
            noticed.add(i)
    return noticed


@pytest.mark.parametrize(("share", "seen"), [(0.5, 10), (0.3, 6), (1.0, 20), (0.01, 2)])
def test_an_adapter_sees_its_share_of_the_data(share, seen):
    spec = LoraSpec(rank=2, epochs=1, share=share)
    assert len(drawn_by(0, 20, spec)) == seen


def test_each_adapter_has_a_share_of_its_own():
    spec = LoraSpec(rank=2, epochs=1, share=0.5)
    shares = [frozenset(drawn_by(seed, 20, spec)) for seed in range(4)]
    assert len(set(shares)) == 4
    assert len(frozenset.union(*shares)) > 15  # none of them is always left out
    assert drawn_by(2, 20, spec) == shares[2]


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_is_a_function_of_its_seed_and_of_no_random_stream(name):
    first, second = network(name), network(name)
    torch.manual_seed(1)
    stream = torch.random.get_rng_state()
    one = matrices(fitted(first, SPEC, some(name), 3))
    assert torch.equal(stream, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert same(one, matrices(fitted(second, SPEC, some(name), 3)))
    other = matrices(fit(name, seed=4))
    assert not any(torch.equal(one[k], other[k]) for k in one)


# Targets and mistakes.


@pytest.mark.parametrize(
    ("targets", "found"),
    [
        (("blocks.0.attn.qkv",), ["blocks.0.attn.qkv"]),
        (("attn.qkv",), ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]),
        (("qkv", "head"), ["blocks.0.attn.qkv", "blocks.1.attn.qkv", "head"]),
    ],
)
def test_a_target_is_a_full_name_or_its_last_parts(targets, found):
    spec = LoraSpec(rank=2, targets=targets)
    assert list(checked(network("vit"), spec).targets) == found
    layers = {n.split(".lora_")[0] for n in matrices(adapted(network("vit"), spec, 0))}
    assert layers == {f"base_model.model.{n}" for n in found}


def test_without_targets_layers_narrower_than_the_rank_are_left_out():
    own = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2))
    left = {rank: checked(own, LoraSpec(rank=rank)).targets for rank in (2, 3, 5, 6, 8)}
    assert left == {2: ("0", "2", "4"), 3: ("0", "2"), 5: ("0", "2"), 6: ("0",), 8: ("0",)}


class Grouped(nn.Sequential):
    """Nothing that takes an adapter."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(4, 4, 2, groups=2), nn.LayerNorm(3), nn.Flatten())


@pytest.mark.parametrize(
    ("make", "spec", "found", "wanted", "next_step"),
    [
        (
            lambda: network("cnn"), LoraSpec(rank=4, targets=("0",)),
            "--rank 4 for layer 0", "1 to 3", "lower",
        ),
        (lambda: network("cnn"), LoraSpec(rank=99), "--rank 99 for layer", "1 to", "lower"),
        (lambda: network("mlp"), LoraSpec(rank=0), "--rank 0 for layer 1", "from 1", "--rank"),
        (
            lambda: network("vit"), LoraSpec(rank=2, targets=("query", "kv")),
            "no layer named query, kv", "blocks.0.attn.qkv", "--targets",
        ),
        (Grouped, LoraSpec(rank=1), "no layer for LoRA", "a plain Conv2d", "--strategy"),
        (Grouped, LoraSpec(rank=1, targets=("0",)), "no layer for LoRA", "a Linear", "--strategy"),
    ],
)  # fmt: skip
def test_an_adapter_that_fits_nowhere_is_a_users_mistake(make, spec, found, wanted, next_step):
    own = make()
    before = [n for n, _ in own.named_modules()]
    with pytest.raises(UserError) as told:
        adapted(own, spec, 0)
    assert found in told.value.found
    assert wanted in told.value.wanted
    assert next_step in told.value.next_step
    assert [n for n, _ in own.named_modules()] == before  # peft has not touched it
