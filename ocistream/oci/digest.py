"""Digests of small content in memory. `streams.chunks` verifies streams."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from ocistream.errors import IntegrityError

if TYPE_CHECKING:
    from ocistream.oci.descriptor import Descriptor


def compute_digest(content: bytes, algorithm: str = "sha256") -> str:
    """Return the digest of small content in memory."""
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def check_content(descriptor: Descriptor, content: bytes) -> None:
    """Check the size and the digest of small content.

    Raises:
        IntegrityError: the content does not match the descriptor.
    """
    if len(content) != descriptor.size:
        raise size_error(descriptor, len(content))
    actual = compute_digest(content, descriptor.digest.partition(":")[0])
    if actual != descriptor.digest:
        raise digest_error(descriptor.digest, actual)


def digest_error(expected: str, actual: str) -> IntegrityError:
    """Return the error for bytes with another digest than the descriptor's."""
    return IntegrityError(f"digest mismatch: expected {expected}, got {actual}", digest=expected)


def size_error(descriptor: Descriptor, size: int) -> IntegrityError:
    """Return the error for a blob of the wrong size, of which `size` bytes were read."""
    more = "or more " if size > descriptor.size else ""
    msg = f"{descriptor.digest}: expected {descriptor.size} bytes, got {size} {more}".rstrip()
    return IntegrityError(msg, digest=descriptor.digest)
