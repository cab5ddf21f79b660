"""What nothing refers to: artifacts that no build is made of, archives that no reading is of.

    builds -> parts -> data -> pixels        decisions -> data        readings -> pixels

What is of a build alone goes with it. What was retrained on a data set (ground truths,
verifications, folds) stays while a build is on that data. A kind that is not known here stays, and
so does whatever is young: a build in the making may be about to refer to it.
"""

import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from . import archives
from .archives import Unpacked
from .engine import KIND_OF, OF_BUILD, Engine
from .records import UserError
from .store import Artifact, Store

OF_RECIPE = ("truth", "retrained", "folds", "fold", "verification", "without")
YOUNG = 3600.0  # seconds


@dataclass(frozen=True)
class Unused:
    """What may go."""

    artifacts: tuple[Artifact, ...]
    uploads: tuple[Unpacked, ...]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Kind, id and bytes of each."""
        found = [(a.kind, a.manifest["id"], a.size) for a in self.artifacts]
        found += [("upload", str(u.folder), size_of(u.folder)) for u in self.uploads]
        return [{"kind": kind, "id": name, "bytes": size} for kind, name, size in found]


def unused(engine: Engine, young: float = YOUNG) -> Unused:
    """What nothing in this cache and workspace refers to, older than `young` seconds.

    Raises `UserError` while something is being made, which would be taken for unused.
    """
    store = Store(engine.cache)  # what is on a remote stays there
    if running := engine.running():
        raise UserError(
            found=f"{running[0]}, which is running",
            wanted="nothing that makes artifacts meanwhile",
            next_step="wait until it has ended, or cancel it on the page of builds",
        )
    kinds = {kind for kind, _ in store.names()}
    made = {kind: {a.manifest["id"]: a for a in store.all(kind)} for kind in kinds}
    used = referred(engine, made)
    uploads = [u for u in engine.uploads() if not read(u.folder, made.get("reading", {}))]
    latest = time.time() - young
    return Unused(
        tuple(
            artifact
            for kind in sorted(kinds & used.keys())
            for name, artifact in made[kind].items()
            if name not in used[kind] and born(artifact) < latest
        ),
        tuple(u for u in uploads if (u.folder / archives.TOLD).stat().st_mtime < latest),
    )


def collect(engine: Engine, found: Unused) -> None:
    """Remove what was found, from this machine alone."""
    store = Store(engine.cache)
    for artifact in found.artifacts:
        store.remove(artifact.kind, artifact.manifest["id"])
    for upload in found.uploads:
        archives.remove(upload.folder)


def referred(engine: Engine, made: dict[str, dict[str, Artifact]]) -> dict[str, set[str]]:
    """For each kind that is known, the ids that something refers to."""

    def those(kind: str, test: Any) -> set[str]:
        return {name for name, a in made.get(kind, {}).items() if test(a.manifest)}

    builds = [a.manifest for a in made.get("build", {}).values()]
    used: dict[str, set[str]] = {kind: set() for kind in KIND_OF.values()}
    used["build"] = {b["id"] for b in builds}
    for build in builds:
        for kind, names in build["parts"].items():
            if kind in KIND_OF:
                used[KIND_OF[kind]] |= set(names)
    for kind in OF_BUILD:
        used[kind] = those(kind, lambda m: m["made_by"].get("build") in used["build"])
    used["votes"] = those("votes", lambda m: m["made_by"]["index"] in used["index"])
    used["map"] = those("map", lambda m: set(m["made_by"]["networks"]) <= used["run"])
    for kind in OF_RECIPE:
        used[kind] = those(kind, lambda m: m["made_by"]["run"]["data_id"] in used["data"])
    used["pretrained"] = those("pretrained", lambda m: m["weights"] in used["weights"])
    used["reading"] = those("reading", lambda m: there(m["made_by"]["place"]))
    decided = engine.decisions.counts().keys()
    used["data"] |= decided
    kept = [a.manifest for name, a in made.get("data", {}).items() if name in used["data"]]
    used["pixels"] = {m["made_by"]["pixels"] for m in kept}
    used["pixels"] |= {m["spec"]["data"].get("pixels", "") for m in (b["summary"] for b in builds)}
    used["pixels"] |= {made["reading"][name].manifest["pixels"] for name in used["reading"]}
    used["revision"] = {m["made_by"].get("revision", "") for m in kept}
    if decided - made.get("data", {}).keys():  # on test halves, or on data that is elsewhere
        for kind in ("data", "pixels", "revision"):
            used[kind] |= made.get(kind, {}).keys()
    return used


def there(place: str) -> bool:
    """Whether what was read can be read again; hf: and torchvision: always."""
    path = Path(place)
    return not path.is_absolute() or path.exists()


def read(folder: Path, readings: dict[str, Artifact]) -> bool:
    """Whether a folder, or something in it, was read."""
    places = [Path(a.manifest["made_by"]["place"]).absolute() for a in readings.values()]
    return any(place.is_relative_to(folder.absolute()) for place in places)


def born(artifact: Artifact) -> float:
    return datetime.fromisoformat(artifact.manifest["created"]).timestamp()


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
