"""Read the payloads of signatures that a check needs: at once, or from a pipe as they arrive."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ocistream.errors import NotFoundError
from ocistream.transfer.verified_blobs import blob_from_bytes, read_verified

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from ocistream.signatures.check import SignatureCheck
    from ocistream.transfer.interfaces import Blob, Source


def read_pending(check: SignatureCheck, source: Source) -> None:
    """Read the pending payloads of a check from a source that can be read in any order."""
    if check.pending:
        for blob in source.blobs(list(check.pending.values())):
            # A registry may list a blob that it lacks.
            with contextlib.suppress(NotFoundError):
                check.add(blob.descriptor.digest, read_verified(blob))


def watch_pending(check: SignatureCheck, blobs: Iterator[Blob], wanted: Collection[str]) -> Iterator[Blob]:
    """Yield the wanted blobs of a pipe, and finish the check as early as possible.

    Raises:
        OcistreamError: the graph must not be copied.
    """
    for blob in blobs:
        digest = blob.descriptor.digest
        if digest in check.pending and blob.range is None:
            content = read_verified(blob)
            check.add(digest, content)
            if not check.pending:
                check.finish()
            if digest in wanted:
                yield blob_from_bytes(blob.descriptor, content)
        elif digest in wanted:
            yield blob
    check.finish()
