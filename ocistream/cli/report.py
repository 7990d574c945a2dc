"""Report a finished transfer: result lines on stdout, the document of --result, notes and a summary on stderr."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from io import FileIO
from typing import TYPE_CHECKING, Any, Final

import click

from ocistream import notices
from ocistream.cli.console import escape_ci_commands, sanitize_line
from ocistream.cli.progress import format_count, format_size
from ocistream.oci.omitted_blobs import group_by_reason
from ocistream.oci.reference import printable
from ocistream.oci.referrers import classify_referrer, format_kind_counts
from ocistream.streams import files, paths
from ocistream.transfer.incomplete_indexes import read_exported_platforms
from ocistream.transfer.interfaces import IncompleteSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from ocistream.cli.console import Console
    from ocistream.locations import Location
    from ocistream.oci.graph import IncompleteIndex, Root
    from ocistream.oci.platforms import ChosenPlatforms
    from ocistream.oci.referrers import SkippedReferrer
    from ocistream.transfer.copy import Report
    from ocistream.transfer.interfaces import Source

__all__ = [
    "ImageResult",
    "build_results",
    "check_result_writable",
    "format_result_line",
    "print_results",
    "report_image_ids",
    "report_incomplete_indexes",
    "report_omitted",
    "report_recompressed",
    "report_resumed",
    "report_selected_platforms",
    "report_skipped_referrers",
    "report_summary",
    "write_result",
    "write_result_document",
]


#: What may become of a blob.
_BLOB_OUTCOMES: Final = ("copied", "converted", "skipped", "mounted", "left out")
#: Characters of a name in a result line; a registry's names are shorter.
_MAX_NAME: Final = 1024
#: So many platforms are named in a line.
_MAX_PLATFORMS: Final = 20


@dataclass(frozen=True, slots=True)
class ImageResult:
    """One image of a transfer as it is told: a digest exists under the name that is given beside it.

    `digest` is None, and the image ID is told instead, where neither side has a manifest: between docker-archives.
    """

    name: str
    digest: str | None
    image_id: str | None = None

    def __str__(self) -> str:
        """Return the result line. A name out of an archive cannot make two lines of it."""
        return sanitize_line(format_result_line(self.name, self.digest, self.image_id))


def format_result_line(name: str, digest: str | None, image_id: str | None) -> str:
    """Return `NAME@sha256:...`, or what takes its place where there is no manifest."""
    shown = printable(name, _MAX_NAME)
    return f"{shown}@{digest}" if digest is not None else f"{shown} image ID {image_id}"


def build_results(
    report: Report, label: Callable[[Root], str], destination_location: Location | None
) -> list[ImageResult]:
    """Return the results in order. `label` names an image; `to` is where the images went, if that is no registry.

    A docker-archive has no manifests: what is told of an image there is the source's digest, under the source's name.
    """
    pairs = list(zip(report.source_graph.roots, report.graph.roots, strict=True))
    if destination_location is None or destination_location.kind != "docker-archive":
        return [
            ImageResult(_result_name(source, root, label, destination_location), root.descriptor.digest)
            for source, root in pairs
        ]
    found = []
    for source, root in pairs:
        name = (
            root.origin
            if destination_location.name is not None and root.origin and not root.is_synthesized
            else label(root)
        )
        found.append(
            ImageResult(name, None if root.is_synthesized else source.descriptor.digest, report.graph.image_id(root))
        )
    return found


def _result_name(source: Root, root: Root, label: Callable[[Root], str], destination_location: Location | None) -> str:
    """Return what a result is called: without a name, a new digest exists only in the archive or layout it went to."""
    if (
        destination_location is None
        or destination_location.kind == "docker"
        or root.name
        or root.origin
        or root.descriptor.digest == source.descriptor.digest
    ):
        return label(root)
    return destination_location.text


def print_results(results: Iterable[ImageResult]) -> None:
    """Print one line an image on stdout."""
    for result in results:
        click.echo(str(result))


def report_image_ids(console: Console, report: Report, results: Iterable[ImageResult], *, printed: bool) -> None:
    """Say what `docker images` will show for each image of a docker-archive.

    `printed` says that the result lines are on stdout: some of them tell the image ID already.
    """
    for root, result in zip(report.graph.roots, results, strict=True):
        if not (printed and result.digest is None):
            console.info(f"{printable(root.name or result.name, _MAX_NAME)}: image ID {result.image_id}")


def report_summary(console: Console, report: Report, cached: Mapping[str, int]) -> None:
    """Say in one line on stderr what was moved and how fast; `cached` is how many bytes of it were, by digest."""
    sizes = {how: _total_size(report, how) for how in _BLOB_OUTCOMES}
    counts = {how: sum(1 for m in report.blobs if m.status == how) for how in _BLOB_OUTCOMES}
    written = sizes["copied"] + sizes["converted"]
    resumed = sum(m.resumed_size for m in report.blobs)
    rate = (written - resumed) / report.seconds if report.seconds else 0.0
    moved = format_count(counts["copied"] + counts["converted"], "blob")
    parts = [f"{moved}, {format_size(written)}, in {report.seconds:.1f} s ({format_size(rate)}/s)"]
    if counts["converted"]:
        parts.append(f"{counts['converted']} of them converted")
    if resumed:
        parts.append(f"{format_size(resumed)} had been transferred before")
    if from_cache := sum(_cached_sizes(report, cached)):
        parts.append(f"{format_size(from_cache)} of it came from the cache")
    parts += [f"{counts[how]} {how} ({format_size(sizes[how])})" for how in ("mounted", "skipped") if counts[how]]
    if kinds := _count_referrers(report):
        parts[0] += f", with {kinds}"
    foreign = f"{format_count(len(report.graph.foreign), 'foreign layer')} left where they are"
    if report.graph.foreign:
        parts.append(foreign)
    console.print_status("moved " + "; ".join(parts))
    # What was not moved is said even where the rest is not.
    if console.is_terse and resumed:
        console.info(f"{format_size(resumed)} had been transferred before")
    if console.is_terse and report.graph.foreign:
        console.info(foreign)


def _count_referrers(report: Report) -> str:
    attached = {one.descriptor.digest: one for one in report.graph.all_referrers}
    return format_kind_counts(classify_referrer(one.descriptor.artifact_type, one.tag) for one in attached.values())


def report_selected_platforms(
    roots: Iterable[Root], source: Source | None = None, *, into_docker_archive: bool = False
) -> None:
    """Say which platforms were taken of an index, unless the user named them and each meant one image.

    It is said once, however often the same images are begun. If `source` is an archive or a layout that has only some
    platforms of the index, only those count.
    """
    for root in roots:
        if (taken := root.chosen_platforms) is None:
            continue
        name = printable(root.name or root.origin or taken.index, _MAX_NAME)
        if not taken.explicit:
            there = read_exported_platforms(source, taken.manifests) if source is not None else None
            may_lack = there is None and isinstance(source, IncompleteSource)
            text = _describe_selected(taken, there, may_lack=may_lack, into_docker_archive=into_docker_archive)
            notices.notify(f"{name}: {text}")
        for doubt in taken.describe_ambiguities():
            notices.notify(f"{name}: {doubt}")


def _describe_selected(
    taken: ChosenPlatforms, available: Sequence[str] | None, *, may_lack: bool, into_docker_archive: bool
) -> str:
    """Describe what was taken of an index; `there` are the platforms that the source has.

    If that is None, the source has all of them, unless it `may_lack` some.
    """
    which = ", ".join(map(printable, taken.platforms))
    count, listed = len(taken.available) if available is None else len(available), len(taken.available)
    if into_docker_archive:
        more = "" if count == 1 else "; choose another with --platform"
    else:
        more = "; --platform all keeps the index" if count == 1 else "; --platform all for all"
    if may_lack and count > 1:
        return f"{which} of {count} platforms in the index{more}, if the archive has the others"
    if count == listed:
        return f"{which}, the only platform of an index{more}" if count == 1 else f"{which} of {count} platforms{more}"
    if count == 1:
        return f"{which}, the only platform that the source has of the {listed} in the index{more}"
    return f"{which} of the {count} platforms that the source has; the index lists {listed}{more}"


def report_resumed(console: Console, report: Report) -> None:
    """Say, to who wants to know more, of which blobs some was there already."""
    for moved in report.blobs:
        if moved.resumed_size:
            digest, of = moved.descriptor.digest, format_size(moved.descriptor.size)
            console.info(f"went on with {digest} after {format_size(moved.resumed_size)} of {of}", level=1)


def report_recompressed(console: Console, report: Report, *, is_saved: bool, excludes: bool) -> None:
    """Report what became of the layers that `docker save` left uncompressed, if that is not what was to be expected.

    `is_saved` says that the source turned out to be written by `docker save`, perhaps too late to compress its layers.
    `excludes` says that blobs were to be excluded by their digests.
    """
    if not (report.graph.has_plain_layers or is_saved):
        return
    # Not at the top: most transfers need no codecs.
    from ocistream.streams.layer_media_types import codec_name

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
        more = f" (and those of {format_count(len(changed) - 1, 'other image')})" if len(changed) > 1 else ""
        console.info(
            f"`docker save` left the layers uncompressed: they are compressed now, and the digest {old} "
            f"became {new}{more}"
        )
    plain = {
        layer.digest
        for _, document in report.graph.images()
        for layer in document.layers
        if codec_name(layer.media_type) == "none"
    }
    if plain:
        stay, they = (
            ("layer of `docker save` stays", "it") if len(plain) == 1 else ("layers of `docker save` stay", "they")
        )
        if excludes:
            why = "blobs are excluded by their digests"
        else:
            why = f"{they} came before manifest.json. Use --compress gzip, or read the archive from a file"
        console.info(f"{len(plain)} {stay} uncompressed: {why}")


def report_omitted(console: Console, report: Report) -> None:
    """Say how much was left out of what was written, one line for each reason."""
    sizes = {moved.descriptor.digest: moved.descriptor.size for moved in report.blobs if moved.status == "left out"}
    for reason, digests in group_by_reason(report.graph.omitted_from_output).items():
        size = format_size(sum(sizes[digest] for digest in digests))
        console.info(f"left out {format_count(len(digests), 'blob')}, {size}: {reason}")


def report_incomplete_indexes(
    console: Console, incomplete: Iterable[IncompleteIndex], origins: Mapping[str, str] | None = None
) -> None:
    """Say of which indexes only some platforms were taken, since the source does not have the others.

    `origins` says what manifests were made of when layers were recompressed, by their digests.
    """
    made = {old: new for new, old in (origins or {}).items()}
    for index in incomplete:
        name = printable(index.name or index.digest, _MAX_NAME)
        console.info(
            f"{name}: the source has only {_format_platforms(index.platforms)} of this index, "
            f"not {_format_platforms(index.missing)}: "
            f"copied as {made.get(index.instead, index.instead)} instead of {index.digest}"
        )


def _format_platforms(platforms: Sequence[str]) -> str:
    shown = ", ".join(printable(platform) for platform in platforms[:_MAX_PLATFORMS])
    return f"{shown} and {len(platforms) - _MAX_PLATFORMS} more" if len(platforms) > _MAX_PLATFORMS else shown


def report_skipped_referrers(console: Console, skipped: Iterable[SkippedReferrer]) -> None:
    """Say what hangs on the images and did not go along, one line for each reason."""
    reasons: dict[str, list[SkippedReferrer]] = {}
    for left in skipped:
        reasons.setdefault(left.why, []).append(left)
    for why, those in reasons.items():
        kinds = format_kind_counts(kind for left in those if left.kind for kind in [left.kind] * (left.count or 1))
        console.info(f"left behind: {kinds or 'what hangs on the images, if anything does'}; {printable(why)}")


def check_result_writable(path: Path) -> None:
    """Make sure that --result can be written, while nothing is done yet: afterwards it is too late to fail.

    Raises:
        NotFoundError: its folder is not there.
        LocalDiskError: the folder cannot be written to, or the path is another user's link.
    """
    import tempfile

    if paths.is_special(path):
        return
    with files.disk_errors(f"cannot write {path}"), tempfile.TemporaryFile(dir=paths.write_target(path).parent):
        pass


def write_result(
    path: Path,
    report: Report,
    results: Sequence[ImageResult],
    *,
    retried: int,
    upload: Mapping[str, str],
    cached: Mapping[str, int],
) -> None:
    """Write the JSON document of --result: names, digests, sizes in bytes, what became of each blob, seconds.

    What was made of something else has the digest of that as `from`. `resumed` is how many bytes were there already,
    `cached` how many came from the cache, `upload` is how blobs went up, by registry.

    Raises:
        LocalDiskError: it cannot be written.
    """
    document = {
        "images": [
            {
                "name": result.name,
                **({"digest": result.digest} if result.digest is not None else {}),
                **({"imageId": result.image_id} if result.image_id is not None else {}),
                **(_origin_json(source.descriptor.digest, result.digest) if result.digest is not None else {}),
                "mediaType": source.descriptor.media_type if result.image_id else root.descriptor.media_type,
                "size": sum(blob.size for blob in report.graph.blobs if blob.digest in reachable),
                **_platforms_json(root),
            }
            for source, root, result in zip(report.source_graph.roots, report.graph.roots, results, strict=True)
            for reachable in [report.graph.reachable(root, alone=True)]
        ],
        "manifests": [
            {
                **_descriptor_json(m.descriptor.media_type, m.descriptor.digest, m.descriptor.size),
                **_origin_json(report.origins.get(m.descriptor.digest), m.descriptor.digest),
            }
            for m in report.graph.manifests
            # A docker-archive has none.
            if not any(result.image_id for result in results)
        ],
        "blobs": [
            {
                **_descriptor_json(m.descriptor.media_type, m.descriptor.digest, m.descriptor.size),
                "how": _json_key(m.status),
                **(
                    {"why": str(report.graph.omitted_from_output[m.descriptor.digest])}
                    if m.status == "left out"
                    else {}
                ),
                **({"resumed": m.resumed_size} if m.resumed_size else {}),
                **({"cached": from_cache} if from_cache else {}),
                **_origin_json(m.source_digest, m.descriptor.digest),
            }
            for m, from_cache in zip(report.blobs, _cached_sizes(report, cached), strict=True)
        ],
        "referrers": [
            {
                "subject": one.subject,
                "digest": one.descriptor.digest,
                **({"artifactType": one.descriptor.artifact_type} if one.descriptor.artifact_type else {}),
                **({"tag": one.tag} if one.tag else {}),
                "kind": classify_referrer(one.descriptor.artifact_type, one.tag),
            }
            for one in report.graph.all_referrers
        ],
        "leftBehind": [
            {key: value for key, value in asdict(left).items() if value is not None}
            for left in report.graph.skipped_referrers
        ],
        "incomplete": [
            {key: value for key, value in asdict(index).items() if value is not None}
            for index in report.graph.incomplete_indexes
        ],
        "foreign": [_descriptor_json(b.media_type, b.digest, b.size) for b in report.graph.foreign],
        "bytes": {_json_key(how): _total_size(report, how) for how in _BLOB_OUTCOMES},
        "resumed": sum(m.resumed_size for m in report.blobs),
        "cached": sum(_cached_sizes(report, cached)),
        "retried": retried,
        "upload": dict(upload),
        "seconds": round(report.seconds, 3),
    }
    write_result_document(path, document)


def write_result_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document of --result.

    Raises:
        LocalDiskError: it cannot be written.
    """
    write_result_pieces(path, [escape_ci_commands(json.dumps(document, indent=2)).encode(), b"\n"])


def write_result_pieces(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a document of --result that comes in pieces.

    Raises:
        LocalDiskError: it cannot be written.
    """
    # A device or FIFO (/dev/null, `>(command)`) is written to. Of a link, the file to which it leads is replaced.
    is_special = paths.is_special(path)
    with (
        files.disk_errors(f"cannot write {path}"),
        FileIO(path, "w") if is_special else files.atomic_file(paths.write_target(path)) as file,
    ):
        for piece in pieces:
            files.write_all(file, piece)


def _platforms_json(root: Root) -> dict[str, Any]:
    if (taken := root.chosen_platforms) is None:
        return {}
    shown = {"taken": taken.platforms, "offered": taken.available, "byDefault": not taken.explicit}
    return {"platforms": {"index": taken.index, **shown}}


def _cached_sizes(report: Report, cached: Mapping[str, int]) -> list[int]:
    """Give how many bytes of each blob came from the cache; of what was converted, of what it was made of."""
    return [
        cached.get(m.source_digest or m.descriptor.digest, 0) if m.status in {"copied", "converted"} else 0
        for m in report.blobs
    ]


def _descriptor_json(media_type: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _json_key(how: str) -> str:
    return "leftOut" if how == "left out" else how


def _origin_json(source: str | None, result: str) -> dict[str, str]:
    return {"from": source} if source is not None and source != result else {}


def _total_size(report: Report, how: str) -> int:
    return sum(moved.descriptor.size for moved in report.blobs if moved.status == how)
