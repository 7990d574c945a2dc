"""Ranges of blobs that are fetched in parallel: which bytes are requested, and from which host."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from ocistream.errors import (
    NetworkError,
    PermanentNetworkError,
    RegistryError,
)
from ocistream.registry.repository import Repository
from tests.faulty_auth import Bearer
from tests.faulty_registry import (
    Action,
    Drop,
    Fault,
    HangUp,
    IgnoreRange,
    Reply,
    Reset,
    redirect,
    refusal,
)
from tests.http_doubles import CountingRegistry, QuickTransport, RawServer, blob_of

Faulty = Callable[..., CountingRegistry]
Quick = Callable[..., QuickTransport]

MIB = 1 << 20
CONTENT = random.Random(0).randbytes(MIB + 12345)
BLOB = blob_of(CONTENT)
SIZE = len(CONTENT)


@pytest.fixture
def registry(faulty: Faulty) -> CountingRegistry:
    """Return a registry that has the blob."""
    found = faulty()
    found.hold(CONTENT)
    return found


def repository(transport: QuickTransport, registry: CountingRegistry | RawServer, **options: Any) -> Repository:
    return Repository(transport, registry.host, "app", **options)


class TestRanges:
    """Ranges of a blob, each fetched by one request without retries: the caller handles a failure."""

    def part(self, quick: Quick, registry: CountingRegistry | RawServer, start: int, end: int) -> bytes:
        view = memoryview(bytearray(end - start))
        counts = repository(quick(), registry).download(BLOB).fetch_range(start, end, iter([view]))
        return bytes(view[: sum(counts)])

    @pytest.mark.parametrize(("start", "end"), [(0, 1), (0, SIZE - 1), (1000, MIB), (SIZE - 1, SIZE), (0, SIZE)])
    def test_exactly_the_range_is_requested(
        self, registry: CountingRegistry, quick: Quick, start: int, end: int
    ) -> None:
        assert self.part(quick, registry, start, end) == CONTENT[start:end]
        (request,) = registry.requests
        asked = None if (start, end) == (0, SIZE) else f"bytes={start}-{end - 1}"
        assert request.headers.get("Range") == asked

    @pytest.mark.parametrize(
        "action",
        [refusal(429), refusal(503), refusal(416), HangUp(), Drop(after=1000), Reset(after=1000), IgnoreRange()],
        ids=lambda action: type(action).__name__,
    )
    def test_a_failed_range_is_not_retried(self, registry: CountingRegistry, quick: Quick, action: Action) -> None:
        registry.faults.append(Fault(action, path="blobs", times=None))
        with pytest.raises(NetworkError):
            self.part(quick, registry, 1000, MIB)
        assert len(registry.requests) == 1

    def test_a_retry_after_pauses_all_requests(self, registry: CountingRegistry, quick: Quick) -> None:
        registry.faults.append(Fault(Reply(429, {"Retry-After": "7"}), path="blobs"))
        transport = quick()
        source = repository(transport, registry)
        with pytest.raises(RegistryError):
            next(source.download(BLOB).fetch_range(0, 10, iter([memoryview(bytearray(10))])))
        assert transport.waits == []
        assert source.has_blob(BLOB)
        assert transport.waits == [pytest.approx(7, abs=1)]

    @pytest.mark.parametrize("said", ["bytes 0-9/20", "bytes 11-20/30", "bytes */30", "10-19", ""])
    def test_another_range_is_refused(self, quick: Quick, said: str) -> None:
        answer = f"HTTP/1.1 206 Partial Content\r\nContent-Length: 10\r\nContent-Range: {said}\r\n\r\n0123456789"
        with (
            RawServer(answer.encode()) as server,
            pytest.raises(PermanentNetworkError, match="instead of bytes from 10 on"),
        ):
            self.part(quick, server, 10, 20)


class TestRedirectedDownloads:
    def test_later_ranges_are_requested_from_the_redirect_target(
        self, faulty: Faulty, registry: CountingRegistry, quick: Quick
    ) -> None:
        there = redirect(f"{registry.url}/v2/app/blobs/{BLOB.digest}?sig=x")
        front = faulty(Fault(there, path="/blobs/", times=None), auth=Bearer())
        assert self.in_parts(quick, front) == CONTENT
        assert len(front.asked("GET", "/blobs/")) == 1 + 1
        assert len(registry.requests) == 4
        assert not any("Authorization" in request.headers for request in registry.requests)

    def test_an_expired_redirect_is_requested_again(
        self, faulty: Faulty, registry: CountingRegistry, quick: Quick
    ) -> None:
        there = redirect(f"{registry.url}/v2/app/blobs/{BLOB.digest}?sig=x")
        front = faulty(Fault(there, path="/blobs/", times=None))
        registry.faults = [Fault(refusal(403), skip=2)]
        assert self.in_parts(quick, front) == CONTENT
        assert len(front.asked("GET", "/blobs/")) == 2

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_a_server_error_does_not_renew_the_redirect(
        self, faulty: Faulty, registry: CountingRegistry, quick: Quick, status: int
    ) -> None:
        there = redirect(f"{registry.url}/v2/app/blobs/{BLOB.digest}?sig=x")
        front = faulty(Fault(there, path="/blobs/", times=None))
        registry.faults = [Fault(refusal(status), skip=1)]
        with pytest.raises(RegistryError, match=str(status)):
            self.in_parts(quick, front)
        assert (len(front.asked("GET", "/blobs/")), len(registry.requests)) == (1, 2)

    def test_a_chain_of_redirects_is_followed_for_each_range(
        self, faulty: Faulty, registry: CountingRegistry, quick: Quick
    ) -> None:
        there = redirect(f"{registry.url}/v2/app/blobs/{BLOB.digest}")
        between = faulty(Fault(there, path="/blobs/", times=None))
        front = faulty(Fault(redirect(f"{between.url}/v2/app/blobs/x"), path="/blobs/", times=None))
        assert self.in_parts(quick, front) == CONTENT
        assert (len(front.asked("GET", "/blobs/")), len(between.requests)) == (4, 4)

    def in_parts(self, quick: Quick, front: CountingRegistry) -> bytes:
        source, content = repository(quick(), front).download(BLOB), memoryview(bytearray(SIZE))
        step = SIZE // 4 + 1
        for start in range(0, SIZE, step):
            end = min(start + step, SIZE)
            # Buffers may be smaller than the range.
            buffers = iter([content[start : start + 1000], content[start + 1000 : end]])
            assert sum(source.fetch_range(start, end, buffers)) == end - start
        return bytes(content)
