"""The limits of the command line as settings of the HTTP client."""

from __future__ import annotations

import contextlib
import math
import threading

import pytest

from ocistream.api.options import RegistryOptions
from ocistream.api.registries import RegistryAccess
from ocistream.cli.options import RunOptions


@pytest.mark.parametrize(("stall", "longest"), [(30.0, 900.0), (3600.0, 3600.0)])
def test_limits_reach_the_http_client(stall: float, longest: float) -> None:
    options = RunOptions(connect_timeout=2.5, stall_timeout=stall, max_requests_per_second=3.0)
    access = RegistryAccess(options, {}, lambda: None)
    with contextlib.closing(
        access.create_client(RegistryOptions(), lambda *_: None, cancelled=threading.Event())
    ) as client:
        settings = client._settings  # noqa: SLF001 - only a test needs it
    assert (settings.connect_timeout, settings.stall_timeout) == (2.5, stall)
    assert (settings.response_timeout(0), settings.response_timeout(math.inf)) == (stall, longest)
    assert settings.requests_per_second == 3.0
    assert settings.retry_policy.attempts == 6


def test_memory_limits_prefetching() -> None:
    assert RunOptions(memory=1 << 26).prefetch_memory == 1 << 26
    # A single connection would exceed the limit already.
    assert RunOptions(memory=1 << 26, limit_rate=1000.0).prefetch_memory == 0
