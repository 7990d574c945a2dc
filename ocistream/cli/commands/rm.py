"""`ocistream rm`: remove images from a layout directory, or from registries, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ocistream.api.options import SELECTS_CONTENT
from ocistream.cli.options import Option, RunOptions, command, credential_options, network_options, options_of
from ocistream.cli.parameter_types import FilePath, parse_location_argument
from ocistream.cli.report import format_result_line
from ocistream.cli.sides import check_registries
from ocistream.errors import InvalidNameError, NotFoundError, UsageError
from ocistream.locations import layout_path_of, parse_location
from ocistream.oci.reference import parse_reference, printable
from ocistream.sizes import format_count
from ocistream.streams import paths

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ocistream.cli.context import CommandContext
    from ocistream.oci.reference import Reference


@command(
    click.Argument(["texts"], metavar="{DIR NAME|TAG|DIGEST... | IMAGE...}", nargs=-1, required=True, type=FilePath()),
    Option(
        ["--by-digest"],
        is_flag=True,
        not_configurable=SELECTS_CONTENT,
        help="If a registry cannot delete a tag, delete its manifest, and so all tags of that manifest.",
    ),
    options_of(RunOptions, "dry_run", help_text="Print what would be removed; remove nothing."),
    credential_options,
    network_options,
)
def rm(context: CommandContext, texts: tuple[str, ...], *, by_digest: bool) -> None:
    """Remove images from the layout directory DIR, or from registries.

    In a layout, NAME is a full name or its short form; a digest removes all names of that image. Referrers that lose
    their subject are removed too. Then run `ocistream gc DIR` to delete the blobs.

    In a registry, IMAGE is HOST/REPO:TAG, which deletes the tag, or HOST/REPO@DIGEST, which deletes the manifest with
    all its tags. The registry deletes the blobs later. If one image does not exist, nothing is removed. Removed images
    are printed as NAME@sha256:...

    \b
    ocistream rm images/ nginx:1 example.com/app:1 && ocistream gc images/
    ocistream rm registry.example.com/app:1 registry.example.com/app:2
    """
    location = parse_location(texts[0])
    # Without a tag or digest, a name that may be a directory or a repository is never an image to delete.
    if location.reference is not None and not location.is_repository:
        _remove_from_registries(context, [_parse_image(text) for text in texts], by_digest=by_digest)
        return
    if by_digest:
        msg = "--by-digest is for images in a registry"
        raise UsageError(msg, hint="in a layout, a digest removes all names of the image")
    if location.reference is not None:
        # Raises LocalDiskError if the path cannot be checked, so that it may exist.
        paths.is_existing_path(location.text)
        shown = printable(location.text)
        if location.text.startswith(("docker://", f"{location.reference.registry}/")):
            msg = f"{shown}: no such directory, and a complete repository is never deleted"
            hint = f"write an image as HOST/REPO:TAG or HOST/REPO@DIGEST; `ocistream tags {shown}` lists the tags"
            raise NotFoundError(msg, hint=hint)
        msg = f"{shown}: no such directory"
        raise NotFoundError(msg, hint="an image in a registry needs a tag or a digest: HOST/REPO:TAG")
    names = texts[1:] if location.name is None else (location.name, *texts[1:])
    _remove_from_layout(context, layout_path_of(location), names)


def _parse_image(text: str) -> Reference:
    location = parse_location_argument(text)
    reference = location.reference
    if reference is None or location.is_repository:
        msg = f"{printable(text)!r} is not an image in a registry, as the first one is"
        raise InvalidNameError(msg, hint="write HOST/REPO:TAG or HOST/REPO@DIGEST")
    # Only a tag that was written is deleted.
    return parse_reference(text, default_tag=False)


def _remove_from_layout(context: CommandContext, path: Path, names: Sequence[str]) -> None:
    from ocistream.layout.directory import LayoutDirectory
    from ocistream.layout.index import entry_name_of
    from ocistream.layout.removal import remove_images

    if not names:
        msg = "Missing argument 'NAME'."
        raise UsageError(msg, hint="`ocistream tags DIR` lists the names; to delete everything, delete the directory")
    # The blobs stay for `gc`, which knows what a concurrent pull may still need.
    dry_run = context.run_options.dry_run
    removed = remove_images(LayoutDirectory(path), names, dry_run=dry_run)
    for entry in (*removed.images, *removed.referrers):
        name = entry_name_of(entry)
        click.echo(f"{name}@{entry.digest}" if name else entry.digest)
    summary = format_count(len(removed.images), "image")
    if removed.referrers:
        summary += f", and {len(removed.referrers)} that referred to " + ("it" if len(removed.images) == 1 else "them")
    message = f"would remove {summary}" if dry_run else f"removed {summary}; run `ocistream gc` to delete unused blobs"
    context.console.info(message)


def _remove_from_registries(context: CommandContext, references: Sequence[Reference], *, by_digest: bool) -> None:
    from ocistream.registry.deletion import delete_images

    dry_run = context.run_options.dry_run
    registries = {reference.registry for reference in references}
    check_registries(context.sides, registries)
    open_context = context.build_open_context(registries=registries)
    for image in delete_images(open_context.registries(), references, by_digest=by_digest, dry_run=dry_run):
        click.echo(format_result_line(image.reference.name, image.digest, None))
        verb = "would delete" if dry_run else "deleted"
        what = "the manifest with all its tags" if image.with_all_tags else "the tag"
        if dry_run and by_digest and not image.with_all_tags:
            # Only a DELETE shows whether the registry deletes tags.
            what += ", or its manifest with all its tags if the registry does not delete tags"
        context.console.info(f"{verb} {what}: {image.reference.name}")
