"""The error response of the distribution-spec, as an exception. This module sends nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ocistream.errors import RegistryError
from ocistream.oci.strict_json import canonical_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class RequestRejectedError(RegistryError):
    """An error response for the client. The registry's HTTP handler catches it.

    `headers` are added to the response. The body has one error for each of `details`.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        details: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Reject with an HTTP status and a code of distribution-spec, "Error Codes"."""
        super().__init__(message, status=status, codes=(code,))
        self.details = tuple(details)
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """Return the JSON of distribution-spec, "Error Codes"."""
        error: dict[str, Any] = {"code": self.codes[0], "message": self.message}
        errors = [{**error, "detail": detail} for detail in self.details] or [error]
        return canonical_json({"errors": errors})
