"""A finished build: what may be asked of it, answered from its index.

Axes: N train, T test, C classes, M members, K features of a member, d index dimensions, H hits.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast
from unicodedata import category

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from . import groups, reading, signals, strategies, testlabels, weights
from . import index as indexes
from .cluster import HERE, Cluster
from .data import Split, clean_labels, dataset, example_ids
from .estimators import Whitening, q
from .features import Examples, Projected, margins, shards
from .fit import Blocks, Whitenings, second, totals, whitened
from .folds import FoldsSpec, folds_id, folds_of
from .groups import GroupAnswer
from .making import examples, spec_from
from .map import MapSpec, laid_out, neighbours_kept, side_by_side
from .members import example_keys
from .metrics import detection, spread_of
from .mislabels import SIGNALS, suspects
from .models import inputs
from .records import (
    Answer,
    Checkpoint,
    Hit,
    Report,
    RunSpec,
    Tried,
    UserError,
    content_id,
    known,
    natural,
    silent,
)
from .rows import opened, told
from .store import Artifact, Draft, Store, npy, store_at
from .stored import (
    Stored,
    doubts,
    found,
    fresh,
    load_network,
    load_projected,
    member_from,
    read,
    recipe,
    seen,
    stored,
    was_watched,
)
from .train import probabilities

Kept = TypeVar("Kept")
TOP = 50  # hits of each test example by which ensembles are compared
QUERIES = 2**10  # query vectors that are read between two openings of their file
TOGETHER = 2**28  # bytes of exact scores that are kept for all test examples at once


class Build:
    """A finished build, read only and safe to share between sessions."""

    def __init__(self, store: Store, artifact: Artifact) -> None:
        self.store = store
        self.id: str = artifact.manifest["id"]
        self.summary: dict[str, Any] = artifact.manifest["summary"]
        self.parts: dict[str, list[str]] = artifact.manifest["parts"]
        self.members = [member_from(fields) for fields in artifact.manifest["members"]]
        self._features: list[str] = artifact.manifest["features"]
        self._networks: list[str] = artifact.manifest["networks"]
        self.spec = spec_from(self.summary["spec"])
        self.data = dataset(store, self.spec.data)
        self.data_id = self.data.id
        self.classes = visible(self.data.classes)
        self.train_labels_N = self.data.train.labels_N
        self.train_ids = self.data.train.ids
        self.train_paths = self.data.train.paths  # none for data that came with the program
        self.test_ids = self.data.test.ids
        self.probs_TC = artifact.array("test_probs")
        self.predicted_T = self.probs_TC.argmax(1)
        self.labelled = self.data.test.labelled
        # Where test images have no labels, what they are called takes their place in all that is
        # asked of the index; what is told of labels asks `labelled` first.
        self.test_labels_T = self.data.test.labels_N if self.labelled else self.predicted_T
        self.index = self._part("index", self.parts["index"][0])
        self.q_N = self.index.array("q")
        self._apart = "query_units.npy" in self.index.manifest["files"]
        queries_TMd = self.index.array("queries", memory_map=True)
        one_T = np.ones(len(queries_TMd), np.float32)  # of an index that has one for all
        self.compressed = indexes.Compressed(
            opened(self.index.file, self.index.manifest.get("rows", {})),
            self.index.manifest["scale"],
            queries_TMd,
            self.index.array("projectors", memory_map=True),
            self.index.manifest["projector_scale"],
            self.index.manifest["unit"],
            self.index.array("self_influence"),
            self.index.array("query_units") if self._apart else one_T,
        )
        pairs = zip(
            self.index.array("query_tests").tolist(),
            self.index.array("query_targets").tolist(),
            strict=True,
        )
        self._row_of = {pair: row for row, pair in enumerate(pairs)}
        self._suspects: tuple[str, pd.DataFrame] | None = None
        self._suspecting = threading.Lock()
        self._lock = threading.Lock()
        self._fresh: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._steady: OrderedDict[str, np.ndarray] = OrderedDict()

    def remaking(self) -> tuple[Callable[..., "Build"], tuple[Any, ...]]:
        """To a worker it travels as what it is called."""
        return reopened, (*self.store.address, self.id)

    @property
    def searched(self) -> str:
        """How its index is kept and searched, and what share of the exact order that finds."""
        return told(self.index.manifest.get("rows", {}))

    @cached_property
    def findings(self) -> reading.Findings | None:
        """What reading a person's own files had to say; None for other data."""
        return reading.findings(self.store, self.data)

    def _part(self, kind: str, name: str) -> Artifact:
        return found(self.store, kind, name)

    @property
    def recipe(self) -> RunSpec:
        """How its networks were trained, or given ones would be; the seed is the first one's."""
        return recipe(self.store, found(self.store, "build", self.id))

    def again(self) -> RunSpec:
        """How networks are trained again; its seed plays no part.

        Raises `UserError` where they may not be, or the code of a FILE.py is another one now.
        """
        run = replace(self.recipe, seed=0, snapshots=0)
        if not run.trains:
            raise UserError(
                found=f"build {self.id}, made with --train none",
                wanted="a build whose networks may be trained again",
                next_step="build it again with --train FILE.py:FUNCTION, or without --train for "
                "our recipe",
            )
        weights.unedited(run)
        return run

    @property
    def retraining(self) -> str:
        """By what networks are trained again where that is not how its own were; else empty."""
        run = self.recipe
        if not run.trains:
            return "Nothing is trained again: the build was made with --train none."
        if not self.spec.weights or run.train:
            return ""
        falling = " that falls to zero" if run.schedule == "linear" else ""
        return (
            f"Networks are trained again by our recipe ({run.epochs} epochs of SGD at a learning "
            f"rate of {run.learning_rate:g}{falling}, batches of {run.batch}), not by yours; "
            "--train FILE.py:FUNCTION names yours."
        )

    def tests(self, labels: testlabels.Labels | None = None) -> pd.DataFrame:
        """One row a test example: label, predicted, confidence (of the predicted), correct.

        With `labels`, by those in force; then also `given`, and `kept`, False for the excluded.
        """
        label_T = self.test_labels_T if labels is None else labels.labels_T
        more = {} if labels is None else {"given": labels.given_T, "kept": labels.kept_T}
        return pd.DataFrame(
            {
                "label": label_T,
                "predicted": self.predicted_T,
                "confidence": self.probs_TC.max(1),
                "correct": self.predicted_T == label_T,
                **more,
            },
            index=pd.RangeIndex(len(label_T), name="test_id"),
        )

    def confusion_CC(self, labels: testlabels.Labels | None = None) -> np.ndarray:
        """Counts of test examples, rows by label and columns by prediction; as `tests`."""
        classes = len(self.classes)
        tests = self.tests(labels)
        tests = tests if labels is None else tests[tests.kept]
        pairs = (tests.label * classes + tests.predicted).to_numpy()
        return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    @cached_property
    def test_half(self) -> testlabels.Half:
        return testlabels.half(self.data)

    @cached_property
    def doubtful_tests(self) -> pd.DataFrame:
        """All test examples, the one whose label is most probably wrong first (`testlabels`)."""
        self.need_labels()
        return testlabels.suspects(self.test_labels_T, np.stack(self._probs_I))

    def need_labels(self) -> None:
        """Raise `UserError` where the test images have no labels."""
        if not self.labelled:
            raise UserError(
                found=f"build {self.id}, whose test images have no labels",
                wanted="test images with labels",
                next_step="put them into a folder for each class, or the labels into the table, "
                "and build again",
            )

    def query(self, test_id: int, k: int = 12, target: str | int = "predicted") -> Answer:
        """The strongest proponents and opponents of a test example's target class.

        `target` is "label" (without labels, the same as "predicted"), "predicted", or a class: its
        number, or in words its name or, of no class's name, its number. Raises `UserError` for a
        test id, class or k out of range.
        """
        asked = self.class_of(test_id, target)
        self.check_k(k)
        return self._answer(self._query_Md(test_id, asked), test_id, asked, k)

    @cached_property
    def mistakes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Test examples that are called wrong (W,), and the mean query vectors (W, d) of what they
        are called and of their labels.
        """
        tests_W = np.flatnonzero(self.predicted_T != self.test_labels_T)

        def queries(targets_T: np.ndarray) -> np.ndarray:
            return self._mean_queries([self._row_of[int(t), int(targets_T[t])] for t in tests_W])

        return tests_W, queries(self.predicted_T), queries(self.test_labels_T)

    @cached_property
    def _top(self) -> np.ndarray:
        """Positions of the strongest proponents of every test's given label, (T, TOP)."""
        k = min(TOP, len(self.train_labels_N))
        return indexes.search(self.compressed.rows, self._given_Td, k)[1]

    @property
    def _given_Td(self) -> np.ndarray:
        """The ensemble's query vector for the given label of every test example."""
        return self._mean_queries(list(range(len(self.test_labels_T))))

    def _mean_queries(self, rows: Sequence[int]) -> np.ndarray:
        """Means over the members of stored query vectors, (len(rows), d).

        What is read of a memory-mapped file is counted as ours until it is closed.
        """
        found = np.empty((len(rows), self.compressed.queries_TMd.shape[2]), np.float32)
        for t in range(0, len(rows), QUERIES):
            u_TMd = self.index.array("queries", memory_map=True)
            for j, row in enumerate(rows[t : t + QUERIES]):
                found[t + j] = u_TMd[row].mean(0, dtype=np.float32)
        found *= self.compressed.query_units_T[rows, None]
        return found

    def top(self, k: int) -> np.ndarray:
        """Positions (T, k) of the strongest proponents of every test's given label; k <= TOP."""
        return self._top[:, :k]

    def strongest(
        self, test_id: int, k: int, target: str | int = "predicted", opponents: bool = False
    ) -> tuple[int, ...]:
        """Positions of the first k of `query`."""
        answer = self.query(test_id, k, target)
        return tuple(h.train_id for h in (answer.opponents if opponents else answer.proponents))

    def margin(self, test_id: int, target: int) -> float:
        """The margin of a class, mean over the networks."""
        # From the other classes' probabilities: 1 - p is nothing for a sure network.
        probs_IC = np.stack([p[test_id] for p in self._probs_I]).astype(np.float64)
        pair_2I = probs_IC[:, target], np.delete(probs_IC, target, 1).sum(1)
        asked_I, others_I = np.log(np.maximum(pair_2I, 1e-45))
        return float((asked_I - others_I).mean())

    @cached_property
    def _probs_I(self) -> list[np.ndarray]:
        runs = (self._part("run", name) for name in self._networks)
        return [run.array("test_probs", memory_map=True) for run in runs]

    def exact(self, test_id: int, target: int, report: Report = silent) -> np.ndarray:
        """Exact scores (G, N) of all training examples, kept once computed.

        G are the networks, or with one network its members; the mean over them is the score. The
        kernels cost most, so every test example that the index knows is asked at once where that
        is not too large to keep.
        """
        pairs = self._asked_with(test_id, target)

        def fill(draft: Draft) -> None:
            scores_QGN = self._exact(np.array(pairs), report)
            unit_Q = np.array([np.abs(scores_GN).max() for scores_GN in scores_QGN])
            if not self._apart:
                unit_Q[:] = unit_Q.max()
            unit_Q[unit_Q == 0] = 1
            pairwise = zip(scores_QGN, unit_Q, strict=True)
            halved = ((scores_GN / unit)[None] for scores_GN, unit in pairwise)
            draft.rows("scores", scores_QGN.shape, np.float16, halved)
            if self._apart:
                draft.array("units", unit_Q)
            else:
                draft.note(unit=float(unit_Q[0]))

        made_by = {"build": self.id, "asked": pairs if len(pairs) == 1 else "all"}
        self.store.make("exact", self._exact_id(pairs), fill, made_by)
        return self.pull(test_id, target)[0]

    def _asked_with(self, test_id: int, target: int) -> list[tuple[int, int]]:
        """The (test, target) whose exact scores are computed and kept together with this one's."""
        networks, members = self.index.manifest["networks"], len(self.members)
        groups = networks if networks > 1 else members
        size = 2 * groups * len(self._row_of) * len(self.train_labels_N)
        one = test_id, target
        return list(self._row_of) if one in self._row_of and size <= TOGETHER else [one]

    def _exact_id(self, pairs: list[tuple[int, int]]) -> str:
        return content_id("exact", self.id, pairs)

    def _exact(self, pairs_Q2: np.ndarray, report: Report) -> np.ndarray:
        """Exact scores (Q, G, N) of all training examples for pairs of test and target."""
        test_Q, target_Q = pairs_Q2.T
        fresh_Q = target_Q != self.test_labels_T[test_Q]
        some = self.test_examples[test_Q[fresh_Q]]
        others = Examples(some.x_N, some.key_N, torch.from_numpy(target_Q[fresh_Q]))
        estimator, count = self.spec.estimator, len(self.members)
        networks = self.index.manifest["networks"]
        groups = networks if networks > 1 else count
        total_QGN = torch.zeros(len(test_Q), groups, len(self.train_labels_N))
        own_N = torch.zeros(len(self.train_labels_N))
        for m, member in enumerate(self.members):
            report("scores", m, count)
            psi_QK = self._stored[m].of("test", test_Q)
            if fresh_Q.any():
                with self._lock:
                    psi_QK[fresh_Q] = fresh(self._wholes[m], member, others, estimator)
            white = whitened(self._blocks, estimator, m)
            left_KQ = self._left(white, psi_QK)
            for s, rows in enumerate(self._blocks.shards):
                found_nQ = second(self._blocks, estimator, m, s, left_KQ)
                total_QGN[:, m * groups // count, rows] += found_nQ.mT
            if estimator.relative:
                own_N += self._own(white, m)
        report("scores", count, count)
        return total_QGN.mul_(self._weights(own_N) * (groups / count)).numpy()

    def _left(self, white: Whitening, psi_QK: Tensor) -> Tensor:
        """W W'psi', (K, Q): the kernel on the queries' side only.

        On the training rows it would cost as much again.
        """
        return white.back(white(psi_QK).mT)

    def _own(self, white: Whitening, m: int) -> Tensor:
        """A member's self-influence of the training examples, (N,)."""
        shards = range(len(self._blocks.shards))
        return torch.cat([white(self._blocks.train(m, s)).square().sum(1) for s in shards])

    def pull(
        self, test_id: int, target: int, train_ids: Sequence[int] | None = None
    ) -> tuple[np.ndarray, bool]:
        """Scores (G, n) of training examples (None: all) as `exact` has them, and whether exact.

        From the compressed index where the exact ones were never asked for, the spread between
        networks corrected as for the error bars.
        """
        chosen = slice(None) if train_ids is None else list(train_ids)
        pairs = self._asked_with(test_id, target)
        name = self._exact_id(pairs)
        if self.store.has("exact", name):
            kept = self._part("exact", name)
            row = pairs.index((test_id, target))
            one = kept.manifest.get("unit")  # none where each pair has its own
            unit = kept.array("units")[row] if one is None else one
            scores_GN = kept.array("scores", memory_map=True)[row]
            return scores_GN[:, chosen].astype(np.float32) * unit, True
        u_Gd = self._by_network(self._query_Md(test_id, target))
        if train_ids is None:
            scores_Gn = self.compressed.all_scores(u_Gd)
        else:
            scores_Gn = self.compressed.member_scores(u_Gd, np.array(train_ids, np.int64))
        mean_n = scores_Gn.mean(0)
        return mean_n + (scores_Gn - mean_n) / self.index.manifest["spread"], False

    def _by_network(self, values_MX: np.ndarray) -> np.ndarray:
        """Means (G, X) of the members of each network; of one network, the members themselves."""
        networks = self.index.manifest["networks"]
        if networks == 1:
            return values_MX
        return values_MX.reshape(networks, -1, values_MX.shape[-1]).mean(1)

    def edit(
        self, train_ids: Sequence[int], label: int | None = None, report: Report = silent
    ) -> np.ndarray:
        """What a drop or a relabel of training examples adds to the index's rows, summed (d,).

        Raises `UserError` for an example or a class that is not there.
        """
        for train_id in train_ids:
            if not 0 <= train_id < len(self.train_labels_N):
                raise UserError(
                    found=f"train id {train_id}",
                    wanted=f"a position from 0 to {len(self.train_labels_N) - 1}",
                    next_step="choose one in that range",
                )
        if label is not None:
            known("class", str(label), tuple(map(str, range(len(self.classes)))), "--label")
        change_d = -self.compressed.rows.reconstruct_batch(np.array(train_ids, np.int64)).sum(0)
        for train_id in train_ids if label is not None else ():
            change_d += self._relabelled(train_id, cast(int, label), report)
        return change_d

    def moves(self, change_d: np.ndarray) -> np.ndarray:
        """How an `edit` moves the margin of each test's predicted class, (T,), as scores."""
        return self._predicted_Td @ change_d * self.compressed.scale

    def moves_by_network(self, change_d: np.ndarray, tests_k: np.ndarray) -> np.ndarray:
        """The same of some, (G, k), the spread between networks corrected as for error bars."""
        rows = [self._row_of[int(t), int(self.predicted_T[t])] for t in tests_k]
        queries = (self.compressed.query(row) for row in rows)
        move_kM = np.stack([u_Md @ change_d for u_Md in queries]) * self.compressed.scale
        move_Gk = self._by_network(move_kM.T)
        mean_k = move_Gk.mean(0)
        return mean_k + (move_Gk - mean_k) / self.index.manifest["spread"]

    @cached_property
    def _predicted_Td(self) -> np.ndarray:
        """Mean query vectors of every test example's predicted class."""
        return self._mean_queries([self._row_of[t, int(c)] for t, c in enumerate(self.predicted_T)])

    def _relabelled(self, train_id: int, label: int, report: Report) -> np.ndarray:
        """The row (d,) that a training example would have in the index under another label."""
        half = examples(self.spec, self.data, self.data.train)[np.array([train_id])]
        some = Examples(half.x_N, half.key_N, torch.tensor([label]))
        with self._lock:
            u_d = self._squeezed(some, report).sum(0) * self._query_unit
            if self.spec.estimator.q == "training":
                runs = [self._part("run", name) for name in self._networks]
                beliefs = [r.array("belief", memory_map=True)[train_id, label] for r in runs]
                q_1 = 1 - torch.tensor(np.mean(beliefs, dtype=np.float64)).float()[None]
            else:
                q_1 = self._member_q(some)
        own_1 = torch.tensor([float(u_d @ u_d) / len(self.members)])
        weight = float(indexes.weights(q_1, own_1, self.spec.estimator))
        return u_d * weight * self._query_unit / self.compressed.scale

    def rescored(
        self, test_id: int, target: str | int, train_ids: Sequence[int]
    ) -> tuple[Hit, ...]:
        """What this build says of chosen training examples."""
        u_Md = self._query_Md(test_id, self.class_of(test_id, target))
        return self._hits(u_Md, np.asarray(train_ids, np.int64))

    def query_group(
        self, test_ids: Iterable[int], k: int = 12, target: str | int = "predicted"
    ) -> GroupAnswer:
        """What several test examples have in common: those that no single one of them decides.

        Raises `UserError` for an empty group, and as `query` does.
        """
        chosen = list(test_ids)
        if not chosen:
            raise UserError(
                found="an empty group", wanted="at least one test example", next_step="choose some"
            )
        self.check_k(k)
        mean_Md: np.ndarray = np.zeros((), np.float32)
        each: list[np.ndarray] = []  # one query at a time: all may be gigabytes
        for t in chosen:
            u_Md = self._query_Md(t, self.class_of(t, target))
            mean_Md = mean_Md + u_Md / len(chosen)
            each.append(u_Md.mean(0))
        each_Gd = np.stack(each)
        # Of the same length, so that a loud query does not choose the candidates alone; but none of
        # a query that is nothing. In double precision, which has squares of the quietest.
        length_G1 = np.linalg.norm(each_Gd.astype(float), axis=1, keepdims=True)
        alike_1d = (each_Gd / np.where(length_G1 > 0, length_G1, 1)).sum(0)[None]
        wide = min(groups.CANDIDATES * k, len(self.train_labels_N))
        found = []
        for sign in (1, -1):
            ids_C = np.union1d(
                *(self.compressed.search(some, wide, sign < 0) for some in (mean_Md, alike_1d))
            )
            scores_GC = self.compressed.member_scores(each_Gd, ids_C)
            found.append(groups.supported(scores_GC, self._hits(mean_Md, ids_C), k, sign))
        return GroupAnswer(
            test_ids=tuple(chosen), proponents=found[0], opponents=found[1], noise=self.noise
        )

    def contrast(self, test_id: int, target: str | int, other: str | int, k: int = 12) -> Answer:
        """What speaks for one class rather than another: the difference of two queries.

        Raises `UserError` as `query` does, and for a class against itself.
        """
        one, two = self.class_of(test_id, target), self.class_of(test_id, other)
        self.check_k(k)
        if one == two:
            raise UserError(
                found=f"class {self.classes[one]!r} against itself",
                wanted="two classes",
                next_step="choose another",
            )
        u_Md, v_Md = (self._query_Md(test_id, c) for c in (one, two))
        return self._answer(u_Md - v_Md, test_id, one, k)

    def hubs(self, k: int = 10) -> pd.DataFrame:
        """Training examples that many test examples have among their k strongest proponents."""
        return groups.hubs(self.top(k), self.train_labels_N)

    def unsteady(self, k: int = 5, labels: testlabels.Labels | None = None) -> pd.DataFrame:
        """`tests` with `steady`: how many of its k strongest proponents are not shaky.

        Those with fewest first: the training set has little like them.
        """

        def count() -> np.ndarray:
            tests = range(len(self.test_labels_T))
            return np.array([groups.steady(self.query(t, k)) for t in tests])

        count_T = recalled(self._steady, str(k), count)
        return self.tests(labels).assign(steady=count_T).sort_values("steady", kind="stable")

    def _answer(self, u_Md: np.ndarray, test_id: int, target: int, k: int) -> Answer:
        strongest_k, against_k = self.compressed.both(u_Md, k)
        return Answer(
            test_id=test_id,
            label=int(self.test_labels_T[test_id]) if self.labelled else None,
            predicted=int(self.predicted_T[test_id]),
            target=target,
            proponents=self._hits(u_Md, strongest_k),
            opponents=self._hits(u_Md, against_k),
            noise=self.noise,
        )

    def _hits(self, u_Md: np.ndarray, ids_H: np.ndarray) -> tuple[Hit, ...]:
        scores_MH = self.compressed.member_scores(u_Md, ids_H)
        mean_H = scores_MH.mean(0)
        agree_H = (np.sign(scores_MH) == np.sign(mean_H)).mean(0)
        networks = self.index.manifest["networks"]
        error_H: Iterable[float | None] = [None] * len(ids_H)
        if len(scores_MH) > 1:
            count = networks if networks > 1 else len(scores_MH)
            shown = spread_of(scores_MH[None], networks)[0] / self.index.manifest["spread"]
            error_H = shown / np.sqrt(count)
        return tuple(
            Hit(
                train_id=int(i),
                score=float(s),
                stderr=None if e is None else float(e),
                agreement=float(a),
                label=int(self.train_labels_N[i]),
            )
            for i, s, e, a in zip(ids_H, mean_H, error_H, agree_H, strict=True)
        )

    @property
    def noise(self) -> str:
        """Which noise the error bars carry."""
        networks, members = self.summary["models"], self.summary["members"]
        if networks > 1:
            return f"Error bars: standard error between {networks} independently trained networks."
        if members > 1:
            return (
                f"Error bars: standard error between {members} {strategies.kind(self.spec)} of one "
                "network only. "
                "Another training run would differ by more; train 2 or more networks to see it."
            )
        return "No error bars: a single member cannot tell how sure it is."

    def mislabels(self, by: str = "") -> pd.DataFrame:
        """All training examples, most suspicious label first; see `mislabels.suspects`.

        By one signal alone where `by` names it (training, masks, ...). Raises `UserError` for one
        that is unknown, or that needs `Engine.folds` first.
        """
        name = self.evidence_id
        with self._suspecting:  # once, however many sessions ask at the same time
            if self._suspects is None or self._suspects[0] != name:
                self._suspects = (
                    name,
                    suspects(self.train_ids, self.train_labels_N, self.evidence(), self.classes),
                )
            frame = self._suspects[1]
        if not by:
            return frame
        known("signal", by, tuple(n.removeprefix("signal_") for n in SIGNALS), "--by")
        if by == "training" and "signal_training" not in frame:
            raise UserError(
                found=f"networks of build {self.id} that nobody watched while they were trained",
                wanted="another signal",
                next_step="choose masks, influence, neighbours or opponents with --by",
            )
        if f"signal_{by}" not in frame:
            raise UserError(
                found=f"no networks that leave examples of build {self.id} out",
                wanted=f"those for the signal {by}",
                next_step=f"run `python -m attribution folds {self.id}`",
            )
        return frame.sort_index().sort_values(f"signal_{by}", ascending=False, kind="stable")

    def evidence(self) -> signals.Evidence:
        """What is known of every training label."""
        runs = [self._part("run", name) for name in self._networks]
        watched = all(map(was_watched, runs))
        beliefs = [r.array("belief" if watched else "train_probs") for r in runs]
        votes, unseen = self.votes(), self._unseen()
        at = np.arange(len(self.train_labels_N))
        if len(beliefs) > 1:
            doubt_MN = 1 - np.stack([b[at, self.train_labels_N] for b in beliefs])
            disagreement_N = signals.disagreement(doubt_MN)
        else:
            parts = [self._part("features", name) for name in self._features]
            shards = len(parts) // len(self.members)
            found = [signals.disagreement(q_Mn) for q_Mn in doubts(parts, shards)]
            disagreement_N = np.concatenate(found)
        belief_NC = np.stack(beliefs).mean(0, dtype=np.float32)
        member_q_N = self.index.array("member_q")
        if not watched:
            belief_NC = signals.at_the_end(belief_NC, member_q_N, self.train_labels_N)
        return signals.Evidence(
            belief_NC=belief_NC,
            watched=watched,
            disagreement_N=disagreement_N,
            q_N=member_q_N,
            self_influence_N=self.compressed.self_influence_N,
            neighbours_NC=votes.array("neighbours"),
            opponents_NC=votes.array("opponents"),
            unseen_NC=unseen.array("belief") if unseen else None,
        )

    def votes(self, report: Report = silent, cluster: Cluster = HERE) -> Artifact:
        """The votes on every training label of its neighbours and of those it opposes."""
        classes, count = len(self.classes), len(self.train_labels_N)

        def fill(draft: Draft) -> None:
            steps = len(self._networks) + 1
            shares = []
            report("signals", 0, steps)
            networks = [(name,) for name in self._networks]
            for share_NC in cluster.map(self, "neighbour_votes", networks):
                shares.append(share_NC)
                report("signals", len(shares), steps)
            found = cluster.map(self, "opponents", [(rows,) for rows in shards(count)])
            found_Tk = indexes.merged(found, signals.OPPONENTS, opponents=True)[1]
            opposed_NC = signals.opponent_votes(found_Tk, self.test_labels_T, count, classes)
            draft.array("neighbours", np.stack(shares).mean(0).astype(np.float32))
            draft.array("opponents", opposed_NC.astype(np.float32))
            report("signals", steps, steps)

        made_by = {
            "index": self.index.manifest["id"],
            "networks": self._networks,
            "neighbours": signals.NEIGHBOURS,
            "opponents": signals.OPPONENTS,
        }
        return self.store.make("votes", content_id("votes", made_by), fill, made_by)

    def neighbour_votes(self, run_id: str) -> np.ndarray:
        """The votes (N, C) of each training example's neighbours as one network sees them."""
        whole, classes = examples(self.spec, self.data, self.data.train), len(self.classes)
        module = load_network(self.store, self.spec, self.data, Checkpoint(run_id=run_id))
        x_NH = signals.embedded(module, whole, classes)
        return signals.neighbour_votes(x_NH, self.train_labels_N, classes)

    def opponents(self, shard: slice) -> tuple[np.ndarray, np.ndarray]:
        """Scores and positions (T, k) of the strongest opponents in a shard of every test's label.

        Opponents of the given label, as `indexes.merged` takes them.
        """
        rows, k = self.compressed.rows, signals.OPPONENTS
        return indexes.search_part(rows, shard, self._given_Td, k, opponents=True)

    def lay_out(self, report: Report = silent) -> Artifact:
        """Places of all images in the plane, `xy` (N + T, 2), and what of it is to be believed."""
        spec, classes, count = MapSpec(), len(self.classes), len(self._networks)

        def beheld() -> Iterator[np.ndarray]:
            for m, name in enumerate(self._networks):
                report("map", m, count)
                module = load_network(self.store, self.spec, self.data, Checkpoint(run_id=name))
                halves = (self.data.train, self.data.test)
                yield np.concatenate(
                    [
                        signals.embedded(module, examples(self.spec, self.data, half), classes)
                        for half in halves
                    ]
                )

        def fill(draft: Draft) -> None:
            x_PD = side_by_side(beheld(), spec.directions)
            report("map", count, count)
            xy_P2 = laid_out(x_PD, spec, report)
            draft.array("xy", xy_P2)
            draft.note(kept=neighbours_kept(x_PD, xy_P2))

        return self.store.make("map", self._map_id(spec), fill, self._map_made_by(spec))

    @property
    def map(self) -> Artifact | None:
        """What `lay_out` makes, if it was made."""
        name = self._map_id(MapSpec())
        return self.store.find("map", name) if self.store.has("map", name) else None

    def _map_made_by(self, spec: MapSpec) -> dict[str, Any]:
        return {"data": self.data_id, "networks": self._networks, **asdict(spec)}

    def _map_id(self, spec: MapSpec) -> str:
        return content_id("map", self._map_made_by(spec))

    @property
    def folds_spec(self) -> FoldsSpec:
        """The networks that leave a fold out which are this build's."""
        return folds_of(self.recipe)

    @property
    def evidence_id(self) -> str:
        """What `mislabels` goes by beside the build: the id of its folds, "" before there are any.

        What is kept of it has to be made anew when this changes.
        """
        made = self._unseen()
        return made.manifest["id"] if made else ""

    @cached_property
    def _folds_id(self) -> str:
        return folds_id(self.folds_spec)

    def _unseen(self) -> Artifact | None:
        name = self._folds_id
        made = self.store.find("folds", name)  # or that it is damaged, which `has` does not tell
        return made if self.store.has("folds", name) else None

    def known(self, by: str = "") -> dict[str, object] | None:
        """How well `mislabels` finds the flipped labels, or None where no truth is kept."""
        clean_N = clean_labels(self.store, self.data_id)
        if clean_N is None or not (wrong_N := clean_N != self.train_labels_N).any():
            return None
        column = f"signal_{by}" if by else "score"
        return detection(wrong_N, self.mislabels(by)[column].sort_index().to_numpy())

    def scores(self, report: Report = silent) -> np.ndarray:
        """Exact ensemble scores of all pairs, float32 (T, N), for the given test labels."""
        return np.concatenate(list(self.score_blocks(report)))

    def scores_npy(self, report: Report = silent) -> Iterator[bytes | memoryview]:
        """`scores` as a .npy file has them, piece after piece."""
        shape = len(self.test_labels_T), len(self.train_labels_N)
        return npy(shape, np.float32, self.score_blocks(report))

    def score_blocks(self, report: Report = silent) -> Iterator[np.ndarray]:
        """`scores` of some test examples after the others, each at most `TOGETHER` bytes."""
        blocks, estimator = self._blocks, self.spec.estimator
        members, count, T = len(self.members), len(self.train_labels_N), len(self.test_labels_T)
        step = max(1, min(T, TOGETHER // (8 * count)))
        done, total = 0, members * -(-T // step)
        own_N = torch.zeros(count)
        with self.store.matrices() as scratch:
            whitenings = Whitenings(scratch, members)
            for t in range(0, T, step):
                tests = np.arange(t, min(t + step, T))
                found_Nt = torch.zeros(count, len(tests))
                for m in range(members):
                    report("scores", done, total)
                    white = whitenings[m] if t else whitened(blocks, estimator, m)
                    if not t and step < T:
                        whitenings[m] = white
                    if not t and estimator.relative:
                        own_N += self._own(white, m)
                    left_Kt = self._left(white, self._stored[m].of("test", tests))
                    for s, rows in enumerate(blocks.shards):
                        found_Nt[rows] += second(blocks, estimator, m, s, left_Kt)
                    done += 1
                yield (found_Nt.mT * (self._weights(own_N) / members)).numpy()
        report("scores", total, total)

    def sums(self, subsets_SN: np.ndarray, report: Report = silent) -> np.ndarray:
        """Each member's scores summed over subsets of the training set, float32 (M, T, S).

        Exact; their mean over members is what `scores` sums to, without ever holding T * N
        numbers.
        """
        blocks, estimator, members = self._blocks, self.spec.estimator, len(self.members)
        own_N = torch.zeros(len(self.train_labels_N))
        for m in range(members) if estimator.relative else ():
            own_N += self._own(whitened(blocks, estimator, m), m)
        weight_NS = self._weights(own_N)[:, None] * torch.from_numpy(subsets_SN.T.copy()).float()
        sums = []
        for m in range(members):
            report("scores", m, members)
            sums.append(totals(blocks, estimator, m, weight_NS).numpy())
        report("scores", members, members)
        return np.stack(sums)

    def _weights(self, own_N: Tensor) -> Tensor:
        """Weights of the training rows; `own_N` is the sum of the members' self-influence."""
        own_N = own_N / len(self.members)
        return indexes.weights(torch.from_numpy(self.q_N), own_N, self.spec.estimator)

    @cached_property
    def _stored(self) -> list[Stored]:
        """The features of each member."""
        parts = [self._part("features", name) for name in self._features]
        return stored(self.members, parts, self.spec.estimator)

    @cached_property
    def _blocks(self) -> Blocks:
        return read(self._stored)

    def image(self, split: str, position: int) -> np.ndarray:
        """The image as stored, uint8 (H, W) or (H, W, 3). Raises `UserError` out of range."""
        known("split", split, ("train", "test"), "train or test")
        images = self._half(split).images
        if not 0 <= position < len(images):
            raise UserError(
                found=f"{split} image {position}",
                wanted=f"a position from 0 to {len(images) - 1}",
                next_step="choose one in that range",
            )
        return images[position]

    def seen(self, split: str, position: int) -> np.ndarray:
        """What the network gets of an image, as pixels again: uint8 (H, W) or (H, W, 3)."""
        return self.as_seen(self.image(split, position))

    def as_seen(self, image: np.ndarray) -> np.ndarray:
        """What the network gets of an image in the form of the data's, as pixels again.

        After a preprocessing of the user's own or a library's, stretched from black to white. Where
        an own one makes no picture, grey or in colour, the image as it is.
        """
        preprocess = self.spec.preprocess
        x_CHW = inputs(self.spec.model, self.data, image[None], preprocess)[0]
        if x_CHW.dim() != 3 or len(x_CHW) not in (1, 3):
            return image
        if preprocess:
            shift, unit = x_CHW.min(), (x_CHW.max() - x_CHW.min()).clamp_min(1e-12)
            x_CHW = (x_CHW - shift) / unit
        else:
            mean, std = (torch.tensor(v)[:, None, None] for v in (self.data.mean, self.data.std))
            x_CHW = x_CHW * std.clamp_min(1e-6) + mean
        pixels_CHW = x_CHW.clamp(0, 1).mul(255).round().byte()
        return pixels_CHW.permute(1, 2, 0).squeeze(2).numpy()

    def _half(self, split: str) -> Split:
        return self.data.train if split == "train" else self.data.test

    def name(self, split: str, position: int) -> str:
        """What an image is called: its file among a person's own, else its example id."""
        half = self._half(split)
        return (half.paths or half.ids)[position]

    def search(self, split: str, text: str) -> list[int]:
        """Positions of the images with this number, or whose name has `text` in it."""
        wanted, half = text.strip().casefold(), self._half(split)
        names = half.paths or half.ids
        if wanted.isdecimal():
            number = natural(wanted)
            return [number] if number is not None and number < len(names) else []
        return [n for n, name in enumerate(names) if wanted in name.casefold()]

    def attempt(
        self,
        image: np.ndarray,
        target: str | int = "predicted",
        k: int = 12,
        report: Report = silent,
    ) -> Tried:
        """What the networks say of an image of neither half, and the training images behind it.

        `image` is uint8 as the data set's are (`pictures.alike`), `target` "predicted" or a class
        as `query` takes it. Raises `UserError` for a target or k out of range.
        """
        self.check_k(k)
        images = image[None]
        x_1 = inputs(self.spec.model, self.data, images, self.spec.preprocess)
        key_1 = torch.from_numpy(example_keys(example_ids(images)).copy())
        with self._lock:  # masks are hooks on shared networks
            probs_C = np.mean([probabilities(n, x_1)[0].numpy() for n in self._plain], axis=0)
            predicted = int(probs_C.argmax())
            asked = predicted if target == "predicted" else self.class_named(target)
            u_Md = self._squeezed(Examples(x_1, key_1, torch.tensor([asked])), report)
        strongest_k, against_k = self.compressed.both(u_Md, k)
        return Tried(
            probs=tuple(map(float, probs_C)),
            predicted=predicted,
            target=asked,
            proponents=self._hits(u_Md, strongest_k),
            opponents=self._hits(u_Md, against_k),
            noise=self.noise,
        )

    @cached_property
    def _plain(self) -> list[torch.nn.Module]:
        """The networks, as trained."""
        return [
            load_network(self.store, self.spec, self.data, Checkpoint(run_id=run_id))
            for run_id in self._networks
        ]

    def _query_Md(self, test_id: int, target: int) -> np.ndarray:
        if (test_id, target) in self._row_of:
            return self.compressed.query(self._row_of[test_id, target])
        with self._lock:  # masks are hooks on shared networks
            if (test_id, target) not in self._fresh:
                self._fresh[test_id, target] = self._featurized(test_id, target)
                while len(self._fresh) > 64:
                    self._fresh.popitem(last=False)
            return self._fresh[test_id, target]

    def _featurized(self, test_id: int, target: int) -> np.ndarray:
        """Query vectors (M, d) of a test example for a class nobody asked about before."""
        some = self.test_examples[np.array([test_id])]
        return self._squeezed(Examples(some.x_N, some.key_N, torch.tensor([target])))

    def _squeezed(self, one: Examples, report: Report = silent) -> np.ndarray:
        """Vectors (M, d) of one example in the index's basis and the queries' unit."""
        u_Md: list[np.ndarray] = []
        white = Whitening(unit=self.compressed.unit)
        for projector_Kd, whole, member in zip(
            self.compressed.projectors_MKd, self._wholes, self.members, strict=True
        ):
            report("gradients", len(u_Md), len(self.members))
            phi_1K = white(fresh(whole, member, one, self.spec.estimator))
            u_Md.append((phi_1K @ torch.from_numpy(projector_Kd.astype(np.float32)))[0].numpy())
        return np.stack(u_Md) * self.compressed.projector_scale

    @cached_property
    def _query_unit(self) -> float:
        """Unit of the query vectors: that of the rows follows from their lengths, self-influence.

        A training example under another label is squeezed as a query is, and becomes a row.
        """
        own_N = torch.from_numpy(self.compressed.self_influence_N) * len(self.members)
        weighted_N = own_N.sqrt() * self._weights(own_N)
        lengths = [np.linalg.norm(r_nd, axis=1).sum() for r_nd in self.compressed.rows.blocks()]
        row_unit = float(weighted_N.sum()) / float(sum(lengths))
        return self.compressed.scale / row_unit

    def _member_q(self, one: Examples) -> Tensor:
        """1 - p of one example's target, mean over what `Making.beliefs` is of, (1,)."""
        checkpoints = list(dict.fromkeys(m.checkpoint for m in self.members))
        whole_of = {m.checkpoint: w for m, w in zip(self.members, self._wholes, strict=True)}
        forward = self.spec.forward_only
        believing = strategies.beliefs(self.spec, checkpoints) if forward else self.members
        found = [margins(seen(whole_of[m.checkpoint], m), one) for m in believing]
        return torch.stack([q(f_1) for f_1 in found]).mean(0)

    @cached_property
    def test_examples(self) -> Examples:
        """The test images, each with the class it is asked about: its label, where it has one."""
        some = examples(self.spec, self.data, self.data.test)
        return replace(some, target_N=torch.from_numpy(self.test_labels_T))

    @cached_property
    def _wholes(self) -> list[Projected]:
        """The network and directions of each member; members that share them share one."""
        made: dict[tuple[Checkpoint, int], Projected] = {}
        each = len(self._features) // len(self.members)  # shards
        for member, name in zip(self.members, self._features[::each], strict=True):
            pair = member.checkpoint, member.draw
            if pair not in made:
                module = load_network(self.store, self.spec, self.data, member.checkpoint)
                sites = self._part("features", name).manifest["made_by"]["sites"]
                made[pair] = load_projected(module, self._part("sites", sites))
        return [made[m.checkpoint, m.draw] for m in self.members]

    def class_of(self, test_id: int, target: str | int) -> int:
        """The class that `target` means for a test example, as `query` takes it."""
        self._check_test(test_id)
        if target == "label":
            return int(self.test_labels_T[test_id])
        if target == "predicted":
            return int(self.predicted_T[test_id])
        return self.class_named(target)

    def class_named(self, target: str | int) -> int:
        """The class of that number, or in words of that name, and of no class's name, number.

        So of classes called 1, 2 and 3 the text "2" is the second, the number 2 the third. Raises
        `UserError` where there is none.
        """
        if target in self.classes:
            return self.classes.index(target)
        number = natural(target) if isinstance(target, str) else target
        if number is not None and 0 <= number < len(self.classes):
            return int(number)
        raise UserError(
            found=f"target {target!r}",
            wanted=f"label, predicted or a class ({', '.join(self.classes[:20])})",
            next_step="choose one of these",
        )

    def _check_test(self, test_id: int) -> None:
        if not 0 <= test_id < len(self.test_labels_T):
            raise UserError(
                found=f"test id {test_id}",
                wanted=f"a position from 0 to {len(self.test_labels_T) - 1}",
                next_step="choose one in that range",
            )

    def check_k(self, k: int) -> None:
        if not 1 <= k <= len(self.train_labels_N):
            raise UserError(
                found=f"k = {k}",
                wanted=f"a number of hits from 1 to {len(self.train_labels_N)}, the training set",
                next_step="choose a smaller -k" if k > 0 else "choose a larger -k",
            )


def recalled(kept: OrderedDict[str, Kept], name: str, make: Callable[[], Kept]) -> Kept:
    """What `make` gives, remembered under a content id."""
    try:
        return kept[name]
    except KeyError:  # or another thread put it away just now
        found = kept[name] = make()
    while len(kept) > 100:
        kept.popitem(last=False)
    return found


def visible(names: Iterable[str]) -> tuple[str, ...]:
    """Names of classes, with "class 3" for one of which nothing is to be seen."""
    return tuple(
        name if any(category(sign)[0] in "LNPS" for sign in name) else f"class {number}"
        for number, name in enumerate(names)
    )


@lru_cache(maxsize=1)
def reopened(root: Path, remote: str, build_id: str) -> Build:
    """The build of a worker."""
    store = store_at(root, remote)
    return Build(store, found(store, "build", build_id))
