"""What is said of blobs that neither side has: which they are, and the command that fetches just those."""

from __future__ import annotations

import contextlib
import shlex
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ocistream.cli.progress import counted, human_size
from ocistream.errors import OcistreamError
from ocistream.layout.index import every_image, full_reference, images_named
from ocistream.oci.reference import printable
from ocistream.stores import Surroundings, Want, open_source, parse_end
from ocistream.transfer.incomplete_indexes import exported_platforms
from ocistream.transfer.interfaces import Lacks
from ocistream.transfer.missing import ShortfallError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ocistream.cli.console import Console
    from ocistream.oci.graph import Graph, Root
    from ocistream.stores import End
    from ocistream.transfer.missing import NeededVolumes

__all__ = ["explain_for_sync", "explained"]

#: So many digests are written into an error, and into a command; for more, the other side is asked once more.
_MAX_IN_COMMAND: Final = 20
#: So many are listed.
_MAX_LISTED: Final = 1000


@contextlib.contextmanager
def explained(console: Console, of: End | None, to: End | None = None) -> Iterator[None]:
    """List what neither side has, and say how it can be had; `of` is where the images come from.

    `to` is where they go, if that is no registry.
    """
    try:
        yield
    except ShortfallError as error:
        if error.needed is not None:
            error.hint = _how_to_go_on(error.needed, is_untouched=error.is_untouched)
        elif any(missing.digest in error.graph.left_out for missing in error.missing):
            error.what = _what(error)
            error.hint = _how_to_get_it(error, of, to)
            _list(console, error)
        elif error.graph.platforms_chosen and of is not None:
            _explain_platforms(error, of)
        raise


def explain_for_sync(error: OcistreamError, source: str) -> None:
    """Say how an image can be had that `sync` could not copy, since neither side has all of it; `source` is its end."""
    if not isinstance(error, ShortfallError) or error.needed is not None:
        return
    if error.graph.platforms_chosen:
        _explain_platforms(error, parse_end(source, bare_is_path=True))
    else:
        error.hint = "get the complete image, or name in `platforms` one of which nothing is missing"


def _explain_platforms(error: ShortfallError, of: End) -> None:
    if not error.what.startswith(named := _named_platforms(error)):
        # Once: several destinations may have the same error.
        error.what = f"{named}{error.what}"
    error.hint = _which_platforms(error.graph, of)


def _named_platforms(error: ShortfallError) -> str:
    """Name the image and the platform that are not complete, to stand before what is missing."""
    missing = {descriptor.digest for descriptor in error.missing}
    for root in error.graph.roots:
        if root.descriptor.platform and missing & error.graph.reachable(root):
            name = printable(root.origin or root.name or root.descriptor.digest)
            return f"{name} for {printable(str(root.descriptor.platform))} is "
    return ""


def _which_platforms(graph: Graph, of: End) -> str:
    """Name the platforms that are there, of an archive or a layout that lacks the one that was asked for."""
    path = printable(str(of.path or of.text), 1024)
    hint = f"`ocistream verify {path}` lists what is missing"
    if of.is_stream or of.path is None:
        return "save the archive to a file: `ocistream verify FILE` lists what is missing of it"
    names = {root.origin or root.name for root in graph.roots}
    from ocistream.transfer.no_destination import Onlooker

    select = images_named([name for name in names if name]) if all(names) else every_image
    with contextlib.suppress(OcistreamError):
        source = open_source(replace(of, name=None), Surroundings(), Want(select, referrers="left"))
        with contextlib.closing(source):
            if isinstance(source, Lacks):
                lacks = source.lacks
                whole = source.graph(Onlooker(threading.Event()))
                platforms = exported_platforms(whole, lambda blob: bool(lacks(blob)))
                shown = ", ".join(map(printable, platforms[:_MAX_IN_COMMAND])) or "none"
                return f"complete platforms: {shown}; {hint}"
    return hint


def _what(error: ShortfallError) -> str:
    many = len(error.missing)
    size = human_size(sum(missing.size for missing in error.missing))
    reasons = {error.graph.left_out.get(missing.digest) for missing in error.missing}
    said = "; ".join(sorted(f"left out as {reason}" for reason in reasons if reason)[:5])
    done = "nothing was sent" if error.is_untouched else "no image is visible"
    shown = ", ".join(missing.digest for missing in error.missing) if many <= _MAX_IN_COMMAND else "see above"
    return f"neither it nor the destination has {counted(many, 'blob')} ({size}; {said}), and {done}: {shown}"


def _list(console: Console, error: ShortfallError) -> None:
    """List what the error itself has no room for; with -q too, since it belongs to it."""
    if len(error.missing) <= _MAX_IN_COMMAND:
        return
    for missing in error.missing[:_MAX_LISTED]:
        console.note(f"missing {missing.digest} ({human_size(missing.size)})", level=-1)
    if len(error.missing) > _MAX_LISTED:
        console.note(f"missing {len(error.missing) - _MAX_LISTED} more", level=-1)


def _how_to_go_on(needed: NeededVolumes, *, is_untouched: bool) -> str:
    """Say how the other volumes are pushed: all at once always works, one after the other not in every order."""
    if is_untouched:
        return "an archive is made of all volumes at once: push them, or copy them one by one into a layout"
    hint = f"what was sent stays there: go on with {_inputs(needed.names)}, at once or one after the other"
    for digest, names in needed.in_order.items():
        return f"{hint}; {digest} goes on from one to the next: give {_inputs(names)} together, or in this order"
    return hint


def _inputs(names: Sequence[str]) -> str:
    shown = " ".join(f"-i {shlex.quote(printable(name))}" for name in names[:_MAX_IN_COMMAND])
    return f"{shown} ..." if len(names) > _MAX_IN_COMMAND else shown


def _how_to_get_it(error: ShortfallError, of: End | None, to: End | None) -> str:
    digests = [missing.digest for missing in error.missing]
    images = [root for root in error.graph.roots if error.graph.reachable(root) & set(digests)]
    pull = f"ocistream pull {' '.join(dict.fromkeys(map(_called, images)))}{_platforms(images)}"
    if to is not None and to.kind != "docker":
        wide = "--have and --base leave out what an OCI archive or a layout is to be without"
        return f"get the whole image: `{pull}`; {wide}"
    if len(digests) > _MAX_IN_COMMAND:
        return f"ask for a new list there (`ocistream have`, with the image's repository), then `{pull} --have LIST`"
    only = " ".join(f"--only {digest}" for digest in digests)
    # A name of its own: one of the archives that were given may be called missing.tar, or several of them.
    missing = f"missing-{digests[0].rpartition(':')[2][:8]}.tar"
    is_file = of is not None and of.path is not None and not of.is_stream
    # It is to be pasted into a shell.
    archive = shlex.quote(printable(str(of.path), 1024)) if of is not None and is_file else "ARCHIVE"
    return f"fetch just that: `{pull} {only} -o {missing}`; then push both: -i {archive} -i {missing}"


def _called(root: Root) -> str:
    """Give the name that an image has where it comes from; the one that it is given now says nothing of that."""
    name = root.origin if full_reference(root.origin) else root.name
    return printable(name) if name and full_reference(name) else "IMAGE"


def _platforms(images: list[Root]) -> str:
    if any(root.descriptor.is_index for root in images):
        return " --platform all"
    found = {str(root.descriptor.platform) for root in images if root.descriptor.platform}
    return "".join(f" --platform {platform}" for platform in sorted(found))
