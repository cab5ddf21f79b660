"""The command line: ``python -m attribution COMMAND``. Its help text is its documentation."""

import json
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from . import quantities, strategies
from .records import (
    BuildSpec,
    DataSpec,
    EstimatorSpec,
    FeatureSpec,
    Hit,
    LoraSpec,
    ReadSpec,
    Report,
    UserError,
    known,
    within,
)
from .remote import VARIABLE

app = typer.Typer(
    name="attribution",
    help="Find the training examples behind every prediction, and the labels that are wrong.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
# typer keeps the base of its usage errors to itself.
USAGE = cast(type[typer.BadParameter], typer.BadParameter.__base__)
errors = Console(stderr=True)
out = Console(markup=False)  # a class may be called [b]


@app.callback()
def before_any(
    remote: Annotated[
        str,
        typer.Option(
            envvar=VARIABLE,
            help="Object storage that the cache is a mirror of: s3://BUCKET/PREFIX or another URL "
            "of fsspec's.",
        ),
    ] = "",
) -> None:
    """What goes before any command."""
    os.environ[VARIABLE] = remote  # for the app and for jobs, which are processes of their own


Cache = Annotated[Path, typer.Option("--cache", help="Folder of computed artifacts.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output, logs on error.")
]
BuildId = Annotated[str, typer.Argument(help="A build's id; `list` shows them.")]
Workspace = Annotated[
    Path | None, typer.Option(help="Folder of decisions.sqlite; the cache's parent if left out.")
]
CACHE = Path("cache")
LEFT = re.compile(r"\.(\d+)(\.before)?\.unfinished")  # how a file ends that is being written
DEFAULT = BuildSpec()
BLANK = ReadSpec()
Size = Annotated[
    int,
    typer.Option(help="Pixels a side that your images are brought to; 0: the median, 8 to 64."),
]
TestShare = Annotated[
    float, typer.Option(help="Share of each class to test on, where your data has no test half.")
]
SplitSeed = Annotated[int, typer.Option(help="Seed of that split.")]
ImageColumn = Annotated[str, typer.Option(help="Column of the images, where a table has several.")]
LabelColumn = Annotated[str, typer.Option(help="Column of the labels, where a table has several.")]
Anywhere = Annotated[
    bool, typer.Option("--anywhere", help="A manifest may name files outside of its folder.")
]
Root = Annotated[
    str, typer.Option(help="Folder where torchvision's data sets are, or are downloaded to.")
]


@app.command()
def build(
    data: Annotated[
        str,
        typer.Option(
            help="mnist5k; a folder (CLASS/..., train/CLASS/..., Parquet, MNIST's files), a "
            ".parquet, a .csv of paths and labels; hf:NAME or torchvision:NAME."
        ),
    ] = DEFAULT.data.name,
    size: Size = BLANK.size,
    test_share: TestShare = BLANK.test_share,
    split_seed: SplitSeed = BLANK.split_seed,
    image_column: ImageColumn = BLANK.image_column,
    label_column: LabelColumn = BLANK.label_column,
    anywhere: Anywhere = BLANK.anywhere,
    root: Root = BLANK.root,
    noise: Annotated[
        float, typer.Option(help="Share of training labels to flip on purpose.")
    ] = DEFAULT.data.noise,
    noise_kind: Annotated[
        str, typer.Option(help="uniform: to any other class; class: to the next classes.")
    ] = DEFAULT.data.noise_kind,
    noise_seed: Annotated[int, typer.Option(help="Seed of the flips.")] = DEFAULT.data.noise_seed,
    revision: Annotated[
        str, typer.Option(help="Decisions applied to the data; `apply` names them.")
    ] = DEFAULT.data.revision,
    model: Annotated[
        str,
        typer.Option(
            help="mlp, cnn, resnet9, timm:NAME, torchvision:NAME or FILE.py:FUNCTION (runs it)."
        ),
    ] = DEFAULT.model,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            help="A file with a network's weights (safetensors, or a state dict of torch.save), or "
            "the id of some in the cache; nothing is trained. Once for each network."
        ),
    ] = None,
    pretrained: Annotated[
        bool,
        typer.Option(
            "--pretrained", help="Start from the library's own weights of timm: or torchvision:."
        ),
    ] = False,
    start: Annotated[
        str, typer.Option(help="A file (or id) of weights to start training from.")
    ] = DEFAULT.start,
    freeze: Annotated[bool, typer.Option("--freeze", help="Train only the last layer.")] = False,
    preprocess: Annotated[
        str | None,
        typer.Option(
            help="How images become input: library (as --pretrained has it), FILE.py:FUNCTION "
            "(runs it on uint8 batches); left out: by the training pixels' mean and deviation."
        ),
    ] = None,
    train: Annotated[
        str,
        typer.Option(
            help="FILE.py:FUNCTION that trains networks, also again (runs it; its contract is in "
            "`attribution.train.by_own`); none: nothing is trained again."
        ),
    ] = DEFAULT.train,
    strategy: Annotated[
        str,
        typer.Option(
            help="naive, dropout, forward (masks for q), lora, snapshots, finetunes, draws, blocks."
        ),
    ] = DEFAULT.strategy,
    models: Annotated[
        int | None,
        typer.Option(help=f"Networks trained; {DEFAULT.models} if left out.", show_default=False),
    ] = None,
    masks: Annotated[int | None, typer.Option(help="Dropout masks of each network.")] = None,
    dropout: Annotated[float, typer.Option(help="Share of units that a mask drops.")] = DEFAULT.p,
    shared_masks: Annotated[
        bool, typer.Option("--shared-masks", help="One mask a member, not one an example.")
    ] = False,
    adapters: Annotated[int | None, typer.Option(help="LoRA adapters on each network.")] = None,
    rank: Annotated[int, typer.Option(help="Rank of the adapters.")] = DEFAULT.lora.rank,
    alpha: Annotated[int, typer.Option(help="Scale of the adapters.")] = DEFAULT.lora.alpha,
    targets: Annotated[
        str, typer.Option(help="Layers with adapters, by name and comma; none: all.")
    ] = "",
    lora_epochs: Annotated[
        int, typer.Option(help="Epochs an adapter is fitted.")
    ] = DEFAULT.lora.epochs,
    lora_rate: Annotated[
        float, typer.Option(help="Its learning rate.")
    ] = DEFAULT.lora.learning_rate,
    lora_share: Annotated[
        float, typer.Option(help="Share of the training set an adapter sees.")
    ] = DEFAULT.lora.share,
    snapshots: Annotated[
        int | None, typer.Option(help="Weights kept along each training run.")
    ] = None,
    finetunes: Annotated[int | None, typer.Option(help="Short runs on from each network.")] = None,
    finetune_epochs: Annotated[
        int, typer.Option(help="Epochs of these.")
    ] = DEFAULT.finetune_epochs,
    draws: Annotated[
        int | None, typer.Option(help="Draws of random directions (--basis random).")
    ] = None,
    redraw: Annotated[
        bool, typer.Option("--redraw", help="Random directions of its own for each member.")
    ] = False,
    blocks: Annotated[int | None, typer.Option(help="Blocks of the kernel, each a member.")] = None,
    estimator: Annotated[
        str, typer.Option(help="trak, graddot, gradcos, ekfac or tracin.")
    ] = DEFAULT.estimator.name,
    basis: Annotated[
        str,
        typer.Option(help="Where gradients are projected: own (of the data) or random directions."),
    ] = DEFAULT.features.basis,
    dims: Annotated[
        str, typer.Option(help="Directions kept of each layer's input x output gradient.")
    ] = f"{DEFAULT.features.ka}x{DEFAULT.features.kg}",
    damping: Annotated[
        float, typer.Option(help="Damping, in units of the kernel's mean diagonal.")
    ] = DEFAULT.estimator.damping,
    q: Annotated[
        str | None,
        typer.Option(
            help="What 1 - p is averaged over: members (left out, for forward) or training, its "
            "epochs (left out, for all others)."
        ),
    ] = None,
    q_power: Annotated[
        float | None,
        typer.Option(
            help="Power of that mean; the paper has 1. Left out: 0 for ekfac and tracin, 0.75 for "
            "q of training, else 0.5 with masks and 0.25 without."
        ),
    ] = None,
    relative: Annotated[
        bool, typer.Option("--relative", help="Divide by the root of self-influence (RelatIF).")
    ] = False,
    precision: Annotated[
        str,
        typer.Option(
            help="Of forward and backward passes: float32, or bfloat16, which is faster where the "
            "processor has AMX."
        ),
    ] = DEFAULT.features.precision,
    index_dims: Annotated[
        int, typer.Option(help="Dimensions of the compressed index.")
    ] = DEFAULT.index_dims,
    index: Annotated[
        str,
        typer.Option(
            help="How rows are searched: all of them (exact, half, sq8, sq6), or a shortlist by a "
            "code (sq4, pq, ivf). auto: by size, memory and recall."
        ),
    ] = DEFAULT.index,
    index_recall: Annotated[
        float,
        typer.Option(help="Share of the exact order's first and last 20 that a search must find."),
    ] = DEFAULT.index_recall,
    index_memory: Annotated[
        float, typer.Option(help="GB of memory that the codes of rows may take.")
    ] = DEFAULT.index_memory,
    epochs: Annotated[int, typer.Option(help="Training epochs.")] = DEFAULT.epochs,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Of training, at its start. Left out: 0.05 for resnet9, else 0.01."),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="How it goes on: constant, or linear: down to zero. Left out: linear for resnet9."
        ),
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Of training. Left out: 0.0005 for resnet9, else 0.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Images a step of training.")] = DEFAULT.batch_size,
    width: Annotated[float, typer.Option(help="Factor on the layers' widths.")] = DEFAULT.width,
    seed: Annotated[int, typer.Option(help="Seed of the networks.")] = DEFAULT.seed,
    threads: Annotated[
        int,
        typer.Option(help="Threads to compute on; 0: as OMP_NUM_THREADS says, else one a core."),
    ] = 0,
    estimate: Annotated[
        bool,
        typer.Option("--estimate", help="Only say what it will take: seconds and bytes, measured."),
    ] = False,
    workers: Annotated[
        str,
        typer.Option(
            "--engine",
            help="Who does the work: local (this process), or ray: a cluster, the result the same.",
        ),
    ] = "local",
    address: Annotated[
        str,
        typer.Option(
            help="HOST:PORT of a Ray cluster, asked from one of its nodes, which share the folder "
            "of the cache. Left out: one on this machine.",
            show_default=False,
        ),
    ] = "",
    cache: Cache = CACHE,
    as_json: AsJson = False,
    job: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Train the networks, featurize the members, fit the index. A second time it is all done.

    A strategy says what views of each network are the members: none but itself (naive), dropout
    masks, LoRA adapters, snapshots along its training, short fine-tunes, draws of random directions
    or blocks of the kernel. Any of these counts adds to what the strategy has.
    """
    known("strategy", strategy, strategies.STRATEGIES, "--strategy")
    from . import jobs
    from .rows import told

    within([("--threads", threads, 0, 1024)])
    if threads:
        jobs.bound(threads)
    axes = strategies.axes(
        strategy,
        {
            "masks": masks,
            "adapters": adapters,
            "snapshots": snapshots,
            "finetunes": finetunes,
            "draws": draws,
            "blocks": blocks,
        },
    )
    given = list(checkpoint or ())
    if q is None:
        q = strategies.usual_q(axes["forward_only"], watched=not (given or train))
    if q_power is None:
        q_power = strategies.usual_power(estimator, axes["masks"], q)
    how = ReadSpec(
        size=size,
        test_share=test_share,
        split_seed=split_seed,
        image_column=image_column,
        label_column=label_column,
        anywhere=anywhere,
        root=root,
    )
    spec = BuildSpec(
        data=DataSpec(noise=noise, noise_kind=noise_kind, noise_seed=noise_seed, revision=revision),
        model=model,
        width=width,
        freeze=freeze,
        preprocess=preprocess or ("library" if pretrained else ""),
        train=train,
        epochs=epochs,
        rate=learning_rate,
        schedule=schedule,
        decay=weight_decay,
        batch_size=batch,
        strategy=strategy,
        models=models if models is not None else len(given) or DEFAULT.models,
        p=dropout,
        shared_masks=shared_masks,
        redraw=redraw,
        finetune_epochs=finetune_epochs,
        lora=LoraSpec(
            rank=rank,
            alpha=alpha,
            targets=tuple(t.strip() for t in targets.split(",") if t.strip()),
            epochs=lora_epochs,
            learning_rate=lora_rate,
            share=lora_share,
        ),
        **axes,
        features=FeatureSpec(basis=basis, **parsed_dims(dims), seed=0, precision=precision),
        estimator=EstimatorSpec(
            name=estimator, damping=damping, q=q, q_power=q_power, relative=relative
        ),
        index_dims=index_dims,
        index=index,
        index_recall=index_recall,
        index_memory=index_memory,
        seed=seed,
    )
    engine = open_engine(cache)
    with (
        progress() as report,
        reported(cache, job, report) as (report, finish),
        cluster(workers, address, cache) as who,
    ):
        # Before a large folder is read; given weights are still to be counted among the settings.
        engine.check(replace(spec, train="") if given else spec)
        named = engine.read(data, how, report)
        spec = replace(spec, data=replace(spec.data, name=named.name, pixels=named.pixels))
        spec = engine.brought(spec, given, start, pretrained)
        if estimate:
            return show_estimate(engine.estimate(spec), as_json)
        already = engine.finished(spec)
        summary = engine.build(spec, report, cluster=who)
        finish(state="done", build=summary["build"])
    if as_json:
        keys = ("build", "seconds", "bytes", "train", "test", "accuracy", "coverage")
        found = {k: summary[k] for k in keys}
        found |= {"threads": summary.get("threads"), "search": summary.get("search", {})}
        return show_json(found | {"already_done": already})
    if already:
        out.print(f"Build {summary['build']} was already done: nothing to do.")
        return None
    parts = stages({name: s for name, s in summary["seconds"].items() if name != "query"})
    count = summary.get("threads")  # of an older build it is not known
    parts += f"; {count} thread{'s' if count > 1 else ''}" if count else ""
    accuracy = summary["accuracy"]
    right = "test images without labels" if accuracy is None else f"test accuracy {accuracy:.3f}"
    out.print(
        f"Build {summary['build']}: {summary['members']} members, {right}, "
        f"{summary['coverage']:.1%} of the parameters covered ({parts})."
    )
    say(told(summary["search"]))
    if summary["left_out"]:
        out.print(f"Not covered: {', '.join(summary['left_out'])}.")
    if summary["fallback"]:
        out.print(f"By the slower fallback: {', '.join(summary['fallback'])}.")
    if summary.get("fresh"):
        out.print(
            "Began afresh, because the weights were of another number of classes: "
            f"{', '.join(summary['fresh'])}."
        )
    if given and not spec.preprocess:
        out.print(
            "Images were normalised by the training pixels' mean and deviation; if the networks "
            "were trained otherwise, say how with --preprocess."
        )
    return None


def stages(seconds: dict[str, float]) -> str:
    """What each stage takes or took."""
    return ", ".join(
        f"{name} {s:.1f} s" if s < 10 else f"{name} {quantities.span(s)}"
        for name, s in seconds.items()
    )


def show_estimate(found: Any, as_json: bool) -> None:
    """Print what a build will take; raise where the disk has not the room."""
    if as_json:
        told = {"seconds": found.seconds, "bytes": found.bytes}
        show_json({**told, "scratch": found.scratch, "free": found.free})
    else:
        out.print(
            f"About {quantities.span(found.time)} ({stages(found.seconds)}) and "
            f"{quantities.size(found.room)}, and {quantities.size(found.scratch)} more while it "
            f"runs, of the {quantities.size(found.free)} that are free, on this machine as busy as "
            "it is now."
        )
    found.check()


@app.command(name="data")
def describe(
    source: Annotated[str, typer.Argument(help="What --data of `build` takes.")],
    size: Size = BLANK.size,
    test_share: TestShare = BLANK.test_share,
    split_seed: SplitSeed = BLANK.split_seed,
    image_column: ImageColumn = BLANK.image_column,
    label_column: LabelColumn = BLANK.label_column,
    anywhere: Anywhere = BLANK.anywhere,
    root: Root = BLANK.root,
    cache: Cache = CACHE,
    as_json: AsJson = False,
) -> None:
    """Describe a data set of your own, and how to build on it.

    Its classes and sizes, what cannot be read, images that leak into the test half.
    """
    from .proposal import proposed

    how = ReadSpec(
        size=size,
        test_share=test_share,
        split_seed=split_seed,
        image_column=image_column,
        label_column=label_column,
        anywhere=anywhere,
        root=root,
    )
    with progress() as report:
        found = open_engine(cache).described(source, how, report)
    usual = proposed(found)
    # What was read in another way than the usual is found again by its id.
    build = ["build", "--data", source if how == BLANK else found["data"], *usual.options]
    if cache != CACHE:
        build += ["--cache", str(cache)]
    if as_json:
        return show_json(found | {"proposal": {"why": usual.why, "command": build}})
    sides = found["sides"]
    colour = "colour" if found["channels"] == 3 else "grey"
    say(
        f"{found['name']} ({found['kind']}, id {found['data']}): {found['train']:,} training and "
        f"{found['test']:,} test images of {len(found['classes'])} classes. They are "
        f"{' to '.join('{} x {}'.format(*sides[end]) for end in ('least', 'most'))} pixels, and "
        f"become {found['size']} x {found['size']}, {colour}."
    )
    if not found["labelled"]:
        say(
            "The test images have no labels: each is explained for what it is called, and accuracy "
            "cannot be told."
        )
    table = Table("class", "train", "test")
    for name, count in list(found["classes"].items())[:SHOWN]:
        table.add_row(printable(name), f"{count['train']:,}", f"{count['test']:,}")
    out.print(table)
    if len(found["classes"]) > SHOWN:
        say(f"... and {len(found['classes']) - SHOWN} more classes.")
    for note in found["notes"]:
        say(note)
    listed(
        "Set aside, because they cannot be used: {}",
        [f"{one['path']}: {one['reason']}" for one in found["aside"]],
    )
    listed(
        "Test images that are in the training half too, so the accuracy will look better than it "
        "is: {}"
        if found["labelled"]
        else "Test images that are in the training half too: {}",
        [
            f"{one['test']} = {one['train']}"
            + (", under another label" if one["same_label"] is False else "")
            for one in found["leaks"]
        ],
    )
    listed(
        "The same training image under two labels, one of which is wrong: {}",
        [
            f"{one['first']} ({one['labels'][0]}) = {one['second']} ({one['labels'][1]})"
            for one in found["clashes"]
        ],
    )
    if found["repeats"]:
        say(f"The same training image again, under the same label: {found['repeats']:,}.")
    if not found["near"]:
        say("There are too many images to look for those that are only nearly the same.")
    say(usual.why)
    say(f"python -m attribution {shlex.join(build)}")
    return None


SHOWN = 20  # lines of a list; --json has them all


def listed(title: str, lines: list[str]) -> None:
    """A count and the first of what it counts; nothing for nothing."""
    if not lines:
        return
    say(f"{title.format(f'{len(lines):,}')}.")
    for line in lines[:SHOWN]:
        say(f"  {line}")
    if len(lines) > SHOWN:
        say(f"  ... and {len(lines) - SHOWN:,} more; --json lists all.")


def say(text: str) -> None:
    """Print text that holds a stranger's names."""
    out.print(printable(text), highlight=False, soft_wrap=True)


def printable(text: str) -> str:
    """Without what would steer a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


@app.command(name="list")
def list_builds(workspace: Workspace = None, cache: Cache = CACHE, as_json: AsJson = False) -> None:
    """The finished builds, newest first; accuracy also with the decisions on test labels."""
    engine = open_engine(cache, workspace)
    found = engine.builds()
    told = engine.accuracies(found)
    if as_json:
        return show_json([b | restated(told[b["build"]]) for b in found])
    if not found:
        say(f"No builds in {cache}: make one with `python -m attribution build`.")
        return None
    said = [what for what in ("name", "note") if any(b[what] for b in found)]
    table = Table(
        "build", *said, "data", "noise", "network", "ensemble", "estimator", "accuracy", "made"
    )
    for b in found:
        table.add_row(
            b["build"], *(printable(b[what]) for what in said), b["data"], f"{b['noise']:.0%}",
            b["model"], b["ensemble"], b["estimator"], told[b["build"]].words, b["created"],
        )  # fmt: skip
    out.print(table)
    return None


@app.command()
def rename(
    build_id: BuildId,
    name: Annotated[str, typer.Argument(help='What to call it; "" takes its name away.')],
    workspace: Workspace = None,
    cache: Cache = CACHE,
    as_json: AsJson = False,
) -> None:
    """Give a build a name, which `list` and the app show; its id stays what it is."""
    remember(open_engine(cache, workspace), build_id, as_json, name=name)


@app.command()
def note(
    build_id: BuildId,
    text: Annotated[str, typer.Argument(help='What to remember of it; "" takes it away.')],
    workspace: Workspace = None,
    cache: Cache = CACHE,
    as_json: AsJson = False,
) -> None:
    """Write down what to remember of a build."""
    remember(open_engine(cache, workspace), build_id, as_json, note=text)


def remember(engine: Any, build_id: str, as_json: bool, **what: str) -> None:
    engine.say(build_id, **what)
    now = asdict(engine.notes.of(build_id))
    if as_json:
        return show_json({"build": build_id, **now})
    for kind in what:
        told = f"now has the {kind} {now[kind]!r}" if now[kind] else f"has no {kind} now"
        out.print(f"Build {build_id} {told}.", markup=False, soft_wrap=True)
    return None


@app.command()
def delete(
    build_id: BuildId,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    everywhere: Annotated[
        bool, typer.Option("--everywhere", help="On the remote too, for all who use it.")
    ] = False,
    workspace: Workspace = None,
    cache: Cache = CACHE,
    as_json: AsJson = False,
) -> None:
    """Delete a build and whatever no other build uses; data, decisions and ground truths stay."""
    from .stored import facts

    engine = open_engine(cache, workspace)
    rows = [facts(artifact) for artifact in engine.removal(build_id, everywhere)]
    size = sum(r["bytes"] for r in rows)
    if not (as_json or (yes and not dry_run)):
        kinds = {
            kind: [r for r in rows if r["kind"] == kind] for kind in {r["kind"]: 0 for r in rows}
        }
        table = Table("kind", "artifacts", "size")
        for kind, some in kinds.items():
            table.add_row(kind, str(len(some)), quantities.size(sum(r["bytes"] for r in some)))
        out.print(table)
    if dry_run:
        if as_json:
            return show_json({"build": build_id, "deleted": False, "artifacts": rows})
        out.print(f"{quantities.size(size)} would be deleted; nothing was.")
        return None
    if not yes:
        if not (sys.stdin.isatty() and errors.is_terminal):
            raise UserError(
                found=f"{quantities.size(size)} of build {build_id} to delete for good",
                wanted="your word for it",
                next_step="give --yes to delete it, or --dry-run to see what would go",
            )
        typer.confirm(f"Delete {quantities.size(size)} for good?", abort=True, err=True)
    engine.delete(build_id, everywhere)
    if as_json:
        return show_json({"build": build_id, "deleted": True, "artifacts": rows})
    out.print(f"Build {build_id} is deleted, {quantities.size(size)}.")
    if engine.remote and not everywhere:
        out.print(f"{engine.remote} keeps it, if it had it: --everywhere deletes it there too.")
    return None


@app.command()
def doctor(
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Remove what is damaged or left over; builds make it again."),
    ] = False,
    workspace: Workspace = None,
    cache: Cache = CACHE,
    as_json: AsJson = False,
) -> None:
    """Check libraries, disk, every artifact, jobs, decisions and notes. Exit 1 where trouble is.

    Decisions and notes are only looked at, never changed.
    """
    from .doctor import examine

    found = []
    with progress() as report:
        for one in examine(open_engine(cache, workspace), repair, report):
            found.append(one)
            if not as_json:
                mark = "mended" if one.done else "trouble" if one.trouble else "fine"
                say(f"{mark:8} {one.about:12} {one.said} {one.done}".rstrip())
    left = sum(one.open for one in found)
    if as_json:
        show_json({"healthy": not left, "findings": [asdict(one) for one in found]})
    elif any(one.open and one.about != "environment" for one in found) and not repair:
        out.print("`--repair` removes what is damaged or left over.")
    if left:
        raise typer.Exit(1)


@app.command()
def gc(
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking.")] = False,
    workspace: Workspace = None,
    cache: Cache = CACHE,
    as_json: AsJson = False,
) -> None:
    """Remove what nothing refers to: parts of no build, uploads that nobody read.

    It is shown first. What decisions are on stays, and so does what is younger than an hour.
    """
    from .gc import collect, unused

    engine = open_engine(cache, workspace)
    found = unused(engine)
    rows = found.rows
    size = sum(row["bytes"] for row in rows)
    asked = sys.stdin.isatty() and errors.is_terminal
    if not as_json and rows:
        table = Table("kind", "id", "size")
        for row in rows:
            table.add_row(row["kind"], printable(row["id"]), quantities.size(row["bytes"]))
        out.print(table)
    if rows and not yes and asked and not as_json:
        typer.confirm(f"Remove {quantities.size(size)} for good?", abort=True, err=True)
        yes = True
    if yes:
        collect(engine, found)
    if as_json:
        return show_json({"removed": yes, "bytes": size, "unused": rows})
    if not rows:
        out.print("Everything is referred to: nothing to remove.")
    elif yes:
        out.print(f"{quantities.size(size)} are removed.")
    else:
        out.print(f"{quantities.size(size)} could go; nothing was removed: --yes removes it.")
    return None


@app.command()
def query(
    build_id: BuildId,
    test_id: Annotated[int, typer.Argument(help="Position in the test set.")],
    k: Annotated[int, typer.Option("-k", help="Number of hits.")] = 10,
    opponents: Annotated[bool, typer.Option("--opponents", help="The other end.")] = False,
    target: Annotated[
        str, typer.Option(help="Ask about the label, the predicted class, or CLASS.")
    ] = "label",
    cache: Cache = CACHE,
    as_json: AsJson = False,
) -> None:
    """The training examples that pushed a test prediction up (or down: --opponents)."""
    opened = open_engine(cache).open(build_id)
    answer = opened.query(test_id, k, target)
    hits = answer.opponents if opponents else answer.proponents
    if as_json:
        found = {"test_id": test_id, "label": answer.label, "predicted": answer.predicted}
        found |= {"target": answer.target, "hits": [asdict(h) for h in hits]}
        return show_json(found)
    names = opened.classes
    label = "without a label" if answer.label is None else f"labelled {names[answer.label]}"
    out.print(
        f"Test example {test_id}: {label}, predicted "
        f"{names[answer.predicted]}; {'opponents' if opponents else 'proponents'} of "
        f"{names[answer.target]}. {answer.noise}"
    )
    out.print(hit_table(hits, names))
    return None


def hit_table(hits: Sequence[Hit], names: Sequence[str]) -> Table:
    table = Table("train_id", "label", "score", "± stderr", "agreement", "")
    for h in hits:
        error = "" if h.stderr is None else f"{h.stderr:.4f}"
        table.add_row(
            str(h.train_id), printable(names[h.label]), f"{h.score:+.4f}", error,
            f"{h.agreement:.0%}", "shaky" if h.shaky else "",
        )  # fmt: skip
    return table


@app.command(name="try")
def try_image(
    build_id: BuildId,
    file: Annotated[Path, typer.Argument(help="A picture: PNG, JPEG, ...")],
    k: Annotated[int, typer.Option("-k", help="Number of hits.")] = 10,
    opponents: Annotated[bool, typer.Option("--opponents", help="The other end.")] = False,
    target: Annotated[
        str, typer.Option(help="Ask about the predicted class, or CLASS.")
    ] = "predicted",
    invert: Annotated[bool, typer.Option("--invert", help="Dark for light.")] = False,
    cache: Cache = CACHE,
    as_json: AsJson = False,
) -> None:
    """What the networks say of a picture of your own, and the training examples behind it."""
    from .pictures import Aside, alike

    opened = open_engine(cache).open(build_id)
    try:
        image = alike(file.read_bytes(), opened.data.train.images, invert)
    except (Aside, OSError) as error:
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(
            found=f"{file}: {said}",
            wanted="a picture, for example a PNG or a JPEG",
            next_step="name another file",
        ) from None
    found = opened.attempt(image, target, k)
    if as_json:
        return show_json(asdict(found))
    names, hits = opened.classes, found.opponents if opponents else found.proponents
    top = sorted(range(len(names)), key=lambda c: -found.probs[c])[:3]
    believed = ", ".join(f"{names[c]} {found.probs[c]:.1%}" for c in top)
    side = "opponents" if opponents else "proponents"
    say(f"{file.name}: {believed}; {side} of {names[found.target]}. {found.noise}")
    out.print(hit_table(hits, names))
    return None


@app.command()
def mislabels(
    build_id: BuildId,
    k: Annotated[int, typer.Option("-k", help="Number of examples.")] = 20,
    by: Annotated[
        str,
        typer.Option(
            help="Rank by one signal alone: training, masks, influence, neighbours, opponents, or "
            "unseen after `folds`."
        ),
    ] = "",
    cache: Cache = CACHE,
    as_json: AsJson = False,
) -> None:
    """The training labels that are probably wrong, most suspicious first.

    The score is the probability that the label is wrong.
    """
    opened = open_engine(cache).open(build_id)
    opened.check_k(k)
    frame = opened.mislabels(by).head(k)
    paths = opened.train_paths  # none for data that came with the program
    if as_json:
        rows = []
        for train_id, row in frame.iterrows():
            signals = {n: float(v) for n, v in row.items() if str(n).startswith("signal_")}
            rows.append(
                {
                    "train_id": int(train_id),
                    **({"path": paths[train_id]} if paths else {}),
                    "given_label": int(row["given_label"]),
                    "suggested_label": int(row["suggested_label"]),
                    "score": float(row["score"]),
                    "kind": row["kind"],
                    "signals": {n.removeprefix("signal_"): v for n, v in signals.items()},
                }
            )
        found: dict[str, Any] = {"examples": rows}
        truth = opened.known(by)
        return show_json(found | ({"known": truth} if truth else {}))
    table = Table("train_id", "given", "suggested", *([by] if by else []), "score", "kind", "why")
    if paths:
        table.add_column("file")
    for train_id, row in frame.iterrows():
        alone = [f"{row[f'signal_{by}']:.3f}"] if by else []
        table.add_row(
            str(train_id), opened.classes[row["given_label"]],
            opened.classes[row["suggested_label"]], *alone, f"{row['score']:.3f}", row["kind"],
            row["why"], *([printable(paths[train_id])] if paths else []),
        )  # fmt: skip
    out.print(table)
    return None


@app.command()
def testlabels(
    build_id: BuildId,
    k: Annotated[int, typer.Option("-k", help="Number of test examples.")] = 20,
    workspace: Workspace = None,
    cache: Cache = CACHE,
    as_json: AsJson = False,
) -> None:
    """The test labels that are probably wrong, those decided on, and accuracy with and without.

    The score is the probability that the label is wrong, by networks that never saw the image.
    They are corrected, or images excluded, on the page Explain.
    """
    engine = open_engine(cache, workspace)
    opened = engine.open(build_id)
    within([("-k", k, 1, len(opened.test_ids))])
    labels = engine.test_labels(build_id)
    accuracy = labels.accuracy(opened.predicted_T)
    frame = opened.doubtful_tests
    rows = [
        {
            "test_id": int(t),
            "example_id": opened.test_ids[t],
            "given_label": int(one["given"]),
            "suggested_label": int(one["suggested"]),
            "score": float(one["score"]),
            "networks": int(one["networks"]),
            "decision": decision.verdict if (decision := labels.decisions.get(t)) else None,
            "label": int(labels.labels_T[t]),
            "excluded": not labels.kept_T[t],
        }
        for t, one in frame[
            (np.arange(len(frame)) < k) | frame.index.isin(labels.decisions)
        ].iterrows()
    ]
    if as_json:
        found = {"examples": rows, "expected": float(frame["score"].sum())}
        return show_json(found | {"accuracy": asdict(accuracy)})
    table = Table("test_id", "given", "suggested", "score", "networks against it", "decision")
    names = opened.classes
    for row in rows:
        said = row["decision"] or ""
        if said == "relabel":
            said = f"it is {names[row['label']]}"
        table.add_row(
            str(row["test_id"]), printable(names[row["given_label"]]),
            printable(names[row["suggested_label"]]), f"{row['score']:.3f}",
            f"{row['networks']} of {opened.summary['models']}",
            printable("exclude" if row["excluded"] else said),
        )  # fmt: skip
    out.print(table)
    out.print(f"Test accuracy {accuracy.words}.")
    return None


@app.command()
def folds(
    build_id: Annotated[str, typer.Argument(help="A build's id; the newest if left out.")] = "",
    cache: Cache = CACHE,
    as_json: AsJson = False,
    job: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Train networks that leave examples out: their doubt makes `mislabels` surer."""
    engine = open_engine(cache)
    build_id = engine.open(build_id or engine.newest()).id
    say_by_what(engine, build_id)
    with progress() as report, reported(cache, job, report) as (report, finish):
        found = engine.folds(build_id, report)
        finish(state="done", build=build_id)
    if as_json:
        return show_json(found)
    out.print(f"About {found['expected']:.0f} labels are wrong, by networks that did not see them.")
    return None


@app.command(name="map")
def lay_out(
    build_id: Annotated[str, typer.Argument(help="A build's id; the newest if left out.")] = "",
    cache: Cache = CACHE,
    as_json: AsJson = False,
    job: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Lay the images out in a plane, near those that the networks see alike, for the page Map."""
    engine = open_engine(cache)
    build_id = engine.open(build_id or engine.newest()).id
    with progress() as report, reported(cache, job, report) as (report, finish):
        found = engine.map(build_id, report)
        finish(state="done", build=build_id)
    if as_json:
        return show_json(found)
    out.print(
        f"{found['images']:,} images laid out; {found['kept']:.0%} of an image's nearest "
        "neighbours are still nearest."
    )
    return None


@app.command()
def truth(
    build_id: BuildId,
    subsets: Annotated[int, typer.Option(help="Random halves of the training set.")] = 100,
    seeds: Annotated[int, typer.Option(help="Networks trained on each.")] = 5,
    then_evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Then evaluate every build that it applies to.")
    ] = False,
    cache: Cache = CACHE,
    as_json: AsJson = False,
    job: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Retrain on random halves: what attributions have to predict. Shared, resumes when killed."""
    engine = open_engine(cache)
    warn_of_few(subsets)
    say_by_what(engine, build_id)
    with progress() as report, reported(cache, job, report) as (report, finish):
        made = engine.truth(build_id, subsets, seeds, report=report)
        if then_evaluate:
            alike = [one["build"] for one in engine.comparable(build_id)]
            engine.evaluate_all(alike, made.id, report)
        finish(state="done", build=build_id)
    found = {"truth": made.id, "subsets": subsets, "seeds": seeds}
    if as_json:
        return show_json(found)
    out.print(f"Ground truth {made.id}: {subsets} subsets, {seeds} networks on each.")
    return None


@app.command()
def evaluate(
    build_ids: Annotated[list[str], typer.Argument(help="Builds; `list` shows their ids.")],
    truth_id: Annotated[
        str, typer.Option("--truth", help="A ground truth; the largest that fits if left out.")
    ] = "",
    cache: Cache = CACHE,
    as_json: AsJson = False,
    job: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """How well builds predict retraining (LDS, with its interval), and what they cost."""
    engine = open_engine(cache)
    with progress() as report, reported(cache, job, report) as (report, finish):
        rows = engine.evaluate_all(build_ids, truth_id, report)
        finish(state="done", build=build_ids[0])
    return show_rows(rows, as_json)


def say_by_what(engine: Any, build_id: str) -> None:
    """A sentence where networks are trained again by another recipe than the build's own."""
    opened = engine.open(build_id)
    if opened.recipe.trains and opened.retraining:
        errors.print(opened.retraining, markup=False, soft_wrap=True)


def warn_of_few(subsets: int) -> None:
    if 2 <= subsets < 10:
        errors.print(f"Only {subsets} subsets: the intervals are wide; 100 are usual.")


def show_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    """What `evaluate` found, as one JSON document or a table."""
    warn_of_few(rows[0]["subsets"])
    if as_json:
        return show_json(rows)
    table = Table("build", "ensemble", "estimator", "LDS", "95 %", "training", "query", "index")
    for r in rows:
        table.add_row(
            r["build"], r["ensemble"], r["estimator"], f"{r['lds']:.3f}",
            f"{r['lds_low']:.3f} – {r['lds_high']:.3f}", quantities.span(r["seconds"]["train"]),
            f"{1000 * r['seconds']['query']:.1f} ms", quantities.size(r["bytes"]["index"]),
        )  # fmt: skip
    out.print(table)
    if rows[0]["ceiling"] is not None and len({r["truth"] for r in rows}) == 1:
        out.print(f"No attribution can be above {rows[0]['ceiling']:.3f}: retraining is noisy.")
    return None


@app.command()
def brittleness(
    build_id: BuildId,
    tests: Annotated[int, typer.Option(help="Test examples asked, classified right.")] = 10,
    most: Annotated[int, typer.Option(help="Most proponents removed.")] = 180,
    step: Annotated[int, typer.Option(help="Removed at a time.")] = 60,
    cache: Cache = CACHE,
    as_json: AsJson = False,
) -> None:
    """How many proponents must go, and networks be retrained, before a prediction flips."""
    from .brittleness import BrittlenessSpec

    engine = open_engine(cache)
    say_by_what(engine, build_id)
    with progress() as report:
        spec = BrittlenessSpec(tests=tests, most=most, step=step)
        found = engine.brittleness(build_id, spec, report)
    if as_json:
        return show_json(found)
    for removed, share in zip(found["removed"], found["flipped"], strict=True):
        out.print(f"{removed:5d} proponents removed: {share:.0%} of the predictions flipped")
    return None


Removed = Annotated[
    str, typer.Option("--remove", help="Training ids to leave out, by comma: 12,873.")
]
Top = Annotated[int, typer.Option("--top", help="Leave out this many of the strongest proponents.")]
Opponents = Annotated[bool, typer.Option("--opponents", help="Of --top: the strongest opponents.")]
Target = Annotated[str, typer.Option(help="Ask about the label, the predicted class, or CLASS.")]
TestId = Annotated[int, typer.Argument(help="Position in the test set.")]


@app.command()
def verify(
    build_id: BuildId,
    test_id: TestId,
    remove: Removed = "",
    top: Top = 0,
    opponents: Opponents = False,
    target: Target = "label",
    seeds: Annotated[int, typer.Option(help="Pairs of networks to train.")] = 10,
    cache: Cache = CACHE,
    as_json: AsJson = False,
    job: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Retrain with and without some training examples: predicted against realised change.

    Pairs of networks share their seed. Those on all examples are trained once for all
    verifications; what is finished when it is killed stays.
    """
    engine = open_engine(cache)
    removed = set_to_remove(engine.open(build_id), test_id, remove, top, opponents, target)
    say_by_what(engine, build_id)
    if seeds == 1:
        errors.print("A single pair tells no interval; 5 or more are usual.")
    with progress() as report, reported(cache, job, report) as (report, finish):
        found = engine.verify(build_id, test_id, removed, target, seeds, report)
        finish(state="done", build=build_id)
    if as_json:
        return show_json(found)
    show_verifications([found], engine.open(build_id).classes)
    return None


@app.command()
def verifications(build_id: BuildId, cache: Cache = CACHE, as_json: AsJson = False) -> None:
    """Every verified removal on a build's data and network, and how well it was predicted."""
    from . import whatif as removals

    engine = open_engine(cache)
    rows = engine.verifications(build_id)
    rank, known_scale = removals.agreement(*removals.columns(rows)), removals.scale_of(rows)
    if as_json:
        told = known_scale and asdict(known_scale)
        return show_json({"verifications": rows, "rank_correlation": rank, "scale": told})
    show_verifications(rows, engine.open(build_id).classes)
    if known_scale is None:
        left = removals.LEAST - len(rows)
        out.print(f"{left} more tell the scale from scores to margins.")
        return None
    out.print(
        f"Rank correlation {rank:.2f}; a score of 1 is {known_scale.factor:.3g} of the margin "
        f"({known_scale.low:.3g} – {known_scale.high:.3g})."
    )
    return None


@app.command()
def whatif(
    build_id: BuildId,
    test_id: TestId,
    remove: Removed = "",
    top: Top = 0,
    opponents: Opponents = False,
    target: Target = "label",
    flip: Annotated[
        bool, typer.Option("--flip", help="Instead: the smallest set predicted to flip it.")
    ] = False,
    cache: Cache = CACHE,
    as_json: AsJson = False,
) -> None:
    """What leaving out training examples is predicted to do to a test example; no retraining."""
    engine = open_engine(cache)
    opened = engine.open(build_id)
    if flip:
        removed = engine.flipping(build_id, test_id, target)
        if removed is None:
            if as_json:
                return show_json(None)
            out.print("No set is predicted to flip it.")
            return None
    else:
        removed = set_to_remove(opened, test_id, remove, top, opponents, target)
    told = engine.forecast(build_id, test_id, removed, target, engine.scale(build_id))
    if as_json:
        return show_json({**asdict(told), "flips": told.flips})
    name = opened.classes[told.target]
    error = "" if told.share_stderr is None else f" ± {2 * told.share_stderr:.1%}"
    out.print(
        f"Without {len(told.removed)} training examples, {told.share:.1%}{error} of all push "
        f"towards {name} is gone (margin now {told.margin:+.2f})."
    )
    if told.change is None:
        out.print(
            "By how much the margin moves is told once a few removals are verified and follow "
            "what was predicted: `verify`."
        )
    else:
        out.print(
            f"Predicted change of the margin: {told.change:+.2f} "
            f"({told.low:+.2f} to {told.high:+.2f}){'; it flips' if told.flips else ''}."
        )
    if flip:
        out.print(f"--remove {','.join(map(str, told.removed))}", soft_wrap=True)
    return None


@app.command()
def blast(
    build_id: BuildId,
    train_id: Annotated[int, typer.Argument(help="Position in the training set.")],
    label: Annotated[str, typer.Option(help="Its new label; left out, it is dropped.")] = "",
    k: Annotated[int, typer.Option("-k", help="Number of test predictions.")] = 12,
    cache: Cache = CACHE,
    as_json: AsJson = False,
) -> None:
    """The test predictions that dropping or relabelling a training example would move most."""
    engine = open_engine(cache)
    opened = engine.open(build_id)
    if label:
        known("class", label, opened.classes, "--label")
    new = opened.classes.index(label) if label else None
    rows = engine.blast(build_id, [train_id], new, k)
    if as_json:
        return show_json([asdict(r) for r in rows])
    table = Table("test_id", "label", "predicted", "move of its margin", "share of the largest")
    for r in rows:
        error = "" if r.stderr is None else f" ± {2 * r.stderr:.4f}"
        move = f"{r.move:+.4f}{error} (score)"
        if r.change is not None:
            move = f"{r.change:+.3f} ({r.low:+.3f} to {r.high:+.3f})"
        table.add_row(
            str(r.test_id), "" if r.label is None else opened.classes[r.label],
            opened.classes[r.predicted], move,
            f"{r.share:+.0%}",
        )  # fmt: skip
    out.print(table)
    return None


def set_to_remove(
    opened: Any, test_id: int, remove: str, top: int, opponents: bool, target: str
) -> tuple[int, ...]:
    """The training positions that --remove or --top name; which of the two is checked."""
    if bool(remove) == bool(top):
        raise UserError(
            found="--remove and --top together" if remove else "neither --remove nor --top",
            wanted="one of them",
            next_step="name training ids with --remove, or a number of proponents with --top",
        )
    if top:
        return opened.strongest(test_id, top, target, opponents)
    words = [word.strip() for word in remove.split(",") if word.strip()]
    for word in words:
        if not word.isdecimal():
            raise UserError(
                found=f"training id {word!r} in --remove",
                wanted="numbers by comma as in 12,873",
                next_step="give the ids that `query` shows",
            )
    return tuple(int(word) for word in words)


def show_verifications(rows: list[dict[str, Any]], classes: tuple[str, ...]) -> None:
    """Removals as a table: what was predicted, what happened."""
    table = Table(
        "test_id", "class", "left out", "pairs", "predicted", "margin", "change", "95 %", ""
    )
    for r in rows:
        between = "" if r["low"] is None else f"{r['low']:+.2f} – {r['high']:+.2f}"
        flip = f"{classes[r['said_before']]} → {classes[r['said_after']]}" if r["flipped"] else ""
        table.add_row(
            str(r["test_id"]), classes[r["target"]], str(len(r["removed"])), str(r["seeds"]),
            f"{r['score']:+.4f}", f"{r['before']:+.2f} → {r['after']:+.2f}", f"{r['change']:+.2f}",
            between, flip,
        )  # fmt: skip
    out.print(table)


@app.command()
def tune(
    build_id: BuildId,
    cache: Cache = CACHE,
    as_json: AsJson = False,
    job: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Choose width, damping and power of q from one network, without retraining."""
    engine = open_engine(cache)
    with progress() as report, reported(cache, job, report) as (report, finish):
        found = engine.tune(build_id, report)
        finish(state="done", build=build_id)
    if as_json:
        return show_json(found)
    table = Table("directions", "damping", "R² of held-out margins")
    for one in found["widths"]:
        dims = f"{one['ka']}x{one['kg']}"
        table.add_row(dims, f"{one['damping']:g}", f"{one['held_out']:.3f}")
    out.print(table)
    if not found["refitted"]:
        out.print("The network has no linear last layer to refit, so the power of q stays.")
    out.print(f"python -m attribution build {shlex.join(found['options'])}", soft_wrap=True)
    return None


@app.command()
def study(
    build_id: Annotated[str, typer.Argument(help="A build's id; the newest if left out.")] = "",
    subsets: Annotated[int, typer.Option(help="Random halves of the training set.")] = 50,
    seeds: Annotated[int, typer.Option(help="Networks trained on each.")] = 2,
    background: Annotated[
        bool, typer.Option("--background", help="Start it as a job that the app shows, and return.")
    ] = False,
    cache: Cache = CACHE,
    as_json: AsJson = False,
    job: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Build the other strategies beside a build, retrain a modest truth, evaluate them all."""
    engine = open_engine(cache)
    build_id = engine.open(build_id or engine.newest()).id
    if background:
        words = [build_id, "--subsets", str(subsets), "--seeds", str(seeds)]
        job_id = engine.start(words, "study")
        if as_json:
            return show_json({"job": job_id})
        out.print(f"Comparing strategies in the background: job {job_id}, on the builds page.")
        return None
    say_by_what(engine, build_id)
    with progress() as report, reported(cache, job, report) as (report, finish):
        rows = engine.study(build_id, subsets, seeds, report)
        finish(state="done", build=build_id)
    return show_rows(rows, as_json)


@app.command()
def apply(
    build_id: BuildId,
    workspace: Workspace = None,
    cache: Cache = CACHE,
    as_json: AsJson = False,
) -> None:
    """Apply the decisions in force to the data, train again, and say what it bought."""
    engine = open_engine(cache, workspace)
    revision = engine.revise(build_id)
    say_by_what(engine, build_id)
    with progress() as report:
        after = engine.build(engine.revised_spec(build_id, revision.id), report)["build"]
    labelled = engine.open(after).labelled  # else nobody can say what it bought
    bought = engine.changes(build_id, after).summary if labelled else None
    if as_json:
        told = asdict(bought) if bought else {}
        return show_json({"build": after, "revision": asdict(revision), **told})
    out.print(
        f"Build {after}: {revision.relabelled} training images relabelled, {revision.dropped} left "
        "out."
    )
    if revision.missing:
        out.print(f"{len(revision.missing)} decisions are on images this data does not have.")
    out.print(bought.words if bought else "The test images have no labels: accuracy is not known.")
    return None


@app.command()
def scores(
    build_id: BuildId,
    output: Annotated[Path, typer.Option("-o", help="The .npy file to write.")],
    cache: Cache = CACHE,
    as_json: AsJson = False,
) -> None:
    """Exact ensemble scores of all test x train pairs, float32 (T, N)."""
    opened = open_engine(cache).open(build_id)
    tests, trains = len(opened.test_labels_T), len(opened.train_labels_N)
    with progress() as report:
        write_whole(output, opened.scores_npy(report))
    found = {"file": str(output), "test": tests, "train": trains}
    if as_json:
        return show_json(found)
    say(f"{output}: {tests} test x {trains} train scores.")
    return None


@app.command()
def export(
    build_id: BuildId,
    output: Annotated[
        Path, typer.Option("-o", help="The file or folder to write; a folder's .zip if so named.")
    ],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="csv, parquet, folder, huggingface, cleanlab, label-studio, "
            "label-studio-interface, fiftyone or cvat.",
        ),
    ] = "csv",
    split: Annotated[
        str,
        typer.Option(help="train, or test: test labels and what was decided on them (csv)."),
    ] = "train",
    force: Annotated[
        bool, typer.Option("--force", help="Replace what is there without asking.")
    ] = False,
    workspace: Workspace = None,
    cache: Cache = CACHE,
    as_json: AsJson = False,
) -> None:
    """Labels and decisions, or the data set with the decisions in force, for other tools."""
    from .export import FOLDERS, FORMATS, aside, exported, packed, tests_csv
    from .imports import counted

    known("format", form, FORMATS, "--format")
    known("split", split, ("train", "test"), "--split")
    if split == "test":
        known("format of test labels", form, ("csv",), "--format")
        engine = open_engine(cache, workspace)
        labels = engine.test_labels(build_id)
        agreed(output, False, force)
        write_whole(output, tests_csv(engine.open(build_id), labels))
        told = {"file": str(output), "decisions": len(labels.decisions)}
        if as_json:
            return show_json(told)
        say(f"{output}: {len(labels.labels_T)} examples, {told['decisions']} decisions.")
        return None
    folder = form in FOLDERS and output.suffix.lower() != ".zip"
    engine = open_engine(cache, workspace)
    opened = engine.open(build_id)
    agreed(output, folder, force)
    decided = engine.decisions.in_force(opened.data_id)
    content = exported(opened, decided, form)
    if folder:
        write_folder(output, cast(Iterable[tuple[str, bytes]], content))
    else:
        write_whole(output, packed(content))
    left = [d.example_id for d in aside(opened, decided)]
    if as_json:
        found: dict[str, Any] = {"file": str(output), "decisions": len(decided)}
        return show_json(found | ({"aside": left} if left else {}))
    say(f"{output}: {len(opened.train_ids)} examples, {len(decided)} decisions.")
    if left:
        out.print(
            "Left out but kept in the log, decisions on examples that the data no longer has: "
            f"{counted(left)}.",
            markup=False,
            soft_wrap=True,
        )
    return None


@app.command(name="import")
def import_decisions(
    build_id: BuildId,
    file: Annotated[Path, typer.Argument(help="What another tool, or `export`, wrote.")],
    form: Annotated[str, typer.Option("--format", help="csv or label-studio.")] = "csv",
    reviewer: Annotated[
        str, typer.Option(help="Who decided; as the file has it if left out.")
    ] = "",
    workspace: Workspace = None,
    cache: Cache = CACHE,
    as_json: AsJson = False,
) -> None:
    """Decisions made elsewhere, into the log. What cannot be placed is told and left out."""
    from .imports import imported

    engine = open_engine(cache, workspace)
    opened = engine.open(build_id)
    told = imported(opened, engine.decisions, file, form, reviewer or None)
    if as_json:
        return show_json({"file": str(file)} | asdict(told))
    for sentence in told.sentences():
        out.print(sentence, markup=False, soft_wrap=True)
    return None


@app.command(name="report")
def one_page(
    build_id: BuildId,
    output: Annotated[Path, typer.Option("-o", help="The .html file to write.")],
    test: Annotated[
        int | None, typer.Option(help="A test example; the review if left out.")
    ] = None,
    target: Annotated[str, typer.Option(help="predicted, label, or a class.")] = "predicted",
    workspace: Workspace = None,
    cache: Cache = CACHE,
    as_json: AsJson = False,
) -> None:
    """One page to send to someone: why a prediction came out, or what a review decided."""
    from . import report

    engine = open_engine(cache, workspace)
    build = engine.open(build_id)
    if test is None:
        page = report.review(build, engine.decisions.in_force(build.data_id))
    else:
        page = report.prediction(build, test, target=target, labels=engine.test_labels(build_id))
    write_whole(output, page.encode())
    if as_json:
        return show_json({"file": str(output)})
    say(f"{output}: open it in a browser, or send it.")
    return None


@app.command()
def track(
    build_id: BuildId,
    uri: Annotated[
        str,
        typer.Option(
            help="Server or store, as in http://localhost:5000 or sqlite:///mlflow.db; else "
            "MLFLOW_TRACKING_URI, or mlflow.db in the workspace."
        ),
    ] = "",
    experiment: Annotated[str, typer.Option(help="Of MLflow; made where it is not there.")] = (
        "probable-cause"
    ),
    workspace: Workspace = None,
    cache: Cache = CACHE,
    as_json: AsJson = False,
) -> None:
    """Tell MLflow of a build: settings, costs, scores, decisions, report. Twice is as good as once.

    Needs the extra `mlflow`: `pip install -e '.[mlflow]'`.
    """
    from .tracking import track

    found = track(open_engine(cache, workspace), build_id, uri, experiment)
    if as_json:
        return show_json(asdict(found))
    did = "brought up to date" if found.again else "begun"
    say(f"Run {found.run} {did} in the experiment {found.experiment} of {found.uri}.")
    return None


@app.command(name="app")
def web_app(
    port: Annotated[int, typer.Option(help="Port on localhost.")] = 8501,
    workspace: Workspace = None,
    cache: Cache = CACHE,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
    reviewer: Annotated[str, typer.Option(help="Who signs decisions; else the page asks.")] = "",
    address: Annotated[
        str,
        typer.Option(help="Where to listen; other than localhost only where people log in."),
    ] = "localhost",
) -> None:
    """Open the web app on localhost; telemetry is off."""
    known_port = 1 <= port <= 65535
    if not known_port:
        raise UserError(
            found=f"port {port}",
            wanted="a number from 1 to 65535",
            next_step="choose another --port",
        )
    script = Path(__file__).parent.parent / "app.py"
    if not script.is_file():
        raise UserError(
            found=f"no {script}",
            wanted="the web app beside the package",
            next_step="run it from a checkout of the project",
        )
    sys.path.insert(0, str(script.parent))
    import app as web

    web.serve(
        cache=cache,
        workspace=workspace,
        port=port,
        browser=browser,
        reviewer=reviewer,
        address=address,
    )


def open_engine(cache: Path, workspace: Path | None = None) -> Any:
    """The engine, imported only now so that `--help` is quick."""
    from .engine import Engine

    if cache.exists() and not cache.is_dir():
        raise UserError(
            found=f"{cache} is a file", wanted="a folder", next_step="choose another --cache"
        )
    return Engine(cache, workspace, os.environ.get(VARIABLE, ""))


@contextmanager
def cluster(engine: str, address: str, cache: Path) -> Iterator[Any]:
    """Who does the tasks of a build; told at the end where it was not this process."""
    from .cluster import Ray, opened

    with opened(engine, address, cache) as who:
        yield who
    if isinstance(who, Ray):
        shares = ", ".join(f"{node} {count}" for node, count in sorted(who.done.items()))
        errors.print(f"Tasks by node: {shares or 'none, all was done'}.", markup=False)


def restated(accuracy: Any) -> dict[str, Any]:
    """What `list` adds to a build whose test labels were decided on."""
    return {"restated": asdict(accuracy)} if accuracy.changed else {}


def parsed_dims(text: str) -> dict[str, int]:
    ka, _, kg = text.partition("x")
    if not (ka.isdecimal() and kg.isdecimal() and int(ka) and int(kg)):
        raise UserError(
            found=f"--dims {text!r}",
            wanted="two positive numbers as in 64x8",
            next_step="give --dims KAxKG",
        )
    return {"ka": int(ka), "kg": int(kg)}


def show_json(found: object) -> None:
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


@contextmanager
def progress() -> Iterator[Report]:
    """Bars with time left on standard error; plain lines where that is no terminal."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        console=errors,
        disable=not errors.is_terminal,
    ) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
                if not errors.is_terminal:
                    errors.print(f"{stage} ...")
            bars.update(tasks[stage], completed=done, total=total)

        yield report


@contextmanager
def reported(cache: Path, job: str, then: Report) -> Iterator[tuple[Report, Any]]:
    """As a job of the web app, keep its status file; otherwise pass `then` on."""
    if not job:
        yield then, lambda **_: None
        return
    from . import jobs

    report, finish = jobs.reporter(jobs.place_of(cache, job), then)
    try:
        yield report, finish
    except UserError as error:
        finish(state="failed", error=str(error))
        raise
    except Exception as error:
        finish(state="failed", error=f"{type(error).__name__}: {error}; the log has more")
        raise


def agreed(path: Path, folder: bool, force: bool) -> None:
    """Raise unless `path` is free, or what is there may be replaced: asked on a terminal.

    Of folders only our own exports are, so that no word on the command line removes other work.
    """
    from .export import MARK

    if folder and path.is_dir():
        if not any(path.iterdir()):
            return
        if not (path / MARK).is_file():
            raise UserError(
                found=f"{path} holds other things than an export",
                wanted="a new or empty folder, or an export to replace",
                next_step="choose another path with -o",
            )
    elif path.is_dir() or (path.exists() and (folder or not path.is_file())):
        raise UserError(
            found=f"{path} is {'a directory' if path.is_dir() else 'no folder'}",
            wanted="a folder" if folder else "a file in a folder that may be written to",
            next_step="choose another path with -o",
        )
    elif not path.exists():
        return
    if force:
        return
    if sys.stdin.isatty() and errors.is_terminal:
        typer.confirm(f"{path} is there already. Replace it?", abort=True, err=True)
        return
    raise UserError(
        found=f"{path} is there already",
        wanted="a path where nothing is",
        next_step="give --force to replace it, or choose another path with -o",
    )


def write_whole(path: Path, content: bytes | Iterable[bytes | memoryview]) -> None:
    """Write a file the user asked for: all of it, or the one that was there stays."""
    temporary = beside(path)
    with written(path, "a file"):
        swept(path)
        try:
            with temporary.open("wb") as file:
                file.writelines([content] if isinstance(content, bytes) else content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_folder(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Write a folder of files: all of it, or the one that was there stays."""
    path = path.resolve()  # a link stays one
    temporary, before = beside(path), beside(path, ".before")
    with written(path, "a folder"):
        swept(path)
        try:
            temporary.mkdir()
            for name, content in files:
                place = temporary / name
                assert place.resolve().is_relative_to(temporary), name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)
            if path.exists():
                path.rename(before)
            try:
                temporary.rename(path)
            except BaseException:
                if before.exists():
                    before.rename(path)
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if path.exists():
                shutil.rmtree(before, ignore_errors=True)


def beside(path: Path, end: str = "") -> Path:
    """Where to write what then becomes `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}{end}.unfinished")


def swept(path: Path) -> None:
    """Remove what writers of `path` left that were killed; what one had put aside goes back."""
    from .jobs import began

    for left in path.parent.glob(".*.unfinished"):
        owner = LEFT.fullmatch(left.name.removeprefix(f".{path.name}"))
        if owner is None or (int(owner[1]) != os.getpid() and began(int(owner[1])) is not None):
            continue  # of another file, or still being written
        if owner[2] and not path.exists():
            left.rename(path)
        elif left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


@contextmanager
def written(path: Path, what: str) -> Iterator[None]:
    """Turn the operating system's refusals into one sentence about an output."""
    try:
        yield
    except OSError as error:
        raise UserError(
            found=f"{path} cannot be written ({os.strerror(error.errno or 0).lower()})",
            wanted=f"{what} in a folder that exists and may be written to",
            next_step="choose another path with -o",
        ) from error


def main() -> None:
    """Run a command: exit 2 with a sentence for a user's mistake, 1 with a log otherwise."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], standalone_mode=False))
    except USAGE as error:
        told = UserError(
            found=error.format_message().rstrip("."),
            wanted="what its help describes",
            next_step=f"see `{error.ctx.command_path if error.ctx else 'attribution'} --help`",
        )
        errors.print(f"error: {told}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except typer.Abort:
        sys.exit(1)
    except UserError as error:
        errors.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except Exception:
        with tempfile.NamedTemporaryFile(
            "w", prefix="attribution-", suffix=".log", delete=False
        ) as log:
            log.write(f"{' '.join(sys.argv)}\n\n{traceback.format_exc()}")
        errors.print(
            f"error: something unforeseen happened; {log.name} has the details.",
            style="red", markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
        sys.exit(1)


if __name__ == "__main__":
    main()
