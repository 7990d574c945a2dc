"""A request's target, and the host that the request is for (RFC 9112, section 3.2)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, unquote

from ocistream.serve.errors import RequestRejectedError

if TYPE_CHECKING:
    from email.message import Message

__all__ = ["check_host", "split_target"]

_MAX_PARAMETERS: Final = 32
#: The beginning of a target that is a complete URL, as proxies send it: the scheme and the authority.
_ABSOLUTE_TARGET: Final = re.compile(r"(https?)://([^/?]*)", re.IGNORECASE)
#: A host and a port as URLs have them, without a user. An empty host is legal in the header `Host`.
_AUTHORITY: Final = re.compile(
    r"(?:(?:[0-9a-z._~-]|%[0-9a-f]{2})*|\[[0-9a-f:.]+(?:%25[0-9a-z._~-]+)?\])(?::[0-9]{0,5})?\Z"
)
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}


def split_target(target: str) -> tuple[list[str], dict[str, list[str]]]:
    """Return the decoded segments of a target's path, and the parameters of its query.

    The path is split before it is decoded, so an encoded slash stays within its segment.

    Raises:
        RefusedError: the query has too many parameters (400).
    """
    path, _, query = target.partition("?")
    if origin := _ABSOLUTE_TARGET.match(path):
        path = path[origin.end() :]
    try:
        parameters = parse_qs(query, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS)
    except ValueError as error:
        raise RequestRejectedError(400, "UNSUPPORTED", "the query has too many parameters") from error
    return [unquote(segment) for segment in path.split("/")], parameters


def check_host(headers: Message, target: str, version: str) -> None:
    """Check that a request names one host: in the header `Host`, and in the target if that is a complete URL.

    `version` is the request's, such as HTTP/1.1. That there is one header `Host` at most is checked by `heads`.

    Raises:
        RefusedError: the host is missing or malformed, or the two contradict each other (400).
    """
    host, origin = headers.get("Host"), _ABSOLUTE_TARGET.match(target)
    if host is None and version != "HTTP/1.0":
        raise RequestRejectedError(400, "UNSUPPORTED", "the header Host is missing")
    host = None if host is None else host.strip().lower()
    if host is not None and not _AUTHORITY.match(host):
        raise RequestRejectedError(400, "UNSUPPORTED", "the header Host is malformed")
    if origin is None:
        return
    scheme, authority = origin[1].lower(), origin[2].lower()
    if not authority or not _AUTHORITY.match(authority):
        raise RequestRejectedError(400, "UNSUPPORTED", "the host in the request's URL is malformed")
    if host is not None and _remove_default_port(host, scheme) != _remove_default_port(authority, scheme):
        raise RequestRejectedError(400, "UNSUPPORTED", "the request's URL and the header Host name different hosts")


def _remove_default_port(authority: str, scheme: str) -> str:
    return authority.removesuffix(_DEFAULT_PORTS[scheme]).removesuffix(":")
