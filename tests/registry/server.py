"""The sockets and the endpoints of the tests' registry."""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import json
import os
import re
import socket
import socketserver
import sys
import threading
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Final, Self, cast

from tests.registry.http_messages import Answer, Exchange, Part, RefusedError, requested_range
from tests.registry.storage import Contents, Upload, Uploads

_JSON: Final = {"Content-Type": "application/json"}
_INDEX: Final = "application/vnd.oci.image.index.v1+json"
_MAX_MANIFEST: Final = 4 << 20
#: Seconds that the threads of connections have to end when the registry stops.
_STOP: Final = 5.0
_REPOSITORY: Final = re.compile(r"[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*")
_TAG: Final = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
#: distribution-spec, "Pushing a blob in chunks": `0-99`, and not `bytes 0-99/*`.
_CHUNK: Final = re.compile(r"(\d+)-(\d+)")
_ROUTES: Final = (
    (re.compile(r"/v2/?"), "base"),
    (re.compile(r"/v2/_catalog"), "catalog"),
    (re.compile(r"/v2/(.+)/tags/list"), "tags"),
    (re.compile(r"/v2/(.+)/referrers/([^/]+)"), "referrers"),
    (re.compile(r"/v2/(.+)/manifests/([^/]+)"), "manifest"),
    (re.compile(r"/v2/(.+)/blobs/uploads/?"), "uploads"),
    (re.compile(r"/v2/(.+)/blobs/uploads/([^/]+)"), "upload"),
    (re.compile(r"/v2/(.+)/blobs/([^/]+)"), "blob"),
)


#: The running registries of this process, by host.
_STARTED: Final[dict[str, Registry]] = {}


def started(host: str) -> Registry | None:
    """Return the running registry of this process at `host`, or None."""
    return _STARTED.get(host)


class Registry:
    """A registry on a socket of this machine; it answers from `start` to `stop`."""

    #: The value of OCI-Chunk-Min-Length in answers that open an upload; None sends no such header.
    chunk_min_length: int | None = None
    #: The largest number of names or referrers in one answer; None is no limit.
    page_size: int | None = None

    def __init__(self, path: Path, *, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        """Store everything in the OCI layout directory `path`, which is created if it does not exist."""
        self.layout = Contents(path)
        self.uploads = Uploads(self.layout)
        self._server = _Server(self, address)
        self._thread: threading.Thread | None = None

    @property
    def handler_type(self) -> type[Handler]:
        """The class that serves a connection."""
        return Handler

    @property
    def host(self) -> str:
        """The host and port of the registry, as in an image name: `127.0.0.1:5000`."""
        name, port = self._server.server_address[:2]
        return f"[{name!s}]:{port}" if ":" in str(name) else f"{name!s}:{port}"

    @property
    def open_connections(self) -> int:
        """The number of connections that are open now."""
        return len(self._server.connections)

    def admit(self, connection: socket.socket) -> socket.socket:
        """Return the socket through which a new connection is served."""
        return connection

    def start(self) -> None:
        """Answer requests in threads."""
        self._thread = threading.Thread(target=self._server.serve_forever, name=f"registry {self.host}", daemon=True)
        self._thread.start()
        _STARTED[self.host] = self

    def stop(self) -> None:
        """Stop answering, close all connections and end all upload sessions. Further calls do nothing."""
        if self._thread is not None:
            del _STARTED[self.host]
            # This wakes the thread, which otherwise checks only every half second whether to stop.
            with contextlib.suppress(OSError):
                self._server.socket.shutdown(socket.SHUT_RDWR)
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.server_close()
        self._server.close_connections()
        self.uploads.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, registry: Registry, address: tuple[str, int]) -> None:
        self.registry = registry
        self.connections: set[Any] = set()
        self._changed = threading.Condition()
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, registry.handler_type)

    def server_bind(self) -> None:
        # The base class asks the name service for the name of this machine, which may take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, client = super().get_request()
        return self.registry.admit(connection), client

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changed:
            self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self._changed:
            self.connections.discard(request)
            self._changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that disconnects is not an error of the registry.
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def close_connections(self) -> None:
        with self._changed:
            for connection in self.connections:
                with contextlib.suppress(OSError):
                    # The plain socket's method: `SSLSocket.shutdown` would break the thread that uses the socket.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)
            self._changed.wait_for(lambda: not self.connections, _STOP)


class Handler(Exchange):
    """Serves one connection of a `Registry`: the endpoints of the distribution-spec.

    No header tells which registry it is (Server, Docker-Distribution-Api-Version), so clients use their defaults.
    """

    #: The function for each endpoint and method. HEAD is a GET without the body.
    _methods: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "base": {"GET": "_base"},
        "catalog": {"GET": "_catalog"},
        "tags": {"GET": "_tags"},
        "referrers": {"GET": "_referrers"},
        "manifest": {"GET": "_get_manifest", "PUT": "_put_manifest", "DELETE": "_delete_manifest"},
        "uploads": {"POST": "_begin"},
        "upload": {"GET": "_status", "PATCH": "_append", "PUT": "_finish", "DELETE": "_cancel"},
        "blob": {"GET": "_get_blob", "DELETE": "_delete_blob"},
    }

    @property
    def registry(self) -> Registry:
        """The registry of this connection."""
        return cast("_Server", self.server).registry

    @property
    def layout(self) -> Contents:
        """The contents of the registry."""
        return self.registry.layout

    def dispatch(self) -> None:
        segments, self.parameters = self.target()
        path = "/".join(segments)
        routes = ((match, endpoint) for pattern, endpoint in _ROUTES if (match := pattern.fullmatch(path)))
        match, endpoint = next(routes, (None, ""))
        if match is None:
            raise RefusedError(404, "UNSUPPORTED", "no such endpoint")
        groups = match.groups()
        if groups and not _REPOSITORY.fullmatch(groups[0]):
            raise RefusedError(400, "NAME_INVALID", "the name of the repository is malformed")
        if endpoint in {"blob", "referrers"} or (endpoint == "manifest" and ":" in groups[1]):
            _check_digest(groups[1])
        methods = self._methods[endpoint]
        name = methods.get("GET" if self.command == "HEAD" else self.command)
        if name is None:
            raise RefusedError(405, "UNSUPPORTED", "the method is not possible", headers={"Allow": ", ".join(methods)})
        serve: Callable[..., None] = getattr(self, name)
        serve(*groups)

    def parameter(self, name: str) -> str:
        """Return a parameter of the query, or "" if it is missing."""
        return self.parameters.get(name, [""])[0]

    def _base(self) -> None:
        self.answer(Answer(200, _JSON, b"{}"))

    # Blobs and uploads ---------------------------------------------------------------------------------------------

    def _get_blob(self, repository: str, digest: str) -> None:
        if not self.layout.has_blob(repository, digest):
            raise _no_blob()
        headers = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": digest}
        with self.layout.blob_path(digest).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            found = requested_range(self.headers.get("Range") if self.command == "GET" else None, size)
            start, count = found or (0, size)
            if found:
                headers["Content-Range"] = f"bytes {start}-{start + count - 1}/{size}"
            self.answer(Answer(206 if found else 200, headers, Part(file, start, count)))

    def _delete_blob(self, repository: str, digest: str) -> None:
        if not self.layout.has_blob(repository, digest):
            raise _no_blob()
        self.layout.delete_blob(digest, repository)
        self.answer(Answer(202))

    def _begin(self, repository: str) -> None:
        mounted, digest, source = self.parameter("mount"), self.parameter("digest"), self.parameter("from")
        if _DIGEST.fullmatch(mounted) and self.layout.has_blob(source or None, mounted):
            self.layout.add_blob(repository, mounted)
            self._answer_created(repository, mounted)
            return
        if digest:
            _check_digest(digest)
        upload = self.registry.uploads.begin(repository)
        if digest:
            self._store(upload, digest)
        else:
            self._answer_upload(202, upload)

    def _status(self, repository: str, identifier: str) -> None:
        self._answer_upload(204, self.registry.uploads.find(repository, identifier))

    def _append(self, repository: str, identifier: str) -> None:
        upload = self.registry.uploads.find(repository, identifier)
        with upload.held():
            self._check_chunk(upload)
            self.registry.uploads.append(upload, self.read_body)
        self._answer_upload(202, upload)

    def _finish(self, repository: str, identifier: str) -> None:
        upload = self.registry.uploads.find(repository, identifier)
        self._store(upload, _check_digest(self.parameter("digest")))

    def _store(self, upload: Upload, digest: str) -> None:
        with upload.held():
            self._check_chunk(upload)
            self.registry.uploads.append(upload, self.read_body)
            self.registry.uploads.finish(upload, digest)
        self._answer_created(upload.repository, digest)

    def _cancel(self, repository: str, identifier: str) -> None:
        upload = self.registry.uploads.find(repository, identifier)
        with upload.held():
            self.registry.uploads.discard(upload)
        self.answer(Answer(204))

    def _check_chunk(self, upload: Upload) -> None:
        stated = self.headers.get("Content-Range")
        if stated is None:
            return
        match = _CHUNK.fullmatch(stated)
        if match is None or int(match[2]) + 1 - int(match[1]) != self.body.size:
            raise RefusedError(400, "SIZE_INVALID", "Content-Range is malformed, or is not the length of the chunk")
        if int(match[1]) != upload.offset:
            headers = self._upload_headers(upload)
            raise RefusedError(416, "BLOB_UPLOAD_INVALID", "the chunk is out of order", headers=headers)

    def _answer_upload(self, status: int, upload: Upload) -> None:
        headers = self._upload_headers(upload)
        if self.command == "POST" and self.registry.chunk_min_length is not None:
            headers["OCI-Chunk-Min-Length"] = str(self.registry.chunk_min_length)
        self.answer(Answer(status, headers))

    def _upload_headers(self, upload: Upload) -> dict[str, str]:
        return {
            "Location": f"/v2/{upload.repository}/blobs/uploads/{upload.identifier}",
            # As in distribution: `0-0` means no byte, and also one byte.
            "Range": f"0-{max(upload.offset - 1, 0)}",
            "Docker-Upload-UUID": upload.identifier,
        }

    def _answer_created(self, repository: str, digest: str) -> None:
        self.answer(Answer(201, {"Location": f"/v2/{repository}/blobs/{digest}", "Docker-Content-Digest": digest}))

    # Manifests -----------------------------------------------------------------------------------------------------

    def _get_manifest(self, repository: str, reference: str) -> None:
        found = self.layout.manifest(repository, reference)
        if found is None:
            raise _no_manifest()
        media_type, digest, raw = found
        self.answer(Answer(200, {"Content-Type": media_type, "Docker-Content-Digest": digest}, raw))

    def _put_manifest(self, repository: str, reference: str) -> None:
        raw = self.read_small_body(_MAX_MANIFEST)
        if raw is None:
            raise RefusedError(413, "MANIFEST_INVALID", "the manifest is too large")
        by_digest = ":" in reference
        tags = tuple(dict.fromkeys(self.parameters.get("tag", []))) if by_digest else (reference,)
        if not all(map(_TAG.fullmatch, tags)):
            raise RefusedError(400, "MANIFEST_INVALID", "the tag is malformed")
        digest = _digest_of(raw, reference.partition(":")[0] if by_digest else "sha256")
        if by_digest and digest != reference:
            raise RefusedError(400, "DIGEST_INVALID", "the manifest has another digest")
        document, media_type = self._parsed(raw)
        self._check_children(repository, document)
        host = self.headers.get("Host") or self.registry.host
        names = {tag: f"{host}/{repository}:{tag}" for tag in tags}
        self.layout.put_manifest(repository, digest, raw, media_type, names)
        headers = {"Location": f"/v2/{repository}/manifests/{digest}", "Docker-Content-Digest": digest}
        if by_digest and tags:
            headers["OCI-Tag"] = ", ".join(tags)
        if document.get("subject"):
            headers["OCI-Subject"] = document["subject"]["digest"]
        self.answer(Answer(201, headers))

    def _parsed(self, raw: bytes) -> tuple[dict[str, Any], str]:
        """Return a manifest and its media type; the document and the request must agree about the type."""
        try:
            document = json.loads(raw)
        except ValueError as error:
            raise RefusedError(400, "MANIFEST_INVALID", "the manifest is not JSON") from error
        if not isinstance(document, dict) or document.get("schemaVersion") != 2:
            raise RefusedError(400, "MANIFEST_INVALID", "the manifest has no schemaVersion 2")
        stated = self.headers.get("Content-Type", "").partition(";")[0].strip()
        own = document.get("mediaType") or stated
        if not own or (stated and stated != own):
            raise RefusedError(400, "MANIFEST_INVALID", "the media type is not that of the request")
        return document, own

    def _check_children(self, repository: str, document: Mapping[str, Any]) -> None:
        children = [*(document.get("manifests") or []), document.get("config"), *(document.get("layers") or [])]
        digests = [child.get("digest", "") for child in children if child and not _is_elsewhere(child)]
        absent = [
            digest for digest in digests if not (_DIGEST.fullmatch(digest) and self.layout.has(repository, digest))
        ]
        if absent:
            details = [{"digest": digest} for digest in dict.fromkeys(absent)]
            raise RefusedError(400, "MANIFEST_BLOB_UNKNOWN", "blob unknown to registry", details=details)

    def _delete_manifest(self, repository: str, reference: str) -> None:
        if ":" not in reference:
            if not self.layout.delete_tag(repository, reference):
                raise _no_manifest()
        elif self.layout.manifest(repository, reference) is None:
            raise _no_manifest()
        else:
            self.layout.delete_manifest(repository, reference)
        self.answer(Answer(202))

    # Lists ---------------------------------------------------------------------------------------------------------

    def _catalog(self) -> None:
        names = self.layout.repositories()
        self._answer_page("/v2/_catalog", {}, "repositories", names, names)

    def _tags(self, repository: str) -> None:
        tags = sorted(self.layout.tags(repository))
        if not tags:
            raise RefusedError(404, "NAME_UNKNOWN", f"no repository {repository}")
        self._answer_page(f"/v2/{repository}/tags/list", {"name": repository}, "tags", tags, tags)

    def _referrers(self, repository: str, digest: str) -> None:
        # A plus sign is a space in a query, but clients do not always encode it.
        kind = self.parameter("artifactType").replace(" ", "+")
        found = self.layout.referrers(repository, digest)
        found = [entry for entry in found if not kind or entry.get("artifactType") == kind]
        headers = {"Content-Type": _INDEX, **({"OCI-Filters-Applied": "artifactType"} if kind else {})}
        around = {"schemaVersion": 2, "mediaType": _INDEX}
        path = f"/v2/{repository}/referrers/{digest}"
        self._answer_page(path, around, "manifests", found, [f"{number:06}" for number in range(len(found))], headers)

    def _answer_page(
        self,
        path: str,
        around: Mapping[str, Any],
        member: str,
        entries: Sequence[Any],
        keys: Sequence[str],
        headers: Mapping[str, str] = _JSON,
    ) -> None:
        """Answer with at most `n` or `page_size` entries whose keys, which are sorted, come after `last`."""
        last, stated = self.parameter("last"), self.parameter("n")
        if stated and not stated.isdecimal():
            raise RefusedError(400, "UNSUPPORTED", "n is not a number")
        start, limit = bisect.bisect_right(keys, last), self.registry.page_size or len(entries)
        end = start + min(limit, int(stated or limit))
        headers = dict(headers)
        if start < end < len(entries):
            again = {name: values[0] for name, values in self.parameters.items() if name != "last"}
            again["last"] = keys[end - 1]
            headers["Link"] = f'<{path}?{urllib.parse.urlencode(again)}>; rel="next"'
        self.answer(Answer(200, headers, json.dumps({**around, member: entries[start:end]}).encode()))


def _is_elsewhere(child: Mapping[str, Any]) -> bool:
    """Return whether a registry need not have a blob: it has `urls` or a foreign media type."""
    return bool(child.get("urls")) or bool(re.search("nondistributable|foreign", child.get("mediaType", "")))


def _check_digest(text: str) -> str:
    if not _DIGEST.fullmatch(text):
        raise RefusedError(400, "DIGEST_INVALID", "the digest is malformed")
    return text


def _digest_of(raw: bytes, algorithm: str) -> str:
    return f"{algorithm}:{hashlib.new(algorithm, raw).hexdigest()}"


def _no_blob() -> RefusedError:
    return RefusedError(404, "BLOB_UNKNOWN", "there is no such blob")


def _no_manifest() -> RefusedError:
    return RefusedError(404, "MANIFEST_UNKNOWN", "there is no such manifest")
