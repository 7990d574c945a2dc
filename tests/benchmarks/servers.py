"""The servers that the work is done with: real ones, on loopback."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.certificates import make_certificate
from tests.peers import docker_registry, nginx

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["RATE", "Servers", "running"]

#: What the limited server gives each connection, in bytes a second.
RATE = 50_000_000


@dataclass(frozen=True)
class Servers:
    """Where each is, as `host:port`. `ca` is the certificate that the one with TLS is trusted by."""

    #: docker-registry itself, and another one to copy to.
    registry: str
    other: str
    #: nginx before the first: one that limits each connection, one that speaks TLS.
    limited: str
    encrypted: str
    ca: Path
    #: Where both registries keep what they know of repositories.
    roots: tuple[Path, ...]

    def forget(self, repository: str) -> None:
        """Remove a repository from both registries, and the blobs of the second: it is to get all of it again."""
        for root in self.roots:
            shutil.rmtree(root / "repositories" / repository, ignore_errors=True)
        shutil.rmtree(self.roots[1] / "blobs", ignore_errors=True)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Servers]:
    """Run all of them, with their files in `folder`."""
    certificate = make_certificate(folder / "tls")
    with contextlib.ExitStack() as stack:
        # Each blob is pushed once, and may stay in what the registry remembers of blobs.
        first = stack.enter_context(docker_registry(folder / "first"))
        second = stack.enter_context(docker_registry(folder / "second"))
        proxied = f"location / {{ proxy_pass {first.url}; }}"
        # nginx sends no faster than it is let, and is not to keep the rest on a disk.
        limit = f"limit_rate {RATE}; proxy_buffering on; proxy_max_temp_file_size 0;"
        limited = stack.enter_context(nginx(folder / "limited", f"{limit} {proxied}"))
        buffered = "proxy_buffering on; proxy_max_temp_file_size 0;"
        encrypted = stack.enter_context(
            nginx(folder / "encrypted", f"{buffered} {proxied}", tls=certificate, name="localhost")
        )
        roots = tuple(server.root / "docker" / "registry" / "v2" for server in (first, second))
        yield Servers(first.host, second.host, limited.host, encrypted.host, certificate.file, roots)
