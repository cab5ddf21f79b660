"""`python -m bench` lists the benchmarks, `python -m bench NAME` runs one."""

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path

import torch

from attribution.records import UserError, known

from .rows import Options, table

NAMES = (
    "advisor",
    "applied",
    "brought",
    "click",
    "cluster",
    "crowds",
    "demo",
    "flips",
    "fuzz",
    "grid",
    "growth",
    "jobs",
    "judged",
    "kills",
    "map",
    "member",
    "memory",
    "mislabels",
    "paper_table",
    "peers",
    "peers_lds",
    "pretrained",
    "recipe",
    "tuning",
    "upload",
    "verify",
)


def main() -> int:
    """Returns 0, or 2 after one sentence when something was asked for that is not there."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("name", nargs="?", help="without one, the benchmarks are listed")
    parser.add_argument("--json", action="store_true", help="one JSON list on standard output")
    parser.add_argument("--threads", type=int, default=Options.threads, help="of the processor")
    parser.add_argument("--repeats", type=int, default=0, help="instead of the benchmark's own")
    parser.add_argument("--cifar10", type=Path, metavar="PATH", help="folder with train.parquet")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep what takes long here")
    parser.add_argument("--seed", type=int, default=0, help="of the networks (advisor), or inputs")
    parser.add_argument("--minutes", type=float, default=0.0, help="instead of its own")
    parser.add_argument(
        "--only", metavar="NAME,...", default="", help="these alone (fuzz, paper_table)"
    )
    given = parser.parse_args()
    if given.name is None:
        for name in NAMES:
            print(f"{name:12}{(import_module(f'bench.{name}').__doc__ or '').splitlines()[0]}")
        return 0
    try:
        known("benchmark", given.name, NAMES, "python -m bench NAME")
        torch.set_num_threads(given.threads)
        only = tuple(name for name in given.only.split(",") if name)
        options = Options(
            given.threads, given.repeats, given.cifar10, given.cache, given.seed, given.minutes,
            only,
        )  # fmt: skip
        module = import_module(f"bench.{given.name}")
        rows = module.measure(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(
        json.dumps([r.document() for r in rows], indent=1)
        if given.json
        else getattr(module, "show", table)(rows)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
