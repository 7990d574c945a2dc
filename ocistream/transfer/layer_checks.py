"""Compare layers with what their manifests and configs say of them. Returns errors: the caller raises or collects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocistream.errors import ArchiveError, IntegrityError, OcistreamError, UnsupportedError
from ocistream.oci.graph import is_image

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ocistream.oci.descriptor import Descriptor, Manifest
    from ocistream.oci.documents import Document


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
            yield layer.digest, IntegrityError(msg, digest=layer.digest)
