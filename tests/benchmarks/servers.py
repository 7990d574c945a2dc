"""The servers of the benchmarks: docker-registry and nginx, on loopback."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.benchmarks import distant_proxy
from tests.certificates import make_certificate
from tests.peers import docker_registry, nginx

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: The rate of the limited server for each connection, in bytes per second.
RATE = 50_000_000
#: The round-trip time to the distant registries, in seconds.
ROUND_TRIP = 0.1


@dataclass(frozen=True)
class Servers:
    """The servers, as HOST:PORT. `ca` is the CA certificate of the server with TLS."""

    #: docker-registry as the source, and another one as the destination.
    registry: str
    other: str
    #: nginx as a proxy of the first: with a limit for each connection, and with TLS.
    limited: str
    encrypted: str
    ca: Path
    #: Both registries through proxies that add a round-trip time of `ROUND_TRIP`.
    distant: str
    other_distant: str
    #: The data directories of both registries.
    roots: tuple[Path, ...]

    def forget(self, repository: str) -> None:
        """Delete a repository from both registries, and all blobs of the second, so that a push sends them again."""
        for root in self.roots:
            shutil.rmtree(root / "repositories" / repository, ignore_errors=True)
        shutil.rmtree(self.roots[1] / "blobs", ignore_errors=True)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Servers]:
    """Run the servers with their files in `folder`."""
    certificate = make_certificate(folder / "tls")
    with contextlib.ExitStack() as stack:
        # Each blob is pushed once, so the registry may cache blob descriptors.
        first = stack.enter_context(docker_registry(folder / "first"))
        second = stack.enter_context(docker_registry(folder / "second"))
        proxied = f"location / {{ proxy_pass {first.url}; }}"
        # nginx limits the rate, and must not buffer the rest on the disk.
        limit = f"limit_rate {RATE}; proxy_buffering on; proxy_max_temp_file_size 0;"
        limited = stack.enter_context(nginx(folder / "limited", f"{limit} {proxied}"))
        buffered = "proxy_buffering on; proxy_max_temp_file_size 0;"
        encrypted = stack.enter_context(
            nginx(folder / "encrypted", f"{buffered} {proxied}", tls=certificate, name="localhost")
        )
        roots = tuple(server.root / "docker" / "registry" / "v2" for server in (first, second))
        distant, other_distant = (stack.enter_context(_distant(server.host)) for server in (first, second))
        yield Servers(
            registry=first.host,
            other=second.host,
            limited=limited.host,
            encrypted=encrypted.host,
            ca=certificate.file,
            distant=distant,
            other_distant=other_distant,
            roots=roots,
        )


@contextlib.contextmanager
def _distant(host: str) -> Iterator[str]:
    """Run a proxy that adds `ROUND_TRIP` to a server; yield its HOST:PORT."""
    port = host.rpartition(":")[2]
    line = [sys.executable, distant_proxy.__file__, port, str(ROUND_TRIP)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()
