"""Verify signatures with the packages `cryptography` and, for identities, `sigstore`, in a process of its own.

The packages take 10 and 45 MiB, which a copy at the default settings does not have. The process reads one JSON document
from stdin, and writes one to stdout. It gets only signers that the user has given; nothing else of it chooses an
algorithm.
"""

from __future__ import annotations

import base64
import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ocistream.signatures.keyless import KeylessVerifier

#: The key of an answer that only names the package that is not installed.
MISSING: Final = "missing"
_MIN_RSA_BITS: Final = 2048
#: A longer modulus takes seconds for each signature.
_MAX_RSA_BITS: Final = 8192
_ED25519_SIGNATURE_SIZE: Final = 64
#: cryptography cannot verify Ed25519ph, and its signatures look like those of other Ed25519 keys.
_ED25519PH: Final = "it is signed by another key, or by a given one with Ed25519ph, which is not supported"


class _Key(NamedTuple):
    """A function for each hash that signers use with a key. It raises InvalidSignature for a wrong signature."""

    verifiers: list[Callable[[bytes, bytes], None]]
    is_ed25519: bool = False


def main() -> None:
    """Answer with the problem of each key and each trusted root, or None, and with a verdict on each message."""
    json.dump(answer(json.load(sys.stdin)), sys.stdout)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to a request, which is described at `main`."""
    try:
        keys = [_load_key(pem.encode()) for pem in request["keys"]]
    except ImportError:
        return {MISSING: "cryptography"}
    roots: list[KeylessVerifier | str] = []
    if request["trusted_roots"]:
        try:
            from ocistream.signatures.keyless import load_verifier
        except ImportError:
            return {MISSING: "sigstore"}
        roots = [load_verifier(root["content"], root["identities"]) for root in request["trusted_roots"]]
    usable_keys = [key for key in keys if not isinstance(key, str)]
    usable_roots = [root for root in roots if not isinstance(root, str)]
    verdicts = []
    if (len(usable_keys), len(usable_roots)) == (len(keys), len(roots)):
        verdicts = [_judge(message, usable_keys, usable_roots) for message in request["messages"]]
    return {
        "keys": [key if isinstance(key, str) else None for key in keys],
        "trusted_roots": [root if isinstance(root, str) else None for root in roots],
        "verdicts": verdicts,
    }


def _judge(signed: dict[str, Any], keys: Sequence[_Key], roots: Sequence[KeylessVerifier]) -> dict[str, Any]:
    """Return the numbers of the keys and identities that have signed a message, and the problem if it is known."""
    signature, message = base64.b64decode(signed["signature"]), base64.b64decode(signed["message"])
    identities: list[tuple[int, int]] = []
    problem = None
    if signed["bundle"] is not None:
        bundle = base64.b64decode(signed["bundle"])
        for number, root in enumerate(roots):
            found = root.find_identities(bundle, message, is_statement=signed["is_statement"])
            if isinstance(found, str):
                problem = found
            else:
                identities += [(number, identity) for identity in found]
    elif len(signature) == _ED25519_SIGNATURE_SIZE and any(key.is_ed25519 for key in keys):
        problem = _ED25519PH
    return {
        "keys": [number for number, key in enumerate(keys) if _has_signed(key, signature, message)],
        "identities": identities,
        "problem": problem,
    }


def _has_signed(key: _Key, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    for verify in key.verifiers:
        try:
            verify(signature, message)
        except InvalidSignature:
            continue
        return True
    return False


def _load_key(pem: bytes) -> str | _Key:
    """Return a key or its problem."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        return _find_verifiers(load_pem_public_key(pem))
    except (ValueError, UnsupportedAlgorithm):
        return "the public key is malformed, or of an unknown kind"


def _find_verifiers(key: object) -> str | _Key:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

    if isinstance(key, ed25519.Ed25519PublicKey):
        return _Key([key.verify], is_ed25519=True)
    if isinstance(key, rsa.RSAPublicKey):
        if not _MIN_RSA_BITS <= key.key_size <= _MAX_RSA_BITS:
            return f"an RSA key must have {_MIN_RSA_BITS} to {_MAX_RSA_BITS} bits, and this one has {key.key_size}"
        return _Key([partial(key.verify, padding=padding.PKCS1v15(), algorithm=hashes.SHA256())])
    if isinstance(key, ec.EllipticCurvePublicKey):
        # skopeo, and cosign before version 3, use SHA-256 with every curve.
        by_curve: dict[str, list[hashes.HashAlgorithm]] = {
            "secp256r1": [hashes.SHA256()],
            "secp384r1": [hashes.SHA384(), hashes.SHA256()],
        }
        if key.curve.name not in by_curve:
            return f"the curve {key.curve.name} is not supported"
        algorithms = [ec.ECDSA(algorithm) for algorithm in by_curve[key.curve.name]]
        return _Key([partial(key.verify, signature_algorithm=algorithm) for algorithm in algorithms])
    return "keys of this kind are not supported"
