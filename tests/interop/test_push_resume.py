"""Killed pushes to a real docker-registry resume when the command is run again."""

from __future__ import annotations

import contextlib
import json
import random
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli import assertions
from tests.images import Descriptor, Layout, tar_layer
from tests.peers import DockerRegistry
from tests.registry_http import manifest_digest
from tests.runner import ocistream, started

MIB = 1 << 20
LAYER = 5 * MIB


class Relay:
    """Forwards requests to a registry, up to a number of PATCHes; the next PATCH never reaches the registry."""

    def __init__(self, host: str, patches: int) -> None:
        self._target = host.split(":")
        self._left = patches
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.held = threading.Event()
        self.sent = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                server = socket.create_connection((self._target[0], int(self._target[1])))
                threading.Thread(target=self._copy, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._copy, args=(server, client, False), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket, asks: bool) -> None:
        with contextlib.suppress(OSError), source, target:
            while data := source.recv(1 << 16):
                # The client sends request headers by themselves.
                if asks and data.startswith(b"PATCH "):
                    if not self._left:
                        self.held.set()
                        # Discard the request until the client closes.
                        while source.recv(1 << 16):
                            pass
                        break
                    self._left -= 1
                if asks:
                    self.sent += len(data)
                target.sendall(data)
            for end in (source, target):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def image(layout: Layout) -> Descriptor:
    return layout.image([LAYER], name="v1")


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str | None]:
    return {"XDG_STATE_HOME": str(tmp_path / "state")}


@pytest.fixture
def relay(registry: DockerRegistry) -> Iterator[Relay]:
    """Return a relay to a docker-registry that loses the fifth PATCH."""
    relay = Relay(registry.host, 4)
    yield relay
    relay.close()


def records(env: dict[str, str | None]) -> list[Path]:
    return list((Path(str(env["XDG_STATE_HOME"])) / "ocistream" / "uploads").iterdir())


def written(registry: DockerRegistry) -> dict[Path, int]:
    """Return the sizes of the registry's unfinished uploads."""
    sizes = {}
    for path in registry.repository("team/app").glob("_uploads/*/data"):
        # The registry moves the file when the upload is complete.
        with contextlib.suppress(FileNotFoundError):
            sizes[path] = path.stat().st_size
    return sizes


# SIGTERM takes ten seconds here: the process waits for the response to a request that never arrives.
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.nightly)])
def test_a_push_that_ends_between_chunks_resumes_with_the_next_chunk(
    relay: Relay,
    registry: DockerRegistry,
    layout: Layout,
    image: Descriptor,
    env: dict[str, str | None],
    number: signal.Signals,
) -> None:
    # One job: otherwise the config's PATCH comes in between.
    push = ["push", "-i", str(layout.path), f"{relay.host}/team/app:1", "--upload", "chunk=1MiB", "--jobs", "1"]
    with started(*push, env=env) as process:
        assert relay.held.wait(60)
        process.send_signal(number)
        process.communicate(timeout=60)
    assert len(records(env)) == len(registry.uploads("team/app")) == 1
    relay._left, relay.sent = 100, 0  # noqa: SLF001 - it is ours
    result = layout.path / "result.json"
    again = ocistream(*push, "-v", "--result", result, env=env)
    assertions.success(again)
    assert "resumed 3.1 MB of 5.2 MB of sha256:" in again.err
    assert json.loads(result.read_bytes())["resumed"] == 3 * MIB
    assert relay.sent < LAYER - 3 * MIB + 20_000
    assert manifest_digest(registry.host, "team/app", "1") == image["digest"]
    assert registry.uploads("team/app") == []
    assert records(env) == []


def test_a_truncated_docker_archive_leaves_no_upload_session(
    registry: DockerRegistry, layout: Layout, tmp_path: Path
) -> None:
    layout.image([tar_layer({"noise": random.Random(3).randbytes(4 * MIB)}, compression="")], name="v1")
    archive = tmp_path / "saved.tar"
    assertions.success(ocistream("copy", f"oci:{layout.path}:v1", f"docker-archive:{archive}:app:1"))
    pushed = ocistream("push", f"{registry.host}/team/app:1", stdin=archive.read_bytes()[: 3 * MIB])
    assertions.failure(pushed, 6, "truncated")
    assert [request for request in registry.requests() if request.startswith("PATCH")]
    assert registry.uploads("team/app") == []


@pytest.mark.parametrize("way", ["auto", "chunk=1MiB"])
def test_a_push_resumes_after_a_truncated_stream(
    registry: DockerRegistry, layout: Layout, image: Descriptor, env: dict[str, str | None], tmp_path: Path, way: str
) -> None:
    archive = tmp_path / "image.tar"
    assertions.success(ocistream("copy", f"oci:{layout.path}:v1", archive))
    push = ["push", f"{registry.host}/team/app:1", "--upload", way, "-v"]
    broken = ocistream(*push, stdin=archive.read_bytes()[: 3 * MIB + 100], env=env)
    assert broken.code == 6
    assert "truncated" in broken.err
    whole = ocistream(*push, stdin=archive.read_bytes(), env=env)
    assertions.success(whole)
    assert re.search(r"resumed [23]\.\d MB of 5\.2 MB of sha256:", whole.err)
    assert manifest_digest(registry.host, "team/app", "1") == image["digest"]
    assert records(env) == []
