"""Inspect a location: describe its images or tags, or read the digest, manifest or config of one image.

No layer is fetched from a registry.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ocistream.errors import ArchiveError, NotFoundError, OcistreamError, RegistryError, UnsupportedError, UsageError
from ocistream.layout.image_selection import Selection, select_single_image
from ocistream.locations import open_source, reference_of
from ocistream.oci.platforms import PlatformChoice, list_platforms
from ocistream.oci.reference import is_digest, printable
from ocistream.transfer.discarded_blobs import DiscardedBlobs, read_graph

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ocistream.locations import Location, OpenContext
    from ocistream.oci.descriptor import Descriptor, Manifest
    from ocistream.oci.graph import Graph, Root
    from ocistream.transfer.interfaces import Source

#: Statuses of registries and proxies that do not support HEAD; they may support GET.
_HEAD_UNSUPPORTED: Final = frozenset({400, 405, 501})


def inspect_location(
    location: Location,
    context: OpenContext,
    platforms: PlatformChoice,
    *,
    report: Callable[[str], None] = lambda _message: None,
) -> dict[str, Any]:
    """Return what `ocistream inspect` prints; `report` receives what a registry does not list.

    The images are described whenever they are iterated; see `to_plain_values`.

    Of a repository, named without tag and digest, the tags are listed; most commands take the tag `latest`, as Docker
    does.

    Raises:
        OcistreamError: the location cannot be read.
    """
    if location.is_repository:
        listed = _list_tags(location, context)
        if listed.incomplete_reason:
            report(listed.incomplete_error().message)
        elif not listed.names:
            report(f"{listed.document['repository']} has no tags")
        return listed.document
    # Imported here, because a digest or a list of tags does not need it.
    from ocistream.transfer.inspection import inspect_source

    with contextlib.closing(open_source(location, context, Selection(platforms=platforms, referrers="list"))) as source:
        if not location.reference:
            return {"location": location.text, **inspect_source(source, cancelled=context.cancelled, report=report)}
        inventory = inspect_source(
            source,
            name=location.reference.name,
            # The registry modules need megabytes, and seconds on a slow disk: import them only for a registry.
            list_referrers=lambda digests: _list_referrers(source, digests, report),
            jobs=context.jobs,
            cancelled=context.cancelled,
            report=report,
        )
        return {"location": location.text, **inventory}


def to_plain_values(description: dict[str, Any]) -> dict[str, Any]:
    """Return a description with a list of images, for JSON."""
    return {**description, "images": list(description["images"])} if "images" in description else description


class NameList(NamedTuple):
    """The tags of a repository in a registry, or the names of the images of an archive or layout.

    `document` is what `ocistream tags --json` prints. `incomplete_reason` says why further tags may exist, or is None.
    """

    names: tuple[str, ...]
    document: dict[str, Any]
    incomplete_reason: str | None = None

    def incomplete_error(self) -> UnsupportedError:
        """Return the error for a list that must be complete."""
        return UnsupportedError(f"{self.document['repository']} has further tags: {self.incomplete_reason}")


def list_names(location: Location, context: OpenContext) -> NameList:
    """Return the tags of a repository in a registry, or the names of an archive or layout.

    Raises:
        UsageError: the location is one image.
        OcistreamError: the location cannot be read.
    """
    if location.name is not None or (location.reference is not None and not location.is_repository):
        msg = f"{printable(location.text)} is one image, not a repository, archive or layout"
        raise UsageError(msg, hint=f"write {printable(location.text_without_image)}")
    if location.is_repository:
        return _list_tags(location, context)
    with contextlib.closing(open_source(location, context, Selection(referrers="list"))) as source:
        graph = read_graph(source, context.cancelled)
    names = tuple(dict.fromkeys(root.name for root in graph.roots if root.name))
    return NameList(names, {"location": location.text, "names": list(names)})


def _list_tags(location: Location, context: OpenContext) -> NameList:
    reference = reference_of(location)
    tag_list = context.registries().list_tags(reference)
    document = {
        "location": location.text,
        "repository": f"{reference.registry}/{reference.repository}",
        "tags": list(tag_list.tags),
        "complete": tag_list.incomplete_reason is None,
    }
    return NameList(tag_list.tags, document, tag_list.incomplete_reason)


def _list_referrers(
    source: Source, digests: Sequence[str], report: Callable[[str], None]
) -> Mapping[str, Sequence[Descriptor]]:
    """Ask a registry for the referrers of an image's manifests; an archive has all its referrers in itself."""
    from ocistream.registry.source import RegistrySource

    referrers = source.list_referrers(digests) if isinstance(source, RegistrySource) else {}
    for digest, result in referrers.items():
        if result.incomplete_reason:
            report(f"not all referrers of {digest} are shown: {result.incomplete_reason}")
    return {digest: result.descriptors for digest, result in referrers.items()}


# -- the only image of a location, or its manifest for one platform ----------------------------------------------------


def find_digest(location: Location, context: OpenContext, platforms: PlatformChoice) -> str:
    """Return the digest of the only image. A registry is asked by HEAD if that is enough.

    Raises:
        NotFoundError: the image or the platform does not exist.
        UsageError: there are several images, or several platforms are chosen.
        UnsupportedError: the image is in a docker-archive, which has no digests.
        OcistreamError: the location cannot be read.
    """
    reference = location.reference
    if len(platforms.platforms) > 1:
        msg = "several platforms have several digests"
        raise UsageError(msg, hint="choose one --platform")
    if reference is not None and not platforms.platforms:
        stated = None
        try:
            stated = context.registries().open_repository(reference).find_digest(reference.target)
        except RegistryError as error:
            if error.status not in _HEAD_UNSUPPORTED:
                raise
        # The registry may claim the digest that the user gave without having it. None and "" are not digests.
        if stated is not None and is_digest(stated) and reference.digest in {None, stated}:
            return stated
    return read_manifest(location, context, platforms).descriptor.digest


def read_manifest(location: Location, context: OpenContext, platforms: PlatformChoice) -> Manifest:
    """Return the exact manifest or index of the only image.

    Raises:
        UnsupportedError: the image is in a docker-archive, which has no manifests.
        OcistreamError: as `find_digest`.
    """
    if location.reference is not None and not platforms.platforms:
        from ocistream.registry.source import RegistrySource

        return RegistrySource(context.registries(), [location.reference]).fetch_image_manifest()
    with _open_image(location, context, platforms) as (source, graph, root, _):
        for _blob in source.blobs(()):
            # A pipe is read to its end: its writer must not fail.
            pass
        if root.is_synthesized:
            msg = f"{_describe(location, root)} is in a docker-archive, which has no manifests and so no digests"
            raise UnsupportedError(msg, hint=f"its image ID is {graph.image_id(root)}")
        for manifest in graph.manifests:
            if manifest.descriptor.digest == root.descriptor.digest:
                return manifest
        raise _missing_error(location, root.descriptor)


def read_config(location: Location, context: OpenContext, platforms: PlatformChoice) -> bytes:
    """Return the exact config of the only image.

    Raises:
        UsageError: the image is an index without a chosen platform.
        OcistreamError: as `find_digest`.
    """
    with _open_image(location, context, platforms) as (source, graph, root, discarded):
        document = graph.documents.get(root.descriptor.digest)
        if document is None:
            raise _missing_error(location, root.descriptor)
        if document.config is None:
            existing = [child for child in document.manifests if child.digest in graph.documents]
            shown = ", ".join(map(printable, list_platforms(existing)))
            msg = f"{_describe(location, root)} is an index: each of its platforms has a config"
            raise UsageError(msg, hint=f"add --platform: {shown}" if shown else None)
        if (content := graph.embedded.get(document.config.digest)) is not None:
            return content
        contents: list[bytes] = []
        wanted = [document.config]
        discarded.read_contents(source.blobs(wanted), wanted, lambda _, content: contents.append(content), jobs=1)
        if not contents:
            raise _missing_error(location, document.config)
        return contents[0]


@contextlib.contextmanager
def _open_image(
    location: Location, context: OpenContext, platforms: PlatformChoice
) -> Iterator[tuple[Source, Graph, Root, DiscardedBlobs]]:
    selection = Selection(select_single_image, platforms, referrers="skip")
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(contextlib.closing(open_source(location, context, selection)))
        discarded = stack.enter_context(contextlib.closing(DiscardedBlobs(context.cancelled)))
        graph = source.resolve(discarded)
        (root,) = graph.roots
        yield source, graph, root, discarded


def _describe(location: Location, root: Root) -> str:
    return printable(root.name or location.text, 1024)


def _missing_error(location: Location, descriptor: Descriptor) -> OcistreamError:
    msg = f"{printable(location.text, 1024)} lacks {descriptor.digest}"
    return (NotFoundError if location.reference else ArchiveError)(msg)
