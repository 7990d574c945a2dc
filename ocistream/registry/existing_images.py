"""Images that a repository has already: of a large one not every blob is asked for.

A registry takes no manifest without its blobs (distribution-spec, MANIFEST_BLOB_UNKNOWN), so what has the manifest has
the blobs, and crane and oras ask no further. But one that has lost blobs, to a garbage collection gone wrong, still has
the manifest, and pushing once more is to repair that. So no image is believed in for its manifest alone: all blobs of
a usual image are asked for, and of a large one the config and some layers from its first to its last.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Final

from ocistream.oci.graph import children_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph

__all__ = ["MAX_BLOBS_CHECKED", "ExistingImages"]

#: How many blobs of an image are asked for. Few images have more, and so many take a twentieth of a second.
MAX_BLOBS_CHECKED: Final = 24


class ExistingImages:
    """What one repository has of large images. Safe for several threads."""

    def __init__(self, has_manifest: Callable[[str], bool], has_blob: Callable[[Descriptor], bool]) -> None:
        """Ask by these: whether a manifest is there under its digest, and whether a blob is, which may be cached."""
        self._has_manifest = has_manifest
        self._has_blob = has_blob
        self._images_by_digest: dict[str, _ImageCheck] = {}
        #: By the digest of a blob, the large images that have it.
        self._images_by_blob: dict[str, list[_ImageCheck]] = {}

    def expect(self, graph: Graph, needed: set[str]) -> None:
        """Learn what is to come to this repository: `needed` are the digests. Nothing is asked yet."""
        moved = {blob.digest for blob in graph.blobs}
        for manifest, document in graph.images():
            digest = manifest.descriptor.digest
            blobs = list({blob.digest: blob for blob in children_of(document) if blob.digest in moved}.values())
            if digest not in needed or digest in self._images_by_digest or len(blobs) <= MAX_BLOBS_CHECKED:
                continue
            image = self._images_by_digest[digest] = _ImageCheck(
                [partial(self._has_manifest, digest), *(partial(self._has_blob, blob) for blob in _sample_blobs(blobs))]
            )
            for blob in blobs:
                self._images_by_blob.setdefault(blob.digest, []).append(image)

    def has_blob(self, blob: Descriptor) -> bool:
        """Say whether a blob is one of a large image that is there. If not, nothing is known of it."""
        return any(image.is_stored() for image in self._images_by_blob.get(blob.digest, ()))


class _ImageCheck:
    """Questions, all of which have to be answered with yes. Who wants to know takes part in asking them."""

    def __init__(self, checks: Sequence[Callable[[], bool]]) -> None:
        self._remaining = list(reversed(checks))
        self._running = 0
        self._is_stored = True
        self._condition = threading.Condition()

    def is_stored(self) -> bool:
        """Ask what is left to ask, and wait for what others are asking.

        Raises:
            OcistreamError: there was no answer. To whoever else waits for it that is a no.
        """
        while True:
            with self._condition:
                if not self._remaining or not self._is_stored:
                    # Even where that cannot change the answer: who is told no asks the same questions one by one.
                    self._condition.wait_for(lambda: not self._running)
                    return self._is_stored
                question = self._remaining.pop()
                self._running += 1
            yes = False
            try:
                yes = question()
            finally:
                with self._condition:
                    self._running -= 1
                    if not yes:
                        self._is_stored = False
                    self._condition.notify_all()


def _sample_blobs(blobs: Sequence[Descriptor]) -> list[Descriptor]:
    """Give as many as are asked for: the config, and of the layers the first, the last, and some between them."""
    config, *layers = blobs
    steps = MAX_BLOBS_CHECKED - 2
    return [config, *(layers[step * (len(layers) - 1) // steps] for step in range(steps + 1))]
