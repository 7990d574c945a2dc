"""Doubles for tests of HTTP: a client that does not sleep, and a registry that counts its connections.

Doubles that need nothing from the product are in `tests.raw_server`; this module exports them too.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

from ocistream.auth.docker_config import Credential
from ocistream.http.client import HttpClient
from ocistream.http.rate_limits import RateLimits
from ocistream.http.retry import RetryEvent
from ocistream.http.settings import HostSettings, HttpSettings, RetryPolicy
from ocistream.oci.descriptor import Descriptor
from ocistream.registry.upload_strategy import UploadStrategy
from tests.faulty_registry import FaultyRegistry
from tests.images import digest_of
from tests.raw_server import Heard, RawServer, Turn, eventually, names, read_head, unused_port

__all__ = [
    "OCTETS",
    "QUICK",
    "CountingRegistry",
    "Heard",
    "QuickTransport",
    "RawServer",
    "Turn",
    "blob_of",
    "eventually",
    "header_values",
    "names",
    "read_head",
    "unused_port",
]

#: Four attempts, almost without a pause.
QUICK: Final = RetryPolicy(attempts=4, backoff=0.001, backoff_limit=0.002)
OCTETS: Final = "application/octet-stream"


class QuickTransport(HttpClient):
    """A client that records its pauses in `waits` (seconds) and does not sleep; `told` has the calls of `on_retry`."""

    def __init__(
        self,
        *,
        patience: RetryPolicy = QUICK,
        credential: Credential | None = None,
        cancelled: threading.Event | None = None,
        hosts: Mapping[str, HostSettings] | None = None,
        host: HostSettings | None = None,
        pace: RateLimits | None = None,
        ladder: UploadStrategy | None = None,
        **settings: Any,
    ) -> None:
        """`credential` and `host` are used for every registry; `settings` are those of `HttpSettings`."""
        #: The hosts whose settings were requested.
        self.hosts_asked: list[str] = []

        def settings_of(name: str, repository: str) -> HostSettings:
            self.hosts_asked.append(name)
            known = hosts or {}
            return known.get(f"{name}/{repository}", known.get(name, host or HostSettings()))

        #: What uploads by this client learn; pass it to the uploader.
        self.upload_strategy = ladder or UploadStrategy()
        self.waits: list[float] = []
        self.told: list[RetryEvent] = []
        super().__init__(
            HttpSettings(retry_policy=patience, **settings),
            lambda _registry, _repository: credential,
            find_host_settings=settings_of,
            rate_limits=pace,
            on_retry=self.told.append,
            cancelled=cancelled or threading.Event(),
            header_observers=[self.upload_strategy.observe_headers],
        )

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        super().wait(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class CountingRegistry(FaultyRegistry):
    """A faulty registry that counts the connections it has accepted."""

    accepted = 0

    def admit(self, connection: socket.socket) -> socket.socket:
        self.accepted += 1
        return super().admit(connection)

    def hold(self, *contents: bytes) -> list[Descriptor]:
        """Write blobs into the layout, and return their descriptors."""
        found = []
        for content in contents:
            blob = blob_of(content)
            path = self.layout.blob_path(blob.digest)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            found.append(blob)
        return found


def blob_of(content: bytes, algorithm: str = "sha256") -> Descriptor:
    """Return the descriptor of a blob."""
    return Descriptor(OCTETS, digest_of(content, algorithm), len(content))  # type: ignore[arg-type]


def header_values(requests: Sequence[Any], name: str) -> list[str | None]:
    """Return a header of each of these requests."""
    return [request.headers.get(name) for request in requests]
