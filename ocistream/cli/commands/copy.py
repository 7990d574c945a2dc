"""`ocistream copy`: copy images between registries, layouts and archives."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ocistream.cli.omission_options import build_omission_rule, find_queried_registries, omission_options
from ocistream.cli.options import (
    cache_option,
    check_split_size,
    choose_referrers_mode,
    compression_options,
    credential_options,
    default_platform,
    memory_option,
    parse_platform_choice,
    platform_option,
    referrers_option,
    split_option,
    transfer_options,
    upload_options,
    via_options,
)
from ocistream.cli.parameter_types import parse_location_argument
from ocistream.cli.registry_options import describe_unused_side_options, has_credential, options_for_side, side_options
from ocistream.cli.standard_streams import resolve_stdout
from ocistream.cli.transfers import (
    build_rename,
    build_tag_target,
    glob_filter,
    parse_mount_sources,
    require_distinct_targets,
    run_transfer,
    select_all_by_tag,
    select_tagged,
)
from ocistream.errors import UsageError
from ocistream.layout.index import format_image_names, select_existing_images, select_only_image
from ocistream.locations import Selection, is_directory, open_destination, open_source
from ocistream.oci.reference import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from ocistream.cli.context import CommandContext
    from ocistream.locations import Location
    from ocistream.oci.graph import Root
    from ocistream.oci.reference import Reference
    from ocistream.transfer.interfaces import Destination, Source


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
    split = check_split_size(context, destination_location)
    _check_sides(context, source_location, destination_location)
    mount_from = parse_mount_sources(
        context.options["mount_from"],
        destination_location.reference.registry if destination_location.reference else None,
    )
    # A docker-archive has one image per name.
    default = default_platform() if destination_location.kind == "docker-archive" else None
    choice = parse_platform_choice(platforms, default)
    selection = Selection(
        select_single_image, choice, int(context.options["max_ratio"]), referrers=choose_referrers_mode(context)
    )
    omission_rule = build_omission_rule(context, choice, destination_location, source_location=source_location)
    target: Callable[[Root], Reference] | None = None
    if all_tags or globs:
        _check_repositories(source_location, destination_location)
        choose = glob_filter(globs)
        select = (
            select_tagged(choose)
            if globs
            else select_all_by_tag(choose, _untagged_hint(source_location, destination_location))
        )
        if destination_location.reference is not None:
            target = build_tag_target(destination_location.reference)
            select = require_distinct_targets(target, select)
        selection = replace(selection, select=select, tags=choose)
    elif destination_location.kind != "docker" and destination_location.name is None:
        selection = replace(selection, select=select_existing_images)

    def open_ends() -> tuple[Source, Destination]:
        context.check_push(destination_location.reference)
        opened_source = open_source(
            source_location, context.build_open_context("SRC", registries=named_registries(source_location)), selection
        )
        try:
            open_context = context.build_open_context("DEST", registries=named_registries(destination_location))
            return opened_source, open_destination(
                destination_location,
                replace(open_context, mount_from=mount_from, find_reference=target, volume_size=split),
            )
        except BaseException:
            opened_source.close()
            raise

    def label(root: Root) -> str:
        if target is not None:
            return target(root).name
        if destination_location.reference is not None:
            return destination_location.reference.name
        return root.name or root.origin or source_location.text

    run_transfer(
        context,
        open_ends,
        label,
        source_location=source_location,
        destination_location=destination_location,
        rename=build_rename(destination_location.name, destination_location.kind)
        if destination_location.name
        else None,
        omission_rule=omission_rule,
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
    source_location, destination_location = parse_location_argument(source), parse_location_argument(destination)
    context.check_result_path(source_location)
    if source_location.reference is None and (message := describe_unused_side_options("src")):
        context.console.info(message)
    select = (
        select_single_image
        if destination_location.kind == "docker" or destination_location.name is not None
        else select_existing_images
    )
    choice = parse_platform_choice(platforms, None)
    selection = Selection(select, choice, int(context.options["max_ratio"]), referrers=choose_referrers_mode(context))
    copy_via(context, source_location, destination, selection, via)


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


def _check_repositories(source_location: Location, destination_location: Location) -> None:
    """Raise UsageError if a location of a copy of many images names a single image."""
    for location in (source_location, destination_location):
        if location.name is not None or (location.reference is not None and not location.is_repository):
            msg = f"{printable(location.text)} is one image, and many are to be copied"
            raise UsageError(msg, hint="leave the tag, digest or name away, or --all-tags and --tags")


def _untagged_hint(source_location: Location, destination_location: Location) -> str:
    """Return how to copy images that have no tag."""
    if destination_location.reference is None:
        return "leave --all-tags away: without it all images are copied, whatever their names are"
    kind = "oci" if is_directory(source_location) else "oci-archive"
    source = printable(source_location.text if source_location.kind != "path" else f"{kind}:{source_location.text}")
    return (
        f"copy them one by one, by digest: `ocistream copy {source}:DIGEST {printable(destination_location.text)}:TAG`"
    )


def named_registries(location: Location) -> Collection[str]:
    """Return the registry of a location, or nothing."""
    return () if location.reference is None else (location.reference.registry,)


def select_single_image(roots: Sequence[Root]) -> Sequence[Root]:
    """Return the only image, as `select_only_image`; if there are several, say how to choose one for `copy`."""
    try:
        return select_only_image(roots)
    except UsageError as error:
        hint = f"choose one, as in oci:DIR:NAME or oci-archive:FILE:NAME: {format_image_names(roots)}"
        raise UsageError(error.message, hint=hint) from error
