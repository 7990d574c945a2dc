"""The memory of `ocistream serve` does not grow with the number of clients, and grows little with that of images."""

from __future__ import annotations

import contextlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Final

import pytest

from ocistream import limits
from tests.cli.serving import really_serving
from tests.html_page import Page
from tests.images import OCI_INDEX, Layout, thousands_of_images
from tests.raw_http import Client, connect

# tests/serve/test_large_manifests.py tests in each run that few manifests are in memory at once.
pytestmark = [pytest.mark.nightly, pytest.mark.usefixtures("interruptible")]

MIB: Final = 1 << 20
CLIENTS: Final = 14
#: The server needs about 75 MiB for any number of clients, and 90 MiB or more if it keeps every client's manifest.
BOUND: Final = 84 * MIB


def index(note: str) -> bytes:
    """Return an index without manifests, of nearly the maximum size."""
    fields = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "annotations": {"note": note}}
    padding = "x" * (limits.MAX_MANIFEST - len(json.dumps(fields)) - 100)
    return json.dumps({**fields, "padding": padding}).encode()


def peak(pid: int) -> int:
    """Return the peak memory of a process, in bytes."""
    match = re.search(r"^VmHWM:\s*(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match
    return int(match[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_few_of_many_parallel_large_manifests_are_in_memory(tmp_path: Path) -> None:
    bodies = [index(str(number)) for number in range(CLIENTS)]
    together = Barrier(CLIENTS)

    def push(number: int) -> int:
        together.wait()
        with Client(host) as ask:
            return ask("PUT", f"/v2/app/manifests/v{number}", bodies[number]).status

    with really_serving(tmp_path / "store") as (process, host):
        with ThreadPoolExecutor(CLIENTS) as threads:
            assert list(threads.map(push, range(CLIENTS))) == [201] * CLIENTS
        assert peak(process.pid) < BOUND
        with contextlib.ExitStack() as stack:
            for number in range(CLIENTS):
                slow = stack.enter_context(connect(host, receive_buffer=4096))
                slow.sendall(f"GET /v2/app/manifests/v{number} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                assert slow.recv(13) == b"HTTP/1.1 200 "
            assert peak(process.pid) < BOUND


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_the_page_of_thousands_of_images_needs_little_memory(layout: Layout) -> None:
    thousands_of_images(layout)
    with really_serving(layout.path) as (process, host), Client(host) as ask:
        for _ in range(2):
            page = ask("GET", "/", headers={"Accept": "text/html"}).body.decode()
            assert Page(page).text.count(f"docker pull {host}/team/app-") == 4_000
        assert peak(process.pid) < 48 * MIB
