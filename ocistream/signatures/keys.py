"""Public keys in PEM files, and signatures by them.

The key alone decides the algorithm and the hash: a document that came with an image has no say in them.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ocistream import limits
from ocistream.errors import OcistreamError, UnsupportedError, UsageError
from ocistream.oci.reference import printable
from ocistream.signatures.verifier import MISSING
from ocistream.streams import files, paths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocistream.signatures.messages import SignedMessage

_BLOCK: Final = re.compile(r"-----BEGIN ([A-Z0-9 ]{1,60})-----")
_KINDS: Final = "ECDSA P-256 and P-384, RSA, and Ed25519"
_PROGRAM: Final = "from ocistream.signatures.verifier import main; main()"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key; `name` is its file."""

    name: str
    pem: str = field(repr=False)


def load_keys(paths: Sequence[str]) -> tuple[PublicKey, ...]:
    """Read the public keys of PEM files.

    Raises:
        UsageError: a file has another content than one public key of a supported kind.
        UnsupportedError: the package `cryptography` is not installed.
        NotFoundError, LocalDiskError: a file cannot be read.
    """
    keys = tuple(_read_key(path) for path in dict.fromkeys(paths))
    if keys:
        for key, problem in zip(keys, _run(keys, ())["problems"], strict=True):
            if problem is not None:
                raise _key_error(key.name, problem)
    return keys


def find_signers(keys: Sequence[PublicKey], messages: Sequence[SignedMessage]) -> list[list[str]]:
    """Return for each message the names of the keys by which its signature is valid."""
    if not messages:
        return []
    return [[keys[number].name for number in numbers] for numbers in _run(keys, messages)["signed"]]


def _read_key(path: str) -> PublicKey:
    if paths.is_directory(path):
        raise _key_error(str(Path(path)), "it is a directory")
    with files.disk_errors(f"cannot read the key {printable(path, 1024)}"), Path(path).open("rb") as file:
        raw = file.read(limits.MAX_KEY_FILE + 1)
    if len(raw) > limits.MAX_KEY_FILE:
        raise _key_error(path, f"it is larger than {limits.MAX_KEY_FILE} bytes")
    pem = raw.decode("ascii", "replace")
    blocks = _BLOCK.findall(pem)
    if any(block.endswith("PRIVATE KEY") for block in blocks):
        raise _key_error(path, "it is a private key", "use its public key, such as cosign.pub; keep this file secret")
    if any(block.endswith("CERTIFICATE") for block in blocks):
        hint = "`openssl x509 -pubkey -noout -in FILE` prints the public key of a certificate"
        raise _key_error(path, "it is a certificate", hint)
    if len(blocks) != 1 or not blocks[0].endswith("PUBLIC KEY"):
        reason = f"it has {len(blocks)} PEM blocks" if len(blocks) > 1 else "it is not a public key in PEM format"
        raise _key_error(path, reason, "write each key to its own file" if len(blocks) > 1 else None)
    return PublicKey(path, pem)


def _run(keys: Sequence[PublicKey], messages: Sequence[SignedMessage]) -> dict[str, Any]:
    """Run the verifier in a process of its own, and return its answer."""
    request = {
        "keys": [key.pem for key in keys],
        "signatures": [[_encode(message.signature), _encode(message.message)] for message in messages],
    }
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with files.disk_errors("cannot start the process that verifies signatures"):
        done = subprocess.run(
            [sys.executable, "-P", "-c", _PROGRAM],
            input=json.dumps(request).encode(),
            capture_output=True,
            env=environment,
            check=False,
        )
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        reason = printable(done.stderr.decode(errors="replace").strip().rpartition("\n")[2])
        msg = f"signatures cannot be checked: the process that verifies them ended with {done.returncode}: {reason}"
        raise OcistreamError(msg) from error
    if MISSING in answer:
        msg = "signatures cannot be checked: the package cryptography is not installed"
        hint = "install it beside ocistream: `pip install cryptography`, or `pipx inject ocistream cryptography`"
        raise UnsupportedError(msg, hint=hint)
    return answer


def _encode(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _key_error(path: str, reason: str, hint: str | None = None) -> UsageError:
    msg = f"{printable(path, 1024)} cannot be used as a key: {reason}"
    return UsageError(msg, hint=hint or f"use a public key in PEM format: {_KINDS} are supported")
