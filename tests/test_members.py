"""Masks: reproducible, independent, at the right rate and at the right places."""

import hashlib

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from zoo import CASES

from attribution.features import Examples, block, in_precision, margins, projected
from attribution.members import View, dropout_mask, example_keys, mask_sites
from attribution.records import FeatureSpec, UserError


def dropped(key_B, units: int, mask: int = 0, p: float = 0.2, site: str = "0") -> np.ndarray:
    """Which units a mask drops, bool (B, U), as a network that passes ones through shows it."""
    network = nn.Sequential()
    network.add_module(site, nn.Dropout(0.9))
    out = View(network.eval(), (site,), mask, p).logits(torch.ones(len(key_B), units), key_B)
    assert set(out.unique().tolist()) <= {0.0, float(np.float32(1 / (1 - p)))}
    return (out == 0).numpy()


KEYS = torch.from_numpy(example_keys([f"example {i}" for i in range(1500)]).copy())


def test_a_mask_does_not_depend_on_batch_order_or_shard():
    whole = dropped(KEYS, 33)
    order = torch.randperm(len(KEYS), generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(dropped(KEYS[order], 33), whole[order.numpy()])
    for size in (1, 7, 500):
        parts = [dropped(part, 33) for part in KEYS[:500].split(size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole[:500])
    np.testing.assert_array_equal(dropped(KEYS, 33), whole)  # and no state is kept


@pytest.mark.parametrize("p", [0.01, 0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("units", [64, 65])
def test_masks_drop_a_share_p_in_all_in_each_unit_and_in_each_example(p, units):
    drop = dropped(KEYS, units, p=p)
    sigma = np.sqrt(p * (1 - p) / drop.size)
    assert abs(drop.mean() - p) < 4 * sigma + 2**-16
    for axis, count in ((0, len(KEYS)), (1, units)):  # binomial spread, neither more nor less
        z = (drop.sum(axis) - count * p) / np.sqrt(count * p * (1 - p))
        excess = (z**2).sum()
        low, high = stats.chi2.ppf([1e-5, 1 - 1e-5], len(z) * 1.0)
        kurtosis = 1 + (1 / (p * (1 - p)) - 6) / (2 * count)  # of a binomial, for small p
        assert low / kurtosis**0.5 * 0.9 < excess < high * max(1, kurtosis) * 1.1


def pairwise(drop_NU: np.ndarray) -> float:
    """How far the columns are from pairwise independence, in standard deviations."""
    r = np.corrcoef(drop_NU.T.astype(float))
    squares = len(drop_NU) * r[np.triu_indices(len(r), 1)] ** 2  # each about chi2 with one degree
    return float((squares.sum() - len(squares)) / np.sqrt(2 * len(squares)))


def many(what: str) -> np.ndarray:
    """Draws in rows; what should be independent of one another in columns."""
    match what:
        case "units":
            return dropped(KEYS, 120)
        case "examples":
            return dropped(KEYS[:120], 1500).T
        case "masks":
            return np.stack([dropped(KEYS, 1, mask=m)[:, 0] for m in range(100)], 1)
        case "masks over units":
            return np.stack([dropped(KEYS[:1], 2000, mask=m)[0] for m in range(100)], 1)
        case "sites":
            return np.stack([dropped(KEYS, 1, site=f"layer{s}")[:, 0] for s in range(60)], 1)
        case "sites over units":
            return np.stack([dropped(KEYS[:1], 2000, site=f"layer{s}")[0] for s in range(60)], 1)
    raise AssertionError(what)


@pytest.mark.parametrize(
    "what", ["units", "examples", "masks", "masks over units", "sites", "sites over units"]
)
def test_masks_are_independent_between(what):
    drop = many(what)
    assert abs(pairwise(drop)) < 5
    twin = drop.copy()
    twin[:, 1] = twin[:, 0]
    assert pairwise(np.repeat(twin[:, :2], 1, 1)) > 100  # the measure sees a copy


def test_examples_with_neighbouring_keys_get_unrelated_masks():
    drop = dropped(torch.arange(200) - 100, 1500)
    assert abs(pairwise(drop.T)) < 5


def test_triples_of_units_are_independent_too():
    drop = dropped(KEYS, 90, p=0.5).astype(int)
    parity = drop[:, :30] ^ drop[:, 30:60] ^ drop[:, 60:]
    z = (parity.sum(0) - len(KEYS) / 2) / np.sqrt(len(KEYS) / 4)
    assert (z**2).sum() < stats.chi2.ppf(1 - 1e-5, 30)


def test_example_keys_are_a_fixed_hash_of_the_id():
    ids = ["a-0", "a-1", "b-0"]
    wanted = [hashlib.blake2b(i.encode(), digest_size=8).digest() for i in ids]
    found = example_keys(ids)
    assert found.dtype == np.int64
    assert [v.tobytes() for v in found] == wanted


def test_masks_are_those_that_stored_features_were_made_with():
    key_B = torch.tensor([0, 1, -5, 2**62])
    made_BU = dropout_mask(key_B, "layers.0", 3, 12, 0.25)
    assert ["".join("01"[int(unit > 0)] for unit in row) for row in made_BU] == [
        "110011111010",
        "111001101101",
        "010000111001",
        "001111110111",
    ]


def test_a_masked_network_is_the_network_with_its_hidden_units_multiplied():
    torch.manual_seed(0)
    first, second = nn.Linear(6, 40), nn.Linear(40, 3)
    network = nn.Sequential(first, nn.ReLU(), nn.Dropout(0.7), second).eval()
    x, key = torch.randn(5, 6), KEYS[:5]
    kept = torch.from_numpy(~dropped(key, 40, mask=4, p=0.25, site="2"))
    by_hand = second(first(x).relu() * kept / 0.75)
    torch.testing.assert_close(View(network, ("2",), 4, 0.25).logits(x, key), by_hand)
    torch.testing.assert_close(View(network, ("2",)).logits(x, key), network(x))


def test_a_mask_is_the_same_in_double_precision():
    key = KEYS[:50]
    network = nn.Sequential(nn.Dropout(0.5)).eval()
    double = View(network, ("0",), 0, 0.2).logits(torch.ones(50, 30, dtype=torch.float64), key)
    np.testing.assert_array_equal((double == 0).numpy(), dropped(key, 30))


def test_channel_dropout_drops_whole_channels():
    network = nn.Sequential(nn.Dropout2d(0.5)).eval()
    out = View(network, ("0",), 0, 0.5).logits(torch.ones(40, 8, 3, 3), KEYS[:40])
    assert (out.flatten(2).std(2) == 0).all()
    channels = (out[:, :, 0, 0] == 0).float()
    assert 0.35 < channels.mean() < 0.65
    assert channels.unique(dim=0).shape[0] > 30


def test_a_dropout_that_is_called_twice_drops_other_units_the_second_time():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return torch.stack([self.drop(x), self.drop(x)], 1)

    out = View(Twice().eval(), ("drop",), 0, 0.5).logits(torch.ones(30, 100), KEYS[:30])
    agree = ((out[:, 0] == 0) == (out[:, 1] == 0)).float().mean()
    assert abs(agree - 0.5) < 4 * np.sqrt(0.25 / 3000)


class Idle(nn.Module):
    """Its dropout never fires; its activation does."""

    def __init__(self):
        super().__init__()
        self.layer, self.act, self.idle = nn.Linear(4, 3), nn.GELU(), nn.Dropout(0.5)

    def forward(self, x):
        return self.act(self.layer(x))


@pytest.mark.parametrize(
    ("network", "places"),
    [
        (nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Dropout(0), nn.Linear(9, 2)), ("2",)),
        (nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.SiLU()), ("1", "3")),
        (nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2)), ("0", "1")),
        (nn.Sequential(nn.Sequential(nn.Linear(4, 3), nn.Tanh()), nn.Linear(3, 2)), ("0.1",)),
        (Idle(), ("act",)),
    ],
    ids=["own dropout", "after activations", "after layers", "nested", "idle dropout"],
)
def test_masks_go_to_the_networks_own_dropout_or_are_injected(network, places):
    x = torch.randn(2, 4)
    assert mask_sites(network, x) == places
    plain, key = network.eval()(x), KEYS[:2]
    assert not torch.equal(View(network, places, 0, 0.5).logits(x, key), plain)


def test_a_network_without_any_place_for_a_mask_is_a_users_mistake():
    with pytest.raises(UserError) as told:
        mask_sites(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.randn(2, 4))
    assert "without dropout" in told.value.found
    assert "naive" in told.value.next_step


def test_a_site_whose_first_axis_is_not_the_batch_is_a_users_mistake():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return self.drop(x.T).T

    with pytest.raises(UserError) as told:
        View(Turned(), ("drop",), 0, 0.5).logits(torch.ones(3, 8), KEYS[:3])
    assert "(8, 3)" in told.value.found and "drop" in told.value.found
    assert "first axis" in told.value.wanted
    assert "naive" in told.value.next_step


@pytest.mark.parametrize(
    ("dtype", "within"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=["double", "single"]
)
@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet9", "vit"])
def test_features_do_not_depend_on_batch_size_order_or_shard(name, dtype, within):
    case = CASES[name]
    x, key, target = case.examples(23, dtype)
    examples = Examples(x, key, target)
    whole = projected(case.network(dtype), examples, FeatureSpec(ka=6, kg=4))
    view = whole.view(mask=2, p=0.2)
    wanted = block(view, examples, whole.projections, batch=23).phi_NK
    size = wanted.abs().max()
    other = block(whole.view(mask=3, p=0.2), examples, whole.projections, batch=23).phi_NK
    assert (wanted - other).abs().max() > 0.01 * size  # the mask makes a difference

    def same(found, rows):
        return (found - wanted[rows]).abs().max() < within * size

    for batch in (1, 4, 10):
        assert same(block(view, examples, whole.projections, batch).phi_NK, slice(None))
    order = torch.randperm(23, generator=torch.Generator().manual_seed(1))
    assert same(block(view, examples[order], whole.projections, 10).phi_NK, order)
    shard = slice(9, 17)
    assert same(block(view, examples[shard], whole.projections, 10).phi_NK, shard)


@pytest.mark.parametrize("mask", [None, 2])
@pytest.mark.parametrize("name", list(CASES))
def test_features_in_bfloat16_are_those_in_float32_but_for_its_digits(name, mask):
    case = CASES[name]
    examples = Examples(*case.examples(40, torch.float32))
    network = case.network(torch.float32)
    whole = projected(network, examples, FeatureSpec(ka=6, kg=4))
    lower = in_precision(whole, "bfloat16")
    assert in_precision(whole, "float32") is whole
    wanted, found = (
        block(w.view(mask, 0.2), examples, w.projections, batch=16) for w in (whole, lower)
    )
    assert found.phi_NK.dtype == found.margin_N.dtype == torch.float32
    assert torch.cosine_similarity(found.phi_NK, wanted.phi_NK).min() > 0.99
    ratio_N = found.phi_NK.norm(dim=1) / wanted.phi_NK.norm(dim=1)
    assert (ratio_N - 1).abs().max() < 0.05
    assert (found.margin_N - wanted.margin_N).abs().max() < 0.03
    assert (margins(lower.view(mask, 0.2), examples) - found.margin_N).abs().max() < 0.03
    assert not torch.equal(found.phi_NK, wanted.phi_NK)
    assert all(p.dtype == torch.float32 for p in network.parameters())  # not changed in place


def test_a_network_that_cannot_be_run_in_bfloat16_is_a_sentence():
    class Shifted(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 3)
            self.shift = torch.full((4,), 0.5)  # no buffer: it keeps its precision

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x + self.shift)

    examples = Examples(torch.randn(4, 4), torch.arange(4), torch.zeros(4, dtype=torch.int64))
    assert projected(Shifted(), examples, FeatureSpec(ka=2, kg=2), False).coverage == 1
    with pytest.raises(UserError, match="does not run in bfloat16.*--precision"):
        projected(Shifted(), examples, FeatureSpec(ka=2, kg=2, precision="bfloat16"))
    with pytest.raises(UserError, match="unknown precision 'half'"):
        projected(Shifted(), examples, FeatureSpec(precision="half"))


def test_a_shared_mask_is_one_for_all_examples_and_its_own_for_each_member():
    network = nn.Sequential(nn.Dropout(0.9)).eval()
    views = [View(network, ("0",), mask, 0.3, shared=True) for mask in (0, 1)]
    one, other = (v.logits(torch.ones(1500, 200), KEYS) for v in views)
    assert (one == one[0]).all() and (other == other[0]).all()
    assert (one[0] != other[0]).any()
    assert abs((one[0] == 0).float().mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 200)
    few = views[0].logits(torch.ones(2, 200), KEYS[7:9])
    assert torch.equal(few, one[:2])  # whatever the examples and the batch
    each = View(network, ("0",), 0, 0.3).logits(torch.ones(1500, 200), KEYS)
    assert len(each.unique(dim=0)) == 1500


def test_a_shared_mask_is_a_smaller_network():
    """The features under it are those with the dropped units cut out and the others scaled."""
    case = CASES["mlp"]
    x, key, target = case.examples(9, torch.float64)
    network = case.network(torch.float64)
    view = View(network, ("3",), 5, 0.4, shared=True)
    (mask_BU,) = view.masks_of(x, key).values()
    with torch.no_grad():
        network[4].weight.mul_(mask_BU[0])
        cut = network(x)
        network[4].weight.div_(mask_BU[0].where(mask_BU[0] > 0, 1))
    kept = mask_BU[0] > 0
    assert 0 < kept.sum() < len(kept)
    assert (network[4].weight[:, ~kept] == 0).all()  # the cut stays, and does not matter
    torch.testing.assert_close(view.logits(x, key), cut)
