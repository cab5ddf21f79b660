"""Settings chosen without retraining (`attribution tune`) against the best on ground truth.

On the ground truths of `paper_table`: LDS of one network, and of five, for every width, damping and
power of q of a grid; where the choice from the first network lands; and the defaults.
"""

from pathlib import Path

import torch

from attribution import strategies, tuning
from attribution.data import dataset
from attribution.making import Making
from attribution.metrics import lds
from attribution.records import BuildSpec, EstimatorSpec, FeatureSpec, silent
from attribution.store import Store
from attribution.stored import phi_of

from .arms import Arm, Setting, scores
from .paper_table import CIFAR2, MNIST, at, ground_truth
from .rows import Options, Row, row

DAMPINGS = (0.03, 0.1, 0.3, 1.0, 3.0)
NETWORKS = 5
Grid = dict[tuple[str, float, float], float]  # LDS by width, damping, power


def measure(options: Options) -> list[Row]:
    store = Store(options.cache or Path("cache"))
    rows = about(store, MNIST, options)
    return rows + (about(store, at(CIFAR2, options), options) if options.cifar10 else [])


def about(store: Store, setting: Setting, options: Options) -> list[Row]:
    grids: dict[int, list[Grid]] = {1: [], NETWORKS: []}
    chosen, usual = [], BuildSpec()
    for seed in range(options.times(3)):
        found, choice = grid(store, setting, seed)
        chosen.append(choice)
        for networks, one in found.items():
            grids[networks].append(one)
    rows = []
    for networks, some in grids.items():
        what = f"{setting.name}, {networks} network{'s' if networks > 1 else ''}"
        best = [max(one.values()) for one in some]
        reached = [one[choice] for one, choice in zip(some, chosen, strict=True)]
        default = (strategies.dims(usual), usual.estimator.damping, usual.estimator.q_power)
        rows += [
            row(f"{what}: best of {len(some[0])} settings", best, "LDS"),
            row(f"{what}: chosen without retraining ({told(chosen)})", reached, "LDS"),
            row(f"{what}: the defaults", [one[default] for one in some], "LDS"),
            row(f"{what}: mean over the grid", [sum(o.values()) / len(o) for o in some], "LDS"),
        ]
    return rows


def told(chosen: list[tuple[str, float, float]]) -> str:
    return "; ".join(f"{dims}, damping {damping:g}, q^{power:g}" for dims, damping, power in chosen)


def grid(
    store: Store, setting: Setting, seed: int
) -> tuple[dict[int, Grid], tuple[str, float, float]]:
    """LDS of one and of five networks, and the settings chosen from the first one."""
    data = dataset(store, setting.blank.data)
    truth = ground_truth(store, setting, data)
    chosen_NS = torch.from_numpy(truth.subsets_SN.T.copy()).float()
    estimator = EstimatorSpec()
    found: dict[int, Grid] = {1: {}, NETWORKS: {}}
    best: tuple[float, str, float, torch.Tensor] | None = None
    for ka, kg in tuning.WIDTHS:
        arm = Arm(
            name="naive", strategy="naive", features=FeatureSpec(ka=ka, kg=kg), sizes=((5, 1),)
        )
        making = Making(store, arm.spec(setting, (NETWORKS, 1), seed), data, silent)
        first, dims = making.blocks[0], f"{ka}x{kg}"
        pair = [phi_of(first, half, making.members[0], estimator) for half in ("train", "test")]
        basis = tuning.spectrum(pair[0], pair[1])
        damping = tuning.damping(basis)
        held_out = basis.held_out(torch.from_numpy(first.array("train_margin")), damping)
        if best is None or held_out > best[0]:
            best = (held_out, dims, damping, basis.scores(damping))
        total_TN = {
            d: torch.zeros(len(making.test), len(making.train)) for d in (*DAMPINGS, damping)
        }
        for m, (member, made) in enumerate(zip(making.members, making.blocks, strict=True)):
            phi_NK, phi_TK = (phi_of(made, half, member, estimator) for half in ("train", "test"))
            for d, scores_TN in scores(phi_NK, phi_TK, "trak", tuple(total_TN)):
                total_TN[d] += scores_TN
                if m + 1 in found:
                    for power in tuning.POWERS:
                        weight_N = making.training_q(m + 1) ** power
                        sums_TS = total_TN[d] @ (weight_N[:, None] * chosen_NS)
                        fit = lds(sums_TS.numpy(), truth.margins_ST).mean()
                        found[m + 1][dims, d, power] = float(fit)
    assert best is not None
    _, dims, damping, scores_TN = best
    network = making.network(making.members[0].checkpoint)
    heads = tuning.refitted(network, making.train, making.test, len(data.classes))
    assert heads is not None
    power = tuning.power(scores_TN, making.training_q(1), heads)
    return found, (dims, damping, power)
