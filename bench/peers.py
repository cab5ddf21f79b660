"""The same attribution work by traker, by dattri and by us, on the processor.

Each library as its documentation sets it up without a GPU, 512 projected dimensions, float32, a
margin that is stable in float32, and the fastest of a few batch sizes; the same network, examples
and threads for all, in turns.

MLP: from a trained network to the scores of all pairs of 4,500 training and 500 test images:
gradients, projection, kernel and scores, our basis and the check of our hooks included. traker
comes in two forms and the faster counts: as `TRAKer(device="cpu")` sets itself up, drawing its
projection again for each batch, and with a `BasicProjector` whose whole matrix is kept.
dattri's `TRAKAttributor` draws it again for each batch and has no other way.

ResNet-9 (4.8 million parameters): gradients and projection only, of a few images, in milliseconds
an image; our basis is not in it, as it is found once a network. The kept matrix of traker would
take 9.9 GB there, so it is left out.
"""

import copy
import io
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from attribution.data import dataset
from attribution.estimators import q, whitening
from attribution.features import Examples, block, projected
from attribution.gradients import margin
from attribution.index import weights
from attribution.making import examples
from attribution.models import network, resnet9
from attribution.records import BuildSpec, EstimatorSpec, FeatureSpec, RunSpec, UserError
from attribution.store import Store
from attribution.train import train

from .images import colour_images
from .rows import Options, Row, interleaved, ratios, row

DIMS = 512
MLP_DIMS = FeatureSpec(ka=16, kg=11)  # 16 * 11 + 16 * 11 + 16 * 10 = 512
RESNET_DIMS = FeatureSpec(ka=8, kg=5)  # 11 layers * 40 + 10 norms * 8 = 520
RESNET_IMAGES = 64
DAMPING = 1e-3  # of the peers' kernels; it costs no time


@dataclass(frozen=True, eq=False)
class Work:
    """Networks and what is asked of them; without tests only the training features are made."""

    networks: tuple[nn.Module, ...]
    train: Examples
    test: Examples | None
    features: FeatureSpec
    dims: int = DIMS  # of the peers' projections
    damping: float = DAMPING  # of the peers' kernels
    power: float = EstimatorSpec().q_power  # of our q


Run = Callable[[Work, int], Tensor | None]  # (work, batch size) -> scores (N, T)


def ours(work: Work, batch: int) -> Tensor | None:
    """The engine: own basis, factorised projection, TRAK, q of the members."""
    assert work.test is not None
    total_NT = torch.zeros(len(work.train), len(work.test))
    mean_q_N = torch.zeros(len(work.train))
    for trained in work.networks:
        made = projected(trained, work.train, work.features, masks=False)
        train_block = block(made.view(), work.train, made.projections, batch)
        test_block = block(made.view(), work.test, made.projections, batch)
        white = whitening(train_block.phi_NK, EstimatorSpec())
        assert white.matrix_KK is not None
        solved_TK = white(test_block.phi_NK) @ white.matrix_KK.mT
        total_NT += train_block.phi_NK @ solved_TK.mT
        mean_q_N += q(train_block.margin_N) / len(work.networks)
    estimator = EstimatorSpec(q_power=work.power)
    return total_NT * weights(mean_q_N, torch.ones(()), estimator)[:, None]


def traker(work: Work, batch: int, *, keep_matrix: bool = False) -> Tensor | None:
    """traker's TRAKer with its processor projector and its own image margin."""
    from trak import TRAKer
    from trak.projectors import BasicProjector, ProjectionType

    network = copy.deepcopy(work.networks[0])  # TRAKer loads each checkpoint into it
    checkpoints = [n.state_dict() for n in work.networks]
    projector = None
    if keep_matrix:
        projector = BasicProjector(
            grad_dim=sum(p.numel() for p in network.parameters()),
            proj_dim=work.dims,
            seed=0,
            proj_type=ProjectionType.normal,
            device=torch.device("cpu"),
            block_size=work.dims,
        )
    with tempfile.TemporaryDirectory() as folder:
        it = TRAKer(
            model=network,
            task="image_classification",
            train_set_size=len(work.train),
            save_dir=folder,
            device="cpu",
            projector=projector,
            proj_dim=work.dims,
            use_half_precision=False,
            lambda_reg=work.damping,
            logging_level=logging.ERROR,
        )
        for model_id, weights in enumerate(checkpoints):
            it.load_checkpoint(weights, model_id=model_id)
            for some in batches(work.train, batch):
                it.featurize(batch=(some.x_N, some.target_N), num_samples=len(some))
        if work.test is None:
            return None
        it.finalize_features()
        if projector is not None:  # it was freed, and is not drawn again by itself
            projector.generate_sketch_matrix(projector.generator_states[0])
        for model_id, weights in enumerate(checkpoints):
            it.start_scoring_checkpoint("tests", weights, model_id, num_targets=len(work.test))
            for some in batches(work.test, batch):
                it.score(batch=(some.x_N, some.target_N), num_samples=len(some))
        return torch.from_numpy(it.finalize_scores("tests").copy())


def traker_kept(work: Work, batch: int) -> Tensor | None:
    """The same with its projection matrix drawn once and kept."""
    return traker(work, batch, keep_matrix=True)


def dattri(work: Work, batch: int) -> Tensor | None:
    """dattri's TRAKAttributor with its normal projection; its documented f is not finite here."""
    from dattri.algorithm.trak import TRAKAttributor
    from dattri.task import AttributionTask

    network = copy.deepcopy(work.networks[0])  # the task loads each checkpoint into it

    def f(parameters: dict[str, Tensor], example: tuple[Tensor, Tensor]) -> Tensor:
        image, label = example
        logits_1C = torch.func.functional_call(network, parameters, image[None])
        return margin(logits_1C, label[None])[0]

    it = TRAKAttributor(
        task=AttributionTask(
            loss_func=f, model=network, checkpoints=[n.state_dict() for n in work.networks]
        ),
        correct_probability_func=lambda *given: torch.sigmoid(f(*given)),
        projector_kwargs={"proj_dim": work.dims, "proj_type": "normal", "device": "cpu"},
        regularization=work.damping,
    )
    it.cache(loader(work.train, batch))
    return None if work.test is None else it.attribute(loader(work.test, batch))


def measure(options: Options) -> list[Row]:
    installed("trak", "dattri")
    return [*mlp_rows(options), *resnet_rows(options)]


def installed(*packages: str) -> None:
    """Raise `UserError` where a peer is missing."""
    for package in packages:
        if find_spec(package) is None:
            raise UserError(
                found=f"no package {package} installed",
                wanted="the peers",
                next_step="run make bench NAME=peers, or install requirements-dev.txt",
            )


def mlp_rows(options: Options) -> Iterator[Row]:
    work = trained_mlp()
    runs: dict[str, tuple[Run, tuple[int, ...]]] = {
        "ours": (ours, (512, 1500, 4500)),
        "traker": (traker, (500, 1500, 4500)),
        "traker, matrix kept": (traker_kept, (100, 500, 1500)),
        "dattri": (dattri, (500, 1500, 4500)),
    }
    batch = {name: fastest(run, work, sizes) for name, (run, sizes) in runs.items()}
    seconds = interleaved(
        options.times(3),
        {name: quiet(run, work, batch[name]) for name, (run, _) in runs.items()},
        warm=False,  # finding the fastest batch size has warmed everything
    )
    if sum(seconds["traker"]) > sum(seconds["traker, matrix kept"]):
        traker_name = "traker, matrix kept"
    else:
        traker_name = "traker"
    for peer in (traker_name, "dattri"):
        yield row(
            f"MLP, 4,500 x 500 scores, {DIMS} dims: {peer} / ours",
            ratios(seconds[peer], seconds["ours"]),
            "x",
            at_least=50,
        )
    for name in runs:
        yield row(f"MLP, the same: {name}, batch {batch[name]}", seconds[name], "s")


def resnet_rows(options: Options) -> Iterator[Row]:
    torch.manual_seed(0)
    images, what = colour_images(RESNET_IMAGES, options.cifar10)
    work = Work((resnet9(3, 32, 10, 1.0).eval(),), images, None, RESNET_DIMS)
    made = projected(work.networks[0], images, RESNET_DIMS, masks=False)

    def ours_features(work: Work, batch: int) -> None:
        block(made.view(), work.train, made.projections, batch)

    runs: dict[str, tuple[Run, tuple[int, ...]]] = {
        "ours": (ours_features, (16, 32, 64)),
        "traker": (traker, (RESNET_IMAGES,)),  # they draw the projection for each batch
        "dattri": (dattri, (RESNET_IMAGES,)),
    }
    batch = {name: fastest(run, work, sizes) for name, (run, sizes) in runs.items()}
    seconds = interleaved(
        options.times(2),
        {name: quiet(run, work, batch[name]) for name, (run, _) in runs.items()},
        warm=False,
    )
    for peer in ("traker", "dattri"):
        yield row(
            f"ResNet-9, features an image, {DIMS} dims: {peer} / ours",
            ratios(seconds[peer], seconds["ours"]),
            "x",
            at_least=50,
        )
    for name in runs:
        yield row(
            f"ResNet-9, the same ({what}): {name}, batch {batch[name]}",
            [s / len(images) * 1e3 for s in seconds[name]],
            "ms an image",
        )


def trained_mlp() -> Work:
    """The demo's network, trained, with its 4,500 training and 500 test images."""
    spec = BuildSpec()
    with tempfile.TemporaryDirectory() as folder:
        data = dataset(Store(Path(folder)), spec.data)
    made = network(spec.model, data, spec.width, spec.seed)
    halves = examples(spec, data, data.train), examples(spec, data, data.test)
    recipe = RunSpec(data_id=data.id, model=spec.model)
    train(made, halves[0].x_N, halves[0].target_N, recipe)
    return Work((made,), *halves, MLP_DIMS)


def batches(some: Examples, batch: int) -> Iterator[Examples]:
    for b in range(0, len(some), batch):
        yield some[slice(b, b + batch)]


def loader(some: Examples, batch: int) -> DataLoader:
    return DataLoader(TensorDataset(some.x_N, some.target_N), batch_size=batch)


def fastest(run: Run, work: Work, sizes: tuple[int, ...]) -> int:
    """The batch size that does the whole work fastest."""
    if len(sizes) == 1:
        return sizes[0]
    seconds = interleaved(1, {str(b): quiet(run, work, b) for b in sizes}, warm=False)
    return int(min(seconds, key=lambda b: seconds[b][0]))


def quiet(run: Run, work: Work, batch: int) -> Callable[[], None]:
    """`run` without its progress bars; its scores have to be finite."""

    def silently() -> None:
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            scores = run(work, batch)
        assert scores is None or torch.isfinite(scores).all()

    return silently
