"""`ocistream copy`: copy images between registries, layouts and archives."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from ocistream.api.copy_plan import plan_copy
from ocistream.api.options import SELECTS_CONTENT, CopyOptions
from ocistream.cli.options import (
    MISSING_BLOBS,
    OmissionOptions,
    Option,
    RunOptions,
    all_platforms_option,
    command,
    compression_options,
    credential_options,
    identity_options,
    options_of,
    platform_option,
    side_options,
    transfer_options,
    upload_options,
)
from ocistream.cli.parameter_types import FilePath, parse_location_argument
from ocistream.cli.standard_streams import resolve_stdout
from ocistream.cli.transfers import run_plan
from ocistream.errors import NotFoundError
from ocistream.oci.reference import printable
from ocistream.streams.paths import exists

if TYPE_CHECKING:
    from ocistream.cli.context import CommandContext
    from ocistream.locations import Location


@command(
    click.Argument(["source"], metavar="SRC", type=FilePath()),
    click.Argument(["destination"], metavar="DST", type=FilePath()),
    options_of(CopyOptions, "all_tags", "tags"),
    platform_option("all; docker-archive: linux/ARCH"),
    all_platforms_option,
    options_of(CopyOptions, "split"),
    options_of(OmissionOptions),
    Option(
        ["--via"],
        metavar="COMMAND",
        not_configurable=SELECTS_CONTENT,
        section=MISSING_BLOBS,
        help="Run ocistream through COMMAND (`ssh host`), write DST there, and send only missing blobs.",
    ),
    Option(
        ["--via-program"],
        metavar="PROGRAM",
        default="ocistream",
        show_default=True,
        section=MISSING_BLOBS,
        help="Program for --via to run: a name, a path, or `python3 -m ocistream`.",
    ),
    options_of(CopyOptions, "no_referrers", "require_signature"),
    identity_options,
    compression_options("To stdout, it needs temporary disk space in TMPDIR."),
    upload_options,
    credential_options,
    side_options,
    options_of(RunOptions, "memory", "cache"),
    transfer_options,
    options_of(RunOptions, "dry_run"),
)
def copy(context: CommandContext, source: str, destination: str, *, via: str | None, via_program: str) -> None:
    """Copy images between registries, layouts and archives.

    SRC and DST are images, paths, `oci:DIR[:NAME]`, `oci-archive:FILE[:NAME]`, `docker-archive:FILE[:NAME]`, or - for
    an archive on stdin or stdout. Text is a path if it starts with /, ./, ../ or ~/, if it ends in / or .tar (or .tgz,
    .tar.gz, .tar.zst), or if such a file or directory exists. Other text is an image, and docker://NAME always is. A
    new path becomes an OCI archive, or a layout if it ends in /.

    Within one registry, blobs are mounted, not sent. Uncompressed layers of a docker-archive or `docker save` become
    gzip. With --via, the remote side uses its own credentials and CAs for DST. --have, --base and --only need an OCI
    archive or a layout as DST.

    Registry and TLS options apply to both sides, --src-... and --dest-... to one. A user name is for one registry: with
    two, use --src-username and --dest-username.

    \b
    ocistream copy nginx:1 registry.example.com/mirror/nginx:1
    ocistream copy --tags '1.*' nginx registry.example.com/mirror/nginx
    ocistream copy nginx:1 registry.local:5000/nginx:1 --dest-ca-cert ca.pem
    ocistream copy app:2 localhost:5000/app:2 --via 'ssh host'
    """
    if via is not None:
        from ocistream.cli.commands.copy_via import copy_via

        copy_via(context, source, destination, (via, via_program))
        return
    locations = (
        parse_location_argument(source),
        resolve_stdout(parse_location_argument(destination, is_destination=True)),
    )
    _check_no_pattern(*locations)
    context.check_result(*locations)
    run_plan(context, plan_copy([locations[0]], locations[1], context.copy_options))


def _check_no_pattern(source: Location, destination: Location) -> None:
    """Raise NotFoundError if SRC is a pattern in quotes, such as the volumes `app.*.tar`: only `push -i` takes it."""
    if source.path is None or "*" not in source.text or exists(source.path):
        return
    hint = "copy takes one SRC: write the name of one file"
    if destination.reference is not None:
        pattern = shlex.quote(printable(str(source.path), 1024))
        hint = f"`ocistream push -i {pattern} {printable(destination.text)}` takes a pattern in quotes"
    msg = f"cannot read {printable(source.text, 1024)}: no such file or directory"
    raise NotFoundError(msg, hint=hint)
