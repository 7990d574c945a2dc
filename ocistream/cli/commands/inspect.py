"""`ocistream inspect`: show images, layers and tags of a location, as text or JSON."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any, Final

import click

from ocistream.api.options import CopyOptions
from ocistream.cli.console import escape_ci_commands, sanitize_line
from ocistream.cli.options import (
    command,
    credential_options,
    json_option,
    network_options,
    options,
    platform_option,
)
from ocistream.cli.parameter_types import FilePath, parse_location_argument
from ocistream.oci.platforms import parse_platform_choice
from ocistream.oci.reference import printable
from ocistream.sizes import format_count, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ocistream.cli.context import CommandContext

#: The most characters of an annotation in text; the JSON is complete.
_MAX_SHOWN: Final = 200
#: Pieces of JSON (a key, a value, a comma), or lines, per write.
_PIECES_PER_WRITE: Final = 4096


@command
@click.argument("end", metavar="LOCATION", type=FilePath())
@json_option("Print one JSON document.")
@platform_option("all")
@options(CopyOptions, "max_ratio")
@credential_options
@network_options
def inspect(context: CommandContext, end: str, *, as_json: bool) -> None:
    """Show the images of LOCATION: an image in a registry, a layout, or an archive (- is stdin).

    For each image: platforms, digests, layers with sizes and compression, annotations, referrers, and shared blobs. For
    a repository without tag or digest: its tags, one per line. No layer is fetched from a registry.

    \b
    ocistream inspect nginx:1
    ocistream inspect registry.example.com/app
    ssh build cat app.tar | ocistream inspect - --json
    """
    from ocistream.api.inspection import inspect_location

    location = parse_location_argument(end)
    document = inspect_location(
        location,
        context.build_open_context(registries={location.reference.registry} if location.reference else ()),
        platforms=parse_platform_choice(context.copy.platforms),
        max_ratio=context.copy.max_ratio,
        cancelled=context.cancelled,
        report=context.console.info,
    )
    # Write in pieces: the joined text of ten thousand layers would need tens of megabytes.
    pieces = json.JSONEncoder(indent=2).iterencode(document) if as_json else _format_lines(document)
    while piece := "".join(itertools.islice(pieces, _PIECES_PER_WRITE)):
        # A piece never ends inside a string.
        click.echo(escape_ci_commands(piece) if as_json else piece, nl=False)
    if as_json or "tags" not in document:
        click.echo()


def _format_lines(document: Mapping[str, Any]) -> Iterator[str]:
    if "tags" in document:
        return (f"{tag}\n" for tag in document["tags"])
    return (f"{sanitize_line(line)}\n" for line in _document_lines(document))


def _document_lines(document: Mapping[str, Any]) -> Iterator[str]:
    for image in document["images"]:
        yield from _manifest_lines(image, printable(image["name"] or "(no name)"), "")
        yield ""
    for descriptor in document["missing"]:
        note = f" ({printable(descriptor['leftOut'])})" if "leftOut" in descriptor else ""
        note += " (not exported)" if "notExported" in descriptor else ""
        yield f"missing {descriptor['digest']}{note}"
    totals = document["totals"]
    parts = [format_count(totals[f"{noun}s"], noun) for noun in ("image", "manifest", "blob")]
    line = f"{', '.join(parts)}, {format_size(totals['bytes'])}"
    if saved := totals["bytesUnshared"] - totals["bytes"]:
        line += f" ({format_size(saved)} saved by sharing)"
    yield line


def _manifest_lines(manifest: Mapping[str, Any], title: str, indent: str) -> Iterator[str]:
    parts = [title, manifest.get("kind", "missing")]
    if manifest.get("kind") == "artifact":
        parts.append(printable(manifest["artifactType"]))
    if "platform" in manifest and manifest["platform"] != title:
        parts.append(manifest["platform"])
    if "layers" in manifest:
        parts += [format_count(len(manifest["layers"]), "layer"), format_size(manifest["bytes"])]
    yield indent + "  ".join(parts)
    indent += "  "
    yield f"{indent}{manifest['digest']}" if "digest" in manifest else f"{indent}image ID {manifest['imageId']}"
    if "subject" in manifest:
        yield f"{indent}refers to {manifest['subject']}"
    for key, value in {**manifest.get("indexAnnotations", {}), **manifest.get("annotations", {})}.items():
        yield f"{indent}{printable(key)}: {printable(str(value), _MAX_SHOWN)}"
    for layer in (*manifest.get("layers", ()), *manifest.get("blobs", ())):
        yield indent + _blob_line(layer)
    for child in manifest.get("manifests", ()):
        yield from _manifest_lines(child, child.get("platform", "(no platform)"), indent)
    for referrer in manifest.get("referrers", ()):
        kind = printable(referrer.get("artifactType") or referrer["mediaType"])
        yield f"{indent}referred to by {referrer['digest']}  {kind}"


def _blob_line(layer: Mapping[str, Any]) -> str:
    parts = [f"{layer['digest']}  {format_size(layer['size']):>9}", layer.get("compression") or layer["mediaType"]]
    if layer.get("foreign"):
        parts.append("foreign")
    if "sharedBy" in layer:
        parts.append(f"in {layer['sharedBy']} images")
    return "  ".join(parts)
