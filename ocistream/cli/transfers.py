"""The run of a plan that pull, push and copy share: check, open source and destination, copy, report, close."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from ocistream.api.results import list_images
from ocistream.cli.option_hints import describe_unused_side_options
from ocistream.cli.report import print_dry_run, print_results, report_copy, report_dry_run, report_selected_platforms
from ocistream.cli.result_document import check_result_writable, write_result
from ocistream.errors import OcistreamError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ocistream.api.copy_plan import CopyPlan
    from ocistream.cli.context import CommandContext
    from ocistream.cli.omission_rules import OmissionRule
    from ocistream.oci.graph import Graph
    from ocistream.transfer.interfaces import Destination, Source


def run_plan(context: CommandContext, plan: CopyPlan, *, from_byte: int = 0, dry_run: bool) -> None:
    """Copy images by the plan of a command, then print and write the results.

    `from_byte` is the first byte of the archive to write. With `dry_run`, nothing is changed.

    Raise an OcistreamError if the copy fails; then nothing is visible at the destination.
    """
    _check_registries(context, plan)
    plan = plan.with_policy(context.access.load_trust_policy())
    omission_rule: OmissionRule | None = None
    if context.omission.have or context.omission.base or context.omission.only:
        from ocistream.cli.omission_rules import build_omission_rule

        omission_rule = build_omission_rule(context, plan)
    sides = list(context.sides) or ["", ""]

    def open_locations() -> tuple[Source, Destination]:
        source_context = context.build_open_context(sides[0], registries=plan.source_registries)
        destination_context = context.build_open_context(sides[1], registries=plan.destination_registries)
        return plan.open(
            replace(source_context, is_dry_run=dry_run),
            replace(destination_context, is_dry_run=dry_run, from_byte=from_byte),
        )

    run_transfer(context, plan, open_locations, omission_rule=omission_rule, dry_run=dry_run)


def _check_registries(context: CommandContext, plan: CopyPlan) -> None:
    """Raise UsageError if options of one side contradict each other, or a credential could be for two registries."""
    queried: set[str] = set()
    if context.omission.have or context.omission.base:
        from ocistream.cli.omission_rules import find_queried_registries

        queried = find_queried_registries(context)
    named = plan.source_registries | plan.destination_registries
    if not context.sides:
        context.credentials.check_registries(named | queried)
        return
    for side in context.sides:
        context.registry_options(side)
    destination_user = context.sides["dest"].username is not None or os.environ.get("OCISTREAM_DEST_USERNAME")
    if destination_user and len(queried - named) > 1:
        msg = f"one destination user name cannot be used for {' and '.join(sorted(queried - named))}"
        raise UsageError(msg, hint="run `ocistream login` for each registry")
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
    context.credentials.check_registries(shared)


def run_transfer(
    context: CommandContext,
    plan: CopyPlan,
    open_locations: Callable[[], tuple[Source, Destination]],
    *,
    omission_rule: OmissionRule | None,
    dry_run: bool,
) -> None:
    """Copy images, then print and write the results.

    `open_locations` opens the plan's source and destination. If an archive is written to stdout, no result lines are
    printed. `omission_rule` selects the blobs to omit. With `dry_run`, nothing is changed.

    Raise an OcistreamError if the transfer fails; then nothing is visible at the destination.
    """
    result = context.options.result
    if result is not None:
        _check_not_volume(result, plan)
        check_result_writable(result)
    with contextlib.ExitStack() as stack:
        source, destination = open_locations()
        stack.callback(source.close)
        stack.callback(destination.close)

        def announce(graph: Graph) -> None:
            into_docker_archive = plan.destination.kind == "docker-archive"
            report_selected_platforms(graph.roots, source, into_docker_archive=into_docker_archive)

        try:
            with context.console.show_progress("none" if dry_run else context.options.progress) as observer:
                report = plan.run(
                    source,
                    destination,
                    observer,
                    jobs=context.access.limit_jobs(plan.source_registries | plan.destination_registries),
                    prefetch_memory=context.options.prefetch_memory,
                    cancelled=context.cancelled,
                    omit=omission_rule,
                    on_resolved=announce,
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
        write_result(result, report, images, retried=context.retry_count, upload=methods_used, cached=cached_sizes)
    if dry_run:
        print_dry_run(plan, report, images)
        report_dry_run(context.console, plan, report, images)
        return
    if not plan.destination.is_stream:
        print_results(images)
    report_copy(context.console, plan, source, report, images, cached_sizes, omits=omission_rule is not None)


def _check_not_volume(result: Path, plan: CopyPlan) -> None:
    """Raise UsageError if the document of --result would be written over by a volume of the archive."""
    from ocistream.oci.volumes import parse_template

    path = plan.destination.path
    if plan.options.split and path is not None and parse_template(path.name).parse_number(result.name) is not None:
        msg = f"--result {result} has the name of a volume"
        raise UsageError(msg, hint="name another file: this one would be overwritten")
