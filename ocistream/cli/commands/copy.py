"""`ocistream copy`: copy images between registries, layouts and archives."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from ocistream.api.copy_plan import plan_copy
from ocistream.cli.omission_options import build_omission_rule, find_queried_registries, omission_options
from ocistream.cli.options import (
    cache_option,
    compression_options,
    credential_options,
    memory_option,
    platform_option,
    read_copy_options,
    referrers_option,
    split_option,
    transfer_options,
    upload_options,
    via_options,
)
from ocistream.cli.parameter_types import parse_location_argument
from ocistream.cli.registry_options import describe_unused_side_options, has_credential, options_for_side, side_options
from ocistream.cli.standard_streams import resolve_stdout
from ocistream.cli.transfers import run_transfer
from ocistream.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection

    from ocistream.cli.context import CommandContext
    from ocistream.locations import Location


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.option(
    "--all-tags", is_flag=True, help="Copy every tag of a repository, or every image of a layout or archive by its tag."
)
@click.option(
    "--tags",
    "globs",
    multiple=True,
    metavar="GLOB",
    help="Only tags like this (`1.*`), or unlike it (`!*-rc*`); repeats, and means --all-tags.",
)
@platform_option("all, the index as it is; into a docker-archive, linux on this machine's architecture")
@split_option
@omission_options
@via_options
@referrers_option
@compression_options("To stdout, one layer at a time waits in a temporary file: its size has to be written first.")
@upload_options
@credential_options
@side_options
@memory_option
@cache_option
@transfer_options
def copy(
    context: CommandContext,
    source: str,
    destination: str,
    platforms: tuple[str, ...],
    globs: tuple[str, ...],
    *,
    all_tags: bool,
    via: str | None,
    via_program: str,
) -> None:
    """Copy between a registry's image, a layout `oci:DIR[:NAME]`, an archive and plain paths.

    Archives are written `oci-archive:FILE[:NAME]` and `docker-archive:FILE[:NAME]`. Within one registry blobs are
    mounted, not sent. The plain layers of a docker-archive become gzip, unless another docker-archive is written.

    Options of a registry, such as --plain-http, are for both sides. Those with --src- or --dest- are for one side, and
    come before the others.

    \b
    ocistream copy nginx:1 registry.example.com/mirror/nginx:1
    ocistream copy oci:build:app registry.example.com/app:2
    ocistream copy --tags '1.*' nginx registry.example.com/mirror/nginx
    ocistream copy nginx:1 registry.local/nginx:1 --dest-plain-http
    ocistream copy app:2 registry.local/app:2 --via 'ssh host'
    """
    if via is not None:
        _copy_via(context, source, destination, platforms, (via, via_program), many=all_tags or bool(globs))
        return
    source_location, destination_location = (
        parse_location_argument(source),
        resolve_stdout(parse_location_argument(destination)),
    )
    context.check_result_path(source_location, destination_location)
    _check_sides(context, source_location, destination_location)
    options = read_copy_options(context, platforms, all_tags=all_tags, tags=globs)
    plan = plan_copy([source_location], destination_location, options)
    run_transfer(
        context,
        plan,
        lambda: plan.open(
            context.build_open_context("SRC", registries=named_registries(source_location)),
            context.build_open_context("DEST", registries=named_registries(destination_location)),
        ),
        omission_rule=build_omission_rule(
            context, plan.selection.platforms, destination_location, source_location=source_location
        ),
    )


def _copy_via(
    context: CommandContext,
    source: str,
    destination: str,
    platforms: tuple[str, ...],
    via: tuple[str, str],
    *,
    many: bool,
) -> None:
    from ocistream.cli.commands.copy_via import copy_via
    from ocistream.remote.command import check_shell_safe

    if many:
        msg = "--all-tags and --tags cannot be had with --via"
        raise UsageError(msg, hint="copy the images one by one")
    check_shell_safe(destination)
    options_for_side(context.options, "SRC")
    source_location = parse_location_argument(source)
    destination_location = parse_location_argument(destination, is_remote=True)
    context.check_result_path(source_location)
    if source_location.reference is None and (message := describe_unused_side_options("src")):
        context.console.info(message)
    plan = plan_copy([source_location], destination_location, read_copy_options(context, platforms), is_remote=True)
    copy_via(context, plan, via)


def _check_sides(context: CommandContext, source_location: Location, destination_location: Location) -> None:
    """Raise UsageError if options of one side contradict each other, or a credential could be for two registries."""
    for side in ("SRC", "DEST"):
        options_for_side(context.options, side)
    _check_queried_registries(context, source_location, destination_location)
    registries = {"src": set(named_registries(source_location))}
    registries["dest"] = {
        *named_registries(destination_location),
        *(find_queried_registries(context) - registries["src"]),
    }
    shared: set[str] = set()
    for side, side_registries in registries.items():
        if not side_registries and (message := describe_unused_side_options(side)):
            context.console.info(message)
        if not has_credential(context.options, side):
            shared |= side_registries
    context.check_credentials(shared)


def _check_queried_registries(context: CommandContext, *locations: Location) -> None:
    """Raise UsageError if the destination's user name could be for several registries that are queried."""
    is_given = context.options.get("dest_username") is not None or bool(os.environ.get("OCISTREAM_DEST_USERNAME"))
    registries = find_queried_registries(context) - {
        location.reference.registry for location in locations if location.reference
    }
    if is_given and len(registries) > 1:
        msg = f"the destination's user name cannot be for {' and '.join(sorted(registries))} at once"
        raise UsageError(msg, hint="use `ocistream login` for each")


def named_registries(location: Location) -> Collection[str]:
    """Return the registry of a location, or nothing."""
    return () if location.reference is None else (location.reference.registry,)
