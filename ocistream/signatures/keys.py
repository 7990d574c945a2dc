"""Public keys in PEM files, and signatures by them.

The key alone decides the algorithm and the hash: a document that came with an image has no say in them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from ocistream import limits
from ocistream.errors import UnsupportedError, UsageError
from ocistream.oci.reference import printable
from ocistream.streams import files

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PublicKey", "load_keys"]

#: Raises an exception if a signature, the first argument, is not one of a message, the second.
_Verifier: TypeAlias = Callable[[bytes, bytes], None]

_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,60})-----")
_MIN_RSA_BITS: Final = 2048
#: A longer modulus takes seconds for each signature.
_MAX_RSA_BITS: Final = 8192
_KINDS: Final = "ECDSA P-256 and P-384, RSA, and Ed25519"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key; `name` is its file."""

    name: str
    #: One for each hash that signers use with this kind of key, and what they raise.
    _verifiers: tuple[_Verifier, ...] = field(repr=False)
    _invalid: type[Exception] = field(repr=False)

    def has_signed(self, message: bytes, signature: bytes) -> bool:
        """Return whether the signature of the message was made with the private key of this one."""
        for verify in self._verifiers:
            try:
                verify(signature, message)
            except self._invalid:
                continue
            return True
        return False


def load_keys(paths: Sequence[str]) -> tuple[PublicKey, ...]:
    """Read the public keys of PEM files.

    Raises:
        UsageError: a file has another content than one public key of a supported kind.
        UnsupportedError: the package `cryptography` is not installed.
        NotFoundError, LocalDiskError: a file cannot be read.
    """
    return tuple(_load_key(path) for path in dict.fromkeys(paths))


def _load_key(path: str) -> PublicKey:
    with files.disk_errors(f"cannot read the key {printable(path, 1024)}"), Path(path).open("rb") as file:
        raw = file.read(limits.MAX_KEY_FILE + 1)
    if len(raw) > limits.MAX_KEY_FILE:
        raise _key_error(path, f"it is larger than {limits.MAX_KEY_FILE} bytes")
    blocks = _BLOCK.findall(raw)
    if any(block.endswith(b"PRIVATE KEY") for block in blocks):
        raise _key_error(path, "it is a private key", "use its public key, such as cosign.pub; keep this file secret")
    if any(block.endswith(b"CERTIFICATE") for block in blocks):
        hint = "`openssl x509 -pubkey -noout -in FILE` prints the public key of a certificate"
        raise _key_error(path, "it is a certificate", hint)
    if len(blocks) != 1 or not blocks[0].endswith(b"PUBLIC KEY"):
        reason = f"it has {len(blocks)} PEM blocks" if len(blocks) > 1 else "it is not a public key in PEM format"
        raise _key_error(path, reason, "give each key in a file of its own")
    return PublicKey(path, *_find_verifiers(raw, path))


def _find_verifiers(raw: bytes, path: str) -> tuple[tuple[_Verifier, ...], type[Exception]]:
    """Return the verifiers of a key, and the exception that they raise."""
    try:
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as error:
        msg = "signatures cannot be checked: the package cryptography is not installed"
        raise UnsupportedError(msg, hint="install it with `pip install 'ocistream[signatures]'`") from error
    try:
        key = load_pem_public_key(raw)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _key_error(path, "the public key is malformed, or of an unknown kind") from error
    if isinstance(key, ed25519.Ed25519PublicKey):
        return (key.verify,), InvalidSignature
    if isinstance(key, rsa.RSAPublicKey):
        if not _MIN_RSA_BITS <= key.key_size <= _MAX_RSA_BITS:
            reason = f"an RSA key must have {_MIN_RSA_BITS} to {_MAX_RSA_BITS} bits, and this one has {key.key_size}"
            raise _key_error(path, reason)
        verify = partial(key.verify, padding=padding.PKCS1v15(), algorithm=hashes.SHA256())
        return (verify,), InvalidSignature
    if isinstance(key, ec.EllipticCurvePublicKey):
        # skopeo, and cosign before version 3, use SHA-256 with every curve.
        by_curve: dict[str, list[hashes.HashAlgorithm]] = {
            "secp256r1": [hashes.SHA256()],
            "secp384r1": [hashes.SHA384(), hashes.SHA256()],
        }
        if key.curve.name not in by_curve:
            raise _key_error(path, f"the curve {key.curve.name} is not supported")
        algorithms = [ec.ECDSA(algorithm) for algorithm in by_curve[key.curve.name]]
        verifiers = [partial(key.verify, signature_algorithm=algorithm) for algorithm in algorithms]
        return tuple(verifiers), InvalidSignature
    raise _key_error(path, "keys of this kind are not supported")


def _key_error(path: str, reason: str, hint: str | None = None) -> UsageError:
    msg = f"{printable(path, 1024)} cannot be used as a key: {reason}"
    return UsageError(msg, hint=hint or f"supported are public keys in PEM format: {_KINDS}")
