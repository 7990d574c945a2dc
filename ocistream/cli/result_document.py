"""The JSON document of --result: docs/result.schema.json has its fields."""

from __future__ import annotations

import json
from dataclasses import asdict
from io import FileIO
from typing import TYPE_CHECKING, Any, Final

from ocistream.cli.console import escape_ci_commands
from ocistream.cli.report import cached_size, total_size
from ocistream.oci.referrers import classify_referrer
from ocistream.streams import files, paths

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from ocistream.api.results import ImageResult
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Root
    from ocistream.transfer.report import BlobResult, Report

#: What a blob's `status` may be.
_STATUSES: Final = ("copied", "converted", "skipped", "mounted", "omitted")


def check_result_writable(path: Path) -> None:
    """Check before the transfer that --result can be written: afterwards it is too late to fail."""
    import tempfile

    if paths.is_special(path):
        return
    with files.disk_errors(f"cannot write {path}"), tempfile.TemporaryFile(dir=paths.write_target(path).parent):
        pass


def write_result_pieces(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a document of --result that comes in pieces."""
    # Write to a device or FIFO (/dev/null, `>(command)`) directly. For a link, replace the file that it leads to.
    is_special = paths.is_special(path)
    with (
        files.disk_errors(f"cannot write {path}"),
        FileIO(path, "w") if is_special else files.atomic_file(paths.write_target(path)) as file,
    ):
        for piece in pieces:
            files.write_all(file, piece)


def write_result(
    path: Path,
    report: Report,
    images: Sequence[ImageResult],
    *,
    retried: int,
    upload: Mapping[str, str],
    cached: Mapping[str, int],
) -> None:
    """Write the document of a copy: names, digests, sizes in bytes, status of each blob, seconds.

    `from` is the digest of the original of a converted blob or manifest. `resumed` is how many bytes the destination
    had before, `cached` how many came from the cache. `upload` is the upload method by registry.
    """
    document = {
        "dryRun": report.is_dry_run,
        "images": [
            _image_json(report, source, root, image)
            for source, root, image in zip(report.source_graph.roots, report.graph.roots, images, strict=True)
        ],
        "manifests": [
            _descriptor_json(item.descriptor, **{"from": report.origins.get(item.descriptor.digest)})
            for item in report.graph.manifests
            # A docker-archive has no manifests.
            if not any(image.image_id for image in images)
        ],
        "blobs": [_blob_json(report, blob, cached_size(blob, cached)) for blob in report.blobs],
        "referrers": [
            _given(
                subject=referrer.subject,
                digest=referrer.descriptor.digest,
                artifactType=referrer.descriptor.artifact_type or None,
                tag=referrer.tag or None,
                kind=classify_referrer(referrer.descriptor.artifact_type, referrer.tag),
            )
            for referrer in report.graph.all_referrers
        ],
        "skippedReferrers": [_given(**asdict(skipped)) for skipped in report.graph.skipped_referrers],
        "incomplete": [_given(**asdict(index)) for index in report.graph.incomplete_indexes],
        "foreign": [_descriptor_json(layer) for layer in report.graph.foreign],
        "bytes": {status: total_size(report, status) for status in _STATUSES},
        "resumed": sum(blob.resumed_size for blob in report.blobs),
        "cached": sum(cached_size(blob, cached) for blob in report.blobs),
        "retried": retried,
        "upload": dict(upload),
        "seconds": round(report.seconds, 3),
    }
    write_result_pieces(path, [escape_ci_commands(json.dumps(document, indent=2)).encode(), b"\n"])


def _image_json(report: Report, source: Root, root: Root, image: ImageResult) -> dict[str, Any]:
    reachable, chosen = report.graph.reachable(root, alone=True), root.chosen_platforms
    is_changed = image.digest not in {None, source.descriptor.digest}
    if image.digest is None and root.descriptor.digest in report.undetermined:
        is_changed = not root.is_synthesized
    return _given(
        name=image.name,
        digest=image.digest,
        imageId=image.image_id,
        **{"from": source.descriptor.digest if is_changed else None},
        mediaType=source.descriptor.media_type if image.image_id else root.descriptor.media_type,
        size=sum(blob.size for blob in report.graph.blobs if blob.digest in reachable),
        platforms=None
        if chosen is None
        else {
            "index": chosen.index,
            "copied": chosen.platforms,
            "available": chosen.available,
            "byDefault": not chosen.explicit,
        },
    )


def _blob_json(report: Report, blob: BlobResult, cached: int) -> dict[str, Any]:
    is_omitted = blob.status == "omitted"
    return _descriptor_json(
        blob.descriptor,
        status=blob.status,
        reason=str(report.graph.omitted_from_output[blob.descriptor.digest]) if is_omitted else None,
        resumed=blob.resumed_size or None,
        cached=cached or None,
        **{"from": blob.source_digest},
    )


def _descriptor_json(descriptor: Descriptor, **fields: Any) -> dict[str, Any]:
    if fields.get("from") == descriptor.digest:
        del fields["from"]
    return _given(mediaType=descriptor.media_type, digest=descriptor.digest, size=descriptor.size, **fields)


def _given(**fields: Any) -> dict[str, Any]:
    """Return the fields that are not None."""
    return {key: value for key, value in fields.items() if value is not None}
