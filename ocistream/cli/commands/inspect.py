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
    parse_platform_choice,
    platform_option,
)
from ocistream.cli.parameter_types import parse_location_argument
from ocistream.cli.progress import format_count, format_size
from ocistream.locations import Selection, open_source, reference_of
from ocistream.oci.reference import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ocistream.cli.console import Console
    from ocistream.cli.context import CommandContext
    from ocistream.locations import Location
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.transfer.interfaces import Blob, EarlyBlobs, Source

#: Annotations are shown up to this many characters each; the JSON has all of them.
_MAX_SHOWN: Final = 200
#: So many pieces of JSON (a key, a value, a comma), or lines, are written at once.
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
    parsed = parse_location_argument(end)
    if parsed.is_repository:
        _show_tags(context, parsed, as_json=as_json)
    else:
        _show_images(context, parsed, platforms, as_json=as_json)


def _show_tags(context: CommandContext, location: Location, *, as_json: bool) -> None:
    reference = reference_of(location)
    repository = f"{reference.registry}/{reference.repository}"
    listed = context.build_open_context(registries=[reference.registry]).repository_opener().list_tags(reference)
    if as_json:
        document = {
            "end": location.text,
            "repository": repository,
            "tags": listed.tags,
            "complete": listed.incomplete_reason is None,
        }
        click.echo(escape_ci_commands(json.dumps(document, indent=2)))
    else:
        # Some at a time would save nothing: the list is held anyway.
        click.echo("".join(f"{tag}\n" for tag in listed.tags), nl=False)
    if listed.incomplete_reason:
        context.console.info(f"{repository} has further tags: {listed.incomplete_reason}")
    elif not listed.tags:
        context.console.info(f"{repository} has no tags")


def _show_images(context: CommandContext, location: Location, platforms: tuple[str, ...], *, as_json: bool) -> None:
    from ocistream.transfer.inventory import describe_images, list_needed_configs
    from ocistream.transfer.verify import DiscardedBlobs

    choice = parse_platform_choice(platforms, None)
    want = Selection(platforms=choice, max_ratio=int(context.options["max_ratio"]), referrers="listed")
    with contextlib.ExitStack() as stack:
        named = {location.reference.registry} if location.reference else set()
        source = open_source(location, context.build_open_context(registries=named), want)
        stack.callback(source.close)
        onlooker = stack.enter_context(contextlib.closing(DiscardedBlobs(context.cancelled)))
        graph = source.resolve(onlooker)
        sizes = _wrap_sized_source(source)
        wanted = [config for config in list_needed_configs(graph) if not sizes or sizes.can_have_blob(config)]
        configs = onlooker.read_contents(sizes or source, wanted)
        lacking = [
            blob for blob in graph.blobs if sizes and not sizes.has_blob(blob) and blob.digest not in graph.embedded
        ]
        digests = [manifest.descriptor.digest for manifest in graph.manifests]
        # What speaks to registries takes megabytes, and seconds on a slow disk: it is loaded only for one.
        referrers = _find_referrers(source, digests, context.console) if location.reference else {}
    names = {root.descriptor.digest: location.reference.name for root in graph.roots if location.reference}
    document = {"end": location.text, **describe_images(graph, configs, referrers, names, lacking)}
    # Some at a time: of ten thousand layers, all that the text is joined of would be tens of megabytes.
    pieces = json.JSONEncoder(indent=2).iterencode(document) if as_json else _format_lines(document)
    while some := "".join(itertools.islice(pieces, _PIECES_PER_WRITE)):
        # No piece is a part of a string.
        click.echo(escape_ci_commands(some) if as_json else some, nl=False)
    click.echo()


class _SizedSource:
    """An end of which it is known, without reading it, which blobs it holds and of what size."""

    def __init__(self, source: Source, size: Callable[[str], int | None]) -> None:
        """`size` gives the size in bytes of what lies under a digest, or None; of a stream, of what has passed."""
        self._source = source
        self._size = size
        self.concurrent = source.concurrent

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Say whether a blob is there, as large as it should be."""
        return self._size(descriptor.digest) == descriptor.size

    def can_have_blob(self, descriptor: Descriptor) -> bool:
        """Say whether a blob is there, or may still come."""
        return self._size(descriptor.digest) in {None, descriptor.size}

    def resolve(self, early_blobs: EarlyBlobs) -> Graph:
        """Find out what there is."""
        return self._source.resolve(early_blobs)

    def blobs(self, selected: Sequence[Descriptor]) -> Iterator[Blob]:
        """Give the wanted blobs, less those of another size: they count as missing, and would end all reading."""
        for blob in self._source.blobs(selected):
            if self.has_blob(blob.descriptor):
                yield blob

    def close(self) -> None:
        """Close the end."""
        self._source.close()


def _wrap_sized_source(source: Source) -> _SizedSource | None:
    """Find out what an end can say of the blobs that it holds; None for a registry, which is not asked for each.

    Of a docker-archive nothing can be missing: its images are made of what is there.
    """
    from ocistream.layout.store import LayoutSource

    if isinstance(source, LayoutSource):
        return _SizedSource(source, source.layout.blob_size)
    from ocistream.archive.file_source import ArchiveFileSource
    from ocistream.archive.stream_source import ArchiveStreamSource

    if not isinstance(source, ArchiveFileSource | ArchiveStreamSource) or source.contents.is_docker_archive:
        return None
    places = source.contents.blobs
    return _SizedSource(source, lambda digest: places[digest].size if digest in places else None)


def _find_referrers(source: Source, digests: Sequence[str], console: Console) -> Mapping[str, Sequence[Descriptor]]:
    """Ask a registry what refers to the manifests of an image; of an archive, what is in it is all there is."""
    from ocistream.registry.source import RegistrySource

    found = source.list_referrers(digests) if isinstance(source, RegistrySource) else {}
    for digest, those in found.items():
        if those.incomplete_reason:
            console.info(f"not all that refers to {digest} is shown: {those.incomplete_reason}")
    return {digest: those.descriptors for digest, those in found.items()}


def _format_lines(document: Mapping[str, Any]) -> Iterator[str]:
    return (f"{sanitize_line(line)}\n" for line in _document_lines(document))


def _document_lines(document: Mapping[str, Any]) -> Iterator[str]:
    for image in document["images"]:
        yield from _manifest_lines(image, printable(image["name"] or "(no name)"), "")
        yield ""
    for descriptor in document["missing"]:
        why = f" ({printable(descriptor['leftOut'])})" if "leftOut" in descriptor else ""
        why += " (not exported)" if "notExported" in descriptor else ""
        yield f"missing {descriptor['digest']}{why}"
    totals = document["totals"]
    parts = [format_count(totals[f"{what}s"], what) for what in ("image", "manifest", "blob")]
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
