"""docker-archives (`docker save` before version 25, podman, skopeo): parse `manifest.json` and build OCI manifests.

The config lists the digests of the plain layers, so an OCI manifest can be built. Compressing them is then the same
conversion as `--compress`. `ArchiveSource` provides configs and layers; this module opens no files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from ocistream import limits, notices
from ocistream.archive.contents import normalize_name, parse_blob_name
from ocistream.errors import ArchiveError, IntegrityError, InvalidNameError, NotFoundError, UnsupportedError, UsageError
from ocistream.layout.image_selection import UnknownDigestError
from ocistream.layout.index import build_entry
from ocistream.oci.descriptor import OCI_CONFIG, OCI_MANIFEST, UNKNOWN_SIZE, Descriptor, Manifest, compute_digest
from ocistream.oci.documents import parse_diff_ids, parse_document
from ocistream.oci.graph import Root
from ocistream.oci.reference import parse_reference, printable
from ocistream.oci.strict_json import canonical_json, check_keys, parse_json
from ocistream.streams.compression import codec_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocistream.archive.source import ArchiveSource
    from ocistream.layout.image_selection import Selection

#: At most this many names are printed.
_MAX_SHOWN: Final = 10
#: The keys of an entry of `manifest.json` (moby's image/tarexport); see `oci.documents.MANIFEST_FIELDS`.
_IMAGE_KEYS: Final = frozenset({"Config", "RepoTags", "Layers", "Parent", "LayerSources"})


@dataclass(frozen=True, slots=True)
class DockerImage:
    """One image of a `manifest.json`: the names in the tar of its config and layers, and the image's own names.

    `has_layer_sources` says that the entry has `LayerSources`, which only `docker save` writes.
    """

    config: str
    layers: tuple[str, ...]
    tags: tuple[str, ...]
    has_layer_sources: bool = False


def parse_manifest_json(raw: bytes) -> list[DockerImage]:
    """Return the images that a `manifest.json` lists."""
    if len(raw) > limits.MAX_MANIFEST:
        msg = f"manifest.json is larger than {limits.MAX_MANIFEST} bytes"
        raise ArchiveError(msg)
    # `parse_json` takes only objects, and the file is a list, so an object is put around the list.
    key = "images"
    object_around = b'{"%b":%b}' % (key.encode(), raw)
    members = parse_json(object_around, "manifest.json", len(object_around), convert={key: _parse_image})
    images = members.get(key)
    # Several members mean that the file continues after the end of its list.
    if not isinstance(images, list) or len(members) > 1:
        msg = "manifest.json is not a list of images"
        raise ArchiveError(msg)
    if len(images) > limits.MAX_IMAGES:
        msg = f"manifest.json lists more than {limits.MAX_IMAGES} images"
        raise UnsupportedError(msg, hint="save fewer images at a time")
    return images


def _parse_image(position: int, item: object) -> DockerImage:
    if isinstance(item, dict):
        check_keys(item, _IMAGE_KEYS, f"manifest.json: entry {position}")
        # Go writes an empty list as null.
        config, *lists = item.get("Config"), *(item.get(key) for key in ("Layers", "RepoTags"))
        layers, tags = ([] if names is None else names for names in lists)
        if isinstance(config, str) and config and _are_strings(layers) and _are_strings(tags):
            if len(layers) > limits.MAX_LIST_ENTRIES:
                msg = f"manifest.json: entry {position} has more than {limits.MAX_LIST_ENTRIES} layers"
                raise ArchiveError(msg)
            tags = tuple(tag for tag in tags if tag)
            return DockerImage(
                normalize_name(config), tuple(map(normalize_name, layers)), tags, bool(item.get("LayerSources"))
            )
    msg = f"manifest.json: entry {position} is not an image with Config and Layers"
    raise ArchiveError(msg)


def _are_strings(items: object) -> bool:
    return isinstance(items, list) and all(isinstance(item, str) for item in items)


def report_only_in_manifest_json(label: str, images: Sequence[DockerImage], manifests: ManifestSynthesizer) -> None:
    """Report images that `manifest.json` lists and `index.json` does not: tools that read `index.json` miss them."""
    shown = ", ".join(_describe_image(image, manifests.synthesize(image).digest) for image in images[:_MAX_SHOWN])
    more = f" and {len(images) - _MAX_SHOWN} more" if images[_MAX_SHOWN:] else ""
    what = "an image" if len(images) == 1 else f"{len(images)} images"
    contents = f"{what} of manifest.json that index.json does not list: {shown}{more}"
    notices.notify(f"{printable(label, 1024)} also contains {contents}")


def _describe_image(image: DockerImage, digest: str) -> str:
    """Return the name, or the digest, as `--image` takes it, and the image ID that `docker images --no-trunc` shows."""
    name = printable(expand_docker_name(image.tags[0])) if image.tags else digest
    more = f" and {len(image.tags) - 1} more names" if image.tags[1:] else ""
    return f"{name}{more} (image ID {parse_blob_name(image.config) or printable(image.config)})"


def choose_images(
    images: Sequence[DockerImage], selection: Selection, manifests: ManifestSynthesizer
) -> list[Descriptor]:
    """Return the entries of `index.json` for the selected images. Nothing of the other images is read.

    Images are selected by name before any manifest is built, and by digest only if that fails.

    Raises:
        ArchiveError: a file that `manifest.json` names is missing, or a config does not match its layers.
        IntegrityError: a plain layer has another digest than the config says.
    """
    images_by_digest: dict[str, DockerImage] = {}
    roots: list[Root] = []
    for image in images:
        # A placeholder, which must not be printed.
        digest = compute_digest(canonical_json((image.config, image.layers)))
        images_by_digest[digest] = image
        roots += _build_roots(image, Descriptor(OCI_MANIFEST, digest, UNKNOWN_SIZE))
    try:
        selected = [
            replace(root, descriptor=manifests.synthesize(images_by_digest[root.descriptor.digest]))
            for root in selection.choose(roots)
        ]
    except (NotFoundError, UsageError, UnknownDigestError):
        # An image may be selected by its digest, two entries may be the same image, and errors must print real digests.
        selected = [*selection.choose([root for image in images for root in manifests.build_roots(image)])]
    return list(map(build_entry, selected))


def _build_roots(image: DockerImage, descriptor: Descriptor, image_id: str | None = None) -> list[Root]:
    names: list[str | None] = [expand_docker_name(tag) for tag in dict.fromkeys(image.tags)]
    return [Root(name, descriptor, is_synthesized=True, image_id=image_id) for name in names or [None]]


class ManifestSynthesizer:
    """Builds manifests on demand.

    A manifest is byte for byte the one that Docker 25.0.1 and later write, so that its digest is the same.
    """

    def __init__(self, files: ArchiveSource) -> None:
        """Build manifests from these files."""
        self._files = files
        self._descriptors: dict[tuple[str, tuple[str, ...]], Descriptor] = {}
        self._bytes = 0
        #: The manifests themselves, by digest.
        self.manifests: dict[str, bytes] = {}
        #: The digests of those that `index.json` lists.
        self.existing: set[str] = set()
        #: Whether some layers are not stored under the digests under which they were pushed.
        self.has_plain_layers = False

    def synthesize(self, image: DockerImage) -> Descriptor:
        """Return the descriptor of an image's manifest. The first call finds it in the archive, or builds it."""
        key = image.config, image.layers
        if (descriptor := self._descriptors.get(key)) is None:
            if (manifest := self._files.find_manifest(image)) is not None:
                self.existing.add(manifest.descriptor.digest)
            else:
                manifest = self._build_manifest(image)
            self._bytes += len(manifest.raw)
            if self._bytes > limits.MAX_GRAPH_BYTES:
                msg = f"the manifests of these images would have more than {limits.MAX_GRAPH_BYTES} bytes in total"
                raise ArchiveError(msg, hint="copy fewer images at a time")
            self._descriptors[key] = descriptor = manifest.descriptor
            self.manifests[descriptor.digest] = manifest.raw
        return descriptor

    def build_roots(self, image: DockerImage) -> list[Root]:
        """Return a root for each name of an image, with the image ID."""
        descriptor = self.synthesize(image)
        config = parse_document(descriptor, self.manifests[descriptor.digest]).config
        return _build_roots(image, descriptor, config.digest if config else None)

    def build_entries(self, images: Sequence[DockerImage]) -> list[Descriptor]:
        """Build manifests, and return their `index.json` entries: one for each name."""
        return [build_entry(root) for image in images for root in _build_roots(image, self.synthesize(image))]

    def _build_manifest(self, image: DockerImage) -> Manifest:
        config, what = self._files.read_config(image.config), f"the config {printable(image.config)}"
        diff_ids = parse_diff_ids(config, what)
        if len(diff_ids) != len(image.layers):
            msg = f"{what} lists {len(diff_ids)} layers, manifest.json {len(image.layers)}"
            raise ArchiveError(msg)
        layers = [
            _check_layer(name, self._files.describe_layer(name, id_), id_)
            for name, id_ in zip(image.layers, diff_ids, strict=True)
        ]
        self.has_plain_layers = self.has_plain_layers or not all(map(parse_blob_name, image.layers))
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": Descriptor(OCI_CONFIG, compute_digest(config), len(config)).to_json(),
            "layers": [layer.to_json() for layer in layers],
        }
        raw = canonical_json(document)
        return Manifest(Descriptor(OCI_MANIFEST, compute_digest(raw), len(raw)), raw)


def _check_layer(name: str, descriptor: Descriptor, diff_id: str) -> Descriptor:
    if codec_name(descriptor.media_type) == "none" and descriptor.digest != diff_id:
        msg = (
            f"the layer {printable(name)} has the digest {descriptor.digest}, but the config of its "
            f"image says {diff_id}"
        )
        raise IntegrityError(msg)
    return descriptor


def expand_docker_name(tag: str) -> str:
    """Return the full form of a name that Docker shortened."""
    try:
        return parse_reference(tag).name
    except (InvalidNameError, UnsupportedError):
        return tag
