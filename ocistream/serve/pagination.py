"""Split lists into pages: by count (distribution-spec, "Listing Tags") and by bytes ("Listing Referrers")."""

from __future__ import annotations

import bisect
import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from ocistream import limits
from ocistream.oci.strict_json import canonical_json
from ocistream.serve.errors import RequestRejectedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["paginate_names", "paginate_referrers"]

_COUNT: Final = re.compile(r"[0-9]{1,9}\Z")
#: Bytes of the index around a page of referrers.
_INDEX_OVERHEAD: Final = limits.KIB


def paginate_names(names: list[str], parameters: Mapping[str, list[str]]) -> tuple[list[str], str | None]:
    """Return up to `n` of the sorted `names` after `last`, and the query of the next page or None.

    Raises:
        RequestRejectedError: `n` is not a number (400).
    """
    last, count = parameters.get("last", [""])[0], parameters.get("n", [""])[0]
    remaining = names[bisect.bisect_right(names, last) :] if last else names
    if not count:
        return remaining, None
    if not _COUNT.match(count):
        raise RequestRejectedError(400, "UNSUPPORTED", "n is not a number")
    page = remaining[: int(count)]
    has_more = page and len(page) < len(remaining)
    return page, f"n={int(count)}&last={quote(page[-1], safe='')}" if has_more else None


def paginate_referrers(
    descriptors: Sequence[Mapping[str, Any]], last: str
) -> tuple[list[Mapping[str, Any]], str | None]:
    """Return the descriptors after the digest `last` that fit into one manifest, at least one.

    Also return the value of `last` for the next page, or None.
    """
    digests = [descriptor["digest"] for descriptor in descriptors]
    start = digests.index(last) + 1 if last in digests else 0
    page: list[Mapping[str, Any]] = []
    size = _INDEX_OVERHEAD
    for descriptor in descriptors[start:]:
        size += len(canonical_json(descriptor)) + 1
        if page and size > limits.MAX_MANIFEST:
            return page, page[-1]["digest"]
        page.append(descriptor)
    return page, None
