"""docker-archives out of a pipe: their names say nothing of what they stand for, and `manifest.json` mostly comes last.

So what looks like JSON is held, what looks like a layer goes to the sink at once, without a digest, and the graph is
made at the end. Whoever reads the stream brings the entries. The images of an `index.json` are compared with them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.archive.docker_images import Manifests, docker_graph, is_saved
from ocistream.archive.entries import Contents, blob_digest
from ocistream.archive.index_comparison import Comparison
from ocistream.errors import ArchiveError, IntegrityError, UnsupportedError
from ocistream.oci.descriptor import UNKNOWN_TYPE, Descriptor, Manifest
from ocistream.oci.reference import printable
from ocistream.streams import layer_types
from ocistream.streams.chunks import digest_of, gathered
from ocistream.streams.compression import NONE, Codec
from ocistream.streams.layer_types import looks_like_document, looks_like_layer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ocistream.archive.docker_images import Listed
    from ocistream.layout.index import Selection
    from ocistream.oci.documents import Document
    from ocistream.oci.graph import Graph
    from ocistream.oci.platforms import PlatformChoice
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Early

__all__ = ["FROM_A_FILE", "DockerStream", "Passed"]

FROM_A_FILE: Final = "read it from a file instead of a pipe: there the order does not matter"


@dataclass(slots=True)
class Passed:
    """What has passed of an archive before its graph is known; `held_bytes` is how much of it is in memory."""

    contents: Contents
    held_bytes: int = 0
    #: By digest: small JSON, JSON for which there was no room, and how blobs are compressed that were handed on.
    held: dict[str, bytes] = field(default_factory=dict)
    spilled: dict[str, Descriptor] = field(default_factory=dict)
    codecs: dict[str, Codec] = field(default_factory=dict)
    #: Blobs that have other bytes than their names promise.
    wrong: dict[str, IntegrityError] = field(default_factory=dict)


class DockerStream:
    """What `docker save` wrote, while it passes; `images` are those of its `manifest.json`, None until that has."""

    def __init__(self, passed: Passed) -> None:
        """Begin with nothing; what is held counts for all of the archive."""
        self._passed = passed
        self.images: list[Listed] | None = None
        #: The images of `index.json`, once that has passed.
        self.comparison: Comparison | None = None
        self._compared_at = -1, -1
        self._lists_others = False
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

    @property
    def is_saved(self) -> bool:
        """Whether it is known that `docker save` wrote the archive."""
        return self.images is not None and is_saved(self.images, self._passed.contents)

    def graph(self, select: Selection, platforms: PlatformChoice, early: Early) -> Graph:
        """Make the graph, once all of the archive has passed.

        Raises:
            ArchiveError: `manifest.json` names what is not there, or is no config or layer; or `index.json` has another
                image under the same name.
            NotFoundError, UsageError: as the choice of images has it.
        """
        images = self.images or []
        comparison = self._compare_all(early)
        comparison.only_in_manifest_json(images, by_name=True)
        return docker_graph(
            images,
            select,
            platforms,
            config=partial(self._config, early),
            layer=self._layer,
            manifest=partial(self._manifest, comparison, early),
            saved=self.is_saved,
        )

    # -- beside an index.json ----------------------------------------------------------------------------

    def compare_with(self, entries: Sequence[Descriptor]) -> None:
        """Take the entries of `index.json`."""
        self.comparison = Comparison(entries)
        self._note_held(list(self.comparison.needs))

    def compares(self, digest: str, size: int) -> bool:
        """Return whether a blob of `size` bytes is a manifest that is needed to compare the images."""
        return self.comparison is not None and digest in (needs := self.comparison.needs) and needs[digest].size == size

    def note(self, digest: str, raw: bytes, document: Document | None = None) -> None:
        """Take a manifest that passes, perhaps parsed, if it is needed to compare the images."""
        if self.comparison is None or digest not in self.comparison.needs:
            return
        if document is None:
            self._note_held(self.comparison.supply(digest, raw))
        else:
            self._note_held(self.comparison.supply_parsed(digest, document))

    def may_list_others(self) -> bool:
        """Return whether `manifest.json` lists images that `index.json` does not, as far as is known by now.

        Raises:
            ArchiveError: they contradict each other.
        """
        if not self.comparison or not self.images:
            return False
        if self._compared_at != self.comparison.state:
            self._compared_at = self.comparison.state
            self._lists_others = bool(self.comparison.only_in_manifest_json(self.images))
        return self._lists_others

    def others(self, early: Early | None = None) -> list[Listed]:
        """Return the images that only `manifest.json` lists, once all of the archive has passed.

        Without `early`, manifests that were handed on count as lacking.

        Raises:
            ArchiveError: they contradict each other.
        """
        return self._compare_all(early).only_in_manifest_json(self.images) if self.images else []

    def check_late(self) -> None:
        """Compare a `manifest.json` that may have come after the graph was made.

        Raises:
            ArchiveError: it contradicts `index.json`.
            UnsupportedError: it lists other images.
        """
        if others := self.others():
            msg = f"manifest.json comes after the layers, and lists the image {printable(others[0].config)} as well"
            raise UnsupportedError(msg, hint=FROM_A_FILE)

    def made(self, others: Sequence[Listed], early: Early) -> tuple[list[Descriptor], dict[str, bytes]]:
        """Make manifests of images, and return what an `index.json` would list of them, and the manifests by digest."""
        manifests = Manifests(partial(self._config, early), self._layer)
        return manifests.entries(others), manifests.raw

    def _note_held(self, digests: list[str]) -> None:
        while digests:
            digest = digests.pop()
            held = self._passed.held.get(digest)
            if self.comparison is not None and held is not None and digest in self.comparison.needs:
                digests += self.comparison.supply(digest, held)

    def _compare_all(self, early: Early | None) -> Comparison:
        """Read what was handed on; what has not passed is lacking."""
        comparison = self.comparison or Comparison(())
        todo = list(comparison.needs)
        while todo:
            digest = todo.pop()
            if digest in self._passed.held:
                todo += comparison.supply(digest, self._passed.held[digest])
            elif early is not None and digest in self._passed.spilled:
                todo += comparison.supply(digest, early.recall(self._passed.spilled[digest]))
            else:
                del comparison.needs[digest]
        return comparison

    # -- what manifest.json names ------------------------------------------------------------------------

    def _manifest(self, comparison: Comparison, early: Early, image: Listed) -> Manifest | None:
        """Give the manifest that has passed of an image of `manifest.json`."""
        descriptor = comparison.manifest_of(image)
        if descriptor is None:
            return None
        raw = self._passed.held.get(descriptor.digest)
        return Manifest(descriptor, early.recall(descriptor) if raw is None else raw)

    def _config(self, early: Early, name: str) -> bytes:
        name, place = self._passed.contents.resolve(name)
        digest = blob_digest(name)
        if digest in self._passed.wrong:
            raise self._passed.wrong[digest]
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
            known = Descriptor(layer_types.media_type(layer_types.OCI, codec.name), digest, place.size)
        if known is None:
            msg = f"{printable(name)} in the archive is no layer"
            raise ArchiveError(msg, hint="if it is one, of an uncommon form, read it from a file instead of a pipe")
        return known
