"""Every kind of ensemble on one ground truth: fidelity (LDS) and what it costs.

MNIST-5k with the paper's MLP, and with `--cifar10` cats and dogs with a narrow ResNet-9 (arXiv
2405.17293, section 4): networks retrained on random halves of the training set, never those that
attribute. Every arm has its damping and power of q chosen alike, on test images kept apart
(`bench.arms`); mean and standard deviation are over three seeds of networks (`--repeats`), of the
controls over one. What is computed stays in `--cache`, so a second run prints the table at once.
`--only mnist` or `--only cifar2` is one of the two alone.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import numpy as np

from attribution.data import DATASETS, Dataset, dataset
from attribution.making import examples
from attribution.metrics import ceiling
from attribution.records import BuildSpec, DataSpec, FeatureSpec, RunSpec
from attribution.store import Store
from attribution.stored import seconds
from attribution.strategies import ONE_LOW_RATE
from attribution.truth import Truth, truth

from .arms import Arm, Read, Setting, Size, difference, read
from .images import cifar2, named
from .rows import Options, Row, row, table

MNIST = Setting(name="MNIST-5k, MLP", blank=BuildSpec(), subsets=100, seeds=5, tuned_on=100)
CIFAR2 = Setting(
    name="CIFAR-2, ResNet-9 of 1/8 the width",
    blank=BuildSpec(
        data=DataSpec(name="cifar2"), model="resnet9", width=0.125, epochs=10, **ONE_LOW_RATE
    ),
    subsets=100,
    seeds=2,
    tuned_on=80,
)
RANDOM = FeatureSpec(basis="random", ka=32, kg=16)
OWN = FeatureSpec(ka=64, kg=8)
WIDE = FeatureSpec(ka=128, kg=8)
REDRAWN = {"redraw": True}  # every member has random directions of its own, as in the paper
MASKED = {"p": 0.2, **REDRAWN}

NETWORKS = ((1, 1), (2, 1), (5, 1), (10, 1), (25, 1))
MANY = ((1, 1), (1, 5), (1, 20), (1, 50), (2, 20), (5, 1), (5, 5), (5, 20))
SOME = ((1, 1), (1, 5), (1, 20), (5, 5))
FIVES = ((1, 5), (5, 5))
FIVE = ((1, 1), (5, 1))
MNIST_ARMS = (
    Arm(name="naive", strategy="naive", features=RANDOM, sizes=NETWORKS, axes=REDRAWN),
    Arm(name="dropout", strategy="dropout", features=RANDOM, sizes=MANY, axes=MASKED),
    Arm(name="forward-only", strategy="forward", features=RANDOM, sizes=MANY, axes=MASKED),
    Arm(name="LoRA", strategy="lora", features=RANDOM, sizes=MANY, axes=REDRAWN),
    Arm(name="snapshots", strategy="snapshots", features=RANDOM, sizes=FIVES, axes=REDRAWN),
    Arm(name="fine-tunes", strategy="finetunes", features=RANDOM, sizes=FIVES, axes=REDRAWN,
        control=True),
    Arm(name="draws, no mask", strategy="draws", features=RANDOM, sizes=((1, 50), *SOME)),
    Arm(name="dropout, one draw", strategy="dropout", features=RANDOM, sizes=SOME,
        axes={"p": 0.2}, control=True),
    Arm(name="dropout, one mask a member", strategy="dropout", features=RANDOM, sizes=SOME,
        axes={"shared_masks": True, **MASKED}, control=True),
    Arm(name="kernel blocks", strategy="blocks", axes=REDRAWN, sizes=FIVES, control=True,
        features=FeatureSpec(basis="random", ka=64, kg=32)),
    Arm(name="naive", strategy="naive", features=OWN, sizes=NETWORKS),
    Arm(name="dropout", strategy="dropout", features=OWN, sizes=MANY),
    Arm(name="forward-only", strategy="forward", features=OWN, sizes=MANY),
    Arm(name="LoRA", strategy="lora", features=OWN, sizes=MANY),
    Arm(name="snapshots", strategy="snapshots", features=OWN, sizes=FIVES),
    Arm(name="fine-tunes", strategy="finetunes", features=OWN, sizes=FIVES, control=True),
    Arm(name="naive, Grad-Dot", strategy="naive", features=OWN, sizes=FIVE, estimator="graddot"),
    Arm(name="naive, Grad-Cos", strategy="naive", features=OWN, sizes=FIVE, estimator="gradcos"),
    Arm(name="naive, EK-FAC", strategy="naive", features=OWN, sizes=FIVE, estimator="ekfac"),
    Arm(name="snapshots, TracIn", strategy="snapshots", features=OWN, sizes=FIVES,
        estimator="tracin"),
    Arm(name="naive", strategy="naive", features=WIDE, sizes=FIVE),
    Arm(name="snapshots", strategy="snapshots", features=WIDE, sizes=FIVES),
)  # fmt: skip
# A convolution has one basis for all its places, so fewer directions hold as much.
SMALL = FeatureSpec(ka=32, kg=8)
SMALL_RANDOM = FeatureSpec(basis="random", ka=16, kg=8)
WIDER = FeatureSpec(ka=64, kg=8)
COLOUR = ((1, 1), (1, 5), (1, 20), (5, 1), (5, 5))
ADAPTED = ((1, 1), (1, 5), (5, 1), (5, 5))
CIFAR2_ARMS = (
    Arm(name="naive", strategy="naive", features=SMALL_RANDOM, sizes=NETWORKS[:4], axes=REDRAWN),
    Arm(name="dropout", strategy="dropout", features=SMALL_RANDOM, sizes=COLOUR, axes=MASKED),
    Arm(name="draws, no mask", strategy="draws", features=SMALL_RANDOM, sizes=COLOUR),
    Arm(name="forward-only", strategy="forward", features=SMALL_RANDOM, sizes=COLOUR, axes=MASKED),
    Arm(name="LoRA", strategy="lora", features=SMALL_RANDOM, sizes=ADAPTED, axes=REDRAWN),
    Arm(name="naive", strategy="naive", features=SMALL, sizes=NETWORKS[:4]),
    Arm(name="dropout", strategy="dropout", features=SMALL, sizes=COLOUR),
    Arm(name="forward-only", strategy="forward", features=SMALL, sizes=COLOUR),
    Arm(name="LoRA", strategy="lora", features=SMALL, sizes=ADAPTED),
    Arm(name="snapshots", strategy="snapshots", features=SMALL, sizes=FIVES),
    Arm(name="naive, Grad-Cos", strategy="naive", features=SMALL, sizes=FIVE,
        estimator="gradcos"),
    Arm(name="naive, EK-FAC", strategy="naive", features=SMALL, sizes=FIVE, estimator="ekfac"),
    Arm(name="naive", strategy="naive", features=WIDER, sizes=FIVE),
    Arm(name="snapshots", strategy="snapshots", features=WIDER, sizes=FIVES),
)  # fmt: skip
SETTINGS = {"mnist": (MNIST, MNIST_ARMS), "cifar2": (CIFAR2, CIFAR2_ARMS)}

COLUMNS = (
    "ensemble | directions | LDS, q^1 | LDS, q | LDS, q of training | training s | features s | "
    "query ms | checkpoints MB | features MB"
)


@dataclass(frozen=True, kw_only=True)
class Line(Row):
    """One size of one arm, over the seeds; the row's own value is of its best reading."""

    setting: str
    arm: str
    size: Size
    directions: str
    lds: Mapping[str, tuple[float, float | None]]  # mean and deviation of each reading
    costs: Mapping[str, float]

    def cells(self) -> str:
        """The line of the Markdown table."""
        readings = [cell(self.lds.get(name)) for name in ("q^1", "q", "q of training")]
        c = self.costs
        words = [
            f"{self.arm}, {self.size[0]} x {self.size[1]}",
            self.directions,
            *readings,
            f"{c['training']:.1f}",
            f"{c['features']:.1f}",
            f"{1e3 * c['query']:.1f}",
            f"{c['checkpoints'] / 1e6:.2f}",
            f"{c['feature bytes'] / 1e6:.0f}",
        ]
        return f"| {' | '.join(words)} |"


def cell(value: tuple[float, float | None] | None) -> str:
    if value is None:
        return ""
    return f"{value[0]:.3f}" + ("" if value[1] is None else f" ± {value[1]:.3f}")


def measure(options: Options) -> list[Row]:
    store = Store(options.cache or Path("cache"))
    rows: list[Row] = []
    for name in options.parts("setting", tuple(SETTINGS)):
        setting, arms = SETTINGS[name]
        if setting is MNIST or options.cifar10 or options.only:
            rows += of(store, at(setting, options), arms, options)
    return rows


def show(rows: Sequence[Row]) -> str:
    """A table of ensembles for each setting, then the other figures."""
    parts = []
    for setting in dict.fromkeys(r.setting for r in rows if isinstance(r, Line)):
        head = [f"## {setting}", "", f"| {COLUMNS} |", "| --- " * (COLUMNS.count("|") + 1) + "|"]
        lines = [r.cells() for r in rows if isinstance(r, Line) and r.setting == setting]
        parts.append("\n".join([*head, *lines, ""]))
    parts.append("### What views buy, and save, at equal fidelity\n")
    parts.append(table([r for r in rows if not isinstance(r, Line)]))
    return "\n".join(parts)


def at(setting: Setting, options: Options) -> Setting:
    """The setting, its data set made known where it is of files."""
    if setting.blank.data.name == "cifar2":
        folder = named(options.cifar10)
        DATASETS["cifar2"] = lambda: cifar2(folder)
    return setting


def of(store: Store, setting: Setting, arms: Sequence[Arm], options: Options) -> Iterator[Row]:
    """The rows of one setting."""
    data = dataset(store, setting.blank.data)
    found = ground_truth(store, setting, data)
    yield from about_truth(store, setting, found)
    margins_ST = found.margins_ST[:, setting.tuned_on :]
    reads: dict[tuple[str, FeatureSpec, Size, str], list[Read]] = {}
    for seed in range(options.times(3)):
        for arm in [a for a in arms if not (a.control and seed)]:
            for (size, reading), one in read(store, data, setting, arm, found, seed).items():
                reads.setdefault((arm.name, arm.features, size, reading), []).append(one)
            best = max(
                (found[-1].lds, size, reading)
                for (name, features, size, reading), found in reads.items()
                if (name, features) == (arm.name, arm.features)
            )
            print(f"seed {seed}, {arm.name}, {basis(arm.features)}: {best}", file=sys.stderr)
    lines = {}
    for arm in arms:
        for size in arm.sizes:
            told = line(setting, arm, size, reads)
            lines[arm.name, arm.features, size] = told
            yield told
    yield from saved(setting, lines, arms)
    yield from added(setting, reads, margins_ST, arms)


def ground_truth(store: Store, setting: Setting, data: Dataset) -> Truth:
    """Networks retrained on random halves."""
    blank = setting.blank
    halves = (examples(blank, data, data.train), examples(blank, data, data.test))
    recipe = RunSpec(data_id=data.id, model=blank.model, width=blank.width, epochs=blank.epochs)
    return truth(store, data, *halves, setting.truth_spec(recipe))


def about_truth(store: Store, setting: Setting, found: Truth) -> Iterator[Row]:
    made = store.find("truth", found.id)
    assert made is not None
    parts = [store.find("retrained", name) for name in made.manifest["parts"]]
    minutes = seconds(p for p in parts if p) / 60 / setting.seeds * 3
    bound = 12 if setting is MNIST else None
    what = f"{setting.name}: retraining {setting.subsets} halves x 3 networks"
    what += f" (reckoned from {setting.seeds})"
    yield row(what, minutes, "min", at_most=bound)
    top = ceiling(found.margins_SRT)
    if top is not None:
        yield row(f"{setting.name}: ceiling, no attribution can be above", top, "LDS")


def basis(features: FeatureSpec) -> str:
    return f"{features.basis} {features.ka}x{features.kg}"


def over_seeds(values: Sequence[float]) -> tuple[float, float | None]:
    return fmean(values), stdev(values) if len(values) > 1 else None


def line(
    setting: Setting,
    arm: Arm,
    size: Size,
    reads: Mapping[tuple[str, FeatureSpec, Size, str], list[Read]],
) -> Line:
    mine = {key[3]: r for key, r in reads.items() if key[:3] == (arm.name, arm.features, size)}
    lds = {reading: over_seeds([one.lds for one in some]) for reading, some in mine.items()}
    best, spread = max(lds.values())
    some = next(iter(mine.values()))
    return Line(
        what=f"{setting.name}: {arm.name}, {size[0]} x {size[1]}, {basis(arm.features)}",
        value=best,
        spread=spread,
        unit="LDS",
        reach="",
        ok=None,
        setting=setting.name,
        arm=arm.name,
        size=size,
        directions=basis(arm.features),
        lds=lds,
        costs={name: fmean(one.costs[name] for one in some) for name in some[0].costs},
    )


EFFICIENT = ("dropout", "forward-only", "LoRA")
COSTS = ("training", "query", "checkpoints", "feature bytes")


def saved(
    setting: Setting, lines: Mapping[tuple[str, FeatureSpec, Size], Line], arms: Sequence[Arm]
) -> Iterator[Row]:
    """What the efficient ensembles save at the LDS of a naive one, which is interpolated.

    At the LDS of the largest naive ensemble, or where an arm does not get there at its own best:
    the cheapest size in training that is within .005 of it.
    """
    for features in dict.fromkeys(a.features for a in arms if a.name == "dropout"):
        for reading in ("q^1", "q", "q of training"):
            naive = [o for (n, f, _), o in lines.items() if (n, f) == ("naive", features)]
            top = naive[-1].lds[reading][0]
            for name in EFFICIENT:
                some = [o for (n, f, _), o in lines.items() if (n, f) == (name, features)]
                some = [o for o in some if reading in o.lds]
                if not some:
                    continue
                goal = min(top, max(o.lds[reading][0] for o in some)) - 0.005
                enough = [o for o in some if o.lds[reading][0] >= goal]
                chosen = min(enough, key=lambda o: (o.costs["training"], o.costs["query"]))
                networks = naive_size(naive, reading, chosen.lds[reading][0])
                shares = []
                for cost in COSTS:
                    same = networks * naive[0].costs[cost]
                    shares.append(f"{cost} {100 * (chosen.costs[cost] / same - 1):+.0f} %")
                yield row(
                    f"{setting.name}, {basis(features)}, {reading}: {name} "
                    f"{chosen.size[0]} x {chosen.size[1]} equals naive with so many networks "
                    f"({', '.join(shares)})",
                    networks,
                    "networks",
                )


def naive_size(naive: Sequence[Line], reading: str, lds: float) -> float:
    """How many independent networks reach an LDS, between the measured ones by their logarithm."""
    sizes = np.log([o.size[0] for o in naive])
    reached = np.maximum.accumulate([o.lds[reading][0] for o in naive])
    return float(np.exp(np.interp(lds, reached, sizes)))


def added(
    setting: Setting,
    reads: Mapping[tuple[str, FeatureSpec, Size, str], list[Read]],
    margins_ST: np.ndarray,
    arms: Sequence[Arm],
) -> Iterator[Row]:
    """What views of 5 networks add to these alone, with the best q, paired over the halves."""
    for features in dict.fromkeys(a.features for a in arms if a.features.basis == "own"):
        plain = reads.get(("naive", features, (5, 1), "q of training"))
        for arm in arms:
            size = max(arm.sizes)
            best = reads.get((arm.name, features, size, "q of training")) or reads.get(
                (arm.name, features, size, "q")
            )
            if plain is None or best is None or arm.features != features or arm.name == "naive":
                continue
            one = [
                difference(a, b, margins_ST) for a, b in zip(best, plain, strict=False)
            ]  # controls: one seed
            low, high = (fmean(d[k] for d in one) for k in (1, 2))
            yield row(
                f"{setting.name}, {basis(features)}: {arm.name} {size[0]} x {size[1]} less the "
                f"5 networks alone (95 % {low:+.3f} to {high:+.3f})",
                [d[0] for d in one],
                "LDS",
            )
