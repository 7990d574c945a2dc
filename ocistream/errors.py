"""Every error that ocistream raises on purpose, with its exit code and an optional hint.

This module imports nothing of the project and neither formats for a terminal nor ends the process.
"""

from __future__ import annotations

from typing import ClassVar

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
    "TerminatedError",
    "TruncatedError",
    "UnsupportedError",
    "UsageError",
]


class OcistreamError(Exception):
    """The root of the tree: one line of what failed and where, and perhaps one of what to do.

    `str(error)` is the first line. It names the digest, image or redacted URL concerned and holds no secret.
    """

    exit_code: ClassVar[int] = 1
    #: What programs know it by, where its exit code is that of others, too.
    kind: ClassVar[str | None] = None

    def __init__(self, what: str, *, hint: str | None = None) -> None:
        """Keep `what` (the first line) and `hint` (what the user can do about it, or None)."""
        super().__init__(what)
        self.message = what
        self.hint = hint


class UsageError(OcistreamError):
    """The command line asks for something that makes no sense."""

    exit_code = 2


class InvalidNameError(UsageError):
    """A malformed image name, tag, digest, platform or end."""


class AuthenticationError(OcistreamError):
    """The registry wants other credentials, or more rights than these have."""

    exit_code = 3


class NotFoundError(OcistreamError):
    """An image, repository, blob, platform, file or directory is not there.

    `codes` are those of a registry's error body, as with `RegistryError`, an empty tuple where there is none.
    """

    exit_code = 4

    def __init__(self, what: str, *, codes: tuple[str, ...] = (), hint: str | None = None) -> None:
        """Keep the answer's `codes` beside the text."""
        super().__init__(what, hint=hint)
        self.codes = codes


class IntegrityError(OcistreamError):
    """Bytes arrived whose size or digest is not what was promised."""

    exit_code = 5


class ArchiveError(OcistreamError):
    """An archive, layout or document that is malformed, truncated or hostile."""

    exit_code = 6


class TruncatedError(ArchiveError):
    """An archive that ends too early: whoever wrote it was interrupted, and what has come of it may be right."""


class MissingContentError(ArchiveError):
    """The source lacks blobs that the destination lacks too; nothing was made visible."""


class NetworkError(OcistreamError):
    """The network failed, after all retries."""

    exit_code = 7


class PermanentNetworkError(NetworkError):
    """A failure that trying again does not cure: a certificate, a name that does not exist, a forbidden redirect."""


class PartialBlobLostError(NetworkError):
    """The rest of a blob has come, and what is there is not its beginning, or not there any more: all of it is needed.

    Nothing is left of it then, or less than before, so the same command sends it.
    """

    kind: ClassVar[str] = "lost-beginning"


class RegistryError(NetworkError):
    """A registry answered with an error that retrying did not cure.

    `status` is the HTTP status, and `codes` are the error codes of the distribution-spec's error body
    (such as `MANIFEST_INVALID`), an empty tuple where there was none. `retry_after` are the seconds after which it asks
    to be asked again, None where it does not say.
    """

    def __init__(
        self,
        what: str,
        *,
        status: int,
        codes: tuple[str, ...] = (),
        hint: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Keep what the answer says beside the text."""
        super().__init__(what, hint=hint)
        self.status = status
        self.codes = codes
        self.retry_after = retry_after


class UnsupportedError(OcistreamError):
    """Well formed, but nothing that this version can move."""

    exit_code = 8


class LocalDiskError(OcistreamError):
    """The local disk is full or read-only, or permission is lacking."""

    exit_code = 9


class TerminatedError(BaseException):
    """SIGTERM or SIGHUP arrived. Outside the tree, as KeyboardInterrupt is: no clean-up may swallow it."""

    def __init__(self, exit_code: int = 143) -> None:
        """Keep the exit code: 128 and the signal's number."""
        super().__init__("terminated")
        self.exit_code = exit_code


class OutputClosedError(OcistreamError):
    """Whoever read our stdout has gone away."""

    exit_code = 141


class CancelledError(OcistreamError):
    """The transfer failed or was stopped elsewhere; whoever gets this gives up, and nobody gets to see it."""
