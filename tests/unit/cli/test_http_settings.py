"""The limits of the command line as settings of the HTTP client, for both sides of a copy."""

from __future__ import annotations

import contextlib
import math
import threading

import pytest

from ocistream.api.options import CopyOptions, RegistryOptions
from ocistream.api.registries import RegistryAccess
from ocistream.cli.console import Console
from ocistream.cli.context import CommandContext
from ocistream.cli.options import OmissionOptions, RunOptions
from ocistream.cli.sides import build_sides


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


def test_both_sides_of_a_copy_share_the_limits() -> None:
    none = RegistryOptions()
    context = CommandContext(
        command="pull",
        console=Console(),
        run_options=RunOptions(limit_rate=1000.0, max_requests_per_second=3.0),
        registry_options=none,
        sides=build_sides(none, {"src": none, "dest": none}),
        copy_options=CopyOptions(),
        omission_options=OmissionOptions(),
    )
    with contextlib.ExitStack() as stack:
        sides = [
            stack.enter_context(contextlib.closing(context.build_open_context(side).registries().client))
            for side in context.sides
        ]
    source, target = (side._rate_limits for side in sides)  # noqa: SLF001 - only a test needs it
    assert source is target
    assert source.download is not None


def test_memory_limits_prefetching() -> None:
    assert RunOptions(memory=1 << 26).prefetch_memory == 1 << 26
    # A single connection would exceed the limit already.
    assert RunOptions(memory=1 << 26, limit_rate=1000.0).prefetch_memory == 0
