"""Signers that may be accepted: owners of keys, and identities in Sigstore certificates (keyless)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from ocistream import limits
from ocistream.errors import UsageError
from ocistream.oci.reference import printable
from ocistream.streams import files, paths

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_BLOCK: Final = re.compile(r"-----BEGIN ([A-Z0-9 ]{1,60})-----")
_KINDS: Final = "ECDSA P-256 and P-384, RSA, and Ed25519"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """The signer who has the private key of the public key in `file`."""

    file: str

    def __str__(self) -> str:
        """Return the signer as messages show it."""
        return self.file

    def read(self) -> str:
        """Return the content of the file in PEM format.

        Raises:
            UsageError: the file has another content than one public key.
            NotFoundError, LocalDiskError: the file cannot be read.
        """
        pem = _read(self.file, "key", limits.MAX_KEY_FILE, self.error)
        blocks = _BLOCK.findall(pem)
        if any(block.endswith("PRIVATE KEY") for block in blocks):
            hint = "use its public key, such as cosign.pub; keep this file secret"
            raise self.error("it is a private key", hint)
        if any(block.endswith("CERTIFICATE") for block in blocks):
            hint = "`openssl x509 -pubkey -noout -in FILE` prints the public key of a certificate"
            raise self.error("it is a certificate", hint)
        if len(blocks) > 1:
            raise self.error(f"it has {len(blocks)} PEM blocks", "write each key to its own file")
        if not blocks or not blocks[0].endswith("PUBLIC KEY"):
            raise self.error("it is not a public key in PEM format")
        return pem

    def error(self, reason: str, hint: str | None = None) -> UsageError:
        """Return the error for a file that cannot be used."""
        msg = f"{printable(self.file, 1024)} cannot be used as a key: {reason}"
        return UsageError(msg, hint=hint or f"use a public key in PEM format: {_KINDS} are supported")


@dataclass(frozen=True, slots=True)
class Identity:
    """The signer whom the OIDC provider `issuer` knows as `identity`, an email address or a URI.

    `trusted_root` is the file with the certificate authorities and logs that are trusted to confirm this.
    """

    identity: str
    issuer: str
    trusted_root: str

    def __str__(self) -> str:
        """Return the signer as messages show it."""
        return f"{self.identity} ({self.issuer})"

    def read(self) -> str:
        """Return the content of the trusted root.

        Raises:
            UsageError: the file is too large, or is a directory.
            NotFoundError, LocalDiskError: the file cannot be read.
        """
        return _read(self.trusted_root, "trusted root", limits.MAX_TRUSTED_ROOT, self.error)

    def error(self, reason: str) -> UsageError:
        """Return the error for a trusted root that cannot be used."""
        msg = f"{printable(self.trusted_root, 1024)} cannot be used as a trusted root: {reason}"
        return UsageError(msg, hint="use a trusted_root.json of Sigstore, such as `cosign trusted-root create` writes")


Signer: TypeAlias = PublicKey | Identity


def list_signers(
    keys: Sequence[str], identity: str | None, issuer: str | None, trusted_root: str | None
) -> list[Signer]:
    """Return the signers that options name: the owners of keys, and one identity.

    Raises:
        UsageError: the path of a key is empty, or an option of the identity is missing or empty.
    """
    if "" in keys:
        msg = "the path of a public key is empty"
        raise UsageError(msg, hint="name the file of a key, such as cosign.pub: check the variables of a script")
    signers: list[Signer] = [PublicKey(file) for file in dict.fromkeys(keys)]
    given = {"--certificate-identity": identity, "--certificate-oidc-issuer": issuer, "--trusted-root": trusted_root}
    if all(value is None for value in given.values()):
        return signers
    # An empty value is often an unset variable of a script; it must not disable the check.
    missing = [option for option, value in given.items() if not value]
    if missing or identity is None or issuer is None or trusted_root is None:
        msg = f"{' and '.join(missing)} must be given too: an identity needs its issuer and a trusted root"
        raise UsageError(msg, hint=f"use {', '.join(given)} together")
    return [*signers, Identity(identity, issuer, trusted_root)]


def _read(path: str, what: str, bound: int, error: Callable[[str], UsageError]) -> str:
    if paths.is_directory(path):
        raise error("it is a directory")
    with files.disk_errors(f"cannot read the {what} {printable(path, 1024)}"), Path(path).open("rb") as file:
        raw = file.read(bound + 1)
    if len(raw) > bound:
        raise error(f"it is larger than {bound} bytes")
    return raw.decode("utf-8", "replace")
