"""Large manifests: few are in memory at once, and slow clients do not block others for long."""

from __future__ import annotations

import contextlib
import json
import select
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from ocistream import limits
from ocistream.serve import Registry
from tests.archives import small_first, tar_of
from tests.images import OCI_INDEX, Layout
from tests.raw_http import Client, connect, read_all
from tests.raw_server import eventually
from tests.serve.served_layout import Served, SetLimits


def index(size: int) -> bytes:
    """Return an index without manifests that has `size` bytes."""
    fields = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "padding": ""}
    return json.dumps({**fields, "padding": "x" * (size - len(json.dumps(fields)))}).encode()


SMALL: Final = index(limits.LARGE_MANIFEST)
LARGE: Final = index(limits.LARGE_MANIFEST + 1000)


@pytest.fixture
def single(tmp_path: Path, set_limits: SetLimits) -> Iterator[Served]:
    """Return a registry that accepts one large manifest at a time; others wait only briefly."""
    set_limits(MAX_LARGE_PUSHES=1, LARGE_PUSH_QUEUE_TIMEOUT=0.1)
    with Served(tmp_path / "served") as registry:
        yield registry


def put(body: bytes, *, chunked: bool) -> bytes:
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    head = f"PUT /v2/app/manifests/slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{length}\r\n\r\n"
    return head.encode() + (b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body)


@contextlib.contextmanager
def begun(registry: Served, request: bytes) -> Iterator[socket.socket]:
    """Send a request without its last ten bytes, and wait until it has the only slot for large manifests.

    The request is sent again if the registry refuses it: the check may have used the slot first.
    """
    while True:
        with connect(registry.host) as slow, Client(registry.host) as ask:
            slow.sendall(request[:-10])
            while not select.select([slow], [], [], 0)[0]:
                if ask("PUT", "/v2/app/manifests/large", LARGE).status == 429:
                    yield slow
                    return


@pytest.mark.parametrize("chunked", [False, True])
class TestPushing:
    def test_a_second_large_manifest_is_refused_until_the_first_is_done(self, single: Served, chunked: bool) -> None:
        request = put(LARGE, chunked=chunked)
        with begun(single, request) as slow, Client(single.host) as ask:
            # Small manifests do not wait.
            assert ask("PUT", "/v2/app/manifests/small", SMALL).status == 201
            assert ask("PUT", "/v2/app/manifests/large", LARGE).refusal == (429, ["TOOMANYREQUESTS"])
            slow.sendall(request[-10:])
            assert read_all(slow).startswith(b"HTTP/1.1 201 ")
            assert ask("PUT", "/v2/app/manifests/large", LARGE).status == 201
            assert ask("GET", "/v2/app/tags/list").json()["tags"] == ["large", "slow", "small"]

    def test_a_client_that_sends_a_large_manifest_slowly_is_refused(
        self, single: Served, set_limits: SetLimits, chunked: bool
    ) -> None:
        set_limits(LARGE_PUSH_TIMEOUT=0.2)
        with connect(single.host) as slow:
            slow.sendall(put(LARGE, chunked=chunked)[:-10])
            assert read_all(slow).startswith(b"HTTP/1.1 408 ")
        with Client(single.host) as ask:
            eventually(lambda: ask("PUT", "/v2/app/manifests/large", LARGE).status == 201)

    def test_a_client_that_disconnects_frees_its_slot(self, single: Served, chunked: bool) -> None:
        with begun(single, put(LARGE, chunked=chunked)) as slow:
            slow.close()
            with Client(single.host) as ask:
                eventually(lambda: ask("PUT", "/v2/app/manifests/large", LARGE).status == 201)


def test_a_small_manifest_may_be_sent_slowly(single: Served, set_limits: SetLimits) -> None:
    set_limits(LARGE_PUSH_TIMEOUT=0.0)
    request = put(SMALL, chunked=False)
    with connect(single.host) as slow, Client(single.host) as ask:
        slow.sendall(request[:-10])
        assert ask("GET", "/v2/").status == 200
        slow.sendall(request[-10:])
        assert read_all(slow).startswith(b"HTTP/1.1 201 ")


def test_many_clients_push_large_manifests_at_once(tmp_path: Path) -> None:
    def push(number: int) -> int:
        with Client(registry.host) as ask:
            return ask("PUT", f"/v2/app/manifests/v{number}", LARGE).status

    with Registry(tmp_path / "served") as registry, ThreadPoolExecutor(20) as threads:
        assert list(threads.map(push, range(20))) == [201] * 20


class TestPulling:
    @pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
    def test_a_manifest_is_served_as_it_was_pushed(self, ask: Client, body: bytes) -> None:
        digest = ask.push(body, "v1")
        for reference in ("v1", digest):
            for method in ("GET", "HEAD"):
                answer = ask(method, f"/v2/app/manifests/{reference}")
                assert answer.body == (body if method == "GET" else b"")
                assert answer.headers["Content-Length"] == str(len(body))
                assert answer.headers["Content-Type"] == OCI_INDEX
                assert answer.headers["Docker-Content-Digest"] == digest
        assert ask("GET", "/v2/app/manifests/v1", headers={"If-None-Match": f'"{digest}"'}).status == 304

    def test_a_corrupt_large_manifest_is_not_sent(self, served: Served, ask: Client) -> None:
        digest = ask.push(LARGE, "v1")
        path = served.blob(digest)
        path.chmod(0o644)
        path.write_bytes(LARGE.replace(b"x", b"y", 1))
        assert ask("GET", "/v2/app/manifests/v1").status == 500

    def test_a_large_manifest_is_served_from_an_archive(self, layout: Layout, tmp_path: Path) -> None:
        layout.name(layout.blob(LARGE, OCI_INDEX), "app:v1")
        (tmp_path / "app.tar").write_bytes(tar_of(small_first(layout)))
        with Registry(tmp_path / "app.tar") as registry, Client(registry.host) as ask:
            assert ask("GET", "/v2/library/app/manifests/v1").body == LARGE

    def test_slow_readers_do_not_block_others(self, served: Served, ask: Client) -> None:
        ask.push(LARGE, "v1")
        with contextlib.ExitStack() as stack:
            for _ in range(2 * limits.MAX_CONCURRENT_PARSES):
                slow = stack.enter_context(connect(served.host, receive_buffer=4096))
                slow.sendall(b"GET /v2/app/manifests/v1 HTTP/1.1\r\nHost: x\r\n\r\n")
                assert slow.recv(13) == b"HTTP/1.1 200 "
            assert ask("GET", "/v2/app/manifests/v1").body == LARGE
