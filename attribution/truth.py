"""Ground truth by retraining: half-subsets of the training set, each trained on with several seeds.

What attribution has to predict is how the margin of a test example moves when the network is
trained on other examples. So S random subsets are drawn, R networks are trained on each, and the
margins of every test example are kept; the linear datamodelling score (LDS, `metrics.lds`) is the
rank correlation of the sum of an attribution over each subset with them (arXiv 2303.14186,
section 2). None of these networks ever attributes.

Axes: N train, T test, S subsets, R seeds, M networks trained together.
"""

from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from .data import Dataset
from .features import Examples, margins
from .members import View
from .records import Report, RunSpec, TruthSpec, content_id, silent, within
from .store import Artifact, Draft, Store
from .train import stackable, train, train_together
from .weights import begun

PART = 25  # networks of one part, an artifact of its own: what a kill can cost
FIRST_SEED = 10**15  # beyond the seeds of the networks that attribute


@dataclass(frozen=True, eq=False)
class Truth:
    """What retraining found."""

    id: str
    spec: TruthSpec
    subsets_SN: np.ndarray  # bool, the training examples of each subset
    margins_SRT: np.ndarray  # float32, of the given test labels

    @property
    def margins_ST(self) -> np.ndarray:
        """Mean over the seeds."""
        return self.margins_SRT.mean(1)


def truth(
    store: Store,
    data: Dataset,
    train_examples: Examples,
    test_examples: Examples,
    spec: TruthSpec,
    report: Report = silent,
) -> Truth:
    """The ground truth `spec` asks for, made once and kept; a killed one resumes at its part.

    More subsets or seeds later keep the whole parts that are there. Raises `UserError` for a spec
    that makes no sense.
    """
    check(spec)
    chunks = [range(s, min(s + PART, spec.subsets)) for s in range(0, spec.subsets, PART)]
    total = spec.subsets * spec.seeds
    done = 0
    parts_RC: list[list[Artifact]] = []
    for r in range(spec.seeds):
        parts_RC.append([])
        for chunk in chunks:

            def further(
                stage: str, at: int, of: int, first: int = done, n: int = len(chunk)
            ) -> None:
                report("truth", first * of + at * n, total * of)

            parts_RC[-1].append(
                part(store, data, train_examples, test_examples, spec, chunk, r, further)
            )
            done += len(chunk)
    report("truth", total, total)

    def fill(draft: Draft) -> None:
        margins_RST = [np.concatenate([p.array("margins") for p in parts]) for parts in parts_RC]
        draft.array("margins", np.stack(margins_RST, 1))
        draft.note(parts=[p.manifest["id"] for parts in parts_RC for p in parts])

    made = store.make("truth", content_id("truth", spec), fill, asdict(spec))
    return opened(made, len(data.train))


def part(
    store: Store,
    data: Dataset,
    train_examples: Examples,
    test_examples: Examples,
    spec: TruthSpec,
    chunk: range,
    r: int,
    report: Report,
) -> Artifact:
    """Margins (len(chunk), T) of the networks trained with the r-th seed on some subsets."""

    def fill(draft: Draft) -> None:
        recipes = [replace(spec.run, seed=FIRST_SEED + spec.seed + 1000 * s + r) for s in chunk]
        networks = [begun(store, data, each) for each in recipes]
        rows_Mn = np.stack([np.flatnonzero(subset(spec, s, len(train_examples))) for s in chunk])
        retrain(networks, train_examples, torch.from_numpy(rows_Mn), recipes, report)
        margins_MT = [margins(View(n), test_examples).numpy() for n in networks]
        draft.array("margins", np.stack(margins_MT))

    # Of how many it is a part says nothing here: a longer truth shares the parts of a shorter one.
    made_by = {**asdict(spec), "subsets": [chunk.start, chunk.stop], "seeds": r}
    return store.make("retrained", content_id("retrained", made_by), fill, made_by)


def retrain(
    networks: list[nn.Module],
    examples: Examples,
    rows_Mn: Tensor,
    recipes: list[RunSpec],
    report: Report,
) -> None:
    """Fit each network on its rows: all at once where they can be stacked, else one by one."""
    if stackable(networks[0], recipes[0]):
        train_together(networks, examples.x_N, examples.target_N, rows_Mn, recipes[0], report)
        return
    for m, (made, rows_n, recipe) in enumerate(zip(networks, rows_Mn, recipes, strict=True)):

        def further(stage: str, at: int, of: int, m: int = m) -> None:
            report(stage, m * of + at, len(networks) * of)

        some = examples[rows_n]
        train(made, some.x_N, some.target_N, recipe, further, beliefs=False)


def subset(spec: TruthSpec, s: int, count: int) -> np.ndarray:
    """The s-th subset of `count` training examples, bool (N,), all of the same size."""
    chosen = np.zeros(count, bool)
    draw = np.random.default_rng((spec.seed, s))
    chosen[draw.permutation(count)[: round(spec.share * count)]] = True
    return chosen


def opened(artifact: Artifact, count: int) -> Truth:
    """The truth that an artifact holds, of a training set of `count` examples."""
    spec = truth_spec(artifact)
    subsets_SN = np.stack([subset(spec, s, count) for s in range(spec.subsets)])
    return Truth(artifact.manifest["id"], spec, subsets_SN, artifact.array("margins"))


def truth_spec(artifact: Artifact) -> TruthSpec:
    """The spec that an artifact was made by."""
    fields = artifact.manifest["made_by"]
    return TruthSpec(**{**fields, "run": RunSpec(**fields["run"])})


def differing(mine: RunSpec, other: RunSpec) -> list[str]:
    """The fields in which a truth's recipe is not that of the networks that attribute."""
    alike = replace(other, seed=mine.seed, snapshots=mine.snapshots)
    return [n for n, value in asdict(mine).items() if asdict(alike)[n] != value]


def check(spec: TruthSpec) -> None:
    within(
        [
            ("--subsets", spec.subsets, 2, 1_000_000),
            ("--seeds", spec.seeds, 1, 1000),
            ("--share", spec.share, 0.01, 0.99),
        ]
    )
