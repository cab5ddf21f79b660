"""What the pages and the command line call: build, open, ask.

    data set -> runs -> members -> feature blocks -> index -> hits -> decisions

Each arrow is an artifact of the store, so a build that was killed resumes at the member it was
in, and a second identical one finds everything done.

Axes: N train, T test, C classes, M members, K features of a member, d index dimensions, H hits.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load, save
from torch import Tensor

from . import index as indexes
from . import jobs
from .data import Dataset, Split, clean_labels, dataset
from .decisions import Decisions
from .estimators import ESTIMATORS, Whitening, q, whitening
from .features import Block, Examples, Projected, block, projected
from .gradients import Site
from .members import example_keys
from .metrics import detection
from .mislabels import suspects
from .models import check_name, code_id, inputs, network
from .records import (
    Answer,
    BuildSpec,
    Hit,
    Member,
    Report,
    RunSpec,
    UserError,
    content_id,
    known,
    silent,
)
from .store import Artifact, Draft, Store, is_id
from .train import probabilities, train

STRATEGIES = ("naive", "dropout")
KIND_OF = {
    "data": "data",
    "runs": "run",
    "sites": "sites",
    "features": "features",
    "index": "index",
}
SPREAD_QUERIES = 16  # queries on which the index's understatement of the spread is measured
SPREAD_HITS = 16


class Engine:
    """One cache and one workspace."""

    def __init__(self, cache: Path, workspace: Path | None = None) -> None:
        self.cache = cache
        self.workspace = workspace or cache.absolute().parent
        self.store = Store(cache)
        self.decisions = Decisions(self.workspace / "decisions.sqlite")
        self._opened: OrderedDict[str, Build] = OrderedDict()
        self._lock = threading.Lock()

    def builds(self) -> list[dict[str, Any]]:
        """Summaries of the finished builds, newest first."""
        return [dict(a.manifest["summary"]) for a in self.store.all("build")]

    def open(self, build_id: str) -> "Build":
        """A finished build. Raises `UserError` where it is unknown or damaged."""
        with self._lock:
            if build_id not in self._opened:
                artifact = self.store.find("build", build_id) if is_id(build_id) else None
                if artifact is None:
                    ids = tuple(b["build"] for b in self.builds())
                    raise UserError(
                        found=f"no build {build_id!r} in {self.cache}",
                        wanted=f"one of {', '.join(ids)}" if ids else "a finished build",
                        next_step="run `python -m attribution list`, or `build` to make one",
                    )
                self._opened[build_id] = Build(self.store, artifact)
                while len(self._opened) > 4:
                    self._opened.popitem(last=False)
            return self._opened[build_id]

    def build(self, spec: BuildSpec, report: Report = silent) -> dict[str, Any]:
        """Make everything `spec` asks for that is not there yet, and the build's summary.

        Raises `UserError` for a spec that makes no sense, before anything is computed.
        """
        check(spec)
        data = dataset(self.store, spec.data, report)
        build_id = content_id("build", data.id, spec, code_id(spec.model))
        if found := self._whole(build_id):
            return dict(found.manifest["summary"])
        making = Making(self.store, spec, data, report)
        index = making.index()
        artifact = self.store.make(
            "build", build_id, lambda draft: making.summarise(draft, build_id, index), asdict(spec)
        )
        return dict(artifact.manifest["summary"])

    def finished(self, spec: BuildSpec) -> bool:
        """Whether `build` would find everything done."""
        check(spec)
        data = dataset(self.store, spec.data)
        return self._whole(content_id("build", data.id, spec, code_id(spec.model))) is not None

    def _whole(self, build_id: str) -> Artifact | None:
        """The build, if none of the artifacts it is made of is missing."""
        found = self.store.find("build", build_id)
        if found is None:
            return None
        for kind, names in found.manifest["parts"].items():
            for name in [names] if isinstance(names, str) else names:
                if not self.store.has(KIND_OF[kind], name):
                    return None
        return found

    def start(self, options: list[str]) -> str:
        """Start ``attribution build`` with these options as a process of its own; its job id."""
        return jobs.start(self.cache, options)

    def jobs(self) -> list[jobs.Job]:
        return jobs.all_jobs(self.cache)

    def job_log(self, job_id: str) -> str:
        return jobs.log(self.cache, job_id)

    def cancel(self, job_id: str) -> None:
        jobs.cancel(self.cache, job_id)


def check(spec: BuildSpec) -> None:
    """Raise `UserError` for a spec that makes no sense."""
    known("strategy", spec.strategy, STRATEGIES, "--strategy")
    known("estimator", spec.estimator.name, tuple(ESTIMATORS), "--estimator")
    known("basis", spec.features.basis, ("own", "random"), "--basis")
    check_name(spec.model)
    limits: list[tuple[str, float, float, float]] = [
        ("--models", spec.models, 1, 1000),
        ("--epochs", spec.epochs, 1, 100_000),
        ("--damping", spec.estimator.damping, 0, 1e12),
        ("--q-power", spec.estimator.q_power, 0, 10),
        ("--width", spec.width, 1e-3, 100),
        ("--dims", min(spec.features.ka, spec.features.kg), 1, 1e6),
        ("--index-dims", spec.index_dims, 1, 1e6),
        ("--seed", spec.seed, 0, 1e9),
        ("--noise-seed", spec.data.noise_seed, 0, 1e9),
    ]
    if spec.strategy == "dropout":
        limits += [("--masks", spec.masks, 1, 10_000), ("--dropout", spec.p, 1e-6, 0.999)]
    for option, value, low, high in limits:
        if not low <= value <= high:
            raise UserError(
                found=f"{option} {value:g}",
                wanted=f"a number from {low:g} to {high:g}",
                next_step=f"give {option} a value in that range",
            )


class Making:
    """A build in the making: each method makes one kind of artifact, or finds it."""

    def __init__(self, store: Store, spec: BuildSpec, data: Dataset, report: Report) -> None:
        self.store, self.spec, self.data, self.report = store, spec, data, report
        self.model_code = code_id(spec.model)
        self.train = examples(spec, data, data.train)
        self.test = examples(spec, data, data.test)
        self.runs = [self.run(i) for i in range(spec.models)]
        self.report("train", spec.models, spec.models)
        self._projected: dict[str, Projected] = {}

    def run(self, i: int) -> Artifact:
        """The i-th trained network."""
        spec = self.spec
        run = RunSpec(
            data_id=self.data.id,
            model=spec.model,
            model_code=self.model_code,
            width=spec.width,
            epochs=spec.epochs,
            seed=1000 * spec.seed + i,
        )

        def report(stage: str, done: int, total: int) -> None:
            self.report(stage, i * total + done, spec.models * total)

        def fill(draft: Draft) -> None:
            fresh = network(spec.model, self.data, spec.width, run.seed)
            trained = train(fresh, self.train.x_N, self.train.target_N, run, report)
            probs_TC = probabilities(trained.network, self.test.x_N)
            correct_T = probs_TC.argmax(1) == self.test.target_N
            draft.weights(trained.network.state_dict())
            draft.array("belief", trained.belief_NC)
            draft.array("test_probs", probs_TC.numpy())
            draft.note(accuracy=float(correct_T.float().mean()))

        return self.store.make("run", content_id(run), fill, asdict(run))

    @property
    def members(self) -> list[Member]:
        """The ensemble, the members of one network side by side."""
        naive = self.spec.strategy == "naive"
        return [
            Member(run_id=run.manifest["id"])
            if naive
            else Member(run_id=run.manifest["id"], mask=mask, p=self.spec.p)
            for run in self.runs
            for mask in range(1 if naive else self.spec.masks)
        ]

    def sites_id(self, run_id: str) -> str:
        masks = self.spec.strategy == "dropout"  # a network without a place for them has none
        return content_id("sites", run_id, self.spec.features, masks)

    def sites(self, run_id: str) -> Artifact:
        """The directions that the gradients of a run are projected to."""

        def fill(draft: Draft) -> None:
            masks = self.spec.strategy == "dropout"
            whole = projected(self.network(run_id), self.train, self.spec.features, masks)
            places = list(whole.projections)
            draft.bytes_of("directions.safetensors", save_directions(whole))
            draft.note(
                sites=[asdict(s) for s in places],
                mask_places=whole.mask_places,
                left_out=whole.left_out,
                fallback=whole.fallback,
                coverage=whole.coverage,
            )

        name = self.sites_id(run_id)
        return self.store.make("sites", name, fill, {"run": run_id, **asdict(self.spec.features)})

    def network(self, run_id: str) -> torch.nn.Module:
        return load_network(self.store, self.spec, self.data, run_id)

    def projected(self, run_id: str) -> Projected:
        if run_id not in self._projected:
            self._projected = {run_id: load_projected(self.network(run_id), self.sites(run_id))}
        return self._projected[run_id]

    def features(self, member: Member, done: int, total: int) -> Artifact:
        """One member's features of all training and test examples, for the given labels."""
        self.report("features", done, total)
        sites_id = self.sites(member.run_id).manifest["id"]

        def fill(draft: Draft) -> None:
            whole = self.projected(member.run_id)
            view = whole.view(member.mask, member.p)
            for name, some in (("train", self.train), ("test", self.test)):
                made = block(view, some, whole.projections)
                finite(made, member)
                scale = float(made.phi_NK.square().mean().sqrt()) or 1.0
                draft.array(f"{name}_phi", (made.phi_NK / scale).half().numpy())
                draft.array(f"{name}_margin", made.margin_N.numpy())
                draft.note(**{f"{name}_scale": scale})

        name = content_id("features", self.data.id, sites_id, member)
        made_by = {"data": self.data.id, "sites": sites_id, **asdict(member)}
        return self.store.make("features", name, fill, made_by)

    @cached_property
    def blocks(self) -> list[Artifact]:
        """The features of each member."""
        members = self.members
        made = [self.features(m, j, len(members)) for j, m in enumerate(members)]
        self.report("features", len(members), len(members))
        return made

    def index(self) -> Artifact:
        """The compressed index, and the query vectors of every test example."""
        members, blocks = self.members, self.blocks
        predicted_T = self.test_probs().argmax(1)
        wrong = np.flatnonzero(predicted_T != self.data.test.labels_N)
        spec = self.spec

        def queries(m: int) -> Tensor:
            """For the label of every test example, then for the predicted one where it differs."""
            given = phi_of(blocks[m], "test")
            if not len(wrong):
                return given
            whole = self.projected(members[m].run_id)
            some = self.test[wrong]
            asked = Examples(some.x_N, some.key_N, torch.from_numpy(predicted_T[wrong]))
            view = whole.view(members[m].mask, members[m].p)
            return torch.cat([given, block(view, asked, whole.projections).phi_NK])

        def fill(draft: Draft) -> None:
            q_N = mean_q(blocks)
            made = indexes.compress(
                len(members), lambda m: phi_of(blocks[m], "train"), queries, q_N,
                spec.estimator, spec.index_dims, spec.seed, self.report,
            )  # fmt: skip
            draft.bytes_of("rows.faiss", indexes.to_bytes(made.rows))
            draft.array("queries", made.queries_TMd)
            draft.array("projectors", made.projectors_MKd)
            draft.array("self_influence", made.self_influence_N)
            draft.array("q", q_N.numpy())
            draft.array("query_tests", np.concatenate([np.arange(len(self.test)), wrong]))
            draft.array(
                "query_targets", np.concatenate([self.data.test.labels_N, predicted_T[wrong]])
            )
            draft.note(
                scale=made.scale,
                projector_scale=made.projector_scale,
                unit=made.unit,
                networks=spec.models,
                spread=self.spread(made, blocks, q_N),
            )

        made_by = {
            "features": [b.manifest["id"] for b in blocks],
            "estimator": asdict(spec.estimator),
            "dims": spec.index_dims,
            "predicted": content_id(predicted_T.tolist()),
            "seed": spec.seed,
        }
        return self.store.make("index", content_id("index", made_by), fill, made_by)

    def spread(self, made: indexes.Compressed, blocks: list[Artifact], q_N: Tensor) -> float:
        """Spread of the members' scores in the index, as a share of the exact one.

        The squeezed vectors understate how much members differ, so error bars are divided by
        this; measured on the top hits of a sample of test examples.
        """
        if len(blocks) == 1:
            return 1.0
        tests = np.linspace(0, len(self.test) - 1, min(SPREAD_QUERIES, len(self.test))).astype(int)
        hits = [made.search(made.queries_TMd[t], min(SPREAD_HITS, len(q_N))) for t in tests]
        exact_QMH = np.empty((len(tests), len(blocks), len(hits[0])))
        for m, features in enumerate(blocks):
            phi_NK = phi_of(features, "train")
            white = whitening(phi_NK, self.spec.estimator)
            w_QK = white(phi_of(features, "test")[tests])
            for j, ids in enumerate(hits):
                weight_H = indexes.factor(q_N[ids], self.spec.estimator)
                exact_QMH[j, m] = (white(phi_NK[ids]) @ w_QK[j]) * weight_H
        squeezed_QMH = np.stack(
            [made.member_scores(made.queries_TMd[t], i) for t, i in zip(tests, hits, strict=True)]
        )
        pair = [spread_of(s_QMH, self.spec.models) for s_QMH in (squeezed_QMH, exact_QMH)]
        return float(np.clip(np.median(pair[0] / np.maximum(pair[1], 1e-30)), 0.05, 1.0))

    def test_probs(self) -> np.ndarray:
        """Mean over the networks, float32 (T, C)."""
        return np.stack([r.array("test_probs") for r in self.runs]).mean(0, dtype=np.float32)

    def summarise(self, draft: Draft, build_id: str, index: Artifact) -> None:
        """The build's summary, and what it is made of."""
        spec, data = self.spec, self.data
        members, blocks = self.members, self.blocks
        places = [self.sites(r.manifest["id"]) for r in self.runs]
        probs_TC = self.test_probs()
        correct_T = probs_TC.argmax(1) == data.test.labels_N
        draft.array("test_probs", probs_TC)
        draft.note(
            parts={
                "data": data.id,
                "runs": [r.manifest["id"] for r in self.runs],
                "sites": [p.manifest["id"] for p in places],
                "features": [b.manifest["id"] for b in blocks],
                "index": index.manifest["id"],
            },
            summary={
                "build": build_id,
                "data": spec.data.name,
                "noise": spec.data.noise,
                "model": spec.model,
                "strategy": spec.strategy,
                "models": spec.models,
                "masks": spec.masks if spec.strategy == "dropout" else 0,
                "estimator": spec.estimator.name,
                "members": len(members),
                "train": len(data.train),
                "test": len(data.test),
                "accuracy": float(correct_T.mean()),
                "coverage": min(p.manifest["coverage"] for p in places),
                "left_out": list(places[0].manifest["left_out"]),
                "fallback": list(places[0].manifest["fallback"]),
                "seconds": {
                    "train": seconds(self.runs),
                    "basis": seconds(places),
                    "features": seconds(blocks),
                    "fit": seconds([index]),
                },
                "bytes": {
                    "checkpoints": sum(r.size for r in self.runs),
                    "features": sum(b.size for b in blocks),
                    "index": index.manifest["files"]["rows.faiss"]["bytes"],
                    "queries": index.size - index.manifest["files"]["rows.faiss"]["bytes"],
                },
                "created": draft.created,
                "spec": asdict(spec),
            },
        )


class Build:
    """A finished build, read only and safe to share between sessions."""

    def __init__(self, store: Store, artifact: Artifact) -> None:
        self.store = store
        self.id: str = artifact.manifest["id"]
        self.summary: dict[str, Any] = artifact.manifest["summary"]
        self.parts: dict[str, Any] = artifact.manifest["parts"]
        self.spec = spec_from(self.summary["spec"])
        self.data = dataset(store, self.spec.data)
        self.data_id = self.data.id
        self.classes = self.data.classes
        self.train_labels_N = self.data.train.labels_N
        self.train_ids = self.data.train.ids
        self.test_labels_T = self.data.test.labels_N
        self.probs_TC = artifact.array("test_probs")
        self.predicted_T = self.probs_TC.argmax(1)
        self.index = self._part("index", self.parts["index"])
        self.q_N = self.index.array("q")
        self.compressed = indexes.Compressed(
            indexes.from_bytes(self.index.bytes_of("rows.faiss")),
            self.index.manifest["scale"],
            self.index.array("queries", memory_map=True),
            self.index.array("projectors", memory_map=True),
            self.index.manifest["projector_scale"],
            self.index.manifest["unit"],
            self.index.array("self_influence"),
        )
        pairs = zip(
            self.index.array("query_tests").tolist(),
            self.index.array("query_targets").tolist(),
            strict=True,
        )
        self._row_of = {pair: row for row, pair in enumerate(pairs)}
        self._lock = threading.Lock()
        self._fresh: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def _part(self, kind: str, name: str) -> Artifact:
        found = self.store.find(kind, name)
        if found is None:
            raise UserError(
                found=f"build {self.id} without its {kind} {name}",
                wanted="every part it was made of",
                next_step="run the same `build` again, which makes what is missing",
            )
        return found

    def tests(self) -> pd.DataFrame:
        """One row a test example: label, predicted, confidence (of the predicted), correct."""
        return pd.DataFrame(
            {
                "label": self.test_labels_T,
                "predicted": self.predicted_T,
                "confidence": self.probs_TC.max(1),
                "correct": self.predicted_T == self.test_labels_T,
            },
            index=pd.RangeIndex(len(self.test_labels_T), name="test_id"),
        )

    def confusion_CC(self) -> np.ndarray:
        """Counts of test examples, rows by label and columns by prediction."""
        classes = len(self.classes)
        pairs = self.test_labels_T * classes + self.predicted_T
        return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    def query(self, test_id: int, k: int = 12, target: str = "predicted") -> Answer:
        """The strongest proponents and opponents of a test example's target class.

        `target` is "label", "predicted", or a class by name or number. Raises `UserError` for a
        test id, class or k out of range.
        """
        self._check_test(test_id)
        self.check_k(k)
        asked = self._class_of(test_id, target)
        return self._answer(self._query_Md(test_id, asked), test_id, asked, k)

    def query_group(
        self, test_ids: Iterable[int], k: int = 12, target: str = "predicted"
    ) -> Answer:
        """One answer for several test examples: queries are vectors, so they add up."""
        chosen = list(test_ids)
        if not chosen:
            raise UserError(
                found="an empty group", wanted="at least one test example", next_step="choose some"
            )
        self.check_k(k)
        for t in chosen:
            self._check_test(t)
        targets = [self._class_of(t, target) for t in chosen]
        total_Md = np.zeros(self.compressed.queries_TMd.shape[1:], np.float32)
        for t, c in zip(chosen, targets, strict=True):
            total_Md += self._query_Md(t, c)
        asked = targets[0] if len(set(targets)) == 1 else -1
        return self._answer(total_Md / len(chosen), -1, asked, k)

    def _answer(self, u_Md: np.ndarray, test_id: int, target: int, k: int) -> Answer:
        alone = test_id >= 0
        return Answer(
            test_id=test_id,
            label=int(self.test_labels_T[test_id]) if alone else -1,
            predicted=int(self.predicted_T[test_id]) if alone else -1,
            target=target,
            proponents=self._hits(u_Md, self.compressed.search(u_Md, k)),
            opponents=self._hits(u_Md, self.compressed.search(u_Md, k, opponents=True)),
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
                f"Error bars: standard error between {members} dropout masks of one network only. "
                "Another training run would differ by more; train 2 or more networks to see it."
            )
        return "No error bars: a single member cannot tell how sure it is."

    def mislabels(self) -> pd.DataFrame:
        """All training examples, most suspicious label first; see `mislabels.suspects`."""
        return self._mislabels

    @cached_property
    def _mislabels(self) -> pd.DataFrame:
        runs = [self._part("run", r) for r in self.parts["runs"]]
        return suspects(
            self.train_ids,
            self.train_labels_N,
            np.stack([r.array("belief") for r in runs]).mean(0, dtype=np.float32),
            self.q_N,
            self.compressed.self_influence_N,
            self.classes,
        )

    def known(self) -> dict[str, object] | None:
        """How well `mislabels` finds the flipped labels, or None where no truth is kept."""
        clean_N = clean_labels(self.store, self.data_id)
        if clean_N is None or not (wrong_N := clean_N != self.train_labels_N).any():
            return None
        return detection(wrong_N, self.mislabels()["score"].sort_index().to_numpy())

    def scores(self, report: Report = silent) -> np.ndarray:
        """Exact ensemble scores of all pairs, float32 (T, N), for the given test labels."""
        blocks = [self._part("features", f) for f in self.parts["features"]]
        total_TN = torch.zeros(len(self.test_labels_T), len(self.train_labels_N))
        for m, features in enumerate(blocks):
            report("scores", m, len(blocks))
            phi_NK = phi_of(features, "train")
            white = whitening(phi_NK, self.spec.estimator)
            total_TN += white(phi_of(features, "test")) @ white(phi_NK).mT
        report("scores", len(blocks), len(blocks))
        weight_N = indexes.factor(torch.from_numpy(self.q_N), self.spec.estimator)
        return (total_TN / len(blocks) * weight_N).numpy()

    def image(self, split: str, position: int) -> np.ndarray:
        """The image as stored, uint8 (H, W) or (H, W, 3). Raises `UserError` out of range."""
        known("split", split, ("train", "test"), "train or test")
        images = (self.data.train if split == "train" else self.data.test).images
        if not 0 <= position < len(images):
            raise UserError(
                found=f"{split} image {position}",
                wanted=f"a position from 0 to {len(images) - 1}",
                next_step="choose one in that range",
            )
        return images[position]

    def _query_Md(self, test_id: int, target: int) -> np.ndarray:
        if (test_id, target) in self._row_of:
            return self.compressed.queries_TMd[self._row_of[test_id, target]]
        with self._lock:  # masks are hooks on shared networks
            if (test_id, target) not in self._fresh:
                self._fresh[test_id, target] = self._featurized(test_id, target)
                while len(self._fresh) > 64:
                    self._fresh.popitem(last=False)
            return self._fresh[test_id, target]

    def _featurized(self, test_id: int, target: int) -> np.ndarray:
        """Query vectors (M, d) of a test example for a class nobody asked about before."""
        some = self._tests[np.array([test_id])]
        asked = Examples(some.x_N, some.key_N, torch.tensor([target]))
        u_Md = []
        for projector_Kd, (whole, member) in zip(
            self.compressed.projectors_MKd, self._members, strict=True
        ):
            phi_1K = block(whole.view(member.mask, member.p), asked, whole.projections).phi_NK
            phi_1K = Whitening(unit=self.compressed.unit)(phi_1K)
            u_Md.append((phi_1K @ torch.from_numpy(projector_Kd.astype(np.float32)))[0].numpy())
        return np.stack(u_Md) * self.compressed.projector_scale

    @cached_property
    def _tests(self) -> Examples:
        return examples(self.spec, self.data, self.data.test)

    @cached_property
    def _members(self) -> list[tuple[Projected, Member]]:
        whole = {
            run_id: load_projected(
                load_network(self.store, self.spec, self.data, run_id), self._part("sites", sites)
            )
            for run_id, sites in zip(self.parts["runs"], self.parts["sites"], strict=True)
        }
        made = (self._part("features", f).manifest["made_by"] for f in self.parts["features"])
        members = [Member(run_id=m["run_id"], mask=m["mask"], p=m["p"]) for m in made]
        return [(whole[m.run_id], m) for m in members]

    def _class_of(self, test_id: int, target: str) -> int:
        if target == "label":
            return int(self.test_labels_T[test_id])
        if target == "predicted":
            return int(self.predicted_T[test_id])
        if target in self.classes:
            return self.classes.index(target)
        if target.isdecimal() and int(target) < len(self.classes):
            return int(target)
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


def spread_of(scores_QMH: np.ndarray, networks: int) -> np.ndarray:
    """Standard deviation (Q, H) between networks, or with one network between its members."""
    if networks > 1:
        queries, members, hits = scores_QMH.shape
        by_network = scores_QMH.reshape(queries, networks, members // networks, hits)
        scores_QMH = by_network.mean(2)
    return scores_QMH.std(1, ddof=1)


def examples(spec: BuildSpec, data: Dataset, split: Split) -> Examples:
    return Examples(
        inputs(spec.model, data, split.images),
        torch.from_numpy(example_keys(split.ids).copy()),
        torch.from_numpy(split.labels_N),
    )


def phi_of(features: Artifact, split: str) -> Tensor:
    """Stored features, float32 (N, K)."""
    half = features.array(f"{split}_phi", memory_map=True)
    return torch.from_numpy(half.astype(np.float32)) * features.manifest[f"{split}_scale"]


def mean_q(blocks: list[Artifact]) -> Tensor:
    """The ensemble's mean 1 - p of the given labels, (N,)."""
    return torch.stack([q(torch.from_numpy(b.array("train_margin"))) for b in blocks]).mean(0)


def finite(made: Block, member: Member) -> None:
    if not (torch.isfinite(made.phi_NK).all() and torch.isfinite(made.margin_N).all()):
        raise UserError(
            found=f"a gradient that is not a number in network {member.run_id}",
            wanted="finite gradients for every example",
            next_step="train it again with another --seed, or choose another --model",
        )


def save_directions(whole: Projected) -> bytes:
    named = {
        f"{s}.{j}": tensor.contiguous()
        for s, directions in enumerate(whole.projections.values())
        for j, tensor in enumerate(directions)
    }
    return save(named)


def load_projected(module: torch.nn.Module, sites: Artifact) -> Projected:
    named = load(sites.bytes_of("directions.safetensors"))
    projections = {}
    for s, fields in enumerate(sites.manifest["sites"]):
        site = Site(**{**fields, "parameters": tuple(fields["parameters"])})
        projections[site] = tuple(named[f"{s}.{j}"] for j in range(1 + site.factorised))
    return Projected(
        module,
        tuple(sites.manifest["mask_places"]),
        projections,
        tuple(sites.manifest["left_out"]),
    )


def load_network(store: Store, spec: BuildSpec, data: Dataset, run_id: str) -> torch.nn.Module:
    run = store.find("run", run_id)
    if run is None:
        raise UserError(
            found=f"no run {run_id}",
            wanted="the trained network of this build",
            next_step="run the same `build` again, which makes what is missing",
        )
    module = network(spec.model, data, spec.width, seed=0)
    module.load_state_dict(run.weights())
    return module.eval()


def spec_from(fields: dict[str, Any]) -> BuildSpec:
    """The spec that `asdict` wrote."""
    blank = BuildSpec()
    parts = {
        name: replace(getattr(blank, name), **fields[name])
        for name in ("data", "features", "estimator")
    }
    return BuildSpec(**{**fields, **parts})


def seconds(artifacts: Iterable[Artifact]) -> float:
    return round(sum(a.manifest["seconds"] for a in artifacts), 3)
