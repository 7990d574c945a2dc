"""Payloads of signatures, Sigstore bundles and their verification material. All seeds are recorded."""

from __future__ import annotations

import base64
import contextlib
import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

from ocistream.errors import ArchiveError, OcistreamError
from ocistream.signatures.keyless import KeylessVerifier, load_verifier
from ocistream.signatures.messages import RefusedSignatureError, SignedMessage, read_bundle, read_payload
from tests.fuzz.engine import Check, Target
from tests.fuzz.mutation import json_bytes, json_mutated
from tests.signatures.recording import IDENTITY, ISSUER, read_recording
from tests.signing import IN_TOTO, SIGN_V1, payload, statement

_TOKENS: Final = (
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"null", b"true", b"-1", b'"mediaType":', b'"critical":', b'"optional":',
    b'"dsseEnvelope":', b'"messageSignature":', b'"verificationMaterial":', b'"certificate":', b'"tlogEntries":',
    b'"inclusionProof":', b'"payload":', SIGN_V1.encode(), IN_TOTO.encode(),
)  # fmt: skip


class _Signed(NamedTuple):
    """An image and its bundle."""

    digest: str
    manifest: bytes
    bundle: dict[str, Any]


@functools.cache
def _recorded() -> list[_Signed]:
    """Return an image whose statement is signed, and an image whose manifest is signed."""
    recording = read_recording("sigstore-js")
    signed = []
    for name in ("keyless-dsse", "keyless-message"):
        manifest, bundle = recording.signed(name)
        signed.append(_Signed(recording.names[name], manifest, json.loads(bundle)))
    return signed


def _bundle_seeds() -> Sequence[bytes]:
    return [json.dumps(signed.bundle).encode() for signed in _recorded()]


def _seeds() -> Sequence[bytes]:
    return [*(payload(signed.digest) for signed in _recorded()), *_bundle_seeds()]


def _bundle(rng: Random) -> bytes:
    return json_bytes(rng, json_mutated(rng, rng.choice(_recorded()).bundle))


def _signature(rng: Random) -> bytes:
    kind, signed = rng.randrange(3), _recorded()[0]
    if kind == 0:
        return json_bytes(rng, json_mutated(rng, json.loads(payload(signed.digest))))
    if kind == 1:
        return _bundle(rng)
    content = json_bytes(rng, json_mutated(rng, json.loads(statement(signed.digest))))
    envelope = {**signed.bundle["dsseEnvelope"], "payload": base64.b64encode(content).decode()}
    return json.dumps({**signed.bundle, "dsseEnvelope": envelope}).encode()


@contextlib.contextmanager
def _signatures(_: Path) -> Iterator[Check]:
    """Read each input as a payload and as a bundle, with and without the manifest."""

    def check(data: bytes) -> None:
        first: OcistreamError | None = None
        reasons: list[str] = []
        for read, signed in itertools.product((_read_payload, _read_bundle, _read_alone), _recorded()):
            try:
                read(data, signed)
            except RefusedSignatureError as reason:
                reasons.append(str(reason))
            except ArchiveError as error:
                first = first or error
        assert "".join(reasons).isprintable()
        if first is not None:
            raise first

    yield check


def _read_payload(data: bytes, signed: _Signed) -> SignedMessage:
    return read_payload(data, "AA==", signed.digest)


def _read_bundle(data: bytes, signed: _Signed) -> SignedMessage:
    return read_bundle(data, signed.digest, signed.manifest)


def _read_alone(data: bytes, signed: _Signed) -> SignedMessage:
    return read_bundle(data, signed.digest, None)


@contextlib.contextmanager
def _keyless(_: Path) -> Iterator[Check]:
    """Verify each input that is a valid bundle; the verifier returns identities or a reason."""
    root = json.dumps(read_recording("sigstore-js").trusted_root)
    verifier = load_verifier(root, [(IDENTITY, ISSUER)])
    assert isinstance(verifier, KeylessVerifier)

    def check(data: bytes) -> None:
        for image in _recorded():
            with contextlib.suppress(RefusedSignatureError):
                signed = _read_bundle(data, image)
                if signed.bundle is not None:
                    found = verifier.find_identities(signed.bundle, signed.message, is_statement=signed.is_statement)
                    assert found == [0] or isinstance(found, str)

    yield check


TARGETS: Final = (
    Target("signatures", _signatures, _seeds, frozenset({6}), _signature, _TOKENS, share=3000),
    Target("keyless", _keyless, _bundle_seeds, frozenset({6}), _bundle, _TOKENS, share=400),
)
