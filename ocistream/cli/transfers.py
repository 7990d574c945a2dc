"""What pull, push and copy have in common: open two ends, move, report, close."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from ocistream.cli.image_ids import explaining_image_ids
from ocistream.cli.missing_blobs import explained
from ocistream.cli.progress import counted, progress
from ocistream.cli.results import (
    check_result,
    print_results,
    results_of,
    summarize,
    tell_image_ids,
    tell_incomplete,
    tell_left_behind,
    tell_left_out,
    tell_recompressed,
    tell_resumed,
    tell_taken,
    write_result,
)
from ocistream.errors import IntegrityError, InvalidNameError, UsageError
from ocistream.layout.index import docker_tag, is_plain
from ocistream.oci.reference import is_digest, is_repository, parse_reference, parse_registry, printable
from ocistream.stores import is_directory
from ocistream.transfer import copy as transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ocistream.archive.entries import Contents
    from ocistream.cli.console import Console
    from ocistream.cli.exclusions import LeaveOut
    from ocistream.cli.session import Session
    from ocistream.oci.graph import Graph, Root
    from ocistream.stores import End
    from ocistream.transfer.interfaces import Sink, Source
    from ocistream.transfer.recompress import Recompression

__all__ = ["mount_sources", "move", "renamed"]


def move(
    session: Session,
    open_ends: Callable[[], tuple[Source, Sink]],
    label: Callable[[Root], str],
    *,
    of: End | None = None,
    to: End | None = None,
    rename: Callable[[Graph], Graph] | None = None,
    leave_out: LeaveOut | None = None,
    is_far: bool = False,
) -> None:
    """Move images, then print and write what was done.

    `label` names a root in the results. `of` is where the images come from, and `to` is where they go, if those are no
    registries. Where `to` is stdout, the archive is there, and no result lines are printed. `leave_out` says which
    blobs the archive is to be without. With `is_far` an archive is sent to where `to` is, and nothing is made of it.

    Raises:
        OcistreamError: it failed, and nothing is visible at the destination.
    """
    result = session.options["result"]
    into_docker_archive = to is not None and to.kind == "docker-archive"

    def announced(graph: Graph) -> Graph:
        # The source's graph, before anything of it moves.
        tell_taken(graph.roots, source, into_docker_archive=into_docker_archive)
        return rename(graph) if rename is not None else graph

    recompression = None if is_far else _recompression(session, to)
    if result is not None:
        check_result(result)
    with contextlib.ExitStack() as stack:
        source, sink = open_ends()
        stack.callback(source.close)
        stack.callback(sink.close)
        # Blobs are excluded by their digests, and what a layer becomes has another one.
        may_be_bare = _may_be_bare(of, source) and (leave_out is None or is_far)
        with (
            explained(session.console, of, to),
            explaining_image_ids(of, source),
            _naming(of),
            progress(session.options["progress"], session.console) as observer,
        ):
            report = transfer.copy(
                source,
                sink,
                observer,
                jobs=session.jobs,
                ahead=session.memory,
                cancelled=session.cancelled,
                rename=announced,
                leave_out=leave_out,
                recompression=recompression,
                bare_layers=session.recompression(default="gzip") if may_be_bare else None,
            )
    results = results_of(report, label, to)
    if result is not None:
        used = session.ladder.used
        write_result(result, report, results, retried=session.retried, upload=used, cached=session.cached)
    printed = to is None or not to.is_stream
    if printed:
        print_results(results)
    tell_resumed(session.console, report)
    summarize(session.console, report, session.cached)
    tell_incomplete(session.console, report.graph.incomplete, report.origins)
    if session.options["compress"] is None and (to is None or to.kind != "docker-archive"):
        is_saved = getattr(source, "is_saved", False)
        tell_recompressed(session.console, report, is_saved=is_saved, excludes=not may_be_bare)
    tell_left_out(session.console, report)
    tell_left_behind(session.console, report.graph.left_behind)
    _tell_unused(session.console, source)
    if into_docker_archive:
        tell_image_ids(session.console, report, results, printed=printed)
        _tell_nameless(session.console, report.graph)


def _may_be_bare(of: End | None, source: Source) -> bool:
    """Return whether `docker save` may have written the source, or one of several archives: a registry it is not."""
    return hasattr(source, "inputs") or (of is not None and of.kind not in {"docker", "oci"} and not is_directory(of))


@contextlib.contextmanager
def _naming(of: End | None) -> Iterator[None]:
    """Say of a blob that is wrong in which file or directory it is, and what can be done about that."""
    try:
        yield
    except IntegrityError as error:
        # The other errors of that kind are about an image that is another than was asked for.
        if of is not None and of.path is not None and not of.is_stream and not error.hint and _is_of_a_blob(error):
            path = printable(str(of.path), 1024)
            error.hint = f"{path} is damaged, or was changed while it was read: `ocistream verify {path}` says which"
        raise


def _is_of_a_blob(error: IntegrityError) -> bool:
    return is_digest(error.what.partition(": ")[0])


def mount_sources(texts: Sequence[str], registry: str | None) -> tuple[str, ...]:
    """Read --mount-from, each `REPO` or `HOST/REPO`; `registry` is the one that is written to, or None.

    Raises:
        UsageError: it is malformed, of another registry, or no registry is written to at all.
    """
    if texts and registry is None:
        msg = "--mount-from is for what goes to a registry"
        raise UsageError(msg, hint="leave it away: here blobs are copied")
    return tuple(dict.fromkeys(_mount_source(text, registry or "") for text in texts))


def _mount_source(text: str, registry: str) -> str:
    first, slash, rest = text.partition("/")
    if slash and first and (first == registry or {".", ":"} & set(first) or first == "localhost"):
        # As in an image's name: what looks like a host is one.
        if parse_registry(first) != registry:
            msg = f"--mount-from {printable(text)} is not in {registry}: blobs are mounted within one registry"
            raise UsageError(
                msg, hint=f"if it is, and its name only looks like a host, write {registry}/{printable(text)}"
            )
        text = rest
    if not is_repository(text):
        msg = f"--mount-from {printable(text)!r} is no repository"
        raise InvalidNameError(msg, hint="write REPO or HOST/REPO, without a tag")
    return text


def _tell_unused(console: Console, source: Source) -> None:
    """Say which entries of an archive were not used: names that no image archive has, and files of others with -v."""
    for one in getattr(source, "inputs", [source]):
        contents: Contents | None = getattr(one, "contents", None)
        if contents is None or contents.index is None or contents.is_docker_archive:
            continue
        if contents.illegal:
            entries = counted(contents.illegal, "entry", "entries")
            console.note(f"not used: {entries} of the archive, such as {printable(contents.first_illegal)!r}")
        if (others := contents.foreign - contents.illegal) > 0:
            console.note(f"not used: {counted(others, 'other file')} of the archive", level=1)


def _tell_nameless(console: Console, graph: Graph) -> None:
    """Say which images of a docker-archive Docker will have no name for: that they have one here says nothing."""
    named = {root.descriptor.digest for root in graph.roots if root.name and docker_tag(root.name)}
    for root in graph.roots:
        if root.descriptor.digest not in named:
            named.add(root.descriptor.digest)
            what = printable(root.name) if root.name else root.descriptor.digest
            console.note(
                f"{what} is no name for Docker, which will show the image as <none>; "
                "give it one as in docker-archive:FILE:NAME"
            )


def _recompression(session: Session, to: End | None) -> Recompression | None:
    """Give what is asked for; a docker-archive has plain layers, whatever they were.

    Raises:
        UsageError: it is asked for with compressed ones.
    """
    if to is None or to.kind != "docker-archive":
        return session.recompression()
    if session.options["compress"] not in {None, "none"}:
        msg = "the layers of a docker-archive are not compressed"
        raise UsageError(msg, hint="leave --compress away, or write an oci-archive: `docker load` takes that too")
    return session.recompression(default="none")


def renamed(end: End) -> Callable[[Graph], Graph]:
    """Give the way to call a graph's root as the destination is called; that there is only one is seen to before.

    What it gives raises IntegrityError where the name has a digest, and the image another.

    Raises:
        InvalidNameError: it has blanks or control characters; or a docker-archive's images have names such as `app:1`,
            and this is none.
    """
    name = end.name
    if name is not None and not is_plain(name):
        msg = f"malformed name {printable(name)!r}"
        raise InvalidNameError(msg, hint="write it without blanks, as in app:1")
    digest = (name or "").rpartition("@")[2]
    if name is not None and end.kind == "docker-archive":
        reference = parse_reference(name)
        if reference.digest:
            msg = f"{name!r} has a digest, and images in a docker-archive are called by tags only"
            raise InvalidNameError(msg, hint="write it as app:1")
        name = reference.name

    def rename(graph: Graph) -> Graph:
        (root,) = graph.roots
        if is_digest(digest) and digest != root.descriptor.digest:
            msg = f"{printable(name or '')} was asked for, the image is {root.descriptor.digest}"
            raise IntegrityError(msg)
        # What it was called where it comes from may be asked for again.
        return replace(graph, roots=(replace(root, name=name, origin=root.origin or root.name or ""),))

    return rename
