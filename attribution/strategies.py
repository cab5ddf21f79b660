"""What an ensemble is made of: a product of axes, and the names for the usual ones.

    networks x (fine-tunes | snapshots | adapters) x draws of directions x masks x kernel blocks

A strategy's name only chooses the axes that are not given: ``dropout`` with ``snapshots=5`` is
snapshots x masks. Most are from *Efficient Ensembles* (arXiv 2405.17293) and what its reviewers
asked to see beside them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .records import LATER, LOSS, BuildSpec, Checkpoint, Member, UserError, known

STRATEGIES: Mapping[str, Mapping[str, Any]] = {
    "naive": {},  # independent networks
    "dropout": {"masks": 20},  # section 3.2
    "forward": {"masks": 20, "forward_only": True},  # section 3.3, its last part: masks for q only
    "lora": {"adapters": 5},  # section 3.3
    "snapshots": {"snapshots": 5},
    "finetunes": {"finetunes": 5},  # GEX
    "draws": {"draws": 5},  # the control: other random directions, no mask
    "blocks": {"blocks": 4},  # of the kernel, from one backward pass (TRAK with block kernels)
}
STUDIED = ("naive", "dropout", "forward", "snapshots", "finetunes", "lora")
VIEWS = {
    "finetunes": "fine-tunes",
    "snapshots": "snapshots",
    "adapters": "adapters",
    "masks": "dropout masks",
    "draws": "draws of directions",
    "blocks": "blocks of the kernel",
}  # what an axis adds to a network
AXES = tuple(VIEWS)
ABSENT = {"draws": 1, "blocks": 1}  # an axis of one; the others are absent at 0
# The recipe of builds older than these fields, and still that of all models but resnet9.
ONE_LOW_RATE: Mapping[str, Any] = {name: LATER[name] for name in ("rate", "schedule", "decay")}
ALIKE = ("masks", "adapters", "finetunes", "draws")  # views that differ by chance alone


def used(spec: BuildSpec, among: Sequence[str] = AXES) -> list[str]:
    """The axes along which an ensemble has more than the network itself."""
    return [axis for axis in among if getattr(spec, axis) > ABSENT.get(axis, 0)]


def axes(strategy: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `BuildSpec`: those given (not None), the strategy's, or absent."""
    chosen: dict[str, Any] = {axis: ABSENT.get(axis, 0) for axis in AXES}
    chosen |= {"forward_only": False}
    chosen |= STRATEGIES.get(strategy, {})
    return chosen | {axis: value for axis, value in given.items() if value is not None}


def usual_power(estimator: str, masks: int, q: str) -> float:
    """The power of q that did best on retrained networks (docs/LOG.md)."""
    if estimator in LOSS:  # gradients of the loss carry their own 1 - p
        return 0.0
    if q == "training":
        return 0.75
    return 0.5 if masks else 0.25


def usual_q(forward_only: bool, watched: bool = True) -> str:
    """What q is averaged over: masks for q alone change only that of the members.

    And so it is where nobody watched the networks while they were trained.
    """
    return BuildSpec().estimator.q if watched and not forward_only else "members"


def usual_training(model: str) -> dict[str, Any]:
    """Rate, schedule and decay of a training by our recipe, as `BuildSpec` names them.

    A deep network of our own starts high and ends at zero: within the same epochs it is right much
    more often (docs/LOG.md, "A rate that falls"). Small ones, and networks that may come with
    weights of their own, keep one low rate.
    """
    if model == "resnet9":
        return {"rate": 0.05, "schedule": "linear", "decay": 5e-4}
    return dict(ONE_LOW_RATE)


def training(spec: BuildSpec) -> dict[str, Any]:
    """The same of a build: what it says itself, and what is usual for its model."""
    usual = usual_training(spec.model)
    own = {name: getattr(spec, name) for name in usual}
    return usual | {name: value for name, value in own.items() if value is not None}


def whole(spec: BuildSpec) -> BuildSpec:
    """`spec` with nothing left to what is usual, as ids and summaries have it."""
    return replace(spec, **training(spec))


def watched(spec: BuildSpec) -> bool:
    """Whether the networks say what they believe while they are trained, whoever trains them."""
    return not (spec.weights or spec.train)


def rivals(spec: BuildSpec) -> list[BuildSpec]:
    """The other strategies on the same data and networks, each with its usual axes.

    And with the q of `spec`, unless that has one of the members because its masks are for q only.
    """
    q_of_others = usual_q(False, watched(spec)) if spec.forward_only else spec.estimator.q
    found = []
    for strategy in STUDIED:
        if strategy == "snapshots" and (spec.weights or spec.train):
            continue  # nothing was kept along the way
        chosen = axes(strategy, {})
        chosen["snapshots"] = min(chosen["snapshots"], spec.epochs)
        q = "members" if chosen["forward_only"] else q_of_others
        power = usual_power(spec.estimator.name, chosen["masks"], q)
        estimator = replace(spec.estimator, q=q, q_power=power)
        if strategy != spec.strategy:
            found.append(replace(spec, strategy=strategy, estimator=estimator, **chosen))
    return found


def limits(spec: BuildSpec) -> list[tuple[str, float, float, float]]:
    """Option, value, least and most of every axis in use."""
    wanted = STRATEGIES[spec.strategy]
    found: list[tuple[str, float, float, float]] = [
        (f"--{axis}", getattr(spec, axis), max(ABSENT.get(axis, 0), int(axis in wanted)), 10_000)
        for axis in AXES
    ]
    if spec.masks:
        found.append(("--dropout", spec.p, 1e-6, 0.999))
    if spec.finetunes:
        found.append(("--finetune-epochs", spec.finetune_epochs, 1, 100_000))
    if spec.adapters:
        found += [
            ("--rank", spec.lora.rank, 1, 100_000),
            ("--alpha", spec.lora.alpha, 1, 1_000_000),
            ("--lora-epochs", spec.lora.epochs, 1, 100_000),
            ("--lora-rate", spec.lora.learning_rate, 1e-9, 1e3),
            ("--lora-share", spec.lora.share, 1e-6, 1),
        ]
    return found


def check(spec: BuildSpec) -> None:
    """Raise `UserError` for axes that do not go together."""
    if spec.strategy == "naive" and used(spec):
        axis = used(spec)[0]
        raise UserError(
            found=f"--strategy naive with {getattr(spec, axis)} {axis}",
            wanted="independent networks only",
            next_step=f"leave out --{axis}, or choose another --strategy",
        )
    from_weights = used(spec, ("finetunes", "snapshots", "adapters"))
    if len(from_weights) > 1:
        raise UserError(
            found=f"{' and '.join(from_weights)} in one ensemble",
            wanted="one of finetunes, snapshots and adapters (any of them with masks)",
            next_step=f"leave out --{from_weights[-1]}",
        )
    if spec.strategy == "forward" and not spec.forward_only:
        raise UserError(
            found="--strategy forward with masks that are members",
            wanted="masks for q only",
            next_step="give BuildSpec(forward_only=True), or choose another --strategy",
        )
    if spec.forward_only and not spec.masks:
        raise UserError(
            found="0 masks for q only",
            wanted="at least one, of which q is the mean",
            next_step="raise --masks, or choose another --strategy",
        )
    if spec.forward_only and spec.estimator.q == "training":
        raise UserError(
            found="--q training with masks for q only",
            wanted="q of the members, which is all that these masks change",
            next_step="give --q members",
        )
    if spec.snapshots > spec.epochs:
        raise UserError(
            found=f"--snapshots {spec.snapshots} of {spec.epochs} epochs",
            wanted="at most one snapshot an epoch",
            next_step="lower --snapshots or raise --epochs",
        )
    if (spec.draws > 1 or spec.redraw) and spec.features.basis == "own":
        option = f"--draws {spec.draws}" if spec.draws > 1 else "--redraw"
        raise UserError(
            found=f"{option} of the data's own basis, which is the same each time",
            wanted="random directions",
            next_step="add --basis random",
        )


def check_networks(spec: BuildSpec) -> None:
    """Raise `UserError` for networks that cannot be had as asked."""

    def refused(found: str, wanted: str, next_step: str) -> UserError:
        return UserError(found=found, wanted=wanted, next_step=next_step)

    if spec.train not in ("", "none") and ".py:" not in spec.train:
        known("training", spec.train, ("FILE.py:FUNCTION", "none"), "--train")
    if not spec.weights:
        if spec.train == "none":
            raise refused(
                "--train none without weights", "networks to attribute", "add --checkpoint FILE"
            )
        if spec.train and (spec.snapshots or spec.freeze):
            raise refused(
                f"--{'snapshots' if spec.snapshots else 'freeze'} of your own training",
                "what our recipe trains",
                "leave it out, or leave out --train",
            )
        return
    if len(set(spec.weights)) < len(spec.weights):
        raise refused("the same weights given twice", "networks that differ", "give each file once")
    if len(spec.weights) != spec.models:
        raise refused(
            f"{spec.models} networks with weights of {len(spec.weights)}",
            "as many as there are files",
            "leave out --models",
        )
    if spec.snapshots:
        raise refused(
            "--snapshots of networks that were not trained here",
            "one of the other strategies",
            "choose another --strategy",
        )
    if spec.estimator.q == "training":
        raise refused(
            "--q training of networks that were not trained here",
            "q of the members, as nothing is known of their training",
            "give --q members",
        )


def members(spec: BuildSpec, checkpoints: Sequence[Checkpoint]) -> list[Member]:
    """The ensemble, the members of one network side by side."""
    masks: Sequence[int | None] = range(spec.masks)
    if spec.forward_only or not spec.masks:
        masks = (None,)
    found = [
        Member(
            checkpoint=checkpoint, **under(spec, mask), draw=draw, block=block, blocks=spec.blocks
        )
        for checkpoint in checkpoints
        for draw in range(spec.draws)
        for mask in masks
        for block in range(spec.blocks)
    ]
    if spec.redraw:  # by the views that share features: blocks of one are one
        return [replace(member, draw=j // spec.blocks) for j, member in enumerate(found)]
    return found


def beliefs(spec: BuildSpec, checkpoints: Sequence[Checkpoint]) -> list[Member]:
    """The members whose q is averaged in a forward-only ensemble: every mask."""
    return [
        Member(checkpoint=checkpoint, **under(spec, mask))
        for checkpoint in checkpoints
        for mask in range(spec.masks)
    ]


def under(spec: BuildSpec, mask: int | None) -> dict[str, Any]:
    if mask is None:
        return {}
    return {"mask": mask, "p": spec.p, "shared": spec.shared_masks}


def kind(spec: BuildSpec) -> str:
    """What the members of one network are, for an error bar to say."""
    names = used(spec)
    return VIEWS[names[0]] if len(names) == 1 else "views"


def growing(spec: BuildSpec) -> str | None:
    """The axis that views are added to: one whose views are alike, so that noise averages out.

    None where there is none: more snapshots or blocks are other ones, masks for q no members.
    """
    names = used(spec, ALIKE)
    if spec.forward_only:
        names.remove("masks")
    return names[0] if names else None


def views(spec: BuildSpec) -> int:
    """Members of each network."""
    weights = spec.finetunes or spec.adapters or spec.snapshots or 1
    return len(members(spec, [Checkpoint(run_id="")] * weights))


def resized(spec: BuildSpec, networks: int, count: int) -> BuildSpec:
    """The same ensemble of so many networks with `count` views of each, by its `growing` axis."""
    axis, spec = growing(spec), replace(spec, weights=spec.weights[:networks])
    if axis is None:
        return replace(spec, models=networks)
    of_each = views(spec) // getattr(spec, axis)
    return replace(spec, models=networks, **{axis: count // of_each})


def options(spec: BuildSpec) -> list[str]:
    """What `attribution build` takes to make `spec`."""
    blank, spec = BuildSpec(), whole(spec)
    usual = axes(spec.strategy, {}) | {growing(spec): None}  # which is always said
    recipe = usual_training(spec.model)
    given: list[tuple[str, Any, Any]] = [
        ("data", spec.data.pixels or spec.data.name, None),
        ("noise", spec.data.noise, blank.data.noise),
        ("noise-kind", spec.data.noise_kind, blank.data.noise_kind),
        ("noise-seed", spec.data.noise_seed, blank.data.noise_seed),
        ("revision", spec.data.revision, blank.data.revision),
        ("model", spec.model, None),
        ("width", spec.width, blank.width),
        *(("checkpoint", weights_id, None) for weights_id in spec.weights),
        ("start", spec.start, blank.start),
        ("preprocess", spec.preprocess, blank.preprocess),
        ("train", spec.train, blank.train),
        ("learning-rate", spec.rate, recipe["rate"]),
        ("schedule", spec.schedule, recipe["schedule"]),
        ("weight-decay", spec.decay, recipe["decay"]),
        ("batch", spec.batch_size, blank.batch_size),
        ("epochs", spec.epochs, blank.epochs),
        ("strategy", spec.strategy, None),
        ("models", spec.models, len(spec.weights) or None),
        *((axis, getattr(spec, axis), usual[axis]) for axis in AXES),
        ("dropout", spec.p, blank.p),
        ("finetune-epochs", spec.finetune_epochs, blank.finetune_epochs),
        ("rank", spec.lora.rank, blank.lora.rank),
        ("alpha", spec.lora.alpha, blank.lora.alpha),
        ("targets", ",".join(spec.lora.targets), ""),
        ("lora-epochs", spec.lora.epochs, blank.lora.epochs),
        ("lora-rate", spec.lora.learning_rate, blank.lora.learning_rate),
        ("lora-share", spec.lora.share, blank.lora.share),
        ("estimator", spec.estimator.name, blank.estimator.name),
        ("basis", spec.features.basis, blank.features.basis),
        ("dims", dims(spec), dims(blank)),
        ("precision", spec.features.precision, blank.features.precision),
        ("damping", spec.estimator.damping, blank.estimator.damping),
        ("q", spec.estimator.q, usual_q(spec.forward_only, watched(spec))),
        ("q-power", spec.estimator.q_power, None),
        ("index-dims", spec.index_dims, blank.index_dims),
        ("index", spec.index, blank.index),
        ("index-recall", spec.index_recall, blank.index_recall),
        ("index-memory", spec.index_memory, blank.index_memory),
        ("seed", spec.seed, blank.seed),
    ]
    found = [word for name, value, left in given if value != left for word in (f"--{name}", value)]
    flags = {
        "--relative": spec.estimator.relative,
        "--shared-masks": spec.shared_masks,
        "--redraw": spec.redraw,
        "--freeze": spec.freeze,
    }
    found += [flag for flag, wanted in flags.items() if wanted]
    return [exactly(word) if isinstance(word, float) else str(word) for word in found]


def exactly(number: float) -> str:
    """A number as people write it, or with all of its digits where that is another one."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def dims(spec: BuildSpec) -> str:
    return f"{spec.features.ka}x{spec.features.kg}"


def words(spec: BuildSpec) -> str:
    """The ensemble in a few words, as in "5 networks x 20 masks"."""
    whose = "given " if spec.weights else ""
    parts = [f"{spec.models} {whose}network{'s' if spec.models > 1 else ''}"]
    if spec.finetunes:
        parts.append(f"{spec.finetunes} fine-tunes")
    if spec.snapshots:
        parts.append(f"{spec.snapshots} snapshots")
    if spec.adapters:
        parts.append(f"{spec.adapters} adapters")
    if spec.draws > 1:
        parts.append(f"{spec.draws} draws")
    if spec.masks:
        kind = " shared" if spec.shared_masks else ""
        parts.append(f"{spec.masks}{kind} masks{' for q' if spec.forward_only else ''}")
    if spec.blocks > 1:
        parts.append(f"{spec.blocks} blocks")
    return " × ".join(parts)
