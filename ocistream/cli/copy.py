"""`ocistream copy`: an image from any end to any end."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ocistream.cli.destinations import apart, every_tag, matching, tagged, under_own_tag
from ocistream.cli.exclusions import leave_out, leaving_options, registries_asked
from ocistream.cli.locations import parse_named_end
from ocistream.cli.options import (
    cache_option,
    compression_options,
    credential_options,
    memory_option,
    referrers_option,
    referrers_wanted,
    transfer_options,
    upload_options,
    via_options,
)
from ocistream.cli.platform import default_platform, platform_choice, platform_option
from ocistream.cli.sides import has_credential, options_of, side_options, without_effect
from ocistream.cli.split import split_option, split_size
from ocistream.cli.standard_streams import stdout_end
from ocistream.cli.transfers import mount_sources, move, renamed
from ocistream.errors import UsageError
from ocistream.layout.index import names_there, only_image, some_images
from ocistream.oci.reference import printable
from ocistream.stores import Want, is_directory, open_sink, open_source

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from ocistream.cli.session import Session
    from ocistream.oci.graph import Root
    from ocistream.oci.reference import Reference
    from ocistream.stores import End
    from ocistream.transfer.interfaces import Sink, Source


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
@leaving_options
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
    session: Session,
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
        _copy_via(session, source, destination, platforms, (via, via_program), many=all_tags or bool(globs))
        return
    src, dst = parse_named_end(source), stdout_end(parse_named_end(destination))
    session.check_result_apart(src, dst)
    split = split_size(session, dst)
    _check_sides(session, src, dst)
    mount_from = mount_sources(session.options["mount_from"], dst.reference.registry if dst.reference else None)
    # A docker-archive has one image a name.
    default = default_platform() if dst.kind == "docker-archive" else None
    choice = platform_choice(platforms, default)
    want = Want(the_image, choice, int(session.options["max_ratio"]), referrers=referrers_wanted(session))
    leaving = leave_out(session, choice, dst, src=src)
    target: Callable[[Root], Reference] | None = None
    if all_tags or globs:
        _check_many(src, dst)
        choose = matching(globs)
        select = tagged(choose) if globs else every_tag(choose, _without_tag(src, dst))
        if dst.reference is not None:
            target = under_own_tag(dst.reference)
            select = apart(target, select)
        want = replace(want, select=select, tags=choose)
    elif dst.kind != "docker" and dst.name is None:
        want = replace(want, select=some_images)

    def open_ends() -> tuple[Source, Sink]:
        session.check_push(dst.reference)
        opened = open_source(src, session.surroundings("SRC", named=registries_of(src)), want)
        try:
            around = session.surroundings("DEST", named=registries_of(dst))
            return opened, open_sink(dst, replace(around, mount_from=mount_from, target=target, split=split))
        except BaseException:
            opened.close()
            raise

    def label(root: Root) -> str:
        if target is not None:
            return target(root).name
        if dst.reference is not None:
            return dst.reference.name
        return root.name or root.origin or src.text

    move(session, open_ends, label, of=src, to=dst, rename=renamed(dst) if dst.name else None, leave_out=leaving)


def _copy_via(
    session: Session,
    source: str,
    destination: str,
    platforms: tuple[str, ...],
    via: tuple[str, str],
    *,
    many: bool,
) -> None:
    from ocistream.cli.via import copy_via
    from ocistream.remote.command import check_safe

    if many:
        msg = "--all-tags and --tags cannot be had with --via"
        raise UsageError(msg, hint="copy the images one by one")
    check_safe(destination)
    options_of(session.options, "SRC")
    src, dst = parse_named_end(source), parse_named_end(destination)
    session.check_result_apart(src)
    if src.reference is None and (message := without_effect("src")):
        session.console.note(message)
    select = the_image if dst.kind == "docker" or dst.name is not None else some_images
    choice = platform_choice(platforms, None)
    want = Want(select, choice, int(session.options["max_ratio"]), referrers=referrers_wanted(session))
    copy_via(session, src, destination, want, via)


def _check_sides(session: Session, src: End, dst: End) -> None:
    """Refuse options of one side that contradict each other, and one credential that would be for two registries.

    Raises:
        UsageError: there are such.
    """
    for side in ("SRC", "DEST"):
        options_of(session.options, side)
    _check_asked(session, src, dst)
    registries = {"src": set(registries_of(src))}
    registries["dest"] = {*registries_of(dst), *(registries_asked(session) - registries["src"])}
    shared: set[str] = set()
    for side, those in registries.items():
        if not those and (message := without_effect(side)):
            session.console.note(message)
        if not has_credential(session.options, side):
            shared |= those
    session.check_credentials(shared)


def _check_asked(session: Session, *ends: End) -> None:
    """Refuse a destination's user name where several registries are asked what they have, which it would be for.

    Raises:
        UsageError: there are several.
    """
    is_given = session.options.get("dest_username") is not None or bool(os.environ.get("OCISTREAM_DEST_USERNAME"))
    registries = registries_asked(session) - {end.reference.registry for end in ends if end.reference}
    if is_given and len(registries) > 1:
        msg = f"the destination's user name cannot be for {' and '.join(sorted(registries))} at once"
        raise UsageError(msg, hint="use `ocistream login` for each")


def _check_many(src: End, dst: End) -> None:
    """Make sure that neither end of a copy of many images names one of them.

    Raises:
        UsageError: one does.
    """
    for end in (src, dst):
        if end.name is not None or (end.reference is not None and not end.is_repository):
            msg = f"{printable(end.text)} is one image, and many are to be copied"
            raise UsageError(msg, hint="leave the tag, digest or name away, or --all-tags and --tags")


def _without_tag(src: End, dst: End) -> str:
    """Say what to do with images that have no tag."""
    if dst.reference is None:
        return "leave --all-tags away: without it all images are copied, whatever their names are"
    kind = "oci" if is_directory(src) else "oci-archive"
    source = printable(src.text if src.kind != "path" else f"{kind}:{src.text}")
    return f"copy them one by one, by digest: `ocistream copy {source}:DIGEST {printable(dst.text)}:TAG`"


def registries_of(end: End) -> Collection[str]:
    """Give the registry that an end names, or nothing."""
    return () if end.reference is None else (end.reference.registry,)


def the_image(roots: Sequence[Root]) -> Sequence[Root]:
    """Choose the one image there is, as `only_image`, and say how `copy` is told which one if there are several.

    Raises:
        NotFoundError, UsageError: as `only_image`.
    """
    try:
        return only_image(roots)
    except UsageError as error:
        candidates = [root for root in roots if not root.stray] or list(roots)
        hint = f"choose one, as in oci:DIR:NAME or oci-archive:FILE:NAME: {names_there(candidates)}"
        raise UsageError(error.what, hint=hint) from error
