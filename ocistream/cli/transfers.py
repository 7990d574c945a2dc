"""The run of a plan that pull, push and copy share: check, open source and destination, copy, report, close."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from ocistream.api.results import list_images
from ocistream.cli.report import print_dry_run, print_results, report_copy, report_selected_platforms, write_result
from ocistream.cli.sides import check_registries
from ocistream.errors import OcistreamError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeAlias

    from ocistream.api.copy_plan import CopyPlan
    from ocistream.cli.context import CommandContext
    from ocistream.cli.omission_rules import OmissionRules
    from ocistream.oci.graph import Graph
    from ocistream.oci.omitted_blobs import OmissionReason
    from ocistream.transfer.interfaces import Destination, Source

    #: Returns the blobs of a graph that the destination omits, by digest.
    FindOmitted: TypeAlias = Callable[[Graph], Mapping[str, OmissionReason]]


def run_plan(context: CommandContext, plan: CopyPlan, *, from_byte: int = 0) -> None:
    """Copy images by the plan of a command, then print and write the results.

    `from_byte` is the first byte of the archive to write.

    Raise an OcistreamError if the copy fails; then nothing is visible at the destination.
    """
    rules: OmissionRules | None = None
    options = context.omission_options
    if options.have or options.base or options.only:
        from ocistream.cli.omission_rules import OmissionRules

        rules = OmissionRules(context, plan)
    _check_registries(context, plan, rules.registries if rules else set())
    plan = plan.with_policy(context.access.load_trust_policy())
    source_context = context.build_open_context(context.sides[0], registries=plan.source_registries)
    destination_context = context.build_open_context(context.sides[-1], registries=plan.destination_registries)
    source, destination = plan.open(source_context, replace(destination_context, from_byte=from_byte))
    run_transfer(context, plan, source, destination, find_omitted=rules)


def _check_registries(context: CommandContext, plan: CopyPlan, queried: set[str]) -> None:
    """Raise UsageError if options of one side contradict each other, or a user name could be for two registries.

    `queried` are the registries that --have and --base ask; that of the source gets the source's credentials.
    """
    source = plan.source_registries
    destination = plan.destination_registries | (queried - source)
    named = [source | destination]
    if len(context.sides) > 1:
        named = [source, destination]
        for side in context.sides:
            side.check_options()
    check_registries(context.sides, *named)
    for side, registries in zip(context.sides, named, strict=True):
        if not registries and (message := side.describe_unused_options()):
            context.console.info(message)


def run_transfer(
    context: CommandContext,
    plan: CopyPlan,
    source: Source,
    destination: Destination,
    *,
    find_omitted: FindOmitted | None,
) -> None:
    """Copy images, then print and write the results, and close source and destination.

    If an archive is written to stdout, no result lines are printed. `find_omitted` selects the blobs of a graph to
    omit.

    Raise an OcistreamError if the transfer fails; then nothing is visible at the destination.
    """
    result, dry_run = context.run_options.result, context.run_options.dry_run
    with contextlib.ExitStack() as stack:
        stack.callback(source.close)
        stack.callback(destination.close)

        def report_platforms(graph: Graph) -> None:
            into_docker_archive = plan.destination.kind == "docker-archive"
            report_selected_platforms(graph.roots, source, into_docker_archive=into_docker_archive)

        try:
            with context.console.show_progress("none" if dry_run else context.run_options.progress) as observer:
                report = plan.run(
                    source,
                    destination,
                    observer,
                    jobs=context.access.limit_jobs(plan.source_registries | plan.destination_registries),
                    prefetch_memory=context.run_options.prefetch_memory,
                    cancelled=context.cancelled,
                    find_omitted=find_omitted,
                    on_resolved=report_platforms,
                    dry_run=dry_run,
                )
        except OcistreamError as error:
            from ocistream.cli.error_hints import add_copy_hint

            add_copy_hint(error, context.console, plan, source, dry_run=dry_run)
            raise
    images = list_images(report, plan)
    cached_sizes = context.access.cached_sizes
    if result is not None:
        methods_used = context.access.upload_strategy().methods_used
        write_result(
            result, report, images, retried=context.retry_count, upload=methods_used, cached_sizes=cached_sizes
        )
    if dry_run:
        print_dry_run(plan, report, images)
    elif not plan.destination.is_stream:
        print_results(images)
    report_copy(context.console, plan, source, report, images, cached_sizes, can_omit=find_omitted is not None)
