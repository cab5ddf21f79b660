"""The calls of other libraries, held against these libraries."""

import numpy as np
import pytest
import torch
from dense import off
from scipy.stats import spearmanr
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from attribution.data import clean_labels
from attribution.engine import Engine
from attribution.peers import EXACT, TRAKAttributor, TRAKer, explainer, register
from attribution.records import BuildSpec, DataSpec, FeatureSpec, UserError

CLASSES, TRAIN, TEST = 4, 60, 12


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 6), nn.Tanh(), nn.Linear(6, CLASSES)).eval()


@pytest.fixture(scope="module")
def halves() -> tuple[TensorDataset, TensorDataset]:
    draw = torch.Generator().manual_seed(0)

    def half(count: int) -> TensorDataset:
        x = torch.randn(count, 1, 3, 3, generator=draw)
        return TensorDataset(x, torch.randint(CLASSES, (count,), generator=draw))

    return half(TRAIN), half(TEST)


@pytest.fixture(scope="module")
def checkpoints() -> list[dict[str, torch.Tensor]]:
    return [network(seed).state_dict() for seed in (1, 2)]


def scored(traker, halves, checkpoints) -> np.ndarray:
    """The same calls on theirs and on ours."""
    train, test = (DataLoader(half, batch_size=25) for half in halves)
    for j, weights in enumerate(checkpoints):
        traker.load_checkpoint(weights, model_id=j)
        for batch in train:
            traker.featurize(batch=batch, num_samples=len(batch[0]))
    traker.finalize_features()
    for j, weights in enumerate(checkpoints):
        traker.start_scoring_checkpoint("some", weights, j, num_targets=TEST)
        for batch in test:
            traker.score(batch=batch, num_samples=len(batch[0]))
    return np.array(traker.finalize_scores("some"))


LAMBDA = 1e-3


def theirs(folder, **options):
    from trak import TRAKer as Their

    return Their(
        network(0), "image_classification", train_set_size=TRAIN, save_dir=str(folder),
        device="cpu", use_half_precision=False, lambda_reg=LAMBDA, logging_level=50, **options,
    )  # fmt: skip


@pytest.fixture
def unscaled():
    """Their score computer without the factor that it multiplies each checkpoint's scores by."""
    from trak.score_computers import BasicScoreComputer

    class Unscaled(BasicScoreComputer):
        def get_x_xtx_inv(self, grads, xtx):
            return grads @ torch.linalg.inv(xtx + self.lambda_reg * torch.eye(len(xtx)))

    return Unscaled


def test_a_traker_without_projection_gives_the_scores_of_traks(
    tmp_path, halves, checkpoints, unscaled
):
    from trak.projectors import NoOpProjector

    them = theirs(tmp_path, projector=NoOpProjector(device="cpu"), score_computer=unscaled)
    wanted = scored(them, halves, checkpoints)
    found = scored(
        TRAKer(network(0), "image_classification", TRAIN, lambda_reg=LAMBDA, features=EXACT),
        halves, checkpoints,
    )  # fmt: skip
    assert found.shape == (TRAIN, TEST)
    assert off(found, wanted) < 1e-3


def test_as_it_comes_it_differs_by_a_factor_for_each_checkpoint(tmp_path, halves, checkpoints):
    from trak.projectors import NoOpProjector

    wanted = scored(
        theirs(tmp_path, projector=NoOpProjector(device="cpu")), halves, checkpoints[:1]
    )
    ours = TRAKer(network(0), "image_classification", TRAIN, lambda_reg=LAMBDA, features=EXACT)
    found = scored(ours, halves, checkpoints[:1])
    factor = (found * wanted).sum() / (found * found).sum()
    assert factor > 0
    assert off(factor * found, wanted) < 1e-3


def test_a_projection_keeps_the_ranks(halves, checkpoints):
    def ours(features: FeatureSpec) -> np.ndarray:
        made = TRAKer(network(0), train_set_size=TRAIN, lambda_reg=LAMBDA, features=features)
        return scored(made, halves, checkpoints)

    exact, projected = ours(EXACT), ours(FeatureSpec(ka=8, kg=4))
    each = [spearmanr(a, b).statistic for a, b in zip(exact.T, projected.T, strict=True)]
    assert np.mean(each) > 0.8


def test_examples_land_where_inds_says(halves, checkpoints):
    inds = torch.randperm(TRAIN, generator=torch.Generator().manual_seed(0))
    x, y = halves[0].tensors
    ours = [TRAKer(network(0), train_set_size=TRAIN, lambda_reg=LAMBDA) for _ in range(2)]
    for traker in ours:
        traker.load_checkpoint(checkpoints[0], model_id=0)
    ours[0].featurize((x, y), num_samples=TRAIN)
    ours[1].featurize((x[inds], y[inds]), inds=inds)
    found = []
    for traker in ours:
        traker.finalize_features()
        traker.start_scoring_checkpoint("some", checkpoints[0], 0, TEST)
        traker.score(halves[1].tensors, num_samples=TEST)
        found.append(traker.finalize_scores("some"))
    assert off(found[1], found[0]) < 1e-4


def test_networks_that_are_named_are_those_of_that_call_alone(halves, checkpoints):
    ours = TRAKer(network(0), train_set_size=TRAIN, lambda_reg=LAMBDA)
    whole = scored(ours, halves, checkpoints)
    first = ours.finalize_scores("some", model_ids=iter([0]))
    assert off(first, whole) > 1e-2
    np.testing.assert_array_equal(ours.finalize_scores("some"), whole)


def test_calls_out_of_order_are_told(halves, checkpoints):
    ours = TRAKer(network(0), train_set_size=TRAIN)
    with pytest.raises(UserError, match="featurize before load_checkpoint"):
        ours.featurize(halves[0].tensors, num_samples=TRAIN)
    with pytest.raises(UserError, match="finalize_features before load_checkpoint"):
        ours.finalize_features()
    ours.load_checkpoint(checkpoints[0], model_id=0)
    ours.featurize(tuple(t[:10] for t in halves[0].tensors), num_samples=10)
    with pytest.raises(UserError, match="10 examples; wanted all 60"):
        ours.finalize_features()
    with pytest.raises(UserError, match="unknown experiment 'some'"):
        ours.finalize_scores("some")


@pytest.mark.parametrize("options", [{"task": "clip"}, {"grad_wrt": ["1.weight"]}])
def test_what_it_cannot_do_is_refused(options):
    with pytest.raises(UserError):
        TRAKer(network(0), **{"train_set_size": TRAIN, **options})


def task_of(checkpoints, target=None):
    from dattri.task import AttributionTask

    model = network(0)

    def logits(params, pair):
        image, label = pair
        return torch.func.functional_call(model, params, image[None])[0], label

    def margin(params, pair):
        scores, label = logits(params, pair)
        p = scores.softmax(0).gather(0, label[None])[0]
        return torch.log(p) - torch.log1p(-p)

    def believed(params, pair):
        scores, label = logits(params, pair)
        return scores.softmax(0).gather(0, label[None])[0]

    def doubled(params, pair):
        scores, label = logits(params, pair)
        return 2 * scores.gather(0, label[None])[0] + 1

    chosen = {None: margin, "doubled": doubled}[target]
    return AttributionTask(loss_func=chosen, model=model, checkpoints=checkpoints), believed


def loaders(halves) -> list[DataLoader]:
    return [DataLoader(half, batch_size=25) for half in halves]


def test_without_projection_the_scores_are_dattris(halves, checkpoints):
    from dattri.algorithm.trak import TRAKAttributor as Their

    task, believed = task_of(checkpoints)
    train, test = loaders(halves)
    parameters = sum(p.numel() for p in network(0).parameters())
    # It has no way to turn its projection off; one onto twice as many dimensions as the gradient
    # has is nearly a rotation, so ranks agree; its formula itself is written down below.
    them = Their(
        task, believed, regularization=LAMBDA,
        projector_kwargs={"proj_dim": 20 * parameters, "device": "cpu", "proj_seed": 0},
    )  # fmt: skip
    them.cache(train)
    wanted = them.attribute(test).numpy()
    ours = TRAKAttributor(task, believed, regularization=LAMBDA, features=EXACT)
    ours.cache(train)
    found = ours.attribute(test).numpy()
    assert found.shape == wanted.shape == (TRAIN, TEST)
    each = [np.corrcoef(a, b)[0, 1] for a, b in zip(found.T, wanted.T, strict=True)]
    assert min(each) > 0.98


def test_the_formula_of_dattri_by_a_loop_of_backward_calls(halves, checkpoints):
    task, _ = task_of(checkpoints)
    ours = TRAKAttributor(task, regularization=LAMBDA, features=EXACT)
    train, test = loaders(halves)
    found = ours.attribute(test, train).numpy()
    kernels, doubts = [], []
    for weights in checkpoints:
        model = network(0)
        model.load_state_dict(weights)
        phi, psi = (gradients(model, half) for half in halves)
        scale = phi.shape[1]
        kernel = phi.T @ phi / scale + LAMBDA * np.eye(scale)
        kernels.append(phi @ np.linalg.inv(kernel) @ psi.T / scale)
        x, y = halves[0].tensors
        doubts.append(1 - model(x).softmax(1).gather(1, y[:, None])[:, 0].detach().numpy())
    wanted = np.mean(kernels, 0) * np.mean(doubts, 0)[:, None]
    assert off(found, wanted) < 1e-3
    ours.cache(train)
    own = np.diag(ours.attribute(train).numpy())
    assert off(ours.self_attribute().numpy(), own) < 1e-4


def gradients(model: nn.Module, half: TensorDataset) -> np.ndarray:
    found = []
    for x, y in half:
        p = model(x[None]).softmax(1)[0, y]
        grads = torch.autograd.grad(torch.log(p / (1 - p)), list(model.parameters()))
        found.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(found).double().numpy()


def test_a_task_with_another_target_is_refused(halves, checkpoints):
    task, _ = task_of(checkpoints, "doubled")
    with pytest.raises(UserError, match="a target function that gives"):
        TRAKAttributor(task).cache(loaders(halves)[0])
    with pytest.raises(UserError, match="attribute before cache"):
        TRAKAttributor(task).attribute(loaders(halves)[1])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # what it imports
def test_quandas_metrics_run_on_the_explainer(halves):
    from quanda.metrics.downstream_eval import ClassDetectionMetric

    train, test = halves
    model = network(1)
    made = explainer()(model=model, train_dataset=train, masks=0, estimator=None)
    x, y = test.tensors
    scores = made.explain(x, y)
    assert scores.shape == (TEST, TRAIN)
    metric = ClassDetectionMetric(model=model, train_dataset=train, s=5)
    metric.update(explanations=scores, test_targets=y, test_data=x)
    top = scores.topk(5).indices
    same = (train.tensors[1][top] == y[:, None]).float().mean()
    assert metric.compute()["score"] == pytest.approx(float(same))
    # Its own way to self-influence is explaining the training set by itself.
    slow = type(made).__mro__[1].self_influence.__wrapped__(made)
    assert off(made.self_influence().numpy(), slow.numpy()) < 1e-4


def test_datalab_calls_us_as_an_issue_manager(tmp_path):
    from cleanlab import Datalab

    engine = Engine(tmp_path / "cache")
    spec = BuildSpec(
        data=DataSpec(noise=0.1), width=0.25, epochs=5, models=1, masks=0, strategy="naive"
    )
    build = engine.open(engine.build(spec)["build"])
    register()
    labels = [build.classes[y] for y in build.train_labels_N]
    lab = Datalab({"label": labels}, label_name="label", verbosity=0)
    lab.find_issues(issue_types={"influence": {"build": build}})
    issues = lab.get_issues("influence")
    assert len(issues) == len(build.train_ids)
    assert list(lab.get_info("influence")["given_label"]) == labels
    wrong_N = clean_labels(engine.store, build.data_id) != build.train_labels_N
    flagged_N = issues["is_influence_issue"].to_numpy()
    assert wrong_N[flagged_N].mean() > 0.5
    worst = issues["influence_score"].to_numpy().argsort()[:50]
    assert wrong_N[worst].mean() > 0.8
    numbers = Datalab({"label": build.train_labels_N.tolist()}, label_name="label", verbosity=0)
    numbers.find_issues(issue_types={"influence": {"build": build}})
    assert numbers.get_issues("influence").equals(issues)
    other = Datalab({"label": labels[::-1]}, label_name="label", verbosity=0)
    for lab, given, found in ((other, build, "labels that are not"), (other, None, "no build")):
        with pytest.raises(UserError, match=found):
            register()(lab).find_issues(build=given)
