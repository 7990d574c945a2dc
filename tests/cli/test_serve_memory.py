"""The memory of `ocistream serve` does not grow with the number of clients, and grows little with that of images."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import ssl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Final

import pytest

from ocistream import limits
from tests.certificates import make_certificate
from tests.cli.serving import really_serving
from tests.html_page import Page
from tests.images import OCI_INDEX, Layout, digest_of, thousands_of_images
from tests.raw_http import Client, connect

pytestmark = [
    pytest.mark.usefixtures("interruptible"),
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc"),
]

MIB: Final = 1 << 20
CLIENTS: Final = 14
#: Clients that push and pull small images and blobs at the same time.
MANY_CLIENTS: Final = 64
#: The promise for all commands.
PROMISED: Final = 48 * MIB
#: The server needs about 75 MiB for any number of clients, and 90 MiB or more if it keeps every client's manifest.
BOUND: Final = 84 * MIB

_EMPTY_INDEX: Final = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}


def index(note: str) -> bytes:
    """Return an index without manifests, of nearly the maximum size."""
    fields = {**_EMPTY_INDEX, "annotations": {"note": note}}
    padding = "x" * (limits.MAX_MANIFEST - len(json.dumps(fields)) - 100)
    return json.dumps({**fields, "padding": padding}).encode()


def peak(pid: int) -> int:
    """Return the peak memory of a process, in bytes."""
    match = re.search(r"^VmHWM:\s*(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match
    return int(match[1]) * 1024


# tests/serve/test_large_manifests.py tests in each run that few manifests are in memory at once.
@pytest.mark.nightly
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


@pytest.mark.nightly
def test_the_page_of_thousands_of_images_needs_little_memory(layout: Layout) -> None:
    thousands_of_images(layout)
    with really_serving(layout.path) as (process, host), Client(host) as ask:
        for _ in range(2):
            page = ask("GET", "/", headers={"Accept": "text/html"}).body.decode()
            assert Page(page).text.count(f"docker pull {host}/team/app-") == 4_000
        assert peak(process.pid) < PROMISED


def test_a_directory_is_served_without_modules_that_take_much_memory(tmp_path: Path) -> None:
    code = """
import pathlib, sys
from ocistream.serve import Registry
with Registry(pathlib.Path(sys.argv[1])):
    print(*({"email", "http.client", "http.server", "ssl", "tarfile", "ocistream.archive.source"} & {*sys.modules}))
"""
    argv = [sys.executable, "-P", "-c", code, str(tmp_path / "store")]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == "\n"


def uncounted() -> dict[str, None]:
    """Return an environment without coverage, which takes memory."""
    return dict.fromkeys(name for name in os.environ if name.startswith("COVERAGE_"))


def test_many_clients_that_push_beside_thousands_of_entries_need_little_memory(layout: Layout) -> None:
    entries = [
        {
            "mediaType": OCI_INDEX,
            "digest": digest_of(b"%d" % number),
            "size": 500,
            "annotations": {
                "io.containerd.image.name": f"registry.example.com/team/app-{number % 300}:v{number}",
                "org.opencontainers.image.ref.name": f"v{number}",
            },
        }
        for number in range(7_000)
    ]
    (layout.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    together = Barrier(MANY_CLIENTS)

    def push(client: int) -> None:
        with Client(host) as ask:
            together.wait()
            for number in range(3):
                document = {
                    "schemaVersion": 2,
                    "mediaType": OCI_INDEX,
                    "manifests": [],
                    "annotations": {"n": str(number)},
                }
                ask.push(document, f"v{number}", f"app-{client}")
                assert ask("GET", f"/v2/app-{client}/manifests/v{number}").status == 200

    with really_serving(layout.path, env=uncounted()) as (process, host):
        with ThreadPoolExecutor(MANY_CLIENTS) as threads:
            list(threads.map(push, range(MANY_CLIENTS)))
        assert peak(process.pid) < PROMISED


def test_many_clients_that_copy_blobs_over_tls_need_little_memory(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path / "tls")
    trusting = ssl.create_default_context(cafile=str(certificate.file))
    together = Barrier(MANY_CLIENTS)

    def copy(client: int) -> None:
        content = b"%d" % client * MIB
        with contextlib.closing(http.client.HTTPSConnection(host, context=trusting, timeout=60)) as connection:
            connection.connect()
            together.wait()
            connection.request("POST", f"/v2/app/blobs/uploads/?digest={digest_of(content)}", content)
            assert connection.getresponse().read() == b""
            connection.request("GET", f"/v2/app/blobs/{digest_of(content)}")
            assert connection.getresponse().read() == content
            # No connection is closed before all have had a buffer.
            together.wait()

    tls: list[str | Path] = ["--tls-cert", certificate.file, "--tls-key", certificate.key_file]
    with really_serving(tmp_path / "store", *tls, env=uncounted()) as (process, host):
        with ThreadPoolExecutor(MANY_CLIENTS) as threads:
            list(threads.map(copy, range(MANY_CLIENTS)))
        assert peak(process.pid) < 40 * MIB
