"""The five lines for notebooks: own networks and data sets, against loops of backward calls."""

import copy
import resource
from functools import cache

import dense
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from zoo import as_matrix, backward_loop

import attribution
from attribution import EstimatorSpec, FeatureSpec, UserError
from attribution.data import example_ids
from attribution.estimators import ESTIMATORS, LOSS
from attribution.gradients import sites
from attribution.members import View, example_keys, mask_sites

N, T, C = 530, 6, 3  # more than one batch of the loader and of the features
# As many directions as a layer has sides: an orthogonal change of basis, which no score sees.
WHOLE = FeatureSpec(ka=100, kg=100)


def mlp(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, C))


def cnn(seed: int) -> nn.Module:
    """Without dropout: masks go to its activation."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Unflatten(1, (1, 3, 4)), nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(24, C)
    )


def drawn(count: int, seed: int) -> TensorDataset:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 12, generator=draw)
    return TensorDataset(x, torch.randint(C, (count,), generator=draw))


TRAIN, TEST = drawn(N, 0), drawn(T, 1)
NETWORKS = {"mlp": [mlp(0), mlp(1)], "cnn": [cnn(0), cnn(1)]}
ENSEMBLES = {
    "naive": lambda networks: attribution.naive_ensemble(networks),
    "dropout": lambda networks: attribution.dropout_ensemble(networks, masks=2, p=0.3, seed=1),
}


def views(name: str, strategy: str) -> list[View]:
    """The members, put together by hand."""
    x = TRAIN.tensors[0]
    if strategy == "naive":
        return [View(n) for n in NETWORKS[name]]
    places = mask_sites(NETWORKS[name][0], x)
    masks = (1_000_003, 1_000_004)  # seed 1
    return [View(n, places, m, 0.3) for n in NETWORKS[name] for m in masks]


def by_loop(view: View, some: TensorDataset) -> tuple[np.ndarray, np.ndarray]:
    """All gradients (N, parameters) and q (N,), in double precision from float32."""
    x, y = some.tensors
    key = torch.from_numpy(example_keys(example_ids(x.numpy())).copy())
    view.network.eval()
    exact = backward_loop(view, x, key, y)
    phi = torch.cat([as_matrix(s, exact).flatten(1) for s in sites(view.network)], 1)
    p = view.logits(x, key).detach().double().softmax(1)
    return phi.double().numpy(), 1 - p[torch.arange(len(y)), y].numpy()


@cache  # every estimator starts from the same gradients
def gradients(
    name: str, strategy: str, loss: bool = False
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Of the training and the test set by member, and the training set's q (M, N).

    Of the margin, or of the loss: log(1 + exp(-margin)).
    """
    members = views(name, strategy)
    train, asked = ([by_loop(v, some) for v in members] for some in (TRAIN, TEST))
    halves = ([phi * q[:, None] if loss else phi for phi, q in half] for half in (train, asked))
    return (*halves, np.stack([q for _, q in train]))


@pytest.mark.parametrize("estimator", sorted(set(ESTIMATORS) - {"ekfac"}))
@pytest.mark.parametrize("strategy", ENSEMBLES)
@pytest.mark.parametrize("name", NETWORKS)
def test_scores_and_hits_are_those_of_the_dense_formula_on_whole_gradients(
    name, strategy, estimator
):
    spec = EstimatorSpec(name=estimator, q_power=1.0)
    ensemble = ENSEMBLES[strategy](NETWORKS[name])
    assert len(ensemble) == len(views(name, strategy))
    index = attribution.build_index(ensemble, TRAIN, WHOLE, spec)
    scores = index.scores(TEST)
    assert scores.dtype == np.float32 and scores.shape == (T, N)
    found = gradients(name, strategy, estimator in LOSS)
    assert dense.off(scores, dense.scores(*found, spec)) < 1e-4
    for opponents in (False, True):
        found, ids = index.search(TEST, k=10, opponents=opponents)
        assert ids.shape == (T, 10) and dense.astray(ids, scores, opponents) < 1e-5
        np.testing.assert_allclose(
            found, np.take_along_axis(scores, ids, 1), atol=1e-5 * abs(scores).max()
        )


@pytest.fixture(scope="module")
def index() -> attribution.Index:
    ensemble = attribution.dropout_ensemble(NETWORKS["mlp"], masks=3, p=0.2, seed=0)
    return attribution.build_index(ensemble, TRAIN)


def test_the_five_lines_give_ten_hits_a_test_example_by_default(index):
    scores, ids = index.search(TEST)
    assert scores.shape == ids.shape == (T, 10)
    assert index.search(TEST, k=N)[1].shape == (T, N)


def test_a_score_does_not_depend_on_what_else_is_asked(index):
    some = drawn(700, 2)
    whole = index.scores(some)
    size = np.abs(whole).max()
    for part in (slice(0, 1), slice(300, 301), slice(510, 514), slice(200, 699)):
        alone = index.scores(TensorDataset(*(t[part] for t in some.tensors)))
        np.testing.assert_allclose(alone, whole[part], atol=1e-5 * size)


def test_the_order_of_the_training_set_moves_the_columns_and_nothing_else():
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    moved = TensorDataset(*(t[order] for t in TRAIN.tensors))
    ensemble = ENSEMBLES["dropout"](NETWORKS["mlp"])
    one, other = (attribution.build_index(ensemble, some, WHOLE) for some in (TRAIN, moved))
    scores = one.scores(TEST)[:, order]
    np.testing.assert_allclose(other.scores(TEST), scores, atol=1e-4 * np.abs(scores).max())


def test_masks_follow_from_the_seed():
    def scores(seed: int) -> np.ndarray:
        ensemble = attribution.dropout_ensemble(NETWORKS["mlp"], masks=2, seed=seed)
        return attribution.build_index(ensemble, TRAIN).scores(TEST)

    np.testing.assert_array_equal(scores(5), scores(5))
    assert dense.off(scores(6), scores(5)) > 0.01


class Pairs(Dataset):
    """Any data set of (x, y): labels as plain numbers, images of more dimensions."""

    def __init__(self, some: TensorDataset) -> None:
        self.some = some

    def __len__(self) -> int:
        return len(self.some)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        x, y = self.some[i]
        return x, int(y)


def test_any_data_set_of_pairs_will_do_and_one_network_needs_no_list(index):
    np.testing.assert_array_equal(index.scores(Pairs(TEST)), index.scores(TEST))
    alone, listed = (attribution.naive_ensemble(n) for n in (NETWORKS["mlp"][0], NETWORKS["mlp"]))
    assert (len(alone), len(listed)) == (1, 2)
    first = attribution.naive_ensemble(NETWORKS["mlp"][:1])
    np.testing.assert_array_equal(
        attribution.build_index(alone, Pairs(TRAIN)).scores(TEST),
        attribution.build_index(first, TRAIN).scores(TEST),
    )


def state_of(network: nn.Module) -> tuple:
    return (
        [m.training for m in network.modules()],
        [p.requires_grad for p in network.parameters()],
        [p.grad for p in network.parameters()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()],
        {n: v.tolist() for n, v in network.state_dict().items()},
    )


def test_ekfac_is_the_eigenvalue_corrected_inverse_in_the_kronecker_factored_eigenbasis():
    """Each layer by numpy: eigenvectors of the second moments of its inputs and gradients."""
    spec = EstimatorSpec(name="ekfac", damping=0.1, q_power=0)
    network = NETWORKS["mlp"][0]
    index = attribution.build_index(attribution.naive_ensemble(network), TRAIN, WHOLE, spec)
    view = View(network.eval())
    rotated: list[list[np.ndarray]] = [[], []]
    for half, some in enumerate((TRAIN, TEST)):
        x, y = (t for t in some.tensors)
        exact = backward_loop(view, x, torch.arange(len(x)), y)
        q = by_loop(view, some)[1]
        for layer, site in enumerate(sites(network)):
            matrix = as_matrix(site, exact).double().numpy()  # an outer product, bias last
            if half == 0:
                g = matrix[:, :, -1]
                a = np.einsum("nog,no->ng", matrix, g) / (g**2).sum(1, keepdims=True)
                bases = [np.linalg.eigh(rows.T @ rows)[1] for rows in (g, a)]
                rotated[1].append(bases)
            else:
                bases = rotated[1][layer]
            turned = np.einsum("og,noi,ia->nga", bases[0], matrix, bases[1])
            rotated[0].append((turned * q[:, None, None]).reshape(len(x), -1))
    layers = len(rotated[1])
    phi, psi = (np.concatenate(rotated[0][h * layers : (h + 1) * layers], 1) for h in (0, 1))
    moment = (phi**2).mean(0)
    wanted = (psi / (moment + 0.1 * moment.mean())) @ phi.T
    assert dense.off(index.scores(TEST), wanted) < 1e-3


@pytest.mark.parametrize("strategy", ENSEMBLES)
def test_networks_and_the_random_stream_are_left_as_they_were(strategy):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, C)
    )
    network.train()
    network[1].eval()
    network[0].requires_grad_(False)
    before, stream = state_of(network), torch.random.get_rng_state()
    index = attribution.build_index(ENSEMBLES[strategy]([network]), TRAIN)
    index.scores(TEST)
    index.search(TEST)
    assert state_of(network) == before
    assert torch.equal(torch.random.get_rng_state(), stream)


def test_nothing_is_written_to_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # no byte can go to any file
    try:
        index = attribution.build_index(ENSEMBLES["dropout"](NETWORKS["mlp"]), TRAIN)
        index.scores(TEST)
        index.search(TEST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def told(act) -> UserError:
    """The mistake that `act` makes, in its three parts and one line."""
    with pytest.raises(UserError) as raised:
        act()
    error = raised.value
    assert error.found and error.wanted and error.next_step
    assert "\n" not in str(error)
    return error


@pytest.mark.parametrize("make", [attribution.naive_ensemble, attribution.dropout_ensemble])
@pytest.mark.parametrize(
    ("networks", "found"),
    [
        (nn.Linear(2, 2, device="meta"), "a network on meta"),
        ([], "nothing"),
        ([3], "int"),
        ("mlp", "str"),
        ([nn.Linear(2, 2), None], "NoneType"),
    ],
)
def test_what_is_no_network_is_a_users_mistake(make, networks, found):
    error = told(lambda: make(networks))
    assert found in error.found
    assert "torch.nn.Module" in error.wanted


def test_networks_in_double_precision_are_as_those_in_single():
    double = [copy.deepcopy(n).double() for n in NETWORKS["mlp"]]
    found = []
    for networks, dtype in ((NETWORKS["mlp"], torch.float32), (double, torch.float64)):
        train, test = (TensorDataset(x.to(dtype), y) for x, y in (TRAIN.tensors, TEST.tensors))
        index = attribution.build_index(attribution.naive_ensemble(networks), train)
        found.append(index.scores(test))
    assert found[1].dtype == np.float32
    np.testing.assert_allclose(found[1], found[0], rtol=1e-2, atol=1e-3 * np.abs(found[0]).max())


@pytest.mark.parametrize("masks", [0, -1])
def test_an_ensemble_without_masks_is_a_users_mistake(masks):
    error = told(lambda: attribution.dropout_ensemble(NETWORKS["mlp"], masks=masks))
    assert f"masks = {masks}" in error.found
    assert "at least one mask" in error.wanted


@pytest.mark.parametrize("p", [0, 1, -0.2, 1.5, float("nan")])
def test_a_share_of_dropped_units_out_of_range_is_a_users_mistake(p):
    error = told(lambda: attribution.dropout_ensemble(NETWORKS["mlp"], p=p))
    assert f"p = {p:g}" in error.found
    assert "between 0 and 1" in error.wanted


@pytest.mark.parametrize("k", [0, -1, N + 1])
def test_more_hits_than_there_are_training_examples_are_a_users_mistake(index, k):
    error = told(lambda: index.search(TEST, k=k))
    assert f"k = {k}" in error.found
    assert f"from 1 to {N}" in error.wanted


def test_an_unknown_estimator_is_told_with_the_known_ones():
    ensemble = attribution.naive_ensemble(NETWORKS["mlp"])
    spec = EstimatorSpec(name="shapley")
    error = told(lambda: attribution.build_index(ensemble, TRAIN, estimator=spec))
    assert "'shapley'" in error.found and "trak, graddot, gradcos" in error.wanted


def test_masks_have_no_place_in_a_single_layer():
    ensemble = attribution.dropout_ensemble(nn.Linear(12, C))
    assert "without dropout" in told(lambda: attribution.build_index(ensemble, TRAIN)).found


class Gone(Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, at: int) -> tuple:
        raise FileNotFoundError(f"no file {at}\nnor a second line")


X, Y = TEST.tensors
BAD = {
    "empty": (TensorDataset(X[:0], Y[:0]), "an empty data set"),
    "an empty list": ([], "an empty data set"),
    "without labels": (TensorDataset(X), "not pairs"),
    "three things an example": (TensorDataset(X, Y, Y), "not pairs"),
    "labels beyond the classes": (TensorDataset(X, Y + C), "for 3 classes"),
    "negative labels": (TensorDataset(X, Y - C), "for 3 classes"),
    "labels that are no whole numbers": (TensorDataset(X, Y + 0.5), "float32"),
    "labels in rows": (TensorDataset(X, nn.functional.one_hot(Y, C)), "shape (6, 3)"),
    "inputs of another width": (TensorDataset(X[:, :7], Y), "2x7"),
    "inputs in double precision": (TensorDataset(X.double(), Y), "dtype"),
    "inputs that are not numbers": (TensorDataset(X * torch.nan, Y), "not finite"),
    "pictures that are no tensors": ([(Image.new("L", (4, 3)), 0)] * 3, "PIL.Image.Image"),
    "inputs of several sizes": ([(X[0], 0), (X[0, :7], 1)], "equal size"),
    "batches of several sizes": ([(X[0], 0)] * 256 + [(X[0, :7], 1)], "Sizes of tensors"),
    "labels in words": ([(X[0], "cat"), (X[1], "dog")], "TypeError: expected Tensor"),
    "files that are gone": (Gone(), "FileNotFoundError: no file 0"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_data_set_that_makes_no_sense_is_a_users_mistake(index, kind):
    some, found = BAD[kind]
    ensemble = attribution.naive_ensemble(NETWORKS["mlp"])
    for act in (
        lambda: attribution.build_index(ensemble, some),
        lambda: index.scores(some),
        lambda: index.search(some),
    ):
        assert found in told(act).found


# LoRA adapters.


@pytest.mark.parametrize("name", NETWORKS)
def test_lora_scores_are_the_dense_formula_on_gradients_of_the_adapters(name):
    networks = NETWORKS[name]
    before = [state_of(n) for n in networks]
    ensemble = attribution.lora_ensemble(networks, TRAIN, adapters=2, rank=2, seed=0)
    index = attribution.build_index(ensemble, TRAIN, WHOLE)
    scores = index.scores(TEST)
    scores_Tk, ids_Tk = index.search(TEST, k=10)
    assert [state_of(n) for n in networks] == before
    assert len(ensemble) == 2 * len(networks)
    assert scores.shape == (T, N) and scores.dtype == np.float32 and np.isfinite(scores).all()
    halves: list[list[np.ndarray]] = [[], []]
    q_MN = []
    for model in ensemble.networks:
        assert all(n.split(".")[-2] == "default" and "lora_" in n for n in wanting(model))
        columns = [s for s in sites(model)]
        view = View(model.requires_grad_(True))  # so that a loop may ask for every gradient
        for half, some in zip(halves, (TRAIN, TEST), strict=True):
            x, y = some.tensors
            exact = backward_loop(view, x, torch.arange(len(x)), y)
            half.append(torch.cat([as_matrix(s, exact).flatten(1) for s in columns], 1).numpy())
        x, y = TRAIN.tensors
        p_NC = view.logits(x, torch.arange(N)).detach().double().softmax(1)
        q_MN.append(1 - p_NC[torch.arange(N), y].numpy())
    wanted = dense.scores(*halves, np.stack(q_MN), EstimatorSpec())
    assert dense.off(scores, wanted) < 1e-3
    assert ids_Tk.shape == (T, 10) and dense.astray(ids_Tk, scores) < 1e-5


def wanting(model: nn.Module) -> list[str]:
    found = [n for n, p in model.named_parameters() if p.requires_grad]
    assert found
    return found


def test_lora_ensembles_follow_from_the_seed_and_adapters_differ():
    def made(seed: int) -> list[dict[str, torch.Tensor]]:
        ensemble = attribution.lora_ensemble(NETWORKS["mlp"], TRAIN, adapters=2, rank=2, seed=seed)
        return [
            {n: p.detach() for n, p in m.named_parameters() if "lora_" in n}
            for m in ensemble.networks
        ]

    first, again, other = made(1), made(1), made(2)
    for one, same, unlike in zip(first, again, other, strict=True):
        assert all(torch.equal(one[n], same[n]) for n in one)
        assert not any(torch.equal(one[n], unlike[n]) for n in one)
    last = "base_model.model.3.lora_B.default.weight"
    assert len({m[last].numpy().tobytes() for m in first}) == 4


def test_a_lora_ensemble_that_makes_no_sense_is_a_users_mistake():
    for adapters in (0, -2):
        error = told(lambda n=adapters: attribution.lora_ensemble(NETWORKS["mlp"], TRAIN, n))
        assert f"adapters = {adapters}" in error.found and "at least one" in error.wanted
    error = told(lambda: attribution.lora_ensemble(NETWORKS["mlp"], TRAIN, rank=9))
    assert "9 for layer 0" in error.found and "from 1 to 8" in error.wanted
    spec = attribution.LoraSpec(targets=("query",))
    error = told(lambda: attribution.lora_ensemble(NETWORKS["mlp"], TRAIN, rank=2, lora=spec))
    assert "no layer named query" in error.found and "one of 0, 3" in error.wanted
    assert "nothing" in told(lambda: attribution.lora_ensemble([], TRAIN)).found
    empty = TensorDataset(X[:0], Y[:0])
    assert "empty" in told(lambda: attribution.lora_ensemble(NETWORKS["mlp"], empty)).found
