"""What is said of blobs that neither side has: which they are, and the command that fetches just those."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from ocistream.cli.progress import human_size
from ocistream.reference import printable
from ocistream.shortfall import ShortfallError
from ocistream.stores.index import full_reference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocistream.cli.console import Console
    from ocistream.graph import Root
    from ocistream.stores import End

__all__ = ["explained"]

#: So many digests are written into a command; for more, the other side is asked once more what it has.
_MAX_IN_COMMAND: Final = 20
#: So many are listed.
_MAX_LISTED: Final = 1000


@contextlib.contextmanager
def explained(console: Console, of: End | None) -> Iterator[None]:
    """List what neither side has, and say how it can be had; `of` is where the images come from."""
    try:
        yield
    except ShortfallError as error:
        left_out = error.graph.left_out
        if any(missing.digest in left_out for missing in error.missing):
            _list(console, error)
            error.hint = _how_to_get_it(error, of)
        raise


def _list(console: Console, error: ShortfallError) -> None:
    # They belong to the error, so they are said with -q too.
    for missing in error.missing[:_MAX_LISTED]:
        reason = error.graph.left_out.get(missing.digest)
        why = f", left out as {reason}" if reason else ""
        console.note(f"missing {missing.digest} ({human_size(missing.size)}{why})", level=-1)
    if len(error.missing) > _MAX_LISTED:
        console.note(f"missing {len(error.missing) - _MAX_LISTED} more", level=-1)


def _how_to_get_it(error: ShortfallError, of: End | None) -> str:
    digests = [missing.digest for missing in error.missing]
    images = [root for root in error.graph.roots if error.graph.reachable(root) & set(digests)]
    pull = f"ocistream pull {' '.join(dict.fromkeys(map(_called, images)))}{_platforms(images)}"
    if len(digests) > _MAX_IN_COMMAND:
        return f"ask for a new list there (`ocistream have`, with the image's repository), then `{pull} --have LIST`"
    only = " ".join(f"--only {digest}" for digest in digests)
    archive = (
        printable(str(of.path), 1024) if of is not None and of.path is not None and not of.is_stream else "ARCHIVE"
    )
    return f"fetch just that: `{pull} {only} -o missing.tar`; then push both: -i {archive} -i missing.tar"


def _called(root: Root) -> str:
    return printable(root.name) if root.name and full_reference(root.name) else "IMAGE"


def _platforms(images: list[Root]) -> str:
    if any(root.descriptor.is_index for root in images):
        return " --platform all"
    found = {str(root.descriptor.platform) for root in images if root.descriptor.platform}
    return "".join(f" --platform {platform}" for platform in sorted(found))
