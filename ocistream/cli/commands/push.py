"""`ocistream push`: push images of an archive or layout to a registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ocistream.cli.options import (
    choose_referrers_mode,
    compression_options,
    credential_options,
    parse_platform_choice,
    platform_option,
    referrers_option,
    transfer_options,
    upload_options,
)
from ocistream.cli.parameter_types import parse_image
from ocistream.cli.transfers import parse_mount_sources, require_distinct_targets, run_transfer
from ocistream.errors import InvalidNameError, UsageError
from ocistream.layout.image_selection import select_all_images
from ocistream.layout.index import has_full_name, select_existing_images, select_named_images, select_only_image
from ocistream.locations import Selection, open_sources, parse_location
from ocistream.oci.reference import Reference, parse_reference, parse_registry, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ocistream.cli.context import CommandContext
    from ocistream.layout.index import ImageSelector
    from ocistream.oci.graph import Root
    from ocistream.transfer.interfaces import Destination, Source

_INPUT_HINT = "the archive is -i PATH, and IMAGE is where it goes, such as HOST/REPOSITORY:TAG"


@click.command()
@click.argument("image", required=False)
@click.option(
    "-i",
    "--input",
    "paths",
    multiple=True,
    metavar="PATH",
    help="The archive or layout; repeats, for volumes and other archives of the same images.  [default: stdin]",
)
@click.option("--image", "chosen", multiple=True, metavar="NAME", help="Which of its images; repeats with --to.")
@click.option(
    "--to", "prefix", metavar="HOST[/PREFIX]", help="Push every image to HOST under its own repository and tag."
)
@platform_option("all that is there")
@referrers_option
@compression_options("The plain layers of a `docker save` become gzip without being asked to.")
@upload_options
@credential_options
@transfer_options
def push(
    context: CommandContext,
    image: str | None,
    paths: tuple[str, ...],
    chosen: tuple[str, ...],
    prefix: str | None,
    platforms: tuple[str, ...],
) -> None:
    """Push the images of an archive to a registry, in one pass, without temporary space.

    What the registry has is not sent. No manifest and no tag appears before every blob it needs is there.

    One that was killed goes on when the same command is run again: what the registry has of a blob is not sent again,
    where it can say how much that is.

    Volumes (`pull --split`) may be given in any order, all at once or one after the other.

    From a pipe whose index comes last, blobs of images that are not chosen are sent too: it is not known yet whose
    they are. From a file they are not.

    \b
    ssh build ocistream pull app:2 | ocistream push localhost:5000/app:2
    ocistream push -i app.tar --to registry.example.com/mirror
    ocistream push -i app.000.tar -i app.001.tar localhost:5000/app:2
    """
    if (image is None) == (prefix is None):
        msg = "give either one IMAGE to push to, or --to HOST[/PREFIX]"
        hint = (
            "IMAGE, such as HOST/REPOSITORY:TAG, is for one; with --to each keeps the name that it has in the archive"
        )
        raise UsageError(msg, hint=hint)
    locations = [parse_location(path, bare_is_path=True) for path in paths or ("-",)]
    context.check_result_path(*locations)
    if image is not None:
        if len(chosen) > 1:
            msg = "one IMAGE can stand for one --image only"
            raise UsageError(msg, hint="push several with --to HOST[/PREFIX]")
        reference = parse_image(image, _INPUT_HINT)
        target, early_target, registry = _build_fixed_target(reference), reference, reference.registry
        select = select_named_images(chosen) if chosen else select_only_image
    else:
        registry = _parse_prefix_registry(prefix or "")
        target, early_target = _check_each_push(context, _build_prefix_target(prefix or "")), None
        select = require_distinct_targets(target, _select_full_names(chosen))
    choice = parse_platform_choice(platforms, None)
    selection = Selection(select, choice, int(context.options["max_ratio"]), referrers=choose_referrers_mode(context))
    mount_from = parse_mount_sources(context.options["mount_from"], registry)
    open_context = context.build_open_context(registries=[registry])

    def open_ends() -> tuple[Source, Destination]:
        from ocistream.registry.destination import RegistryDestination

        context.check_push(early_target)
        source = open_sources(locations, open_context, selection)
        try:
            destination = RegistryDestination(
                open_context.client(),
                target,
                early_target=early_target,
                mount_from=mount_from,
                records=context.upload_records(),
                jobs=open_context.jobs,
                cancelled=open_context.cancelled,
            )
        except BaseException:
            source.close()
            raise
        return source, destination

    run_transfer(
        context,
        open_ends,
        lambda root: target(root).name,
        source_location=locations[0] if len(locations) == 1 else None,
    )


def _build_fixed_target(reference: Reference) -> Callable[[Root], Reference]:
    return lambda _: reference


def _build_prefix_target(prefix: str) -> Callable[[Root], Reference]:
    """Return the function that names images under `HOST[/PREFIX]`: each keeps its repository and tag."""
    host, _, path = prefix.rstrip("/").partition("/")
    registry = _parse_prefix_registry(prefix)
    if {":", "@"} & set(path):
        msg = f"--to {printable(prefix)!r} has a tag or a digest"
        hint = f"write HOST[/PREFIX]: images keep their own tags; to push one by another name, push {printable(prefix)}"
        raise InvalidNameError(msg, hint=hint)
    if parse_reference(f"{registry}/x/y").registry != registry:
        # In an image name this host would be a part of a repository on Docker Hub, and the images would go there.
        msg = f"--to {printable(host)!r} does not look like a registry's host"
        raise InvalidNameError(msg, hint=f"write its port as well, such as {printable(host)}:443, or its full domain")

    def target(root: Root) -> Reference:
        reference = parse_reference(root.name or "")
        repository = (
            reference.repository.removeprefix("library/") if reference.registry == "docker.io" else reference.repository
        )
        return parse_reference(f"{registry}/{path + '/' if path else ''}{repository}:{reference.tag}")

    if path:
        parse_reference(f"{registry}/{path}/x")
    return target


def _parse_prefix_registry(prefix: str) -> str:
    """Return the registry of `HOST[/PREFIX]`."""
    return parse_registry(prefix.partition("/")[0])


def _check_each_push(context: CommandContext, target: Callable[[Root], Reference]) -> Callable[[Root], Reference]:
    """Return `target` with a check: it raises AuthenticationError if the configuration forbids the push."""

    def permitted(root: Root) -> Reference:
        reference = target(root)
        context.check_push(reference)
        return reference

    return permitted


def _select_full_names(chosen: Sequence[str]) -> ImageSelector:
    """Return a selection of the images of --image, else of all images, that requires full names."""
    select, description = (
        (select_named_images(chosen, all_names=True), "chosen")
        if chosen
        else (select_existing_images, "in the archive or layout")
    )
    hint = (
        "--to needs a full name for every image; push this one alone: `ocistream push HOST/REPOSITORY:TAG --image NAME`"
    )
    return lambda roots: select_all_images(select(roots), has_full_name, "full name", hint, description=description)
