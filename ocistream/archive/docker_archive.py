"""docker-archives (`docker save` before version 25, podman, skopeo): parse `manifest.json` and build OCI manifests.

The sources provide configs and layers; this module opens no files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from ocistream import limits, notices
from ocistream.archive.contents import normalize_name, parse_blob_name
from ocistream.errors import ArchiveError, IntegrityError, InvalidNameError, NotFoundError, UnsupportedError, UsageError
from ocistream.layout.image_selection import UNKNOWN_SIZE, UnknownDigestError, report_duplicate_names
from ocistream.layout.index import build_entry
from ocistream.oci.descriptor import OCI_CONFIG, OCI_MANIFEST, Descriptor, Manifest
from ocistream.oci.documents import parse_diff_ids
from ocistream.oci.graph import Graph, Root
from ocistream.oci.reference import parse_reference, printable
from ocistream.oci.strict_json import canonical_json, check_keys, parse_json
from ocistream.streams import layer_media_types
from ocistream.streams.chunks import compute_digest
from ocistream.transfer.graph_builder import GraphBuilder

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from ocistream.archive.contents import ArchiveContents
    from ocistream.layout.index import ImageSelector
    from ocistream.oci.platforms import PlatformChoice

__all__ = [
    "DockerImage",
    "ManifestSynthesizer",
    "build_docker_graph",
    "expand_docker_name",
    "is_docker_save",
    "mark_synthesized",
    "parse_manifest_json",
    "report_no_manifest_json",
    "report_only_in_manifest_json",
]


#: So many names are shown.
_MAX_SHOWN: Final = 10
#: What an entry of a `manifest.json` is called by Docker (moby's image/tarexport); see `oci.documents.FIELDS`.
_IMAGE_KEYS: Final = frozenset({"Config", "RepoTags", "Layers", "Parent", "LayerSources"})


@dataclass(frozen=True, slots=True)
class DockerImage:
    """One image of a `manifest.json`: the names in the tar of its config and of its layers, and its own names.

    `has_sources` says that the image has `LayerSources`, which only `docker save` writes.
    """

    config: str
    layers: tuple[str, ...]
    tags: tuple[str, ...]
    has_layer_sources: bool = False


def parse_manifest_json(raw: bytes) -> list[DockerImage]:
    """Give the images that a `manifest.json` lists.

    Raises:
        ArchiveError: it is malformed.
        UnsupportedError: it lists more than `limits.MAX_IMAGES`.
    """
    if len(raw) > limits.MAX_MANIFEST:
        msg = f"manifest.json is larger than {limits.MAX_MANIFEST} bytes"
        raise ArchiveError(msg)
    # It is a list, and what is parsed strictly is objects.
    key = "images"
    object_around = b'{"%b":%b}' % (key.encode(), raw)
    members = parse_json(object_around, "manifest.json", len(object_around), convert={key: _parse_image})
    listed = members.get(key)
    # With several members what stands there is no JSON, but goes on where the list ends.
    if not isinstance(listed, list) or len(members) > 1:
        msg = "manifest.json is not a list of images"
        raise ArchiveError(msg)
    if len(listed) > limits.MAX_IMAGES:
        msg = f"manifest.json lists more than {limits.MAX_IMAGES} images"
        raise UnsupportedError(msg, hint="save fewer at a time")
    return listed


def _parse_image(position: int, item: object) -> DockerImage:
    if isinstance(item, dict):
        check_keys(item, _IMAGE_KEYS, f"manifest.json: what stands at {position}")
        # Go writes an empty list as null.
        config, *named = item.get("Config"), *(item.get(key) for key in ("Layers", "RepoTags"))
        below, tags = ([] if names is None else names for names in named)
        if isinstance(config, str) and config and _are_strings(below) and _are_strings(tags):
            if len(below) > limits.MAX_LIST_ENTRIES:
                msg = f"manifest.json: what stands at {position} has more than {limits.MAX_LIST_ENTRIES} layers"
                raise ArchiveError(msg)
            tags = tuple(tag for tag in tags if tag)
            return DockerImage(
                normalize_name(config), tuple(map(normalize_name, below)), tags, bool(item.get("LayerSources"))
            )
    msg = f"manifest.json: what stands at {position} is no image with a Config and Layers"
    raise ArchiveError(msg)


def _are_strings(listed: object) -> bool:
    return isinstance(listed, list) and all(isinstance(item, str) for item in listed)


def is_docker_save(images: Sequence[DockerImage], contents: ArchiveContents) -> bool:
    """Return whether `docker save` wrote the archive: it alone lists `LayerSources`, or writes `repositories`."""
    return contents.has_repositories_file or any(image.has_layer_sources for image in images)


def report_only_in_manifest_json(images: Sequence[DockerImage]) -> None:
    """Report images that `manifest.json` lists and `index.json` does not: tools that read `index.json` miss them."""
    names = [
        printable(expand_docker_name(image.tags[0]))
        if image.tags
        else parse_blob_name(image.config) or printable(image.config)
        for image in images
    ]
    shown = ", ".join(names[:_MAX_SHOWN]) + (f" and {len(names) - _MAX_SHOWN} more" if names[_MAX_SHOWN:] else "")
    what = "an image" if len(names) == 1 else f"{len(names)} images"
    notices.notify(f"manifest.json lists {what} that index.json does not list: {shown} (included)")


def mark_synthesized(graph: Graph, synthesized: Collection[str]) -> Graph:
    """Return the graph with only these manifests counted as made: the archive has the others, byte for byte."""
    roots = tuple(
        replace(root, is_synthesized=root.is_synthesized and root.descriptor.digest in synthesized)
        for root in graph.roots
    )
    return replace(graph, roots=roots, synthesized=frozenset(synthesized))


def report_no_manifest_json() -> None:
    """Report, with -v, that a docker-archive is read as an OCI archive."""
    notices.notify("the archive has no manifest.json: the images of its index.json are read", level=1)


def build_docker_graph(
    images: Sequence[DockerImage],
    select: ImageSelector,
    platforms: PlatformChoice,
    *,
    config: Callable[[str], bytes],
    layer: Callable[[str, str], Descriptor],
    manifest: Callable[[DockerImage], Manifest | None] = lambda _image: None,
    is_docker_save: bool = False,
) -> Graph:
    """Make the graph of the chosen images; nothing of the others is looked at.

    `config` gives a config's bytes by its name in the tar, `layer` a layer's descriptor by its name and its diff_id,
    `manifest` the manifest that the archive has of an image, if it has one. `saved` says that `docker save` wrote the
    archive.

    Raises:
        ArchiveError: what `manifest.json` names is not there, or does not fit together.
        IntegrityError: a plain layer is not the one that the config promises.
    """
    manifests = ManifestSynthesizer(config, layer, manifest)
    builder = GraphBuilder(platforms)
    for root in _select_roots(images, select, manifests):
        builder.add_root(root)
    while builder.needs:
        digest = next(iter(builder.needs))
        builder.supply(
            digest, manifests.read_config(digest) if builder.is_config(digest) else manifests.manifests[digest]
        )
    graph = builder.build()
    report_duplicate_names(graph)
    return replace(
        graph,
        has_plain_layers=is_docker_save or manifests.has_plain_layers,
        synthesized=frozenset(manifests.manifests) - manifests.existing,
    )


def _select_roots(images: Sequence[DockerImage], select: ImageSelector, manifests: ManifestSynthesizer) -> list[Root]:
    """Choose by names, before any manifest is made; by digests only if that did not lead to anything."""
    standing_for: dict[str, DockerImage] = {}
    roots: list[Root] = []
    for image in images:
        digest = compute_digest(canonical_json((image.config, image.layers)))
        standing_for[digest] = image
        roots += _build_roots(image, Descriptor(OCI_MANIFEST, digest, UNKNOWN_SIZE))
    try:
        chosen = select(roots)
    except (NotFoundError, UsageError, UnknownDigestError):
        # One may be chosen by its digest, two may be the same; and in what is said the digests have to be right.
        chosen = select([root for image in images for root in manifests.build_roots(image)])
    else:
        chosen = [
            replace(root, descriptor=manifests.synthesize(standing_for[root.descriptor.digest])) for root in chosen
        ]
    return [replace(root, is_synthesized=root.descriptor.digest not in manifests.existing) for root in chosen]


def _build_roots(image: DockerImage, descriptor: Descriptor) -> list[Root]:
    names: list[str | None] = [expand_docker_name(tag) for tag in dict.fromkeys(image.tags)]
    return [Root(name, descriptor, is_synthesized=True) for name in names or [None]]


class ManifestSynthesizer:
    """The manifests that are made here, each when it is asked for. Of the configs, which may be large, one is held."""

    def __init__(
        self,
        config: Callable[[str], bytes],
        layer: Callable[[str, str], Descriptor],
        manifest: Callable[[DockerImage], Manifest | None] = lambda _image: None,
    ) -> None:
        """Take the ways to configs, layers and manifests, as `docker_graph` has them."""
        self._read_config_file = config
        self._describe_layer = layer
        self._find_existing = manifest
        #: The digests of those that the archive has.
        self.existing: set[str] = set()
        self._descriptors: dict[tuple[str, tuple[str, ...]], Descriptor] = {}
        self._config_names: dict[str, str] = {}
        #: The digests of the configs, by those of the manifests.
        self._image_ids: dict[str, str] = {}
        self._last_config = "", b""
        self._bytes = 0
        #: The manifests themselves, by digest.
        self.manifests: dict[str, bytes] = {}
        #: Whether there are layers that are not under the digests of what they were pushed as.
        self.has_plain_layers = False

    def synthesize(self, image: DockerImage) -> Descriptor:
        """Make an image's manifest, unless that was done."""
        key = image.config, image.layers
        if (known := self._descriptors.get(key)) is None:
            there = self._find_existing(image)
            raw = canonical_json(self._build_manifest(image)) if there is None else there.raw
            self._bytes += len(raw)
            if self._bytes > limits.MAX_GRAPH_BYTES:
                msg = f"the manifests of these images would have more than {limits.MAX_GRAPH_BYTES} bytes together"
                raise ArchiveError(msg, hint="move fewer images at a time")
            known = Descriptor(OCI_MANIFEST, compute_digest(raw), len(raw)) if there is None else there.descriptor
            self._descriptors[key] = known
            if there is not None:
                self.existing.add(known.digest)
                self._config_names[parse_blob_name(image.config) or ""] = image.config
                self._image_ids[known.digest] = parse_blob_name(image.config) or ""
            else:
                self._image_ids[known.digest] = self._last_config[0]
            self.manifests[known.digest] = raw
        return known

    def build_roots(self, image: DockerImage) -> list[Root]:
        """Return an image by each of its names, with its image ID."""
        descriptor = self.synthesize(image)
        image_id = self._image_ids[descriptor.digest]
        return [replace(root, image_id=image_id) for root in _build_roots(image, descriptor)]

    def build_entries(self, images: Sequence[DockerImage]) -> list[Descriptor]:
        """Make manifests, and return what an `index.json` would list of them: an entry for each name."""
        return [build_entry(root) for image in images for root in _build_roots(image, self.synthesize(image))]

    def read_config(self, digest: str) -> bytes:
        """Give a config once more."""
        known, raw = self._last_config
        return raw if known == digest else self._read_config_file(self._config_names[digest])

    def _build_manifest(self, image: DockerImage) -> dict[str, Any]:
        self._last_config = "", b""
        config, what = self._read_config_file(image.config), f"the config {printable(image.config)}"
        diff_ids = parse_diff_ids(config, what)
        if len(diff_ids) != len(image.layers):
            msg = f"{what} names {len(diff_ids)} layers, manifest.json {len(image.layers)}"
            raise ArchiveError(msg)
        found = [
            _check_layer(name, self._describe_layer(name, id_), id_)
            for name, id_ in zip(image.layers, diff_ids, strict=True)
        ]
        self.has_plain_layers = self.has_plain_layers or not all(map(parse_blob_name, image.layers))
        descriptor = Descriptor(OCI_CONFIG, compute_digest(config), len(config))
        self._config_names[descriptor.digest] = image.config
        self._last_config = descriptor.digest, config
        return {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor.to_json(),
            "layers": [layer.to_json() for layer in found],
        }


def _check_layer(name: str, descriptor: Descriptor, diff_id: str) -> Descriptor:
    if layer_media_types.codec_name(descriptor.media_type) == "none" and descriptor.digest != diff_id:
        msg = f"the layer {printable(name)} has the digest {descriptor.digest}, its image's config says {diff_id}"
        raise IntegrityError(msg)
    return descriptor


def expand_docker_name(tag: str) -> str:
    """Give the whole of a name that Docker has shortened."""
    try:
        return parse_reference(tag).name
    except (InvalidNameError, UnsupportedError):
        return tag
