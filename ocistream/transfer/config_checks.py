"""Check that the config of an image is valid JSON before its last byte is passed on, and that layers match it.

Configs of other artifacts (charts, signatures) are not checked. Errors of layers are returned: the caller raises or
collects them.
"""

from __future__ import annotations

import io
import re
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from ocistream import limits, notices
from ocistream.errors import ArchiveError, IntegrityError, OcistreamError, UnsupportedError
from ocistream.oci.documents import check_config, parse_config_platform
from ocistream.oci.graph import is_image
from ocistream.oci.reference import printable
from ocistream.streams.chunks import peek_chunks
from ocistream.streams.synchronization import Budget

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from ocistream.oci.descriptor import Descriptor, Manifest, Platform
    from ocistream.oci.documents import Document
    from ocistream.oci.graph import Graph
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Blob, VerifiedBlob

_JSON_OBJECT_START: Final = re.compile(rb"[ \t\n\r]*+\{")


#: Of all transfers of the process, one at a time buffers a large config.
_large_configs: Final = Budget(1)


class ConfigChecker:
    """The configs of images in a graph. Each is buffered completely to be parsed, large ones one at a time."""

    def __init__(self) -> None:
        """Start without configs."""
        self.digests: set[str] = set()
        self._not_json: set[str] = set()
        #: Of each config of an image whose platform the user did not choose: the image's name, and the platform.
        self._default_platforms: dict[str, tuple[str, Platform]] = {}

    def find_configs(self, graph: Graph) -> None:
        """Find the configs of a graph."""
        self.digests = set(find_configs(graph))
        for root in graph.roots:
            document = graph.documents.get(root.descriptor.digest)
            if root.default_platform is not None and document is not None and document.config is not None:
                name = printable(root.name or root.origin or root.descriptor.digest)
                self._default_platforms[document.config.digest] = name, root.default_platform

    def watch_early(self, blob: Blob) -> Blob:
        """Return a blob that comes before the graph, with chunks that note whether it may be a config."""
        return (
            replace(blob, open=partial(self._watch_chunks, blob)) if blob.descriptor.size <= limits.MAX_CONFIG else blob
        )

    def check_early(self, descriptor: Descriptor) -> None:
        """Refuse a blob that came before the graph, if it is a config but does not start as JSON.

        Most early JSON is buffered until the graph is known, and then parsed. What did not fit into the buffer is not
        read again.
        """
        if descriptor.digest in self.digests and descriptor.digest in self._not_json:
            raise not_json_error(descriptor)

    def _watch_chunks(self, blob: Blob, offset: int = 0) -> Iterator[Chunk]:
        first, chunks = peek_chunks(blob.open(offset))
        if not can_be_json_object(first):
            self._not_json.add(blob.descriptor.digest)
        yield from chunks

    def take_turn(self, descriptor: Descriptor, cancelled: threading.Event | None) -> AbstractContextManager[object]:
        """Return a context that waits until no other large config is buffered, if this one is large.

        Raises:
            CancelledError: `cancelled` was set during the wait.
        """
        is_large = descriptor.size > limits.MAX_JSON_UNSPLIT
        return _large_configs.reserve(cancelled=cancelled) if is_large else nullcontext()

    def with_check(self, blob: VerifiedBlob) -> VerifiedBlob:
        """Return a config whose chunks raise ArchiveError if it is malformed.

        The error comes before the last chunk, so a malformed config is never completed at the destination. A config
        whose beginning cannot be read is not checked.
        """

        def opened(offset: int = 0, stored: Iterable[Chunk] | None = None) -> Iterator[Chunk]:
            if offset and stored is None:
                return blob.open(offset)
            content = io.BytesIO()
            beginning = None if stored is None else record_chunks(stored, content)
            return self._check_chunks(blob, blob.open(offset, beginning), content)

        return replace(blob, open=opened)

    def _check_chunks(self, blob: Blob, chunks: Iterator[Chunk], content: io.BytesIO) -> Iterator[Chunk]:
        """Pass on all chunks but the last; pass on the last if they, after what `content` has, are a valid config."""
        last = b""
        for chunk in chunks:
            if last:
                yield last
            last = bytes(chunk)
            content.write(last)
        check_config(content.getvalue(), f"the config {blob.descriptor.digest}")
        self.report_platform(blob.descriptor, content.getvalue())
        if last:
            yield last

    def report_platform(self, descriptor: Descriptor, content: bytes) -> None:
        """Tell the user if a valid config is that of an image for another platform than the default."""
        name, wanted = self._default_platforms.get(descriptor.digest, ("", None))
        if wanted is not None:
            platform = None
            # The notice must not refuse an image that can be copied with --platform.
            with suppress(ArchiveError):
                platform = parse_config_platform(content, f"the config {descriptor.digest}")
            if platform is not None and not wanted.matches(platform):
                notices.notify(f"{name}: only {printable(str(platform))}; this machine is {wanted}")


def find_configs(graph: Graph) -> dict[str, Descriptor]:
    """Return the configs of the images by digest, without those of artifacts and attestations."""
    return {
        document.config.digest: document.config
        for _, document in graph.images()
        if document.config is not None and is_image(document)
    }


def record_chunks(chunks: Iterable[Chunk], content: io.BytesIO) -> Iterator[Chunk]:
    """Yield chunks, and add each to `content`."""
    for chunk in chunks:
        content.write(chunk)
        yield chunk


def can_be_json_object(beginning: Chunk) -> bool:
    """Return whether a blob that begins with these bytes may be a JSON object, such as a config or a manifest."""
    return _JSON_OBJECT_START.match(beginning) is not None


def not_json_error(descriptor: Descriptor) -> ArchiveError:
    """Return the error for a config that does not start as a JSON object."""
    return ArchiveError(f"the config {descriptor.digest} is not valid JSON: it does not begin as an object")


def media_type_error(layer: Descriptor, codec: str) -> ArchiveError:
    """Return the error for a layer whose bytes have another compression than its media type says."""
    return ArchiveError(f"{layer.digest} has the media type {layer.media_type}, but its compression is {codec}")


def find_diff_id_errors(
    images: Iterable[tuple[Manifest, Document]],
    diff_ids: Mapping[str, Sequence[str]],
    plain_digests: Mapping[str, str],
) -> Iterator[tuple[str, OcistreamError]]:
    """Yield the digest of each layer or manifest that does not match its config, with the error.

    `diff_ids` are those of the configs to check, by the digests of the configs. `plain_digests` are the sha256 digests
    of the decompressed bytes, by the digests of the layers. A diff_id of another algorithm gives an UnsupportedError.
    """
    for manifest, document in images:
        if document.config is None or not is_image(document) or document.config.digest not in diff_ids:
            continue
        expected = diff_ids[document.config.digest]
        if len(expected) != len(document.layers):
            msg = (
                f"manifest {manifest.descriptor.digest} has {len(document.layers)} layers, but its config has "
                f"{len(expected)} diff_ids"
            )
            yield manifest.descriptor.digest, ArchiveError(msg)
            continue
        for layer, diff_id in zip(document.layers, expected, strict=True):
            found = plain_digests.get(layer.digest, diff_id)
            if found == diff_id:
                continue
            if not diff_id.startswith("sha256:"):
                msg = f"{layer.digest}: the config of its image has the diff_id {diff_id}"
                yield layer.digest, UnsupportedError(msg)
                continue
            msg = (
                f"{layer.digest}: its decompressed bytes have the digest {found}, but the config of its image says "
                f"{diff_id}"
            )
            # No digest: the bytes of the layer are right.
            yield layer.digest, IntegrityError(msg, hint="the image itself is wrong: build it again")
