"""Fidelity (LDS) and seconds of traker, dattri, kronfluence and us on the same trained networks.

On the ground truths of `paper_table` (MNIST-5k with the paper's MLP; with `--cifar10` cats and dogs
with a narrow ResNet-9): five networks, the same examples and threads, and each library as its
documentation sets it up without a GPU. A peer's damping is the best for the images kept apart, of
its default and some, on the first network; its seconds are of the fastest of a few batch sizes,
from trained networks to the scores of all pairs. Ours is the engine at its defaults with q of the
members, which needs nothing but the networks; "chosen" has its damping and power of q chosen like
the peers' damping, and is compared with them pair by pair over the halves. Training q, which
`build` uses, and snapshots are in `paper_table`.
"""

import copy
import io
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from attribution.data import dataset
from attribution.engine import Making
from attribution.gradients import margin
from attribution.metrics import interval, lds
from attribution.records import FeatureSpec, silent
from attribution.store import Store
from attribution.truth import Truth

from .arms import Arm, Read, Setting, difference, read
from .paper_table import CIFAR2, MNIST, OWN, SMALL, WIDE, WIDER, at, ground_truth
from .peers import Run, Work, dattri, fastest, installed, ours, traker
from .rows import Options, Row, row

NETWORKS = 5


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A library, the settings tried, and the batch sizes."""

    name: str
    run: Run
    dampings: tuple[float, ...]
    batches: tuple[int, ...]
    dims: int = 512


def ekfac(work: Work, batch: int) -> Tensor | None:
    """kronfluence's EK-FAC, one network after the other; the measurement is the negated margin."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import ScoreArguments
    from kronfluence.task import Task

    class Classification(Task):
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            x, y = batch
            logits = model(x)
            if sample:
                with torch.no_grad():
                    y = torch.multinomial(logits.softmax(1), 1).flatten()
            return F.cross_entropy(logits, y, reduction="sum")

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            x, y = batch
            return -margin(model(x), y).sum()

    assert work.test is not None
    halves = [TensorDataset(some.x_N, some.target_N) for some in (work.train, work.test)]
    total_NT = torch.zeros(len(work.train), len(work.test))
    for network in work.networks:
        task = Classification()
        with tempfile.TemporaryDirectory() as folder:
            analyzer = Analyzer(
                "peer",
                prepare_model(copy.deepcopy(network), task),
                task,
                cpu=True,
                disable_tqdm=True,
                output_dir=folder,
            )
            analyzer.fit_all_factors("factors", halves[0], per_device_batch_size=batch)
            analyzer.compute_pairwise_scores(
                "scores",
                "factors",
                query_dataset=halves[1],
                train_dataset=halves[0],
                per_device_query_batch_size=len(work.test),
                per_device_train_batch_size=batch,
                score_args=ScoreArguments(damping_factor=work.damping or None),
            )
            scores_TN = analyzer.load_pairwise_scores("scores")["all_modules"]
            total_NT += scores_TN.mT.float() / len(work.networks)
    return total_NT


def peers(setting: Setting) -> list[Peer]:
    """Dampings of kronfluence: its default, its heuristic (0 here) and larger ones."""
    sizes = (250, 1000) if setting is CIFAR2 else (500, 1500)
    grid = (0.0, 1e-2, 1.0, 1e2, 1e4)
    found = [
        Peer(name="traker", run=traker, dampings=grid, batches=sizes),
        Peer(name="dattri", run=dattri, dampings=grid, batches=sizes),
    ]
    curvature = Peer(
        name="kronfluence EK-FAC", run=ekfac, dampings=(1e-8, 0.0, 1e-1), batches=sizes
    )
    wide = [replace(p, dims=2048, dampings=(0.0, 1.0), batches=sizes[1:]) for p in found]
    return [*found, curvature, *wide]


def measure(options: Options) -> list[Row]:
    installed("trak", "dattri", "kronfluence")
    store = Store(options.cache or Path("cache"))
    rows = list(about(store, MNIST, OWN, WIDE))
    if options.cifar10:
        rows += about(store, at(CIFAR2, options), SMALL, WIDER)
    return rows


def about(
    store: Store, setting: Setting, features: FeatureSpec, wide: FeatureSpec
) -> Iterator[Row]:
    data = dataset(store, setting.blank.data)
    found = ground_truth(store, setting, data)
    arm = Arm(name="naive", strategy="naive", features=features, sizes=((NETWORKS, 1),))
    making = Making(store, arm.spec(setting, (NETWORKS, 1), 0), data, silent)
    networks = tuple(making.network(c) for c in making.checkpoints)
    whole = Work(networks, making.train, making.test, features, power=0.25)
    mine = {}
    for count in (1, NETWORKS):
        work = replace(whole, networks=networks[:count])
        quick = min(timed(ours, work, 0)[0] for _ in range(3))
        mine[count] = (quick, judged(ours(work, 0), found, setting))
        yield fidelity(setting, "ours", count, "", mine[count][1])
        yield row(f"{setting.name}: ours, networks {count}", quick, "s")
    size = (NETWORKS, 1)
    several = Arm(name="naive", strategy="naive", features=wide, sizes=((1, 1), size))
    chosen = read(store, data, setting, several, found, 0)[size, "q"]
    words = f", chosen: damping {chosen.damping:g}, power {chosen.power:g}, {wide.ka} x {wide.kg}"
    yield fidelity(setting, "ours", NETWORKS, words, chosen)
    seconds_a_network = sum(r.manifest["seconds"] for r in making.runs) / NETWORKS
    for peer in peers(setting):
        one = replace(whole, networks=networks[:1], dims=peer.dims)
        fits = {}
        for damping in peer.dampings:
            try:
                scores = timed(peer.run, replace(one, damping=damping), peer.batches[-1])[1]
            except RuntimeError:  # a kernel that cannot be inverted without damping
                continue
            assert scores is not None
            if not torch.isfinite(scores).all():
                continue
            fits[damping] = judged(scores, found, setting, tuning=True).lds
        best = max(fits, key=lambda d: fits[d])
        whole_peer = replace(whole, dims=peer.dims, damping=best)
        batch = fastest(peer.run, replace(one, damping=best), peer.batches)
        seconds, scores = timed(peer.run, whole_peer, batch)
        theirs = judged(scores, found, setting)
        dims = "" if peer.run is ekfac else f", {peer.dims} dims"
        name = f"{peer.name}{dims}"
        yield fidelity(setting, name, NETWORKS, f", damping {best:g} of {len(fits)}", theirs)
        yield row(f"{setting.name}: {name}, networks {NETWORKS}, batch {batch}", seconds, "s")
        margins_ST = found.margins_ST[:, setting.tuned_on :]
        more, low, high = difference(chosen, theirs, margins_ST)
        yield row(
            f"{setting.name}: ours, chosen, less {name} (95 % {low:+.3f} to {high:+.3f})",
            more,
            "LDS",
            at_least=0,
        )
        enough = [c for c in mine if mine[c][1].lds >= theirs.lds]
        if not enough:
            continue
        count = enough[0]
        yield row(
            f"{setting.name}: attribution, {name} with {NETWORKS} networks / ours with {count} at "
            "no less LDS",
            seconds / mine[count][0],
            "x",
            at_least=10 if peer.run is ekfac else 50,
        )
        yield row(
            f"{setting.name}: the same with the networks' training",
            (seconds + NETWORKS * seconds_a_network) / (mine[count][0] + count * seconds_a_network),
            "x",
        )


def judged(scores_NT: Tensor | None, found: Truth, setting: Setting, tuning: bool = False) -> Read:
    """LDS and its interval on the test images that settings are not chosen on, or on these."""
    assert scores_NT is not None
    tests = slice(0, setting.tuned_on) if tuning else slice(setting.tuned_on, None)
    predicted_TS = scores_NT.mT.numpy()[tests] @ found.subsets_SN.T.astype(np.float32)
    margins_ST = found.margins_ST[:, tests]
    low, high = interval(predicted_TS, margins_ST, np.random.default_rng(0), 100)
    return Read(
        lds=float(lds(predicted_TS, margins_ST).mean()),
        low=low,
        high=high,
        damping=0.0,
        power=0.0,
        predicted_TS=predicted_TS,
        costs={},
    )


def fidelity(setting: Setting, name: str, networks: int, words: str, one: Read) -> Row:
    what = (
        f"{setting.name}: {name}, networks {networks}{words} (95 % {one.low:.3f} to {one.high:.3f})"
    )
    return row(what, one.lds, "LDS")


def timed(run: Run, work: Work, batch: int) -> tuple[float, Tensor | None]:
    """Seconds and scores, the library's progress bars unseen."""
    with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        began = time.perf_counter()
        scores = run(work, batch)
        return time.perf_counter() - began, scores
