"""Decisions made in other tools, read back into the log.

A file is a stranger's: its size is bounded, its names are looked up and never used, and what cannot
be placed is told and left out while the rest is kept.
"""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from .decisions import Choice, Decisions
from .exchange import DROP, legible
from .export import harmless, plain
from .records import UserError, Verdict, known

if TYPE_CHECKING:
    from .build import Build

LARGEST = 512 * 2**20  # bytes of a file
SHOWN = 5  # of what is left out, in a sentence; --json has them all


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a file says of an example. A choice alone keeps or relabels, as the given label is."""

    example_id: str
    verdict: str | None = None
    choice: str | None = None  # a class by name
    reviewer: str = ""
    time: str = ""


@dataclass(kw_only=True)
class Imported:
    """What became of a file's decisions."""

    entries: int = 0  # examples in the file
    decided: dict[str, int] = field(default_factory=dict)  # by verdict
    already: int = 0  # as they stand
    differing: dict[str, tuple[Verdict, int | None]] = field(default_factory=dict)
    """What the file says of examples on which something else stands."""
    undecided: int = 0  # examples without a decision in the file
    unknown_examples: list[str] = field(default_factory=list)
    unknown_labels: list[str] = field(default_factory=list)
    unknown_decisions: list[str] = field(default_factory=list)

    def sentences(self) -> list[str]:
        """What a person is told."""
        made = ", ".join(f"{n} {verdict}" for verdict, n in sorted(self.decided.items()))
        told = [
            f"Decisions made: {sum(self.decided.values())}{f' ({made})' if made else ''}; "
            f"standing already: {self.already}; examples undecided: {self.undecided}."
        ]
        if self.differing:
            told.append(f"Decided otherwise so far: {counted(list(self.differing))}.")
        for kind, left in (
            ("examples that this data does not have", self.unknown_examples),
            ("labels that are none of its classes", self.unknown_labels),
            ("decisions of unknown kind", self.unknown_decisions),
        ):
            if left:
                told.append(f"Left out, {kind}: {counted(left)}.")
        return told


def counted(left: list[str]) -> str:
    """How many, and the first of them."""
    shown = [repr(one[:80]) for one in left[:SHOWN]]
    return f"{len(left)} ({', '.join(shown)}{', ...' if len(left) > SHOWN else ''})"


@dataclass(frozen=True)
class Plan:
    """What a file's decisions would become."""

    told: Imported
    choices: dict[str, list[Choice]]  # by reviewer


def imported(
    build: "Build",
    decisions: Decisions,
    path: Path,
    form: str,
    reviewer: str | None = None,
) -> Imported:
    """Append what the file decides, unless it stands already; `reviewer` replaces the file's.

    One undo takes back all that a reviewer decided in the file.
    Raises `UserError` for a file that is no such export or has no example of this data.
    """
    known("format", form, tuple(IMPORTS), "--format")
    entries = entries_of(contents(path), str(path), form)
    plan = planned(build, decisions, entries, str(path), form, reviewer)
    made(build, decisions, plan)
    return plan.told


def entries_of(content: bytes, name: str, form: str) -> list[Entry]:
    """What a file of this `name` says; no path is opened. Raises `UserError` as `imported`."""
    return IMPORTS[form](decoded(content, name), name)


def planned(
    build: "Build",
    decisions: Decisions,
    entries: list[Entry],
    name: str,
    form: str,
    reviewer: str | None = None,
    replace: bool = True,
) -> Plan:
    """What would be decided; without `replace` only where nothing stands. Decides nothing."""
    told = Imported()
    placed = list(understood(build, entries, told))
    if len(told.unknown_examples) == told.entries:
        raise UserError(
            found=f"{name} has none of the {len(build.train_ids)} examples of this data",
            wanted="decisions on the data of this build",
            next_step="choose the build that the file was exported from",
        )
    stand = decisions.standing(build.data_id).latest()
    choices: dict[str, list[Choice]] = {}
    for one, verdict, label in placed:
        standing = stand.get(one.example_id)
        if standing and (standing.verdict, standing.label) == (verdict, label):
            told.already += 1
            continue
        if standing:
            told.differing[one.example_id] = verdict, label
            if not replace:
                continue
        evidence = {"imported": form, "decided_at": one.time, "decided_by": one.reviewer}
        choice = Choice(
            example_id=one.example_id, verdict=verdict, label=label, evidence=json.dumps(evidence)
        )
        who = legible(one.reviewer if reviewer is None else reviewer)
        choices.setdefault(who, []).append(choice)
        told.decided[verdict] = told.decided.get(verdict, 0) + 1
    return Plan(told, choices)


def made(build: "Build", decisions: Decisions, plan: Plan) -> None:
    """Append what was planned, all or none, one act a reviewer."""
    decisions.decide_each(build.data_id, plan.choices, build_id=build.id)


def understood(
    build: "Build", entries: list[Entry], told: Imported
) -> Iterator[tuple[Entry, Verdict, int | None]]:
    """The entries that decide something, with verdict and new label; `told` gets the others."""
    positions = {name: i for i, name in enumerate(build.train_ids)}
    labels = labels_of(build)
    told.entries = len(entries)
    for one in entries:
        verdict, label = one.verdict, None
        if one.choice is not None:
            label = labels.get(one.choice)
        if one.example_id not in positions:
            told.unknown_examples.append(one.example_id)
        elif verdict is None and one.choice is None:
            told.undecided += 1
        elif verdict not in (None, *get_args(Verdict)):
            told.unknown_decisions.append(str(verdict))
        elif one.choice is not None and label is None:
            told.unknown_labels.append(one.choice)
        elif verdict is not None:
            yield one, cast(Verdict, verdict), label
        elif label == build.train_labels_N[positions[one.example_id]]:
            yield one, "keep", None
        else:
            yield one, "relabel", label


def labels_of(build: "Build") -> dict[str, int]:
    """Classes by every name that an export gives them, without names that two of them share."""
    found: dict[str, set[int]] = {}
    for label, name in enumerate(build.classes):
        for written in {name, legible(name), str(harmless(legible(name)))}:
            found.setdefault(written, set()).add(label)
    return {name: min(labels) for name, labels in found.items() if len(labels) == 1}


def csv_entries(text: str, name: str) -> list[Entry]:
    """Of our own CSV, also when a spreadsheet has saved it; the last row of an example counts."""
    head = text.partition("\n")[0]
    delimiter = max(",;\t", key=head.count)
    found = {}
    usual = csv.field_size_limit(LARGEST)
    try:
        reader = csv.DictReader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
        missing = {"example_id", "decision", "new_label"} - set(reader.fieldnames or ())
        if missing:
            raise foreign(name, f"no column {', '.join(sorted(missing))}", "csv")
        for row in reader:
            values = {k: v or "" for k, v in row.items() if isinstance(k, str)}
            verdict = values["decision"].strip().lower() or None
            found[values["example_id"]] = Entry(
                example_id=values["example_id"],
                verdict=verdict,
                choice=values["new_label"] if verdict == "relabel" else None,
                reviewer=plain(values.get("reviewer", "")),
                time=values.get("decided_at", ""),
            )
    except csv.Error as error:
        raise foreign(name, f"not readable as CSV, {error}", "csv") from error
    finally:
        csv.field_size_limit(usual)
    return list(found.values())


def studio_entries(text: str, name: str) -> list[Entry]:
    """Of Label Studio's JSON export (not JSON-MIN); a task's newest annotation counts."""
    try:
        tasks = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise foreign(name, "not readable as JSON", "label-studio") from error
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise foreign(name, "not a list of tasks", "label-studio")
    if not all(isinstance(task.get("data"), dict) for task in tasks):
        raise foreign(name, "a task without its data, as in JSON-MIN", "label-studio")
    entries = [studio_entry(task, at) for at, task in enumerate(tasks)]
    # Of tasks on the same example one that decides counts, the newest of these.
    entries.sort(key=lambda one: (bool(one.verdict or one.choice), one.time))
    return list({one.example_id: one for one in entries}.values())


def studio_entry(task: dict[str, Any], at: int) -> Entry:
    example_id = task["data"].get("example_id")
    if not isinstance(example_id, str):
        return Entry(example_id=f"task {worded(task.get('id')) or at + 1}")
    made = [
        one
        for one in listed(task.get("annotations"))
        if isinstance(one, dict) and not one.get("was_cancelled")
    ]
    if not made:
        return Entry(example_id=example_id)
    newest = sorted(made, key=when)[-1]
    chosen = [
        (one.get("from_name"), worded(choice))
        for one in listed(newest.get("result"))
        if isinstance(one, dict) and isinstance(one.get("value"), dict)
        for choice in listed(one["value"].get("choices"))
    ]
    choices = [choice for control, choice in chosen if control != DROP]
    return Entry(
        example_id=example_id,
        verdict="drop" if (DROP, DROP) in chosen else None,
        choice=" + ".join(choices) if choices and (DROP, DROP) not in chosen else None,
        reviewer=studio_user(newest, task["data"]),
        time=when(newest),
    )


def studio_user(annotation: dict[str, Any], data: dict[str, Any]) -> str:
    """Who made an annotation; of one that came from us, the reviewer we had noted."""
    user = annotation.get("completed_by")
    if isinstance(user, dict):
        user = user.get("email") or user.get("username") or user.get("id")
    elif isinstance(user, int):
        user = f"Label Studio user {user}"
    return worded(user) or worded(data.get("reviewer"))


def when(annotation: dict[str, Any]) -> str:
    return worded(annotation.get("updated_at") or annotation.get("created_at"))


def worded(value: object) -> str:
    """Text or a number as text; nothing for what is neither, which may be nested very deep."""
    return str(value) if isinstance(value, str | int | float) else ""


def listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def contents(path: Path) -> bytes:
    """A file of bounded size."""
    try:
        if not path.is_file() and path.exists():  # a folder, or a device without end
            raise UserError(
                found=f"{path} is no file", wanted="a file of decisions", next_step="choose another"
            )
        if path.stat().st_size > LARGEST:
            raise UserError(
                found=f"{path} has {path.stat().st_size:,} bytes",
                wanted=f"at most {LARGEST:,}",
                next_step="export fewer examples at a time",
            )
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            found=f"{path} cannot be read ({(error.strerror or str(error)).lower()})",
            wanted="a file of decisions",
            next_step="choose another file",
        ) from error


def decoded(content: bytes, name: str) -> str:
    """The text of a file, ends of lines inside names as they are."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            found=f"{name} is not text in UTF-8",
            wanted="a file that this app or Label Studio exported",
            next_step="save it as UTF-8, or choose another file",
        ) from error


def foreign(name: str, why: str, form: str) -> UserError:
    return UserError(
        found=f"{name} is no export of decisions ({why})",
        wanted=f"a file of the format {form}",
        next_step="choose another file, or say its --format",
    )


IMPORTS: dict[str, Callable[[str, str], list[Entry]]] = {
    "csv": csv_entries,
    "label-studio": studio_entries,
}
