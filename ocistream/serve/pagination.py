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
#: What the index around a page of referrers may take of its bytes.
_INDEX_OVERHEAD: Final = limits.KIB


def paginate_names(names: list[str], parameters: Mapping[str, list[str]]) -> tuple[list[str], str | None]:
    """Give up to `n` of the sorted `names`, those behind `last`; and the query of the next page, if there is one.

    Raises:
        RefusedError: `n` is not a number (400).
    """
    last, count = parameters.get("last", [""])[0], parameters.get("n", [""])[0]
    behind = names[bisect.bisect_right(names, last) :] if last else names
    if not count:
        return behind, None
    if not _COUNT.match(count):
        raise RequestRejectedError(400, "UNSUPPORTED", "n is not a number")
    shown = behind[: int(count)]
    more = shown and len(shown) < len(behind)
    return shown, f"n={int(count)}&last={quote(shown[-1], safe='')}" if more else None


def paginate_referrers(
    descriptors: Sequence[Mapping[str, Any]], last: str
) -> tuple[list[Mapping[str, Any]], str | None]:
    """Give as many of the descriptors behind that of the digest `last` as fit into one manifest, at least one.

    The digest that the next page comes behind is given too, or None.
    """
    digests = [descriptor["digest"] for descriptor in descriptors]
    start = digests.index(last) + 1 if last in digests else 0
    shown: list[Mapping[str, Any]] = []
    size = _INDEX_OVERHEAD
    for descriptor in descriptors[start:]:
        size += len(canonical_json(descriptor)) + 1
        if shown and size > limits.MAX_MANIFEST:
            return shown, shown[-1]["digest"]
        shown.append(descriptor)
    return shown, None
