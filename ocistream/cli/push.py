"""`ocistream push`: the images of an archive or layout, into a registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ocistream.cli.destinations import apart
from ocistream.cli.locations import parse_image
from ocistream.cli.options import (
    compression_options,
    credential_options,
    referrers_option,
    referrers_wanted,
    transfer_options,
    upload_options,
)
from ocistream.cli.platform import platform_choice, platform_option
from ocistream.cli.transfers import mount_sources, move
from ocistream.errors import InvalidNameError, UsageError
from ocistream.layout.all_images import all_images
from ocistream.layout.index import has_full_name, images_named, only_image, some_images
from ocistream.oci.reference import Reference, parse_reference, parse_registry, printable
from ocistream.stores import Want, open_sources, parse_end

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ocistream.cli.session import Session
    from ocistream.layout.index import Selection
    from ocistream.oci.graph import Root
    from ocistream.transfer.interfaces import Sink, Source

_ARCHIVE_IS_INPUT = "the archive is -i PATH, and IMAGE is where it goes, such as HOST/REPOSITORY:TAG"


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
    session: Session,
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
    ends = [parse_end(path, bare_is_path=True) for path in paths or ("-",)]
    session.check_result_apart(*ends)
    if image is not None:
        if len(chosen) > 1:
            msg = "one IMAGE can stand for one --image only"
            raise UsageError(msg, hint="push several with --to HOST[/PREFIX]")
        reference = parse_image(image, _ARCHIVE_IS_INPUT)
        target, early, registry = _always(reference), reference, reference.registry
        select = images_named(chosen) if chosen else only_image
    else:
        registry = _registry_of(prefix or "")
        target, early = _permitted(session, _under(prefix or "")), None
        select = apart(target, _with_full_names(chosen))
    choice = platform_choice(platforms, None)
    want = Want(select, choice, int(session.options["max_ratio"]), referrers=referrers_wanted(session))
    mounts = mount_sources(session.options["mount_from"], registry)
    around = session.surroundings(named=[registry])

    def open_ends() -> tuple[Source, Sink]:
        from ocistream.registry.destination import RegistrySink

        session.check_push(early)
        source = open_sources(ends, around, want)
        try:
            sink = RegistrySink(around.transport(), target, early=early, mount_from=mounts, records=session.records())
        except BaseException:
            source.close()
            raise
        return source, sink

    move(session, open_ends, lambda root: target(root).name, of=ends[0] if len(ends) == 1 else None)


def _always(reference: Reference) -> Callable[[Root], Reference]:
    return lambda _: reference


def _under(prefix: str) -> Callable[[Root], Reference]:
    """Give the way to name images under `HOST[/PREFIX]`: each keeps its own repository and tag.

    Raises:
        InvalidNameError: the prefix is malformed.
    """
    host, _, path = prefix.rstrip("/").partition("/")
    registry = _registry_of(prefix)
    if {":", "@"} & set(path):
        msg = f"--to {printable(prefix)!r} has a tag or a digest"
        hint = f"write HOST[/PREFIX]: images keep their own tags; to push one by another name, push {printable(prefix)}"
        raise InvalidNameError(msg, hint=hint)
    if parse_reference(f"{registry}/x/y").registry != registry:
        # In an image's name it would be a part of a repository on Docker Hub, and that is where it would go.
        msg = f"--to {printable(host)!r} does not look like a registry's host"
        raise InvalidNameError(msg, hint=f"write its port as well, such as {printable(host)}:443, or its full domain")

    def target(root: Root) -> Reference:
        own = parse_reference(root.name or "")
        repository = own.repository.removeprefix("library/") if own.registry == "docker.io" else own.repository
        return parse_reference(f"{registry}/{path + '/' if path else ''}{repository}:{own.tag}")

    if path:
        parse_reference(f"{registry}/{path}/x")
    return target


def _registry_of(prefix: str) -> str:
    """Give the registry of `HOST[/PREFIX]`.

    Raises:
        InvalidNameError: there is none.
    """
    return parse_registry(prefix.partition("/")[0])


def _permitted(session: Session, target: Callable[[Root], Reference]) -> Callable[[Root], Reference]:
    """Make sure that nothing is pushed where a configuration forbids it; what this gives raises AuthenticationError."""

    def permitted(root: Root) -> Reference:
        reference = target(root)
        session.check_push(reference)
        return reference

    return permitted


def _with_full_names(chosen: Sequence[str]) -> Selection:
    """Return a selection of the images chosen by --image, or else of all, by those of their names that are full."""
    select, which = (
        (images_named(chosen, every_name=True), "chosen") if chosen else (some_images, "in the archive or layout")
    )
    hint = (
        "--to needs a full name for every image; push this one alone: `ocistream push HOST/REPOSITORY:TAG --image NAME`"
    )
    return lambda roots: all_images(select(roots), has_full_name, "full name", hint, which=which)
