"""`ocistream inspect`: show images, layers and tags of a location, as text, JSON, HTML or by a template."""

from __future__ import annotations

import itertools
import json
import re
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import click

from ocistream.api.options import OUTPUT, CopyOptions
from ocistream.cli.console import escape_ci_commands, sanitize_line
from ocistream.cli.options import (
    SELECTS_OUTPUT,
    Option,
    command,
    credential_options,
    json_option,
    network_options,
    options_of,
    platform_option,
)
from ocistream.cli.parameter_types import FilePath, parse_location_argument
from ocistream.errors import IntegrityError, MissingContentError, UnsupportedError, UsageError
from ocistream.oci.platforms import parse_platform_choice
from ocistream.oci.reference import printable
from ocistream.sizes import format_count, format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ocistream.cli.context import CommandContext

#: The values of --format; other text is a template.
FORMATS: Final = ("text", "json", "html")
#: The most characters of an annotation or a label in text; the JSON is complete.
_MAX_SHOWN: Final = 200
#: Pieces of JSON (a key, a value, a comma), or lines, per write.
_PIECES_PER_WRITE: Final = 4096
#: The fields of a template, by the names of the JSON document.
_FIELDS: Final = ("name", "digest", "mediaType", "size", "bytes", "kind", "platform", "created", "imageId")
#: Fields with a key.
_MAPS: Final = ("labels", "annotations")
#: Fields that belong to one platform.
_PLATFORM_FIELDS: Final = frozenset({"created", "imageId", "labels"})
#: A doubled brace, a field, or a single brace.
_ITEM: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
#: A Go template, as skopeo and docker take it. Here `{{` is a literal brace.
_GO_TEMPLATE: Final = re.compile(r"\{\{-?\s*(?:\.|json\b|range\b|if\b|index\b|println\b)")


@command(
    click.Argument(["location"], metavar="LOCATION", required=False, type=FilePath()),
    json_option("Print one JSON document, as --format json."),
    Option(
        ["--format", "output_format"],
        metavar="text|json|html|TEMPLATE",
        not_configurable=SELECTS_OUTPUT,
        section=OUTPUT,
        help="Output format, or a line for each image, such as '{name} {digest}'.  [default: text]",
    ),
    Option(
        ["--raw"],
        is_flag=True,
        section=OUTPUT,
        not_configurable=SELECTS_OUTPUT,
        help="Print the exact bytes of the manifest or index.",
    ),
    Option(
        ["--raw-config"],
        is_flag=True,
        section=OUTPUT,
        not_configurable=SELECTS_OUTPUT,
        help="Print the exact bytes of the config.",
    ),
    platform_option("all"),
    options_of(CopyOptions, "max_ratio"),
    credential_options,
    network_options,
)
def inspect(
    context: CommandContext,
    location: str | None,
    *,
    as_json: bool,
    output_format: str | None,
    raw: bool,
    raw_config: bool,
) -> None:
    """Show the images of LOCATION: an image in a registry, a layout, or an archive (- is stdin).

    For each image: platforms, digests, creation time, labels, layers with sizes and compression, annotations,
    referrers, and shared blobs. For a repository without tag or digest: its tags, one per line. No layer is fetched
    from a registry.

    Fields of a template: name, digest, mediaType, size (of the manifest), bytes (of the blobs), kind, platform,
    annotations.KEY, and for one platform: created, imageId, labels.KEY.

    \b
    ocistream inspect nginx:1
    ocistream inspect registry.example.com/app
    ocistream inspect app.tar --format '{name} {digest} {platform}'
    ocistream inspect --raw nginx:1 | sha256sum
    ocistream inspect app.tar --format html > app.html
    ssh host cat app.tar | ocistream inspect - --json
    """
    from ocistream.api.inspection import inspect_location, read_config, read_manifest

    if location is None:
        msg = "Missing argument 'LOCATION'."
        hint = "write an image, a layout or an archive; - is stdin"
        if context.run_options.config is not None:
            hint = "--config is the configuration file; --raw-config prints the config of an image"
        raise UsageError(msg, hint=hint)
    if as_json + raw + raw_config + (output_format is not None) > 1:
        msg = "--json, --format, --raw and --raw-config exclude each other"
        raise UsageError(msg, hint="use one of them")
    kind = "json" if as_json else "text" if output_format is None else output_format
    template = None if kind in FORMATS else _parse_template(kind)
    parsed = parse_location_argument(location)
    open_context = context.build_open_context(registries=parsed.registries)
    platforms = parse_platform_choice(context.copy_options.platforms)
    if raw and len(platforms.platforms) > 1:
        # An index of some platforms exists only in a copy.
        msg = "--raw prints one manifest or index, not several platforms"
        raise UsageError(msg, hint="choose one --platform, or all for the index")
    if raw or raw_config:
        image = parsed, open_context, platforms
        _write_raw(read_manifest(*image).raw if raw else read_config(*image))
        return
    if template is not None and parsed.is_repository:
        # A line is for an image, not for a repository.
        parsed = replace(parsed, is_repository=False)
    try:
        document = inspect_location(parsed, open_context, platforms, report=context.console.info)
    except IntegrityError as error:
        from ocistream.cli.error_hints import add_damage_hint

        add_damage_hint(error, parsed)
        raise
    if template is not None:
        # Render all lines first: if one fails, none is printed.
        for line in [template(image) for image in document["images"]]:
            click.echo(line)
        return
    _write_document(document, kind, "the archive on stdin" if parsed.is_stream else parsed.text)


def _write_document(document: dict[str, Any], kind: str, title: str) -> None:
    from ocistream.api.inspection import to_plain_values
    from ocistream.transfer.inventory_page import render_page

    if kind == "json":
        pieces = json.JSONEncoder(indent=2).iterencode(to_plain_values(document))
    elif kind == "html":
        pieces = render_page(document, title)
    else:
        pieces = _format_lines(document)
    # Write in pieces: the joined text of ten thousand layers would need tens of megabytes.
    while piece := "".join(itertools.islice(pieces, _PIECES_PER_WRITE)):
        # A piece never ends inside a string.
        click.echo(escape_ci_commands(piece) if kind == "json" else piece, nl=False)
    if kind == "json" or (kind == "text" and "tags" not in document):
        click.echo()


def _write_raw(content: bytes) -> None:
    """Write the bytes to stdout; to a terminal, without characters that control it."""
    if sys.stdout.isatty():
        for line in content.decode(errors="replace").splitlines():
            click.echo(sanitize_line(line))
        return
    click.echo(content, nl=False)


def _format_lines(document: Mapping[str, Any]) -> Iterator[str]:
    if "tags" in document:
        return (f"{tag}\n" for tag in document["tags"])
    return (f"{sanitize_line(line)}\n" for line in _document_lines(document))


def _document_lines(document: Mapping[str, Any]) -> Iterator[str]:
    referrers = 0
    # Digests of referrers that are listed, and of those that are described: a registry only lists them.
    listed: set[str] = set()
    included: set[str] = set()
    for image in document["images"]:
        yield from _manifest_lines(image, printable(image["name"] or "(no name)"), "")
        yield ""
        referrers += image["name"] is None and "subject" in image
        for manifest in _walk(image):
            listed.update(referrer["digest"] for referrer in manifest.get("referrers", ()))
            if "subject" in manifest:
                included.add(manifest.get("digest", ""))
    # Their digests are in the lines of the images.
    if not_exported := sum("notExported" in descriptor for descriptor in document["missing"]):
        yield f"{format_count(not_exported, 'missing digest')} not exported (`docker save` omits other platforms)"
    for descriptor in document["missing"]:
        if "notExported" not in descriptor:
            note = f" ({printable(descriptor['omitted'])})" if "omitted" in descriptor else ""
            yield f"missing {descriptor['digest']}{note}"
    totals = document["totals"]
    parts = [format_count(totals["images"] - referrers, "image")]
    if referrers:
        parts.append(format_count(referrers, "referrer"))
    parts += [format_count(totals[f"{noun}s"], noun) for noun in ("manifest", "blob")]
    line = f"{', '.join(parts)}, {format_size(totals['bytes'])}"
    if saved := totals["bytesUnshared"] - totals["bytes"]:
        line += f" ({format_size(saved)} saved by sharing)"
    if count := len(listed - included):
        line += f"; {format_count(count, 'referrer')} not counted"
    yield line


def _walk(manifest: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a manifest and those below it."""
    yield manifest
    for child in manifest.get("manifests", ()):
        yield from _walk(child)


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
    for line in _metadata_lines(manifest):
        yield indent + line
    for layer in (*manifest.get("layers", ()), *manifest.get("blobs", ())):
        yield indent + _blob_line(layer)
    for child in manifest.get("manifests", ()):
        yield from _manifest_lines(child, child.get("platform", "(no platform)"), indent)
    for referrer in manifest.get("referrers", ()):
        kind = printable(referrer.get("artifactType") or referrer["mediaType"])
        yield f"{indent}referred to by {referrer['digest']}  {kind}"


def _metadata_lines(manifest: Mapping[str, Any]) -> Iterator[str]:
    if "created" in manifest:
        yield f"created {printable(manifest['created'], _MAX_SHOWN)}"
    for key, value in manifest.get("labels", {}).items():
        yield f"label {printable(key)}: {printable(value, _MAX_SHOWN)}"
    for key, value in {**manifest.get("indexAnnotations", {}), **manifest.get("annotations", {})}.items():
        yield f"{printable(key)}: {printable(str(value), _MAX_SHOWN)}"


def _blob_line(layer: Mapping[str, Any]) -> str:
    parts = [f"{layer['digest']}  {format_size(layer['size']):>9}", layer.get("compression") or layer["mediaType"]]
    if layer.get("foreign"):
        parts.append("foreign")
    if "sharedBy" in layer:
        parts.append(f"in {layer['sharedBy']} images")
    return "  ".join(parts)


def _parse_template(text: str) -> Callable[[Mapping[str, Any]], str]:
    """Return a function that returns the line of an image of the JSON document.

    A template is such as "{name} {labels.org.opencontainers.image.version}"; {{ and }} are literal braces. Labels and
    annotations that the image lacks are empty.

    Raises:
        UsageError: the template has no field, an unknown one, or a single brace. The function also raises it if the
            image is an index, and a field belongs to one platform; and UnsupportedError if a docker-archive has no such
            field.
    """
    shown = printable(text)
    if _GO_TEMPLATE.search(text):
        msg = f"--format {shown!r}: Go templates are not supported"
        raise UsageError(msg, hint=f"write {{digest}} for {{{{.Digest}}}}; {_describe_fields()}")
    has_field = False
    for match in _ITEM.finditer(text):
        if match[0] in {"{", "}"}:
            msg = f"--format {shown!r} has a single {match[0]}"
            raise UsageError(msg, hint=f"write {match[0] * 2} for a literal {match[0]}; {_describe_fields()}")
        if match[1] is not None:
            _check_field(match[1])
            has_field = True
    if not has_field:
        msg = f"--format {shown!r} is not text, json or html, and a template needs a field"
        raise UsageError(msg, hint=_describe_fields())

    def fill_in(image: Mapping[str, Any]) -> str:
        return sanitize_line(
            _ITEM.sub(lambda match: match[0][0] if match[1] is None else _read_field(match[1], image), text)
        )

    return fill_in


def _check_field(text: str) -> None:
    name, dot, key = text.partition(".")
    if not (name in _MAPS and key) and (dot or name not in _FIELDS):
        msg = f"--format: {printable(text)!r} is not a field"
        raise UsageError(msg, hint=_describe_fields())


def _describe_fields() -> str:
    names = [*_FIELDS, *(f"{name}.KEY" for name in _MAPS)]
    return f"the fields are {', '.join(f'{{{name}}}' for name in names)}"


def _read_field(text: str, image: Mapping[str, Any]) -> str:
    """Return the text of a field of an image; "" for a label, an annotation or a name that the image lacks."""
    name, _, key = text.partition(".")
    if name in _PLATFORM_FIELDS:
        _require_one_image(image, text)
    if name == "annotations":
        return str({**image.get("indexAnnotations", {}), **image.get("annotations", {})}.get(key, ""))
    if name == "labels":
        return str(image.get("labels", {}).get(key, ""))
    if name == "bytes":
        return str(_sum_blobs(image))
    if name == "platform":
        return ",".join(_list_platforms(image))
    if name == "imageId":
        return str(image["config"]["digest"]) if "config" in image else ""
    if name in {"digest", "mediaType", "size"} and name not in image:
        msg = f"{printable(image['name'] or 'the image')} has no {{{name}}}: a docker-archive has no manifests"
        raise UnsupportedError(msg, hint=f"its image ID is {image.get('imageId')} ({{imageId}})")
    value = image.get(name, "missing" if name == "kind" else "")
    return "" if value is None else str(value)


def _require_one_image(image: Mapping[str, Any], field: str) -> None:
    if image.get("missing"):
        platform = printable(image.get("platform", image["digest"]))
        msg = f"{printable(image['name'] or 'the image')} lacks the manifest of {platform}"
        raise MissingContentError(msg, hint="choose a complete platform, or pull the image again")
    if image.get("kind") != "index":
        return
    platforms = ", ".join(_list_platforms(image, only_existing=True))
    msg = f"{printable(image['name'] or image['digest'])} is an index: {{{printable(field)}}} belongs to one platform"
    raise UsageError(msg, hint=f"add --platform: {printable(platforms, 1024)}" if platforms else None)


def _list_platforms(manifest: Mapping[str, Any], *, only_existing: bool = False) -> list[str]:
    if "manifests" not in manifest:
        platform = None if only_existing and manifest.get("missing") else manifest.get("platform")
        return [platform] if platform and not platform.startswith("unknown/") else []
    platforms = [_list_platforms(child, only_existing=only_existing) for child in manifest["manifests"]]
    return list(dict.fromkeys(itertools.chain.from_iterable(platforms)))


def _sum_blobs(manifest: Mapping[str, Any]) -> int:
    """Return the bytes of the configs and layers of an image, or of all images of an index, each blob once."""
    sizes: dict[str, int] = {}
    pending = [manifest]
    while pending:
        current = pending.pop()
        pending.extend(current.get("manifests", ()))
        blobs = [*current.get("layers", ()), *current.get("blobs", ())]
        if "config" in current:
            blobs.append(current["config"])
        sizes.update((blob["digest"], blob["size"]) for blob in blobs if not blob.get("foreign"))
    return sum(sizes.values())
