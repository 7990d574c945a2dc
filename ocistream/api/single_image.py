"""Read the digest, the manifest or the config of one image of a location, without its layers."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import ArchiveError, NotFoundError, RegistryError, UnsupportedError, UsageError
from ocistream.layout.image_selection import Selection, select_single_image
from ocistream.locations import open_source
from ocistream.oci.platforms import ALL_PLATFORMS, list_platforms
from ocistream.oci.reference import is_digest, printable
from ocistream.transfer.discarded_blobs import DiscardedBlobs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocistream.errors import OcistreamError
    from ocistream.locations import Location, OpenContext
    from ocistream.oci.descriptor import Descriptor, Manifest
    from ocistream.oci.graph import Graph, Root
    from ocistream.oci.platforms import PlatformChoice
    from ocistream.transfer.interfaces import Source

#: Statuses of registries and proxies that do not support HEAD; they may support GET.
_HEAD_UNSUPPORTED: Final = frozenset({400, 405, 501})


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleImage:
    """The only image of a location, or its manifest for one platform. Each method opens the location.

    The methods raise NotFoundError if the image or platform does not exist, UsageError if there are several images, and
    an OcistreamError if the location cannot be read.
    """

    location: Location
    context: OpenContext
    platforms: PlatformChoice = ALL_PLATFORMS
    #: How much larger than itself a compressed archive may become.
    max_ratio: int = limits.MAX_RATIO

    def find_digest(self) -> str:
        """Return the digest. A registry is asked by HEAD if that is enough.

        Raises:
            UnsupportedError: the image is in a docker-archive, which has no digests.
        """
        reference = self.location.reference
        if len(self.platforms.platforms) > 1:
            msg = "several platforms have several digests"
            raise UsageError(msg, hint="choose one --platform")
        if reference is not None and not self.platforms.platforms:
            stated = None
            try:
                stated = self.context.registries().open_repository(reference).find_digest(reference.target)
            except RegistryError as error:
                if error.status not in _HEAD_UNSUPPORTED:
                    raise
            # The registry may claim the digest that the user gave without having it. None and "" are not digests.
            if stated is not None and is_digest(stated) and reference.digest in {None, stated}:
                return stated
        return self.read_manifest().descriptor.digest

    def read_manifest(self) -> Manifest:
        """Return the exact manifest or index.

        Raises:
            UnsupportedError: the image is in a docker-archive, which has no manifests.
        """
        if self.location.reference is not None and not self.platforms.platforms:
            from ocistream.registry.source import RegistrySource

            return RegistrySource(self.context.registries(), [self.location.reference]).fetch_image_manifest()
        with self._open() as (source, graph, root, _):
            for _blob in source.blobs(()):
                # A pipe is read to its end: its writer must not fail.
                pass
            if root.is_synthesized:
                msg = f"{self._describe(root)} is in a docker-archive, which has no manifests and so no digests"
                raise UnsupportedError(msg, hint=f"its image ID is {graph.image_id(root)}")
            for manifest in graph.manifests:
                if manifest.descriptor.digest == root.descriptor.digest:
                    return manifest
            raise self._missing_error(root.descriptor)

    def read_config(self) -> bytes:
        """Return the exact config of the image.

        Raises:
            UsageError: the image is an index without a chosen platform.
        """
        with self._open() as (source, graph, root, discarded):
            document = graph.documents.get(root.descriptor.digest)
            if document is None:
                raise self._missing_error(root.descriptor)
            if document.config is None:
                existing = [child for child in document.manifests if child.digest in graph.documents]
                platforms = ", ".join(map(printable, list_platforms(existing)))
                msg = f"{self._describe(root)} is an index: each of its platforms has a config"
                raise UsageError(msg, hint=f"add --platform: {platforms}" if platforms else None)
            if (content := graph.embedded.get(document.config.digest)) is not None:
                return content
            contents: list[bytes] = []
            wanted = [document.config]
            discarded.read_contents(source.blobs(wanted), wanted, lambda _, content: contents.append(content), jobs=1)
            if not contents:
                raise self._missing_error(document.config)
            return contents[0]

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[Source, Graph, Root, DiscardedBlobs]]:
        selection = Selection(select_single_image, self.platforms, self.max_ratio, referrers="skip")
        with contextlib.ExitStack() as stack:
            source = open_source(self.location, self.context, selection)
            stack.callback(source.close)
            discarded = stack.enter_context(contextlib.closing(DiscardedBlobs(self.context.cancelled)))
            graph = source.resolve(discarded)
            (root,) = graph.roots
            yield source, graph, root, discarded

    def _describe(self, root: Root) -> str:
        return printable(root.name or self.location.text, 1024)

    def _missing_error(self, descriptor: Descriptor) -> OcistreamError:
        msg = f"{printable(self.location.text, 1024)} lacks {descriptor.digest}"
        return (NotFoundError if self.location.reference else ArchiveError)(msg)
