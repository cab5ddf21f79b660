"""Growth curves: seconds, bytes, memory, latency and recall as examples and members grow.

Members are those of real builds on MNIST-5k. Rows beyond them are drawn from the rows of the
largest of these builds: each is one of them turned half-way to noise of the same length and of the
rows' own variance in every dimension, so that the spectrum stays theirs; queries are the build's.
A query is both searches, proponents and opponents, and every member's score of the 40 hits. Each
figure is of a process of its own; memory is what it holds beside mapped files. Pictures go to docs.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from attribution import rows as kept
from attribution.build import Build
from attribution.engine import Engine
from attribution.index import Compressed
from attribution.metrics import lds

from .rows import ROOT, Options, Row, commit, machine, row
from .running import command

EXAMPLES = (1_000, 3_000, 10_000, 50_000, 200_000, 1_000_000)
COMPARED = 50_000  # examples with which all kinds are compared
MEMBERS = ((1, 0), (5, 0), (5, 4), (5, 20))  # networks, masks of each
FIDELITY = (
    *(("half", d) for d in (1344, 1024, 512)),
    *(("sq8", d) for d in (1024, 768, 512, 384, 256)),
    *(("sq6", d) for d in (1344, 1024, 512)),
)
WITHIN = ("sq6", 1344)  # a kilobyte an example
SUBSETS, SEEDS = 50, 3  # of the ground truth
NOISE = 0.5  # share of a drawn row's squared length
ASKED, WARM = 300, 20  # queries that are timed, and others before them
PICTURE = ROOT / "docs" / "growth.svg"


def measure(options: Options) -> list[Row]:
    cache = options.cache or Path("cache")
    builds = [built(cache, *sizes, options.threads) for sizes in MEMBERS]
    rows = [found for one in builds for found in member_rows(one)]
    build = Engine(cache).open(builds[-1]["build"])
    with TemporaryDirectory(dir=cache) as folder:
        grown = [
            case
            for count in EXAMPLES
            for case in cases(build, Path(folder), count, kinds_of(count), options.threads)
        ]
    rows += [found for case in grown for found in case_rows(case)]
    dims = str(max(d for _, d in FIDELITY))
    wide = built(cache, *MEMBERS[-1], options.threads, "--index-dims", dims)
    rows += fidelity_rows(cache, Engine(cache).open(wide["build"]))
    picture(grown, builds)
    return rows


def kinds_of(count: int) -> tuple[str, ...]:
    if count == COMPARED:
        return ("auto", "exact", "half", "sq8", "sq4", "ivf")
    return ("auto", "sq4", "ivf") if count == max(EXAMPLES) else ("auto",)


# Members.


def built(cache: Path, networks: int, masks: int, threads: int, *more: str) -> dict[str, Any]:
    """The summary of a build of so many members."""
    strategy = "dropout" if masks else "naive"
    words = ["--strategy", strategy, "--models", str(networks), *more]
    words += ["--masks", str(masks)] if masks else []
    made = json.loads(command(cache, threads, "build", *words))
    (found,) = (one for one in Engine(cache).builds() if one["build"] == made["build"])
    return found


def member_rows(found: dict[str, Any]) -> list[Row]:
    what = f"{found['members']} members, {found['train']:,} examples"
    seconds, size = found["seconds"], found["bytes"]
    return [
        row(f"{what}: features", seconds["features"], "s"),
        row(f"{what}: fitting the index", seconds["fit"], "s"),
        row(f"{what}: a new image's gradients", 1e3 * seconds["query"], "ms"),
        row(f"{what}: features on the disk", size["features"] / found["train"], "bytes an example"),
        row(f"{what}: rows of the index", size["index"] / found["train"], "bytes an example"),
        row(f"{what}: peak memory of the build", found["peak_memory"] / 1e6, "MB"),
    ]


# Examples.


def drawn(folder: Path, like_Nd: np.ndarray, count: int) -> None:
    """`count` rows in the manner of others, float16 on the disk."""
    draw = np.random.default_rng(count)
    spread_d = np.sqrt((like_Nd**2).mean(0) / (like_Nd**2).sum(1).mean())
    length_N1 = np.linalg.norm(like_Nd, axis=1, keepdims=True)
    made = np.lib.format.open_memmap(
        folder / "source.npy", mode="w+", dtype=np.float16, shape=(count, like_Nd.shape[1])
    )
    for start in range(0, count, kept.BLOCK):
        ids = draw.integers(0, len(like_Nd), min(kept.BLOCK, count - start))
        noise_nd = draw.standard_normal((len(ids), len(spread_d)), np.float32) * spread_d
        x_nd = (1 - NOISE) ** 0.5 * like_Nd[ids] + NOISE**0.5 * length_N1[ids] * noise_nd
        made[start : start + len(ids)] = x_nd / 2  # in half precision's range


def cases(
    build: Build, folder: Path, count: int, kinds: Sequence[str], threads: int
) -> list[dict[str, Any]]:
    """What making and asking an index of `count` drawn rows took, for each kind."""
    drawn(folder, build.compressed.rows.reconstruct_n(0, len(build.train_ids)), count)
    queries = build.index.file("queries.npy")
    found = []
    for kind in kinds:
        made = child(threads, "made", folder, queries, kind)
        asked = [child(n, "asked", folder, queries, kind) for n in (1, 2)]
        found.append({"count": count, "asked": kind, **made, "one": asked[0], "two": asked[1]})
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
        for path in folder.glob("*.faiss"):
            path.unlink()
    return found


def child(threads: int, *words: object) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.growth", *map(str, words)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def made(folder: Path, queries: Path, kind: str) -> dict[str, Any]:
    """Keep and code the drawn rows."""

    def shelf(name: str, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    u_TMd = np.load(queries, mmap_mode="r")
    u_Td = np.stack([u_Md.mean(0, dtype=np.float32) for u_Md in u_TMd])
    source_Nd = np.load(folder / "source.npy", mmap_mode="r")
    with Watch() as watch:
        rows = kept.fitted(source_Nd, u_Td, kind, shelf=shelf)
    (folder / "facts.json").write_text(json.dumps(rows.facts))
    size = sum(path.stat().st_size for path in folder.glob("*.faiss"))
    return {"seconds": watch.seconds, "peak": watch.most, "bytes": size / len(source_Nd),
            **rows.facts}  # fmt: skip


def asked(folder: Path, queries: Path, kind: str) -> dict[str, Any]:
    """Ask about the build's test examples, in an order drawn at random."""
    u_TMd = np.load(queries, mmap_mode="r")
    facts = json.loads((folder / "facts.json").read_text())
    nothing, ones_T = np.zeros(0), np.ones(len(u_TMd), np.float32)  # their lengths take no time
    made = kept.opened(lambda name: folder / name, facts)
    index = Compressed(made, 1.0, u_TMd, nothing, 1.0, False, nothing, ones_T)
    order = np.random.default_rng(0).permutation(len(u_TMd))
    took = []
    with Watch() as watch:
        for t in np.resize(order, WARM + ASKED):
            began = time.perf_counter()
            for hits_H in index.both(u_TMd[t], kept.HITS):
                index.member_scores(u_TMd[t], hits_H)
            took.append(time.perf_counter() - began)
    p50, p95 = (1e3 * np.quantile(took[WARM:], (0.5, 0.95))).tolist()
    return {"p50": p50, "p95": p95, "held": watch.most}


class Watch:
    """Seconds of what is done inside, and the most bytes that are held beside mapped files."""

    def __enter__(self) -> "Watch":
        self.most, self.done = held(), threading.Event()
        self.thread = threading.Thread(target=self.look)
        self.began = time.perf_counter()
        self.thread.start()
        return self

    def look(self) -> None:
        while not self.done.wait(0.02):
            self.most = max(self.most, held())

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.began
        self.done.set()
        self.thread.join()
        self.most = max(self.most, held())


def held() -> int:
    """Bytes of memory of this process that no file stands behind."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    return 0


def case_rows(case: dict[str, Any]) -> list[Row]:
    kind = case["kind"] + (" (chosen)" if case["asked"] == "auto" else "")
    what = f"{case['count']:,} examples, {kind}"
    bound = {COMPARED: 10.0, max(EXAMPLES): 50.0}.get(case["count"])
    bound = bound if case["asked"] == "auto" else None
    return [
        row(f"{what}: keeping, coding and measuring", case["seconds"], "s"),
        row(f"{what}: most memory of that", case["peak"] / 1e6, "MB"),
        row(f"{what}: on the disk", case["bytes"], "bytes an example"),
        row(f"{what}: recall@{kept.HITS} of the exact order, both ways", case["recall"], "",
            at_least=0.95 if bound else None),
        row(f"{what}: shortlist", case["wide"], "rows"),
        row(f"{what}: memory of a process that asks", case["two"]["held"] / 1e6, "MB"),
        row(f"{what}: a query, median, 2 threads", case["two"]["p50"], "ms"),
        row(f"{what}: a query, 95th percentile, 2 threads", case["two"]["p95"], "ms",
            at_most=bound),
        row(f"{what}: a query, median, 1 thread", case["one"]["p50"], "ms"),
        row(f"{what}: a query, 95th percentile, 1 thread", case["one"]["p95"], "ms"),
    ]  # fmt: skip


# Bytes against fidelity.


def fidelity_rows(cache: Path, build: Build) -> list[Row]:
    """LDS of the compressed scores, as a share of that of the exact ones."""
    found = Engine(cache).truth(build.id, SUBSETS, SEEDS)
    exact = lds(build.sums(found.subsets_SN).mean(0), found.margins_ST).mean()
    rows = [row(f"exact scores, {len(build.members)} members ({SUBSETS} halves x {SEEDS})", exact,
                "LDS")]  # fmt: skip
    whole_Nd = build.compressed.rows.reconstruct_n(0, len(build.train_ids))
    u_TMd = build.compressed.queries_TMd[: len(build.test_ids)]
    u_Td = np.stack([u_Md.mean(0, dtype=np.float32) for u_Md in u_TMd])
    for kind, dims in FIDELITY:
        made = kept.fitted(whole_Nd[:, :dims], u_Td[:, :dims], kind)
        sum_dS = made.reconstruct_n(0, len(whole_Nd)).T @ found.subsets_SN.T.astype(np.float32)
        share = lds(u_Td[:, :dims] @ sum_dS, found.margins_ST).mean() / exact
        what = f"{dims:,} dimensions, {kind}, {made.bytes_kept:,} bytes an example"
        rows.append(row(f"{what}: LDS / exact LDS", share, "",
                        at_least=0.95 if (kind, dims) == WITHIN else None))  # fmt: skip
    return rows


# Pictures.


def picture(grown: Sequence[dict[str, Any]], builds: Sequence[dict[str, Any]]) -> None:
    """The curves as an SVG under docs."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "growth", "font.size": 9, "axes.grid": True,
                                "grid.alpha": 0.3, "axes.spines.top": False,
                                "axes.spines.right": False})  # fmt: skip
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(11, 6.2), layout="constrained")
    chosen = [case for case in grown if case["asked"] == "auto"]
    count_C = [case["count"] for case in chosen]

    def curve(ax: Any, values: Sequence[float], name: str, line: str = "o-") -> None:
        ax.plot(count_C, values, line, label=name, markersize=4)

    latency, making, memory, recall, seconds, size = axes.flat
    for threads, key, line in ((2, "two", "o-"), (1, "one", "o--")):
        curve(latency, [c[key]["p95"] for c in chosen], f"95th percentile, {threads} threads", line)
        curve(latency, [c[key]["p50"] for c in chosen], f"median, {threads} threads", line)
    latency.set(title="A query, both ways", ylabel="ms", xscale="log", yscale="log")
    curve(making, [c["seconds"] for c in chosen], "keep, code, measure")
    making.set(title="Making the index from its rows", ylabel="s", xscale="log", yscale="log")
    curve(memory, [c["peak"] / 1e6 for c in chosen], "making it, at most")
    curve(memory, [c["two"]["held"] / 1e6 for c in chosen], "asking it")
    memory.set(title="Memory beside mapped files", ylabel="MB", xscale="log", yscale="log")
    curve(recall, [c["recall"] for c in chosen], "chosen kind")
    recall.axhline(0.95, linestyle=":", color="grey", label="wanted")
    recall.set(title=f"Recall@{kept.HITS} of the exact order", xscale="log", ylim=(0.9, 1.005))
    for ax in (latency, making, memory, recall):
        ax.set_xlabel("examples")
    for case in chosen:
        recall.annotate(case["kind"], (case["count"], case["recall"]), textcoords="offset points",
                        xytext=(0, -12), ha="center")  # fmt: skip
    members = [one["members"] for one in builds]
    for stage in ("features", "fit"):
        seconds.plot(members, [one["seconds"][stage] for one in builds], "o-", label=stage)
    seconds.set(title="4,500 examples, by members", ylabel="s", xscale="log", yscale="log")
    for part in ("features", "index"):
        size.plot(members, [one["bytes"][part] / one["train"] for one in builds], "o-", label=part)
    size.set(title="4,500 examples, by members", ylabel="bytes an example", xscale="log",
             yscale="log")  # fmt: skip
    for ax in (seconds, size):
        ax.set_xlabel("members")
    for ax in axes.flat:
        ax.legend(frameon=False, fontsize=8)
    figure.suptitle(f"{machine()}; commit {commit()}", fontsize=7)
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    task, folder, queries, kind = sys.argv[1:]
    print(json.dumps({"made": made, "asked": asked}[task](Path(folder), Path(queries), kind)))
