"""The run that pull, push and copy share: open source and destination, copy, report, close.

Also the selection of many images by tag, and the target name of each of them.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from ocistream.cli.error_hints import add_image_id_hint, add_missing_blobs_hint
from ocistream.cli.progress import format_count, show_progress
from ocistream.cli.report import (
    build_results,
    check_result_writable,
    print_results,
    report_image_ids,
    report_incomplete_indexes,
    report_omitted,
    report_recompressed,
    report_resumed,
    report_selected_platforms,
    report_skipped_referrers,
    report_summary,
    write_result,
)
from ocistream.errors import IntegrityError, InvalidNameError, UsageError
from ocistream.layout.image_selection import report_untagged, select_all_images
from ocistream.layout.index import docker_tag, is_printable_name, tag_of
from ocistream.locations import is_directory
from ocistream.oci.reference import Reference, is_digest, is_repository, parse_reference, parse_registry, printable
from ocistream.oci.tag_filters import glob_filter
from ocistream.transfer import copy as transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ocistream.archive.contents import ArchiveContents
    from ocistream.cli.console import Console
    from ocistream.cli.context import CommandContext
    from ocistream.cli.omitted_blobs import OmissionRule
    from ocistream.layout.index import ImageSelector
    from ocistream.locations import Location
    from ocistream.oci.graph import Graph, Root
    from ocistream.transfer.interfaces import Destination, Source
    from ocistream.transfer.recompress import Recompression

__all__ = [
    "build_rename",
    "build_tag_target",
    "glob_filter",
    "parse_mount_sources",
    "require_distinct_targets",
    "run_transfer",
    "select_all_by_tag",
    "select_tagged",
]


def run_transfer(
    context: CommandContext,
    open_locations: Callable[[], tuple[Source, Destination]],
    label: Callable[[Root], str],
    *,
    source_location: Location | None = None,
    destination_location: Location | None = None,
    rename: Callable[[Graph], Graph] | None = None,
    omission_rule: OmissionRule | None = None,
    is_remote: bool = False,
) -> None:
    """Move images, then print and write what was done.

    `label` names a root in the results. `of` is where the images come from, and `to` is where they go, if those are no
    registries. Where `to` is stdout, the archive is there, and no result lines are printed. `leave_out` says which
    blobs the archive is to be without. With `is_far` an archive is sent to where `to` is, and nothing is made of it.

    Raises:
        OcistreamError: it failed, and nothing is visible at the destination.
    """
    result = context.options["result"]
    into_docker_archive = destination_location is not None and destination_location.kind == "docker-archive"

    def announced(graph: Graph) -> Graph:
        # The source's graph, before anything of it moves.
        report_selected_platforms(graph.roots, source, into_docker_archive=into_docker_archive)
        return rename(graph) if rename is not None else graph

    recompression = None if is_remote else _choose_recompression(context, destination_location)
    if result is not None:
        check_result_writable(result)
    with contextlib.ExitStack() as stack:
        source, sink = open_locations()
        stack.callback(source.close)
        stack.callback(sink.close)
        # Blobs are excluded by their digests, and what a layer becomes has another one.
        may_be_bare = _can_have_plain_layers(source_location, source) and (omission_rule is None or is_remote)
        with (
            add_missing_blobs_hint(context.console, source_location, destination_location),
            add_image_id_hint(source_location, source),
            _add_path_hint(source_location),
            show_progress(context.options["progress"], context.console) as observer,
        ):
            report = transfer.copy(
                source,
                sink,
                observer,
                jobs=context.jobs,
                ahead=context.prefetch_memory,
                cancelled=context.cancelled,
                rename=announced,
                leave_out=omission_rule,
                recompression=recompression,
                bare_layers=context.recompression(default="gzip") if may_be_bare else None,
            )
    results = build_results(report, label, destination_location)
    if result is not None:
        used = context.upload_strategy.methods_used
        write_result(result, report, results, retried=context.retry_count, upload=used, cached=context.cached_sizes)
    printed = destination_location is None or not destination_location.is_stream
    if printed:
        print_results(results)
    report_resumed(context.console, report)
    report_summary(context.console, report, context.cached_sizes)
    report_incomplete_indexes(context.console, report.graph.incomplete_indexes, report.origins)
    if context.options["compress"] is None and (
        destination_location is None or destination_location.kind != "docker-archive"
    ):
        is_saved = getattr(source, "is_docker_save", False)
        report_recompressed(context.console, report, is_saved=is_saved, excludes=not may_be_bare)
    report_omitted(context.console, report)
    report_skipped_referrers(context.console, report.graph.skipped_referrers)
    _report_unused_entries(context.console, source)
    if into_docker_archive:
        report_image_ids(context.console, report, results, printed=printed)
        _warn_unnamed_images(context.console, report.graph)


def _can_have_plain_layers(source_location: Location | None, source: Source) -> bool:
    """Return whether `docker save` may have written the source, or one of several archives: a registry it is not."""
    return hasattr(source, "inputs") or (
        source_location is not None
        and source_location.kind not in {"docker", "oci"}
        and not is_directory(source_location)
    )


@contextlib.contextmanager
def _add_path_hint(source_location: Location | None) -> Iterator[None]:
    """Say of a blob that is wrong in which file or directory it is, and what can be done about that."""
    try:
        yield
    except IntegrityError as error:
        # The other errors of that kind are about an image that is another than was asked for.
        if (
            source_location is not None
            and source_location.path is not None
            and not source_location.is_stream
            and not error.hint
            and _is_blob_error(error)
        ):
            path = printable(str(source_location.path), 1024)
            error.hint = f"{path} is damaged, or was changed while it was read: `ocistream verify {path}` says which"
        raise


def _is_blob_error(error: IntegrityError) -> bool:
    return is_digest(error.message.partition(": ")[0])


def parse_mount_sources(texts: Sequence[str], registry: str | None) -> tuple[str, ...]:
    """Read --mount-from, each `REPO` or `HOST/REPO`; `registry` is the one that is written to, or None.

    Raises:
        UsageError: it is malformed, of another registry, or no registry is written to at all.
    """
    if texts and registry is None:
        msg = "--mount-from is for what goes to a registry"
        raise UsageError(msg, hint="leave it away: here blobs are copied")
    return tuple(dict.fromkeys(_parse_mount_source(text, registry or "") for text in texts))


def _parse_mount_source(text: str, registry: str) -> str:
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


def _report_unused_entries(console: Console, source: Source) -> None:
    """Say which entries of an archive were not used: names that no image archive has, and files of others with -v."""
    for one in getattr(source, "inputs", [source]):
        contents: ArchiveContents | None = getattr(one, "contents", None)
        if contents is None or contents.index_json is None or contents.is_docker_archive:
            continue
        if contents.illegal_count:
            entries = format_count(contents.illegal_count, "entry", "entries")
            console.info(f"not used: {entries} of the archive, such as {printable(contents.first_illegal_name)!r}")
        if (others := contents.foreign_count - contents.illegal_count) > 0:
            console.info(f"not used: {format_count(others, 'other file')} of the archive", level=1)


def _warn_unnamed_images(console: Console, graph: Graph) -> None:
    """Say which images of a docker-archive Docker will have no name for: that they have one here says nothing."""
    named = {root.descriptor.digest for root in graph.roots if root.name and docker_tag(root.name)}
    for root in graph.roots:
        if root.descriptor.digest not in named:
            named.add(root.descriptor.digest)
            what = printable(root.name) if root.name else root.descriptor.digest
            console.info(
                f"{what} is no name for Docker, which will show the image as <none>; "
                "give it one as in docker-archive:FILE:NAME"
            )


def _choose_recompression(context: CommandContext, destination_location: Location | None) -> Recompression | None:
    """Give what is asked for; a docker-archive has plain layers, whatever they were.

    Raises:
        UsageError: it is asked for with compressed ones.
    """
    if destination_location is None or destination_location.kind != "docker-archive":
        return context.recompression()
    if context.options["compress"] not in {None, "none"}:
        msg = "the layers of a docker-archive are not compressed"
        raise UsageError(msg, hint="leave --compress away, or write an oci-archive: `docker load` takes that too")
    return context.recompression(default="none")


def build_rename(location: Location) -> Callable[[Graph], Graph]:
    """Give the way to call a graph's root as the destination is called; that there is only one is seen to before.

    What it gives raises IntegrityError where the name has a digest, and the image another.

    Raises:
        InvalidNameError: it has blanks or control characters; or a docker-archive's images have names such as `app:1`,
            and this is none.
    """
    name = location.name
    if name is not None and not is_printable_name(name):
        msg = f"malformed name {printable(name)!r}"
        raise InvalidNameError(msg, hint="write it without blanks, as in app:1")
    digest = (name or "").rpartition("@")[2]
    if name is not None and location.kind == "docker-archive":
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


def require_distinct_targets(target: Callable[[Root], Reference], select: ImageSelector) -> ImageSelector:
    """Make sure that of the images that `select` chooses no two go to one place: the second would replace the first.

    What it gives raises UsageError where they do.
    """

    def chosen(roots: Sequence[Root]) -> Sequence[Root]:
        found = select(roots)
        places: dict[Reference, Root] = {}
        for root in found:
            place = target(root)
            if places.setdefault(place, root).descriptor.digest != root.descriptor.digest:
                both = f"{printable(places[place].name or '')} and {printable(root.name or '')}"
                msg = f"{both} would both become {place.name}"
                raise UsageError(msg, hint="push one of them with `ocistream push HOST/REPOSITORY:TAG --image NAME`")
        return found

    return chosen


def select_all_by_tag(choose: Callable[[Sequence[str]], Sequence[str]], hint: str) -> ImageSelector:
    """Return a selection of all images of an archive or layout by their tags, which `choose` may restrict.

    The selection raises UsageError, with this hint, if an image has no tag.
    """

    def select(roots: Sequence[Root]) -> Sequence[Root]:
        return select_tagged(choose)(select_all_images(roots, lambda root: tag_of(root.name) is not None, "tag", hint))

    return select


def select_tagged(choose: Callable[[Sequence[str]], Sequence[str]]) -> ImageSelector:
    """Return a selection of images of an archive or layout by their tags; a notice names the images without a tag."""

    def select(roots: Sequence[Root]) -> Sequence[Root]:
        tags = [tag for root in roots if (tag := tag_of(root.name))]
        chosen = set(choose(list(dict.fromkeys(tags))))
        report_untagged(roots)
        return [root for root in roots if tag_of(root.name) in chosen]

    return select


def build_tag_target(repository: Reference) -> Callable[[Root], Reference]:
    """Give the way to name images within one repository: each keeps its tag."""

    def target(root: Root) -> Reference:
        return Reference(repository.registry, repository.repository, tag_of(root.name))

    return target
