"""`ocistream push`: the images of an archive or layout, into a registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ocistream.cli.moving import move
from ocistream.cli.options import Session, credential_options, platform_choice, platform_option, transfer_options
from ocistream.errors import InvalidNameError, UsageError
from ocistream.reference import Reference, parse_reference, parse_registry
from ocistream.stores import Want, open_source, parse_end
from ocistream.stores.index import images_named, only_image

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ocistream.graph import Root
    from ocistream.interfaces import Sink, Source


@click.command()
@click.argument("image", required=False)
@click.option("-i", "--input", "path", default="-", metavar="PATH", help="The archive or layout.  [default: stdin]")
@click.option("--image", "chosen", multiple=True, metavar="NAME", help="Which of its images; repeats with --to.")
@click.option("--to", "prefix", metavar="HOST[/PREFIX]", help="Push every named image there, under its own name.")
@platform_option("all that is there")
@credential_options("")
@transfer_options
def push(
    session: Session,
    image: str | None,
    path: str,
    chosen: tuple[str, ...],
    prefix: str | None,
    platforms: tuple[str, ...],
) -> None:
    """Push the images of an archive to a registry, in one pass, without temporary space.

    What the registry has is not sent. No manifest and no tag appears before every blob it needs is there.

    \b
    ssh build ocistream pull app:2 | ocistream push localhost:5000/app:2
    ocistream push -i app.tar --to registry.example.com/mirror
    """
    if (image is None) == (prefix is None):
        msg = "give either one IMAGE to push to, or --to HOST[/PREFIX]"
        raise UsageError(msg)
    if image is not None:
        if len(chosen) > 1:
            msg = "one IMAGE can stand for one --image only"
            raise UsageError(msg, hint="push several with --to HOST[/PREFIX]")
        reference = parse_reference(image)
        target, early = _always(reference), reference
    else:
        target, early = _under(prefix or ""), None
    select = images_named(chosen) if chosen else only_image if image is not None else named_images
    end = parse_end(path)
    if end.kind == "docker":
        # What follows -i is a path, whatever it looks like.
        end = parse_end(f"./{path}")
    want = Want(select, platform_choice(platforms, None))
    around = session.surroundings()

    def open_ends() -> tuple[Source, Sink]:
        from ocistream.stores.registry import RegistrySink

        source = open_source(end, around, want)
        return source, RegistrySink(around.transport(), target, early=early)

    move(session, open_ends, lambda root: target(root).name)


def _always(reference: Reference) -> Callable[[Root], Reference]:
    return lambda _: reference


def _under(prefix: str) -> Callable[[Root], Reference]:
    """Give the way to name images under `HOST[/PREFIX]`: each keeps its own repository and tag.

    Raises:
        InvalidNameError: the prefix is malformed.
    """
    host, _, path = prefix.rstrip("/").partition("/")
    registry = parse_registry(host)

    def target(root: Root) -> Reference:
        own = parse_reference(root.name or "")
        repository = own.repository.removeprefix("library/") if own.registry == "docker.io" else own.repository
        return parse_reference(f"{registry}/{path + '/' if path else ''}{repository}:{own.tag}")

    if path:
        parse_reference(f"{registry}/{path}/x")
    return target


def named_images(roots: Sequence[Root]) -> Sequence[Root]:
    """Choose the images that say where they belong.

    Raises:
        UsageError: none does.
    """
    found = [root for root in roots if _has_repository(root)]
    if not found:
        msg = "no image in it has a full name, so --to does not know where they belong"
        raise UsageError(msg, hint="push one with `ocistream push HOST/REPOSITORY:TAG --image NAME`")
    return found


def _has_repository(root: Root) -> bool:
    if root.name is None or not ({":", "/"} & set(root.name)):
        return False
    try:
        return parse_reference(root.name).tag is not None
    except InvalidNameError:
        return False
