"""The page for browsers: which images are served, and the command that pulls each of them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from ocistream.layout.index import FULL_NAME, entry_name_of
from ocistream.oci.descriptor import UNKNOWN_MEDIA_TYPE, Descriptor
from ocistream.serve.image_index import served_names_of
from ocistream.transfer.inspection import inspect_source
from ocistream.transfer.inventory_page import CONTENT_SECURITY_POLICY, render_page

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ocistream.serve.archive_storage import Storage
    from ocistream.serve.image_index import ImageIndex

HEADERS: Final = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Vary": "Accept",
}


def render_image_page(storage: Storage, host: str) -> Iterator[str]:
    """Return the pieces of the page. `host` is the address of the registry in the commands.

    Raises:
        OcistreamError: the storage cannot be read.
    """
    index = storage.index()
    with contextlib.closing(storage.open_source()) as source:
        inventory = inspect_source(source)
    return render_page(inventory, host, lambda image: _pull_command(index, host, image))


def _pull_command(index: ImageIndex, host: str, image: Mapping[str, Any]) -> str | None:
    if "subject" in image or image.get("kind") == "artifact":
        return None
    name, digest = image["name"], image.get("digest")
    if digest is not None:
        entries = [entry for entry in index.entries_with_digest(digest) if name in {None, entry_name_of(entry)}]
    else:
        # Only manifest.json of a docker-archive lists the image; its manifest is made here.
        entries = [Descriptor(UNKNOWN_MEDIA_TYPE, "", 0, annotations={FULL_NAME: name})]
    for entry in entries:
        for repository, tag in served_names_of(entry, index.default_repository):
            # Another image may have the same name.
            found = index.find(repository, tag)
            if found is not None and digest in {None, found.digest}:
                return f"docker pull {host}/{repository}:{tag}"
    return f"docker pull {host}/{index.default_repository}@{digest}" if digest is not None else None
