"""An image ID (the digest of a config, as Docker shows it) given in place of an image's name or digest."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from ocistream.errors import OcistreamError
from ocistream.layout.index import NoSuchImageError, name_of, names_there
from ocistream.oci.graph import Root
from ocistream.oci.reference import is_digest, printable
from ocistream.stores import Surroundings, Want, open_source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocistream.stores import End
    from ocistream.transfer.interfaces import Source

__all__ = ["explaining_image_ids"]


@contextlib.contextmanager
def explaining_image_ids(of: End | None, source: Source) -> Iterator[None]:
    """Let the error about an image that does not exist say which image has the ID that was given."""
    try:
        yield
    except NoSuchImageError as error:
        wanted = error.wanted
        if is_digest(wanted) and (images := _with_id(wanted, of, source)):
            error.hint = f"{printable(wanted)} is an image ID; use the name or digest instead: {names_there(images)}"
        raise


def _with_id(image_id: str, of: End | None, source: Source) -> list[Root]:
    """List the images with this ID; in an archive from a pipe only those that are known already."""
    from ocistream.archive.stream import ArchiveStreamSource

    # What is wrong in other images is not what the user asked about.
    with contextlib.suppress(OcistreamError):
        if isinstance(source, ArchiveStreamSource):
            return [Root(name_of(entry), entry) for entry in source.entries_with(image_id)]
        if of is not None and of.path is not None:
            return _read_again(image_id, of)
    return []


def _read_again(image_id: str, of: End) -> list[Root]:
    from ocistream.transfer.no_destination import Onlooker

    source = open_source(replace(of, name=None), Surroundings(), Want(referrers="left"))
    with contextlib.closing(source):
        graph = source.graph(Onlooker(threading.Event()))
    digests = {
        digest
        for digest, document in graph.documents.items()
        if document.config is not None and document.config.digest == image_id
    }
    return [root for root in graph.roots if digests & graph.reachable(root, alone=True)]
