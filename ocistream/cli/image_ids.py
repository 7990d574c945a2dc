"""An image ID (the digest of a config, as Docker shows it) given in place of an image's name or digest."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from ocistream.errors import OcistreamError
from ocistream.layout.index import NoSuchImageError, format_image_names, image_name_of
from ocistream.oci.graph import Root
from ocistream.oci.reference import is_digest, printable
from ocistream.stores import OpenContext, Selection, open_source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocistream.stores import Location
    from ocistream.transfer.interfaces import Source

__all__ = ["add_image_id_hint"]


@contextlib.contextmanager
def add_image_id_hint(source_location: Location | None, source: Source) -> Iterator[None]:
    """Let the error about an image that does not exist say which image has the ID that was given."""
    try:
        yield
    except NoSuchImageError as error:
        wanted = error.wanted
        if is_digest(wanted) and (images := _find_images_by_id(wanted, source_location, source)):
            error.hint = (
                f"{printable(wanted)} is an image ID; use the name or digest instead: {format_image_names(images)}"
            )
        raise


def _find_images_by_id(image_id: str, source_location: Location | None, source: Source) -> list[Root]:
    """List the images with this ID; in an archive from a pipe only those that are known already."""
    from ocistream.archive.stream import ArchiveStreamSource

    # What is wrong in other images is not what the user asked about.
    with contextlib.suppress(OcistreamError):
        if isinstance(source, ArchiveStreamSource):
            return [Root(image_name_of(entry), entry) for entry in source.find_entries_with(image_id)]
        if source_location is not None and source_location.path is not None:
            return _search_images_by_id(image_id, source_location)
    return []


def _search_images_by_id(image_id: str, source_location: Location) -> list[Root]:
    from ocistream.transfer.no_destination import DiscardedBlobs

    source = open_source(replace(source_location, name=None), OpenContext(), Selection(referrers="left"))
    with contextlib.closing(source):
        graph = source.resolve(DiscardedBlobs(threading.Event()))
    digests = {
        digest
        for digest, document in graph.documents.items()
        if document.config is not None and document.config.digest == image_id
    }
    return [root for root in graph.roots if digests & graph.reachable(root, alone=True)]
