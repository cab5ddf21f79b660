"""Artifacts on object storage: whole or absent there too, bit for bit, trouble in one sentence.

Against a real S3 API on loopback (moto's server), whose clients are killed for real.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import s3fs
from conftest import Tiny
from moto.server import ThreadedMotoServer
from PIL import Image

from attribution import store as stores
from attribution.data import dataset
from attribution.engine import Engine
from attribution.records import ReadSpec, UserError
from attribution.remote import VARIABLE, Remote, stored
from attribution.store import Draft, Store

NAME, OTHER = "0123456789ab", "ba9876543210"
ROWS = np.arange(6, dtype=np.uint8).reshape(2, 3)
SECRET = "open-sesame"
BUCKET = "probable-cause"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The address of an S3 server; the environment has it and some credentials."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "ali-baba")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def s3(endpoint) -> s3fs.S3FileSystem:
    """What looks at the bucket from outside."""
    found = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
    found.mkdir(BUCKET)
    return found


@pytest.fixture
def url(s3, request) -> str:
    """A prefix of its own for each test."""
    return f"s3://{BUCKET}/{abs(hash(request.node.nodeid))}"


def at(root: Path, url: str | Remote, **options: float) -> Store:
    return Store(root, remote(url, **options) if isinstance(url, str) else url)


def remote(url: str, **options: float) -> Remote:
    return Remote(url, **{"fresh": 0.0, **options})


def fill(draft: Draft) -> None:
    draft.array("rows", ROWS)
    draft.bytes_of("words.bin", b"\x00words")
    draft.note(count=3)


def never(draft: Draft) -> None:
    raise AssertionError("filled a second time")


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a cache but its locks."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name not in ("locks", "jobs")
    }


def objects(s3: s3fs.S3FileSystem, url: str) -> dict[str, bytes]:
    root = url.removeprefix("s3://")
    return {path.removeprefix(f"{root}/"): s3.cat_file(path) for path in s3.find(root)}


# The way of an artifact.


@pytest.fixture(params=["s3", "file", "memory"])
def anywhere(request, tmp_path) -> str:
    """One URL after another of kinds that differ in what they can do."""
    if request.param == "s3":
        return request.getfixturevalue("url")
    return f"file://{tmp_path}/far/away" if request.param == "file" else f"memory://{tmp_path}"


def test_what_is_made_in_one_cache_is_read_in_another_bit_for_bit(tmp_path, anywhere):
    near, far = tmp_path / "near", tmp_path / "far cache"
    made = at(near, anywhere).make("run", NAME, fill, {"seed": 7})
    store = at(far, anywhere)
    assert [a.manifest for a in store.all("run")] == [made.manifest]
    assert store.has("run", NAME)
    found = store.find("run", NAME)
    assert found.size == made.size and not found.here  # known by its manifest alone
    assert not (far / "run").exists()
    mapped = found.array("rows", memory_map=True)
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, ROWS)
    assert found.here and files(far) == files(near)
    assert store.make("run", NAME, never, {}).bytes_of("words.bin") == b"\x00words"
    assert Store(far).find("run", NAME).bytes_of("words.bin") == b"\x00words"  # without the remote


def test_a_maker_takes_what_another_made_meanwhile(tmp_path, url):
    store = at(tmp_path / "one", url, fresh=1000.0)
    assert not store.has("run", NAME)  # and believes so for long
    at(tmp_path / "other", url).make("run", NAME, fill, {})
    assert not store.has("run", NAME)
    np.testing.assert_array_equal(store.make("run", NAME, never, {}).array("rows"), ROWS)


def test_what_was_made_without_the_remote_is_put_there_when_it_is_made_again(tmp_path, s3, url):
    Store(tmp_path).make("run", NAME, fill, {})
    assert not s3.exists(url)
    at(tmp_path, url).make("run", NAME, never, {})
    there = objects(s3, url)
    assert set(there) == {
        f"run/{NAME}/manifest.json",
        *(
            f"run/{NAME}/{stored(file, facts['sha256'])}"
            for file, facts in json.loads(there[f"run/{NAME}/manifest.json"])["files"].items()
        ),
    }
    assert sorted(there.values()) == sorted(files(tmp_path).values())


def test_what_was_read_of_this_machines_folders_stays_here(tmp_path, s3, url):
    store = at(tmp_path, url)
    store.make("reading", NAME, fill, {"place": "/pictures"})
    assert store.has("reading", NAME) and len(store.all("reading")) == 1
    assert not s3.exists(url)


def test_removal_is_here_alone_unless_it_is_to_be_everywhere(tmp_path, s3, url):
    store = at(tmp_path, url)
    for name in (NAME, OTHER):
        store.make("run", name, fill, {})
    store.remove("run", NAME)
    assert not (tmp_path / "run" / NAME).exists()
    assert store.has("run", NAME)  # it can be read again
    store.remove("run", NAME, everywhere=True)
    store.remove("run", NAME, everywhere=True)  # it does not matter that it is gone
    assert not store.has("run", NAME)
    assert {path.split("/")[1] for path in objects(s3, url)} == {OTHER}


def test_two_writers_whose_bits_differ_never_mix(tmp_path, s3, url):
    """One is in the middle of its upload while the other uploads all of its own."""

    def differently(draft: Draft) -> None:
        draft.array("rows", ROWS + 1)
        draft.bytes_of("words.bin", b"others")

    one = Store(tmp_path / "one").make("run", NAME, fill, {})
    other = Store(tmp_path / "other").make("run", NAME, differently, {})

    def half(artifact, then=lambda: None):
        for name, facts in artifact.manifest["files"].items():
            yield artifact.file(name), facts["sha256"]
            then()

    def whole(artifact) -> None:
        content = (artifact.place / "manifest.json").read_bytes()
        Remote(url).put("run", NAME, half(artifact), content)

    content = (one.place / "manifest.json").read_bytes()
    Remote(url).put("run", NAME, half(one, lambda: whole(other)), content)
    third = at(tmp_path / "third", url).find("run", NAME)
    np.testing.assert_array_equal(third.array("rows"), ROWS)
    assert files(tmp_path / "third") == files(tmp_path / "one")


# A whole build.


def test_a_build_is_opened_from_an_empty_cache_and_nothing_is_trained(
    tmp_path, tiny: Tiny, url, s3
):
    first = Engine(tiny.cache, tmp_path / "one", url)
    spec = first.open(tiny.build).spec
    first.decisions.decide(first.open(tiny.build).data_id, "some", "keep")
    first.say(tiny.build, "mine")
    first.build(spec)  # it is there: now it is on the remote too
    assert not [path for path in objects(s3, url) if "sqlite" in path or "job" in path]
    second = Engine(tmp_path / "cache", tmp_path / "two", url)
    assert [b["build"] for b in second.builds()] == [tiny.build]
    assert second.finished(spec)
    assert not (tmp_path / "cache" / "features").exists()  # nobody asked for them
    assert second.open(tiny.build).query(3, 5) == first.open(tiny.build).query(3, 5)
    np.testing.assert_array_equal(second.open(tiny.build).scores(), first.open(tiny.build).scores())
    assert second.build(spec) == first.build(spec)
    here, there = files(tmp_path / "cache"), files(tiny.cache)
    assert here == {path: there[path] for path in here}  # times of the making included
    assert {"features", "index", "build"} <= {path.split("/")[0] for path in here}
    assert second.decisions.in_force(second.open(tiny.build).data_id) == {}
    assert not second.notes.all()


def test_a_persons_own_pictures_are_read_without_their_files(tmp_path, url):
    for n in range(12):
        path = tmp_path / "pictures" / "ab"[n % 2] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 20 * n, np.uint8)).save(path)
    first = Engine(tmp_path / "one", tmp_path, url)
    spec = first.read(str(tmp_path / "pictures"), ReadSpec(size=8))
    wanted = dataset(first.store, spec)
    shutil.rmtree(tmp_path / "pictures")
    second = Engine(tmp_path / "two", tmp_path, url)
    assert second.read(spec.pixels) == spec
    found = dataset(second.store, spec)
    assert found.train.ids == wanted.train.ids and found.classes == wanted.classes
    np.testing.assert_array_equal(found.train.images, wanted.train.images)
    assert not (tmp_path / "two" / "reading").exists()


# Damage.


def flip(s3: s3fs.S3FileSystem, path: str) -> None:
    content = bytearray(s3.cat_file(path))
    content[len(content) // 2] ^= 1
    s3.pipe_file(path, bytes(content))


def told(error: UserError) -> str:
    said = str(error)
    assert "\n" not in said and SECRET not in said
    return said


def test_a_flipped_byte_is_named_not_put_in_place_and_made_again(tmp_path, s3, url):
    there = remote(url)
    at(tmp_path / "one", there).make("run", NAME, fill, {})
    for path in [path for path in objects(s3, url) if not path.endswith("manifest.json")]:
        before = s3.cat_file(f"{url}/{path}")
        flip(s3, f"{url}/{path}")
        cache = tmp_path / Path(path).name
        with pytest.raises(UserError) as raised:
            at(cache, there).find("run", NAME).array("rows")
        assert f"{url}/{path} is damaged" in told(raised.value)
        assert files(cache) == {}
        s3.pipe_file(f"{url}/{path}", before)
    s3.rm(f"{url}/{path}")
    with pytest.raises(UserError, match="a missing file"):
        at(tmp_path / "none", there).find("run", NAME).array("rows")
    flip(s3, f"{url}/run/{NAME}/manifest.json")
    with pytest.raises(UserError, match="no readable manifest") as raised:
        at(tmp_path / "none", there).find("run", NAME)
    assert f"{url}/run/{NAME}/manifest.json" in told(raised.value)
    assert at(tmp_path / "none", there).all("run") == []
    at(tmp_path / "two", there).make("run", NAME, fill, {})  # which mends it
    np.testing.assert_array_equal(
        at(tmp_path / "none", there).find("run", NAME).array("rows"), ROWS
    )


def test_a_strangers_manifest_leads_nowhere(tmp_path, s3, url):
    made = Store(tmp_path / "one").make("run", NAME, fill, {})
    manifest = json.loads((made.place / "manifest.json").read_text())
    del manifest["sha256"]
    store, facts = at(tmp_path / "cache", url), manifest["files"]["words.bin"]
    for file in ("../../../away", "/tmp/away", "manifest.json", "a/b", "..", ""):
        strange = {**manifest, "files": {**manifest["files"], file: facts}}
        s3.pipe_file(f"{url}/run/{NAME}/manifest.json", stores._sealed(strange).encode())
        with pytest.raises(UserError, match="no readable manifest"):
            store.find("run", NAME)
    s3.pipe_file(f"{url}/run/{OTHER}/manifest.json", stores._sealed(manifest).encode())
    with pytest.raises(UserError, match="the manifest of something else"):
        store.find("run", OTHER)
    assert files(tmp_path / "cache") == {}


# Kills.


class Toll:
    """Forwards to an S3 server until `most` bytes went one way; then holds everything back."""

    def __init__(self, endpoint: str, up: bool, most: int) -> None:
        host, _, port = endpoint.removeprefix("http://").partition(":")
        self.server = host, int(port)
        self.up, self.left = up, most
        self.reached, self.over = threading.Event(), threading.Event()
        self.threads: list[threading.Thread] = []
        self.ends: list[socket.socket] = []

    def __enter__(self) -> "Toll":
        self.ours = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.ours.getsockname()[1]}"
        self.start(self.serve)
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        socket.create_connection(self.ours.getsockname()).close()  # so that it looks up
        self.threads[0].join()
        for end in self.ends:  # a server would wait for the rest of what it was promised
            with end, suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join()
        self.ours.close()

    def start(self, work: Callable[..., None], *what: object) -> None:
        self.threads.append(threading.Thread(target=work, args=what))
        self.threads[-1].start()

    def serve(self) -> None:
        while True:
            client, _ = self.ours.accept()
            if self.over.is_set():
                return client.close()
            server = socket.create_connection(self.server)
            self.ends += [client.dup(), server.dup()]
            self.start(self.carry, client, server, True)
            self.start(self.carry, server.dup(), client.dup(), False)

    def carry(self, one: socket.socket, other: socket.socket, up: bool) -> None:
        with one, other, suppress(OSError):  # of a client that was killed
            while chunk := one.recv(2**14):
                if up == self.up:
                    self.left -= len(chunk)
                    if self.left < 0:
                        self.reached.set()
                        self.over.wait()
                other.sendall(chunk)
            other.shutdown(socket.SHUT_WR)


WORK = """
import sys
from pathlib import Path
import numpy as np
from attribution.remote import Remote
from attribution.store import Store

def many(draft):
    for n in range(6):
        draft.array(f"rows-{n}", np.full(200_000, n, np.uint8))

root, url, name = sys.argv[1:]
Store(Path(root), Remote(url)).make("run", name, many, {}).array("rows-5")
"""


def many(draft: Draft) -> None:
    for n in range(6):
        draft.array(f"rows-{n}", np.full(200_000, n, np.uint8))


def killed_midway(root: Path, url: str, endpoint: str, up: bool) -> None:
    """A process that makes or reads an artifact of 1.2 MB, killed when half of it went over."""
    with Toll(endpoint, up, 700_000) as toll:
        env = {**os.environ, "AWS_ENDPOINT_URL": toll.address}
        words = [sys.executable, "-c", WORK, str(root), url, NAME]
        process = subprocess.Popen(words, env=env, cwd=Path(__file__).parents[1])
        assert toll.reached.wait(200)
        process.kill()
        assert process.wait() == -9


def test_an_upload_killed_midway_is_not_read_and_goes_on(tmp_path, s3, url, endpoint):
    killed_midway(tmp_path / "one", url, endpoint, up=True)
    there = objects(s3, url)
    assert 1 <= len(there) <= 4 and not any("manifest" in path for path in there)
    reader = at(tmp_path / "other", url)
    assert reader.find("run", NAME) is None and not reader.has("run", NAME)
    assert reader.all("run") == []
    before = files(tmp_path / "one")
    assert f"run/{NAME}/manifest.json" in before  # what was made is not lost, nor made again
    at(tmp_path / "one", url).make("run", NAME, never, {})
    reader.make("run", NAME, never, {}).array("rows-5")
    assert files(tmp_path / "one") == files(tmp_path / "other") == before


def test_a_download_killed_midway_leaves_nothing_that_is_read_and_goes_on(
    tmp_path, s3, url, endpoint
):
    at(tmp_path / "one", url).make("run", NAME, many, {})
    killed_midway(tmp_path / "other", url, endpoint, up=False)
    assert any(path.endswith("rows-1.npy") for path in files(tmp_path / "other"))
    assert Store(tmp_path / "other").find("run", NAME) is None
    assert Store(tmp_path / "other").all("run") == []
    at(tmp_path / "other", url).make("run", NAME, never, {}).array("rows-5")
    assert files(tmp_path / "other") == files(tmp_path / "one")  # what was left is swept


# Trouble, in one sentence.


def refused(root: Path, url: str, *words: str, **options: float) -> None:
    """Finding, listing and making say it alike, or it is said before any of them."""
    there: list[Remote] = []
    with suppress(UserError):
        there.append(remote(url, **options))
    for act in (
        lambda store: store.find("run", NAME),
        lambda store: store.all("run"),
        lambda store: store.make("run", NAME, fill, {}),
    ):
        with pytest.raises(UserError) as raised:
            act(at(root, *(there or [url]), **options))
        for word in words:
            assert word in told(raised.value)


def test_a_bucket_that_is_not_there(tmp_path, s3):
    refused(tmp_path, "s3://no-such-bucket/x", "no bucket", "s3://no-such-bucket/x", "create it")
    assert not s3.exists("no-such-bucket")
    refused(tmp_path, "s3://", "a bucket or folder, as in s3://bucket/prefix")


def test_credentials_that_are_wrong_or_missing(tmp_path, url, endpoint, monkeypatch):
    def checked(after: str) -> None:
        address = f"{endpoint}/moto-api/reset-auth"
        plain = {"Content-Type": "text/plain"}
        asked = urllib.request.Request(address, after.encode(), plain, method="POST")
        urllib.request.urlopen(asked).close()

    checked("0")
    try:
        refused(tmp_path, url, f"{url} denies access", "credentials")
    finally:
        checked("inf")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    refused(tmp_path, url, f"no credentials for {url}", "AWS_ACCESS_KEY_ID")


def test_an_endpoint_that_does_not_answer(tmp_path, url, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        refused(tmp_path, url, f"{url} does not answer", "AWS_ENDPOINT_URL", wait=0.2)
    refused(tmp_path, url, f"{url} does not answer", "network")  # nobody listens now


def test_what_cannot_be_opened(tmp_path):
    refused(tmp_path, "gs://bucket/x", "gs://bucket/x", "not installed", "pip install gcsfs")
    refused(tmp_path, "nosuch://bucket/x", "unknown kind of storage 'nosuch'", "s3://bucket")
    refused(tmp_path, "sftp://ali:open-sesame@host/x", "a password in the address")


def test_without_s3fs_the_extra_is_named(tmp_path, monkeypatch):
    """Where the package cannot be imported, as where it is not installed."""
    from fsspec.registry import _registry

    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3")
    refused(tmp_path, "s3://bucket/x", "s3://bucket/x", "pip install -e '.[s3]'")


def test_storage_that_is_full_or_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    refused(tmp_path / "cache", f"file://{tmp_path}/file/x", "cannot be used")
    checksum = Store(tmp_path / "cache").make("run", NAME, fill, {}).manifest["files"]
    place = tmp_path / "far" / "run" / NAME
    place.mkdir(parents=True)
    (place / stored("rows.npy", checksum["rows.npy"]["sha256"])).symlink_to("/dev/full")
    with pytest.raises(UserError, match="it is full"):
        at(tmp_path / "cache", f"file://{tmp_path}/far").make("run", NAME, never, {})
    assert at(tmp_path / "other", f"file://{tmp_path}/far").find("run", NAME) is None


# The command line.


def test_commands_and_their_jobs_use_the_remote(tmp_path, tiny: Tiny, url, monkeypatch, capsys):
    from attribution.__main__ import main

    monkeypatch.setenv(VARIABLE, "")

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["attribution", *words, "--cache", str(tmp_path / "c")])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        assert not ended.value.code, captured.err
        return captured.out

    engine = Engine(tiny.cache, tmp_path, url)
    engine.build(engine.open(tiny.build).spec)
    assert json.loads(run("list", "--json")) == []
    (listed,) = json.loads(run("--remote", url, "list", "--json"))
    assert listed["build"] == tiny.build
    assert os.environ[VARIABLE] == url  # as the processes of jobs have it
    asked = json.loads(run("query", tiny.build, "3", "--json"))
    assert len(asked["hits"]) == 10
    before = run("delete", tiny.build, "--yes")
    assert f"{url} keeps it" in before
    assert [b["build"] for b in json.loads(run("list", "--json"))] == [tiny.build]
    everywhere = json.loads(run("delete", tiny.build, "--yes", "--everywhere", "--json"))
    kinds = {row["kind"] for row in everywhere["artifacts"]}
    assert {"build", "run", "features", "index"} <= kinds
    assert json.loads(run("list", "--json")) == []
    assert [b["build"] for b in Engine(tiny.cache, tmp_path).builds()] == [tiny.build]
