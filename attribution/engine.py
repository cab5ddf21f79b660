"""What the pages and the command line call: build, open, ask.

    data set -> runs -> members -> feature blocks -> index -> hits -> decisions

Each arrow is an artifact of the store, so a build that was killed resumes at the member it was
in, and a second identical one finds everything done.

Axes: N train, T test, C classes, M members, K features of a member, d index dimensions, H hits.
"""

import resource
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from io import BufferedIOBase
from pathlib import Path
from typing import Any, TypeVar, cast
from unicodedata import category

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from . import (
    archives,
    groups,
    jobs,
    reading,
    signals,
    strategies,
    testlabels,
    tuning,
    weights,
    whatif,
)
from . import estimate as estimates
from . import index as indexes
from .adapters import checked, fitted, loaded, saved
from .archives import Unpacked
from .brittleness import BrittlenessSpec, flips
from .brittleness import check as check_removals
from .brittleness import summary as brittle
from .changes import Changes, changes
from .compare import Variance, variance
from .data import DATASETS, Dataset, Split, clean_labels, dataset, example_ids
from .decisions import Decisions
from .estimate import Counts, Estimate
from .estimators import ESTIMATORS, Whitening, asked, q, whitening
from .features import Block, Examples, Projected, block, margins, projected
from .folds import FoldsSpec, folds, folds_id
from .gradients import Site, attributed
from .groups import GroupAnswer
from .map import MapSpec, laid_out, neighbours_kept, side_by_side
from .members import View, example_keys
from .metrics import ceiling, detection, interval, lds
from .mislabels import SIGNALS, suspects
from .models import (
    LIBRARIES,
    MODELS,
    check_name,
    check_preprocess,
    code_id,
    frozen_below,
    inputs,
    network,
)
from .notes import Note, Notes
from .records import (
    Answer,
    BuildSpec,
    Checkpoint,
    DataSpec,
    EstimatorSpec,
    FeatureSpec,
    Hit,
    Member,
    ReadSpec,
    Report,
    RunSpec,
    Tried,
    TruthSpec,
    UserError,
    content_id,
    known,
    silent,
    within,
)
from .revision import Revision, revise, revision
from .store import Artifact, Draft, Store, is_id
from .strategies import STRATEGIES
from .train import probabilities, snapshot_epochs, train
from .truth import Truth, differing, opened, truth, truth_spec

KIND_OF = {
    "data": "data",
    "runs": "run",
    "adapters": "adapter",
    "weights": "weights",
    "sites": "sites",
    "features": "features",
    "margins": "margins",
    "index": "index",
}
SPREAD_QUERIES = 16  # queries on which the index's understatement of the spread is measured
SPREAD_HITS = 16
Kept = TypeVar("Kept")
OF_BUILD = ("evaluation", "exact", "brittleness", "tuning")  # kinds that are of one build alone
OPEN = 6  # builds kept open: a page's own, four beside it, and one more
TOGETHER = 2**28  # bytes of exact scores that are kept for all test examples at once
TOP = 50  # hits of each test example by which ensembles are compared


class Engine:
    """One cache and one workspace."""

    def __init__(self, cache: Path, workspace: Path | None = None) -> None:
        self.cache = cache
        self.workspace = workspace or cache.absolute().parent
        self.store = Store(cache)
        self.decisions = Decisions(self.workspace / "decisions.sqlite")
        self.notes = Notes(self.workspace / "notes.sqlite")
        self._opened: OrderedDict[str, Build] = OrderedDict()
        self._tops: OrderedDict[str, np.ndarray] = OrderedDict()
        self._variances: OrderedDict[str, Variance | None] = OrderedDict()
        self._halves: OrderedDict[str, testlabels.Half] = OrderedDict()
        self._lock = threading.Lock()

    def builds(self) -> list[dict[str, Any]]:
        """Summaries of the finished builds, newest first, with the name and note of each."""
        said = self.notes.all()
        return [
            {**a.manifest["summary"], **asdict(said.get(a.manifest["id"], Note()))}
            for a in self.store.all("build")
        ]

    def datasets(self) -> dict[str, str]:
        """The data sets that come with the program, then those that builds are of.

        What `read` takes, and how a person calls it.
        """
        read = [b["spec"]["data"] for b in self.builds()]
        return {d: d for d in DATASETS} | {d["pixels"]: d["name"] for d in read if d.get("pixels")}

    def askable(self, model: str) -> None:
        """Raise `UserError` unless a browser may ask for a build of this network.

        It names no code and no weights of this machine: those are its user's to run.
        """
        if model not in MODELS and not model.startswith(LIBRARIES):
            raise UserError(
                found=f"network {model!r} asked for in the browser",
                wanted=f"{', '.join(MODELS)}, timm:NAME or torchvision:NAME",
                next_step="name files on the command line, as in `python -m attribution build "
                "--model FILE.py:FUNCTION`",
            )

    def say(self, build_id: str, name: str | None = None, note: str | None = None) -> Note:
        """Give a build a name or a note ("" takes it away); returns what was there before."""
        self.open(build_id)
        before = self.notes.of(build_id)
        given = {k: v for k, v in (("name", name), ("note", note)) if v is not None}
        self.notes.say(build_id, replace(before, **given))
        return before

    def removal(self, build_id: str) -> list[Artifact]:
        """What `delete` removes: the build, and whatever of it no other build uses.

        The data stay, and so do networks that were trained again: they are of the data and the
        recipe, and small.
        """
        build = self.open(build_id)
        others = [a.manifest for a in self.store.all("build") if a.manifest["id"] != build_id]
        used = {(k, n) for m in others for k, names in m["parts"].items() for n in names}
        mine = [
            (KIND_OF[kind], name)
            for kind, names in build.parts.items()
            for name in names
            if kind != "data" and (kind, name) not in used
        ]
        gone = [self.store.find(kind, name) for kind, name in [("build", build_id), *mine]]
        for kind in OF_BUILD:
            for made in self.store.all(kind):
                made_by = made.manifest["made_by"]
                gone += [made] if build_id == made_by.get("build") else []
        votes = [
            a for a in self.store.all("votes") if ("index", a.manifest["made_by"]["index"]) in mine
        ]
        return [a for a in [*gone, *votes] if a is not None]

    def delete(self, build_id: str) -> list[dict[str, Any]]:
        """Remove a build and whatever no other one uses; decisions, names and data stay.

        Raises `UserError` while something runs that may be using it.
        """
        running = [job for job in self.jobs() if job.state == "running"]
        if running:
            raise UserError(
                found=f"a {running[0].command} that is running, which may use the build",
                wanted="nothing that runs while builds are deleted",
                next_step="wait until it has ended, or cancel it on the page of builds",
            )
        gone = self.removal(build_id)
        told = [facts(a) for a in gone]
        with self._lock:
            self._opened.pop(build_id, None)
        for artifact in gone:  # the build first, so that none is left without its parts
            self.store.remove(artifact.manifest["kind"], artifact.manifest["id"])
        return told

    def newest(self) -> str:
        """The id of the build that was asked for last, or "" where there is none.

        Builds that `study` made beside another were not asked for.
        """
        found = self.builds()
        asked_for = [b for b in found if not b.get("beside")]
        return next((b["build"] for b in asked_for or found), "")

    def open(self, build_id: str) -> "Build":
        """A finished build. Raises `UserError` where it is unknown or damaged."""
        with self._lock:
            if not self.store.has("build", build_id):  # another process may have deleted it
                self._opened.pop(build_id, None)
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
                while len(self._opened) > OPEN:
                    self._opened.popitem(last=False)
            return self._opened[build_id]

    def read(self, text: str, spec: ReadSpec | None = None, report: Report = silent) -> DataSpec:
        """The data set that `text` names, for a `BuildSpec`: by name, or a person's own files.

        These are read into the cache unless they are there. Raises `UserError` for what holds no
        data set.
        """
        return reading.read(self.store, text, spec, report)

    def unpacked(self, archive: BufferedIOBase, name: str, report: Report = silent) -> Unpacked:
        """A person's archive, unpacked into the workspace; its folder is for `read`."""
        return archives.unpacked(archive, name, self.workspace / "data", report=report)

    def uploads(self) -> list[Unpacked]:
        """What was unpacked, the newest first."""
        return archives.all_unpacked(self.workspace / "data")

    def check(self, spec: BuildSpec) -> None:
        """Raise `UserError` for a spec that makes no sense, whatever its data are."""
        check(spec)

    def described(
        self, text: str, spec: ReadSpec | None = None, report: Report = silent
    ) -> dict[str, Any]:
        """What a person should know of their own files before building on them."""
        return reading.described(self.store, text, spec, report)

    def estimate(self, spec: BuildSpec) -> Estimate:
        """What `build` will take, by a probe of a few seconds. Raises `UserError` as it does."""
        found = self._probe(spec)
        seconds = estimates.seconds(found)
        return Estimate(seconds, estimates.sizes(found), estimates.free(self.cache))

    def room(self, spec: BuildSpec) -> None:
        """Raise `UserError` where the disk has not the room for a build."""
        sizes = estimates.sizes(self._probe(spec))
        Estimate({}, sizes, estimates.free(self.cache)).check()

    def _probe(self, spec: BuildSpec) -> estimates.Probe:
        check(spec)
        data = dataset(self.store, spec.data)
        counts = Counts(len(data.train), len(data.test), len(data.classes))
        rows = np.linspace(0, counts.train - 1, min(estimates.PROBE, counts.train)).astype(int)
        half = data.train
        names = tuple(half.ids[i] for i in rows)
        some = examples(spec, data, Split(half.images[rows], half.labels_N[rows], names))
        made = network(spec.model, data, spec.width, spec.seed, spec.preprocess)
        if spec.freeze:
            made = frozen_below(made, spec.model, counts.classes)
        return estimates.probe(spec, counts, made, some)

    def build(self, spec: BuildSpec, report: Report = silent, beside: str = "") -> dict[str, Any]:
        """Make everything `spec` asks for that is not there yet, and the build's summary.

        `beside` names the build that it is only to be compared with. Raises `UserError` for a spec
        that makes no sense, before anything is computed.
        """
        check(spec)
        data = dataset(self.store, spec.data, report)
        build_id = id_of(spec, data)
        if found := self._whole(build_id):
            return dict(found.manifest["summary"])
        making = Making(self.store, spec, data, report)
        index = making.index()
        artifact = self.store.make(
            "build",
            build_id,
            lambda draft: making.summarise(draft, build_id, index, beside),
            asdict(spec),
        )
        Build(self.store, artifact).votes(report)
        return dict(artifact.manifest["summary"])

    def brought(
        self, spec: BuildSpec, checkpoints: Sequence[str], start: str, pretrained: bool
    ) -> BuildSpec:
        """`spec` with the weights that files (or ids) have, copied into the cache.

        Raises `UserError` for a file that holds none, and for weights that cannot be downloaded.
        """
        if pretrained and start:
            raise UserError(
                found="--pretrained and --start together",
                wanted="one of them",
                next_step="leave out --pretrained, whose place the file takes",
            )
        if checkpoints and (pretrained or start):
            raise UserError(
                found=f"--checkpoint with {'--pretrained' if pretrained else '--start'}",
                wanted="weights that are final, or weights to start training from",
                next_step="leave out one of them",
            )
        if pretrained:
            start = weights.downloaded(self.store, spec.model, dataset(self.store, spec.data))
        elif start:
            start = weights.kept(self.store, start, "--start")
        ids = tuple(weights.kept(self.store, word, "--checkpoint") for word in checkpoints)
        return replace(spec, weights=ids, start=start)

    def finished(self, spec: BuildSpec) -> bool:
        """Whether `build` would find everything done."""
        check(spec)
        data = dataset(self.store, spec.data)
        return self._whole(id_of(spec, data)) is not None

    def _whole(self, build_id: str) -> Artifact | None:
        """The build, if none of the artifacts it is made of is missing."""
        found = self.store.find("build", build_id)
        if found is None:
            return None
        for kind, names in found.manifest["parts"].items():
            if not all(self.store.has(KIND_OF[kind], name) for name in names):
                return None
        return found

    def truth(
        self, build_id: str, subsets: int, seeds: int, share: float = 0.5, report: Report = silent
    ) -> Truth:
        """Ground truth by retraining for every build on this one's data, network and recipe."""
        build = self.open(build_id)
        wanted = TruthSpec(run=build.again(), subsets=subsets, seeds=seeds, share=share)
        train_half = examples(build.spec, build.data, build.data.train)
        test_half = examples(build.spec, build.data, build.data.test)
        return truth(self.store, build.data, train_half, test_half, wanted, report)

    def truths(self, build: "Build") -> list[Artifact]:
        """The ground truths that apply to a build, most networks first."""
        return self._truths(build.recipe)

    def _truths(self, recipe: RunSpec) -> list[Artifact]:
        found = [a for a in self.store.all("truth") if not differing(recipe, truth_spec(a).run)]
        return sorted(found, key=lambda a: truth_spec(a).subsets * truth_spec(a).seeds)[::-1]

    def evaluate(
        self, build_id: str, truth_id: str = "", report: Report = silent
    ) -> dict[str, Any]:
        """How well a build's scores predict retraining, kept once computed.

        Raises `UserError` where there is no ground truth for it, or the one named is of other
        data, labels or networks.
        """
        build = self.open(build_id)
        chosen = self._truth_for(build, truth_id)
        name = content_id("evaluation", build_id, chosen.manifest["id"])

        def fill(draft: Draft) -> None:
            found = opened(chosen, len(build.train_labels_N))
            predicted_MTS = build.sums(found.subsets_SN, report)
            predicted_TS = predicted_MTS.mean(0)
            draft.array("predicted", predicted_MTS)
            draft.array("lds", lds(predicted_TS, found.margins_ST))
            low, high = interval(predicted_TS, found.margins_ST, np.random.default_rng(0))
            draft.note(low=low, high=high, ceiling=ceiling(found.margins_SRT), known=build.known())

        made_by = {"build": build_id, "truth": chosen.manifest["id"]}
        made = self.store.make("evaluation", name, fill, made_by)
        return row(build.summary, chosen, made)

    def evaluate_all(
        self, build_ids: Sequence[str], truth_id: str = "", report: Report = silent
    ) -> list[dict[str, Any]]:
        """`evaluate` for each build, with one progress over the members of all."""
        counts = [self.open(build_id).summary["members"] for build_id in build_ids]
        rows, total = [], sum(counts)
        for j, build_id in enumerate(build_ids):
            before = sum(counts[:j])

            def further(stage: str, done: int, of: int, before: int = before) -> None:
                report("evaluate", before + done, total)

            rows.append(self.evaluate(build_id, truth_id, further))
        report("evaluate", total, total)
        return rows

    def study(
        self, build_id: str, subsets: int, seeds: int, report: Report = silent
    ) -> list[dict[str, Any]]:
        """The other strategies beside a build, a ground truth for all, and their evaluations."""
        build = self.open(build_id)
        build.again()  # or the reason why not, before anything is built
        specs = strategies.rivals(build.spec)
        ids = [build_id]
        for spec in specs:

            def further(stage: str, done: int, total: int, name: str = spec.strategy) -> None:
                report(f"{name}: {stage}", done, total)

            ids.append(self.build(spec, further, beside=build_id)["build"])
        self.truth(build_id, subsets, seeds, report=report)
        return self.evaluate_all(ids, report=report)

    def folds(self, build_id: str, report: Report = silent) -> dict[str, Any]:
        """Networks that leave a fold of the training set out, for every build with this recipe.

        From then on `Build.mislabels` goes by what they believe too. Returns how many labels it
        takes to be wrong by that.
        """
        build = self.open(build_id)
        build.again()  # or the reason why not
        whole = examples(build.spec, build.data, build.data.train)
        made = folds(self.store, build.data, whole, build.folds_spec, report)
        expected = float(build.mislabels()["score"].sum())
        return {"build": build_id, "folds": made.manifest["id"], "expected": expected}

    def map(self, build_id: str, report: Report = silent) -> dict[str, Any]:
        """Every image as a point in the plane, made once for all builds on these networks."""
        build = self.open(build_id)
        made = build.lay_out(report)
        images = len(build.train_labels_N) + len(build.test_labels_T)
        return {
            "build": build_id,
            "map": made.manifest["id"],
            "images": images,
            "kept": made.manifest["kept"],
        }

    def brittleness(
        self, build_id: str, spec: BrittlenessSpec, report: Report = silent
    ) -> dict[str, Any]:
        """How many proponents must go before predictions of a build flip, kept once computed."""
        build = self.open(build_id)
        run = build.again()
        check_removals(spec, len(build.train_labels_N))
        name = content_id("brittleness", build_id, spec)

        def fill(draft: Draft) -> None:
            right = np.flatnonzero(build.predicted_T == build.test_labels_T)
            draw = np.random.default_rng(0)
            tests = np.sort(draw.permutation(right)[: spec.tests])
            hits = [build.query(int(t), spec.most, "label").proponents for t in tests]
            flipped = flips(
                self.store,
                build.data,
                examples(build.spec, build.data, build.data.train),
                examples(build.spec, build.data, build.data.test),
                tests.tolist(),
                [np.array([h.train_id for h in some]) for some in hits],
                run,
                spec.removals,
                report,
            )
            draft.array("tests", tests)
            draft.array("flipped", flipped)

        made = self.store.make("brittleness", name, fill, {"build": build_id, **asdict(spec)})
        found = brittle(made.array("flipped"), spec.removals)
        return {"build": build_id, "tests": made.array("tests").tolist(), **found}

    def verify(
        self,
        build_id: str,
        test_id: int,
        removed: Iterable[int],
        target: str = "label",
        seeds: int = 10,
        report: Report = silent,
    ) -> dict[str, Any]:
        """Retrain with and without training examples: predicted against realised (`whatif`).

        Raises `UserError` for a set that is empty, unknown, or leaves a class without examples.
        """
        build = self.open(build_id)
        asked_class = build.class_of(test_id, target)
        spec = whatif.VerifySpec(
            run=build.again(),
            test=test_id,
            target=asked_class,
            removed=whatif.checked(build.train_labels_N, removed),
            seeds=seeds,
        )
        whatif.check(spec)
        build.exact(test_id, asked_class, report)
        train_half = examples(build.spec, build.data, build.data.train)
        test_half = examples(build.spec, build.data, build.data.test)
        made = whatif.verify(self.store, build.data, train_half, test_half, spec, report)
        return self._predicted(build, [made])[0]

    def verifications(self, build_id: str) -> list[dict[str, Any]]:
        """Every verified removal on a build's data and network, newest first, as `verify` has it.

        The predictions are this build's own, also of removals verified from another.
        """
        build = self.open(build_id)
        return self._predicted(build, whatif.verified(self.store, build.recipe))

    def _predicted(self, build: "Build", some: list[whatif.Verified]) -> list[dict[str, Any]]:
        rows = []
        for one in some:
            score_G = -build.pull(one.test_id, one.target, one.removed)[0].sum(1)
            rows.append({**asdict(one), "flipped": one.flipped, "score": float(score_G.mean())})
        return rows

    def scale(self, build_id: str) -> whatif.Scale | None:
        """From a build's scores to units of the margin, once enough removals are verified."""
        return whatif.scale_of(self.verifications(build_id))

    def forecast(
        self,
        build_id: str,
        test_id: int,
        removed: Iterable[int],
        target: str,
        known_scale: whatif.Scale | None,
    ) -> whatif.Forecast:
        """What removing training examples is predicted to do to a test example's margin."""
        build = self.open(build_id)
        asked_class = build.class_of(test_id, target)
        chosen = whatif.checked(build.train_labels_N, removed)
        return whatif.forecast(
            test_id,
            asked_class,
            chosen,
            *build.pull(test_id, asked_class),
            build.margin(test_id, asked_class),
            known_scale,
        )

    def blast(
        self,
        build_id: str,
        train_ids: Sequence[int],
        label: int | None = None,
        k: int = 12,
        each: bool = False,
        report: Report = silent,
    ) -> tuple[whatif.Moved, ...]:
        """The test predictions that a drop or relabel of training examples would move most.

        The largest moves first, whatever their sign; with `each`, k upwards and k downwards.
        """
        build = self.open(build_id)
        change_d = build.edit(train_ids, label, report)
        move_T = build.moves(change_d)
        within([("k", k, 1, len(move_T))])
        chosen = whatif.most(move_T, k, each)
        return whatif.moved(
            chosen,
            build.test_labels_T[chosen],
            build.predicted_T[chosen],
            build.moves_by_network(change_d, chosen),
            float(np.abs(move_T).max()),
            self.scale(build_id),
        )

    def flipping(
        self, build_id: str, test_id: int, target: str = "label"
    ) -> tuple[int, ...] | None:
        """The smallest set of the strongest that is predicted to flip a prediction, or None.

        Raises `UserError` while no scale is known.
        """
        build, known_scale = self.open(build_id), self.scale(build_id)
        asked_class = build.class_of(test_id, target)
        if known_scale is None or not known_scale.usable:
            raise UserError(
                found="no scale from scores to margins yet",
                wanted=f"{whatif.LEAST} verified removals that follow their predictions",
                next_step=f"run `python -m attribution verify {build_id} {test_id} --top 50`, then "
                "others",
            )
        scores_N = build.pull(test_id, asked_class)[0].mean(0)
        now = build.margin(test_id, asked_class)
        chosen = whatif.smallest(scores_N, now, known_scale)
        try:
            return None if chosen is None else whatif.checked(build.train_labels_N, chosen)
        except UserError:  # it would take a whole class
            return None

    def tune(self, build_id: str, report: Report = silent) -> dict[str, Any]:
        """Settings for TRAK chosen without retraining (`tuning`), from a build's first network.

        Raises `UserError` for a build with another estimator.
        """
        build = self.open(build_id)
        if build.spec.estimator.name != "trak":
            raise UserError(
                found=f"build {build_id} with the estimator {build.spec.estimator.name}",
                wanted="one with trak, whose settings these are",
                next_step="choose another build",
            )

        def fill(draft: Draft) -> None:
            draft.note(found=chosen(self.store, build, report))

        self.store.make("tuning", content_id("tuning", build_id), fill, {"build": build_id})
        found = self.tuned(build_id)
        assert found is not None
        return found

    def tuned(self, build_id: str) -> dict[str, Any] | None:
        """What `tune` found, if it has been run; computes nothing."""
        made = self.store.find("tuning", content_id("tuning", build_id))
        if made is None:
            return None
        found, spec = made.manifest["found"], self.open(build_id).spec
        spec = replace(
            spec,
            features=replace(spec.features, ka=found["ka"], kg=found["kg"]),
            estimator=replace(spec.estimator, damping=found["damping"], q_power=found["q_power"]),
        )
        return {"build": build_id, **found, "options": strategies.options(spec)}

    def revise(self, build_id: str) -> Revision:
        """The decisions in force on a build's data, as a data set of its own.

        Raises `UserError` where they change nothing.
        """
        build = self.open(build_id)
        build.again()  # or the reason why not
        decided = self.decisions.in_force(build.data_id)
        return revise(self.store, build.data, decided, build_id)

    def revised_spec(self, build_id: str, revision_id: str) -> BuildSpec:
        """The same build on the revised data; its networks start from the same seeds.

        Networks that were given are trained. Raises `UserError` where none may be.
        """
        build = self.open(build_id)
        build.again()  # or the reason why not
        return replace(build.spec, data=replace(build.spec.data, revision=revision_id), weights=())

    def changes(self, before_id: str, after_id: str) -> Changes:
        """What differs between two builds on the same test images."""
        before, after = self.open(before_id), self.open(after_id)
        if before.data.test.ids != after.data.test.ids:
            raise UserError(
                found=f"builds {before_id} and {after_id} with other test images",
                wanted="the same test images",
                next_step="compare a build with the one that its decisions were made on",
            )
        labels = self.test_labels(before_id)
        return changes(labels, before.probs_TC, after.probs_TC, before_id, after_id)

    def test_labels(self, build_id: str) -> testlabels.Labels:
        """The test labels of a build with the decisions in force on them."""
        some = self.open(build_id).test_half
        return testlabels.in_force(some, self.decisions.in_force(some.id))

    def accuracies(self, summaries: Iterable[dict[str, Any]]) -> dict[str, testlabels.Accuracy]:
        """Test accuracy of builds, with the decisions on test labels; opens none of them."""
        labels: dict[str, testlabels.Labels] = {}
        told = {}
        for summary in summaries:
            name, was = summary["build"], summary["accuracy"]
            told[name] = testlabels.Accuracy(given=was, restated=was, corrected=0, excluded=0)
            if not self.decisions.path.exists():  # and no data set need be read
                continue
            try:
                some = self._half_of(spec_from(summary["spec"]).data)
                probs_TC = found(self.store, "build", name).array("test_probs")
            except UserError:  # of damaged data, which is told where the build is opened
                continue
            if some.id not in labels:
                labels[some.id] = testlabels.in_force(some, self.decisions.in_force(some.id))
            if labels[some.id].decisions:
                told[name] = labels[some.id].accuracy(probs_TC.argmax(1))
        return told

    def _half_of(self, spec: DataSpec) -> testlabels.Half:
        return recalled(
            self._halves, content_id(spec), lambda: testlabels.half(dataset(self.store, spec))
        )

    def revision(self, build_id: str) -> Revision | None:
        """The decisions that a build's data has been through, or None."""
        name = self.open(build_id).spec.data.revision
        return revision(self.store, name) if name else None

    def revised(self, build_id: str) -> list[dict[str, Any]]:
        """Summaries of the builds made by applying decisions on this one, newest first."""
        found = []
        for summary in self.builds():
            name = summary["spec"]["data"].get("revision", "")
            made = revision(self.store, name) if name else None
            if made is not None and made.build == build_id:
                found.append(summary)
        return found

    def comparable(self, build_id: str) -> list[dict[str, Any]]:
        """Summaries of the builds on the same data and network as this one, it included."""
        mine, found = self.open(build_id).recipe, []
        for artifact in self.store.all("build"):
            try:
                other = recipe(self.store, artifact)
            except UserError:  # a damaged one is told on the page of builds
                continue
            if not differing(mine, other):
                found.append(dict(artifact.manifest["summary"]))
        return found

    def evaluated(self, build_id: str) -> dict[str, Any] | None:
        """What `evaluate` found, if it has been run; computes nothing."""
        build = found(self.store, "build", build_id)
        for chosen in self._truths(recipe(self.store, build)):
            name = content_id("evaluation", build_id, chosen.manifest["id"])
            if self.store.has("evaluation", name):
                made = found(self.store, "evaluation", name)
                return row(build.manifest["summary"], chosen, made)
        return None

    def compared(self, build_id: str) -> list[dict[str, Any]]:
        """A row for each of `comparable`: its summary, and where it was evaluated `evaluated`.

        Without an evaluation "lds" is None.
        """
        return [
            summary | (self.evaluated(summary["build"]) or {"lds": None})
            for summary in self.comparable(build_id)
        ]

    def top(self, build_id: str, k: int) -> np.ndarray:
        """`Build.top`, remembered when the build itself has been put away."""
        return recalled(self._tops, build_id, lambda: self.open(build_id).top(TOP))[:, :k]

    def variance(self, build_id: str, truth_id: str) -> tuple[np.ndarray, Variance | None]:
        """LDS of each test example (T,), and how the members' predictions vary."""
        made = self.store.find("evaluation", content_id("evaluation", build_id, truth_id))
        assert made is not None, "evaluate first"
        networks = found(self.store, "build", build_id).manifest["summary"]["models"]
        components = recalled(
            self._variances,
            made.manifest["id"],
            lambda: variance(made.array("predicted", memory_map=True), networks),
        )
        return made.array("lds"), components

    def _truth_for(self, build: "Build", truth_id: str) -> Artifact:
        if not truth_id:
            if found := self.truths(build):
                return found[0]
            raise UserError(
                found=f"no ground truth for build {build.id}",
                wanted="networks retrained on subsets of its data",
                next_step=f"run `python -m attribution truth {build.id}`, which takes minutes",
            )
        named = self.store.find("truth", truth_id) if is_id(truth_id) else None
        if named is None:
            ids = tuple(a.manifest["id"] for a in self.store.all("truth"))
            raise UserError(
                found=f"no ground truth {truth_id!r} in {self.cache}",
                wanted=f"one of {', '.join(ids)}" if ids else "a finished one",
                next_step=f"run `python -m attribution truth {build.id}`",
            )
        if fields := differing(build.recipe, truth_spec(named).run):
            raise UserError(
                found=f"ground truth {truth_id} made with another {', '.join(fields)}",
                wanted=f"one of the data, labels and network of build {build.id}",
                next_step=f"run `python -m attribution truth {build.id}`",
            )
        return named

    def start(self, options: list[str], command: str = "build") -> str:
        """Start ``attribution COMMAND`` with these options as a process of its own; its job id."""
        return jobs.start(self.cache, options, command)

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
    known("q", spec.estimator.q, ("members", "training"), "--q")
    check_name(spec.model)
    check_preprocess(spec.preprocess, spec.model)
    if spec.train != "none":
        code_id(spec.train, "--train")
    strategies.check_networks(spec)
    limits: list[tuple[str, float, float, float]] = [
        ("--models", spec.models, 1, 1000),
        ("--epochs", spec.epochs, 1, 100_000),
        ("--learning-rate", spec.rate, 1e-9, 1e3),
        ("--batch", spec.batch_size, 2, 100_000),
        ("--damping", spec.estimator.damping, 0, 1e12),
        ("--q-power", spec.estimator.q_power, 0, 10),
        ("--width", spec.width, 1e-3, 100),
        ("--dims", min(spec.features.ka, spec.features.kg), 1, 1e6),
        ("--index-dims", spec.index_dims, 1, 1e6),
        ("--seed", spec.seed, 0, 1e9),
        ("--noise-seed", spec.data.noise_seed, 0, 1e9),
    ]
    limits += strategies.limits(spec)
    within(limits)
    strategies.check(spec)


def id_of(spec: BuildSpec, data: Dataset) -> str:
    """The id of a build: its spec, its data, and the code that its names stand for."""
    own = {"preprocess_code": code_id(spec.preprocess), "train_code": code_id(spec.train)}
    codes = [own] if any(own.values()) else []
    return content_id("build", data.id, spec, code_id(spec.model), *codes)


class Making:
    """A build in the making: each method makes one kind of artifact, or finds it."""

    def __init__(self, store: Store, spec: BuildSpec, data: Dataset, report: Report) -> None:
        self.store, self.spec, self.data, self.report = store, spec, data, report
        self.train = examples(spec, data, data.train)
        self.test = examples(spec, data, data.test)
        if spec.adapters:  # before anything is trained
            checked(network(spec.model, data, spec.width, spec.seed, spec.preprocess), spec.lora)
        total = spec.models * (1 + spec.finetunes + spec.adapters)
        self.runs = [
            self.given(spec.weights[i]) if spec.weights else self.run(i, "", i, total)
            for i in range(spec.models)
        ]
        done = iter(range(spec.models, total))
        self.tuned = [
            self.run(f, run.manifest["id"], next(done), total)
            for run in self.runs
            for f in range(spec.finetunes)
        ]
        self.adapters = [
            self.adapter(run.manifest["id"], j, next(done), total)
            for run in self.runs
            for j in range(spec.adapters)
        ]
        report("train", total, total)
        self._projected: dict[tuple[Checkpoint, int], Projected] = {}

    def part(self, at: int, total: int) -> Report:
        """Progress of the `at`-th of `total` trainings."""
        return lambda stage, done, of: self.report(stage, at * of + done, total * of)

    def recipe(self, seed: int) -> RunSpec:
        """How networks are trained, whether the build's own were or are given."""
        spec = self.spec
        return replace(
            self.kind,
            epochs=spec.epochs,
            learning_rate=spec.rate,
            batch=spec.batch_size,
            seed=seed,
            snapshots=spec.snapshots,
            start=spec.start,
            freeze=spec.freeze,
            train=spec.train,
            train_code=code_id(spec.train, "--train"),
        )

    @property
    def kind(self) -> RunSpec:
        """What is said of a network whatever its weights are."""
        spec = self.spec
        return RunSpec(
            data_id=self.data.id,
            model=spec.model,
            model_code=code_id(spec.model),
            width=spec.width,
            preprocess=spec.preprocess,
            preprocess_code=code_id(spec.preprocess, "--preprocess"),
        )

    def given(self, weights_id: str) -> Artifact:
        """A network that was not trained here: what it says of the images."""
        run = replace(self.kind, epochs=0, given=weights_id)

        def fill(draft: Draft) -> None:
            self.said(draft, weights.given(self.store, self.data, run), None)

        return self.store.make("run", content_id(run), fill, asdict(run))

    def run(self, i: int, parent: str, at: int, total: int) -> Artifact:
        """The i-th trained network, or the i-th short fine-tune on from `parent`."""
        spec = self.spec
        run = self.recipe(1000 * (self.seed_of(parent) if parent else spec.seed) + i)
        if parent:  # by our recipe, whatever the parent was trained by
            run = replace(run, parent=parent, epochs=spec.finetune_epochs, snapshots=0)
            run = replace(run, start="", train="", train_code="")

        def fill(draft: Draft) -> None:
            if parent:
                fresh = self.network(Checkpoint(run_id=parent))
            else:
                fresh = weights.begun(self.store, self.data, run)
            whole = self.train
            trained = train(fresh, whole.x_N, whole.target_N, run, self.part(at, total))
            draft.weights(trained.network.state_dict())
            for epoch, state in trained.snapshots.items():
                draft.weights(state, f"weights-{epoch}")
            self.said(draft, trained.network, trained.belief_NC)

        return self.store.make("run", content_id(run), fill, asdict(run))

    def said(self, draft: Draft, made: torch.nn.Module, belief_NC: np.ndarray | None) -> None:
        """What a network says of the test images, and said of the training images on its way.

        Where nothing is known of its way, what it says of them at its end.
        """
        probs_TC = probabilities(made, self.test.x_N)
        if not torch.isfinite(probs_TC).all():
            raise UserError(
                found="a network whose answer is not a number for some test image",
                wanted="finite logits",
                next_step="check its weights and --preprocess",
            )
        if belief_NC is not None:
            draft.array("belief", belief_NC)
        else:
            draft.array("train_probs", probabilities(made, self.train.x_N).numpy())
        draft.array("test_probs", probs_TC.numpy())
        correct_T = probs_TC.argmax(1) == self.test.target_N
        draft.note(accuracy=float(correct_T.float().mean()))

    def adapter(self, run_id: str, j: int, at: int, total: int) -> Artifact:
        """The j-th LoRA adapter on a trained network."""
        lora, seed = self.spec.lora, 1000 * self.seed_of(run_id) + j

        def fill(draft: Draft) -> None:
            base = self.network(Checkpoint(run_id=run_id))
            saved(fitted(base, lora, self.train, seed, self.part(at, total)), draft.place)

        made_by = {"run": run_id, "seed": seed, **asdict(lora)}
        return self.store.make("adapter", content_id("adapter", made_by), fill, made_by)

    def seed_of(self, run_id: str) -> int:
        """The seed of one of the networks, from which those of what starts from it follow."""
        run = next(r.manifest["made_by"] for r in self.runs if r.manifest["id"] == run_id)
        given = run.get("given", "")
        return int(given, 16) % 10**6 if given else run["seed"]  # of weights, by what is in them

    @cached_property
    def checkpoints(self) -> list[Checkpoint]:
        """The weights that are attributed, those of one network side by side."""
        if self.tuned:
            return [Checkpoint(run_id=run.manifest["id"]) for run in self.tuned]
        if self.adapters:
            return [
                Checkpoint(run_id=a.manifest["made_by"]["run"], adapter=a.manifest["id"])
                for a in self.adapters
            ]
        epochs = snapshot_epochs(self.spec.epochs, self.spec.snapshots)
        return [
            Checkpoint(run_id=run.manifest["id"], epoch=epoch)
            for run in self.runs
            for epoch in epochs or (None,)
        ]

    def sites_id(self, checkpoint: Checkpoint, draw: int) -> str:
        # A network without a place for masks has sites all the same.
        return content_id("sites", checkpoint, self.directions(draw), self.masked)

    @property
    def masked(self) -> bool:
        return bool(self.spec.masks)

    def directions(self, draw: int) -> FeatureSpec:
        return replace(self.spec.features, seed=self.spec.features.seed + draw)

    def sites(self, checkpoint: Checkpoint, draw: int) -> Artifact:
        """The directions that the gradients of a checkpoint are projected to."""

        def fill(draft: Draft) -> None:
            whole = projected(
                self.network(checkpoint), self.train, self.directions(draw), self.masked
            )
            draft.bytes_of("directions.safetensors", save_directions(whole))
            draft.note(
                sites=[asdict(s) for s in whole.projections],
                mask_places=whole.mask_places,
                left_out=whole.left_out,
                fallback=whole.fallback,
                coverage=whole.coverage,
            )

        made_by = {**asdict(checkpoint), **asdict(self.directions(draw))}
        return self.store.make("sites", self.sites_id(checkpoint, draw), fill, made_by)

    def network(self, checkpoint: Checkpoint) -> torch.nn.Module:
        return load_network(self.store, self.spec, self.data, checkpoint)

    def projected(self, checkpoint: Checkpoint, draw: int) -> Projected:
        if (checkpoint, draw) not in self._projected:
            module, places = self.network(checkpoint), self.sites(checkpoint, draw)
            self._projected = {(checkpoint, draw): load_projected(module, places)}
        return self._projected[checkpoint, draw]

    def features(self, member: Member, done: int, total: int) -> Artifact:
        """One member's features of all training and test examples, for the given labels."""
        self.report("features", done, total)
        stored = replace(member, block=0, blocks=1)  # blocks share them
        sites_id = self.sites(member.checkpoint, member.draw).manifest["id"]

        def fill(draft: Draft) -> None:
            whole = self.projected(member.checkpoint, member.draw)
            view = seen(whole, member)
            for name, some in (("train", self.train), ("test", self.test)):
                made = block(view, some, whole.projections)
                finite(made, member)
                scale = float(made.phi_NK.square().mean().sqrt()) or 1.0
                draft.array(f"{name}_phi", (made.phi_NK / scale).half().numpy())
                draft.array(f"{name}_margin", made.margin_N.numpy())
                draft.note(**{f"{name}_scale": scale})

        name = content_id("features", self.data.id, sites_id, stored)
        made_by = {"data": self.data.id, "sites": sites_id, **asdict(stored)}
        return self.store.make("features", name, fill, made_by)

    def margins(self, member: Member) -> Artifact:
        """One member's margins of the training examples, by forward passes only."""
        sites_id = self.sites(member.checkpoint, member.draw).manifest["id"]

        def fill(draft: Draft) -> None:
            view = seen(self.projected(member.checkpoint, member.draw), member)
            draft.array("train_margin", margins(view, self.train).numpy())

        name = content_id("margins", self.data.id, sites_id, member)
        return self.store.make("margins", name, fill, {"sites": sites_id, **asdict(member)})

    @cached_property
    def members(self) -> list[Member]:
        return strategies.members(self.spec, self.checkpoints)

    @cached_property
    def blocks(self) -> list[Artifact]:
        """The features of each member."""
        members = self.members
        found = [self.features(m, j, len(members)) for j, m in enumerate(members)]
        self.report("features", len(members), len(members))
        return found

    @cached_property
    def beliefs(self) -> list[Artifact]:
        """What q is averaged over: the members, or the masks of a forward-only ensemble."""
        if not self.spec.forward_only:
            return self.blocks
        return [self.margins(m) for m in strategies.beliefs(self.spec, self.checkpoints)]

    def index(self) -> Artifact:
        """The compressed index, and the query vectors of every test example."""
        members, blocks, beliefs = self.members, self.blocks, self.beliefs
        predicted_T = self.test_probs().argmax(1)
        wrong = np.flatnonzero(predicted_T != self.data.test.labels_N)
        spec = self.spec
        some = self.test[wrong]
        second = Examples(some.x_N, some.key_N, torch.from_numpy(predicted_T[wrong]))

        def train_phi(m: int) -> Tensor:
            return phi_of(blocks[m], "train", members[m], spec.estimator)

        def queries(m: int) -> Tensor:
            """For the label of every test example, then for the predicted one where it differs."""
            given = phi_of(blocks[m], "test", members[m], spec.estimator)
            if not len(wrong):
                return given
            whole = self.projected(members[m].checkpoint, members[m].draw)
            return torch.cat([given, fresh(whole, members[m], second, spec.estimator)])

        def fill(draft: Draft) -> None:
            member_q_N = mean_q(beliefs)
            q_N = self.training_q() if spec.estimator.q == "training" else member_q_N
            made = indexes.compress(
                len(members), train_phi, queries, q_N,
                spec.estimator, spec.index_dims, spec.seed, self.report,
            )  # fmt: skip
            draft.bytes_of("rows.faiss", indexes.to_bytes(made.rows))
            draft.array("queries", made.queries_TMd)
            draft.array("projectors", made.projectors_MKd)
            draft.array("self_influence", made.self_influence_N)
            draft.array("q", q_N.numpy())
            draft.array("member_q", member_q_N.numpy())
            draft.array("query_tests", np.concatenate([np.arange(len(self.test)), wrong]))
            draft.array(
                "query_targets", np.concatenate([self.data.test.labels_N, predicted_T[wrong]])
            )
            draft.note(
                scale=made.scale,
                projector_scale=made.projector_scale,
                unit=made.unit,
                networks=spec.models,
                spread=self.spread(made, train_phi, q_N),
            )

        made_by = {
            "features": [b.manifest["id"] for b in blocks],
            "members": [[m.block, m.blocks] for m in members],
            "beliefs": [b.manifest["id"] for b in beliefs],
            "estimator": asdict(spec.estimator),
            "dims": spec.index_dims,
            "predicted": content_id(predicted_T.tolist()),
            "seed": spec.seed,
        }
        return self.store.make("index", content_id("index", made_by), fill, made_by)

    def training_q(self, networks: int | None = None) -> Tensor:
        """1 - p of the given labels, mean over the epochs and the first networks (all), (N,).

        The first epochs believe little, so the mean is far from the rounding of 1 - p.
        """
        if not all(map(was_watched, self.runs[:networks])):
            raise UserError(
                found="--q training of networks that said nothing on the way",
                wanted="what they believed after each epoch",
                next_step="give --q members, or call after_epoch in the function of --train",
            )
        beliefs = [r.array("belief") for r in self.runs[:networks]]
        belief_NC = np.stack(beliefs).mean(0, dtype=np.float64)
        given_N = belief_NC[np.arange(len(self.train)), self.data.train.labels_N]
        return torch.from_numpy(1 - given_N).float()

    def spread(
        self, made: indexes.Compressed, train_phi: Callable[[int], Tensor], q_N: Tensor
    ) -> float:
        """Spread of the members' scores in the index, as a share of the exact one.

        The squeezed vectors understate how much members differ, so error bars are divided by
        this; measured on the top hits of a sample of test examples.
        """
        members, estimator = self.members, self.spec.estimator
        if len(members) == 1:
            return 1.0
        tests = np.linspace(0, len(self.test) - 1, min(SPREAD_QUERIES, len(self.test))).astype(int)
        hits = [made.search(made.queries_TMd[t], min(SPREAD_HITS, len(q_N))) for t in tests]
        weight_N = indexes.weights(q_N, torch.from_numpy(made.self_influence_N), estimator)
        exact_QMH = np.empty((len(tests), len(members), len(hits[0])))
        for m, member in enumerate(members):
            phi_NK = train_phi(m)
            white = whitening(phi_NK, estimator)
            w_QK = white(phi_of(self.blocks[m], "test", member, estimator)[tests])
            for j, ids in enumerate(hits):
                exact_QMH[j, m] = (white(phi_NK[ids]) @ w_QK[j]) * weight_N[ids]
        squeezed_QMH = np.stack(
            [made.member_scores(made.queries_TMd[t], i) for t, i in zip(tests, hits, strict=True)]
        )
        pair = [spread_of(s_QMH, self.spec.models) for s_QMH in (squeezed_QMH, exact_QMH)]
        return float(np.clip(np.median(pair[0] / np.maximum(pair[1], 1e-30)), 0.05, 1.0))

    def test_probs(self) -> np.ndarray:
        """Mean over the networks, float32 (T, C)."""
        return np.stack([r.array("test_probs") for r in self.runs]).mean(0, dtype=np.float32)

    def serving(self) -> float:
        """Seconds to featurize one new query by every member, measured."""
        wholes = {
            (m.checkpoint, m.draw): self.projected(m.checkpoint, m.draw) for m in self.members
        }
        one = self.test[slice(0, 1)]
        began = time.perf_counter()
        for member in {replace(m, block=0, blocks=1): None for m in self.members}:
            fresh(wholes[member.checkpoint, member.draw], member, one, self.spec.estimator)
        return time.perf_counter() - began

    def flops(self) -> dict[str, float]:
        """Floating-point operations of training, featurizing and a query, from those of a batch."""
        spec, count, some = self.spec, len(self.train), self.train[slice(0, 32)]

        def of(work: Callable[[], object]) -> float:
            with FlopCounterMode(display=False) as counter:
                work()
            return counter.get_total_flops() / len(some)

        def step(checkpoint: Checkpoint) -> float:
            module = self.network(checkpoint)
            for parameter in attributed(module):
                parameter.requires_grad_()
            return of(lambda: cross_entropy(module(some.x_N), some.target_N).backward())

        member = self.members[0]
        whole = self.projected(member.checkpoint, member.draw)
        each = of(lambda: block(seen(whole, member), some, whole.projections))
        stored = len(unique(self.blocks))
        plain = Checkpoint(run_id=self.runs[0].manifest["id"])
        epochs = (0 if spec.weights else spec.epochs) + spec.finetunes * spec.finetune_epochs
        training = epochs * step(plain)
        if spec.adapters:
            passes = spec.adapters * spec.lora.epochs * spec.lora.share
            training += passes * step(self.checkpoints[0])
        return {
            "train": spec.models * count * training,
            "features": stored * each * (count + len(self.test)),
            "query": stored * each,
        }

    def summarise(self, draft: Draft, build_id: str, index: Artifact, beside: str) -> None:
        """The build's summary, and what it is made of."""
        spec, data = self.spec, self.data
        members, blocks = self.members, unique(self.blocks)
        pairs = dict.fromkeys((m.checkpoint, m.draw) for m in members)
        places = [self.sites(checkpoint, draw) for checkpoint, draw in pairs]
        margins = unique(self.beliefs) if spec.forward_only else []
        runs = [*self.runs, *self.tuned]
        probs_TC = self.test_probs()
        correct_T = probs_TC.argmax(1) == data.test.labels_N
        draft.array("test_probs", probs_TC)
        draft.note(
            members=[asdict(m) for m in members],
            features=[b.manifest["id"] for b in self.blocks],
            recipe=asdict(self.recipe(spec.seed)),
            networks=[r.manifest["id"] for r in self.runs],
            parts={
                "data": [data.id],
                "runs": [r.manifest["id"] for r in runs],
                "adapters": [a.manifest["id"] for a in self.adapters],
                "weights": list(dict.fromkeys([*spec.weights, *filter(None, [spec.start])])),
                "sites": [p.manifest["id"] for p in places],
                "features": [b.manifest["id"] for b in blocks],
                "margins": [m.manifest["id"] for m in margins],
                "index": [index.manifest["id"]],
            },
            summary={
                "build": build_id,
                "beside": beside,
                "data": spec.data.name,
                "noise": spec.data.noise,
                "model": spec.model,
                "strategy": spec.strategy,
                "ensemble": strategies.words(spec),
                "models": spec.models,
                "masks": spec.masks,
                "estimator": spec.estimator.name,
                "members": len(members),
                "train": len(data.train),
                "test": len(data.test),
                "accuracy": float(correct_T.mean()),
                "coverage": min(p.manifest["coverage"] for p in places),
                "left_out": list(places[0].manifest["left_out"]),
                "fallback": list(places[0].manifest["fallback"]),
                "given": len(spec.weights),
                "fresh": list(weights.left_fresh(self.store, data, self.recipe(spec.seed))),
                "seconds": {
                    "train": seconds([*runs, *self.adapters]),
                    "basis": seconds(places),
                    "features": seconds([*blocks, *margins]),
                    "fit": seconds([index]),
                    "query": round(self.serving(), 4),
                },
                "flops": self.flops(),
                "bytes": {
                    "checkpoints": sum(
                        a.size
                        for a in [
                            *runs,
                            *self.adapters,
                            *(weights.artifact_of(self.store, w) for w in spec.weights),
                        ]
                    ),
                    "features": sum(b.size for b in [*blocks, *margins]),
                    "index": index.manifest["files"]["rows.faiss"]["bytes"],
                    "queries": index.size - index.manifest["files"]["rows.faiss"]["bytes"],
                },
                "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
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
        self.test_labels_T = self.data.test.labels_N
        self.test_ids = self.data.test.ids
        self.probs_TC = artifact.array("test_probs")
        self.predicted_T = self.probs_TC.argmax(1)
        self.index = self._part("index", self.parts["index"][0])
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
        self._suspects: tuple[str, pd.DataFrame] | None = None
        self._lock = threading.Lock()
        self._fresh: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._steady: OrderedDict[str, np.ndarray] = OrderedDict()

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
        return (
            f"Networks are trained again by our recipe ({run.epochs} epochs of SGD at a learning "
            f"rate of {run.learning_rate:g}, batches of {run.batch}), not by yours; "
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
        return testlabels.suspects(self.test_labels_T, np.stack(self._probs_I))

    def query(self, test_id: int, k: int = 12, target: str = "predicted") -> Answer:
        """The strongest proponents and opponents of a test example's target class.

        `target` is "label", "predicted", or a class by name or number. Raises `UserError` for a
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
            rows = [self._row_of[int(t), int(targets_T[t])] for t in tests_W]
            u_Wd = [self.compressed.queries_TMd[r].mean(0, dtype=np.float32) for r in rows]
            return np.array(u_Wd).reshape(len(rows), self.compressed.rows.d)

        return tests_W, queries(self.predicted_T), queries(self.test_labels_T)

    @cached_property
    def _top(self) -> np.ndarray:
        """Positions of the strongest proponents of every test's given label, (T, TOP)."""
        k = min(TOP, len(self.train_labels_N))
        return indexes.search(self.compressed.rows, self._given_Td, k)[1]

    @property
    def _given_Td(self) -> np.ndarray:
        """The ensemble's query vector for the given label of every test example."""
        u_TMd = self.compressed.queries_TMd[: len(self.test_labels_T)]
        return np.stack([u_Md.mean(0, dtype=np.float32) for u_Md in u_TMd])

    def top(self, k: int) -> np.ndarray:
        """Positions (T, k) of the strongest proponents of every test's given label; k <= TOP."""
        return self._top[:, :k]

    def strongest(
        self, test_id: int, k: int, target: str = "predicted", opponents: bool = False
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
            unit = float(np.abs(scores_QGN).max()) or 1.0
            draft.array("scores", (scores_QGN / unit).astype(np.float16))
            draft.note(unit=unit)

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
        some = self._tests[test_Q[fresh_Q]]
        others = Examples(some.x_N, some.key_N, torch.from_numpy(target_Q[fresh_Q]))
        estimator, count = self.spec.estimator, len(self.members)
        networks = self.index.manifest["networks"]
        groups = networks if networks > 1 else count
        total_QGN = torch.zeros(len(test_Q), groups, len(self.train_labels_N))
        own_N = torch.zeros(len(self.train_labels_N))
        for m, (member, name) in enumerate(zip(self.members, self._features, strict=True)):
            report("scores", m, count)
            features = self._part("features", name)
            phi_NK = phi_of(features, "train", member, estimator)
            psi_QK = phi_of(features, "test", member, estimator)[test_Q]
            if fresh_Q.any():
                with self._lock:
                    psi_QK[fresh_Q] = fresh(self._wholes[m], member, others, estimator)
            white = whitening(phi_NK, estimator)
            # The kernel on the queries' side only: on the training rows it would cost as much again
            left_QK = white.back(white(psi_QK).mT).mT
            total_QGN[:, m * groups // count] += left_QK @ white.scaled(phi_NK).mT
            if estimator.relative:
                own_N += white(phi_NK).square().sum(1)
        report("scores", count, count)
        return (total_QGN * self._weights(own_N) * (groups / count)).numpy()

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
            scores_GN = kept.array("scores", memory_map=True)[pairs.index((test_id, target))]
            return scores_GN[:, chosen].astype(np.float32) * kept.manifest["unit"], True
        ids = np.arange(len(self.train_labels_N))[chosen]
        u_Gd = self._by_network(self._query_Md(test_id, target).astype(np.float32))
        scores_Gn = self.compressed.member_scores(u_Gd, ids)
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
        queries = (self.compressed.queries_TMd[row].astype(np.float32) for row in rows)
        move_kM = np.stack([u_Md @ change_d for u_Md in queries]) * self.compressed.scale
        move_Gk = self._by_network(move_kM.T)
        mean_k = move_Gk.mean(0)
        return mean_k + (move_Gk - mean_k) / self.index.manifest["spread"]

    @cached_property
    def _predicted_Td(self) -> np.ndarray:
        """Mean query vectors of every test example's predicted class."""
        rows = [self._row_of[t, int(c)] for t, c in enumerate(self.predicted_T)]
        u_TMd = self.compressed.queries_TMd
        return np.stack([u_TMd[row].mean(0, dtype=np.float32) for row in rows])

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

    def rescored(self, test_id: int, target: str, train_ids: Sequence[int]) -> tuple[Hit, ...]:
        """What this build says of chosen training examples."""
        u_Md = self._query_Md(test_id, self.class_of(test_id, target))
        return self._hits(u_Md, np.asarray(train_ids, np.int64))

    def query_group(
        self, test_ids: Iterable[int], k: int = 12, target: str = "predicted"
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
        u_GMd = [self._query_Md(t, self.class_of(t, target)).astype(np.float32) for t in chosen]
        mean_Md = np.mean(u_GMd, 0)
        each_Gd = np.stack([u_Md.mean(0) for u_Md in u_GMd])
        # Of the same length, so that a loud query does not choose the candidates alone.
        alike_1d = (each_Gd / np.linalg.norm(each_Gd, axis=1, keepdims=True)).sum(0)[None]
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

    def contrast(self, test_id: int, target: str, other: str, k: int = 12) -> Answer:
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
        u_Md, v_Md = (self._query_Md(test_id, c).astype(np.float32) for c in (one, two))
        return self._answer(u_Md - v_Md, test_id, one, k)

    def hubs(self, k: int = 10) -> pd.DataFrame:
        """Training examples that many test examples have among their k strongest proponents."""
        return groups.hubs(self.top(k), self.train_labels_N)

    def unsteady(self, k: int = 5) -> pd.DataFrame:
        """`tests` with `steady`: how many of its k strongest proponents are not shaky.

        Those with fewest first: the training set has little like them.
        """

        def count() -> np.ndarray:
            tests = range(len(self.test_labels_T))
            return np.array([groups.steady(self.query(t, k)) for t in tests])

        count_T = recalled(self._steady, str(k), count)
        return self.tests().assign(steady=count_T).sort_values("steady", kind="stable")

    def _answer(self, u_Md: np.ndarray, test_id: int, target: int, k: int) -> Answer:
        return Answer(
            test_id=test_id,
            label=int(self.test_labels_T[test_id]),
            predicted=int(self.predicted_T[test_id]),
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
        made = self._unseen()
        name = made.manifest["id"] if made else ""
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
        else:
            blocks = [self._part("features", name) for name in self._features]
            doubt_MN = np.stack([q(torch.from_numpy(b.array("train_margin"))) for b in blocks])
        belief_NC = np.stack(beliefs).mean(0, dtype=np.float32)
        member_q_N = self.index.array("member_q")
        if not watched:
            belief_NC = signals.at_the_end(belief_NC, member_q_N, self.train_labels_N)
        return signals.Evidence(
            belief_NC=belief_NC,
            watched=watched,
            disagreement_N=signals.disagreement(doubt_MN),
            q_N=member_q_N,
            self_influence_N=self.compressed.self_influence_N,
            neighbours_NC=votes.array("neighbours"),
            opponents_NC=votes.array("opponents"),
            unseen_NC=unseen.array("belief") if unseen else None,
        )

    def votes(self, report: Report = silent) -> Artifact:
        """The votes on every training label of its neighbours and of those it opposes."""
        classes, count = len(self.classes), len(self.train_labels_N)

        def fill(draft: Draft) -> None:
            whole = examples(self.spec, self.data, self.data.train)
            shares = []
            for m, name in enumerate(self._networks):
                report("signals", m, len(self._networks) + 1)
                module = load_network(self.store, self.spec, self.data, Checkpoint(run_id=name))
                x_NH = signals.embedded(module, whole, classes)
                shares.append(signals.neighbour_votes(x_NH, self.train_labels_N, classes))
            report("signals", len(self._networks), len(self._networks) + 1)
            k = min(signals.OPPONENTS, count)
            found_Tk = indexes.search(self.compressed.rows, self._given_Td, k, opponents=True)[1]
            opposed_NC = signals.opponent_votes(found_Tk, self.test_labels_T, count, classes)
            draft.array("neighbours", np.stack(shares).mean(0).astype(np.float32))
            draft.array("opponents", opposed_NC.astype(np.float32))
            report("signals", len(self._networks) + 1, len(self._networks) + 1)

        made_by = {
            "index": self.index.manifest["id"],
            "networks": self._networks,
            "neighbours": signals.NEIGHBOURS,
            "opponents": signals.OPPONENTS,
        }
        return self.store.make("votes", content_id("votes", made_by), fill, made_by)

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
        return FoldsSpec(run=replace(self.recipe, seed=0, snapshots=0))

    def _unseen(self) -> Artifact | None:
        name = folds_id(self.folds_spec)
        return self.store.find("folds", name) if self.store.has("folds", name) else None

    def known(self, by: str = "") -> dict[str, object] | None:
        """How well `mislabels` finds the flipped labels, or None where no truth is kept."""
        clean_N = clean_labels(self.store, self.data_id)
        if clean_N is None or not (wrong_N := clean_N != self.train_labels_N).any():
            return None
        column = f"signal_{by}" if by else "score"
        return detection(wrong_N, self.mislabels(by)[column].sort_index().to_numpy())

    def scores(self, report: Report = silent) -> np.ndarray:
        """Exact ensemble scores of all pairs, float32 (T, N), for the given test labels."""
        total_TN = torch.zeros(len(self.test_labels_T), len(self.train_labels_N))
        own_N = torch.zeros(len(self.train_labels_N))  # self-influence
        for w_NK, w_TK in self._whitened("scores", report):
            total_TN += w_TK @ w_NK.mT
            own_N += w_NK.square().sum(1)
        return (total_TN * self._weights(own_N) / len(self.members)).numpy()

    def sums(self, subsets_SN: np.ndarray, report: Report = silent) -> np.ndarray:
        """Each member's scores summed over subsets of the training set, float32 (M, T, S).

        Exact; their mean over members is what `scores` sums to, without ever holding T * N
        numbers.
        """
        relative = self.spec.estimator.relative
        own_N = torch.zeros(len(self.train_labels_N))
        for w_NK, _ in self._whitened("scores", silent) if relative else ():
            own_N += w_NK.square().sum(1)
        weight_NS = self._weights(own_N)[:, None] * torch.from_numpy(subsets_SN.T.copy()).float()
        sums = [
            (w_TK @ (w_NK.mT @ weight_NS)).numpy()
            for w_NK, w_TK in self._whitened("scores", report)
        ]
        return np.stack(sums)

    def _weights(self, own_N: Tensor) -> Tensor:
        """Weights of the training rows; `own_N` is the sum of the members' self-influence."""
        own_N = own_N / len(self.members)
        return indexes.weights(torch.from_numpy(self.q_N), own_N, self.spec.estimator)

    def _whitened(self, stage: str, report: Report) -> Iterator[tuple[Tensor, Tensor]]:
        """Exact vectors of the training and the test examples, (N, K) and (T, K), by member."""
        blocks = (self._part("features", name) for name in self._features)
        vectors = whitened(self.members, blocks, self.spec.estimator)
        for m, pair in enumerate(vectors):
            report(stage, m, len(self.members))
            yield pair
        report(stage, len(self.members), len(self.members))

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

        After a preprocessing of the user's own or a library's, stretched from black to white.
        """
        preprocess = self.spec.preprocess
        x_CHW = inputs(self.spec.model, self.data, image[None], preprocess)[0]
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
            return [n for n in (int(wanted[:18]),) if n < len(names)]
        return [n for n, name in enumerate(names) if wanted in name.casefold()]

    def attempt(
        self, image: np.ndarray, target: str = "predicted", k: int = 12, report: Report = silent
    ) -> Tried:
        """What the networks say of an image of neither half, and the training images behind it.

        `image` is uint8 as the data set's are (`pictures.alike`), `target` "predicted" or a class
        by name or number. Raises `UserError` for a target or k out of range.
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
        return Tried(
            probs=tuple(map(float, probs_C)),
            predicted=predicted,
            target=asked,
            proponents=self._hits(u_Md, self.compressed.search(u_Md, k)),
            opponents=self._hits(u_Md, self.compressed.search(u_Md, k, opponents=True)),
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
        stored_Nd = self.compressed.rows.reconstruct_n(0, len(own_N))
        row_unit = float(weighted_N.sum()) / float(np.linalg.norm(stored_Nd, axis=1).sum())
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
    def _tests(self) -> Examples:
        return examples(self.spec, self.data, self.data.test)

    @cached_property
    def _wholes(self) -> list[Projected]:
        """The network and directions of each member; members that share them share one."""
        made: dict[tuple[Checkpoint, int], Projected] = {}
        for member, name in zip(self.members, self._features, strict=True):
            pair = member.checkpoint, member.draw
            if pair not in made:
                module = load_network(self.store, self.spec, self.data, member.checkpoint)
                sites = self._part("features", name).manifest["made_by"]["sites"]
                made[pair] = load_projected(module, self._part("sites", sites))
        return [made[m.checkpoint, m.draw] for m in self.members]

    def class_of(self, test_id: int, target: str) -> int:
        """The class that `target` means for a test example, as `query` takes it."""
        self._check_test(test_id)
        if target == "label":
            return int(self.test_labels_T[test_id])
        if target == "predicted":
            return int(self.predicted_T[test_id])
        return self.class_named(target)

    def class_named(self, target: str) -> int:
        """The class of that name or number. Raises `UserError` where there is none."""
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


def chosen(store: Store, build: Build, report: Report) -> dict[str, Any]:
    """Each width with its damping and what it generalises, and the settings chosen."""
    widths, best = [], None
    for j, (ka, kg) in enumerate(tuning.WIDTHS):
        report("tune", j, len(tuning.WIDTHS) + 1)
        spec = replace(build.spec, features=replace(build.spec.features, ka=ka, kg=kg))
        making = Making(store, spec, build.data, silent)
        member = Member(checkpoint=Checkpoint(run_id=making.runs[0].manifest["id"]))
        made = making.features(member, 0, 1)
        phi_NK, phi_TK = (phi_of(made, half, member, spec.estimator) for half in ("train", "test"))
        found = tuning.spectrum(phi_NK, phi_TK)
        damping = tuning.damping(found)
        held_out = found.held_out(torch.from_numpy(made.array("train_margin")), damping)
        widths.append({"ka": ka, "kg": kg, "damping": damping, "held_out": round(held_out, 4)})
        if best is None or held_out > best[0]:
            best = (held_out, widths[-1], found.scores(damping), making, member, made)
    assert best is not None
    report("tune", len(tuning.WIDTHS), len(tuning.WIDTHS) + 1)
    _, width, scores_TN, making, member, made = best
    heads = tuning.refitted(
        making.network(member.checkpoint), making.train, making.test, len(build.classes)
    )
    if making.spec.estimator.q == "training":
        q_N = making.training_q()
    else:
        q_N = q(torch.from_numpy(made.array("train_margin")))
    power = making.spec.estimator.q_power
    if heads is not None:
        power = tuning.power(scores_TN, q_N, heads)
    report("tune", len(tuning.WIDTHS) + 1, len(tuning.WIDTHS) + 1)
    return {**width, "q_power": power, "refitted": heads is not None, "widths": widths}


def spread_of(scores_QMH: np.ndarray, networks: int) -> np.ndarray:
    """Standard deviation (Q, H) between networks, or with one network between its members."""
    if networks > 1:
        queries, members, hits = scores_QMH.shape
        by_network = scores_QMH.reshape(queries, networks, members // networks, hits)
        scores_QMH = by_network.mean(2)
    return scores_QMH.std(1, ddof=1)


def examples(spec: BuildSpec, data: Dataset, split: Split) -> Examples:
    return Examples(
        inputs(spec.model, data, split.images, spec.preprocess),
        torch.from_numpy(example_keys(split.ids).copy()),
        torch.from_numpy(split.labels_N),
    )


def phi_of(features: Artifact, split: str, member: Member, estimator: EstimatorSpec) -> Tensor:
    """Stored features as the estimator takes them, float32 (N, K)."""
    half = features.array(f"{split}_phi", memory_map=True)
    half = half[:, columns(member, half.shape[1])]
    phi_NK = torch.from_numpy(half.astype(np.float32)) * features.manifest[f"{split}_scale"]
    return asked(phi_NK, torch.from_numpy(features.array(f"{split}_margin")), estimator)


def whitened(
    members: Iterable[Member], blocks: Iterable[Artifact], estimator: EstimatorSpec
) -> Iterator[tuple[Tensor, Tensor]]:
    """Exact vectors of the training and the test examples, (N, K) and (T, K), by member."""
    for member, features in zip(members, blocks, strict=True):
        phi_NK = phi_of(features, "train", member, estimator)
        white = whitening(phi_NK, estimator)
        yield white(phi_NK), white(phi_of(features, "test", member, estimator))


def columns(member: Member, K: int) -> slice:
    """The features of a member's block, as many in each."""
    return slice(member.block, K // member.blocks * member.blocks, member.blocks)


def fresh(whole: Projected, member: Member, some: Examples, estimator: EstimatorSpec) -> Tensor:
    """Features (N, K) of examples that are not stored, as `phi_of` gives them."""
    made = block(seen(whole, member), some, whole.projections)
    phi_NK = made.phi_NK[:, columns(member, made.phi_NK.shape[1])]
    return asked(phi_NK, made.margin_N, estimator)


def seen(whole: Projected, member: Member) -> View:
    return whole.view(member.mask, member.p, member.shared)


def recipe(store: Store, build: Artifact) -> RunSpec:
    """How the networks of a build were trained; the seed is the first one's."""
    if "recipe" in build.manifest:
        return RunSpec(**build.manifest["recipe"])
    return RunSpec(**found(store, "run", build.manifest["networks"][0]).manifest["made_by"])


def row(summary: dict[str, Any], truth: Artifact, evaluation: Artifact) -> dict[str, Any]:
    """What `Engine.evaluate` returns."""
    spec = truth_spec(truth)
    return {
        "build": summary["build"],
        "ensemble": summary["ensemble"],
        "estimator": summary["estimator"],
        "members": summary["members"],
        "lds": float(evaluation.array("lds").mean()),
        "lds_low": evaluation.manifest["low"],
        "lds_high": evaluation.manifest["high"],
        "ceiling": evaluation.manifest["ceiling"],
        "known": evaluation.manifest.get("known"),
        "truth": truth.manifest["id"],
        "subsets": spec.subsets,
        "seeds": spec.seeds,
        "seconds": summary["seconds"],
        "flops": summary["flops"],
        "bytes": summary["bytes"],
        "peak_memory": summary["peak_memory"],
    }


def recalled(kept: OrderedDict[str, Kept], name: str, make: Callable[[], Kept]) -> Kept:
    """What `make` gives, remembered under a content id."""
    if name not in kept:
        kept[name] = make()
        while len(kept) > 100:
            kept.popitem(last=False)
    return kept[name]


def was_watched(run: Artifact) -> bool:
    """Whether a network said what it believed while it was trained."""
    return "belief.npy" in run.manifest["files"]


def facts(artifact: Artifact) -> dict[str, Any]:
    """Which artifact it is, and how large."""
    kind, name = artifact.manifest["kind"], artifact.manifest["id"]
    return {"kind": kind, "id": name, "bytes": artifact.size}


def unique(artifacts: Iterable[Artifact]) -> list[Artifact]:
    return list({a.manifest["id"]: a for a in artifacts}.values())


def mean_q(blocks: list[Artifact]) -> Tensor:
    """The ensemble's mean 1 - p of the given labels, (N,)."""
    return torch.stack([q(torch.from_numpy(b.array("train_margin"))) for b in blocks]).mean(0)


def finite(made: Block, member: Member) -> None:
    if not (torch.isfinite(made.phi_NK).all() and torch.isfinite(made.margin_N).all()):
        raise UserError(
            found=f"a gradient that is not a number in network {member.checkpoint.run_id}",
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


def load_network(
    store: Store, spec: BuildSpec, data: Dataset, checkpoint: Checkpoint
) -> torch.nn.Module:
    """The network with the weights of a checkpoint, in evaluation mode."""
    run = found(store, "run", checkpoint.run_id)
    made_by = RunSpec(**run.manifest["made_by"])
    weights.unedited(replace(made_by, train=""))
    if made_by.given:
        module = weights.given(store, data, made_by)
    else:
        module = network(spec.model, data, spec.width, 0, spec.preprocess)
        name = "weights" if checkpoint.epoch is None else f"weights-{checkpoint.epoch}"
        module.load_state_dict(run.weights(name))
    if spec.freeze:
        module = frozen_below(module, spec.model, len(data.classes))
    if checkpoint.adapter:
        adapter = found(store, "adapter", checkpoint.adapter)
        for file in adapter.manifest["files"]:
            adapter.file(file)  # checksums, before peft reads them
        module = loaded(module, adapter.place)
    return module.eval()


def found(store: Store, kind: str, name: str) -> Artifact:
    artifact = store.find(kind, name)
    if artifact is None:
        raise UserError(
            found=f"no {kind} {name}",
            wanted="every part that the build was made of",
            next_step="run the same `build` again, which makes what is missing",
        )
    return artifact


def spec_from(fields: dict[str, Any]) -> BuildSpec:
    """The spec that `asdict` wrote."""
    blank = BuildSpec()
    parts = {
        name: replace(getattr(blank, name), **fields[name])
        for name in ("data", "features", "estimator", "lora")
    }
    parts["lora"] = replace(parts["lora"], targets=tuple(parts["lora"].targets))
    return BuildSpec(**{**fields, **parts, "weights": tuple(fields.get("weights", ()))})


def member_from(fields: dict[str, Any]) -> Member:
    """The member that `asdict` wrote."""
    return Member(**{**fields, "checkpoint": Checkpoint(**fields["checkpoint"])})


def visible(names: Iterable[str]) -> tuple[str, ...]:
    """Names of classes, with "class 3" for one of which nothing is to be seen."""
    return tuple(
        name if any(category(sign)[0] in "LNPS" for sign in name) else f"class {number}"
        for number, name in enumerate(names)
    )


def seconds(artifacts: Iterable[Artifact]) -> float:
    return round(sum(a.manifest["seconds"] for a in artifacts), 3)
