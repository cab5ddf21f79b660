"""Builds by the workers of a real Ray cluster on this machine: nodes are killed, and nodes are made
that see other folders than the rest, in a mount namespace of their own."""

import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attribution.cluster import LOOPBACK, QUIET, Local, Ray, opened, version
from attribution.engine import Engine
from attribution.records import BuildSpec, DataSpec, EstimatorSpec, FeatureSpec, UserError

os.environ.update(QUIET | LOOPBACK)

from ray.cluster_utils import Cluster  # noqa: E402

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
SPEC = BuildSpec(
    data=DataSpec(noise=0.1),
    width=0.25,
    models=4,
    masks=9,
    epochs=2,
    features=FeatureSpec(ka=8, kg=2),
    estimator=EstimatorSpec(),
    index_dims=24,
)
PATIENCE = 600  # seconds: a busy machine is slow, not wrong
NODE = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_log_monitor": False}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster of one node; tests add another."""
    made = Cluster(
        initialize_head=True,
        head_node_args={**NODE, "node_name": "first", "include_dashboard": False, "wait": False},
    )
    made.wait_for_nodes(PATIENCE)
    yield made
    made.shutdown()


def artifacts(cache: Path) -> dict[str, tuple[int, int]]:
    """Of every finished artifact: which folder it is, and when it was made."""
    places = cache.glob("*/[0-9a-f]*/manifest.json")
    return {
        p.parent.relative_to(cache).as_posix(): (p.stat().st_ino, p.stat().st_mtime_ns)
        for p in places
    }


def contents(cache: Path) -> dict[str, str]:
    """Content of all files of all artifacts; manifests tell times, so they are left out."""
    return {
        p.relative_to(cache).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in cache.glob("*/[0-9a-f]*/*")
        if p.name != "manifest.json" and p.parent.parent.name != "jobs"
    }


def until(what: Callable[[], Any]) -> Any:
    """Wait until it is so; what was found then."""
    end = time.monotonic() + PATIENCE
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.002)
    return found


def in_the_making(cache: Path, kind: str) -> int:
    return len(list((cache / kind).glob(".*-*")))


def finished(cache: Path, kind: str) -> int:
    return len(list((cache / kind).glob("[0-9a-f]*/manifest.json")))


def workers_at(cluster: Cluster, step: str) -> list[int]:
    """Numbers of the processes of the first node that do this task now."""
    raylet = cluster.head_node.all_processes["raylet"][0].process.pid
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            title, parent = (place / "cmdline").read_text(), (place / "stat").read_text()
        except OSError:
            continue
        if step in title and int(parent.rpartition(")")[2].split()[1]) == raylet:
            found.append(int(place.name))
    return found


def test_a_node_and_a_worker_killed_in_mid_build_cost_only_their_tasks(
    cluster: Cluster, tmp_path: Path
) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    build = Engine(alone).build(SPEC)
    node = cluster.add_node(**NODE, node_name="second", wait=False)
    cluster.wait_for_nodes(PATIENCE)
    before: dict[str, tuple[int, int]] = {}
    trained: list[int] = []
    faults: list[BaseException] = []

    def kill() -> None:
        """The node while both train, one network being done; then a worker at its features."""
        try:
            until(lambda: finished(shared, "run") and in_the_making(shared, "run") == 2)
            before.update(artifacts(shared))
            trained.append(len(before))
            cluster.remove_node(node, allow_graceful=False)
            at = until(lambda: finished(shared, "features") and workers_at(cluster, "together"))
            before.update(artifacts(shared))
            os.kill(at[0], 9)
        except BaseException as error:
            faults.append(error)

    killer = threading.Thread(target=kill)
    killer.start()
    with opened("ray", cluster.address, shared) as who:
        assert isinstance(who, Ray)
        assert Engine(shared).build(SPEC, cluster=who) == {
            **build,
            **{k: Engine(shared).builds()[0][k] for k in ("seconds", "created", "peak_memory")},
        }
    killer.join()
    assert not faults
    assert contents(shared) == contents(alone)
    after = artifacts(shared)
    assert {name: after[name] for name in before} == before  # nothing stored was done again
    assert {"run", "features"} <= {name.split("/")[0] for name in before}
    assert in_the_making(shared, "run") == in_the_making(shared, "features") == 0
    networks, members = 4, 4 * 9
    features = 4 * 2  # masks are featurized eight together
    fitted = members + 25 + 2 * members  # the range is sketched of 25
    searched = networks + 1  # neighbours of each network, opponents of a shard
    assert sum(who.done.values()) == 2 * networks + features + fitted + searched
    assert who.done["second (127.0.0.1)"] <= trained[0]  # what it had begun was done elsewhere


NAMESPACE = subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0
APART = """
import sys
from ray._private.node import Node
from ray._private.parameter import RayParams

address = sys.argv[1]
params = RayParams(
    gcs_address=address, redis_address=address, num_cpus=1, node_ip_address="127.0.0.1",
    node_name="apart", include_log_monitor=False, node_manager_port=0,
    object_store_memory=150 * 2**20, min_worker_port=0, max_worker_port=0,
)
node = Node(params, head=False, shutdown_at_exit=True, spawn_reaper=True)
print("up", flush=True)
sys.stdin.read()
node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
"""


class Apart:
    """Folders of which one node sees other contents than the rest."""

    def __init__(self, root: Path) -> None:
        self.program = root / "program"  # another version of it
        self.hidden = root / "hidden"  # empty
        self.full = root / "full"  # no room for features
        (self.full / "features").mkdir(parents=True)
        self.hidden.mkdir()
        shutil.copytree(ROOT / "attribution", self.program / "attribution")
        self.other = shutil.copytree(ROOT / "attribution", root / "other")
        with (self.other / "metrics.py").open("a") as file:
            file.write("\n# Changed.\n")

    def script(self, address: str) -> list[str]:
        lines = (
            f"mount --bind {self.other} {self.program / 'attribution'}",
            f"mount -t tmpfs none {self.hidden}",
            f"mount -t tmpfs -o size=64k none {self.full / 'features'}",
            'exec "$0" -c "$1" "$2"',
        )
        return ["unshare", "-rm", "sh", "-ec", "\n".join(lines), sys.executable, APART, address]


@pytest.fixture(scope="module")
def apart(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    if not NAMESPACE:
        pytest.skip("this user may not make a mount namespace")
    made = Apart(tmp_path_factory.mktemp("apart"))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(made.script(cluster.address), text=True, **pipes) as node:
        assert any(line == "up\n" for line in node.stdout)
        yield made
        node.communicate("")


def refused(match: str, address: str, cache: Path) -> str:
    with pytest.raises(UserError, match=match) as caught, opened("ray", address, cache):
        raise AssertionError("work began")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_that_a_node_does_not_share_is_found_out_first(
    cluster: Cluster, apart: Apart
) -> None:
    refused(
        rf"node apart \(127.0.0.1\), where {apart.hidden} is not the folder that it is here",
        cluster.address,
        apart.hidden,
    )
    assert not list(apart.hidden.iterdir())


def test_a_node_with_another_version_is_refused(
    cluster: Cluster, apart: Apart, tmp_path: Path
) -> None:
    words = [sys.executable, "-m", "attribution", "build", "--engine", "ray", "--json"]
    words += ["--address", cluster.address, "--cache", str(tmp_path / "cache")]
    done = subprocess.run(words, cwd=apart.program, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    said = r"node apart \(127.0.0.1\) with version \w{12} on torch \S+ of this program; wanted "
    assert re.search(said + re.escape(version()), " ".join(done.stderr.split()))
    assert not list((tmp_path / "cache").glob("*"))


def test_a_full_disk_on_one_node_is_named_and_the_others_work_is_kept(
    cluster: Cluster, apart: Apart
) -> None:
    said = rf"on node apart \(127.0.0.1\), the cache {apart.full} cannot be written \(a full disk\)"
    spec = replace(SPEC, models=2, epochs=1)
    with opened("ray", cluster.address, apart.full) as who, pytest.raises(UserError, match=said):
        Engine(apart.full).build(spec, cluster=who)
    kept = artifacts(apart.full)
    assert {"run", "sites", "features"} <= {name.split("/")[0] for name in kept}
    Engine(apart.full).build(spec)  # here there is room
    again = artifacts(apart.full)
    assert {name: again[name] for name in kept} == kept


# Without a cluster.


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it fails
    assert "pip install -e '.[ray]'" in refused("Ray is not installed", "", tmp_path)


@pytest.mark.parametrize("address", ["nonsense", "ray://10.0.0.1:10001", ":6379", "10.0.0.1:x"])
def test_what_is_no_address_is_told(address: str, tmp_path: Path) -> None:
    refused(f"--address {address!r}; wanted HOST:PORT", address, tmp_path)


def test_an_address_where_nothing_listens_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    refused(f"no Ray cluster answers at 127.0.0.1:{port}", f"127.0.0.1:{port}", tmp_path)


def test_an_address_where_something_else_listens_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    quick = {"RAY_py_gcs_connect_timeout_s": "1", "RAY_gcs_rpc_server_connect_timeout_s": "1"}
    code = (
        "from attribution.cluster import opened\nfrom pathlib import Path\nimport sys\n"
        "with opened('ray', sys.argv[1], Path(sys.argv[2])): pass"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-c", code, address, str(tmp_path)],
            cwd=ROOT,
            env={**os.environ, **quick},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    assert f"UserError: no Ray cluster answers at {address}" in done.stderr


def test_only_known_engines_and_an_address_only_for_ray(tmp_path: Path) -> None:
    with opened("local", "", tmp_path) as who:
        assert isinstance(who, Local)
    with pytest.raises(UserError, match="unknown engine 'dask'"), opened("dask", "", tmp_path):
        pass
    with (
        pytest.raises(UserError, match="--address without --engine ray"),
        opened("local", "10.0.0.1:6379", tmp_path),
    ):
        pass
