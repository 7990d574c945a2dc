"""`ocistream inspect`: show images, layers and tags of a location, as text or JSON."""

from __future__ import annotations

import contextlib
import itertools
import json
from typing import TYPE_CHECKING, Any, Final

import click

from ocistream.cli.console import escape_ci_commands, sanitize_line
from ocistream.cli.options import (
    context_options,
    credential_options,
    max_ratio_option,
    network_options,
    platform_option,
)
from ocistream.cli.parameter_types import parse_location_argument
from ocistream.cli.progress import format_count, format_size
from ocistream.locations import Selection, open_source, reference_of
from ocistream.oci.platforms import parse_platform_choice
from ocistream.oci.reference import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ocistream.cli.console import Console
    from ocistream.cli.context import CommandContext
    from ocistream.locations import Location
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.transfer.interfaces import Blob, EarlyBlobs, Source

#: The most characters of an annotation in text; the JSON is complete.
_MAX_SHOWN: Final = 200
#: Pieces of JSON (a key, a value, a comma), or lines, per write.
_PIECES_PER_WRITE: Final = 4096


@click.command()
@click.argument("end")
@click.option("--json", "as_json", is_flag=True, help="Print it as one JSON document.")
@platform_option("all")
@max_ratio_option
@credential_options
@network_options
@context_options
def inspect(context: CommandContext, end: str, platforms: tuple[str, ...], *, as_json: bool) -> None:
    """Show what END holds: an image in a registry, a layout directory, or an archive, also one on stdin (-).

    For each image its platforms, digests, layers with their compression, sizes and annotations, what refers to it, and
    what images share. Of a repository, named without tag and digest, the tags, one a line. Nothing is written, and of
    a registry no layer is fetched.

    \b
    ocistream inspect nginx:1
    ocistream inspect registry.example.com/app
    ssh build cat app.tar | ocistream inspect - --json
    """
    location = parse_location_argument(end)
    # Here a name without tag and digest is a repository; most commands take it for the tag `latest`, as Docker does.
    if location.is_repository:
        _show_tags(context, location, as_json=as_json)
    else:
        _show_images(context, location, platforms, as_json=as_json)


def _show_tags(context: CommandContext, location: Location, *, as_json: bool) -> None:
    reference = reference_of(location)
    repository = f"{reference.registry}/{reference.repository}"
    tag_list = context.build_open_context(registries=[reference.registry]).repository_opener().list_tags(reference)
    if as_json:
        document = {
            "end": location.text,
            "repository": repository,
            "tags": tag_list.tags,
            "complete": tag_list.incomplete_reason is None,
        }
        click.echo(escape_ci_commands(json.dumps(document, indent=2)))
    else:
        # Writing in pieces would save nothing: the list is in memory.
        click.echo("".join(f"{tag}\n" for tag in tag_list.tags), nl=False)
    if tag_list.incomplete_reason:
        context.console.info(f"{repository} has further tags: {tag_list.incomplete_reason}")
    elif not tag_list.tags:
        context.console.info(f"{repository} has no tags")


def _show_images(context: CommandContext, location: Location, platforms: tuple[str, ...], *, as_json: bool) -> None:
    from ocistream.transfer.inventory import describe_images, list_needed_configs
    from ocistream.transfer.verify import DiscardedBlobs

    choice = parse_platform_choice(platforms)
    selection = Selection(platforms=choice, max_ratio=int(context.options["max_ratio"]), referrers="listed")
    with contextlib.ExitStack() as stack:
        registries = {location.reference.registry} if location.reference else set()
        source = open_source(location, context.build_open_context(registries=registries), selection)
        stack.callback(source.close)
        discarded = stack.enter_context(contextlib.closing(DiscardedBlobs(context.cancelled)))
        graph = source.resolve(discarded)
        sized_source = _wrap_sized_source(source)
        needed_configs = [
            config for config in list_needed_configs(graph) if not sized_source or sized_source.can_have_blob(config)
        ]
        configs = discarded.read_contents(sized_source or source, needed_configs)
        missing = [
            blob
            for blob in graph.blobs
            if sized_source and not sized_source.has_blob(blob) and blob.digest not in graph.embedded
        ]
        digests = [manifest.descriptor.digest for manifest in graph.manifests]
        # The registry modules need megabytes, and seconds on a slow disk: import them only for a registry.
        referrers = _find_referrers(source, digests, context.console) if location.reference else {}
    names = {root.descriptor.digest: location.reference.name for root in graph.roots if location.reference}
    document = {"end": location.text, **describe_images(graph, configs, referrers, names, missing)}
    # Write in pieces: the joined text of ten thousand layers would need tens of megabytes.
    pieces = json.JSONEncoder(indent=2).iterencode(document) if as_json else _format_lines(document)
    while piece := "".join(itertools.islice(pieces, _PIECES_PER_WRITE)):
        # A piece never ends inside a string.
        click.echo(escape_ci_commands(piece) if as_json else piece, nl=False)
    click.echo()


class _SizedSource:
    """A source that knows, without reading it, which blobs it has and their sizes."""

    def __init__(self, source: Source, size: Callable[[str], int | None]) -> None:
        """`size` returns the bytes stored under a digest, or None; in a stream, of blobs read so far."""
        self._source = source
        self._size = size
        self.concurrent = source.concurrent

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Return whether a blob exists with the right size."""
        return self._size(descriptor.digest) == descriptor.size

    def can_have_blob(self, descriptor: Descriptor) -> bool:
        """Return whether a blob exists with the right size, or may still come."""
        return self._size(descriptor.digest) in {None, descriptor.size}

    def resolve(self, early_blobs: EarlyBlobs) -> Graph:
        """Return the graph of the source."""
        return self._source.resolve(early_blobs)

    def blobs(self, selected: Sequence[Descriptor]) -> Iterator[Blob]:
        """Return the selected blobs, except those of a wrong size: they count as missing, and would end the run."""
        for blob in self._source.blobs(selected):
            if self.has_blob(blob.descriptor):
                yield blob

    def close(self) -> None:
        """Close the source."""
        self._source.close()


def _wrap_sized_source(source: Source) -> _SizedSource | None:
    """Return a source that knows the sizes of its blobs; None for a registry, which is not asked for each.

    None for a docker-archive too: its images are made from what it has, so nothing can be missing.
    """
    from ocistream.layout.source import LayoutSource

    if isinstance(source, LayoutSource):
        return _SizedSource(source, source.layout.blob_size)
    from ocistream.archive.file_source import ArchiveFileSource
    from ocistream.archive.stream_source import ArchiveStreamSource

    if not isinstance(source, ArchiveFileSource | ArchiveStreamSource) or source.contents.is_docker_archive:
        return None
    entries = source.contents.blobs
    return _SizedSource(source, lambda digest: entries[digest].size if digest in entries else None)


def _find_referrers(source: Source, digests: Sequence[str], console: Console) -> Mapping[str, Sequence[Descriptor]]:
    """Ask a registry for the referrers of an image's manifests; an archive has all its referrers in itself."""
    from ocistream.registry.source import RegistrySource

    referrers = source.list_referrers(digests) if isinstance(source, RegistrySource) else {}
    for digest, result in referrers.items():
        if result.incomplete_reason:
            console.info(f"not all that refers to {digest} is shown: {result.incomplete_reason}")
    return {digest: result.descriptors for digest, result in referrers.items()}


def _format_lines(document: Mapping[str, Any]) -> Iterator[str]:
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
