"""`ocistream copy`: copy images between registries, layouts and archives."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ocistream.cli.omitted_blobs import build_omission_rule, find_queried_registries, omission_options
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
    src, dst = parse_location_argument(source), resolve_stdout(parse_location_argument(destination))
    context.check_result_path(src, dst)
    split = check_split_size(context, dst)
    _check_sides(context, src, dst)
    mount_from = parse_mount_sources(context.options["mount_from"], dst.reference.registry if dst.reference else None)
    # A docker-archive has one image a name.
    default = default_platform() if dst.kind == "docker-archive" else None
    choice = parse_platform_choice(platforms, default)
    want = Selection(
        select_single_image, choice, int(context.options["max_ratio"]), referrers=choose_referrers_mode(context)
    )
    leaving = build_omission_rule(context, choice, dst, src=src)
    target: Callable[[Root], Reference] | None = None
    if all_tags or globs:
        _check_repositories(src, dst)
        choose = glob_filter(globs)
        select = select_tagged(choose) if globs else select_all_by_tag(choose, _untagged_hint(src, dst))
        if dst.reference is not None:
            target = build_tag_target(dst.reference)
            select = require_distinct_targets(target, select)
        want = replace(want, select=select, tags=choose)
    elif dst.kind != "docker" and dst.name is None:
        want = replace(want, select=select_existing_images)

    def open_ends() -> tuple[Source, Destination]:
        context.check_push(dst.reference)
        opened = open_source(src, context.build_open_context("SRC", registries=named_registries(src)), want)
        try:
            around = context.build_open_context("DEST", registries=named_registries(dst))
            return opened, open_destination(
                dst, replace(around, mount_from=mount_from, find_reference=target, volume_size=split)
            )
        except BaseException:
            opened.close()
            raise

    def label(root: Root) -> str:
        if target is not None:
            return target(root).name
        if dst.reference is not None:
            return dst.reference.name
        return root.name or root.origin or src.text

    run_transfer(
        context,
        open_ends,
        label,
        source_location=src,
        destination_location=dst,
        rename=build_rename(dst) if dst.name else None,
        omission_rule=leaving,
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
    src, dst = parse_location_argument(source), parse_location_argument(destination)
    context.check_result_path(src)
    if src.reference is None and (message := describe_unused_side_options("src")):
        context.console.info(message)
    select = select_single_image if dst.kind == "docker" or dst.name is not None else select_existing_images
    choice = parse_platform_choice(platforms, None)
    want = Selection(select, choice, int(context.options["max_ratio"]), referrers=choose_referrers_mode(context))
    copy_via(context, src, destination, want, via)


def _check_sides(context: CommandContext, src: Location, dst: Location) -> None:
    """Refuse options of one side that contradict each other, and one credential that would be for two registries.

    Raises:
        UsageError: there are such.
    """
    for side in ("SRC", "DEST"):
        options_for_side(context.options, side)
    _check_queried_registries(context, src, dst)
    registries = {"src": set(named_registries(src))}
    registries["dest"] = {*named_registries(dst), *(find_queried_registries(context) - registries["src"])}
    shared: set[str] = set()
    for side, those in registries.items():
        if not those and (message := describe_unused_side_options(side)):
            context.console.info(message)
        if not has_credential(context.options, side):
            shared |= those
    context.check_credentials(shared)


def _check_queried_registries(context: CommandContext, *ends: Location) -> None:
    """Refuse a destination's user name where several registries are asked what they have, which it would be for.

    Raises:
        UsageError: there are several.
    """
    is_given = context.options.get("dest_username") is not None or bool(os.environ.get("OCISTREAM_DEST_USERNAME"))
    registries = find_queried_registries(context) - {end.reference.registry for end in ends if end.reference}
    if is_given and len(registries) > 1:
        msg = f"the destination's user name cannot be for {' and '.join(sorted(registries))} at once"
        raise UsageError(msg, hint="use `ocistream login` for each")


def _check_repositories(src: Location, dst: Location) -> None:
    """Make sure that neither end of a copy of many images names one of them.

    Raises:
        UsageError: one does.
    """
    for end in (src, dst):
        if end.name is not None or (end.reference is not None and not end.is_repository):
            msg = f"{printable(end.text)} is one image, and many are to be copied"
            raise UsageError(msg, hint="leave the tag, digest or name away, or --all-tags and --tags")


def _untagged_hint(src: Location, dst: Location) -> str:
    """Say what to do with images that have no tag."""
    if dst.reference is None:
        return "leave --all-tags away: without it all images are copied, whatever their names are"
    kind = "oci" if is_directory(src) else "oci-archive"
    source = printable(src.text if src.kind != "path" else f"{kind}:{src.text}")
    return f"copy them one by one, by digest: `ocistream copy {source}:DIGEST {printable(dst.text)}:TAG`"


def named_registries(location: Location) -> Collection[str]:
    """Give the registry that an end names, or nothing."""
    return () if location.reference is None else (location.reference.registry,)


def select_single_image(roots: Sequence[Root]) -> Sequence[Root]:
    """Choose the one image there is, as `only_image`, and say how `copy` is told which one if there are several.

    Raises:
        NotFoundError, UsageError: as `only_image`.
    """
    try:
        return select_only_image(roots)
    except UsageError as error:
        candidates = [root for root in roots if not root.is_stray] or list(roots)
        hint = f"choose one, as in oci:DIR:NAME or oci-archive:FILE:NAME: {format_image_names(candidates)}"
        raise UsageError(error.message, hint=hint) from error
