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
    from ocistream.cli.omission_options import OmissionRule
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
    """Copy images, then print and write the results.

    `label` names a root in the results. `source_location` is where the images come from and `destination_location`
    where they go; None for registries. If the destination is stdout, no result lines are printed. `omission_rule`
    selects the blobs to omit. With `is_remote` the images go as an OCI archive to a remote ocistream, which writes the
    destination; --compress does not apply.

    Raise an OcistreamError if the transfer fails; then nothing is visible at the destination.
    """
    result = context.options["result"]
    into_docker_archive = destination_location is not None and destination_location.kind == "docker-archive"

    def announced(graph: Graph) -> Graph:
        # The source's graph, before any blob moves.
        report_selected_platforms(graph.roots, source, into_docker_archive=into_docker_archive)
        return rename(graph) if rename is not None else graph

    recompression = None if is_remote else _choose_recompression(context, destination_location)
    if result is not None:
        check_result_writable(result)
    with contextlib.ExitStack() as stack:
        source, destination = open_locations()
        stack.callback(source.close)
        stack.callback(destination.close)
        # Blobs are omitted by digest, and a recompressed layer has another digest.
        may_have_plain_layers = _can_have_plain_layers(source_location, source) and (omission_rule is None or is_remote)
        with (
            add_missing_blobs_hint(context.console, source_location, destination_location),
            add_image_id_hint(source_location, source),
            _add_path_hint(source_location),
            show_progress(context.options["progress"], context.console) as observer,
        ):
            report = transfer.copy(
                source,
                destination,
                observer,
                jobs=context.jobs,
                prefetch_memory=context.prefetch_memory,
                cancelled=context.cancelled,
                rename=announced,
                omit=omission_rule,
                recompression=recompression,
                plain_layers=context.recompression(default="gzip") if may_have_plain_layers else None,
            )
    results = build_results(report, label, destination_location)
    if result is not None:
        methods_used = context.upload_strategy.methods_used
        write_result(
            result, report, results, retried=context.retry_count, upload=methods_used, cached=context.cached_sizes
        )
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
        report_recompressed(context.console, report, is_saved=is_saved, excludes=not may_have_plain_layers)
    report_omitted(context.console, report)
    report_skipped_referrers(context.console, report.graph.skipped_referrers)
    _report_unused_entries(context.console, source)
    if into_docker_archive:
        report_image_ids(context.console, report, results, printed=printed)
        _warn_unnamed_images(context.console, report.graph)


def _can_have_plain_layers(source_location: Location | None, source: Source) -> bool:
    """Return whether `docker save` may have written the source, or one of several archives."""
    return hasattr(source, "inputs") or (
        source_location is not None
        and source_location.kind not in {"docker", "oci"}
        and not is_directory(source_location)
    )


@contextlib.contextmanager
def _add_path_hint(source_location: Location | None) -> Iterator[None]:
    """Add to the error about a damaged blob which file or directory has it, and how to find all of them."""
    try:
        yield
    except IntegrityError as error:
        # Other errors of this class are about an image that differs from the requested one.
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
    """Return the repositories of --mount-from, each `REPO` or `HOST/REPO` in `registry`.

    `registry` is the destination's registry; None if the destination is not a registry.
    """
    if texts and registry is None:
        msg = "--mount-from is for what goes to a registry"
        raise UsageError(msg, hint="leave it away: here blobs are copied")
    return tuple(dict.fromkeys(_parse_mount_source(text, registry or "") for text in texts))


def _parse_mount_source(text: str, registry: str) -> str:
    first, slash, rest = text.partition("/")
    if slash and first and (first == registry or {".", ":"} & set(first) or first == "localhost"):
        # As in an image name: a first part that looks like a host is a host.
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
    """Print which entries of an archive were not used: illegal names, and with -v files of other tools."""
    for archive in getattr(source, "inputs", [source]):
        contents: ArchiveContents | None = getattr(archive, "contents", None)
        if contents is None or contents.index_json is None or contents.is_docker_archive:
            continue
        if contents.illegal_count:
            entries = format_count(contents.illegal_count, "entry", "entries")
            console.info(f"not used: {entries} of the archive, such as {printable(contents.first_illegal_name)!r}")
        if (unused_count := contents.foreign_count - contents.illegal_count) > 0:
            console.info(f"not used: {format_count(unused_count, 'other file')} of the archive", level=1)


def _warn_unnamed_images(console: Console, graph: Graph) -> None:
    """Print which images of a docker-archive get no name in Docker, although they have one here."""
    named = {root.descriptor.digest for root in graph.roots if root.name and docker_tag(root.name)}
    for root in graph.roots:
        if root.descriptor.digest not in named:
            named.add(root.descriptor.digest)
            description = printable(root.name) if root.name else root.descriptor.digest
            console.info(
                f"{description} is no name for Docker, which will show the image as <none>; "
                "give it one as in docker-archive:FILE:NAME"
            )


def _choose_recompression(context: CommandContext, destination_location: Location | None) -> Recompression | None:
    """Return what --compress selects; the layers of a docker-archive are always uncompressed."""
    if destination_location is None or destination_location.kind != "docker-archive":
        return context.recompression()
    if context.options["compress"] not in {None, "none"}:
        msg = "the layers of a docker-archive are not compressed"
        raise UsageError(msg, hint="leave --compress away, or write an oci-archive: `docker load` takes that too")
    return context.recompression(default="none")


def build_rename(name: str, kind: str) -> Callable[[Graph], Graph]:
    """Return the function that gives the graph's only root its name at a destination of this kind.

    The caller has checked that there is one root. The function raises IntegrityError if the name has the digest of
    another image.
    """
    if not is_printable_name(name):
        msg = f"malformed name {printable(name)!r}"
        raise InvalidNameError(msg, hint="write it without blanks, as in app:1")
    digest = name.rpartition("@")[2]
    if kind == "docker-archive":
        reference = parse_reference(name)
        if reference.digest:
            msg = f"{name!r} has a digest, and images in a docker-archive are called by tags only"
            raise InvalidNameError(msg, hint="write it as app:1")
        name = reference.name

    def rename(graph: Graph) -> Graph:
        (root,) = graph.roots
        if is_digest(digest) and digest != root.descriptor.digest:
            msg = f"{printable(name)} was asked for, the image is {root.descriptor.digest}"
            raise IntegrityError(msg)
        # Keep the name at the source: hints may need it.
        return replace(graph, roots=(replace(root, name=name, origin=root.origin or root.name or ""),))

    return rename


def require_distinct_targets(target: Callable[[Root], Reference], select: ImageSelector) -> ImageSelector:
    """Return `select` with a check that no two images get the same target: the second would replace the first.

    The selection raises UsageError if two do.
    """

    def chosen(roots: Sequence[Root]) -> Sequence[Root]:
        selected = select(roots)
        roots_by_target: dict[Reference, Root] = {}
        for root in selected:
            reference = target(root)
            if roots_by_target.setdefault(reference, root).descriptor.digest != root.descriptor.digest:
                both = f"{printable(roots_by_target[reference].name or '')} and {printable(root.name or '')}"
                msg = f"{both} would both become {reference.name}"
                raise UsageError(msg, hint="push one of them with `ocistream push HOST/REPOSITORY:TAG --image NAME`")
        return selected

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
    """Return the function that names images within one repository: each keeps its tag."""

    def target(root: Root) -> Reference:
        return Reference(repository.registry, repository.repository, tag_of(root.name))

    return target
