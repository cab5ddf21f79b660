"""The calls of other libraries, answered by this engine.

Code written for TRAK's or dattri's `TRAKer`, `AttributionTask` and `TRAKAttributor` runs here by
changing the import; `explainer` gives quanda's metrics one of its explainers, and `register` adds
the issue type "influence" to cleanlab's Datalab. None of these libraries has to be installed for
the first two.

    scores: TRAK (arXiv 2303.14186), q to the power 1 and an absolute ridge, unless told otherwise

The projection is ours (`features`), and a network may be seen through dropout masks (`masks`).
With `EXACT` nothing is projected away, and the scores are those of the other library with its
projection off. Axes: N train, T test, C classes.
"""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from .ensemble import Ensemble, Index, dropout_ensemble, indexed, loaded, naive_ensemble
from .features import Examples
from .gradients import margin
from .records import EstimatorSpec, FeatureSpec, UserError, known

EXACT = FeatureSpec(ka=2**31, kg=2**31)  # all directions of every layer: no projection
THEIRS = EstimatorSpec(damping=0.0, q_power=1.0)
TRAK_ONLY = (  # of how TRAKer computes and where it stores, which is not how it is done here
    "save_dir load_from_save_dir device gradient_computer projector saver score_computer proj_dim "
    "logging_level use_half_precision proj_max_batch_size projector_seed"
).split()


class TRAKer:
    """`trak.TRAKer`: load_checkpoint, featurize, finalize_features; then scoring.

    The work is done in `finalize_features` and `finalize_scores`; batches are kept until then.
    Scores are TRAK's, apart from the positive factor by which its default score computer scales
    each checkpoint's (for the sake of half precision, which is not used here).
    """

    def __init__(
        self,
        model: nn.Module,
        task: Any = "image_classification",
        train_set_size: int = 0,
        lambda_reg: float = 0.0,
        *,
        features: FeatureSpec | None = None,
        masks: int = 0,
        p: float = 0.1,
        **theirs: Any,
    ) -> None:
        unknown = [name for name in theirs if name not in TRAK_ONLY]
        if unknown:
            raise UserError(
                found=f"TRAKer with {', '.join(unknown)}",
                wanted="settings of an image classification on all parameters",
                next_step="leave them out",
            )
        if isinstance(task, str):
            known("task", task, ("image_classification",), "task")
        self.model, self.size = model, train_set_size
        self.ridge = lambda_reg * sum(p.numel() for p in model.parameters())
        self.features, self.masks, self.p = features or FeatureSpec(), masks, p
        self._networks: dict[int, nn.Module] = {}
        self._train: dict[int, Batches] = {}
        self._targets: dict[str, dict[int, Batches]] = {}
        self._now: Batches | None = None
        self._index: tuple[tuple[int, ...], Index] | None = None

    def load_checkpoint(self, checkpoint: Mapping[str, Tensor], model_id: int, **_: Any) -> None:
        """Take these weights as the network `model_id`, which the next batches are for."""
        self.model.load_state_dict(checkpoint)
        self._networks[model_id] = copy.deepcopy(self.model).cpu().eval()
        self._now = self._train.setdefault(model_id, Batches(self.size))

    def featurize(
        self, batch: Sequence[Tensor], inds: Any = None, num_samples: int | None = None
    ) -> None:
        """Training examples of the checkpoint that was loaded, in order or at `inds`."""
        if self._now is None:
            raise asked_early("featurize", "load_checkpoint")
        self._now.add(batch, inds)

    def finalize_features(self, model_ids: Iterable[int] | None = None, **_: Any) -> None:
        """Featurize and index everything that was handed over, by the networks named (all)."""
        if not self._networks:
            raise asked_early("finalize_features", "load_checkpoint")
        self._index = self._indexed(tuple(self._networks if model_ids is None else model_ids))

    def start_scoring_checkpoint(
        self, exp_name: str, checkpoint: Mapping[str, Tensor], model_id: int, num_targets: int
    ) -> None:
        """Targets that follow are those of the experiment."""
        targets = self._targets.setdefault(exp_name, {})
        self._now = targets[model_id] = Batches(num_targets)

    def score(
        self, batch: Sequence[Tensor], inds: Any = None, num_samples: int | None = None
    ) -> None:
        """Targets of the experiment that was started, in order or at `inds`."""
        if self._now is None or not self._targets:
            raise asked_early("score", "start_scoring_checkpoint")
        self._now.add(batch, inds)

    def finalize_scores(
        self, exp_name: str, model_ids: Iterable[int] | None = None, **_: Any
    ) -> np.ndarray:
        """Scores, float32 (N, T), mean over the networks named (all)."""
        known("experiment", exp_name, tuple(self._targets), "start_scoring_checkpoint")
        if self._index is None:
            raise asked_early("finalize_scores", "finalize_features")
        ids = tuple(self._networks if model_ids is None else model_ids)
        if ids != self._index[0]:
            self._index = self._indexed(ids)
        targets = next(iter(self._targets[exp_name].values()))
        return self._index[1].scores_of(targets.examples(self._networks[ids[0]])).T

    def _indexed(self, ids: tuple[int, ...]) -> tuple[tuple[int, ...], Index]:
        networks = [self._networks[i] for i in ids]
        train = self._train[ids[0]].examples(networks[0])
        ensemble = seen(networks, self.masks, self.p)
        return ids, indexed(ensemble, train, self.features, THEIRS, self.ridge)


class Batches:
    """Examples that come batch by batch, each at a position of its own."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._found: dict[int, tuple[Tensor, int]] = {}

    def add(self, batch: Sequence[Tensor], inds: Any) -> None:
        x_B, y_B = batch[0], batch[1]
        first = len(self._found)
        places = range(first, first + len(x_B)) if inds is None else torch.as_tensor(inds).tolist()
        for place, x, y in zip(places, x_B, y_B.tolist(), strict=True):
            self._found[place] = (x, y)

    def examples(self, network: nn.Module) -> Examples:
        """All of them. Raises `UserError` unless they are as many as was said."""
        count = self.size or len(self._found)
        if sorted(self._found) != list(range(count)):
            raise UserError(
                found=f"{len(self._found)} examples",
                wanted=f"all {count} that were announced",
                next_step="hand over every batch of the loader first",
            )
        pairs = [self._found[i] for i in range(count)]
        x_N, y_N = torch.stack([x for x, _ in pairs]), torch.tensor([y for _, y in pairs])
        return loaded(TensorDataset(x_N, y_N), network)


def asked_early(what: str, before: str) -> UserError:
    return UserError(found=f"{what} before {before}", wanted="both in order", next_step=before)


class TRAKAttributor:
    """dattri's `TRAKAttributor` on its `AttributionTask`: cache, then attribute.

    Of the task, the network, its checkpoints and how these are loaded count. What is attributed
    is the margin log p / (1 - p), so `UserError` is raised for a task whose target is neither the
    margin nor the cross-entropy, of which TRAK takes the margin.
    """

    def __init__(
        self,
        task: Any,
        correct_probability_func: Any = None,
        projector_kwargs: Mapping[str, Any] | None = None,
        layer_name: str | Sequence[str] | None = None,
        device: str = "cpu",
        regularization: float = 0.0,
        *,
        features: FeatureSpec | None = None,
        masks: int = 0,
        p: float = 0.1,
    ) -> None:
        if layer_name is not None:
            raise UserError(
                found=f"layer_name = {layer_name!r}",
                wanted="all layers",
                next_step="leave it out",
            )
        self.task = task
        networks = []
        for checkpoint in task.get_checkpoints():
            network = copy.deepcopy(task.get_model())
            networks.append(task.checkpoints_load_func(network, checkpoint).cpu().eval())
        self.ensemble = seen(networks, masks, p)
        # Gradients there are divided by the root of the number of parameters.
        self.ridge = regularization * sum(w.numel() for w in networks[0].parameters())
        self.features = features or FeatureSpec()
        self._index: Index | None = None

    def cache(self, full_train_dataloader: DataLoader) -> None:
        """Featurize and index the training set."""
        self._index = self._indexed(full_train_dataloader)

    def attribute(
        self, test_dataloader: DataLoader, train_dataloader: DataLoader | None = None
    ) -> Tensor:
        """Scores, float32 (N, T)."""
        index = self._index if train_dataloader is None else self._indexed(train_dataloader)
        if index is None:
            raise asked_early("attribute", "cache")
        return torch.from_numpy(index.scores_of(self._examples(test_dataloader))).mT

    def self_attribute(self, train_dataloader: DataLoader | None = None) -> Tensor:
        """Scores of the training examples on themselves, float32 (N,)."""
        index = self._index if train_dataloader is None else self._indexed(train_dataloader)
        if index is None:
            raise asked_early("self_attribute", "cache")
        return torch.from_numpy(index.self_influence())

    def _indexed(self, loader: DataLoader) -> Index:
        return indexed(self.ensemble, self._examples(loader), self.features, THEIRS, self.ridge)

    def _examples(self, loader: DataLoader) -> Examples:
        found = Batches(0)
        for batch in loader:
            found.add(batch, None)
        some = found.examples(self.ensemble.networks[0])
        self._check(some[slice(0, 1)])
        return some

    def _check(self, one: Examples) -> None:
        network = self.ensemble.networks[0]
        weights = {name: w.detach() for name, w in network.named_parameters()}
        theirs = self.task.get_target_func(flatten=False)
        with torch.no_grad():
            logits_1C = network(one.x_N)
            ours = float(margin(logits_1C, one.target_N))
            loss = float(cross_entropy(logits_1C, one.target_N))
            try:
                # dattri maps over examples, so a target sees one without its batch axis.
                found = float(theirs(weights, (one.x_N[0], one.target_N[0])))
            except Exception as error:  # the user's own function may raise anything
                found = math.nan
                cause: Exception | None = error
            else:
                cause = None
        if not any(math.isclose(found, v, rel_tol=1e-3, abs_tol=1e-3) for v in (ours, loss)):
            raise UserError(
                found=f"a target function that gives {found:g} for the first example",
                wanted=f"the margin log p / (1 - p), {ours:g}, or the cross-entropy, {loss:g}",
                next_step="attribute other functions with dattri itself",
            ) from cause


def seen(networks: Sequence[nn.Module], masks: int, p: float) -> Ensemble:
    """The networks as they are, or each through dropout masks."""
    return dropout_ensemble(networks, masks, p) if masks else naive_ensemble(networks)


@cache
def explainer() -> type:
    """Our explainer as a class of quanda's, for its metrics and benchmarks.

    It takes `masks`, `p`, `features` and `estimator` beside quanda's own arguments; several
    `checkpoints` are an ensemble. Needs quanda.
    """
    from quanda.explainers import Explainer

    class Attribution(Explainer):
        """Scores of a dropout ensemble."""

        accepted_tasks = ["image_classification"]

        def __init__(
            self,
            model: nn.Module,
            train_dataset: Any,
            task: Any = "image_classification",
            checkpoints: Any = None,
            checkpoints_load_func: Any = None,
            masks: int = 20,
            p: float = 0.1,
            features: FeatureSpec | None = None,
            estimator: EstimatorSpec | None = None,
            **_: Any,
        ) -> None:
            super().__init__(model, train_dataset, task, checkpoints, checkpoints_load_func)
            networks = []
            for checkpoint in self.checkpoints:
                network = copy.deepcopy(model)
                self.checkpoints_load_func(network, checkpoint)
                networks.append(network.cpu().eval())
            ensemble = seen(networks or [copy.deepcopy(model).cpu().eval()], masks, p)
            train = loaded(train_dataset, ensemble.networks[0])
            self.index = indexed(
                ensemble, train, features or FeatureSpec(), estimator or EstimatorSpec()
            )

        def explain(self, test_data: Tensor, targets: Any) -> Tensor:
            """Scores of the test examples for these classes, (T, N)."""
            pairs = TensorDataset(test_data, torch.as_tensor(targets).long())
            examples = loaded(pairs, self.index.ensemble.networks[0])
            return torch.from_numpy(self.index.scores_of(examples))

        def self_influence(self, batch_size: int = 32) -> Tensor:
            """Self-influence of the training examples, (N,)."""
            return torch.from_numpy(self.index.self_influence())

    return Attribution


@cache
def register() -> type:
    """Make the issue type "influence" known to cleanlab's Datalab.

    After it, `lab.find_issues(issue_types={"influence": {"build": build}})` fills the columns
    `is_influence_issue` (the label is more likely wrong than right) and `influence_score` (one less
    that probability) from a finished build (`Engine.open`), whose training set the lab's data has
    to be; `lab.get_info("influence")` has `given_label` and `predicted_label`. Needs cleanlab.
    """
    import pandas as pd
    from cleanlab.datalab.internal.issue_manager import IssueManager
    from cleanlab.datalab.internal.issue_manager_factory import register as add

    class Influence(IssueManager):
        """Labels that are probably wrong, by what moved the networks while they learned."""

        description = (
            "The networks that were trained on this label, those that were not, and the examples "
            "that speak against it, together say that it is probably wrong."
        )
        issue_name = "influence"

        def find_issues(self, build: Any = None, **_: Any) -> None:
            if build is None or not hasattr(build, "mislabels"):
                raise UserError(
                    found="no build",
                    wanted="a finished build of this engine",
                    next_step='pass issue_types={"influence": {"build": engine.open(ID)}}',
                )
            frame, name_of = build.mislabels().sort_index(), np.array(build.classes)
            # A label is a class's name there, or its number.
            given_N = np.array(self.datalab.class_names)[self.datalab.labels]
            labels_N = build.train_labels_N
            if not any(np.array_equal(given_N, some) for some in (name_of[labels_N], labels_N)):
                raise UserError(
                    found=f"{len(given_N)} labels that are not those of build {build.id}",
                    wanted=f"its {len(frame)} training labels, in its order",
                    next_step="give Datalab the build's training set, or make a build on this data",
                )
            self.issues = pd.DataFrame(
                {
                    "is_influence_issue": frame["score"] > 0.5,
                    self.issue_score_key: 1 - frame["score"],
                }
            ).reset_index(drop=True)
            self.summary = self.make_summary(score=float(self.issues[self.issue_score_key].mean()))
            self.info = {
                "build": build.id,
                "expected": float(frame["score"].sum()),
                "given_label": name_of[labels_N],
                "predicted_label": name_of[frame["suggested_label"].to_numpy(int)],
            }

        def collect_info(self, *_: Any, **__: Any) -> dict:
            return self.info

    add(Influence)
    return Influence
