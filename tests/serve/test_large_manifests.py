"""The embedded registry and large manifests: few are in memory at once, and slow clients hold up nobody for long."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from ocistream import limits
from ocistream.serve import Registry
from ocistream.serve.memory import Slots
from tests.archives import small_first, tar_of
from tests.images import OCI_INDEX, Layout
from tests.talking import Client, connect, read_all


def index(size: int) -> bytes:
    """Return an index without manifests, of so many bytes."""
    fields = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "padding": ""}
    return json.dumps({**fields, "padding": "x" * (size - len(json.dumps(fields)))}).encode()


SMALL: Final = index(limits.LARGE_MANIFEST)
LARGE: Final = index(limits.LARGE_MANIFEST + 1000)


class NotingSlots(Slots):
    """Says when a slot is taken."""

    taken = threading.Event()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        with super().one():
            self.taken.set()
            yield


@pytest.fixture
def single(tmp_path: Path) -> Iterator[Registry]:
    """Return a registry that takes one large manifest at a time."""
    with Registry(tmp_path / "served") as registry:
        registry.large_pushes = NotingSlots(1, 0.5)
        yield registry


def put(body: bytes, *, chunked: bool) -> bytes:
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    head = f"PUT /v2/app/manifests/slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{length}\r\n\r\n"
    return head.encode() + (b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body)


def begun(registry: Registry, request: bytes, missing: int) -> socket.socket:
    """Send a request but for its last bytes, and wait until the registry has a slot taken for it."""
    NotingSlots.taken.clear()
    slow = connect(registry.host)
    slow.sendall(request[:-missing])
    assert NotingSlots.taken.wait(60)
    return slow


@pytest.mark.parametrize("chunked", [False, True])
class TestPushing:
    def test_one_more_than_there_may_be_waits_for_its_turn(self, single: Registry, chunked: bool) -> None:
        request = put(LARGE, chunked=chunked)
        with begun(single, request, 10) as slow, Client(single.host) as ask:
            # Small ones do not wait.
            assert ask("PUT", "/v2/app/manifests/small", SMALL).status == 201
            refused = ask("PUT", "/v2/app/manifests/large", LARGE)
            assert (refused.status, refused.codes) == (429, ["TOOMANYREQUESTS"])
            slow.sendall(request[-10:])
            assert read_all(slow).startswith(b"HTTP/1.1 201 ")
            assert ask("PUT", "/v2/app/manifests/large", LARGE).status == 201
            assert ask("GET", "/v2/app/tags/list").json()["tags"] == ["large", "slow", "small"]

    def test_a_client_that_sends_one_slowly_loses_its_turn(
        self, single: Registry, monkeypatch: pytest.MonkeyPatch, chunked: bool
    ) -> None:
        monkeypatch.setattr(limits, "LARGE_PUSH_TIME", 0.2)
        with begun(single, put(LARGE, chunked=chunked), 10) as slow:
            assert read_all(slow).startswith(b"HTTP/1.1 408 ")
        with Client(single.host) as ask:
            assert ask("PUT", "/v2/app/manifests/large", LARGE).status == 201

    def test_so_does_one_that_goes_away(self, single: Registry, chunked: bool) -> None:
        begun(single, put(LARGE, chunked=chunked), 10).close()
        with Client(single.host) as ask:
            assert ask("PUT", "/v2/app/manifests/large", LARGE).status == 201


def test_a_small_manifest_may_be_sent_slowly(single: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LARGE_PUSH_TIME", 0.0)
    request = put(SMALL, chunked=False)
    with connect(single.host) as slow, Client(single.host) as ask:
        slow.sendall(request[:-10])
        assert ask("GET", "/v2/").status == 200
        slow.sendall(request[-10:])
        assert read_all(slow).startswith(b"HTTP/1.1 201 ")


def test_many_clients_push_large_ones_at_once(tmp_path: Path) -> None:
    def push(number: int) -> int:
        with Client(registry.host) as ask:
            return ask("PUT", f"/v2/app/manifests/v{number}", LARGE).status

    with Registry(tmp_path / "served") as registry, ThreadPoolExecutor(20) as threads:
        assert list(threads.map(push, range(20))) == [201] * 20


class TestPulling:
    @pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
    def test_a_manifest_comes_as_it_was_pushed(self, ask: Client, body: bytes) -> None:
        digest = ask.push(body, "v1")
        for reference in ("v1", digest):
            for method in ("GET", "HEAD"):
                answer = ask(method, f"/v2/app/manifests/{reference}")
                assert answer.body == (body if method == "GET" else b"")
                assert answer.headers["Content-Length"] == str(len(body))
                assert answer.headers["Content-Type"] == OCI_INDEX
                assert answer.headers["Docker-Content-Digest"] == digest
        assert ask("GET", "/v2/app/manifests/v1", headers={"If-None-Match": f'"{digest}"'}).status == 304

    def test_a_large_one_that_is_corrupt_is_not_sent(self, served: Registry, ask: Client) -> None:
        digest = ask.push(LARGE, "v1")
        path = served.layout.blob_path(digest)
        path.chmod(0o644)
        path.write_bytes(LARGE.replace(b"x", b"y", 1))
        assert ask("GET", "/v2/app/manifests/v1").status == 500

    def test_a_large_one_comes_out_of_an_archive(self, layout: Layout, tmp_path: Path) -> None:
        layout.name(layout.blob(LARGE, OCI_INDEX), "app:v1")
        (tmp_path / "app.tar").write_bytes(tar_of(small_first(layout)))
        with Registry(tmp_path / "app.tar") as registry, Client(registry.host) as ask:
            assert ask("GET", "/v2/library/app/manifests/v1").body == LARGE

    def test_clients_that_read_slowly_hold_up_nobody(self, served: Registry, ask: Client) -> None:
        ask.push(LARGE, "v1")
        with contextlib.ExitStack() as stack:
            for _ in range(2 * limits.MAX_PARSED):
                slow = stack.enter_context(connect(served.host, receive_buffer=4096))
                slow.sendall(b"GET /v2/app/manifests/v1 HTTP/1.1\r\nHost: x\r\n\r\n")
                assert slow.recv(13) == b"HTTP/1.1 200 "
            assert ask("GET", "/v2/app/manifests/v1").body == LARGE
