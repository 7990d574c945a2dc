"""Every error that ocistream raises on purpose, with its exit code and an optional hint.

This module imports nothing of the project and neither formats for a terminal nor ends the process.
"""

from __future__ import annotations

from typing import ClassVar, Self

__all__ = [
    "ArchiveError",
    "AuthenticationError",
    "CancelledError",
    "IntegrityError",
    "InvalidNameError",
    "LocalDiskError",
    "MissingContentError",
    "NetworkError",
    "NotFoundError",
    "OcistreamError",
    "OutputClosedError",
    "PartialBlobLostError",
    "PermanentNetworkError",
    "RegistryError",
    "TruncatedError",
    "UnsupportedError",
    "UsageError",
    "VolumesNeededError",
]


class OcistreamError(Exception):
    """Base class of all errors: a one-line message and an optional hint.

    `str(error)` is the first line. It names the digest, image or redacted URL concerned and holds no secret.
    """

    exit_code: ClassVar[int] = 1
    #: The name of the error for programs, if other errors have the same exit code.
    kind: ClassVar[str | None] = None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        """Store `message` (the first line) and `hint` (what the user can do about it, or None)."""
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        """Copy and pickle the error by its attributes, for programs with several processes."""
        return _restore_error, (type(self), self.args), self.__dict__

    def without_frames(self) -> Self:
        """Return this error to keep it for later, without frames and causes: their buffers would stay in memory."""
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)


def _restore_error(kind: type[OcistreamError], args: tuple[object, ...]) -> OcistreamError:
    """Return an error of a class whose constructor may need more than the arguments of an exception."""
    error = kind.__new__(kind)
    error.args = args
    return error


class UsageError(OcistreamError):
    """The caller asks for something that is malformed or contradictory."""

    exit_code = 2


class InvalidNameError(UsageError):
    """A malformed image name, tag, digest, platform or location."""


class AuthenticationError(OcistreamError):
    """The registry requires other credentials, or more permissions than these have."""

    exit_code = 3


class NotFoundError(OcistreamError):
    """An image, repository, blob, platform, file or directory does not exist.

    `codes` are the error codes of a registry's error body, as in `RegistryError`; empty if there is none.
    """

    exit_code = 4

    def __init__(self, message: str, *, codes: tuple[str, ...] = (), hint: str | None = None) -> None:
        """Store the `codes` of the answer with the message."""
        super().__init__(message, hint=hint)
        self.codes = codes


class IntegrityError(OcistreamError):
    """A size or digest is wrong, or an image has no valid signature.

    `digest` is the digest of the blob whose bytes are wrong; empty if the error is about something else.
    """

    exit_code = 5

    def __init__(self, message: str, *, digest: str = "", hint: str | None = None) -> None:
        """Store the `digest` of the blob with the message."""
        super().__init__(message, hint=hint)
        self.digest = digest


class ArchiveError(OcistreamError):
    """An archive, layout or document is malformed, truncated or hostile."""

    exit_code = 6


class TruncatedError(ArchiveError):
    """An archive or a list ends too early: its writer was interrupted, and the received part may be right."""

    kind: ClassVar[str | None] = "truncated"


class MissingContentError(ArchiveError):
    """The source lacks blobs that the destination lacks too; nothing was made visible."""

    kind: ClassVar[str | None] = "missing-content"


class VolumesNeededError(MissingContentError):
    """The destination keeps what was written; other volumes have the rest, and a later run may write them."""

    exit_code = 10
    kind: ClassVar[str | None] = None


class NetworkError(OcistreamError):
    """The network failed, after all retries."""

    exit_code = 7
    #: The pause in seconds that a registry asks for; None without a response (`RegistryError`).
    retry_after: float | None = None
    #: Whether the server closed a connection that was idle before, without a byte of a response: it has most likely not
    #: read the request. False if the body of the request cannot be sent again.
    has_lost_idle_connection: bool = False


class PermanentNetworkError(NetworkError):
    """A failure that a retry does not cure: a certificate, a name that does not exist, a forbidden redirect."""


class PartialBlobLostError(NetworkError):
    """The rest of a blob arrived, but its stored beginning is wrong or missing: the complete blob is needed.

    The stored beginning is deleted or shorter than before, so the same command sends what is needed.
    """

    kind: ClassVar[str | None] = "partial-blob-lost"


class RegistryError(NetworkError):
    """A registry answered with an error that retries did not cure.

    `status` is the HTTP status. `codes` are the error codes of the distribution-spec's error body (such as
    `MANIFEST_INVALID`); empty if there are none. `retry_after` is the pause that the registry asks for, in seconds;
    None if it does not.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        codes: tuple[str, ...] = (),
        hint: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Store the fields of the answer with the message."""
        super().__init__(message, hint=hint)
        self.status = status
        self.codes = codes
        self.retry_after = retry_after


class UnsupportedError(OcistreamError):
    """Well-formed input that this version cannot copy."""

    exit_code = 8


class LocalDiskError(OcistreamError):
    """The local disk is full or read-only, or permission is denied."""

    exit_code = 9


class OutputClosedError(OcistreamError):
    """Broken pipe: the reader of stdout closed it."""

    exit_code = 141


class CancelledError(OcistreamError):
    """The transfer was cancelled, or failed in another thread. The command line never shows this error."""
