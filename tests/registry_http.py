"""The distribution API over plain HTTP, to fill and read a registry without ocistream's code."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import shutil
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.images import MANIFESTS, Descriptor, Layout, digest_of
from tests.registry import Registry
from tests.registry.server import started

if TYPE_CHECKING:
    from tests.peers import DockerRegistry

_TIMEOUT: Final = 60.0


def basic(user: str, password: str) -> dict[str, str]:
    """Return the Authorization header for a user's name and password."""
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}


def seed(
    layout: Layout,
    descriptor: Descriptor,
    host: str,
    repository: str,
    tag: str | None = None,
    *,
    headers: Mapping[str, str] | None = None,
) -> str:
    """Push `descriptor`, and everything that it needs, to `repository`; return its digest.

    `host` is HOST:PORT and uses plain HTTP; with `tag` None the manifest is untagged, as a referrer is.
    `headers` go with each request. A registry of this process gets the files without requests, which is faster.
    """
    registry = started(host)
    if registry is not None:
        _store(registry, layout, descriptor, repository, tag)
        return str(descriptor["digest"])
    with _connection(host) as connection:
        client = _Client(connection, repository, dict(headers or {}))
        client.push(layout, descriptor, tag)
    return str(descriptor["digest"])


def _store(registry: Registry, layout: Layout, descriptor: Descriptor, repository: str, tag: str | None) -> None:
    """Store what a push would, children before parents."""
    document = layout.read(descriptor["digest"])
    for child in document.get("manifests", []):
        _store(registry, layout, child, repository, None)
    for blob in [document.get("config"), *document.get("layers", [])]:
        if blob is not None:
            registry.layout.add_blob(repository, blob["digest"], _copied(layout.file(blob["digest"]), registry))
    raw = layout.file(descriptor["digest"]).read_bytes()
    digest = digest_of(raw) if tag else descriptor["digest"]
    names = {tag: f"{registry.host}/{repository}:{tag}"} if tag else {}
    registry.layout.put_manifest(repository, digest, raw, descriptor["mediaType"], names)


def _copied(file: Path, registry: Registry) -> Path:
    copy = registry.layout.path / ".seeded"
    shutil.copyfile(file, copy)
    return copy


def manifest_digest(
    host: str, repository: str, reference: str, *, headers: Mapping[str, str] | None = None
) -> str | None:
    """Return the SHA-256, computed here, of what the registry serves as `reference`, or None."""
    content = manifest(host, repository, reference, headers=headers)
    return None if content is None else digest_of(content)


def manifest(host: str, repository: str, reference: str, *, headers: Mapping[str, str] | None = None) -> bytes | None:
    """Return the exact bytes of the manifest `reference` (a tag or a digest), or None."""
    accept = {"Accept": ", ".join(sorted(MANIFESTS)), **(headers or {})}
    status, content = get(host, f"/v2/{repository}/manifests/{reference}", headers=accept)
    assert status in {200, 404}, (status, content)
    return content if status == 200 else None


def get(host: str, target: str, *, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
    """Return the status and the body of one GET."""
    with _connection(host) as connection:
        connection.request("GET", target, headers=dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.read()


def tags(host: str, repository: str, *, headers: Mapping[str, str] | None = None) -> list[str]:
    """Return the tags of `repository` that the registry lists."""
    status, content = get(host, f"/v2/{repository}/tags/list", headers=headers)
    return [] if status == 404 else list(json.loads(content)["tags"] or [])


def assert_no_image(registry: DockerRegistry, *, headers: Mapping[str, str] | None = None) -> None:
    """Assert that no repository of `registry` has a tag or a manifest, in its storage and in its responses."""
    for repository in registry.repositories():
        assert registry.tags(repository) == {}
        assert registry.manifests(repository) == set()
        assert tags(registry.host, repository, headers=headers) == []


@contextlib.contextmanager
def _connection(host: str) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(host, timeout=_TIMEOUT, blocksize=1 << 20)
    try:
        yield connection
    finally:
        connection.close()


class _Client:
    """Pushes over one connection, children before parents."""

    def __init__(self, connection: http.client.HTTPConnection, repository: str, headers: Mapping[str, str]) -> None:
        self._connection = connection
        self._repository = repository
        self._headers = headers

    def push(self, layout: Layout, descriptor: Descriptor, tag: str | None) -> None:
        document = layout.read(descriptor["digest"])
        for child in document.get("manifests", []):
            self.push(layout, child, None)
        for blob in [document.get("config"), *document.get("layers", [])]:
            if blob is not None:
                self._push_blob(layout, blob)
        target = f"/v2/{self._repository}/manifests/{tag or descriptor['digest']}"
        content = layout.file(descriptor["digest"]).read_bytes()
        self._ask("PUT", target, 201, content, {"Content-Type": descriptor["mediaType"]})

    def _push_blob(self, layout: Layout, blob: Descriptor) -> None:
        location = self._ask("POST", f"/v2/{self._repository}/blobs/uploads/", 202)
        parts = urllib.parse.urlsplit(location)
        digest = urllib.parse.urlencode({"digest": blob["digest"]})
        query = f"{parts.query}&{digest}" if parts.query else digest
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob["size"])}
        with layout.file(blob["digest"]).open("rb") as file:
            self._ask("PUT", f"{parts.path}?{query}", 201, file, headers)

    def _ask(
        self,
        method: str,
        target: str,
        expected: int,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """Send one request and return the response's Location."""
        self._connection.request(method, target, body, {**self._headers, **(headers or {})})
        answer = self._connection.getresponse()
        content = answer.read()
        assert answer.status == expected, (method, target, answer.status, content)
        return answer.headers.get("Location", "")
