"""Responses of registries to the client, and requests to the embedded registry, over real sockets."""

from __future__ import annotations

import contextlib
import io
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Final

from ocistream.auth.docker_config import Credential
from ocistream.http.settings import RetryPolicy
from ocistream.oci.descriptor import OCI_INDEX, OCI_MANIFEST, Descriptor, Manifest
from ocistream.registry.blob_push import BlobPusher
from ocistream.registry.referrers import add_to_fallback_index, list_referrers
from ocistream.registry.repository import Repository
from ocistream.registry.tags import list_tags
from ocistream.serve import Registry
from ocistream.streams.chunks import verify_chunks
from ocistream.transfer.interfaces import VerifiedBlob
from tests.fuzz.broken_images import layout_items
from tests.fuzz.engine import Check, Target
from tests.fuzz.monitor import PORTS
from tests.http_doubles import Heard, QuickTransport, RawServer
from tests.images import digest_of

_CONTENT: Final = b"what is in the blob" * 20
_BLOB: Final = Descriptor("application/octet-stream", digest_of(_CONTENT), len(_CONTENT))
_MANIFEST: Final = (
    b'{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"%b","size":380},"layers":[]}'
    % (_BLOB.digest.encode())
)
_NAMED: Final = Descriptor(OCI_MANIFEST, digest_of(_MANIFEST), len(_MANIFEST))
#: Separates the responses of one input.
_NEXT: Final = b"\n--next--\n"
_PORT: Final = b"@PORT@"


def _manifest_of_tag(repository: Repository) -> None:
    repository.resolve("latest", strict=True)


def _manifest_by_digest(repository: Repository) -> None:
    assert digest_of(repository.resolve(_NAMED.digest).raw) == _NAMED.digest


def _blob(repository: Repository) -> None:
    assert b"".join(bytes(chunk) for chunk in verify_chunks(repository.download(_BLOB).chunks(), _BLOB)) == _CONTENT


def _look(repository: Repository) -> None:
    repository.has_blob(_BLOB)
    repository.has_manifest(_NAMED.digest)
    repository.find_digest("latest")


def _tags(repository: Repository) -> None:
    list_tags(repository)


def _referrers(repository: Repository) -> None:
    list_referrers(repository, _NAMED.digest)
    add_to_fallback_index(repository, _NAMED.digest, [_NAMED])


def _upload(repository: Repository) -> None:
    uploader = BlobPusher(repository)
    with contextlib.closing(uploader):
        if not uploader.mount(_BLOB, ["other", "another"]):
            uploader.upload(VerifiedBlob(_BLOB, lambda: iter([_CONTENT])))


def _put(repository: Repository) -> None:
    repository.push_manifest_with_tag("latest", Manifest(_NAMED, _MANIFEST))


_DEEDS: Final[tuple[Callable[[Repository], None], ...]] = (
    _manifest_of_tag, _manifest_by_digest, _blob, _look, _tags, _referrers, _upload, _put,
)  # fmt: skip


def _answer(status: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _error(status: str, code: str, *headers: str) -> bytes:
    return _answer(status, b'{"errors":[{"code":"%b","message":"no","detail":{}}]}' % code.encode(), *headers)


def _story(deed: int, *answers: bytes) -> bytes:
    """Return the input in which the action of this number gets these responses, one after the other."""
    return bytes([deed]) + _NEXT.join(answers)


def _answer_seeds() -> Sequence[bytes]:
    octets, listed = "Content-Type: application/octet-stream", "Content-Type: application/json"
    manifest = _answer("200 OK", _MANIFEST, f"Content-Type: {OCI_MANIFEST}", f"Docker-Content-Digest: {_NAMED.digest}")
    session = _answer("202 Accepted", b"", "Location: /v2/app/blobs/uploads/1?_state=a%2Fb", "Range: 0-0")
    cut = _answer("200 OK", _CONTENT, octets)[:-100]
    rest = _answer("206 Partial Content", _CONTENT[280:], octets, "Content-Range: bytes 280-379/380")
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n%x;a=b\r\n%b\r\n0\r\nX: y\r\n\r\n"
    tags = _answer(
        "200 OK", b'{"name":"app","tags":["1","latest",null]}', listed, 'Link: </v2/app/tags/list?last=1>; rel="next"'
    )
    challenge = f'WWW-Authenticate: Bearer realm="http://127.0.0.1:{_PORT.decode()}/token",service="x",scope="y"'
    token = _answer("200 OK", b'{"token":"abc","expires_in":300}', listed)
    index = b'{"schemaVersion":2,"mediaType":"%b","manifests":[]}' % OCI_INDEX.encode()
    referrers = _answer("200 OK", index, f"Content-Type: {OCI_INDEX}", "OCI-Filters-Applied: artifactType")
    out_of_range = _error("416 Range Not Satisfiable", "RANGE_INVALID", "Range: 0-99")
    return [
        _story(0, manifest),
        _story(1, manifest),
        _story(0, b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n" + manifest),
        _story(0, _answer("401 Unauthorized", b"", challenge), token, manifest),
        _story(
            0,
            _answer("307 Temporary Redirect", b"", f"Location: http://127.0.0.1:{_PORT.decode()}/elsewhere"),
            manifest,
        ),
        _story(2, _answer("200 OK", _CONTENT, octets)),
        _story(2, cut, rest),
        _story(2, cut, _answer("200 OK", _CONTENT, octets)),
        _story(2, chunked % (len(_CONTENT), _CONTENT)),
        _story(2, b"HTTP/1.0 200 OK\r\n\r\n" + _CONTENT),
        _story(2, _error("503 Service Unavailable", "UNAVAILABLE", "Retry-After: 1"), _answer("200 OK", _CONTENT)),
        _story(3, _answer("200 OK", b"", f"Docker-Content-Digest: {_NAMED.digest}")[:-4] + b"80\r\n\r\n"),
        _story(3, _error("404 Not Found", "BLOB_UNKNOWN")),
        _story(4, tags, _answer("200 OK", b'{"tags":[]}', listed)),
        _story(5, referrers),
        _story(
            5, _error("404 Not Found", "NOT_FOUND"), _error("404 Not Found", "MANIFEST_UNKNOWN"), _answer("201 Created")
        ),
        _story(6, session, session, _answer("202 Accepted", b"", "Range: 0-379"), _answer("201 Created")),
        _story(6, _answer("201 Created")),
        _story(6, session, _error("413 Payload Too Large", "SIZE_INVALID"), session, session, _answer("201 Created")),
        _story(6, session, out_of_range, session, _answer("201 Created")),
        _story(
            7, _error("404 Not Found", "MANIFEST_UNKNOWN"), _answer("201 Created", b"", f"OCI-Subject: {_NAMED.digest}")
        ),
        _story(7, _error("429 Too Many Requests", "TOOMANYREQUESTS", "Retry-After: 9999999"), _answer("201 Created")),
    ]


@contextlib.contextmanager
def _answers(_: Path) -> Iterator[Check]:
    """Run an action of the client; the first byte selects it, the rest are the responses."""
    patience = RetryPolicy(attempts=3, backoff=0.001, backoff_limit=0.001)
    #: One response for each connection; the last one is repeated.
    left: list[bytes] = []

    def respond(connection: socket.socket, heard: Heard) -> None:
        answer = left.pop(0) if len(left) > 1 else left[0]
        # The client tries TLS after a response that is not HTTP.
        if heard.method:
            # With the end in the same packet, the client does not use the connection again.
            connection.sendall(answer, socket.MSG_MORE)
            connection.shutdown(socket.SHUT_WR)
            # Closing a socket with unread data resets the connection, which may lose the response.
            while connection.recv(1 << 16):
                pass

    with RawServer(respond) as server:
        port = server.host.rpartition(":")[2]

        def check(data: bytes) -> None:
            deed = _DEEDS[(data[0] if data else 0) % len(_DEEDS)]
            server.heard.clear()
            left[:] = [answer.replace(_PORT, port.encode()) for answer in data[1:].split(_NEXT)]
            credential = Credential("user", "secret") if len(data) % 2 else None
            with QuickTransport(
                patience=patience, credential=credential, stall_timeout=8.0, connect_timeout=8.0
            ) as transport:
                deed(Repository(transport, server.host, "app", for_push=deed in {_upload, _put, _referrers}))

        PORTS.add(int(port))
        try:
            yield check
        finally:
            PORTS.discard(int(port))


_ANSWER_TOKENS: Final = (
    b"\r\n", b"\r\n\r\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/9.9 999 X\r\n",
    b"Content-Length: ", b"Content-Length: -1\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Content-Encoding: gzip\r\n", b"Location: ", b"Range: 0-", b"Content-Range: bytes 0-1/*\r\n", b"Retry-After: ",
    b'Link: <?n=1>; rel="next"\r\n', b"WWW-Authenticate: ", b"Basic realm=x", b"Docker-Content-Digest: sha256:",
    b"Connection: keep-alive\r\n", _NEXT, b"FFFFFFFFFFFFFFFF\r\n", b"-1\r\n", b" 0x1\r\n",
    b"Location: http://[::1]:1/\r\n", b"Location: //x\r\n", b"OCI-Chunk-Min-Length: 9999999999\r\n",
    b"X: " + b"y" * 70_000 + b"\r\n", b"Set-Cookie: a=b; domain=x\r\n", b"Content-Type: multipart/x; boundary=\r\n",
    _PORT,
)  # fmt: skip

# -- the embedded registry ----------------------------------------------------------------------------------


def _request(line: str, body: bytes = b"", *headers: str) -> bytes:
    length = [f"Content-Length: {len(body)}"] if body else []
    return "\r\n".join([f"{line} HTTP/1.1", "Host: localhost", *headers, *length, "", ""]).encode() + body


def _request_seeds() -> Sequence[bytes]:
    digest, octets = _BLOB.digest, "Content-Type: application/octet-stream"
    chunks = b"5\r\nhello\r\n0\r\n\r\n"
    session = "/v2/app/blobs/uploads/00000000-0000-0000-0000-000000000000"
    return [
        _request("GET /v2/"),
        _request("GET /v2/_catalog?n=1&last=a"),
        _request("GET /v2/app/tags/list?n=1"),
        _request("GET /v2/app/manifests/1", b"", f"Accept: {OCI_MANIFEST}, */*;q=0.1"),
        _request(f"HEAD /v2/app/manifests/{_NAMED.digest}") + _request("GET /v2/"),
        _request("PUT /v2/app/manifests/2", _MANIFEST, f"Content-Type: {OCI_MANIFEST}"),
        _request("DELETE /v2/app/manifests/2"),
        _request(f"GET /v2/app/blobs/{digest}", b"", "Range: bytes=10-20,30-"),
        _request(f"GET /v2/app/blobs/{digest}", b"", "Range: bytes=-5", "If-None-Match: *"),
        _request("POST /v2/app/blobs/uploads/"),
        _request(f"POST /v2/app/blobs/uploads/?mount={digest}&from=other"),
        _request(f"POST /v2/app/blobs/uploads/?digest={digest}", _CONTENT, octets),
        _request(f"PATCH {session}", _CONTENT, octets, "Content-Range: 0-379"),
        _request(f"PUT {session}?digest={digest}", b"", octets),
        _request("POST /v2/app/blobs/uploads/", b"", "Transfer-Encoding: chunked") + chunks + _request("GET /v2/"),
        _request(f"GET /v2/app/referrers/{_NAMED.digest}?artifactType=a"),
        _request("GET /v2/../../etc/passwd"),
        _request("GET /v2/app/blobs/sha256:../../../index.json", b"", "Origin: http://evil.example"),
        _request("GET /v2/", b"", "Expect: 100-continue", "Connection: close, x"),
    ]


def _pushed(rng: Random) -> bytes:
    """Return a request that pushes a manifest or an index, which may be invalid."""
    documents = [raw for _, raw in layout_items(rng) if raw is not None and raw[:1] == b"{"]
    return _request(
        "PUT /v2/app/manifests/3", rng.choice(documents), f"Content-Type: {rng.choice((OCI_MANIFEST, OCI_INDEX))}"
    )


_REQUEST_TOKENS: Final = (
    b"\r\n", b"\r\n\r\n", b" HTTP/1.1\r\n", b" HTTP/2.0\r\n", b" HTTP/0.9\r\n", b"GET ", b"PUT ", b"PATCH ",
    b"/v2/", b"../", b"%2e%2e/", b"%00", b"%ff", b"?", b"&", b"digest=", b"sha256:", b"Content-Length: ",
    b"Content-Length: -1\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n", b"Range: bytes=",
    b"Content-Range: ", b"Host: a\r\nHost: b\r\n", b"ffffffffffffffff\r\n", b"-1\r\n", b" folded\r\n",
    b"X: " + b"y" * 70_000 + b"\r\n", b"a: b\r\n" * 200,
)  # fmt: skip


@contextlib.contextmanager
def _requests(folder: Path) -> Iterator[Check]:
    """Send any bytes to the registry, which must not write to stderr and must still respond afterwards."""
    with Registry(folder / "served") as registry:
        port = int(registry.host.rpartition(":")[2])
        PORTS.add(port)
        _exchange(port, _request(f"POST /v2/app/blobs/uploads/?digest={_BLOB.digest}", _CONTENT))
        _exchange(port, _request("PUT /v2/app/manifests/1", _MANIFEST, f"Content-Type: {OCI_MANIFEST}"))

        def check(data: bytes) -> None:
            said = io.StringIO()
            with contextlib.redirect_stderr(said):
                answer = _exchange(port, data)
                again = _exchange(port, _request("GET /v2/"))
            assert not said.getvalue(), said.getvalue().strip().rpartition("\n")[2]
            assert b"Traceback" not in answer
            # 501 and 505 are for unknown methods and versions.
            assert not re.search(rb"^HTTP/1.1 5(?!01|05)", answer, re.MULTILINE), "the response is a server error"
            assert again.startswith(b"HTTP/1.1 200 "), "the registry no longer responds"

        try:
            yield check
        finally:
            PORTS.discard(port)


def _exchange(port: int, data: bytes) -> bytes:
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection, contextlib.suppress(OSError):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(1 << 16):
            answer += part
    return answer


TARGETS: Final = (
    Target("answers", _answers, _answer_seeds, frozenset({3, 4, 5, 6, 7, 8}), tokens=_ANSWER_TOKENS, share=1200),
    Target("requests", _requests, _request_seeds, frozenset(), _pushed, _REQUEST_TOKENS, share=1200),
)
