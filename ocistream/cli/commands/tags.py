"""`ocistream tags`: list the tags of a repository, or the names of an archive or layout."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from ocistream.api.options import CopyOptions
from ocistream.cli.console import escape_ci_commands, sanitize_line
from ocistream.cli.options import command, credential_options, json_option, network_options, options_of
from ocistream.cli.parameter_types import FilePath, parse_location_argument

if TYPE_CHECKING:
    from ocistream.cli.context import CommandContext


@command(
    click.Argument(["text"], metavar="LOCATION", type=FilePath()),
    json_option("Print one JSON document."),
    options_of(CopyOptions, "max_ratio"),
    credential_options,
    network_options,
)
def tags(context: CommandContext, text: str, *, as_json: bool) -> None:
    """List the tags of a repository in a registry, one per line, in the order of the registry.

    For a layout or an archive (- is stdin), list the names of its images. If a registry does not list all its tags,
    print those that it lists, with exit code 8.

    \b
    ocistream tags nginx
    ocistream tags registry.example.com/app --json
    ocistream tags app.tar
    """
    from ocistream.api.inspection import list_names

    location = parse_location_argument(text)
    open_context = context.build_open_context(registries=location.registries)
    listed = list_names(location, open_context)
    if as_json:
        click.echo(escape_ci_commands(json.dumps(listed.document, indent=2)))
    else:
        click.echo("".join(f"{sanitize_line(name)}\n" for name in listed.names), nl=False)
    if listed.incomplete_reason:
        raise listed.incomplete_error()
