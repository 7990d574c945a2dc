"""The results of a copy as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ocistream.api.copy_plan import CopyPlan
    from ocistream.oci.graph import IncompleteIndex, Root
    from ocistream.oci.referrers import SkippedReferrer
    from ocistream.transfer.report import BlobResult, Report


@dataclass(frozen=True, slots=True)
class ImageResult:
    """One image of a finished copy: `digest` exists under `name` at the destination.

    A docker-archive has no manifests: `digest` is then the source's, or None if no side has a manifest. `image_id` is
    the image ID that Docker shows; it is set for docker-archives only.

    After a dry run, `digest` is None and `image_id` is set if a real run would recompress layers: the digest of the
    image is known only afterwards. An index has no image ID.
    """

    name: str
    digest: str | None
    image_id: str | None = None


@dataclass(frozen=True, slots=True)
class CopyResult:
    """The result of a copy: its images, what happened to each blob, and what was not copied.

    `seconds` is the duration. `skipped_referrers` are signatures, SBOMs and the like that were not copied, with the
    reason. `incomplete_indexes` are indexes of which the source has only some platforms.

    After a dry run, the result is what a real run would do. The descriptor of a "converted" blob is then the source's.
    """

    images: tuple[ImageResult, ...]
    blobs: tuple[BlobResult, ...]
    skipped_referrers: tuple[SkippedReferrer, ...]
    incomplete_indexes: tuple[IncompleteIndex, ...]
    seconds: float

    def size(self, *statuses: str) -> int:
        """Return the bytes of the blobs with one of these statuses, such as "copied"; of all blobs without one."""
        return sum(blob.descriptor.size for blob in self.blobs if not statuses or blob.status in statuses)


def build_result(report: Report, plan: CopyPlan) -> CopyResult:
    """Return the result of a copy that ran by this plan."""
    return CopyResult(
        images=tuple(list_images(report, plan)),
        blobs=tuple(report.blobs),
        skipped_referrers=report.graph.skipped_referrers,
        incomplete_indexes=report.graph.incomplete_indexes,
        seconds=report.seconds,
    )


def list_images(report: Report, plan: CopyPlan) -> list[ImageResult]:
    """Return the images of a copy in order.

    A docker-archive has no manifests: a result there has the source's digest, and the source's name if the image got a
    new one.
    """
    pairs = list(zip(report.source_graph.roots, report.graph.roots, strict=True))
    if plan.destination.kind != "docker-archive":
        return [
            ImageResult(_name(source, root, plan), None, report.graph.image_id(root))
            if root.descriptor.digest in report.undetermined
            else ImageResult(_name(source, root, plan), root.descriptor.digest)
            for source, root in pairs
        ]
    return [
        ImageResult(
            root.origin
            if plan.destination.name is not None and root.origin and not root.is_synthesized
            else plan.result_name(root),
            None if root.is_synthesized else source.descriptor.digest,
            report.graph.image_id(root),
        )
        for source, root in pairs
    ]


def _name(source: Root, root: Root, plan: CopyPlan) -> str:
    """Return the name of a result.

    A new digest without a name exists only in the archive or layout that was written, so that is named.
    """
    is_named = root.name or root.origin or root.descriptor.digest == source.descriptor.digest
    return plan.result_name(root) if plan.destination.kind == "docker" or is_named else plan.destination.text
