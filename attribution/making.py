"""A build in the making: each step is an artifact of the store, made or found.

    data set -> runs -> members -> feature blocks -> index

so a build that was killed resumes at the member it was in, and a second identical one finds
everything done.

Axes: N train, T test, C classes, M members, K features of a member, d index dimensions.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, lru_cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from . import index as indexes
from . import rows, strategies, weights
from .adapters import checked, fitted, saved
from .cluster import HERE, Cluster
from .data import Dataset, Split, dataset
from .estimate import Counts, Estimate, free, scratch
from .estimators import ESTIMATORS
from .features import (
    PRECISIONS,
    VIEWS,
    Block,
    Examples,
    Projected,
    block,
    featurized,
    margins,
    projected,
    shards,
)
from .fit import Blocks, Scratch, Whitenings, fit
from .gradients import attributed
from .jobs import peak_memory
from .members import example_keys
from .metrics import spread_of
from .models import check_name, check_preprocess, code_id, inputs, network
from .records import (
    LOSS,
    BuildSpec,
    Checkpoint,
    FeatureSpec,
    Member,
    Report,
    RunSpec,
    UserError,
    content_id,
    known,
    silent,
    within,
)
from .rows import Rows
from .store import Artifact, Draft, Store, store_at
from .stored import (
    Stored,
    fresh,
    load_network,
    load_projected,
    mean_q,
    seconds,
    seen,
    stored,
    unique,
    was_watched,
)
from .strategies import STRATEGIES
from .train import SCHEDULES, probabilities, snapshot_epochs, train

SPREAD_QUERIES = 16  # queries on which the index's understatement of the spread is measured
SPREAD_HITS = 16


def check(spec: BuildSpec) -> None:
    """Raise `UserError` for a spec that makes no sense."""
    known("strategy", spec.strategy, STRATEGIES, "--strategy")
    known("estimator", spec.estimator.name, tuple(ESTIMATORS), "--estimator")
    known("basis", spec.features.basis, ("own", "random"), "--basis")
    known("precision", spec.features.precision, tuple(PRECISIONS), "--precision")
    known("q", spec.estimator.q, ("members", "training"), "--q")
    known("kind of index", spec.index, rows.KINDS, "--index")
    recipe = strategies.training(spec)
    known("schedule", recipe["schedule"], SCHEDULES, "--schedule")
    check_name(spec.model)
    check_preprocess(spec.preprocess, spec.model)
    if spec.train != "none":
        code_id(spec.train, "--train")
    strategies.check_networks(spec)
    limits: list[tuple[str, float, float, float]] = [
        ("--models", spec.models, 1, 1000),
        ("--epochs", spec.epochs, 1, 100_000),
        ("--learning-rate", recipe["rate"], 1e-9, 1e3),
        ("--weight-decay", recipe["decay"], 0, 1e3),
        ("--batch", spec.batch_size, 2, 100_000),
        ("--damping", spec.estimator.damping, 0, 1e12),
        ("--q-power", spec.estimator.q_power, 0, 10),
        ("--width", spec.width, 1e-3, 100),
        ("--dims", min(spec.features.ka, spec.features.kg), 1, 1e6),
        ("--index-dims", spec.index_dims, 1, 1e6),
        ("--index-recall", spec.index_recall, 0.5, 1),
        ("--index-memory", spec.index_memory, 1e-3, 1e4),
        ("--seed", spec.seed, 0, 1e9),
        ("--noise-seed", spec.data.noise_seed, 0, 1e9),
    ]
    limits += strategies.limits(spec)
    within(limits)
    strategies.check(spec)


def id_of(spec: BuildSpec, data: Dataset) -> str:
    """The id of a build: its spec, its data, and the code that its names stand for."""
    own = {"preprocess_code": code_id(spec.preprocess), "train_code": code_id(spec.train)}
    more = [some for some in (own, apart(spec)) if any(some.values())]
    return content_id("build", data.id, spec, code_id(spec.model), *more)


def apart(spec: BuildSpec) -> dict[str, str]:
    """What tells an index whose queries are each in a unit of its own from those before it."""
    return {"query_units": "each"} if spec.estimator.name in LOSS else {}


class Making:
    """A build in the making: each method makes one kind of artifact, or finds it."""

    def __init__(
        self,
        store: Store,
        spec: BuildSpec,
        data: Dataset,
        report: Report = silent,
        cluster: Cluster = HERE,
    ) -> None:
        spec = strategies.whole(spec)
        self.store, self.spec, self.data, self.report = store, spec, data, report
        self.cluster = cluster
        self.train = examples(spec, data, data.train)
        self.shown = examples(spec, data, data.test)
        if spec.adapters:  # before anything is trained
            checked(network(spec.model, data, spec.width, spec.seed, spec.preprocess), spec.lora)
        self._projected: dict[tuple[Checkpoint, int], Projected] = {}

    def remaking(self) -> tuple[Callable[..., "Making"], tuple[Any, ...]]:
        """To a worker it travels as what it is of."""
        return remade, (*self.store.address, self.spec, id_of(self.spec, self.data))

    def each(
        self, step: str, keys: Sequence[tuple], stage: str, done: int = 0, total: int = 0
    ) -> list[Any]:
        """What `step` makes of every key, in their order, by whoever does the tasks.

        They are the tasks from `done` on of the `total` (0: all) of a stage.
        """
        found: list[Any] = []
        total = total or len(keys)
        if keys:
            self.report(stage, done, total)
        for made in self.cluster.map(self, step, keys):
            found.append(made)
            self.report(stage, done + len(found), total)
        return found

    @property
    def trainings(self) -> int:
        """Networks and adapters that are trained."""
        return self.spec.models * (1 + self.spec.finetunes + self.spec.adapters)

    @cached_property
    def runs(self) -> list[Artifact]:
        """The networks, trained or given."""
        spec, total = self.spec, self.trainings
        if spec.weights:
            return self.each("given", [(w,) for w in spec.weights], "train", 0, total)
        keys = [(i, "", i, total) for i in range(spec.models)]
        return self.each("run", keys, "train", 0, total)

    @cached_property
    def tuned(self) -> list[Artifact]:
        """The short fine-tunes on from each network."""
        return self._from_each("run", self.spec.finetunes)

    @cached_property
    def adapters(self) -> list[Artifact]:
        """The LoRA adapters on each network."""
        return self._from_each("adapter", self.spec.adapters)

    def _from_each(self, step: str, count: int) -> list[Artifact]:
        parents = [run.manifest["id"] for run in self.runs]
        first = len(parents)
        keys = [
            (j, parent, first + i * count + j, self.trainings)
            for i, parent in enumerate(parents)
            for j in range(count)
        ]
        return self.each(step, keys, "train", first, self.trainings)

    def part(self, at: int, total: int) -> Report:
        """Progress of the `at`-th of `total` trainings."""
        return lambda stage, done, of: self.report(stage, at * of + done, total * of)

    def recipe(self, seed: int) -> RunSpec:
        """How networks are trained, whether the build's own were or are given."""
        spec, how = self.spec, strategies.training(self.spec)
        return replace(
            self.kind,
            epochs=spec.epochs,
            learning_rate=how["rate"],
            schedule=how["schedule"],
            weight_decay=how["decay"],
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
        probs_TC = probabilities(made, self.shown.x_N)
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
        draft.note(accuracy=accuracy(self.data, probs_TC.numpy()))

    def adapter(self, j: int, run_id: str, at: int, total: int) -> Artifact:
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
        # A network without a place for masks has sites all the same. A run that was trained here is
        # named by what was frozen in it, one of given weights is not.
        spec = self.spec
        given = ["freeze"] if spec.freeze and spec.weights and not spec.finetunes else []
        return content_id("sites", checkpoint, self.directions(draw), self.masked, *given)

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

    def places(self) -> list[Artifact]:
        """The directions of every network, before its members wait for them."""
        keys = dict.fromkeys((m.checkpoint, m.draw) for m in self.members)
        return self.each("sites", list(keys), "basis")

    def network(self, checkpoint: Checkpoint) -> torch.nn.Module:
        return load_network(self.store, self.spec, self.data, checkpoint)

    def projected(self, checkpoint: Checkpoint, draw: int) -> Projected:
        if (checkpoint, draw) not in self._projected:
            module, places = self.network(checkpoint), self.sites(checkpoint, draw)
            self._projected = {(checkpoint, draw): load_projected(module, places)}
        return self._projected[checkpoint, draw]

    @cached_property
    def shards(self) -> list[slice]:
        """The training examples in ranges; a member's features of one are an artifact."""
        return shards(len(self.train))

    def features_of(self, member: Member, shard: int) -> tuple[str, dict[str, Any]]:
        """The id of a member's features of one shard, and what they are made by."""
        own = replace(member, block=0, blocks=1)  # blocks share them
        sites_id = self.sites(member.checkpoint, member.draw).manifest["id"]
        rows = self.shards[shard]
        part = [{"rows": [rows.start, rows.stop]}] if len(self.shards) > 1 else []
        name = content_id("features", self.data.id, sites_id, own, *part, *self.asked)
        made_by = {"data": self.data.id, "sites": sites_id, **asdict(own)}
        return name, {**made_by, **{k: v for some in part for k, v in some.items()}}

    def features(self, member: Member, shard: int = 0) -> Artifact:
        """One member's features of a shard of the training examples, for the given labels.

        Those of the test examples lie with the first shard's. No shard needs another.
        """
        return self.together([member], shard)[0]

    def together(self, members: Sequence[Member], shard: int = 0) -> list[Artifact]:
        """`features` of members with the same network and directions, each batch by all of them."""
        of = dict(self.features_of(member, shard) for member in members)
        member_of = {self.features_of(member, shard)[0]: member for member in members}
        parts = {"train": self.train[self.shards[shard]]}
        parts |= {} if shard else {"test": self.test}

        def fill(drafts: Mapping[str, Draft]) -> None:
            whole = self.projected(members[0].checkpoint, members[0].draw)
            some = [member_of[name] for name in drafts]
            for half, examples in parts.items():
                with self.store.matrices() as matrices:
                    filled(whole, some, half, examples, list(drafts.values()), matrices)

        made = dict(zip(of, self.store.make_all("features", of, fill), strict=True))
        return [made[self.features_of(member, shard)[0]] for member in members]

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
        """The features of each member, shard after shard."""
        self.places()
        self.room()
        members, shards = self.members, range(len(self.shards))
        keys = [(some, shard) for some in side_by_side(members) for shard in shards]
        made = self.each("together", keys, "features")
        found = {
            (member, shard): one
            for (some, shard), together in zip(keys, made, strict=True)
            for member, one in zip(some, together, strict=True)
        }
        return [found[member, shard] for member in members for shard in shards]

    def room(self) -> None:
        """Raise `UserError` where the disk has not the room for the features that are absent.

        Or where there are fewer features than blocks of the kernel.
        """
        first = self.members[0]
        K = self.projected(first.checkpoint, first.draw).size
        if self.spec.blocks > K:
            raise UserError(
                found=f"--blocks {self.spec.blocks} of {K} features",
                wanted="at least one feature for each block",
                next_step="lower --blocks, or raise --dims",
            )
        absent = {
            (replace(member, block=0, blocks=1), shard)
            for member in self.members
            for shard in range(len(self.shards))
            if not self.store.has("features", self.features_of(member, shard)[0])
        }
        if not absent:
            return
        counts = Counts(len(self.train), len(self.test), len(self.data.classes))
        bytes_of = [rows.stop - rows.start for rows in self.shards]
        bytes_of[0] += len(self.test)
        sizes = {"features": sum(bytes_of[shard] for _, shard in absent) * (2 * K + 4)}
        more = scratch(self.spec, counts, len(self.members), K // self.spec.blocks)
        Estimate({}, sizes, free(self.store.root), more).check()

    @cached_property
    def beliefs(self) -> list[Artifact]:
        """What q is averaged over: the members, or the masks of a forward-only ensemble."""
        if not self.spec.forward_only:
            return self.blocks
        members = strategies.beliefs(self.spec, self.checkpoints)
        return self.each("margins", [(m,) for m in members], "margins")

    @cached_property
    def predicted_T(self) -> np.ndarray:
        """The class that the networks together give each test example."""
        return self.test_probs().argmax(1)

    @cached_property
    def test(self) -> Examples:
        """The test examples, asked about their labels; without any, about what they are called."""
        if self.data.test.labelled:
            return self.shown
        return replace(self.shown, target_N=torch.from_numpy(self.predicted_T))

    @property
    def asked(self) -> tuple[str, ...]:
        """Tells features for other classes than the labels."""
        if self.data.test.labelled:
            return ()
        return (content_id("asked", self.predicted_T.tolist()),)

    @cached_property
    def wrong(self) -> np.ndarray:
        """Test examples for which that is not their label."""
        return np.flatnonzero(self.predicted_T != self.test.target_N.numpy())

    @cached_property
    def stored(self) -> list[Stored]:
        return stored(self.members, self.blocks, self.spec.estimator)

    @cached_property
    def readable(self) -> Blocks:
        """The features as `fit` reads them, here or on a worker."""
        features, members = self.stored, self.members
        some = self.test[self.wrong]
        second = Examples(some.x_N, some.key_N, torch.from_numpy(self.predicted_T[self.wrong]))

        def queries(m: int) -> Iterator[Tensor]:
            """For the label of every test example, then for the predicted one where it differs."""
            yield from features[m].tests()
            for part in shards(len(second)):
                whole = self.projected(members[m].checkpoint, members[m].draw)
                yield fresh(whole, members[m], second[part], self.spec.estimator)

        return Blocks(len(members), self.shards, lambda m, s: features[m].train(s), queries)

    def fitting(self, function: Callable[..., Any], *key: Any) -> Any:
        """A task of `fit`: one of its functions, of the features of this build."""
        return function(self.readable, self.spec.estimator, *key)

    def parts(self, work: Callable[..., Any], tasks: Iterable[tuple[Any, ...]], /) -> Iterator[Any]:
        """`fit.Each`, by whoever does the tasks: what travels is the function, not the features."""
        assert isinstance(work, partial)
        return self.cluster.map(self, "fitting", ((work.func, *task) for task in tasks))

    def index(self) -> Artifact:
        """The compressed index, and the query vectors of every test example."""
        members, blocks, beliefs = self.members, self.blocks, self.beliefs
        predicted_T, wrong, spec = self.predicted_T, self.wrong, self.spec

        def fill(draft: Draft) -> None:
            with self.store.matrices() as made:
                squeezed(draft, made)

        def squeezed(draft: Draft, matrices: Scratch) -> None:
            def put(rows_Nd: Any, u_Td: np.ndarray) -> Rows:
                memory = spec.index_memory * 1e9
                return rows.fitted(
                    rows_Nd, u_Td, spec.index, spec.index_recall, memory, draft.shelf
                )

            member_q_N = mean_q(beliefs, 1 if spec.forward_only else len(self.shards))
            q_N = self.training_q() if spec.estimator.q == "training" else member_q_N
            found = fit(
                self.readable, spec.estimator, spec.index_dims, spec.seed,
                self.report, matrices, self.parts,
            )  # fmt: skip
            made = indexes.compress(
                found, q_N, spec.estimator,
                lambda name, shape, some: draft.rows(
                    name, shape, np.float16, (block.numpy() for block in some)
                ),
                put,
            )  # fmt: skip
            if spec.estimator.name in LOSS:
                draft.array("query_units", made.query_units_T)
            draft.array("self_influence", made.self_influence_N)
            draft.array("q", q_N.numpy())
            draft.array("member_q", member_q_N.numpy())
            draft.array("query_tests", np.concatenate([np.arange(len(self.test)), wrong]))
            draft.array(
                "query_targets", np.concatenate([self.test.target_N.numpy(), predicted_T[wrong]])
            )
            draft.note(
                scale=made.scale,
                projector_scale=made.projector_scale,
                unit=made.unit,
                networks=spec.models,
                rows={**made.rows.facts, "wanted": spec.index_recall},
                spread=self.spread(made, self.stored, found.whitenings, q_N),
            )

        made_by = {
            "features": [b.manifest["id"] for b in blocks],
            "members": [[m.block, m.blocks] for m in members],
            "beliefs": [b.manifest["id"] for b in beliefs],
            "estimator": asdict(spec.estimator),
            "dims": spec.index_dims,
            "index": spec.index,
            "index_recall": spec.index_recall,
            "index_memory": spec.index_memory,
            "predicted": content_id(predicted_T.tolist()),
            "seed": spec.seed,
            **apart(spec),
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
        self,
        made: indexes.Compressed,
        features: Sequence[Stored],
        whitenings: Whitenings,
        q_N: Tensor,
    ) -> float:
        """Spread of the members' scores in the index, as a share of the exact one.

        The squeezed vectors understate how much members differ, so error bars are divided by
        this; measured on the top hits of a sample of test examples.
        """
        members, estimator = self.members, self.spec.estimator
        if len(members) == 1:
            return 1.0
        tests = np.linspace(0, len(self.test) - 1, min(SPREAD_QUERIES, len(self.test))).astype(int)
        queries = [made.query(t) for t in tests]
        hits = [made.search(u_Md, min(SPREAD_HITS, len(q_N))) for u_Md in queries]
        weight_N = indexes.weights(q_N, torch.from_numpy(made.self_influence_N), estimator)
        exact_QMH = np.empty((len(tests), len(members), len(hits[0])))
        ids, hit_QH = np.unique(np.stack(hits), return_inverse=True)
        hit_QH = hit_QH.reshape(len(tests), -1)
        for m, own in enumerate(features):
            white = whitenings[m]
            w_QK, w_IK = white(own.of("test", tests)), white(own.of("train", ids))
            scores_QI = (w_QK @ w_IK.mT) * weight_N[ids]
            exact_QMH[:, m] = np.take_along_axis(scores_QI.numpy(), hit_QH, 1)
        squeezed_QMH = np.stack(
            [made.member_scores(u_Md, i) for u_Md, i in zip(queries, hits, strict=True)]
        )
        pair = [spread_of(s_QMH, self.spec.models) for s_QMH in (squeezed_QMH, exact_QMH)]
        return float(np.clip(np.median(pair[0] / np.maximum(pair[1], 1e-30)), 0.05, 1.0))

    def test_probs(self) -> np.ndarray:
        """Mean over the networks, float32 (T, C)."""
        return np.stack([r.array("test_probs") for r in self.runs]).mean(0, dtype=np.float32)

    def serving(self) -> float:
        """Seconds to featurize one new query by every member, measured."""
        one, taken = self.test[slice(0, 1)], 0.0
        for member in {replace(m, block=0, blocks=1): None for m in self.members}:
            whole = self.projected(member.checkpoint, member.draw)  # one network at a time
            began = time.perf_counter()
            fresh(whole, member, one, self.spec.estimator)
            taken += time.perf_counter() - began
        return taken

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
        count_stored = len(unique(self.blocks)) // len(self.shards)
        plain = Checkpoint(run_id=self.runs[0].manifest["id"])
        epochs = (0 if spec.weights else spec.epochs) + spec.finetunes * spec.finetune_epochs
        training = epochs * step(plain)
        if spec.adapters:
            passes = spec.adapters * spec.lora.epochs * spec.lora.share
            training += passes * step(self.checkpoints[0])
        return {
            "train": spec.models * count * training,
            "features": count_stored * each * (count + len(self.test)),
            "query": count_stored * each,
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
                "accuracy": accuracy(data, probs_TC),
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
                    "index": rows.size_of(index.manifest["files"]),
                    "queries": index.size - rows.size_of(index.manifest["files"]),
                },
                "search": index.manifest.get("rows", {}),
                "threads": torch.get_num_threads(),
                "peak_memory": peak_memory(),
                "created": draft.created,
                "spec": asdict(spec),
            },
        )


@lru_cache(maxsize=1)
def remade(root: Path, remote: str, spec: BuildSpec, build_id: str) -> Making:
    """The build in the making of a worker. Raises `UserError` where its code is another here."""
    store = store_at(root, remote)
    data = dataset(store, spec.data)
    if id_of(spec, data) != build_id:
        raise UserError(
            found="a FILE.py that is not the one that the build was asked for with",
            wanted="the same file on every node, under the same path",
            next_step="put it into a folder that they share",
        )
    return Making(store, spec, data)


def accuracy(data: Dataset, probs_TC: np.ndarray) -> float | None:
    """Share of the test images that are called right; None where they have no labels."""
    if not data.test.labelled:
        return None
    return float((probs_TC.argmax(1) == data.test.labels_N).mean())


def examples(spec: BuildSpec, data: Dataset, split: Split) -> Examples:
    return Examples(
        inputs(spec.model, data, split.images, spec.preprocess),
        torch.from_numpy(example_keys(split.ids).copy()),
        torch.from_numpy(split.labels_N),
    )


def side_by_side(members: Sequence[Member]) -> Iterator[list[Member]]:
    """Members that share network and directions, `VIEWS` at a time."""
    for _, same in groupby(members, lambda m: (m.checkpoint, m.draw)):
        some = list(same)
        for j in range(0, len(some), VIEWS):
            yield some[j : j + VIEWS]


def filled(
    whole: Projected,
    members: Sequence[Member],
    half: str,
    some: Examples,
    drafts: Sequence[Draft],
    matrices: Scratch,
) -> None:
    """Write each member's features of the examples into its draft, batch by batch.

    In half precision, in units of their root mean square, which is known at the end only: until
    then they lie on scratch.
    """
    raw_M = [matrices(len(some), whole.size) for _ in members]
    margin_MN = torch.empty(len(members), len(some))
    square_M = np.zeros(len(members))
    batches = []
    views = [seen(whole, member) for member in members]
    for batch, blocks in featurized(views, some, whole.projections):
        batches.append(batch)
        for m, (member, made) in enumerate(zip(members, blocks, strict=True)):
            finite(made, member)
            raw_M[m][batch], margin_MN[m, batch] = made.phi_NK, made.margin_N
            square_M[m] += float(made.phi_NK.square().sum(dtype=torch.float64))
    shape = len(some), whole.size
    for m, draft in enumerate(drafts):
        scale = math.sqrt(square_M[m] / math.prod(shape)) or 1.0
        halved = ((raw_M[m][batch] / scale).half().numpy() for batch in batches)
        draft.rows(f"{half}_phi", shape, np.float16, halved)
        draft.array(f"{half}_margin", margin_MN[m].numpy())
        draft.note(**{f"{half}_scale": scale})


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


def spec_from(fields: dict[str, Any]) -> BuildSpec:
    """The spec that `asdict` wrote; of an older one, with the recipe that there was then."""
    blank = BuildSpec()
    parts = {
        name: replace(getattr(blank, name), **fields[name])
        for name in ("data", "features", "estimator", "lora")
    }
    parts["lora"] = replace(parts["lora"], targets=tuple(parts["lora"].targets))
    return BuildSpec(
        **{
            **strategies.ONE_LOW_RATE,
            **fields,
            **parts,
            "weights": tuple(fields.get("weights", ())),
        }
    )
