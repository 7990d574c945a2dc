"""`ocistream copy`: copy images between registries, layouts and archives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ocistream.api.copy_plan import plan_copy
from ocistream.api.options import SELECTS_CONTENT, CopyOptions
from ocistream.cli.options import (
    OmissionOptions,
    Option,
    RunOptions,
    command,
    compression_options,
    credential_options,
    options,
    platform_option,
    side_options,
    transfer_options,
    upload_options,
)
from ocistream.cli.parameter_types import FilePath, parse_location_argument
from ocistream.cli.standard_streams import resolve_stdout
from ocistream.cli.transfers import run_plan

if TYPE_CHECKING:
    from ocistream.cli.context import CommandContext


@command
@click.argument("source", metavar="SRC", type=FilePath())
@click.argument("destination", metavar="DST", type=FilePath())
@options(CopyOptions, "all_tags", "tags")
@platform_option("all, the index as it is; into a docker-archive, linux on this machine's architecture")
@options(CopyOptions, "split")
@options(OmissionOptions)
@click.option(
    "--via",
    cls=Option,
    metavar="COMMAND",
    no_default=SELECTS_CONTENT,
    help="Have an ocistream behind COMMAND (`ssh host`, `kubectl exec -i pod --`) write DST there; send only "
    "what it lacks.",
)
@click.option(
    "--via-program",
    cls=Option,
    metavar="PROGRAM",
    default="ocistream",
    show_default=True,
    help="What runs ocistream there: its path, or `python3 -m ocistream`.",
)
@options(CopyOptions, "no_referrers")
@compression_options("To stdout, one layer at a time waits in a temporary file: its size has to be written first.")
@upload_options
@credential_options
@side_options
@options(RunOptions, "memory", "cache")
@transfer_options
def copy(context: CommandContext, source: str, destination: str, *, via: str | None, via_program: str) -> None:
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
        from ocistream.cli.commands.copy_via import copy_via

        copy_via(context, source, destination, (via, via_program))
        return
    locations = parse_location_argument(source), resolve_stdout(parse_location_argument(destination))
    context.check_result_path(*locations)
    run_plan(context, plan_copy([locations[0]], locations[1], context.copy))
