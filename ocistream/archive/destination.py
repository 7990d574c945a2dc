"""Destination for an OCI archive (a layout in a tar), and `manifest.json`. The same graph gives the same bytes.

The order is `oci-layout`, `index.json`, `manifest.json`, manifests, configs, layers. A reader knows the graph, and can
ask its registry for missing blobs, before the first large byte.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Any

from ocistream.archive.tar_writer import TarWriter
from ocistream.layout.index import OCI_LAYOUT, blob_name, build_entries, build_index_json, docker_tag
from ocistream.notices import notify
from ocistream.oci.graph import is_image
from ocistream.oci.reference import printable
from ocistream.oci.strict_json import canonical_json
from ocistream.oci.walk import leaves_of
from ocistream.transfer.interfaces import Traits
from ocistream.transfer.verified_blobs import require_complete

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ocistream.archive.outputs import Output
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph, Root
    from ocistream.transfer.interfaces import NewBlob, VerifiedBlob


class TarDestination:
    """Writes images into new tars, which have no blobs of earlier runs. Each digest is stored once."""

    def __init__(self) -> None:
        """Start without blobs."""
        #: The digests of the blobs and manifests that were written.
        self._written: set[str] = set()
        #: The outputs of the open tars.
        self._outputs: list[Output] = []

    def expect(self, graph: Graph) -> Graph:
        """Return the graph: an OCI archive can hold anything."""
        return graph

    def stored(self, blobs: Sequence[Descriptor], *, quick: bool = False) -> set[str]:  # noqa: ARG002 - it is known
        """Return the digests of the blobs that were already written."""
        return {blob.digest for blob in blobs if blob.digest in self._written}

    def partial_size(self, _blob: Descriptor, /) -> int:
        """Return 0: an unfinished entry is found where it is written."""
        return 0

    def discard(self) -> None:
        """Keep nothing that a later run could resume."""
        for output in self._outputs:
            output.discard()

    def close(self) -> None:
        """Remove what was not committed. A partial file is kept, so that a later run can resume."""
        with contextlib.ExitStack() as stack:
            for output in self._outputs:
                stack.callback(output.close)


class ArchiveDestination(TarDestination):
    """Writes images into one tar, from front to back."""

    def __init__(self, output: Output, *, mtime: int = 0) -> None:
        """Write to `output`. `mtime` is the time of every entry, in seconds since 1970."""
        super().__init__()
        self._outputs.append(output)
        self._tar = TarWriter(output, mtime)
        #: Annotations for `index.json`, in addition to the list of omitted blobs.
        self.annotations: Mapping[str, str] = {}
        # An unfinished entry can be removed again from a file, but not from a pipe.
        self.traits = Traits(can_omit=True, can_retry=self._tar.can_roll_back)
        self._started = False

    def begin(self, graph: Graph) -> None:
        """Write the index and the manifests. `oci-layout` comes first, before any blob that was written early."""
        # Check all names before anything is written.
        entries = build_entries(graph)
        self._start()
        for name, content in build_small_files(graph, entries, self.annotations):
            self._tar.add_small(name, content)
        for manifest in graph.manifests:
            digest = manifest.descriptor.digest
            if digest not in self._written:
                self._written.add(digest)
                self._tar.add_small(blob_name(digest), manifest.raw)

    def write(self, blob: VerifiedBlob) -> int:
        """Append a blob. If its chunks raise into a pipe, the entry stays short and the archive has no end mark."""
        require_complete(blob)
        self._start()
        digest = blob.descriptor.digest
        self._tar.add_blob(blob_name(digest), blob)
        self._written.add(digest)
        return 0

    def write_new(self, blob: NewBlob) -> Descriptor:
        """Append a blob whose digest and size are known only after its last byte."""
        self._start()
        descriptor = self._tar.add_new(
            blob, lambda stored: None if stored.digest in self._written else blob_name(stored.digest)
        )
        self._written.add(descriptor.digest)
        return descriptor

    def commit(self, graph: Graph) -> None:  # noqa: ARG002 - the graph was written first
        """Write the end mark, and make the archive visible under its name."""
        self._tar.write_end()
        self._tar.output.finish()

    def _start(self) -> None:
        if not self._started:
            self._started = True
            self._tar.add_small("oci-layout", OCI_LAYOUT)


def build_small_files(
    graph: Graph, entries: Sequence[Descriptor], annotations: Mapping[str, str] | None = None
) -> Iterator[tuple[str, bytes]]:
    """Yield the names and contents of the files that come before the manifests.

    `entries` are the entries of the index. `annotations` are written beside the annotation of omitted blobs.
    """
    index_annotations = dict(annotations or {})
    if graph.omitted_from_output:
        from ocistream.oci.omitted_blobs import OMITTED_ANNOTATION, format_omitted

        index_annotations[OMITTED_ANNOTATION] = format_omitted(graph.omitted_from_output)
    yield "index.json", build_index_json(entries, annotations=index_annotations)
    # Docker cannot load an archive that lacks layers, so an archive with omitted blobs has no manifest.json.
    if not graph.omitted_from_output and (images := list_docker_images(graph)):
        yield "manifest.json", build_manifest_json(graph, images, blob_name)


def list_docker_images(graph: Graph) -> list[tuple[Root, str]]:
    """List the images for `manifest.json`, by which all versions of `docker load` can load an OCI archive.

    `docker load` takes one image a tag, so an index is represented by linux/amd64, or else by its first image. The
    result must not depend on the machine: use `--platform` to choose another image.
    """
    images: list[tuple[Root, str]] = []
    for root in graph.roots:
        platforms = _list_image_platforms(graph, root.descriptor)
        if not platforms:
            continue
        amd64 = (digest for digest, platform in platforms.items() if platform == "linux/amd64")
        chosen = next(itertools.chain(amd64, platforms))
        images.append((root, chosen))
        if len(platforms) > 1:
            name = printable(root.name) if root.name else root.descriptor.digest
            platform = printable(platforms[chosen]) or "an image without a platform"
            which = f"{platform}, one of {len(platforms)} platforms of {name}"
            notify(f"manifest.json lists {which}: `docker load` before version 25 takes that one", level=1)
    return images


def _list_image_platforms(graph: Graph, root: Descriptor) -> dict[str, str]:
    """Return the digests of the images of a root, each with the first platform that is listed for it."""
    leaves = leaves_of(graph.documents, root.digest) if root.is_index and root.digest in graph.documents else [root]
    platforms: dict[str, str] = {}
    for leaf in leaves:
        if leaf.digest in graph.documents and is_image(graph.documents[leaf.digest]):
            platforms.setdefault(leaf.digest, str(leaf.platform or ""))
    # Attestations look like images with an unknown platform.
    return {digest: platform for digest, platform in platforms.items() if platform != "unknown/unknown"}


def build_manifest_json(graph: Graph, images: Iterable[tuple[Root, str]], path_of: Callable[[str], str]) -> bytes:
    """Return a `manifest.json` with one entry for each image: a root with its name, and the digest of its manifest.

    The tag is the short name that `docker save` would write. `path_of` returns the name in the tar of a blob.
    """
    entries: dict[str, dict[str, Any]] = {}
    for root, digest in images:
        document = graph.documents[digest]
        entry = entries.setdefault(
            digest,
            {
                "Config": path_of(document.config.digest) if document.config else "",
                "RepoTags": None,
                "Layers": [path_of(layer.digest) for layer in document.layers],
            },
        )
        if root.name and (tag := docker_tag(root.name)):
            entry["RepoTags"] = list(dict.fromkeys([*(entry["RepoTags"] or ()), tag]))
    return canonical_json(list(entries.values()))
