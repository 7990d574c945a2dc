"""`ocistream push`: push images of an archive or layout to a registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ocistream.api.copy_plan import plan_copy, plan_copy_to_prefix
from ocistream.api.options import SELECTION, SELECTS_CONTENT, CopyOptions
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
from ocistream.locations import Location, parse_local_location

if TYPE_CHECKING:
    from ocistream.cli.context import CommandContext

_INPUT_HINT = "use -i PATH for the archive; IMAGE is the destination, such as HOST/REPOSITORY:TAG"


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
    section=SELECTION,
    help="Archive or layout to push; repeatable for volumes.  [default: stdin]",
)
@options(CopyOptions, "images")
@click.option(
    "--to",
    "prefix",
    cls=Option,
    metavar="HOST[/PREFIX]",
    no_default=SELECTS_CONTENT,
    section=SELECTION,
    help="Push each image to HOST under its own repository and tag.",
)
@platform_option("all")
@options(CopyOptions, "no_referrers")
@compression_options("`docker save` layers become gzip.")
@upload_options
@credential_options
@transfer_options
def push(context: CommandContext, image: str | None, paths: tuple[str, ...], prefix: str | None) -> None:
    """Push the images of an archive to a registry.

    Blobs that the registry has are not sent. Manifests and tags are pushed last. Re-run an interrupted push to resume
    it. Volumes (`pull --split`) may come in any order, together or one after the other.

    \b
    ssh build ocistream pull app:2 | ocistream push localhost:5000/app:2
    ocistream push -i app.tar --to registry.example.com/mirror
    ocistream push -i app.000.tar -i app.001.tar localhost:5000/app:2
    """
    if (image is None) == (prefix is None):
        msg = "push needs a destination: either IMAGE or --to HOST[/PREFIX]"
        hint = "IMAGE (HOST/REPOSITORY:TAG) names one image; with --to, each image keeps its name from the archive"
        raise UsageError(msg, hint=hint)
    archives = [parse_local_location(path) for path in paths or ("-",)]
    context.check_result_path(*archives)
    if image is None:
        plan = plan_copy_to_prefix(archives, prefix or "", context.copy)
    else:
        if len(context.copy.images) > 1:
            msg = "IMAGE names one image, but --image names several"
            raise UsageError(msg, hint="use --to HOST[/PREFIX] to push several")
        destination = Location("docker", image, reference=parse_image(image, _INPUT_HINT))
        plan = plan_copy(archives, destination, context.copy, select_one=select_only_image)
    run_plan(context, plan)
