"""Signed messages, and the reasons why a signature does not count. The formats read them from untrusted documents."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ocistream.errors import ArchiveError
from ocistream.oci.reference import is_digest, printable
from ocistream.oci.strict_json import check_keys

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet


@dataclass(frozen=True, slots=True)
class SignedMessage:
    """A message about an image, and its signature, which is not verified yet.

    `name` is the image's name in the message, or None. The signer wrote it, so it proves nothing about the registry.
    `is_statement` is whether the message is an in-toto statement, as DSSE encodes it, and not the manifest.
    `is_keyless` is whether a certificate came with the signature, and `bundle` the bundle that has it.
    """

    message: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    name: str | None = None
    is_statement: bool = False
    is_keyless: bool = False
    bundle: bytes | None = field(default=None, repr=False)

    @property
    def size(self) -> int:
        """How many bytes are kept until the signature is verified."""
        return len(self.message) + len(self.signature) + len(self.bundle or b"")


#: The beginning of the reason for a signature by an identity that was not given.
OTHER_IDENTITY: Final = "it is signed by another identity"


class RefusedSignatureError(Exception):
    """The reason why a signature does not count, as text that continues after the name of the image."""


def other_image_error(digest: object) -> RefusedSignatureError:
    """Return the reason for a message about another image than the one that it was found for."""
    shown = digest if isinstance(digest, str) and is_digest(digest) else printable(str(digest), 80)
    return RefusedSignatureError(f"the signature is for {shown}")


def decode_base64(text: object, what: str) -> bytes:
    """Return the bytes of standard base64.

    Raises:
        ArchiveError: this is not base64 text, or it is empty.
    """
    try:
        content = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except ValueError:
        content = b""
    if not content:
        msg = f"{what} is not base64"
        raise ArchiveError(msg)
    return content


def read_object(fields: object, known_keys: AbstractSet[str], what: str) -> dict[str, Any]:
    """Return a JSON object whose keys every parser reads alike.

    Raises:
        ArchiveError: this is not an object, or a key differs from a known one only in case.
    """
    if not isinstance(fields, dict):
        msg = f"{what} is not an object"
        raise ArchiveError(msg)
    check_keys(fields, known_keys, what)
    return fields
