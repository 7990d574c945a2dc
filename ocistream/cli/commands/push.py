"""`ocistream push`: push images of an archive or layout to a registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ocistream.api.copy_plan import plan_copy, plan_copy_to_prefix
from ocistream.api.options import SELECTS_CONTENT, CopyOptions
from ocistream.cli.options import (
    Option,
    command,
    compression_options,
    credential_options,
    options,
    platform_option,
    transfer_options,
    upload_options,
)
from ocistream.cli.parameter_types import FilePath, parse_image
from ocistream.cli.transfers import run_plan
from ocistream.errors import UsageError
from ocistream.layout.index import select_only_image
from ocistream.locations import Location, parse_location

if TYPE_CHECKING:
    from ocistream.cli.context import CommandContext

_INPUT_HINT = "the archive is -i PATH, and IMAGE is where it goes, such as HOST/REPOSITORY:TAG"


@command
@click.argument("image", required=False)
@click.option(
    "-i",
    "--input",
    "paths",
    cls=Option,
    type=FilePath(),
    multiple=True,
    metavar="PATH",
    no_default=SELECTS_CONTENT,
    help="The archive or layout; repeats, for volumes and other archives of the same images.  [default: stdin]",
)
@options(CopyOptions, "images")
@click.option(
    "--to",
    "prefix",
    cls=Option,
    metavar="HOST[/PREFIX]",
    no_default=SELECTS_CONTENT,
    help="Push every image to HOST under its own repository and tag.",
)
@platform_option("all that is there")
@options(CopyOptions, "no_referrers")
@compression_options("The plain layers of a `docker save` become gzip without being asked to.")
@upload_options
@credential_options
@transfer_options
def push(context: CommandContext, image: str | None, paths: tuple[str, ...], prefix: str | None) -> None:
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
    archives = [parse_location(path, bare_is_path=True) for path in paths or ("-",)]
    context.check_result_path(*archives)
    if image is None:
        plan = plan_copy_to_prefix(archives, prefix or "", context.copy)
    else:
        if len(context.copy.images) > 1:
            msg = "one IMAGE can stand for one --image only"
            raise UsageError(msg, hint="push several with --to HOST[/PREFIX]")
        destination = Location("docker", image, reference=parse_image(image, _INPUT_HINT))
        plan = plan_copy(archives, destination, context.copy, select_one=select_only_image)
    run_plan(context, plan)
