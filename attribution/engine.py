"""What the pages and the command line call: build, open, ask.

    data set -> runs -> members -> feature blocks -> index -> hits -> decisions

`Making` makes the artifacts up to the index, `Build` answers from it.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import archives, jobs, reading, strategies, testlabels, tuning, weights, whatif
from . import estimate as estimates
from .archives import Unpacked
from .brittleness import BrittlenessSpec, flips
from .brittleness import check as check_removals
from .brittleness import summary as brittle
from .build import TOP, Build, recalled
from .changes import Changes, changes
from .cluster import HERE, Cluster
from .compare import Variance, variance
from .data import DATASETS, Split, dataset
from .decisions import Decisions
from .estimate import Counts, Estimate
from .estimators import q
from .folds import folds, folds_id, folds_of
from .making import Making, check, examples, id_of, spec_from
from .metrics import ceiling, interval, lds
from .models import LIBRARIES, MODELS, frozen_below, network
from .notes import Note, Notes
from .records import (
    BuildSpec,
    Checkpoint,
    DataSpec,
    Member,
    ReadSpec,
    Report,
    RunSpec,
    TruthSpec,
    UserError,
    content_id,
    silent,
    within,
)
from .revision import Revision, revise, revision
from .store import Artifact, Draft, Store, is_id, store_at
from .stored import facts, found, recipe, stored
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
OF_BUILD = ("evaluation", "exact", "brittleness", "tuning")  # kinds that are of one build alone
OPEN = 6  # builds kept open: a page's own, four beside it, and one more


class Engine:
    """One cache and one workspace; with `remote`, a URL, the cache is the mirror of what is there.

    Raises `UserError` for a URL that nothing here can open.
    """

    def __init__(self, cache: Path, workspace: Path | None = None, remote: str = "") -> None:
        self.cache = cache
        self.workspace = workspace or cache.absolute().parent
        self.remote = remote
        self.store = store_at(cache, remote)
        self.decisions = Decisions(self.workspace / "decisions.sqlite")
        self.notes = Notes(self.workspace / "notes.sqlite")
        self._opened: OrderedDict[str, Build] = OrderedDict()
        self._opening: dict[str, threading.Lock] = {}  # those on their way
        self._tops: OrderedDict[str, np.ndarray] = OrderedDict()
        self._variances: OrderedDict[str, Variance | None] = OrderedDict()
        self._knowns: OrderedDict[str, dict[str, object] | None] = OrderedDict()
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

    def removal(self, build_id: str, everywhere: bool = False) -> list[Artifact]:
        """What `delete` removes: the build, and whatever of it no other build uses.

        The data stay, and so do networks that were trained again: they are of the data and the
        recipe, and small. What is only on the remote is listed if it is to go `everywhere`.
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
        return [a for a in [*gone, *votes] if a is not None and (everywhere or a.here)]

    def delete(self, build_id: str, everywhere: bool = False) -> list[dict[str, Any]]:
        """Remove a build and whatever no other one uses; decisions, names and data stay.

        From the cache only, so that a build on the remote can be read again, unless it is to go
        `everywhere`. Raises `UserError` while something runs that may be using it.
        """
        self._idle("builds are deleted")
        gone = self.removal(build_id, everywhere)
        told = [facts(a) for a in gone]
        with self._lock:
            self._opened.pop(build_id, None)
        for artifact in gone:  # the build first, so that none is left without its parts
            self.store.remove(artifact.manifest["kind"], artifact.manifest["id"], everywhere)
        return told

    def running(self) -> list[str]:
        """Jobs that run, by their commands, then what any process is making just now."""
        return [job.command for job in self.jobs() if job.state == "running"] + self.store.writing()

    def _idle(self, what: str) -> None:
        """Raise `UserError` while something runs that may be using what is to go."""
        if running := self.running():
            raise UserError(
                found=f"a {running[0]} that is running, which may use it",
                wanted=f"nothing that runs while {what}",
                next_step="wait until it has ended, or cancel it on the page of builds",
            )

    def newest(self) -> str:
        """The id of the build that was asked for last, or "" where there is none.

        Builds that `study` made beside another were not asked for.
        """
        found = self.builds()
        asked_for = [b for b in found if not b.get("beside")]
        return next((b["build"] for b in asked_for or found), "")

    def has(self, build_id: str) -> bool:
        """Whether a build is there: finished, and not deleted since."""
        return self.store.has("build", build_id)

    def open(self, build_id: str) -> Build:
        """A finished build. Raises `UserError` where it is unknown or damaged."""
        with self._lock:
            if not self.has(build_id):  # another process may have deleted it
                self._opened.pop(build_id, None)
            if build_id in self._opened:
                self._opened.move_to_end(build_id)
                return self._opened[build_id]
            opening = self._opening.setdefault(build_id, threading.Lock())
        with opening:  # who wants another one does not wait for it
            try:
                made = self._opened.get(build_id) or self._read(build_id)
                with self._lock:
                    self._opened[build_id] = made
                    while len(self._opened) > OPEN:
                        self._opened.popitem(last=False)
                return made
            finally:
                with self._lock:
                    self._opening.pop(build_id, None)

    def _read(self, build_id: str) -> Build:
        artifact = self.store.find("build", build_id)
        if artifact is None:
            ids = tuple(b["build"] for b in self.builds())
            raise UserError(
                found=f"no build {build_id!r} in {self.cache}",
                wanted=f"one of {', '.join(ids)}" if ids else "a finished build",
                next_step="run `python -m attribution list`, or `build` to make one",
            )
        return Build(self.store, artifact)

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

    def unused_uploads(self) -> list[Unpacked]:
        """Those that no build is of."""
        used = {b["spec"]["data"].get("pixels") for b in self.builds()}
        return [
            one
            for one in self.uploads()
            if not any(r.manifest["pixels"] in used for r in self._readings(one))
        ]

    def _readings(self, upload: Unpacked) -> list[Artifact]:
        """What remembers the images that were read from an upload."""
        folder = upload.folder.resolve()
        readings = self.store.all("reading")
        return [r for r in readings if Path(r.manifest["made_by"]["place"]).is_relative_to(folder)]

    def remove_upload(self, name: str) -> None:
        """Remove an upload's files, and its images from the cache where nothing else has them.

        Raises `UserError` for one that a build is of, and while something runs that may read it.
        """
        self._idle("uploads are removed")
        found = next((one for one in self.unused_uploads() if one.folder.name == name), None)
        if found is None:
            raise UserError(
                found=f"no upload {name!r} that can be removed",
                wanted="one that no build is of",
                next_step="delete its builds first",
            )
        mine = self._readings(found)
        archives.remove(found.folder)
        for reading_of in mine:
            self.store.remove("reading", reading_of.manifest["id"])
        others = {r.manifest["pixels"] for r in self.store.all("reading")}
        for pixels in {r.manifest["pixels"] for r in mine} - others:
            self.store.remove("pixels", pixels)

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
        return replace(self._sizes(found), seconds=estimates.seconds(found))

    def room(self, spec: BuildSpec) -> None:
        """Raise `UserError` where the disk has not the room for a build."""
        self._sizes(self._probe(spec)).check()

    def _sizes(self, found: estimates.Probe) -> Estimate:
        more = estimates.scratch(found.spec, found.counts, len(found.members), found.width)
        return Estimate({}, estimates.sizes(found), estimates.free(self.cache), more)

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

    def build(
        self,
        spec: BuildSpec,
        report: Report = silent,
        beside: str = "",
        cluster: Cluster = HERE,
    ) -> dict[str, Any]:
        """Make everything `spec` asks for that is not there yet, and the build's summary.

        `beside` names the build that it is only to be compared with; `cluster` does the work, with
        the same result whoever it is. Raises `UserError` for a spec that makes no sense, before
        anything is computed.
        """
        check(spec)
        spec = strategies.whole(spec)
        data = dataset(self.store, spec.data, report)
        build_id = id_of(spec, data)
        if found := self._whole(build_id):
            self._voted(found, report, cluster)
            self._share(found)
            return dict(found.manifest["summary"])
        jobs.forget_peak()
        making = Making(self.store, spec, data, report, cluster)
        index = making.index()
        artifact = self.store.make(
            "build",
            build_id,
            lambda draft: making.summarise(draft, build_id, index, beside),
            asdict(spec),
        )
        Build(self.store, artifact).votes(report, cluster)
        self._share(artifact)
        return dict(artifact.manifest["summary"])

    def _voted(self, build: Artifact, report: Report, cluster: Cluster) -> None:
        """Make the votes of a build, to which one that was killed at its end did not come."""
        index = build.manifest["parts"]["index"]
        made = [a for a in self.store.all("votes") if a.manifest["made_by"]["index"] in index]
        for votes in made:
            self.store.share("votes", votes.manifest["id"])
        if not made and build.here:
            Build(self.store, build).votes(report, cluster)

    def _share(self, build: Artifact) -> None:
        """Put on the remote what it lacks of a finished build, the build itself last."""
        if self.store.remote is None:
            return
        brought = {
            kind: build.manifest["made_by"]["data"].get(kind) for kind in ("pixels", "revision")
        }
        parts = {KIND_OF[kind]: names for kind, names in build.manifest["parts"].items()}
        for kind, names in {**parts, **{k: [n] for k, n in brought.items() if n}}.items():
            for name in names:
                self.store.share(kind, name)
        self.store.share("build", build.manifest["id"])

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
        return self._whole(id_of(strategies.whole(spec), data)) is not None

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
        """Ground truth by retraining for every build on this one's data, network and recipe.

        Raises `UserError` without test labels, whose margins it is of.
        """
        build = self.open(build_id)
        build.need_labels()
        wanted = TruthSpec(run=build.again(), subsets=subsets, seeds=seeds, share=share)
        train_half = examples(build.spec, build.data, build.data.train)
        test_half = examples(build.spec, build.data, build.data.test)
        return truth(self.store, build.data, train_half, test_half, wanted, report)

    def truths(self, build: Build) -> list[Artifact]:
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
        build.need_labels()
        chosen = self._truth_for(build, truth_id)
        name = content_id("evaluation", build_id, chosen.manifest["id"])

        def fill(draft: Draft) -> None:
            found = opened(chosen, len(build.train_labels_N))
            predicted_MTS = build.sums(found.subsets_SN, report)
            predicted_TS = predicted_MTS.mean(0)
            draft.array("predicted", predicted_MTS)
            draft.array("lds", lds(predicted_TS, found.margins_ST))
            low, high = interval(predicted_TS, found.margins_ST, np.random.default_rng(0))
            draft.note(low=low, high=high, ceiling=ceiling(found.margins_SRT))
            draft.note(evidence=build.evidence_id, known=build.known())

        made_by = {"build": build_id, "truth": chosen.manifest["id"]}
        made = self.store.make("evaluation", name, fill, made_by)
        return row(build.summary, chosen, made, self._known(build_id, build.recipe, made))

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
        build.need_labels()
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
        """How many proponents must go before predictions of a build flip, kept once computed.

        Raises `UserError` where none of them is right.
        """
        build = self.open(build_id)
        run = build.again()
        check_removals(spec, len(build.train_labels_N))
        name = content_id("brittleness", build_id, spec)
        right = np.flatnonzero(build.predicted_T == build.test_labels_T)
        if not len(right):
            raise UserError(
                found="no test image that is called right",
                wanted="at least one, whose prediction may flip",
                next_step="train longer, or look at the test labels",
            )

        def fill(draft: Draft) -> None:
            draw = np.random.default_rng(0)
            tests = np.sort(draw.permutation(right)[: spec.tests])
            hits = [build.query(int(t), spec.most, "label").proponents for t in tests]
            flipped = flips(
                self.store,
                build.data,
                examples(build.spec, build.data, build.data.train),
                build.test_examples,
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
        target: str | int = "label",
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

    def _predicted(self, build: Build, some: list[whatif.Verified]) -> list[dict[str, Any]]:
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
        target: str | int,
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

        The largest moves first, whatever their sign; with `each`, k upwards and k downwards. Labels
        are those in force.
        """
        build = self.open(build_id)
        change_d = build.edit(train_ids, label, report)
        move_T = build.moves(change_d)
        within([("k", k, 1, len(move_T))])
        chosen = whatif.most(move_T, k, each)
        return whatif.moved(
            chosen,
            self.test_labels(build_id).labels_T[chosen] if build.labelled else [None] * len(chosen),
            build.predicted_T[chosen],
            build.moves_by_network(change_d, chosen),
            float(np.abs(move_T).max()),
            self.scale(build_id),
        )

    def flipping(
        self, build_id: str, test_id: int, target: str | int = "label"
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
        before.need_labels()
        labels = self.test_labels(before_id)
        return changes(labels, before.probs_TC, after.probs_TC, before_id, after_id)

    def test_labels(self, build_id: str) -> testlabels.Labels:
        """The test labels of a build with the decisions in force on them."""
        build = self.open(build_id)
        if not build.labelled:
            return replace(testlabels.untouched(build.predicted_T), labelled=False)
        some = build.test_half
        return testlabels.in_force(some, self.decisions.in_force(some.id))

    def accuracies(self, summaries: Iterable[dict[str, Any]]) -> dict[str, testlabels.Accuracy]:
        """Test accuracy of builds, with the decisions on test labels; opens none of them."""
        labels: dict[str, testlabels.Labels] = {}
        told = {}
        for summary in summaries:
            name, was = summary["build"], summary["accuracy"]
            told[name] = testlabels.Accuracy(given=was, restated=was, corrected=0, excluded=0)
            if was is None or not self.decisions.path.exists():  # and no data set need be read
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

    def known_data(self) -> set[str]:
        """Ids under which decisions may be: the data in the cache, test halves of the builds."""
        known = {a.manifest["id"] for a in self.store.all("data")}
        for summary in self.builds():
            with suppress(UserError):  # of damaged data
                known.add(self._half_of(spec_from(summary["spec"]).data).id)
        return known

    def _half_of(self, spec: DataSpec) -> testlabels.Half:
        return recalled(
            self._halves, content_id(spec), lambda: testlabels.half(dataset(self.store, spec))
        )

    def revision(self, build_id: str) -> Revision | None:
        """The decisions that a build's data has been through, or None."""
        name = self.open(build_id).spec.data.revision
        return revision(self.store, name) if name else None

    def revised_from(self, build_id: str) -> str:
        """The build on whose data the decisions were made that this one's have been through.

        The same but for the decisions: builds on the same data share them, so that another may have
        been the first to apply them. "" where there is none.
        """
        return next(iter(self._origins(self.builds()).get(build_id, [])), "")

    def revised(self, build_id: str) -> list[dict[str, Any]]:
        """Summaries of the builds made by applying decisions on this one, newest first."""
        builds = self.builds()
        origins = self._origins(builds)
        return [one for one in builds if build_id in origins.get(one["build"], [])]

    def _origins(self, builds: list[dict[str, Any]]) -> dict[str, list[str]]:
        """Of each build on revised data those that it may have been made from, the first first."""
        origins: dict[str, list[str]] = {}
        if not any(one["spec"]["data"].get("revision") for one in builds):
            return origins
        specs = {
            one["build"]: strategies.whole(replace(spec_from(one["spec"]), weights=()))
            for one in builds
        }

        def same(spec: BuildSpec, before: str) -> list[str]:
            wanted = replace(spec, data=replace(spec.data, revision=before))
            return [one for one, other in specs.items() if other == wanted]

        for name, spec in specs.items():
            try:
                made = revision(self.store, spec.data.revision) if spec.data.revision else None
            except UserError:  # a damaged one is told where it is needed
                continue
            if made is None:
                continue
            before = made.before
            if before is None:
                before = specs[made.build].data.revision if made.build in specs else ""
            first = [made.build] if made.build in specs else []
            # The same data may have been come to by other steps.
            found = same(spec, before) or same(spec, "") or first
            origins[name] = sorted(found, key=lambda one: one != made.build)
        return origins

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
        """What `evaluate` found, if it has been run.

        Computes nothing but how well wrong labels are found, where there are other folds now.
        """
        build = found(self.store, "build", build_id)
        mine = recipe(self.store, build)
        for chosen in self._truths(mine):
            name = content_id("evaluation", build_id, chosen.manifest["id"])
            if self.store.has("evaluation", name):
                made = found(self.store, "evaluation", name)
                known = self._known(build_id, mine, made)
                return row(build.manifest["summary"], chosen, made, known)
        return None

    def _known(
        self, build_id: str, mine: RunSpec, evaluation: Artifact
    ) -> dict[str, object] | None:
        """`Build.known`, which was kept with an evaluation, by the evidence that there is now."""
        kept, then = (evaluation.manifest.get(name) for name in ("known", "evidence"))
        now = folds_id(folds_of(mine))
        now = now if self.store.has("folds", now) else ""
        if kept is None or now == (then or ""):  # older evaluations do not say
            return kept
        try:
            build = self.open(build_id)
            return recalled(self._knowns, content_id(build_id, now), build.known)
        except UserError:  # of a damaged build, which is told where it is opened
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

    def _truth_for(self, build: Build, truth_id: str) -> Artifact:
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


def chosen(store: Store, build: Build, report: Report) -> dict[str, Any]:
    """Each width with its damping and what it generalises, and the settings chosen."""
    widths, best = [], None
    for j, (ka, kg) in enumerate(tuning.WIDTHS):
        report("tune", j, len(tuning.WIDTHS) + 1)
        spec = replace(build.spec, features=replace(build.spec.features, ka=ka, kg=kg))
        making = Making(store, spec, build.data, silent)
        member = Member(checkpoint=Checkpoint(run_id=making.runs[0].manifest["id"]))
        parts = [making.features(member, shard) for shard in range(len(making.shards))]
        made = stored([member], parts, spec.estimator)[0]
        phi_NK = torch.cat([made.train(shard) for shard in range(len(parts))])
        found = tuning.spectrum(phi_NK, torch.cat(list(made.tests())))
        margin_N = torch.from_numpy(np.concatenate([p.array("train_margin") for p in parts]))
        damping = tuning.damping(found)
        held_out = found.held_out(margin_N, damping)
        widths.append({"ka": ka, "kg": kg, "damping": damping, "held_out": round(held_out, 4)})
        if best is None or held_out > best[0]:
            best = (held_out, widths[-1], found.summed(damping), making, member, margin_N)
    assert best is not None
    report("tune", len(tuning.WIDTHS), len(tuning.WIDTHS) + 1)
    _, width, scores_TN, making, member, margin_N = best
    heads = tuning.refitted(
        making.network(member.checkpoint), making.train, making.test, len(build.classes)
    )
    if making.spec.estimator.q == "training":
        q_N = making.training_q()
    else:
        q_N = q(margin_N)
    power = making.spec.estimator.q_power
    if heads is not None:
        power = tuning.power(scores_TN, q_N, heads)
    report("tune", len(tuning.WIDTHS) + 1, len(tuning.WIDTHS) + 1)
    return {**width, "q_power": power, "refitted": heads is not None, "widths": widths}


def row(
    summary: dict[str, Any],
    truth: Artifact,
    evaluation: Artifact,
    known: dict[str, object] | None,
) -> dict[str, Any]:
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
        "known": known,
        "truth": truth.manifest["id"],
        "subsets": spec.subsets,
        "seeds": spec.seeds,
        "seconds": summary["seconds"],
        "flops": summary["flops"],
        "bytes": summary["bytes"],
        "peak_memory": summary["peak_memory"],
        "threads": summary.get("threads"),  # not of older builds
    }
