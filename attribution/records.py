"""Frozen values that pass between the stages, and the ids that name them.

An id is the hash of everything that made the thing, so "it exists" means "it is the one asked
for". Every record here is a plain value: it knows no path, no tensor and no network.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any, Literal

FORMAT = 1  # of the cache; part of every id, so another format is another artifact

LOSS = ("ekfac", "tracin")  # estimators on gradients of the loss; the others, of the margin
Verdict = Literal["keep", "relabel", "drop", "unsure"]
Report = Callable[[str, int, int], None]
"""Called as ``report(stage, done, total)`` while something long runs."""


NO_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
LONGEST = 2000  # characters of each part of a sentence


def silent(stage: str, done: int, total: int) -> None:
    """The :data:`Report` that says nothing."""


class UserError(Exception):
    """A mistake that the user can mend: what was found, what was wanted, and the next step.

    The command line prints the sentence and exits 2; a page shows it as a notice.
    """

    def __init__(self, *, found: str, wanted: str, next_step: str) -> None:
        self.found, self.wanted, self.next_step = map(one_line, (found, wanted, next_step))
        super().__init__(f"{self.found}; wanted {self.wanted}: {self.next_step}.")


def one_line(text: str) -> str:
    """Text that may hold a stranger's names, as a part of one sentence.

    What ends lines, turns them round or is no character is spelled out, as in ``\\n``; of what is
    very long the middle is left out.
    """
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 4 :]}"
    return NO_TEXT.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def natural(text: str) -> int | None:
    """The whole number that `text` is in digits; None for what is none, or beyond any count."""
    return int(text) if text.isdecimal() and len(text) < 19 else None


def known(kind: str, name: str, names: Mapping[str, Any] | tuple[str, ...], option: str) -> None:
    """Raise :class:`UserError` unless `name` is one of `names`, listing them."""
    if name not in names:
        raise UserError(
            found=f"unknown {kind} {name!r}",
            wanted=f"one of {', '.join(names)}",
            next_step=f"choose one with {option}",
        )


def within(limits: Iterable[tuple[str, float, float, float]]) -> None:
    """Raise :class:`UserError` for the first (option, value, least, most) that is out of range."""
    for option, value, low, high in limits:
        if not low <= value <= high:
            raise UserError(
                found=f"{option} {value:g}",
                wanted=f"a number from {low:g} to {high:g}",
                next_step=f"give {option} a value in that range",
            )


def content_id(*parts: Any) -> str:
    """Twelve hexadecimal digits that name `parts` (records, mappings, strings, numbers, bytes)."""

    def plain(part: Any) -> Any:
        if is_dataclass(part) and not isinstance(part, type):
            return {type(part).__name__: settled(asdict(part))}
        if isinstance(part, dict):
            return settled(part)
        return part.hex() if isinstance(part, bytes) else part

    text = json.dumps([FORMAT, *map(plain, parts)], sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


LATER: Mapping[str, Any] = {
    "revision": "",
    "pixels": "",
    "weights": (),
    "given": "",
    "start": "",
    "freeze": False,
    "preprocess": "",
    "preprocess_code": "",
    "train": "",
    "train_code": "",
    "rate": 0.01,
    "batch_size": 64,
    "schedule": "constant",
    "precision": "float32",
    "decay": 0.0,
    "index": "auto",
    "index_recall": 0.95,
    "index_memory": 1.0,
}  # fields that older ids know nothing of


def settled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What an id is made of: all but what says nothing more.

    That is `LATER` fields at their default, so that ids stay what they were, and the name of data
    that its pixels name, so that a folder may be renamed.
    """
    silent = {name for name, default in LATER.items() if fields.get(name) == default}
    silent |= {"name"} if fields.get("pixels") else set()
    return {
        name: settled(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if name not in silent
    }


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """A data set and the label noise put into its training half on purpose.

    Split and noise belong to the data, not to a build's seed: two builds with other seeds see
    the same examples with the same labels.
    """

    name: str = "mnist5k"
    noise: float = 0.0  # share of training labels flipped
    noise_kind: str = "uniform"  # or class; `data.NOISES`
    noise_seed: int = 0
    revision: str = ""  # id of the decisions applied to it (`attribution.revision`)
    pixels: str = ""  # id of what was read from a person's own files (`attribution.reading`)


@dataclass(frozen=True, kw_only=True)
class ReadSpec:
    """How a person's own pictures become training and test images of one size."""

    size: int = 0  # pixels a side; 0: the longer side of the median picture, 8 to 64
    test_share: float = 0.2  # of each class, where the data has no test half of its own
    split_seed: int = 0
    image_column: str = ""  # of a table; none: the one that can be told
    label_column: str = ""
    anywhere: bool = False  # a manifest may name files outside of its folder
    root: str = ""  # where torchvision keeps its data sets; none: in the cache


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One training run: a network, a recipe and a seed."""

    data_id: str
    model: str
    model_code: str = ""  # hash of the file behind FILE.py:FUNCTION, so an edit is another run
    width: float = 1.0  # ResNet-9's channel factor
    epochs: int = 50
    learning_rate: float = 0.01
    schedule: str = "constant"  # of the learning rate; `train.SCHEDULES`
    momentum: float = 0.9
    weight_decay: float = 0.0
    batch: int = 64
    seed: int = 0
    snapshots: int = 0  # weights kept along the way, evenly spaced, the last ones included
    parent: str = ""  # id of the run whose weights it starts from: a short fine-tune
    given: str = ""  # id of the weights that it is, of a network that was not trained here
    start: str = ""  # id of the weights that training starts from
    freeze: bool = False  # only the last layer is trained
    preprocess: str = ""  # how images become input (`models.inputs`)
    preprocess_code: str = ""  # hash of the file behind it
    train: str = ""  # FILE.py:FUNCTION that trains in place of `train.train`, or none
    train_code: str = ""

    @property
    def trains(self) -> bool:
        """Whether networks may be trained by it."""
        return self.train != "none"


@dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """LoRA adapters on a trained network (arXiv 2106.09685)."""

    rank: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = ()  # names of layers; none: all that are as wide as the rank
    epochs: int = 3
    learning_rate: float = 0.01
    share: float = 0.5  # of the training set, drawn anew for each adapter


@dataclass(frozen=True, kw_only=True)
class TruthSpec:
    """Ground truth by retraining (`attribution.truth`), for all builds with the same recipe."""

    run: RunSpec  # its seed plays no part
    subsets: int = 100
    seeds: int = 5  # networks trained on each subset
    share: float = 0.5  # of the training set, in a subset
    seed: int = 0  # of the subsets and of the networks' seeds


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Weights: those a run ended with, those of an epoch on its way, or the end plus an adapter."""

    run_id: str
    epoch: int | None = None
    adapter: str = ""  # id of a LoRA adapter


@dataclass(frozen=True, kw_only=True)
class Member:
    """One gradient-giving view of a checkpoint: the plain network, or one dropout mask of it.

    The mask is a function of (mask, example, site, unit) alone, so a member's features do not
    depend on batch size, order or shard (`attribution.members`).
    """

    checkpoint: Checkpoint
    mask: int | None = None  # None: the network as trained, no dropout
    p: float = 0.0  # share of units the mask drops
    shared: bool = False  # one mask for all examples, rather than one for each
    draw: int = 0  # of the directions of projection
    block: int = 0  # of `blocks`: its kernel is of every blocks-th feature, from this one on
    blocks: int = 1


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """How a member's per-example gradients are projected."""

    basis: str = "own"  # or random
    ka: int = 64  # directions kept of each layer's input
    kg: int = 8  # directions kept of each layer's output gradient
    seed: int = 0  # of the random basis, and of the sketch behind the own one
    precision: str = "float32"  # of the passes; `features.PRECISIONS`


@dataclass(frozen=True, kw_only=True)
class EstimatorSpec:
    """How feature blocks become scores (`attribution.estimators`)."""

    name: str = "trak"
    damping: float = 0.3  # times the mean diagonal of the kernel
    q: str = "members"  # mean of 1 - p over the members, or over the epochs of training
    q_power: float = 0.5  # power of that mean; the paper has 1
    relative: bool = False  # divide by the root of self-influence (RelatIF, arXiv 2003.11630)


@dataclass(frozen=True, kw_only=True)
class BuildSpec:
    """Everything that makes a build."""

    data: DataSpec = field(default_factory=DataSpec)
    model: str = "mlp"
    width: float = 1.0
    weights: tuple[str, ...] = ()  # ids of the networks' weights; none: they are trained
    start: str = ""  # id of weights to start from
    freeze: bool = False  # train only the last layer
    preprocess: str = ""  # library, or FILE.py:FUNCTION
    train: str = ""  # FILE.py:FUNCTION that trains a network; none: nothing is trained again
    epochs: int = 50
    rate: float | None = None  # learning rate; here and below, None: the model's usual one
    schedule: str | None = None  # of the rate; `train.SCHEDULES`
    decay: float | None = None  # of weights
    batch_size: int = 64  # of training
    strategy: str = "dropout"  # what the ensemble is called; the axes below make it
    models: int = 5  # networks trained independently
    finetunes: int = 0  # short runs on from each network, which then stand for it
    finetune_epochs: int = 5
    snapshots: int = 0  # along each run
    adapters: int = 0  # LoRA adapters on each network
    lora: LoraSpec = field(default_factory=LoraSpec)
    masks: int = 20  # dropout masks of each; 0: none
    p: float = 0.1
    shared_masks: bool = False  # one mask a member, rather than one for each example
    forward_only: bool = False  # masks for q only, gradients of the plain networks
    draws: int = 1  # of the directions of projection
    redraw: bool = False  # every member has random directions of its own
    blocks: int = 1  # of the kernel, each a member
    features: FeatureSpec = field(default_factory=FeatureSpec)
    estimator: EstimatorSpec = EstimatorSpec(q="training", q_power=0.75)
    index_dims: int = 1024
    index: str = "auto"  # how its rows are kept and searched; `rows.KINDS`
    index_recall: float = 0.95  # share of the exact order's first and last 20 to be found
    index_memory: float = 1.0  # GB that codes of rows may take
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A training example that a query found."""

    train_id: int  # position in the build's training set
    score: float  # positive: a proponent, raises the margin of the query's target
    stderr: float | None  # of the score; `Answer.noise` says what it carries; None for one member
    agreement: float  # share of members with the mean's sign
    label: int  # the given label

    @property
    def shaky(self) -> bool:
        """Not told apart from zero: within two standard errors, or members disagree."""
        noise = 2 * (self.stderr or 0)
        return self.agreement < 0.8 or self.score == 0 or abs(self.score) < noise


def pushing(hits: Iterable[Hit], sign: int) -> tuple[Hit, ...]:
    """The hits that push this way: of few training examples the strongest may be all of them."""
    return tuple(hit for hit in hits if sign * hit.score > 0)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a query found: the hits of one test example for one target class."""

    test_id: int
    label: int | None  # None where the test images have no labels
    predicted: int
    target: int
    proponents: tuple[Hit, ...]
    opponents: tuple[Hit, ...]
    noise: str  # which noise the error bars carry, in words


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What a build says of an image that is in neither half."""

    probs: tuple[float, ...]  # of each class, mean over the networks
    predicted: int
    target: int
    proponents: tuple[Hit, ...]
    opponents: tuple[Hit, ...]
    noise: str  # as an answer's


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One act of a reviewer, as the append-only log keeps it."""

    seq: int
    data_id: str
    example_id: str
    verdict: Verdict
    label: int | None  # the new label of a relabel
    reviewer: str
    time: str  # ISO 8601, UTC
    build_id: str
    evidence: str  # JSON: the signals that were shown
    batch: str = ""  # names an act on several examples at once
    settles: bool = False  # closes what reviewers disagreed on before it


def fits(decision: Decision, classes: int) -> bool:
    """Whether its label, if it has one, is one of so many classes."""
    return decision.label is None or 0 <= decision.label < classes
