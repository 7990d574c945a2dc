"""Limits of bytes and requests per second, with a clock that the tests advance."""

from __future__ import annotations

import itertools
import random
import socket
import threading
from bisect import bisect_left
from collections.abc import Callable

import pytest

from ocistream import limits
from ocistream.errors import CancelledError, NotFoundError
from ocistream.http.adapter import FixedLengthBody
from ocistream.http.client import HttpClient
from ocistream.http.rate_limits import RateLimits, Throttle
from ocistream.http.settings import HttpSettings
from tests.faulty_registry import Fault, Reply
from tests.http_doubles import CountingRegistry, QuickTransport, RawServer

Faulty = Callable[..., CountingRegistry]
Quick = Callable[..., QuickTransport]
MIB = 1 << 20


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class TestThrottle:
    def test_the_wait_grows_with_the_bytes(self) -> None:
        throttle = Throttle(1000.0, clock=Clock())
        assert [throttle.count(count) for count in (100, 50, 0, 850)] == pytest.approx([0.1, 0.15, 0.15, 1.0])

    def test_a_pause_allows_no_burst(self) -> None:
        clock = Clock()
        throttle = Throttle(1000.0, clock=clock)
        throttle.count(100)
        clock.now += 3600
        assert throttle.count(500) == pytest.approx(0.5)

    @pytest.mark.parametrize("rate", [600, 100_000, 5 * MIB, 1 << 30])
    def test_jobs_exceed_the_rate_by_at_most_one_piece_each(self, rate: int) -> None:
        clock = Clock()
        throttle = Throttle(rate, clock=clock)
        wakes = dict.fromkeys(range(4), clock.now)
        moved: list[tuple[float, int]] = []
        chance = random.Random(rate)
        while clock.now < 1010.0:
            job = min(wakes, key=lambda one: wakes[one])
            clock.now = wakes[job]
            count = chance.randint(1, throttle.piece_size)
            moved.append((clock.now, count))
            wakes[job] = clock.now + throttle.count(count)
        # In the order of time, with the bytes moved before each piece: there are tens of thousands.
        times = [when for when, _ in moved]
        before = [0, *itertools.accumulate(count for _, count in moved)]
        assert times == sorted(times)
        for start in times:
            for seconds in (0.25, 1.0, 5.0):
                window = before[bisect_left(times, start + seconds)] - before[bisect_left(times, start)]
                assert window <= rate * seconds + 4 * throttle.piece_size
        assert before[-1] >= rate * 9

    @pytest.mark.parametrize(
        ("rate", "piece"), [(1, 512), (16_000, 1000), (MIB, MIB // 16), (1 << 40, limits.CHUNK_SIZE)]
    )
    def test_a_piece_is_a_sixteenth_of_a_second_and_at_most_a_chunk(self, rate: int, piece: int) -> None:
        assert Throttle(rate).piece_size == piece


class TestRequestSlots:
    def test_requests_are_evenly_spaced_for_each_host(self) -> None:
        clock = Clock()
        turns = RateLimits(clock=clock)
        assert [turns.reserve("a", 4.0) for _ in range(3)] == pytest.approx([0.0, 0.25, 0.5])
        assert turns.reserve("b", 4.0) == 0.0
        clock.now += 0.3
        assert turns.reserve("a", 4.0) == pytest.approx(0.45)
        clock.now += 60
        assert [turns.reserve("a", 2.0), turns.reserve("a", 2.0)] == pytest.approx([0.0, 0.5])

    def test_without_a_limit_no_request_waits(self) -> None:
        turns = RateLimits(clock=Clock())
        assert [turns.reserve("a", None) for _ in range(100)] == [0.0] * 100


class TestRates:
    def test_the_wait_for_a_request_head_follows_its_answer(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty()
        transport = quick(pace=RateLimits(10.0))
        endpoint = transport.endpoint(registry.host)
        transport.request(endpoint, "POST", f"{endpoint.url}/v2/a/blobs/uploads/", expected=(202,))
        assert transport.waits == []
        url = f"{endpoint.url}/v2/a/blobs/uploads/none"
        with pytest.raises(NotFoundError):
            transport.request(endpoint, "PATCH", url, body=FixedLengthBody(iter([b"x"]), 1))
        # Both heads have several hundred bytes.
        assert transport.waits[0] > 10

    def test_each_direction_has_a_separate_limit(self) -> None:
        pace = RateLimits(1000.0)
        assert pace.download is not None
        assert pace.upload is not None
        pace.download.count(100_000)
        assert pace.upload.count(1) < 1.0

    def test_the_receive_buffer_of_the_kernel_is_limited(self, quick: Quick) -> None:
        sizes = []
        for pace in (RateLimits(), RateLimits(64_000.0), RateLimits(MIB), RateLimits(1 << 30)):
            with RawServer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as server:
                transport = quick(pace=pace)
                transport.request(transport.endpoint(server.host), "GET", f"{server.url}/v2/")
                (connection,) = transport._adapter._idle  # noqa: SLF001 - only a test needs it
                sock = connection.sock
                sizes.append(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))
        # The kernel doubles the requested size (socket(7)).
        assert sizes[1:3] == [2 * (16 << 10), 2 * (64 << 10)]
        assert sizes[0] == sizes[3]

    def test_a_wait_ends_when_the_transfer_is_cancelled(self, faulty: Faulty) -> None:
        registry = faulty(Fault(Reply(200, {}, b"x" * 100_000)))
        cancelled = threading.Event()
        pace = RateLimits()
        pace.download = Throttle(1.0)
        transport = HttpClient(HttpSettings(), lambda *_: None, cancelled=cancelled, rate_limits=pace)
        endpoint = transport.endpoint(registry.host)
        chunks = transport.request(endpoint, "GET", f"{endpoint.url}/v2/", read=None).chunks()
        cancelled.set()
        with pytest.raises(CancelledError):
            next(chunks)
        transport.close()
