"""What the limits of the command line come to: in settings, and for the two sides of a copy."""

from __future__ import annotations

import contextlib
import math
import threading
from typing import Any

import pytest

from ocistream.cli.console import Console
from ocistream.cli.context import CommandContext
from ocistream.cli.registry_options import build_http_settings

#: What the options of a transfer come to where nothing but limits was given.
OPTIONS: dict[str, Any] = {
    **dict.fromkeys(("ca_cert", "client_cert", "client_key", "cert_dir", "insecure", "plain_http")),
    **dict.fromkeys(("s_username", "s_password_stdin", "d_username", "d_password_stdin")),
    "retries": 5,
    "connect_timeout": 15.0,
    "stall_timeout": 60.0,
    "limit_rate": 1000.0,
    "max_requests_per_second": 3.0,
}


@pytest.mark.parametrize(("stall", "longest"), [(30.0, 900.0), (3600.0, 3600.0)])
def test_limits_reach_the_transport(stall: float, longest: float) -> None:
    settings = build_http_settings(OPTIONS | {"connect_timeout": 2.5, "stall_timeout": stall}, {})
    assert (settings.connect_timeout, settings.stall_timeout) == (2.5, stall)
    assert (settings.response_timeout(0), settings.response_timeout(math.inf)) == (stall, longest)
    assert settings.requests_per_second == 3.0
    assert settings.retry_policy.attempts == 6


def test_both_sides_of_a_copy_share_the_limits() -> None:
    session = CommandContext(Console(), OPTIONS, threading.Event())
    with contextlib.ExitStack() as stack:
        sides = [stack.enter_context(contextlib.closing(session.build_open_context(side).client())) for side in "SD"]
    source, target = (side._rate_limits for side in sides)  # noqa: SLF001 - nobody but a test wants to know
    assert source is target
    assert source.download is not None


def test_memory_is_what_may_be_fetched_ahead() -> None:
    unlimited = OPTIONS | {"memory": 1 << 26, "limit_rate": None}
    assert CommandContext(Console(), unlimited, threading.Event()).prefetch_memory == 1 << 26
    # One connection would be too fast already.
    limited = OPTIONS | {"memory": 1 << 26, "limit_rate": 1000.0}
    assert CommandContext(Console(), limited, threading.Event()).prefetch_memory == 0
