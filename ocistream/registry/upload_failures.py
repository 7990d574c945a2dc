"""What a failure means for an upload: a refusal, a session that is lost, something that passes, or an interruption.

Questions about errors only; what is done then is told in `ocistream.registry.upload`.
"""

from __future__ import annotations

from typing import Final

from ocistream.errors import (
    AuthenticationError,
    CancelledError,
    LocalDiskError,
    NetworkError,
    PermanentNetworkError,
    RegistryError,
    TerminatedError,
    TruncatedError,
)
from ocistream.registry.upload_sessions import SessionLostError

__all__ = ["is_content_mismatch", "is_interruption", "is_resume_refusal", "is_session_lost", "is_transient"]

#: What a registry that does not take it says of anything sent to an upload which an earlier run has begun.
_RESUME_REFUSALS: Final = frozenset({400, 405, 409, 410, 411, 412, 422, 501})
#: What a registry says of an upload whose bytes are not the blob's. Ours were verified.
_MISMATCH_CODES: Final = frozenset({"DIGEST_INVALID", "SIZE_INVALID", "BLOB_UPLOAD_INVALID"})
#: What is said of who asks, by a registry, by the storage that it leads to or a proxy, and not of what is sent.
_AUTH_STATUSES: Final = frozenset({401, 403, 407})
_INTERRUPTIONS: Final = (
    AuthenticationError,
    CancelledError,
    KeyboardInterrupt,
    LocalDiskError,
    NetworkError,
    TerminatedError,
    TruncatedError,
)


def is_interruption(error: BaseException) -> bool:
    """Say whether an upload may be gone on with after this: it was stopped, and nothing was found wrong with it.

    Whether the way of sending was refused cannot be seen by an error alone; `ocistream.registry.upload` knows.
    """
    if isinstance(error, NetworkError) and is_session_lost(error):
        return False
    if isinstance(error, RegistryError) and not is_transient(error):
        return error.status in _AUTH_STATUSES
    return isinstance(error, _INTERRUPTIONS)


def is_session_lost(error: NetworkError) -> bool:
    """Say whether it is sure that the registry does not know the session any more."""
    return isinstance(error, SessionLostError) and error.is_sure


def is_transient(error: NetworkError) -> bool:
    """Say whether an upload that failed so is worth another try: a server in trouble, or a connection that broke."""
    if isinstance(error, RegistryError):
        return error.status >= 500 or error.status in {408, 416, 429}
    return not isinstance(error, PermanentNetworkError)


def is_content_mismatch(error: RegistryError) -> bool:
    """Say whether a registry finds that the bytes it has are not the blob's."""
    return not _MISMATCH_CODES.isdisjoint(error.codes)


def is_resume_refusal(error: RegistryError) -> bool:
    """Say whether a registry may be refusing to go on with what an earlier run has sent."""
    return error.status in _RESUME_REFUSALS
