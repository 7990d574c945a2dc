"""Describe the images or tags of a location as a JSON document, without fetching a layer from a registry."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

from ocistream.errors import UnsupportedError, UsageError
from ocistream.layout.image_selection import Selection
from ocistream.locations import open_source, reference_of
from ocistream.oci.reference import printable
from ocistream.transfer.discarded_blobs import read_graph
from ocistream.transfer.inspection import inspect_source

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ocistream.locations import Location, OpenContext
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.platforms import PlatformChoice
    from ocistream.transfer.interfaces import Source


def inspect_location(
    location: Location,
    context: OpenContext,
    *,
    platforms: PlatformChoice,
    max_ratio: int,
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
    with contextlib.closing(
        open_source(location, context, Selection(platforms=platforms, max_ratio=max_ratio, referrers="list"))
    ) as source:
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


def list_names(location: Location, context: OpenContext, *, max_ratio: int) -> NameList:
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
    with contextlib.closing(open_source(location, context, Selection(max_ratio=max_ratio, referrers="list"))) as source:
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
