"""What an ensemble is made of: a product of axes, and the names for the usual ones.

    networks x (fine-tunes | snapshots | adapters) x draws of directions x masks x kernel blocks

A strategy's name only chooses the axes that are not given: ``dropout`` with ``snapshots=5`` is
snapshots x masks. Most are from *Efficient Ensembles* (arXiv 2405.17293) and what its reviewers
asked to see beside them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from .records import BuildSpec, Checkpoint, Member, UserError

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
AXES = ("finetunes", "snapshots", "adapters", "masks", "draws", "blocks")
ABSENT = {"draws": 1, "blocks": 1}  # an axis of one; the others are absent at 0


def axes(strategy: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `BuildSpec`: those given (not None), the strategy's, or absent."""
    chosen = {axis: ABSENT.get(axis, 0) for axis in AXES}
    chosen |= STRATEGIES.get(strategy, {})
    return chosen | {axis: value for axis, value in given.items() if value is not None}


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
            ("--lora-epochs", spec.lora.epochs, 1, 100_000),
            ("--lora-rate", spec.lora.learning_rate, 1e-9, 1e3),
            ("--lora-share", spec.lora.share, 1e-6, 1),
        ]
    return found


def check(spec: BuildSpec) -> None:
    """Raise `UserError` for axes that do not go together."""
    from_weights = [a for a in ("finetunes", "snapshots", "adapters") if getattr(spec, a)]
    if len(from_weights) > 1:
        raise UserError(
            found=f"{' and '.join(from_weights)} in one ensemble",
            wanted="one of finetunes, snapshots and adapters (any of them with masks)",
            next_step=f"leave out --{from_weights[-1]}",
        )
    if spec.snapshots > spec.epochs:
        raise UserError(
            found=f"--snapshots {spec.snapshots} of {spec.epochs} epochs",
            wanted="at most one snapshot an epoch",
            next_step="lower --snapshots or raise --epochs",
        )
    if spec.draws > 1 and spec.features.basis == "own":
        raise UserError(
            found=f"--draws {spec.draws} of the data's own basis, which is the same each time",
            wanted="random directions",
            next_step="add --basis random",
        )


def members(spec: BuildSpec, checkpoints: Sequence[Checkpoint]) -> list[Member]:
    """The ensemble, the members of one network side by side."""
    masks: Sequence[int | None] = range(spec.masks)
    if spec.forward_only or not spec.masks:
        masks = (None,)
    return [
        Member(
            checkpoint=checkpoint, **under(spec, mask), draw=draw, block=block, blocks=spec.blocks
        )
        for checkpoint in checkpoints
        for draw in range(spec.draws)
        for mask in masks
        for block in range(spec.blocks)
    ]


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


def words(spec: BuildSpec) -> str:
    """The ensemble in a few words, as in "5 networks x 20 masks"."""
    parts = [f"{spec.models} network{'s' if spec.models > 1 else ''}"]
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
