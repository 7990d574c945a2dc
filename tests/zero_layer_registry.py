"""A registry of layers that are nothing but zeros, as large as is wanted: they are on no disk and in no memory.

What it sends comes out of one small file, again and again, and of what is pushed to it the bytes are only counted. So
gigabytes cost it hardly more than the kernel's work, and whoever moves them is what is measured.
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
#: SHA-256 of so many zero bytes (`head -c 8G /dev/zero | sha256sum`): to hash 8 GiB would take longer than most tests.
#: Whoever moves such a layer verifies it, so a wrong one would be found out.
_KNOWN: Final = {8192 * MIB: "ebfb4ef19ae410f190327b5ebd312711263bc7579970e87d9c1e2d84e06b3c25"}
#: What has been hashed of zeros: so many -> their hash, to go on with.
_HASHED: Final = {0: hashlib.sha256()}
_ZEROS: Final = bytes(MIB)
_BLOBS: Final = re.compile(r"/v2/(?P<name>.+)/blobs/(?P<digest>sha256:[0-9a-f]{64})\Z")
_MANIFESTS: Final = re.compile(r"/v2/(?P<name>.+)/manifests/(?P<reference>[^/]+)\Z")
_TAGS: Final = re.compile(r"/v2/(?P<name>.+)/tags/list\Z")
_PART: Final = re.compile(r"bytes=([0-9]+)-([0-9]+)\Z")
_CONFIG: Final = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'


class Image:
    """An image whose layers are so many zeros each; no two of them have the same size, or they would be one."""

    def __init__(self, sizes: Sequence[int]) -> None:
        """Describe it: the layers have `sizes` bytes."""
        assert len(set(sizes)) == len(sizes)
        #: Of its layers: digest -> size.
        self.layers = {digest: size for size, digest in _digests(sizes).items()}
        config = {"mediaType": OCI_CONFIG, "digest": digest_of(_CONFIG), "size": len(_CONFIG)}
        layers = [{"mediaType": OCI_LAYER, "digest": digest, "size": size} for digest, size in self.layers.items()]
        document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers}
        self.manifest = json.dumps(document).encode()
        self.digest = digest_of(self.manifest)

    def write_archive(self, file: IO[bytes]) -> None:
        """Write it as an archive in our own order; in a file that can be sought in, its layers are holes."""
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
    """The registry, on a port of its own of 127.0.0.1, in threads of this process.

    It gives no parts of blobs: it answers a Range with the whole, as a registry may. So nobody finds out that several
    connections would be faster than one, which depends on how busy the machine is. One that pauses after each MiB on
    every connection does give parts, and then they are.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, pause: float = 0.0, *, signature_uses: int | None = None) -> None:
        """Begin to listen; requests are answered within the block. `pause` is in seconds.

        With `signature_uses`, zeros are read from signed URLs, to which the registry redirects. A signature is good for
        so many requests, and gets 404 then.
        """
        super().__init__(("127.0.0.1", 0), _Handler)
        self.host = f"127.0.0.1:{self.server_address[1]}"
        #: What can be read, by digest: the size of so many zeros, or bytes.
        self.blobs: dict[str, int | bytes] = {}
        #: By the name of a repository and a tag or digest.
        self.manifests: dict[tuple[str, str], bytes] = {}
        #: Bytes of blobs that came, by upload.
        self.received: dict[str, int] = {}
        self.uploads = itertools.count()
        self.pause = pause
        #: How many parts of blobs were asked for.
        self.parts = 0
        self.signature_uses = signature_uses
        #: How often each signature was used, in the order of the redirects.
        self.signatures: list[int] = []

    def __enter__(self) -> Self:
        """Serve."""
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop; whoever is still connected is not waited for."""
        self.shutdown()
        self.server_close()

    def hold(self, image: Image, name: str, tags: Iterable[str] = ("v1",)) -> str:
        """Have an image under tags of a repository; return its name with the first tag."""
        self.blobs |= {**image.layers, digest_of(_CONFIG): _CONFIG}
        references = [*tags, image.digest]
        self.manifests |= {(name, reference): image.manifest for reference in references}
        return f"{self.host}/{name}:{references[0]}"

    def server_close(self) -> None:
        """Close the listening socket only: no connection's thread is waited for."""
        socketserver.TCPServer.server_close(self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Let those go who hang up: what matters of it shows where they are."""


class _Handler(http.server.BaseHTTPRequestHandler):
    """Serves one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def registry(self) -> Endless:
        return cast("Endless", self.server)

    def log_message(self, *_: object) -> None:
        """Say nothing."""

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
        """Return whether the URL has a good signature; otherwise answer with a redirect to one, or with 404."""
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
        """Read the body of a request and throw it away; return how many bytes it had."""
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
            # What was read together with the head; where that is less than all, nothing is left in the buffer.
            size -= len(self.rfile.read1(min(size, 1 << 13)))
        sink = bytearray(MIB)
        # tcp(7): MSG_TRUNC throws away what has come, and nobody has to copy it.
        while size and (got := self.connection.recv_into(sink, min(size, MIB), socket.MSG_TRUNC)):
            size -= got
        if size:
            raise ConnectionAbortedError


def _digests(sizes: Iterable[int]) -> dict[int, str]:
    """Return the digests of so many zeros; none of them is hashed twice in one run."""
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
    """Return the header of a file in a tar; GNU's format has one of 512 bytes for 8 GiB too."""
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry.tobuf(tarfile.GNU_FORMAT)


def _send_zeros(target: int, size: int, pause: float = 0.0) -> None:
    """Send so many zeros to a socket or a pipe: a hole in a file, again and again, by the kernel alone.

    After each MiB it pauses for so many seconds.
    """
    with tempfile.TemporaryFile() as hole:
        hole.truncate(MIB)
        while size:
            size -= os.sendfile(target, hole.fileno(), 0, min(size, MIB))
            if pause:
                time.sleep(pause)
