"""Report a finished copy: result lines on stdout, notes and a summary on stderr, and the JSON document of --result.

docs/result.schema.json has the fields of the document.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from io import FileIO
from typing import TYPE_CHECKING, Any, Final

import click

from ocistream import notices
from ocistream.cli.console import escape_ci_commands, sanitize_line
from ocistream.layout.index import docker_tag
from ocistream.oci.platforms import attestation_subject
from ocistream.oci.reference import printable
from ocistream.oci.referrers import TAG_EXISTS, classify_referrer, format_kind_counts
from ocistream.sizes import format_count, format_size
from ocistream.streams import files, paths

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from ocistream.api.copy_plan import CopyPlan
    from ocistream.api.results import ImageResult
    from ocistream.archive.source import ArchiveSource
    from ocistream.cli.console import Console
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph, IncompleteIndex, Root
    from ocistream.oci.platforms import ChosenPlatforms
    from ocistream.oci.referrers import SkippedReferrer
    from ocistream.transfer.interfaces import Source
    from ocistream.transfer.report import BlobResult, Report

#: The most characters of a name in a result line; names in registries are shorter.
_MAX_NAME: Final = 1024
#: What a dry run with -v prints of a blob, by its status.
_DRY_RUN_WORDS: Final = {
    "copied": "to copy:",
    "converted": "to recompress:",
    "skipped": "exists:",
    "mounted": "to mount:",
    "omitted": "to omit:",
}
#: The most platforms that a line names.
_MAX_PLATFORMS: Final = 20
#: The most tags in a command.
_MAX_TAGS: Final = 5
#: All statuses of a blob (`BlobResult`).
_STATUSES: Final = ("copied", "converted", "skipped", "mounted", "omitted")


def format_result_line(name: str, digest: str | None, image_id: str | None) -> str:
    """Return `NAME@sha256:...`, or the name and the image ID of an image without a manifest."""
    shown = printable(name, _MAX_NAME)
    if digest is not None:
        return f"{shown}@{digest}"
    # After a dry run, the digest of a recompressed index is not known, and an index has no image ID.
    return f"{shown} image ID {image_id}" if image_id is not None else shown


def print_results(results: Iterable[ImageResult]) -> None:
    """Print one line per image on stdout; a name from an archive cannot add a second line."""
    for result in results:
        click.echo(sanitize_line(format_result_line(result.name, result.digest, result.image_id)))


def print_dry_run(plan: CopyPlan, report: Report, images: Sequence[ImageResult]) -> None:
    """Print one line per image on stdout, as `sync --dry-run`: `copy`, the bytes to move, the source, and the result.

    A blob that several images need counts once.
    """
    sizes = {
        blob.descriptor.digest: blob.descriptor.size - blob.resumed_size
        for blob in report.blobs
        if blob.status in {"copied", "converted"}
    }
    for root, image in zip(report.graph.roots, images, strict=True):
        size = sum(sizes.pop(digest, 0) for digest in report.graph.reachable(root))
        source = printable(plan.source_name(root), _MAX_NAME)
        line = format_result_line(image.name, image.digest, image.image_id)
        click.echo(sanitize_line(f"copy {size} {source} {line}"))


def report_copy(
    console: Console,
    plan: CopyPlan,
    source: Source,
    report: Report,
    images: Sequence[ImageResult],
    cached_sizes: Mapping[str, int],
    *,
    can_omit: bool,
) -> None:
    """Print on stderr what a copy transferred, and what became of images and blobs that were not copied as they are.

    After a dry run, print what a real run would copy, and what it would not. `cached_sizes` is how many bytes came from
    the cache, by digest. `can_omit` says that blobs could be omitted by digest.
    """
    into_docker_archive = plan.destination.kind == "docker-archive"
    archives: Sequence[ArchiveSource] = ()
    if plan.reads_archives and not report.is_dry_run:
        from ocistream.archive.source import list_archives

        archives = list_archives(source)
    for blob in () if report.is_dry_run else report.blobs:
        if blob.resumed_size:
            digest, total = blob.descriptor.digest, format_size(blob.descriptor.size)
            console.info(f"resumed {digest} after {format_size(blob.resumed_size)} of {total}", level=1)
    _report_summary(console, plan, report, cached_sizes)
    for blob in report.blobs if report.is_dry_run else ():
        size = format_size(blob.descriptor.size)
        console.info(f"{_DRY_RUN_WORDS[blob.status]} {blob.descriptor.digest}, {size}", level=1)
    if report.undetermined and any(image.digest is None for image in images):
        console.info("layers would be recompressed: the digests of these images are known only afterwards")
    report_incomplete_indexes(
        console, report.graph.incomplete_indexes, report.origins, into_docker_archive=into_docker_archive
    )
    if not into_docker_archive and not report.is_dry_run:
        _report_new_digests(console, report, is_requested=plan.options.compress is not None)
        if plan.options.compress is None:
            is_saved = any(archive.is_docker_save for archive in archives)
            must_keep_digests = not plan.compresses_plain_layers(can_omit=can_omit)
            _report_plain_layers(console, report, is_saved=is_saved, must_keep_digests=must_keep_digests)
    _report_omitted(console, report)
    report_skipped_referrers(console, report.graph.skipped_referrers)
    _report_unused_entries(console, archives)
    if into_docker_archive and not report.is_dry_run:
        _report_image_ids(console, report, images, has_result_lines=not plan.destination.is_stream)
        _warn_unnamed_images(console, report.graph)


def _report_image_ids(
    console: Console, report: Report, images: Sequence[ImageResult], *, has_result_lines: bool
) -> None:
    """Print the image ID that `docker images` will show for each image of a docker-archive, and that digests change.

    `has_result_lines` says that the result lines are on stdout: some of them already have the image ID.
    """
    for root, image in zip(report.graph.roots, images, strict=True):
        if not (has_result_lines and image.digest is None):
            console.info(f"{printable(root.name or image.name, _MAX_NAME)}: image ID {image.image_id}")
    if any(image.digest is not None for image in images):
        console.info("a docker-archive has no manifests: a push from it gives other digests")


def _report_summary(console: Console, plan: CopyPlan, report: Report, cached_sizes: Mapping[str, int]) -> None:
    """Print one line: what was copied and how fast; after a dry run, what would be copied."""
    counts = Counter(blob.status for blob in report.blobs)
    written = _total_size(report, "copied") + _total_size(report, "converted")
    resumed = sum(blob.resumed_size for blob in report.blobs)
    received = written - resumed
    copied = format_count(counts["copied"] + counts["converted"], "blob")
    referrers = format_kind_counts(
        classify_referrer(referrer.descriptor.artifact_type, referrer.tag)
        for referrer in report.graph.separate_referrers
    )
    extra = f", with {referrers}" if referrers else ""
    children = (child for document in report.graph.documents.values() for child in document.manifests)
    if "attestation" in referrers and any(map(attestation_subject, children)):
        # A copy of one platform has an attestation of the index as a referrer of its own, and counts it.
        extra += " beside those in the index"
    conversion = "recompressed"
    if plan.destination.kind == "docker-archive" or plan.options.compress == "none":
        conversion = "decompressed"
    if report.is_dry_run:
        target = "stdout" if plan.destination.is_stream else printable(plan.destination.text, _MAX_NAME)
        parts = [f"would copy {copied}, {format_size(received)}{extra}, to {target}"]
        conversion += " to a size that is not known yet"
        exist = "exists" if counts["skipped"] == 1 else "exist"
        others = {"skipped": f"{exist} at the destination", "mounted": "mounted from another repository"}
    else:
        rate = f" ({format_size(received / report.seconds)}/s)" if received and report.seconds else ""
        parts = [f"copied {copied}, {format_size(written)}, in {report.seconds:.1f} s{rate}{extra}"]
        others = {"mounted": "mounted", "skipped": "already at the destination"}
    if counts["converted"]:
        parts.append(f"{counts['converted']} of them {conversion}")
    # Also on a terse console: which bytes were not copied.
    not_copied = [f"{format_size(resumed)} resumed from an earlier run"] if resumed else []
    parts += not_copied
    if from_cache := sum(_cached_size(blob, cached_sizes) for blob in report.blobs):
        parts.append(f"{format_size(from_cache)} came from the cache")
    for status, text in others.items():
        if counts[status]:
            parts.append(f"{counts[status]} {text} ({format_size(_total_size(report, status))})")
    if report.graph.foreign and not report.is_dry_run:
        foreign = f"{format_count(len(report.graph.foreign), 'foreign layer')} not copied"
        parts.append(foreign)
        not_copied.append(foreign)
    for line in not_copied if console.is_terse and not report.is_dry_run else ["; ".join(parts)]:
        console.info(line)


def report_selected_platforms(roots: Iterable[Root], source: Source | None, *, into_docker_archive: bool) -> None:
    """Print which platforms of an index were selected, unless --platform named each of them.

    A notice is printed once, even if several transfers start the same images. If `source` is an archive or layout with
    only some platforms of the index, only those count.
    """
    for root in roots:
        if (chosen := root.chosen_platforms) is None:
            continue
        name = printable(root.name or root.origin or chosen.index, _MAX_NAME)
        if not chosen.explicit:
            text = _describe_selected(chosen, source, into_docker_archive=into_docker_archive)
            notices.notify(f"{name}: {text}")
        for ambiguity in chosen.describe_ambiguities():
            notices.notify(f"{name}: {ambiguity}")


def _describe_selected(chosen: ChosenPlatforms, source: Source | None, *, into_docker_archive: bool) -> str:
    selected, listed_count = ", ".join(map(printable, chosen.platforms)), len(chosen.available)
    # How many of the listed platforms the source has; at most, if it may lack some.
    count, may_lack = listed_count, False
    if source is not None and source.may_lack_blobs:
        from ocistream.transfer.incomplete_indexes import read_exported_platforms

        exported = read_exported_platforms(source, chosen.manifests)
        count, may_lack = (listed_count, True) if exported is None else (len(exported), False)
    if into_docker_archive:
        advice = "" if count == 1 else "; choose another with --platform"
    else:
        advice = f"; use --platform all to {'keep the index' if count == 1 else 'copy all'}"
    if count == 0:
        return f"only {selected} of {listed_count} platforms in the index; the source has none of them completely"
    if count == 1:
        origin = "of an index" if listed_count == 1 else f"that the source has of the {listed_count} in the index"
        return f"{selected}, the only platform {origin}{advice}"
    if may_lack:
        return f"only {selected} of {count} platforms in the index{advice}, if the archive has the others"
    if count == listed_count:
        return f"only {selected} of {count} platforms{advice}"
    return f"only {selected} of the {count} platforms that the source has; the index lists {listed_count}{advice}"


def _report_new_digests(console: Console, report: Report, *, is_requested: bool) -> None:
    """Print the new digest of a recompressed image. `is_requested` says that --compress was given."""
    pairs = [
        (source.descriptor.digest, root.descriptor.digest)
        for source, root in zip(report.source_graph.roots, report.graph.roots, strict=True)
    ]
    # A manifest that was made for this transfer had no digest before.
    changed = dict.fromkeys(
        pair for pair in pairs if pair[0] != pair[1] and pair[0] not in report.source_graph.synthesized
    )
    if changed:
        old, new = next(iter(changed))
        others = f" (and those of {format_count(len(changed) - 1, 'other image')})" if len(changed) > 1 else ""
        cause = "layers were recompressed" if is_requested else "the layers of `docker save` were compressed"
        console.info(f"{cause}: the digest {old} became {new}{others}")


def _report_plain_layers(console: Console, report: Report, *, is_saved: bool, must_keep_digests: bool) -> None:
    """Print which layers that `docker save` left uncompressed were not compressed.

    `is_saved` says that the source was written by `docker save`, perhaps recognized too late to compress its layers.
    `must_keep_digests` says that blobs were omitted by their digests, so that layers could not get others.
    """
    if not (report.graph.has_plain_layers or is_saved):
        return
    # Not at the top: most transfers need no codecs.
    from ocistream.streams.compression import codec_name

    plain = {
        layer.digest
        for _, document in report.graph.images()
        for layer in document.layers
        if codec_name(layer.media_type) == "none"
    }
    if plain:
        was, they, them = ("layer was", "it", "it") if len(plain) == 1 else ("layers were", "they", "them")
        reason = "blobs are omitted by their digests"
        if not must_keep_digests:
            reason = (
                f"{they} came before manifest.json in the pipe; to compress {them}, add --compress gzip, or read the "
                "archive from a file"
            )
        console.info(f"{len(plain)} {was} copied uncompressed, because {reason}")


def _report_omitted(console: Console, report: Report) -> None:
    """Print how much was omitted from the output, one line for each reason.

    A blob that is embedded in its manifest is in the output in any case.
    """
    embedded = report.graph.embedded
    omitted = {digest: reason for digest, reason in report.graph.omitted_from_output.items() if digest not in embedded}
    if not omitted:
        return
    from ocistream.oci.omitted_blobs import group_by_reason

    sizes = {blob.descriptor.digest: blob.descriptor.size for blob in report.blobs if blob.status == "omitted"}
    for reason, digests in group_by_reason(omitted).items():
        size = format_size(sum(sizes[digest] for digest in digests))
        console.info(f"omitted {format_count(len(digests), 'blob')}, {size}: {reason.describe()}")


def report_incomplete_indexes(
    console: Console,
    incomplete: Iterable[IncompleteIndex],
    origins: Mapping[str, str] | None = None,
    *,
    into_docker_archive: bool = False,
) -> None:
    """Print which indexes were copied with only some platforms, because the source lacks the others.

    `origins` maps the digests of recompressed manifests to the original ones.
    """
    new_digests = {old: new for new, old in (origins or {}).items()}
    # A docker-archive cannot have several platforms of an image.
    advice = "" if into_docker_archive else "; to keep all platforms, copy the image from its registry"
    for index in incomplete:
        name = printable(index.name or index.digest, _MAX_NAME)
        console.info(
            f"{name}: the source has only {_format_platforms(index.platforms)} of this index, "
            f"not {_format_platforms(index.missing)}: "
            f"copied as {new_digests.get(index.instead, index.instead)} instead of {index.digest}{advice}"
        )


def _format_platforms(platforms: Sequence[str]) -> str:
    shown = ", ".join(printable(platform) for platform in platforms[:_MAX_PLATFORMS])
    return f"{shown} and {len(platforms) - _MAX_PLATFORMS} more" if len(platforms) > _MAX_PLATFORMS else shown


def report_skipped_referrers(console: Console, skipped: Iterable[SkippedReferrer]) -> None:
    """Print which referrers of the images were not copied, one line for each reason."""
    reasons: dict[str, list[SkippedReferrer]] = {}
    for skipped_referrer in skipped:
        reasons.setdefault(skipped_referrer.reason, []).append(skipped_referrer)
    for reason, referrers in reasons.items():
        kinds = format_kind_counts(
            kind
            for skipped_referrer in referrers
            if skipped_referrer.kind
            for kind in [skipped_referrer.kind] * (skipped_referrer.count or 1)
        )
        advice = ""
        if reason == TAG_EXISTS:
            tags = [f"--tags {tag}" for tag in dict.fromkeys(referrer.tag for referrer in referrers) if tag]
            more = " ..." if len(tags) > _MAX_TAGS else ""
            advice = f" (`ocistream copy {' '.join(tags[:_MAX_TAGS])}{more} SRC DST` replaces it)"
        what = kinds or "referrers of the images, if there are any"
        console.info(f"not copied: {what}; {printable(reason)}{advice}")


def _report_unused_entries(console: Console, archives: Sequence[ArchiveSource]) -> None:
    """Print which entries of archives were not used: illegal names, and with -v files of other tools."""
    for archive in archives:
        contents = archive.contents
        if contents.index_json is None or contents.is_docker_archive:
            continue
        if contents.illegal_count:
            entries = format_count(contents.illegal_count, "entry", "entries")
            console.info(f"not used: {entries} of the archive, such as {printable(contents.first_illegal_name)!r}")
        if (unused_count := contents.foreign_count - contents.illegal_count) > 0:
            console.info(f"not used: {format_count(unused_count, 'other file')} of the archive", level=1)


def _warn_unnamed_images(console: Console, graph: Graph) -> None:
    """Print which images of a docker-archive get no name in Docker, although they have one here."""
    named = {root.descriptor.digest for root in graph.roots if root.name and docker_tag(root.name)}
    for root in graph.roots:
        if root.descriptor.digest not in named:
            named.add(root.descriptor.digest)
            description = printable(root.name) if root.name else root.descriptor.digest
            console.info(
                f"{description} is not a name for Docker, which will show the image as <none>; to set a "
                "name, write docker-archive:FILE:NAME"
            )


def _total_size(report: Report, status: str) -> int:
    """Return the bytes of the blobs with a status."""
    return sum(blob.descriptor.size for blob in report.blobs if blob.status == status)


def _cached_size(blob: BlobResult, cached_sizes: Mapping[str, int]) -> int:
    """Return how many bytes of a blob came from the cache; for a converted blob, of its original."""
    if blob.status not in {"copied", "converted"}:
        return 0
    return cached_sizes.get(blob.source_digest or blob.descriptor.digest, 0)


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
    cached_sizes: Mapping[str, int],
) -> None:
    """Write the document of a copy: names, digests, sizes in bytes, status of each blob, seconds.

    In the document, `from` is the digest of the original of a converted blob or manifest. `resumed` is how many bytes
    the destination had before, `cached` how many came from the cache. `upload` is the upload method by registry.
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
        "blobs": [_blob_json(report, blob, _cached_size(blob, cached_sizes)) for blob in report.blobs],
        "referrers": [
            _drop_none(
                subject=referrer.subject,
                digest=referrer.descriptor.digest,
                artifactType=referrer.descriptor.artifact_type or None,
                tag=referrer.tag or None,
                kind=classify_referrer(referrer.descriptor.artifact_type, referrer.tag),
            )
            for referrer in report.graph.all_referrers
        ],
        "skippedReferrers": [_drop_none(**asdict(skipped)) for skipped in report.graph.skipped_referrers],
        "incomplete": [_drop_none(**asdict(index)) for index in report.graph.incomplete_indexes],
        "foreign": [_descriptor_json(layer) for layer in report.graph.foreign],
        "bytes": {status: _total_size(report, status) for status in _STATUSES},
        "resumed": sum(blob.resumed_size for blob in report.blobs),
        "cached": sum(_cached_size(blob, cached_sizes) for blob in report.blobs),
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
    return _drop_none(
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


def _blob_json(report: Report, blob: BlobResult, cached_size: int) -> dict[str, Any]:
    is_omitted = blob.status == "omitted"
    return _descriptor_json(
        blob.descriptor,
        status=blob.status,
        reason=str(report.graph.omitted_from_output[blob.descriptor.digest]) if is_omitted else None,
        resumed=blob.resumed_size or None,
        cached=cached_size or None,
        **{"from": blob.source_digest},
    )


def _descriptor_json(descriptor: Descriptor, **fields: Any) -> dict[str, Any]:
    if fields.get("from") == descriptor.digest:
        del fields["from"]
    return _drop_none(mediaType=descriptor.media_type, digest=descriptor.digest, size=descriptor.size, **fields)


def _drop_none(**fields: Any) -> dict[str, Any]:
    """Return the fields that are not None."""
    return {key: value for key, value in fields.items() if value is not None}
