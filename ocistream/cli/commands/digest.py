"""`ocistream digest`: print the digest of one image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ocistream.api.options import CopyOptions
from ocistream.cli.options import command, credential_options, network_options, options_of
from ocistream.cli.parameter_types import FilePath, parse_location_argument
from ocistream.oci.platforms import parse_platform_choice

if TYPE_CHECKING:
    from ocistream.cli.context import CommandContext


@command(
    click.Argument(["text"], metavar="LOCATION", type=FilePath()),
    options_of(CopyOptions, "platforms", help_text="One platform of an index.  [default: the index itself]"),
    options_of(CopyOptions, "max_ratio"),
    credential_options,
    network_options,
)
def digest(context: CommandContext, text: str) -> None:
    """Print the digest of the image at LOCATION: an image in a registry, a layout, or an archive (- is stdin).

    With --platform, this is the digest of the manifest for that platform. A name without a tag means the tag latest. An
    image of a docker-archive has no digest; `ocistream inspect --format '{imageId}'` prints its image ID.

    \b
    ocistream digest nginx:1
    ocistream digest --platform linux/arm64 nginx:1
    ocistream digest oci:images:app
    """
    from ocistream.api.inspection import find_digest

    location = parse_location_argument(text)
    open_context = context.build_open_context(registries=location.registries)
    click.echo(find_digest(location, open_context, parse_platform_choice(context.copy_options.platforms)))
