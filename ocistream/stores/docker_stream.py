"""docker-archives out of a pipe: their names say nothing of what they stand for, and `manifest.json` mostly comes last.

So what looks like JSON is held, what looks like a layer goes to the sink at once, without a digest, and the graph is
made at the end. Whoever reads the stream brings the entries; of `index.json` nothing is known here.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from ocistream import layers, limits
from ocistream.compression import NONE, Codec
from ocistream.errors import ArchiveError, UnsupportedError
from ocistream.layers import looks_like_document, looks_like_layer
from ocistream.model import UNKNOWN_TYPE, Descriptor
from ocistream.reference import printable
from ocistream.stores.docker_images import docker_graph, parse_manifest_json
from ocistream.stores.entries import Contents, blob_digest
from ocistream.stream import digest_of, gathered

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocistream.graph import Graph
    from ocistream.interfaces import Early
    from ocistream.platforms import PlatformChoice
    from ocistream.stores.index import Selection
    from ocistream.stream import Chunk

__all__ = ["DockerStream", "Passed"]


@dataclass(slots=True)
class Passed:
    """What has passed of an archive before its graph is known; `held_bytes` is how much of it is in memory."""

    contents: Contents
    held_bytes: int = 0
    #: By digest: small JSON, JSON for which there was no room, and how blobs are compressed that were handed on.
    held: dict[str, bytes] = field(default_factory=dict)
    spilled: dict[str, Descriptor] = field(default_factory=dict)
    codecs: dict[str, Codec] = field(default_factory=dict)


class DockerStream:
    """What `docker save` wrote, while it passes; `manifest` is its `manifest.json`, once that has."""

    def __init__(self, passed: Passed) -> None:
        """Begin with nothing; what is held counts for all of the archive."""
        self._passed = passed
        self.manifest = b""
        #: By name: small JSON that is held, and what was handed on.
        self._documents: dict[str, bytes] = {}
        self._layers: dict[str, Descriptor] = {}
        self._spilled_documents: set[str] = set()

    def take(self, name: str, size: int, chunks: Iterator[Chunk], early: Early) -> None:
        """Hold what may be the config of a docker-archive, and hand on what may be one of its layers.

        `size` is that of the entry, in bytes.

        Raises:
            UnsupportedError: there are too many of them.
        """
        first = bytes(next(chunks, b""))
        whole = itertools.chain([first], chunks)
        if looks_like_document(first):
            if self._passed.held_bytes + size <= limits.MAX_HELD_JSON:
                self._documents[name] = gathered(whole)
                self._passed.held_bytes += size
            elif size <= limits.MAX_CONFIG:
                self._hand_on(name, whole, early)
                self._spilled_documents.add(name)
        elif looks_like_layer(first) or name.endswith(".tar"):
            self._hand_on(name, whole, early)

    def _hand_on(self, name: str, chunks: Iterator[Chunk], early: Early) -> None:
        if len(self._layers) >= limits.MAX_LISTED:
            msg = f"more than {limits.MAX_LISTED} layers come before the archive's manifest.json"
            raise UnsupportedError(msg, hint="read it from a file instead of a pipe")
        self._layers[name] = early.put_unnamed(chunks)

    def graph(self, select: Selection, platforms: PlatformChoice, early: Early) -> Graph:
        """Make the graph, once all of the archive has passed.

        Raises:
            ArchiveError: `manifest.json` is malformed, or names what is not there, or is no config or layer.
            NotFoundError, UsageError: as the choice of images has it.
        """
        images = parse_manifest_json(self.manifest)
        config = partial(self._config, early)
        return docker_graph(images, select, platforms, config=config, layer=self._layer)

    def _config(self, early: Early, name: str) -> bytes:
        name, place = self._passed.contents.resolve(name)
        digest = blob_digest(name)
        raw = self._documents.get(name) if digest is None else self._passed.held.get(digest)
        if raw is not None:
            # It is a blob as well, and will be asked for.
            self._passed.held[digest_of(raw)] = raw
            return raw
        if digest is None and name in self._spilled_documents:
            digest = self._layers[name].digest
        elif digest is None or digest not in self._passed.spilled:
            msg = f"{printable(name)} in the archive is no config, or is larger than {limits.MAX_CONFIG} bytes"
            raise ArchiveError(msg)
        return early.recall(Descriptor(UNKNOWN_TYPE, digest, place.size))

    def _layer(self, name: str, diff_id: str) -> Descriptor:  # noqa: ARG002 - what it is was found out
        name, place = self._passed.contents.resolve(name)
        digest = blob_digest(name)
        known = None if name in self._spilled_documents else self._layers.get(name)
        if (
            digest
            and digest not in self._passed.spilled
            and not looks_like_document(self._passed.held.get(digest, b""))
        ):
            codec = self._passed.codecs.get(digest, NONE)
            known = Descriptor(layers.media_type(layers.OCI, codec.name), digest, place.size)
        if known is None:
            msg = f"{printable(name)} in the archive is no layer"
            raise ArchiveError(msg, hint="if it is one, of an uncommon form, read it from a file instead of a pipe")
        return known
