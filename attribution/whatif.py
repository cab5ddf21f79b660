"""What if some training examples had not been there: predicted from scores, proved by retraining.

Without a set of training examples the margin of a test example moves by about minus the sum of
their scores. The sum orders removals, but its unit is not the margin's; `scale` finds the factor,
by least squares, once a few removals have been verified on that data and network.

A removal is verified by pairs of networks of one seed: the same first weights and the same batches,
from which one of the two leaves the removed examples out. What the pair shares of the noise of
training cancels in its difference. The networks on all examples serve every verification.

Axes: N train, T test, C classes, R seeds, M networks trained together, G networks of a build (or
its members, where it has one network), V verifications.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from .data import Dataset
from .features import Examples
from .gradients import margin
from .metrics import correlation, ranks
from .records import Report, RunSpec, UserError, content_id, silent, within
from .store import Artifact, Draft, Store
from .train import stackable, train, train_together
from .truth import FIRST_SEED, differing
from .weights import begun

PAIRED = 3 * FIRST_SEED  # seeds of no network that attributes, nor of any other retraining
PART = 5  # seeds of one part, an artifact of its own: what a kill can cost
LEAST = 5  # verifications that tell a scale
NONE: tuple[int, ...] = ()  # nothing removed


@dataclass(frozen=True, kw_only=True)
class VerifySpec:
    """A removal to be verified."""

    run: RunSpec  # its seed plays no part
    test: int
    target: int  # the class whose margin is asked about
    removed: tuple[int, ...]  # training positions, rising
    seeds: int = 10  # pairs of networks


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What retraining without a set did to the margin of a test example."""

    id: str
    test_id: int
    target: int
    removed: tuple[int, ...]
    seeds: int
    before: float  # mean margin of the networks on all examples
    after: float
    change: float
    low: float | None  # 95 % interval of the change, over the pairs; None with one
    high: float | None
    said_before: int  # the class that the networks predict together
    said_after: int
    created: str

    @property
    def flipped(self) -> bool:
        return self.said_before != self.said_after


@dataclass(frozen=True)
class Scale:
    """The factor from predicted to realised changes, and how far off single ones are."""

    factor: float
    low: float  # 95 % interval of the factor
    high: float
    count: int  # verifications that told it
    power: float  # sum of the squared predictions
    residual: float  # standard deviation around the line

    @property
    def usable(self) -> bool:
        """Whether larger predictions came with larger changes, beyond chance."""
        return self.low > 0

    def change(self, score: float) -> tuple[float, float, float]:
        """The change in units of the margin that a sum of scores predicts, with its 95 % interval.

        The interval is of one more verification: it has the noise of retraining in it.
        """
        reach = student(self.count - 1) * self.residual * np.sqrt(1 + score**2 / self.power)
        value = self.factor * score
        return value, value - float(reach), value + float(reach)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What is predicted of a removal before anything is retrained."""

    test_id: int
    target: int
    removed: tuple[int, ...]
    score: float  # minus the sum of the scores, in units of their own
    stderr: float | None  # of it, `Build.noise` says of what; None for one member
    share: float  # of the sum of all positive scores
    share_stderr: float | None
    exact: bool  # from exact scores, or from the compressed index
    margin: float  # of the build's networks as they are, the mean
    change: float | None = None  # in units of the margin, once a scale is known
    low: float | None = None
    high: float | None = None

    @property
    def after(self) -> float | None:
        """The margin without them; None without a scale."""
        return None if self.change is None else self.margin + self.change

    @property
    def flips(self) -> bool | None:
        """Whether the margin is predicted to change its sign; None without a scale."""
        return None if self.after is None else self.margin * self.after < 0


@dataclass(frozen=True, kw_only=True)
class Moved:
    """A test prediction that an edit of the training set is predicted to move."""

    test_id: int
    label: int | None  # None where the test images have no labels
    predicted: int  # the class whose margin moves
    move: float  # in the scores' unit; above zero the networks become surer
    stderr: float | None  # of it, `Build.noise` says of what; None for one member
    share: float  # of the largest move
    change: float | None = None  # in units of the margin, once a scale is known
    low: float | None = None
    high: float | None = None

    @property
    def shaky(self) -> bool:
        return self.stderr is not None and abs(self.move) < 2 * self.stderr

    @property
    def better(self) -> bool:
        """Whether a right prediction becomes surer, or a wrong one less sure."""
        return (self.label == self.predicted) == (self.move > 0)


def checked(labels_N: np.ndarray, ids: Iterable[int]) -> tuple[int, ...]:
    """The removed positions in order, each once.

    Raises `UserError` where one is unknown, there are none, or without them a class has no
    example left.
    """
    chosen = sorted(set(ids))
    unknown = [i for i in chosen if not 0 <= i < len(labels_N)]
    if unknown:
        raise UserError(
            found=f"training id {unknown[0]} to remove",
            wanted=f"positions from 0 to {len(labels_N) - 1}",
            next_step="choose them in that range",
        )
    if not chosen:
        raise UserError(
            found="no training example to remove",
            wanted="at least one",
            next_step="name them with --remove, or a number of proponents with --top",
        )
    left = set(np.delete(labels_N, chosen).tolist())
    gone = sorted(set(labels_N.tolist()) - left)
    if gone:
        every = len(chosen) == len(labels_N)
        raise UserError(
            found="every training example removed" if every else
            f"every training example of class number {gone[0]} removed",
            wanted="a set that leaves some of each class to learn from",
            next_step="remove fewer",
        )  # fmt: skip
    return tuple(int(i) for i in chosen)


def check(spec: VerifySpec) -> None:
    within([("--seeds", spec.seeds, 1, 1000)])


def verify(
    store: Store,
    data: Dataset,
    train_examples: Examples,
    test_examples: Examples,
    spec: VerifySpec,
    report: Report = silent,
) -> Verified:
    """Retrain pairs of networks with and without `spec.removed`; kept, a killed one resumes.

    The networks on all examples are shared by every verification on that data and network, and
    all those of one set by every test example; more seeds later keep the parts that are there.
    Raises `UserError` for a spec that makes no sense.
    """
    check(spec)
    chunks = [range(r, min(r + PART, spec.seeds)) for r in range(0, spec.seeds, PART)]
    total, done = 2 * spec.seeds, 0
    parts: dict[bool, list[Artifact]] = {False: [], True: []}
    for chunk in chunks:
        for without in (False, True):

            def further(
                stage: str, at: int, of: int, first: int = done, n: int = len(chunk)
            ) -> None:
                report("retrain", first * of + at * n, total * of)

            removed = spec.removed if without else NONE
            parts[without].append(
                part(store, data, train_examples, test_examples, spec.run, removed, chunk, further)
            )
            done += len(chunk)
    report("retrain", total, total)

    def fill(draft: Draft) -> None:
        for without, name in ((False, "before"), (True, "after")):
            logits_RC = [p.array("logits", memory_map=True)[:, spec.test] for p in parts[without]]
            draft.array(name, np.concatenate(logits_RC))
        draft.note(parts=[p.manifest["id"] for some in parts.values() for p in some])

    made = store.make("verification", content_id("verification", spec), fill, asdict(spec))
    return opened(made)


def part(
    store: Store,
    data: Dataset,
    train_examples: Examples,
    test_examples: Examples,
    run: RunSpec,
    removed: tuple[int, ...],
    chunk: range,
    report: Report,
) -> Artifact:
    """Logits (len(chunk), T, C) of the networks of some seeds, trained without `removed`."""

    def fill(draft: Draft) -> None:
        pairs = [(removed, r) for r in chunk]
        halves = data, train_examples, test_examples
        draft.array("logits", retrained(store, *halves, run, pairs, report))

    made_by = {"run": asdict(run), "removed": removed, "seeds": [chunk.start, chunk.stop]}
    return store.make("without", content_id("without", made_by), fill, made_by)


def retrained(
    store: Store,
    data: Dataset,
    train_examples: Examples,
    test_examples: Examples,
    run: RunSpec,
    pairs: Sequence[tuple[tuple[int, ...], int]],
    report: Report = silent,
) -> np.ndarray:
    """Logits (M, T, C) of a network for each (removed positions, number of its seed) of `pairs`.

    Networks of one seed are the same but for what is removed: all draw the order of all examples
    and leave out the removed ones where they come. Their dropout masks are the same too where
    they are stacked, and stacked with the same seeds, as those of a `part` are.
    """
    recipes = [replace(run, seed=PAIRED + r) for _, r in pairs]
    networks = [begun(store, data, each) for each in recipes]
    kept_MN = torch.ones(len(pairs), len(train_examples), dtype=torch.bool)
    for kept_N, (removed, _) in zip(kept_MN, pairs, strict=True):
        kept_N[list(removed)] = False
    x_N, target_N = train_examples.x_N, train_examples.target_N
    if stackable(networks[0], run):
        rows_MN = torch.arange(len(train_examples)).expand(len(pairs), -1)
        seeds = [each.seed for each in recipes]
        train_together(
            networks, x_N, target_N, rows_MN, recipes[0], report, seeds=seeds, kept_MN=kept_MN
        )
    else:
        for m, (made, recipe) in enumerate(zip(networks, recipes, strict=True)):

            def further(stage: str, at: int, of: int, m: int = m) -> None:
                report(stage, m * of + at, len(networks) * of)

            train(made, x_N, target_N, recipe, further, beliefs=False, kept_N=kept_MN[m])
    with torch.no_grad():
        logits = [torch.cat([n(x) for x in test_examples.x_N.split(512)]) for n in networks]
    return torch.stack(logits).numpy()


def opened(artifact: Artifact) -> Verified:
    """The verification that an artifact holds."""
    made_by = artifact.manifest["made_by"]
    before_RC, after_RC = artifact.array("before"), artifact.array("after")
    before_R, after_R = (margins(v, made_by["target"]) for v in (before_RC, after_RC))
    change_R = after_R - before_R
    value, low, high = paired(change_R)
    return Verified(
        id=artifact.manifest["id"],
        test_id=made_by["test"],
        target=made_by["target"],
        removed=tuple(made_by["removed"]),
        seeds=len(change_R),
        before=float(before_R.mean()),
        after=float(after_R.mean()),
        change=value,
        low=low,
        high=high,
        said_before=said(before_RC),
        said_after=said(after_RC),
        created=artifact.manifest["created"],
    )


def margins(logits_RC: np.ndarray, target: int) -> np.ndarray:
    """Margins (R,) of one class."""
    logits = torch.from_numpy(np.asarray(logits_RC))
    return margin(logits, torch.full((len(logits),), target)).numpy()


def said(logits_RC: np.ndarray) -> int:
    """The class that networks predict together: the mean of their probabilities."""
    return int(torch.from_numpy(logits_RC).softmax(1).mean(0).argmax())


def paired(change_R: np.ndarray) -> tuple[float, float | None, float | None]:
    """Mean over the pairs, and its 95 % interval by Student's distribution; None with one pair."""
    count, value = len(change_R), float(change_R.mean())
    if count < 2:
        return value, None, None
    reach = student(count - 1) * float(change_R.std(ddof=1)) / count**0.5
    return value, value - reach, value + reach


def student(freedom: int) -> float:
    """How many standard errors a 95 % interval reaches."""
    from scipy.special import stdtrit  # half a second to import

    return float(stdtrit(freedom, 0.975))


def verified(store: Store, run: RunSpec) -> list[Verified]:
    """Every verification on this data and network, newest first; the most seeds of each removal."""
    found: dict[Any, Verified] = {}
    for artifact in store.all("verification"):
        made_by = artifact.manifest["made_by"]
        if differing(run, RunSpec(**made_by["run"])):
            continue
        one = opened(artifact)
        key = one.test_id, one.target, one.removed
        if key not in found or found[key].seeds < one.seeds:
            found[key] = one
    return list(found.values())


def scale(predicted_V: np.ndarray, realised_V: np.ndarray) -> Scale | None:
    """The least-squares factor through the origin with its 95 % interval; None below `LEAST`."""
    power, count = float(np.square(predicted_V).sum()), len(predicted_V)
    if count < LEAST or not power > 0:
        return None
    factor = float(predicted_V @ realised_V) / power
    residual = float(np.sqrt(np.square(realised_V - factor * predicted_V).sum() / (count - 1)))
    reach = student(count - 1) * residual / power**0.5
    return Scale(factor, factor - reach, factor + reach, count, power, residual)


def columns(rows: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and realised changes (V,) of the rows of `Engine.verifications`."""
    pairs = np.array([(r["score"], r["change"]) for r in rows], float).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def scale_of(rows: Sequence[Mapping[str, Any]]) -> Scale | None:
    return scale(*columns(rows))


@dataclass(frozen=True)
class Band:
    """The line from predicted to realised changes of the margin, with 95 % of removals, (X,)."""

    predicted_X: np.ndarray
    low_X: np.ndarray
    high_X: np.ndarray


def predicted(rows: Sequence[Mapping[str, Any]], known: Scale | None) -> list[float]:
    """Predictions of `columns`, in units of the margin once a scale is known."""
    return [float(r["score"]) * (known.factor if known else 1) for r in rows]


def band(rows: Sequence[Mapping[str, Any]], known: Scale, points: int = 40) -> Band:
    """The line as far as the predictions of the rows reach, and a little more."""
    scores_V = np.append(columns(rows)[0], 0)
    more = 0.05 * (float(np.abs(scores_V).max()) or 1.0)
    score_X = np.linspace(scores_V.min() - more, scores_V.max() + more, points)
    value_X, low_X, high_X = np.array([known.change(float(s)) for s in score_X]).T
    return Band(value_X, low_X, high_X)


def agreement(predicted_V: np.ndarray, realised_V: np.ndarray) -> float | None:
    """Rank correlation of predicted and realised changes; None below `LEAST`."""
    if len(predicted_V) < LEAST:
        return None
    return float(correlation(ranks(predicted_V[None]), ranks(realised_V[None]))[0])


def forecast(
    test_id: int,
    target: int,
    removed: tuple[int, ...],
    scores_GN: np.ndarray,
    exact: bool,
    now: float,
    known: Scale | None,
) -> Forecast:
    """What is predicted of a removal, from each network's scores and the margin as it is `now`."""
    score_G = -scores_GN[:, list(removed)].sum(1, dtype=np.float64)
    score = float(score_G.mean())
    stderr = float(score_G.std(ddof=1) / len(score_G) ** 0.5) if len(score_G) > 1 else None
    push = float(np.maximum(scores_GN.mean(0, dtype=np.float64), 0).sum()) or 1.0
    return Forecast(
        test_id=test_id,
        target=target,
        removed=removed,
        score=score,
        stderr=stderr,
        share=-score / push,
        share_stderr=None if stderr is None else stderr / push,
        exact=exact,
        margin=now,
        **(scaled(known, score) if known and known.usable else {}),
    )


def smallest(scores_N: np.ndarray, now: float, known: Scale) -> tuple[int, ...] | None:
    """The first few of the strongest that have to go for the margin `now` to change its sign.

    Proponents of a margin above zero, opponents of one below. None where not even all of them
    would do.
    """
    pull_N = scores_N if now > 0 else -scores_N
    order_N = np.argsort(-pull_N, kind="stable")
    moved_N = known.factor * np.maximum(pull_N[order_N], 0).cumsum(dtype=np.float64)
    enough_N = moved_N > abs(now)
    return tuple(order_N[: int(enough_N.argmax()) + 1].tolist()) if enough_N.any() else None


def most(move_T: np.ndarray, k: int, each: bool) -> np.ndarray:
    """Positions of the k largest moves, whatever their sign; with `each`, k up and then k down."""
    if not each:
        return np.argsort(-np.abs(move_T), kind="stable")[:k]
    order = np.argsort(-move_T, kind="stable")
    up, down = order[:k], order[::-1][:k]
    return np.concatenate([up[move_T[up] > 0], down[move_T[down] < 0]])


def moved(
    tests_k: np.ndarray,
    label_k: Iterable[int | None],
    predicted_k: np.ndarray,
    move_Gk: np.ndarray,
    largest: float,
    known: Scale | None,
) -> tuple[Moved, ...]:
    """What is predicted of some test examples, from each network's moves."""
    count, mean_k = len(move_Gk), move_Gk.mean(0, dtype=np.float64)
    error_k: Iterable[float | None] = [None] * len(tests_k)
    if count > 1:
        error_k = (move_Gk.std(0, ddof=1) / count**0.5).tolist()
    rows = zip(tests_k, label_k, predicted_k, mean_k.tolist(), error_k, strict=True)
    return tuple(
        Moved(
            test_id=int(test),
            label=None if label is None else int(label),
            predicted=int(predicted),
            move=move,
            stderr=error,
            share=move / (largest or 1),
            **(scaled(known, move) if known and known.usable else {}),
        )
        for test, label, predicted, move, error in rows
    )


def scaled(known: Scale, score: float) -> dict[str, float]:
    return dict(zip(("change", "low", "high"), known.change(score), strict=True))
