"""A blob read until it is right: once, or once more from elsewhere where a source has several places to read from.

What is wrong shows at a blob's end (`stream.verified`), when most of it has been handed on. So whoever uses it has to
begin anew, and only a source knows whether that is of any use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from ocistream.errors import IntegrityError
from ocistream.stream import verified

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocistream.interfaces import Blob
    from ocistream.stream import Chunk

__all__ = ["until_right"]

_T = TypeVar("_T")


def until_right(blob: Blob, use: Callable[[Callable[[], Iterator[Chunk]]], _T], *, again: bool) -> _T:
    """Have a blob's verified chunks used, and give what comes of it.

    `use` is called with what opens them. If they were wrong, the blob's source is told so, and where it has another
    place to read from, `use` is called once more; unless `again` says that its work cannot be begun anew.

    Raises:
        IntegrityError: the bytes are wrong, and there are no others.
        OcistreamError: what `use` raises.
    """
    failures: list[IntegrityError] = []

    def opened() -> Iterator[Chunk]:
        try:
            yield from verified(blob.open(), blob.descriptor)
        except IntegrityError as error:
            failures.append(error)
            raise

    while True:
        try:
            return use(opened)
        except IntegrityError as error:
            # What else has such an error: a layer that is not what its config says. Others would be the same.
            if blob.on_wrong is None or error not in failures:
                raise
            blob.on_wrong(error, again)
