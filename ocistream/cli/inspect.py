"""`ocistream inspect`: what is in an image, an archive or a layout, for people and for machines."""

from __future__ import annotations

import contextlib
import itertools
import json
from typing import TYPE_CHECKING, Any, Final

import click

from ocistream.cli.console import harmless_json, in_one_line
from ocistream.cli.locations import parse_named_end
from ocistream.cli.options import (
    credential_options,
    max_ratio_option,
    network_options,
    session_options,
)
from ocistream.cli.platform import platform_choice, platform_option
from ocistream.cli.progress import counted, human_size
from ocistream.oci.reference import printable
from ocistream.stores import Want, open_source
from ocistream.stores.openers import reference_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ocistream.cli.console import Console
    from ocistream.cli.session import Session
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.stores import End
    from ocistream.transfer.interfaces import Blob, Early, Source

#: Annotations are shown up to this many characters each; the JSON has all of them.
_MAX_SHOWN: Final = 200
#: So many pieces of JSON (a key, a value, a comma), or lines, are written at once.
_PIECES: Final = 4096


@click.command()
@click.argument("end")
@click.option("--json", "as_json", is_flag=True, help="Print it as one JSON document.")
@platform_option("all")
@max_ratio_option
@credential_options
@network_options
@session_options
def inspect(session: Session, end: str, platforms: tuple[str, ...], *, as_json: bool) -> None:
    """Show what END holds: an image in a registry, a layout directory, or an archive, also one on stdin (-).

    For each image its platforms, digests, layers with their compression, sizes and annotations, what refers to it, and
    what images share. Of a repository, named without tag and digest, the tags, one a line. Nothing is written, and of
    a registry no layer is fetched.

    \b
    ocistream inspect nginx:1
    ocistream inspect registry.example.com/app
    ssh build cat app.tar | ocistream inspect - --json
    """
    parsed = parse_named_end(end)
    if parsed.is_repository:
        _show_tags(session, parsed, as_json=as_json)
    else:
        _show_images(session, parsed, platforms, as_json=as_json)


def _show_tags(session: Session, end: End, *, as_json: bool) -> None:
    reference = reference_of(end)
    repository = f"{reference.registry}/{reference.repository}"
    listed = session.surroundings(named=[reference.registry]).reading().tags(reference)
    if as_json:
        document = {"end": end.text, "repository": repository, "tags": listed.tags, "complete": listed.cut is None}
        click.echo(harmless_json(json.dumps(document, indent=2)))
    else:
        # Some at a time would save nothing: the list is held anyway.
        click.echo("".join(f"{tag}\n" for tag in listed.tags), nl=False)
    if listed.cut:
        session.console.note(f"{repository} has further tags: {listed.cut}")
    elif not listed.tags:
        session.console.note(f"{repository} has no tags")


def _show_images(session: Session, parsed: End, platforms: tuple[str, ...], *, as_json: bool) -> None:
    from ocistream.transfer.inventory import configs_wanted, described
    from ocistream.transfer.no_destination import Onlooker

    choice = platform_choice(platforms, None)
    want = Want(platforms=choice, max_ratio=int(session.options["max_ratio"]), referrers="listed")
    with contextlib.ExitStack() as stack:
        named = {parsed.reference.registry} if parsed.reference else set()
        source = open_source(parsed, session.surroundings(named=named), want)
        stack.callback(source.close)
        onlooker = stack.enter_context(contextlib.closing(Onlooker(session.cancelled)))
        graph = source.graph(onlooker)
        sizes = _sizes(source)
        wanted = [config for config in configs_wanted(graph) if not sizes or sizes.may_hold(config)]
        configs = onlooker.contents_of(sizes or source, wanted)
        lacking = [
            blob for blob in graph.blobs if sizes and not sizes.holds(blob) and blob.digest not in graph.embedded
        ]
        digests = [manifest.descriptor.digest for manifest in graph.manifests]
        # What speaks to registries takes megabytes, and seconds on a slow disk: it is loaded only for one.
        referrers = _referrers(source, digests, session.console) if parsed.reference else {}
    names = {root.descriptor.digest: parsed.reference.name for root in graph.roots if parsed.reference}
    document = {"end": parsed.text, **described(graph, configs, referrers, names, lacking)}
    # Some at a time: of ten thousand layers, all that the text is joined of would be tens of megabytes.
    pieces = json.JSONEncoder(indent=2).iterencode(document) if as_json else _on_lines(document)
    while some := "".join(itertools.islice(pieces, _PIECES)):
        # No piece is a part of a string.
        click.echo(harmless_json(some) if as_json else some, nl=False)
    click.echo()


class _Held:
    """An end of which it is known, without reading it, which blobs it holds and of what size."""

    def __init__(self, source: Source, size: Callable[[str], int | None]) -> None:
        """`size` gives the size in bytes of what lies under a digest, or None; of a stream, of what has passed."""
        self._source = source
        self._size = size
        self.parallel = source.parallel

    def holds(self, descriptor: Descriptor) -> bool:
        """Say whether a blob is there, as large as it should be."""
        return self._size(descriptor.digest) == descriptor.size

    def may_hold(self, descriptor: Descriptor) -> bool:
        """Say whether a blob is there, or may still come."""
        return self._size(descriptor.digest) in {None, descriptor.size}

    def graph(self, early: Early) -> Graph:
        """Find out what there is."""
        return self._source.graph(early)

    def blobs(self, wanted: Sequence[Descriptor]) -> Iterator[Blob]:
        """Give the wanted blobs, less those of another size: they count as missing, and would end all reading."""
        for blob in self._source.blobs(wanted):
            if self.holds(blob.descriptor):
                yield blob

    def close(self) -> None:
        """Close the end."""
        self._source.close()


def _sizes(source: Source) -> _Held | None:
    """Find out what an end can say of the blobs that it holds; None for a registry, which is not asked for each.

    Of a docker-archive nothing can be missing: its images are made of what is there.
    """
    from ocistream.layout.store import LayoutSource

    if isinstance(source, LayoutSource):
        return _Held(source, source.layout.blob_size)
    from ocistream.archive.file import ArchiveFileSource
    from ocistream.archive.stream import ArchiveStreamSource

    if not isinstance(source, ArchiveFileSource | ArchiveStreamSource) or source.contents.is_docker_archive:
        return None
    places = source.contents.blobs
    return _Held(source, lambda digest: places[digest].size if digest in places else None)


def _referrers(source: Source, digests: Sequence[str], console: Console) -> Mapping[str, Sequence[Descriptor]]:
    """Ask a registry what refers to the manifests of an image; of an archive, what is in it is all there is."""
    from ocistream.registry.source import RegistrySource

    found = source.referrers(digests) if isinstance(source, RegistrySource) else {}
    for digest, those in found.items():
        if those.cut:
            console.note(f"not all that refers to {digest} is shown: {those.cut}")
    return {digest: those.descriptors for digest, those in found.items()}


def _on_lines(document: Mapping[str, Any]) -> Iterator[str]:
    return (f"{in_one_line(line)}\n" for line in _lines(document))


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    for image in document["images"]:
        yield from _manifest_lines(image, printable(image["name"] or "(no name)"), "")
        yield ""
    for descriptor in document["missing"]:
        why = f" ({printable(descriptor['leftOut'])})" if "leftOut" in descriptor else ""
        why += " (not exported)" if "notExported" in descriptor else ""
        yield f"missing {descriptor['digest']}{why}"
    totals = document["totals"]
    parts = [counted(totals[f"{what}s"], what) for what in ("image", "manifest", "blob")]
    line = f"{', '.join(parts)}, {human_size(totals['bytes'])}"
    if saved := totals["bytesUnshared"] - totals["bytes"]:
        line += f" ({human_size(saved)} saved by sharing)"
    yield line


def _manifest_lines(manifest: Mapping[str, Any], title: str, indent: str) -> Iterator[str]:
    parts = [title, manifest.get("kind", "missing")]
    if manifest.get("kind") == "artifact":
        parts.append(printable(manifest["artifactType"]))
    if "platform" in manifest and manifest["platform"] != title:
        parts.append(manifest["platform"])
    if "layers" in manifest:
        parts += [counted(len(manifest["layers"]), "layer"), human_size(manifest["bytes"])]
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
    parts = [f"{layer['digest']}  {human_size(layer['size']):>9}", layer.get("compression") or layer["mediaType"]]
    if layer.get("foreign"):
        parts.append("foreign")
    if "sharedBy" in layer:
        parts.append(f"in {layer['sharedBy']} images")
    return "  ".join(parts)
