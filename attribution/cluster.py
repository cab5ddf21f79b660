"""Who does the tasks of a build: this process, one after the other, or the workers of Ray.

A task is a method of a `Making` or a `Build`, and a key: one network to train, one member's
features of one shard. What it makes is an artifact of the shared cache, whole or absent and named
by what made it, or a sum over such. So a task may be lost and done again, twice or elsewhere, and
only its key and its answer travel.

Results come in the order of the keys and are added up in it, on as many threads as here, so they
are those of this process alone.
"""

import hashlib
import logging
import os
import socket
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, Protocol

import torch

from .records import UserError, known
from .store import word

ENGINES = ("local", "ray")
ANSWER = 5  # seconds for an address to answer
LOOK = 180  # seconds for every node to look at the cache
RETRIES = 3  # of a task whose worker or node was lost
AHEAD = 2  # tasks that wait, for each that runs

# Read when Ray is imported, so set before.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_NUM_REDIS_GET_RETRIES": "1",  # tries of an address
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else it warns of what it will do one day
}
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # 127.0.0.1 for a cluster on this machine
BOUNDED = {"RAY_py_gcs_connect_timeout_s": "10"}  # seconds for a cluster at an address


class Cluster(Protocol):
    """Does tasks."""

    def map(self, of: Any, step: str, keys: Iterable[tuple]) -> Iterator[Any]:
        """``of.step(*key)`` for every key, in their order."""


@dataclass(frozen=True)
class Local:
    """This process, one task after the other."""

    def map(self, of: Any, step: str, keys: Iterable[tuple]) -> Iterator[Any]:
        return (getattr(of, step)(*key) for key in keys)


HERE = Local()


@dataclass(frozen=True)
class Outcome:
    """What became of a task: what it returned, or the mistake that it met."""

    node: str
    made: Any = None
    refused: dict[str, str] | None = None


class Ray:
    """The workers of a Ray cluster; `opened` connects to one."""

    def __init__(self, ray: Any) -> None:
        self.ray = ray
        self.threads = torch.get_num_threads()
        self.done: Counter[str] = Counter()  # tasks, by the node that did them
        options = {"num_cpus": self.threads, "max_retries": RETRIES}
        self._task = ray.remote(**options)(task)

    def map(self, of: Any, step: str, keys: Iterable[tuple]) -> Iterator[Any]:
        """As `Cluster.map`; what `of` is made of travels, by its ``remaking``.

        Raises `UserError` for a mistake that a task met, with its node, once the tasks on their
        way have ended; and for a task that was lost with its worker again and again.
        """
        again = self.ray.put(of.remaking())
        pending: deque[Any] = deque()
        try:
            for key in keys:
                name = f"{type(of).__name__}.{step}"
                sent = self._task.options(name=name)
                pending.append(sent.remote(again, step, key, self.threads, str(Path.cwd())))
                if len(pending) > (1 + AHEAD) * self.slots:
                    yield self._made(pending.popleft(), step)
            while pending:
                yield self._made(pending.popleft(), step)
        finally:  # whatever became of one, the others' work is kept
            self.ray.wait(list(pending), num_returns=len(pending)) if pending else None

    def _made(self, sent: Any, step: str) -> Any:
        lost = self.ray.exceptions
        try:
            outcome = self.ray.get(sent)
        except (lost.WorkerCrashedError, lost.NodeDiedError, lost.OutOfMemoryError) as error:
            raise UserError(
                found=f"a task ({step}) whose worker was lost {1 + RETRIES} times",
                wanted="workers that live as long as a task, with memory for it",
                next_step="look into Ray's logs, then run the same `build` again: what is stored "
                "is kept",
            ) from error
        self.done[outcome.node] += 1
        if outcome.refused is None:
            return outcome.made
        found = f"on node {outcome.node}, {outcome.refused['found']}"
        raise UserError(**{**outcome.refused, "found": found})

    @property
    def slots(self) -> int:
        """Tasks that run at once."""
        return sum(int(n["Resources"].get("CPU", 0)) // self.threads for n in self.nodes()) or 1

    def nodes(self) -> list[dict[str, Any]]:
        """The living nodes that have processors for tasks."""
        return [n for n in self.ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]

    def look(self, root: Path) -> None:
        """Raise `UserError` unless every node has this program and sees the folder `root`."""
        if not any(n["Resources"]["CPU"] >= self.threads for n in self.nodes()):
            raise UserError(
                found=f"no node with {self.threads} processors, the threads in use here",
                wanted="a node for a task with as many threads, for the same results as here",
                next_step="set OMP_NUM_THREADS to what a node has",
            )
        with word(root) as (place, said):
            self._look(place, said)

    def _look(self, place: Path, said: str) -> None:
        bound = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        probe = self.ray.remote(num_cpus=0, max_retries=0)(looker())
        asked = {
            name(node): probe.options(scheduling_strategy=bound(node["NodeID"], soft=False)).remote(
                str(place)
            )
            for node in self.nodes()
        }
        self.ray.wait(list(asked.values()), num_returns=len(asked), timeout=LOOK)
        for node, answer in asked.items():
            try:
                program, read = self.ray.get(answer, timeout=0)
            except self.ray.exceptions.RayError as error:
                raise UserError(
                    found=f"node {node}, which gave no answer",
                    wanted="nodes that run a small task within minutes",
                    next_step="look at it with `ray status`, or take it out of the cluster",
                ) from error
            if program != version():
                raise UserError(
                    found=f"node {node} with {program or 'no version'} of this program",
                    wanted=f"{version()}, as here",
                    next_step="install the same version there, or take it out of the cluster",
                )
            if read != said:
                raise UserError(
                    found=f"node {node}, where {place.parent} is not the folder that it is here",
                    wanted="a folder that all nodes share, under the same path",
                    next_step="mount it there too, or choose another with --cache",
                )


@contextmanager
def opened(
    engine: str, address: str, cache: Path, processors: int | None = None
) -> Iterator[Cluster]:
    """Who does the tasks: `engine` of `ENGINES`; Ray's at `address`, or here where there is none.

    One that is started here has so many `processors`; left out, those of the machine.

    Raises `UserError` before any work starts where Ray is not installed, the address does not
    answer, or a node has another version of the program or does not see the cache.
    """
    known("engine", engine, ENGINES, "--engine")
    if engine == "local":
        if address:
            raise UserError(
                found="--address without --engine ray",
                wanted="an address for Ray",
                next_step="add --engine ray, or leave out --address",
            )
        yield HERE
        return
    if address:
        answers(address)
    for variable, value in (QUIET | (BOUNDED if address else LOOPBACK)).items():
        os.environ.setdefault(variable, value)
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise UserError(
            found="--engine ray, and Ray is not installed",
            wanted="the package ray",
            next_step="run `pip install -e '.[ray]'` where the project is, or leave out --engine",
        ) from error
    # What Ray has to say goes to standard output, which is for the answer.
    with redirect_stdout(sys.stderr):
        try:
            ray.init(
                address=address or "local",
                num_cpus=None if address else processors,
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise silent_at(address or "this machine") from error
        try:
            cluster = Ray(ray)
            cluster.look(cache)
            yield cluster
        finally:
            ray.shutdown()


def answers(address: str) -> None:
    """Raise `UserError` for an address where nothing listens, within seconds."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and "/" not in host):
        raise UserError(
            found=f"--address {address!r}",
            wanted="HOST:PORT of a Ray cluster, as `ray start --head` printed it",
            next_step="give for example --address 10.0.0.1:6379",
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
    except (OSError, OverflowError) as error:
        raise silent_at(address) from error


def silent_at(address: str) -> UserError:
    return UserError(
        found=f"no Ray cluster answers at {address}",
        wanted="the address of one that runs, asked from one of its nodes",
        next_step="start one with `ray start --head`, or leave out --address",
    )


def task(again: tuple, step: str, key: tuple, threads: int, folder: str) -> Outcome:
    """On a worker: do one task, in the folder and on as many threads as who asks for it."""
    if Path(folder).is_dir():
        os.chdir(folder)  # so that a FILE.py means the same file
    torch.set_num_threads(threads)
    try:
        remade, args = again
        return Outcome(here(), getattr(remade(*args), step)(*key))
    except UserError as error:
        said = {"found": error.found, "wanted": error.wanted, "next_step": error.next_step}
        return Outcome(here(), refused=said)


def here() -> str:
    """The node of a worker."""
    import ray

    mine = ray.get_runtime_context().get_node_id()
    return next(name(node) for node in ray.nodes() if node["NodeID"] == mine)


def name(node: dict[str, Any]) -> str:
    """What a node is called: its name where it was given one, and its address."""
    called, address = node["NodeName"], node["NodeManagerAddress"]
    return address if called in ("", address) else f"{called} ({address})"


def looker() -> Any:
    """A function of the path of a file: the version of the program there, and what the file says.

    It is made here so that it travels as it is, and runs where the program is missing.
    """

    def look(path: str) -> tuple[str, str]:
        from importlib import import_module

        try:
            program = import_module("attribution.cluster").version()
        except Exception:
            program = ""
        try:
            with open(path) as file:  # noqa: PTH123
                return program, file.read()
        except OSError:
            return program, ""

    return look


@cache
def version() -> str:
    """Which version of the program this is, by its content, and of torch."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return f"version {found.hexdigest()[:12]} on torch {version_of('torch')}"
