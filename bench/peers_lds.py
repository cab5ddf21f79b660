"""Fidelity (LDS) and seconds of traker, dattri, kronfluence and us on the same trained networks.

On the ground truths of `paper_table` (MNIST-5k with the paper's MLP; with `--cifar10` cats and dogs
with a narrow ResNet-9): five networks, the same examples and threads, and each library as its
documentation sets it up without a GPU. A peer's damping is the best for the images kept apart, of
its default and some, on the first network; its seconds are of the fastest of a few batch sizes,
from trained networks to the scores of all pairs. Ours is the engine at its defaults with q of the
members, which needs nothing but the networks. "chosen" has its damping and power of q chosen like
the peers' damping, for the five networks and for five snapshots of each, and is compared with the
peers pair by pair over the halves. What is computed stays in `--cache`, ours timed beside theirs.
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
from attribution.gradients import margin
from attribution.making import Making
from attribution.metrics import interval, lds
from attribution.records import FeatureSpec, content_id, silent
from attribution.store import Artifact, Draft, Store
from attribution.truth import Truth

from .arms import Arm, Read, Setting, difference, read
from .paper_table import (
    CIFAR2,
    FIVE,
    FIVES,
    MNIST,
    OWN,
    SMALL,
    WIDE,
    WIDER,
    at,
    ground_truth,
)  # fmt: skip
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
    margins_ST = found.margins_ST[:, setting.tuned_on :]
    arm = Arm(name="naive", strategy="naive", features=features, sizes=((NETWORKS, 1),))
    making = Making(store, arm.spec(setting, (NETWORKS, 1), 0), data, silent)
    networks = tuple(making.network(c) for c in making.checkpoints)
    whole = Work(networks, making.train, making.test, features, power=0.25)
    mine = {
        count: judged(ours(replace(whole, networks=networks[:count]), 0), found, setting)
        for count in (1, NETWORKS)
    }
    for count, one in mine.items():
        yield fidelity(setting, "ours", count, "", one)
    chosen = {
        strategy: read(
            store,
            data,
            setting,
            Arm(name=strategy, strategy=strategy, features=wide, sizes=sizes),
            found,
            0,
        )[sizes[-1], "q"]
        for strategy, sizes in (("naive", FIVE), ("snapshots", FIVES))
    }
    for strategy, one in chosen.items():
        words = f"chosen {strategy}: damping {one.damping:g}, power {one.power:g}"
        yield fidelity(setting, f"ours, {words}, {wide.ka} x {wide.kg}", NETWORKS, "", one)
    seconds_a_network = sum(r.manifest["seconds"] for r in making.runs) / NETWORKS
    for peer in peers(setting):
        made = scored(store, setting, peer, whole, found, [r.manifest["id"] for r in making.runs])
        fields = made.manifest
        theirs = judged(torch.from_numpy(made.array("scores")), found, setting)
        name = peer.name if peer.run is ekfac else f"{peer.name}, {peer.dims} dims"
        words = f", damping {fields['damping']:g} of {fields['tried']}"
        yield fidelity(setting, name, NETWORKS, words, theirs)
        seconds = fields["theirs"]
        what = f"{name}, networks {NETWORKS}, batch {fields['batch']}"
        yield row(f"{setting.name}: {what}", seconds, "s")
        for strategy, one in chosen.items():
            more, low, high = difference(one, theirs, margins_ST)
            what = f"ours, chosen {strategy}, less {name} (95 % {low:+.3f} to {high:+.3f})"
            yield row(f"{setting.name}: {what}", more, "LDS", at_least=0)
        enough = [count for count, one in mine.items() if one.lds >= theirs.lds]
        if not enough:
            continue
        count = enough[0]
        quick = fields["ours"][str(count)]
        yield row(
            f"{setting.name}: attribution, {name} with {NETWORKS} networks / ours with {count} "
            f"({quick:.2f} s) at no less LDS",
            seconds / quick,
            "x",
            at_least=10 if peer.run is ekfac else 50,
        )
        yield row(
            f"{setting.name}: the same with the networks' training",
            (seconds + NETWORKS * seconds_a_network) / (quick + count * seconds_a_network),
            "x",
        )


def scored(
    store: Store, setting: Setting, peer: Peer, whole: Work, found: Truth, run_ids: list[str]
) -> Artifact:
    """A peer's scores, and its seconds and ours, which are measured beside it."""

    def fill(draft: Draft) -> None:
        one = replace(whole, networks=whole.networks[:1], dims=peer.dims)
        fits = {}
        for damping in peer.dampings:
            try:
                scores = timed(peer.run, replace(one, damping=damping), peer.batches[-1])[1]
            except RuntimeError:  # a kernel that cannot be inverted without damping
                continue
            assert scores is not None
            if torch.isfinite(scores).all():
                fits[damping] = judged(scores, found, setting, tuning=True).lds
        best = max(fits, key=lambda d: fits[d])
        batch = fastest(peer.run, replace(one, damping=best), peer.batches)
        several = replace(whole, dims=peer.dims, damping=best)
        seconds, scores = timed(peer.run, several, batch)
        assert scores is not None
        mine = {
            count: min(
                timed(ours, replace(whole, networks=whole.networks[:count]), 0)[0] for _ in range(3)
            )
            for count in (1, NETWORKS)
        }
        draft.array("scores", scores.numpy())
        draft.note(damping=best, tried=len(fits), batch=batch, theirs=seconds, ours=mine)

    made_by = [found.id, run_ids, peer.name, peer.dims, peer.dampings, peer.batches, whole.features]
    name = content_id("peer", *made_by)
    return store.make("peer", name, fill, {"peer": peer.name, "setting": setting.name})


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
