"""A push is interrupted, killed, disconnected, or fills the registry's disk: its report, and the bytes sent again."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli import assertions
from tests.images import Descriptor, Layout
from tests.peers import docker_registry, need
from tests.registry_http import manifest_digest
from tests.runner import Result, ocistream, started

MIB = 1 << 20
LAYER = 12 * MIB
#: Bytes that pass before the interruption.
PASSED = 3 * MIB
#: Request headers, the config and the manifests, in bytes.
OVERHEAD = 100_000
#: The rounding error of human_size.
ROUNDED = 50_000

pytestmark = pytest.mark.usefixtures("interruptible")


class Relay:
    """Passes bytes between clients and a registry, counts the bytes that clients send, and can disconnect.

    With `patches`, so many PATCHes pass; then one is discarded, and `held` is set.
    """

    def __init__(self, host: str) -> None:
        name, _, port = host.rpartition(":")
        self._target = name, int(port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._server.getsockname()[1]}"
        self.sent = 0
        self.patches: int | None = None
        self.held = threading.Event()
        self._is_cut = False
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        """Close all connections, and reject new ones until `mend`."""
        self._is_cut = True
        self._shut()

    def mend(self) -> None:
        """Pass bytes again, and reset the count."""
        self._is_cut = False
        self.patches = None
        self.sent = 0

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._shut()
        for thread in self._threads:
            thread.join()
        for end in (self._server, *self._open):
            end.close()

    def _shut(self) -> None:
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                if self._is_cut:
                    client.close()
                    continue
                server = socket.create_connection(self._target)
                self._open += [client, server]
                for ends in ((client, server, True), (server, client, False)):
                    self._threads.append(threading.Thread(target=self._pass, args=ends, daemon=True))
                    self._threads[-1].start()

    def _pass(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                # The client sends request headers by themselves.
                if counts and self.patches is not None and data.startswith(b"PATCH "):
                    self.patches -= 1
                    if self.patches < 0:
                        self.held.set()
                        while source.recv(1 << 16):
                            pass
                        break
                if counts:
                    self.sent += len(data)
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@dataclasses.dataclass(frozen=True)
class Place:
    """A registry that stores into `storage`; clients use `relay`. `loses`: a broken request loses the blob's bytes."""

    relay: Relay
    host: str
    storage: Path
    loses: bool


Start = Callable[[Path], contextlib.AbstractContextManager[str]]


@contextlib.contextmanager
def docker(folder: Path) -> Iterator[str]:
    with docker_registry(folder) as registry:
        yield registry.host


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    (folder / "storage").mkdir(exist_ok=True)
    with started("serve", folder / "storage", "--listen", "127.0.0.1:0") as process:
        assert process.stdout
        yield process.stdout.readline().decode().strip()
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture(params=["docker-registry", "serve"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    folder = tmp_path / "registry"
    folder.mkdir(exist_ok=True)
    start: Start = docker if request.param == "docker-registry" else serve
    with start(folder) as host:
        relay = Relay(host)
        yield Place(relay, host, folder, loses=request.param == "docker-registry")
        relay.close()


@pytest.fixture
def image(layout: Layout) -> Descriptor:
    return layout.image([LAYER], name="v1")


@pytest.fixture
def push(place: Place, layout: Layout, image: Descriptor, tmp_path: Path) -> Callable[..., Result]:
    """Return a function that runs the command again, with more options."""
    del image

    def run(*options: str) -> Result:
        return ocistream(*line(place, layout, *options), env=state(tmp_path))

    return run


def line(place: Place, layout: Layout, *options: str) -> list[str]:
    return ["push", "-i", str(layout.path), f"{place.relay.host}/team/app:1", *options]


def state(tmp_path: Path) -> dict[str, str | None]:
    return {"XDG_STATE_HOME": str(tmp_path / "state")}


def ended(place: Place, layout: Layout, tmp_path: Path, number: signal.Signals | None, *options: str) -> Result:
    """Run a push until a part of the layer has passed; end it by a signal, or by a disconnect."""
    place.relay.mend()
    # The limit makes the layer take seconds, even on a fast machine.
    arguments = line(place, layout, "--limit-rate", "4M", "--retries", "0", *options)
    with started(*arguments, env=state(tmp_path)) as process:
        assertions.wait_for(lambda: place.relay.sent > PASSED)
        if number is None:
            place.relay.cut()
        else:
            process.send_signal(number)
        out, err = process.communicate(timeout=60)
    place.relay.mend()
    return Result(arguments, process.returncode, out, err.decode())


def size_of(text: str) -> int:
    """Return the bytes of a size shown in kB or MB."""
    number, _, unit = text.partition(" ")
    return round(float(number) * {"kB": 1e3, "MB": 1e6}[unit])


def check_the_rest(place: Place, again: Result, image: Descriptor, tmp_path: Path) -> int:
    """Check that a second run sent no more than it reports; return how many bytes it resumed."""
    assertions.success(again)
    assert manifest_digest(place.host, "team/app", "1") == image["digest"]
    resumed = re.search(r"resumed (\S+ [kM]B) of 12.6 MB of sha256:", again.err)
    size = size_of(resumed[1]) if resumed else 0
    lost = f"{place.relay.host}: cannot resume the earlier upload of sha256:"
    assert (lost in again.err) != bool(resumed)
    assert ("resumed from an earlier run" in again.err) == bool(resumed)
    assert LAYER - size - ROUNDED <= place.relay.sent <= LAYER - size + ROUNDED + OVERHEAD
    assert list((tmp_path / "state" / "ocistream" / "uploads").iterdir()) == []
    return size


#: The registries differ with one stream, but not with chunks. tests/quirks/test_resumed_uploads.py and
#: tests/cli/test_push_resume.py test every way.
IN_ONE_STREAM = [("docker-registry", "auto"), ("serve", "auto")]
IN_CHUNKS = [("docker-registry", "chunk=2MiB")]
MORE = [pytest.param("serve", "chunk=2MiB", marks=pytest.mark.nightly)]
ON_DOCKER_REGISTRY = pytest.mark.parametrize("place", ["docker-registry"], indirect=True)


def by_registry_and_way(*ways: object) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("place", "way"), ways, indirect=["place"])


@ON_DOCKER_REGISTRY
@pytest.mark.parametrize(("way", "number", "code"), [("auto", signal.SIGINT, 130), ("chunk=2MiB", signal.SIGTERM, 143)])
def test_an_interrupted_push_ends_its_request_and_resumes_at_the_reported_size(
    place: Place, push: Callable[..., Result], layout: Layout, image: Descriptor, tmp_path: Path,
    way: str, number: signal.Signals, code: int,
) -> None:  # fmt: skip
    first = ended(place, layout, tmp_path, number, "--upload", way)
    assert first.code == code, first.err
    promised = re.search(
        rf"\n  {place.relay.host} has stored (\S+ MB) of 1 unfinished blob: re-run the same command to resume\n",
        first.err,
    )
    assert promised, first.err
    size = check_the_rest(place, push("--upload", way), image, tmp_path)
    assert size >= PASSED - MIB
    assert size == size_of(promised[1])


@ON_DOCKER_REGISTRY
def test_a_push_that_is_interrupted_twice_loses_no_bytes(
    place: Place, push: Callable[..., Result], layout: Layout, image: Descriptor, tmp_path: Path
) -> None:
    for _ in range(2):
        assert ended(place, layout, tmp_path, signal.SIGINT).code == 130
    result = tmp_path / "result.json"
    size = check_the_rest(place, push("--result", str(result)), image, tmp_path)
    assert size >= 2 * PASSED - 2 * MIB
    document = json.loads(result.read_text())
    assert abs(document["resumed"] - size) <= ROUNDED
    assert [blob.get("resumed") for blob in document["blobs"]] == [None, document["resumed"]]


@by_registry_and_way(*IN_ONE_STREAM, *MORE)
def test_after_a_killed_push_the_next_one_reports_what_it_resumes(
    place: Place, push: Callable[..., Result], layout: Layout, image: Descriptor, tmp_path: Path, way: str
) -> None:
    assert ended(place, layout, tmp_path, signal.SIGKILL, "--upload", way).code == -signal.SIGKILL
    size = check_the_rest(place, push("--upload", way), image, tmp_path)
    if way == "auto":
        assert (size == 0) == place.loses


# SIGTERM takes ten seconds here: the process waits for the response to a request that never arrives.
@ON_DOCKER_REGISTRY
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.nightly)])
def test_a_push_that_ends_between_chunks_resumes_with_the_next_chunk(
    place: Place, push: Callable[..., Result], layout: Layout, image: Descriptor, tmp_path: Path, number: signal.Signals
) -> None:
    # One job: otherwise the config's PATCH comes in between. It is the first of these four.
    options, result = ("--upload", "chunk=2MiB", "--jobs", "1"), tmp_path / "result.json"
    place.relay.patches = 4
    with started(*line(place, layout, *options), env=state(tmp_path)) as process:
        assert place.relay.held.wait(60)
        process.send_signal(number)
        process.communicate(timeout=60)
    assert len(list((tmp_path / "state" / "ocistream" / "uploads").iterdir())) == 1
    place.relay.mend()
    check_the_rest(place, push(*options, "--result", str(result)), image, tmp_path)
    assert json.loads(result.read_text())["resumed"] == 6 * MIB


@by_registry_and_way(IN_ONE_STREAM[0], *IN_CHUNKS, *MORE)
def test_a_disconnected_push_reports_that_the_registry_may_have_stored_a_part(
    place: Place, push: Callable[..., Result], layout: Layout, image: Descriptor, tmp_path: Path, way: str
) -> None:
    first = ended(place, layout, tmp_path, None, "--upload", way)
    may_have = (
        f"{place.relay.host} may have stored a part of 1 blob: re-run the same command; it reports what it resumes"
    )
    assertions.failure(first, 7, may_have)
    size = check_the_rest(place, push("--upload", way), image, tmp_path)
    # With chunks, the disconnect may come between two of them.
    assert way != "auto" or (size == 0) == place.loses


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk for the registry with room for half of the layer, before the registry starts."""
    need("mount", root=True)
    disk = tmp_path / "registry"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={LAYER // 2}", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


@by_registry_and_way(*IN_CHUNKS, IN_ONE_STREAM[1], *MORE)
def test_a_push_that_fills_the_disk_reports_that_the_registry_may_have_stored_a_part(
    small_disk: Path, place: Place, push: Callable[..., Result], image: Descriptor, tmp_path: Path, way: str
) -> None:
    # One job: the config is stored before the disk is full. `serve` gives the space of a failed upload to the next one.
    first = push("--upload", way, "--retries", "0", "--jobs", "1")
    may_have = (
        f"{place.relay.host} may have stored a part of 1 blob: re-run the same command; it reports what it resumes"
    )
    assertions.failure(first, 7, "500", may_have)
    subprocess.run(["mount", "-o", f"remount,size={4 * LAYER}", small_disk], check=True)
    place.relay.mend()
    size = check_the_rest(place, push("--upload", way), image, tmp_path)
    assert (size == 0) == place.loses
