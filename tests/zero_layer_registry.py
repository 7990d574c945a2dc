"""A registry of layers of zeros, of any size, which use neither disk nor memory.

It sends one small file repeatedly, and only counts the bytes pushed to it. So gigabytes cost it little more than the
kernel's work, and a test measures the other side.
"""

from __future__ import annotations

import hashlib
import http.server
import itertools
import json
import os
import re
import socket
import socketserver
import tarfile
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import IO, Any, Final, Self, cast

from tests.archives import BLOCK, END, blob_name, padded
from tests.images import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Descriptor, digest_of

MIB: Final = 1 << 20
#: SHA-256 of this many zeros (`head -c 8G /dev/zero | sha256sum`): hashing 8 GiB would take longer than most tests. The
#: program under test verifies such a layer, so a wrong digest would be noticed.
_KNOWN: Final = {8192 * MIB: "ebfb4ef19ae410f190327b5ebd312711263bc7579970e87d9c1e2d84e06b3c25"}
#: Number of zeros -> their hash state, to continue from.
_HASHED: Final = {0: hashlib.sha256()}
_ZEROS: Final = bytes(MIB)
_BLOBS: Final = re.compile(r"/v2/(?P<name>.+)/blobs/(?P<digest>sha256:[0-9a-f]{64})\Z")
_MANIFESTS: Final = re.compile(r"/v2/(?P<name>.+)/manifests/(?P<reference>[^/]+)\Z")
_TAGS: Final = re.compile(r"/v2/(?P<name>.+)/tags/list\Z")
_PART: Final = re.compile(r"bytes=([0-9]+)-([0-9]+)\Z")
_CONFIG: Final = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'


class Image:
    """An image with layers of zeros; all sizes must differ, because equal layers would be one blob."""

    def __init__(self, sizes: Sequence[int]) -> None:
        assert len(set(sizes)) == len(sizes)
        #: The layers: digest -> size.
        self.layers = {digest: size for size, digest in _digests(sizes).items()}
        config = {"mediaType": OCI_CONFIG, "digest": digest_of(_CONFIG), "size": len(_CONFIG)}
        layers = [{"mediaType": OCI_LAYER, "digest": digest, "size": size} for digest, size in self.layers.items()]
        document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers}
        self.manifest = json.dumps(document).encode()
        self.digest = digest_of(self.manifest)

    def write_archive(self, file: IO[bytes]) -> None:
        """Write an archive in our own order; in a seekable file, its layers are holes."""
        for name, content in self._documents():
            file.write(_entry(name, len(content)) + padded(content))
        for digest, size in self.layers.items():
            file.write(_entry(blob_name(digest), size))
            file.flush()
            whole = -(-size // BLOCK) * BLOCK
            if file.seekable():
                file.seek(whole, os.SEEK_CUR)
            else:
                _send_zeros(file.fileno(), whole)
        file.write(END)
        file.flush()

    def _documents(self) -> Iterator[tuple[str, bytes]]:
        root: Descriptor = {"mediaType": OCI_MANIFEST, "digest": self.digest, "size": len(self.manifest)}
        root["annotations"] = {"org.opencontainers.image.ref.name": "v1"}
        yield "oci-layout", b'{"imageLayoutVersion":"1.0.0"}'
        yield "index.json", json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [root]}).encode()
        yield blob_name(self.digest), self.manifest
        yield blob_name(digest_of(_CONFIG)), _CONFIG


class Endless(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """The registry, on its own port of 127.0.0.1, in threads of this process.

    It ignores Range and sends complete blobs, as a registry may. So a client never learns that several connections are
    faster than one, which would depend on the machine's load. With a `pause` after each MiB of every connection it does
    serve parts, and several connections are faster.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, pause: float = 0.0, *, signature_uses: int | None = None) -> None:
        """Listen; requests are answered inside the `with` block. `pause` is in seconds.

        With `signature_uses`, the registry redirects to signed URLs for layers. A signature is valid for that many
        requests, and then gets 404.
        """
        super().__init__(("127.0.0.1", 0), _Handler)
        self.host = f"127.0.0.1:{self.server_address[1]}"
        #: The blobs by digest: a number of zeros, or bytes.
        self.blobs: dict[str, int | bytes] = {}
        #: By repository and tag or digest.
        self.manifests: dict[tuple[str, str], bytes] = {}
        #: Bytes received, by upload.
        self.received: dict[str, int] = {}
        self.uploads = itertools.count()
        self.pause = pause
        #: The number of requests for parts of blobs.
        self.parts = 0
        self.signature_uses = signature_uses
        #: The number of uses of each signature, in the order of the redirects.
        self.signatures: list[int] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop without waiting for open connections."""
        self.shutdown()
        self.server_close()

    def hold(self, image: Image, name: str, tags: Iterable[str] = ("v1",)) -> str:
        """Store an image under tags of a repository; return its name with the first tag."""
        self.blobs |= {**image.layers, digest_of(_CONFIG): _CONFIG}
        references = [*tags, image.digest]
        self.manifests |= {(name, reference): image.manifest for reference in references}
        return f"{self.host}/{name}:{references[0]}"

    def server_close(self) -> None:
        """Close only the listening socket, without waiting for the threads of connections."""
        socketserver.TCPServer.server_close(self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that hang up: their own tests check them."""


class _Handler(http.server.BaseHTTPRequestHandler):
    """Serves one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def registry(self) -> Endless:
        return cast("Endless", self.server)

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/v2/":
            self._answer(200)
        elif found := _BLOBS.match(path):
            self._blob(found["digest"])
        elif found := _MANIFESTS.match(path):
            self._manifest(found["name"], found["reference"])
        elif found := _TAGS.match(path):
            self._tags(found["name"])
        else:
            self._answer(404)

    def do_POST(self) -> None:
        self._discard_body()
        upload = f"{self.path.partition('?')[0].rstrip('/')}/{next(self.registry.uploads)}"
        self.registry.received[upload] = 0
        self._answer(202, {"Location": upload})

    def do_PATCH(self) -> None:
        upload = self.path.partition("?")[0]
        self.registry.received[upload] += self._discard_body()
        self._answer(202, {"Location": upload, "Range": f"0-{self.registry.received[upload] - 1}"})

    def do_PUT(self) -> None:
        path, _, query = self.path.partition("?")
        if found := _MANIFESTS.match(path):
            content = self.rfile.read(int(self.headers["Content-Length"]))
            digest = digest_of(content)
            name = found["name"]
            self.registry.manifests |= {(name, found["reference"]): content, (name, digest): content}
            self._answer(201, {"Location": path, "Docker-Content-Digest": digest})
            return
        size = self.registry.received.pop(path) + self._discard_body()
        digest = urllib.parse.parse_qs(query)["digest"][0]
        self.registry.blobs[digest] = size
        self._answer(201, {"Location": f"{path}/{digest}", "Docker-Content-Digest": digest})

    def do_DELETE(self) -> None:
        self.registry.received.pop(self.path, None)
        self._answer(204)

    def _answer(self, status: int, headers: Mapping[str, str] = MappingProxyType({}), size: int = 0) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(size))
        self.end_headers()

    def _manifest(self, name: str, reference: str) -> None:
        content = self.registry.manifests.get((name, reference))
        if content is None:
            self._answer(404)
            return
        digest = digest_of(content)
        self._answer(200, {"Content-Type": OCI_MANIFEST, "Docker-Content-Digest": digest}, len(content))
        if self.command == "GET":
            self.wfile.write(content)

    def _tags(self, name: str) -> None:
        tags = [tag for repository, tag in self.registry.manifests if repository == name and ":" not in tag]
        content = json.dumps({"name": name, "tags": tags}).encode()
        self._answer(200 if tags else 404, {"Content-Type": "application/json"}, len(content))
        self.wfile.write(content)

    def _blob(self, digest: str) -> None:
        blob = self.registry.blobs.get(digest)
        if blob is None:
            self._answer(404)
            return
        if isinstance(blob, int) and self.registry.signature_uses and not self._has_signature(digest):
            return
        size = blob if isinstance(blob, int) else len(blob)
        part = _PART.match(self.headers.get("Range", ""))
        if isinstance(blob, int) and self.registry.pause and part:
            start, end = int(part[1]), int(part[2])
            self.registry.parts += 1
            self._answer(206, {"Content-Range": f"bytes {start}-{end}/{size}"}, end + 1 - start)
            _send_zeros(self.connection.fileno(), end + 1 - start, self.registry.pause)
            return
        self._answer(200, {"Content-Type": "application/octet-stream", "Docker-Content-Digest": digest}, size)
        if self.command == "HEAD":
            return
        if isinstance(blob, bytes):
            self.wfile.write(blob)
        else:
            _send_zeros(self.connection.fileno(), blob, self.registry.pause)

    def _has_signature(self, digest: str) -> bool:
        """Return whether the URL has a valid signature; otherwise redirect to one, or answer 404."""
        path, _, signature = self.path.partition("?signature=")
        used = self.registry.signatures
        if not signature:
            used.append(0)
            self._answer(307, {"Location": f"{path}?signature={len(used) - 1}", "Docker-Content-Digest": digest})
            return False
        used[int(signature)] += 1
        if used[int(signature)] > cast("int", self.registry.signature_uses):
            self._answer(404)
            return False
        return True

    def _discard_body(self) -> int:
        """Read and discard the body of a request; return its size."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            size = int(self.headers.get("Content-Length", "0"))
            self._discard(size)
            return size
        total = 0
        while size := int(self.rfile.readline(), 16):
            self._discard(size)
            self.rfile.readline()
            total += size
        self.rfile.readline()
        return total

    def _discard(self, size: int) -> None:
        if size:
            # The bytes that came with the head; if more are missing, the buffer is now empty.
            size -= len(self.rfile.read1(min(size, 1 << 13)))
        sink = bytearray(MIB)
        # tcp(7): MSG_TRUNC discards received bytes without a copy.
        while size and (got := self.connection.recv_into(sink, min(size, MIB), socket.MSG_TRUNC)):
            size -= got
        if size:
            raise ConnectionAbortedError


def _digests(sizes: Iterable[int]) -> dict[int, str]:
    """Return the digests of so many zeros; each is hashed only once in a run."""
    return {size: f"sha256:{_KNOWN.get(size) or _hashed(size).hexdigest()}" for size in sizes}


def _hashed(size: int) -> hashlib._Hash:
    if size not in _HASHED:
        at = max(known for known in _HASHED if known < size)
        whole = _HASHED[at].copy()
        for position in range(at, size, len(_ZEROS)):
            whole.update(memoryview(_ZEROS)[: size - position])
        _HASHED[size] = whole
    return _HASHED[size]


def _entry(name: str, size: int) -> bytes:
    """Return the header of a file in a tar; GNU's format uses one block even for 8 GiB."""
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry.tobuf(tarfile.GNU_FORMAT)


def _send_zeros(target: int, size: int, pause: float = 0.0) -> None:
    """Send `size` zeros to a socket or a pipe: the kernel sends a hole of a file repeatedly.

    `pause` is the pause after each MiB, in seconds.
    """
    with tempfile.TemporaryFile() as hole:
        hole.truncate(MIB)
        while size:
            size -= os.sendfile(target, hole.fileno(), 0, min(size, MIB))
            if pause:
                time.sleep(pause)
