"""Byte ranges: what `Range` asks of a blob (RFC 9110, section 14) and where `Content-Range` puts a chunk.

Numbers in, numbers out.
"""

from __future__ import annotations

import re
from typing import Final

from ocistream.serve.errors import RequestRejectedError

__all__ = ["parse_content_range", "parse_range_header"]

#: 19 digits hold any size that a file can have; more would only cost time.
_RANGE: Final = re.compile(r"bytes=([0-9]{0,19})-([0-9]{0,19})\Z")
#: distribution-spec, "Pushing a blob in chunks": not `bytes 0-99/100`, as elsewhere in HTTP.
_CONTENT_RANGE: Final = re.compile(r"([0-9]{1,19})-([0-9]{1,19})\Z")


def parse_range_header(header: str | None, size: int) -> tuple[int, int] | None:
    """Give the first byte and the number of bytes that `header` asks for, of a blob of `size` bytes.

    None means all of it: there is no such header, or one that may be ignored (malformed, or several ranges).

    Raises:
        RefusedError: there is not one byte in the range (416).
    """
    match = _RANGE.match(header.replace(" ", "")) if header else None
    if match is None or match.group() == "bytes=-":
        return None
    first, last = match.groups()
    if first:
        start, stop = int(first), min(int(last), size - 1) + 1 if last else size
        if last and int(last) < start:
            return None
    else:
        start, stop = max(size - int(last), 0), size
    if start >= stop:
        raise RequestRejectedError(
            416,
            "UNSUPPORTED",
            f"the blob has {size} bytes, and none of them is in that range",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return start, stop - start


def parse_content_range(header: str) -> tuple[int, int]:
    """Give the first byte and the number of bytes that a chunk's `Content-Range` states.

    Raises:
        RefusedError: it is malformed (400).
    """
    match = _CONTENT_RANGE.match(header.strip())
    if match is None or int(match[2]) < int(match[1]):
        raise RequestRejectedError(400, "BLOB_UPLOAD_INVALID", "Content-Range must be <first byte>-<last byte>")
    return int(match[1]), int(match[2]) - int(match[1]) + 1
