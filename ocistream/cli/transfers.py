"""The run of a plan that pull, push and copy share: check, open source and destination, copy, report, close."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from ocistream.api.results import list_images
from ocistream.cli.error_hints import add_image_id_hint, add_missing_blobs_hint
from ocistream.cli.omission_rules import build_omission_rule, find_queried_registries
from ocistream.cli.progress import format_count, show_progress
from ocistream.cli.registry_options import describe_unused_side_options
from ocistream.cli.report import (
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
from ocistream.errors import IntegrityError, UsageError
from ocistream.layout.index import docker_tag
from ocistream.oci.reference import is_digest, printable
from ocistream.oci.volumes import parse_template

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ocistream.api.copy_plan import CopyPlan
    from ocistream.archive.contents import ArchiveContents
    from ocistream.cli.console import Console
    from ocistream.cli.context import CommandContext
    from ocistream.cli.omission_rules import OmissionRule
    from ocistream.locations import Location
    from ocistream.oci.graph import Graph
    from ocistream.transfer.interfaces import Destination, Source

__all__ = ["run_plan", "run_transfer"]


def run_plan(context: CommandContext, plan: CopyPlan, *, from_byte: int = 0) -> None:
    """Copy images by the plan of a command, then print and write the results.

    `from_byte` is the first byte of the archive to write. Raise an OcistreamError if the copy fails; then nothing is
    visible at the destination.
    """
    context.check_result_path(*plan.sources, plan.destination)
    _check_registries(context, plan)
    omission_rule = build_omission_rule(context, plan)
    sides = list(context.sides) or ["", ""]

    def open_locations() -> tuple[Source, Destination]:
        source_context = context.build_open_context(sides[0], registries=plan.source_registries)
        destination_context = context.build_open_context(sides[1], registries=plan.destination_registries)
        return plan.open(source_context, replace(destination_context, from_byte=from_byte))

    run_transfer(context, plan, open_locations, omission_rule=omission_rule)


def _check_registries(context: CommandContext, plan: CopyPlan) -> None:
    """Raise UsageError if options of one side contradict each other, or a credential could be for two registries."""
    queried = find_queried_registries(context)
    named = plan.source_registries | plan.destination_registries
    if not context.sides:
        context.check_credentials(named | queried)
        return
    for side in context.sides:
        context.registry_options(side)
    destination_user = context.sides["dest"].username is not None or os.environ.get("OCISTREAM_DEST_USERNAME")
    if destination_user and len(queried - named) > 1:
        msg = f"the destination's user name cannot be for {' and '.join(sorted(queried - named))} at once"
        raise UsageError(msg, hint="use `ocistream login` for each")
    registries = {
        "src": plan.source_registries,
        "dest": plan.destination_registries | (queried - plan.source_registries),
    }
    shared: set[str] = set()
    for side, side_registries in registries.items():
        if not side_registries and (message := describe_unused_side_options(side)):
            context.console.info(message)
        if not context.sides[side].has_credential:
            shared |= side_registries
    context.check_credentials(shared)


def run_transfer(
    context: CommandContext,
    plan: CopyPlan,
    open_locations: Callable[[], tuple[Source, Destination]],
    *,
    omission_rule: OmissionRule | None = None,
) -> None:
    """Copy images, then print and write the results.

    `open_locations` opens the plan's source and destination. If the destination is stdout, no result lines are printed.
    `omission_rule` selects the blobs to omit.

    Raise an OcistreamError if the transfer fails; then nothing is visible at the destination.
    """
    result = context.options.result
    into_docker_archive = plan.destination.kind == "docker-archive"
    if result is not None:
        _check_not_volume(result, plan)
        check_result_writable(result)
    with contextlib.ExitStack() as stack:
        source, destination = open_locations()
        stack.callback(source.close)
        stack.callback(destination.close)

        def announce(graph: Graph) -> None:
            report_selected_platforms(graph.roots, source, into_docker_archive=into_docker_archive)

        with (
            add_missing_blobs_hint(context.console, plan.local_source, plan.destination),
            add_image_id_hint(plan.local_source, source),
            _add_path_hint(plan.local_source),
            show_progress(context.options.progress, context.console) as observer,
        ):
            report = plan.run(
                source,
                destination,
                observer,
                jobs=context.options.jobs,
                prefetch_memory=context.options.prefetch_memory,
                cancelled=context.cancelled,
                omit=omission_rule,
                on_resolved=announce,
            )
    results = list_images(report, plan)
    if result is not None:
        methods_used = context.access.upload_strategy().methods_used
        cached = context.access.cached_sizes()
        write_result(result, report, results, retried=context.retry_count, upload=methods_used, cached=cached)
    printed = not plan.destination.is_stream
    if printed:
        print_results(results)
    report_resumed(context.console, report)
    report_summary(context.console, report, context.access.cached_sizes())
    report_incomplete_indexes(context.console, report.graph.incomplete_indexes, report.origins)
    if plan.options.compress is None and not into_docker_archive:
        is_saved = getattr(source, "is_docker_save", False)
        compresses = plan.compresses_plain_layers(source, omits=omission_rule is not None)
        report_recompressed(context.console, report, is_saved=is_saved, excludes=not compresses)
    report_omitted(context.console, report)
    report_skipped_referrers(context.console, report.graph.skipped_referrers)
    _report_unused_entries(context.console, source)
    if into_docker_archive:
        report_image_ids(context.console, report, results, printed=printed)
        _warn_unnamed_images(context.console, report.graph)


def _check_not_volume(result: Path, plan: CopyPlan) -> None:
    """Raise UsageError if the document of --result would be written over by a volume of the archive."""
    path = plan.destination.path
    if plan.options.split and path is not None and parse_template(path.name).parse_number(result.name) is not None:
        msg = f"--result {result} has the name of a volume"
        raise UsageError(msg, hint="name another file: it would be written over")


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
