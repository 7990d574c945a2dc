"""JSON, manifests, indexes, configs, responses of token servers, credential files and upload records."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final
from unittest import mock

from ocistream import limits
from ocistream.archive.docker_archive import parse_manifest_json
from ocistream.auth.authenticator import Authenticator
from ocistream.auth.docker_config import AuthFile, Credential, check_storable, encode_entry
from ocistream.auth.tokens import TokenRequest, TokenResponse, parse_challenges
from ocistream.errors import ArchiveError, OcistreamError, UsageError
from ocistream.layout.index import build_index_json, build_roots, check_layout_file, parse_index_json
from ocistream.notices import set_listener
from ocistream.oci.descriptor import ACCEPTED_TYPES, UNKNOWN_MEDIA_TYPE, Descriptor, compute_digest
from ocistream.oci.documents import (
    guess_media_type,
    parse_config_platform,
    parse_diff_ids,
    parse_document,
    parse_outline,
)
from ocistream.oci.strict_json import canonical_json, parse_json
from ocistream.registry.repository import Repository
from ocistream.registry.upload_record import SessionLocation, UploadRecords
from tests.fuzz.broken_images import layout_items
from tests.fuzz.engine import Check, Target
from tests.fuzz.mutation import json_bytes, json_mutated
from tests.http_doubles import QuickTransport

_TOKENS: Final = (
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\u", b"\\ud800", b"\\udc00", b"\\u0000", b"null", b"true",
    b"NaN", b"Infinity", b"-", b"1e999", b"1E+5", b'"":', b'"mediaType":', b'"manifests":', b'"layers":',
    b'"schemaVersion":1', b'"digest":', b'"size":', b"\xef\xbb\xbf", b"\xc0\x80", b"[" * 70, b'{"a":' * 70,
)  # fmt: skip

# -- JSON ---------------------------------------------------------------------------------------------------


def _json_seeds() -> Sequence[bytes]:
    return [
        b"{}",
        b'{"a": [1, 2.5, -3e2, null, true, "x\\u00e9\\n"], "list": [{"b": {}}, [], "\xc3\xa9"]}',
        b' {\n"list" : [ ] , "k":{"list":[1]}}\t',
        *(raw for _, raw in layout_items(Random(1)) if raw is not None and raw[:1] == b"{"),
    ]


def _json(rng: Random) -> bytes:
    return json_bytes(rng, json_mutated(rng, json.loads(rng.choice(_json_seeds()))))


@contextlib.contextmanager
def _strict(_: Path) -> Iterator[Check]:
    """Compare the parser with Python's: the same values, and each refusal has a rule; as one text and in parts."""

    def check(data: bytes) -> None:
        if sum(data.count(mark) for mark in (b",", b"[", b"{")) > limits.MAX_JSON_PART_ITEMS:
            # A part has another limit than a document.
            _parsed(data, 0)
            return
        whole = _parsed(data, len(data))
        parts = _parsed(data, 0)
        assert _same(whole, parts), "parsing in parts gives another result"
        if isinstance(whole, dict):
            assert canonical_json(json.loads(data)) == canonical_json(whole), "Python's parser returns other values"
            assert canonical_json(parse_json(canonical_json(whole), "it")) == canonical_json(whole)
            listed = _parsed(data, 0, keys={"list"}, convert={"list": lambda _, item: item})
            assert _same(listed, {key: value for key, value in whole.items() if key == "list"})
            return
        assert _is_against_the_rules(data), "refused without a rule"
        raise whole

    yield check


def _parsed(data: bytes, whole: int, **fields: Any) -> dict[str, Any] | ArchiveError:
    with mock.patch.object(limits, "MAX_JSON_UNSPLIT", whole):
        try:
            return parse_json(data, "it", **fields)
        except ArchiveError as error:
            return error


def _same(one: object, other: object) -> bool:
    if isinstance(one, ArchiveError) or isinstance(other, ArchiveError):
        return type(one) is type(other)
    return canonical_json(one) == canonical_json(other)


class _RuleError(ValueError):
    """The document is JSON, but breaks a rule of the parser."""


def _is_against_the_rules(data: bytes) -> bool:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise _RuleError
        return dict(pairs)

    def refused(_: str) -> Any:
        raise _RuleError

    def finite(text: str) -> float:
        if math.isinf(float(text)):
            raise _RuleError
        return float(text)

    try:
        value = json.loads(data.decode(), object_pairs_hook=unique, parse_constant=refused, parse_float=finite)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return True
    return not isinstance(value, dict) or _depth(value) > limits.MAX_JSON_DEPTH


def _depth(value: object) -> int:
    level, depth = [value], -1
    while level:
        depth += 1
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
    return depth


# -- manifests and other documents --------------------------------------------------------------------------


def _document_seeds() -> Sequence[bytes]:
    found = [b'\x00[{"Config":"c.json","RepoTags":["a:1",null],"Layers":["l.tar"]}]']
    for number in range(8):
        for _, raw in layout_items(Random(f"document {number}")):
            if raw is not None and raw[:1] == b"{":
                found += [bytes([kind]) + raw for kind in (0, 1)]
    return found


def _document(rng: Random) -> bytes:
    data = rng.choice(_document_seeds())
    return bytes([rng.randrange(8)]) + json_bytes(rng, json_mutated(rng, json.loads(data[1:])))


@contextlib.contextmanager
def _documents(_: Path) -> Iterator[Check]:
    """Read a document as every kind; the first byte selects the media type of its descriptor."""
    kinds = (*ACCEPTED_TYPES, UNKNOWN_MEDIA_TYPE, "application/vnd.oci.artifact.manifest.v1+json")

    def check(data: bytes) -> None:
        kind, raw = kinds[(data[0] if data else 0) % len(kinds)], data[1:]
        first: OcistreamError | None = None
        for read in (
            lambda: parse_document(Descriptor(kind, compute_digest(raw), len(raw)), raw),
            lambda: _rewritten([*parse_index_json(raw).entries]),
            lambda: guess_media_type(raw, "it"),
            lambda: parse_outline(raw, "it"),
            lambda: parse_config_platform(raw, "it"),
            lambda: parse_diff_ids(raw, "it"),
            lambda: check_layout_file(raw),
            lambda: parse_manifest_json(raw),
        ):
            try:
                read()
            except OcistreamError as error:
                first = first or error
        if first is not None:
            raise first

    yield check


def _rewritten(entries: list[Descriptor]) -> None:
    """Write an index.json again, which must give the same bytes."""
    build_roots(entries)
    raw = build_index_json(entries)
    assert build_index_json(parse_index_json(raw).entries) == raw, "a rewritten index differs"


# -- tokens -------------------------------------------------------------------------------------------------

_CHALLENGES: Final = (
    b'Bearer realm="https://auth.example.com/token",service="registry",scope="repository:a/b:pull"',
    b'Basic realm="Registry", charset="UTF-8"',
    b'Negotiate, Bearer realm="http://127.0.0.1:5000/t?a=b", error="invalid_token"',
    b'Bearer realm="https://a/b\\"c" , service=x , scope="a b  c"\nBasic realm=""',
)
_ANSWER: Final = b'{"token":"abc.def","expires_in":300,"issued_at":"2024-01-01T00:00:00Z"}'


def _token_seeds() -> Sequence[bytes]:
    return [challenge + b"\0" + _ANSWER for challenge in _CHALLENGES] + [
        _CHALLENGES[0] + b'\0{"access_token":"x","token":"","expires_in":"60"}'
    ]


def _token(rng: Random) -> bytes:
    answer = json_bytes(rng, json_mutated(rng, json.loads(_ANSWER)))
    return rng.choice(_CHALLENGES) + b"\0" + (answer if rng.random() < 0.7 else _ANSWER)


@contextlib.contextmanager
def _tokens(_: Path) -> Iterator[Check]:
    """Read the challenges of a 401, one on each line, and after a NUL the response of the token server."""
    credentials = (None, Credential("user", "secret"), Credential("", "", "identity"))

    def check(data: bytes) -> None:
        head, _, body = data.partition(b"\0")
        values = head.decode("latin-1").split("\n")
        for challenge in parse_challenges(values):
            assert challenge.scheme == challenge.scheme.lower()

        def send(request: TokenRequest) -> TokenResponse:
            assert request.url.isascii()
            assert request.url.isprintable(), "a URL with control characters"
            return TokenResponse(200, body[: limits.MAX_TOKEN_RESPONSE + 1])

        credential = credentials[len(data) % len(credentials)]
        authenticator = Authenticator("example.com", lambda _: credential, send)
        header = authenticator.answer_challenge(values, ("repository:a/b:pull",), None)
        assert header.isascii(), "a header that is not ASCII"
        assert header.isprintable(), "a header with control characters"
        again = authenticator.find_header(("repository:a/b:pull",))
        assert again is None or again.isprintable()

    yield check


# -- credential files and upload records --------------------------------------------------------------------

_AUTH: Final = {
    "auths": {
        "https://index.docker.io/v1/": {"auth": base64.b64encode(b"user:password").decode()},
        "example.com:5000/ns": {"auth": "dTpw", "identitytoken": "token", "email": "a@b"},
        "registry.example": {"username": "u", "password": "p", "registrytoken": ""},
        "[::1]:5000": {},
    },
    "credHelpers": {"gcr.io": "gcloud", "ecr.example": ""},
    "credsStore": "desktop",
}


def _auth_seeds() -> Sequence[bytes]:
    return [json.dumps(_AUTH).encode(), b"", b"{}", b'{"auths":null}', b'{"auths":{"a.example":{"auth":"=="}}}']


def _auth(rng: Random) -> bytes:
    return json_bytes(rng, json_mutated(rng, _AUTH))


@contextlib.contextmanager
def _auth_files(_: Path) -> Iterator[Check]:
    def check(data: bytes) -> None:
        file = AuthFile.parse(data, "~/.docker/config.json")
        for host in ("docker.io", "example.com:5000", "registry.example", "[::1]:5000", "gcr.io"):
            file.find_helper(host)
            credential = file.find_entry(host, "ns/repo")
            if credential is not None:
                assert "password" not in repr(credential), "a secret is shown"
                with contextlib.suppress(UsageError):
                    check_storable(credential)
                    encode_entry(credential)
            canonical_json(file.with_entry(host, {"auth": "dTpw"}))
            file.with_entry(host, None)

    yield check


_UPLOADED: Final = f"sha256:{'a' * 64}", 4_000_000
_RECORD: Final = {
    "registry": "registry.example:5000",
    "repository": "team/app",
    "digest": _UPLOADED[0],
    "size": _UPLOADED[1],
    "location": "https://registry.example:5000/v2/team/app/blobs/uploads/1?_state=b%3D",
    "min_chunk": 65_536,
    "since": round(time.time()),
    "version": 1,
}


def _record_seeds() -> Sequence[bytes]:
    return [json.dumps(_RECORD).encode(), json.dumps(_RECORD).encode() + b" " * 50, b"{}", b""]


def _record(rng: Random) -> bytes:
    return json_bytes(rng, json_mutated(rng, _RECORD))


@contextlib.contextmanager
def _records(folder: Path) -> Iterator[Check]:
    """Read an invalid upload record, which must not fail; a new record must replace it."""
    notes = list[str]()
    set_listener(lambda message, *, level: notes.append(f"{level} {message}"))
    records = UploadRecords(folder / "uploads")
    repository = Repository(QuickTransport(), "registry.example:5000", "team/app")
    written = SessionLocation("https://registry.example:5000/v2/team/app/blobs/uploads/2", 1)

    def check(data: bytes) -> None:
        claim = records.lock(repository, *_UPLOADED)
        assert claim is not None
        claim.release()
        (path,) = (folder / "uploads").iterdir()
        path.write_bytes(data)
        for left in records.lock_abandoned(repository, {_UPLOADED[0]}):
            left.release()
        claim = records.lock(repository, *_UPLOADED)
        assert claim is not None
        claim.write(written)
        claim.release()
        again = records.lock(repository, *_UPLOADED)
        assert again is not None
        assert again.location == written, "the new record is lost"
        again.remove()
        assert all(note.isprintable() for note in notes)
        notes.clear()

    yield check


TARGETS: Final = (
    Target("json", _strict, _json_seeds, frozenset({6}), _json, _TOKENS, share=4500),
    Target("documents", _documents, _document_seeds, frozenset({6, 8}), _document, _TOKENS, share=2400),
    Target(
        "tokens",
        _tokens,
        _token_seeds,
        frozenset({2, 3, 7}),
        _token,
        (*_TOKENS, b"realm=", b"Bearer ", b'\\"'),
        share=4500,
    ),
    Target("auth-file", _auth_files, _auth_seeds, frozenset({2}), _auth, (*_TOKENS, b"://", b"/v1/"), share=3000),
    Target("upload-record", _records, _record_seeds, frozenset(), _record, _TOKENS, share=600),
)
