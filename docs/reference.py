"""Writes docs/reference.md from the docstrings of the code and the help of its commands.

    make reference

`tests/test_reference.py` fails while the page is not what this writes.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference.md"
# What `inspect` writes before a name to say where it is from.
FROM = re.compile(
    r"\b(attribution|collections|torch|numpy|pathlib|pandas|typing|plotly)(\.\w+)*\.(?=\w)"
)


def page() -> str:
    """The whole page."""
    import attribution
    from attribution import peers
    from attribution.engine import Engine

    parts = [
        "# Reference",
        "Made by `make reference` from the code; do not edit. How to use all this is in the guides "
        "([explain](guides/explain.md), [clean](guides/clean.md), [ensemble](guides/ensemble.md), "
        "[network](guides/network.md), [cluster](guides/cluster.md), [storage](guides/storage.md), "
        "[notebook](guides/notebook.md)).",
        "- [Command line](#command-line)\n- [attribution](#attribution)\n"
        "- [attribution.peers](#attributionpeers)\n- [Engine](#engine)",
        "## Command line",
        "`python -m attribution COMMAND`. Each has `--help`; most have `--json`, `--cache` (folder "
        "of computed artifacts) and, where decisions count, `--workspace` (folder of "
        "`decisions.sqlite`). Before any command, `--remote URL` (or PROBABLE_CAUSE_REMOTE in the "
        "environment) names object storage that the cache is a mirror of ([storage]"
        "(guides/storage.md)).",
        *commands(),
        "## attribution",
        "`import attribution`: for notebooks, with your own networks and data sets.",
        *(told for name in attribution.__all__ for told in thing(name, getattr(attribution, name))),
        "## attribution.peers",
        text(peers),
        *(
            told
            for name, one in vars(peers).items()
            if name in ("TRAKer", "TRAKAttributor", "explainer", "register", "EXACT", "THEIRS")
            for told in thing(name, one)
        ),
        "## Engine",
        "`attribution.engine.Engine`: what the pages and the command line call.",
        *thing("Engine", Engine),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def commands() -> Iterator[str]:
    """Each command: how it is called, what it does, its arguments and options."""
    from attribution.__main__ import app

    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        shown = [p for p in command.params if not getattr(p, "hidden", False)]
        words = [
            f"{names(p)[0]}{'...' if p.nargs < 0 else ''}" if p.required else f"[{names(p)[0]}]"
            for p in shown
            if p.param_type_name == "argument"
        ]
        yield f"### {name}"
        yield f"    python -m attribution {' '.join([name, *words])} [OPTIONS]"
        yield inspect.cleandoc(command.help or "")
        rows = [
            f"| {' '.join(f'`{o}`' for o in names(p))} | {cell(p.help)} | {standard(p)} |"
            for p in shown
            if names(p)[0] not in ("--cache", "--json", "--workspace")
        ]
        if rows:
            yield "\n".join(["| | | usual |", "| --- | --- | --- |", *rows])


def names(parameter: Any) -> list[str]:
    if parameter.param_type_name == "argument":
        return [parameter.name.upper()]
    return [*parameter.opts, *parameter.secondary_opts]


def standard(parameter: Any) -> str:
    """The default, where there is one to tell."""
    value = parameter.default
    if parameter.required:
        return "needed"
    return "" if value is None or value is False or value == "" else f"`{value}`"


def cell(words: str | None) -> str:
    return (words or "").replace("|", "\\|").replace("<", "\\<")


def thing(name: str, one: Any) -> Iterator[str]:
    """A function, a class with its public methods and fields, or a constant."""
    one = inspect.unwrap(one)
    if not (inspect.isclass(one) or inspect.isfunction(one)):
        yield f"### {name}"
        yield f"    {name} = {one!r}"
        return
    yield f"### {name}"
    if not is_dataclass(one):
        yield code(name, one)
    yield text(one)
    if not inspect.isclass(one):
        return
    if is_dataclass(one):
        yield "\n".join(f"- {field}" for field in told_fields(one))
    for method_name, method in vars(one).items():
        if not method_name.startswith("_") and inspect.isfunction(method):
            yield f"#### {name}.{method_name}"
            yield code(method_name, method)
            yield text(method)


def told_fields(one: Any) -> Iterator[str]:
    """Fields of a dataclass with their defaults, and what a comment beside them says."""
    lines = inspect.getsource(one).splitlines()
    for field in fields(one):
        kind = shortened(inspect.formatannotation(field.type))
        usual = ""
        if field.default is not MISSING:
            usual = f" = {field.default!r}"
        elif field.default_factory is not MISSING:
            usual = f" = {field.default_factory()!r}"
        line = next(line for line in lines if re.match(rf"    {field.name}:", line))
        _, _, said = line.partition("  # ")
        yield f"`{field.name}: {kind}{usual}`{f': {said}' if said else ''}"


def shortened(told: str) -> str:
    """An annotation or signature with names as one writes them, not where they are from."""
    told = re.sub(r"<function (\w+) at 0x\w+>", r"\1", told)
    return FROM.sub("", told)


def code(name: str, one: Any) -> str:
    """The signature, indented as code: one line, or one a parameter where that is too long."""
    signature = inspect.signature(one)
    kept = [p for p in signature.parameters.values() if p.name != "self"]
    signature = signature.replace(parameters=kept)
    told = shortened(str(signature))
    if inspect.isclass(one):
        told = told.removesuffix(" -> None")
    lines = [f"{name}{told}"]
    if len(lines[0]) > 96:
        lines = [
            f"{name}(",
            *(f"    {part}," for part in split(told)),
            f"){told.rpartition(')')[2]}",
        ]
    return "\n".join(f"    {line}" for line in lines)


def split(told: str) -> list[str]:
    """The parameters of a signature in words; commas in brackets and quotes split nothing."""
    inside, depth, parts = told[1 : told.rindex(")")], 0, [""]
    for letter in inside:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def text(one: Any) -> str:
    """A docstring; that which `dataclass` makes is none."""
    found = inspect.cleandoc(one.__doc__ or "")
    return "" if found.startswith(f"{getattr(one, '__name__', '')}(") else found


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(page())
    print(f"{PAGE.relative_to(ROOT)} is written.")
