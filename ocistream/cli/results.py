"""What a transfer prints and writes when it is done: result lines on stdout, a JSON document, a last line on stderr."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from io import FileIO
from typing import TYPE_CHECKING, Any, Final

import click

from ocistream import notices
from ocistream.cli.console import harmless_json, in_one_line
from ocistream.cli.progress import counted, human_size
from ocistream.oci.omitted_blobs import grouped
from ocistream.oci.reference import printable
from ocistream.oci.referrers import counted_kinds, kind_of
from ocistream.streams import files, paths
from ocistream.transfer.incomplete_indexes import exported_of
from ocistream.transfer.interfaces import Lacks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from ocistream.cli.console import Console
    from ocistream.oci.graph import Incomplete, Root
    from ocistream.oci.platforms import Taken
    from ocistream.oci.referrers import LeftBehind
    from ocistream.stores import End
    from ocistream.transfer.copy import Report
    from ocistream.transfer.interfaces import Source

__all__ = [
    "Result",
    "check_result",
    "print_results",
    "result_line",
    "results_of",
    "summarize",
    "tell_image_ids",
    "tell_incomplete",
    "tell_left_behind",
    "tell_left_out",
    "tell_recompressed",
    "tell_resumed",
    "tell_taken",
    "write_document",
    "write_result",
]


#: What may become of a blob.
_HOW: Final = ("copied", "converted", "skipped", "mounted", "left out")
#: Characters of a name in a result line; a registry's names are shorter.
_MAX_NAME: Final = 1024
#: So many platforms are named in a line.
_MAX_PLATFORMS: Final = 20


@dataclass(frozen=True, slots=True)
class Result:
    """One image of a transfer as it is told: a digest exists under the name that is given beside it.

    `digest` is None, and the image ID is told instead, where neither side has a manifest: between docker-archives.
    """

    name: str
    digest: str | None
    image_id: str | None = None

    def __str__(self) -> str:
        """Return the result line. A name out of an archive cannot make two lines of it."""
        return in_one_line(result_line(self.name, self.digest, self.image_id))


def result_line(name: str, digest: str | None, image_id: str | None) -> str:
    """Return `NAME@sha256:...`, or what takes its place where there is no manifest."""
    shown = printable(name, _MAX_NAME)
    return f"{shown}@{digest}" if digest is not None else f"{shown} image ID {image_id}"


def results_of(report: Report, label: Callable[[Root], str], to: End | None) -> list[Result]:
    """Return the results in order. `label` names an image; `to` is where the images went, if that is no registry.

    A docker-archive has no manifests: what is told of an image there is the source's digest, under the source's name.
    """
    pairs = list(zip(report.source.roots, report.graph.roots, strict=True))
    if to is None or to.kind != "docker-archive":
        return [Result(_place(source, root, label, to), root.descriptor.digest) for source, root in pairs]
    found = []
    for source, root in pairs:
        name = root.origin if to.name is not None and root.origin and not root.made else label(root)
        found.append(Result(name, None if root.made else source.descriptor.digest, report.graph.image_id(root)))
    return found


def _place(source: Root, root: Root, label: Callable[[Root], str], to: End | None) -> str:
    """Return what a result is called: without a name, a new digest exists only in the archive or layout it went to."""
    if (
        to is None
        or to.kind == "docker"
        or root.name
        or root.origin
        or root.descriptor.digest == source.descriptor.digest
    ):
        return label(root)
    return to.text


def print_results(results: Iterable[Result]) -> None:
    """Print one line an image on stdout."""
    for result in results:
        click.echo(str(result))


def tell_image_ids(console: Console, report: Report, results: Iterable[Result], *, printed: bool) -> None:
    """Say what `docker images` will show for each image of a docker-archive.

    `printed` says that the result lines are on stdout: some of them tell the image ID already.
    """
    for root, result in zip(report.graph.roots, results, strict=True):
        if not (printed and result.digest is None):
            console.note(f"{printable(root.name or result.name, _MAX_NAME)}: image ID {result.image_id}")


def summarize(console: Console, report: Report, cached: Mapping[str, int]) -> None:
    """Say in one line on stderr what was moved and how fast; `cached` is how many bytes of it were, by digest."""
    sizes = {how: _total(report, how) for how in _HOW}
    counts = {how: sum(1 for m in report.blobs if m.how == how) for how in _HOW}
    written = sizes["copied"] + sizes["converted"]
    resumed = sum(m.resumed for m in report.blobs)
    rate = (written - resumed) / report.seconds if report.seconds else 0.0
    moved = counted(counts["copied"] + counts["converted"], "blob")
    parts = [f"{moved}, {human_size(written)}, in {report.seconds:.1f} s ({human_size(rate)}/s)"]
    if counts["converted"]:
        parts.append(f"{counts['converted']} of them converted")
    if resumed:
        parts.append(f"{human_size(resumed)} had been transferred before")
    if from_cache := sum(_cached(report, cached)):
        parts.append(f"{human_size(from_cache)} of it came from the cache")
    parts += [f"{counts[how]} {how} ({human_size(sizes[how])})" for how in ("mounted", "skipped") if counts[how]]
    if kinds := _kinds(report):
        parts[0] += f", with {kinds}"
    foreign = f"{counted(len(report.graph.foreign), 'foreign layer')} left where they are"
    if report.graph.foreign:
        parts.append(foreign)
    console.inform("moved " + "; ".join(parts))
    # What was not moved is said even where the rest is not.
    if console.is_terse and resumed:
        console.note(f"{human_size(resumed)} had been transferred before")
    if console.is_terse and report.graph.foreign:
        console.note(foreign)


def _kinds(report: Report) -> str:
    attached = {one.descriptor.digest: one for one in report.graph.all_attached}
    return counted_kinds(kind_of(one.descriptor.artifact_type, one.tag) for one in attached.values())


def tell_taken(roots: Iterable[Root], source: Source | None = None, *, into_docker_archive: bool = False) -> None:
    """Say which platforms were taken of an index, unless the user named them and each meant one image.

    It is said once, however often the same images are begun. If `source` is an archive or a layout that has only some
    platforms of the index, only those count.
    """
    for root in roots:
        if (taken := root.taken) is None:
            continue
        name = printable(root.name or root.origin or taken.index, _MAX_NAME)
        if not taken.explicit:
            there = exported_of(source, taken.leaves) if source is not None else None
            may_lack = there is None and isinstance(source, Lacks)
            text = _taken(taken, there, may_lack=may_lack, into_docker_archive=into_docker_archive)
            notices.notice(f"{name}: {text}")
        for doubt in taken.doubts():
            notices.notice(f"{name}: {doubt}")


def _taken(taken: Taken, there: Sequence[str] | None, *, may_lack: bool, into_docker_archive: bool) -> str:
    """Describe what was taken of an index; `there` are the platforms that the source has.

    If that is None, the source has all of them, unless it `may_lack` some.
    """
    which = ", ".join(map(printable, taken.platforms))
    count, listed = len(taken.offered) if there is None else len(there), len(taken.offered)
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


def tell_resumed(console: Console, report: Report) -> None:
    """Say, to who wants to know more, of which blobs some was there already."""
    for moved in report.blobs:
        if moved.resumed:
            digest, of = moved.descriptor.digest, human_size(moved.descriptor.size)
            console.note(f"went on with {digest} after {human_size(moved.resumed)} of {of}", level=1)


def tell_recompressed(console: Console, report: Report, *, is_saved: bool, excludes: bool) -> None:
    """Report what became of the layers that `docker save` left uncompressed, if that is not what was to be expected.

    `is_saved` says that the source turned out to be written by `docker save`, perhaps too late to compress its layers.
    `excludes` says that blobs were to be excluded by their digests.
    """
    if not (report.graph.bare or is_saved):
        return
    # Not at the top: most transfers need no codecs.
    from ocistream.streams.layer_types import codec_name

    pairs = [
        (source.descriptor.digest, root.descriptor.digest)
        for source, root in zip(report.source.roots, report.graph.roots, strict=True)
    ]
    # A manifest that was made for this transfer had no digest before.
    changed = dict.fromkeys(pair for pair in pairs if pair[0] != pair[1] and pair[0] not in report.source.made)
    if changed:
        old, new = next(iter(changed))
        more = f" (and those of {counted(len(changed) - 1, 'other image')})" if len(changed) > 1 else ""
        console.note(
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
        console.note(f"{len(plain)} {stay} uncompressed: {why}")


def tell_left_out(console: Console, report: Report) -> None:
    """Say how much was left out of what was written, one line for each reason."""
    sizes = {moved.descriptor.digest: moved.descriptor.size for moved in report.blobs if moved.how == "left out"}
    for reason, digests in grouped(report.graph.leaving).items():
        size = human_size(sum(sizes[digest] for digest in digests))
        console.note(f"left out {counted(len(digests), 'blob')}, {size}: {reason}")


def tell_incomplete(
    console: Console, incomplete: Iterable[Incomplete], origins: Mapping[str, str] | None = None
) -> None:
    """Say of which indexes only some platforms were taken, since the source does not have the others.

    `origins` says what manifests were made of when layers were recompressed, by their digests.
    """
    made = {old: new for new, old in (origins or {}).items()}
    for index in incomplete:
        name = printable(index.name or index.digest, _MAX_NAME)
        console.note(
            f"{name}: the source has only {_listed(index.platforms)} of this index, not {_listed(index.missing)}: "
            f"copied as {made.get(index.instead, index.instead)} instead of {index.digest}"
        )


def _listed(platforms: Sequence[str]) -> str:
    shown = ", ".join(printable(platform) for platform in platforms[:_MAX_PLATFORMS])
    return f"{shown} and {len(platforms) - _MAX_PLATFORMS} more" if len(platforms) > _MAX_PLATFORMS else shown


def tell_left_behind(console: Console, left_behind: Iterable[LeftBehind]) -> None:
    """Say what hangs on the images and did not go along, one line for each reason."""
    reasons: dict[str, list[LeftBehind]] = {}
    for left in left_behind:
        reasons.setdefault(left.why, []).append(left)
    for why, those in reasons.items():
        kinds = counted_kinds(kind for left in those if left.kind for kind in [left.kind] * (left.count or 1))
        console.note(f"left behind: {kinds or 'what hangs on the images, if anything does'}; {printable(why)}")


def check_result(path: Path) -> None:
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
    results: Sequence[Result],
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
                **(_from(source.descriptor.digest, result.digest) if result.digest is not None else {}),
                "mediaType": source.descriptor.media_type if result.image_id else root.descriptor.media_type,
                "size": sum(blob.size for blob in report.graph.blobs if blob.digest in reachable),
                **_platforms(root),
            }
            for source, root, result in zip(report.source.roots, report.graph.roots, results, strict=True)
            for reachable in [report.graph.reachable(root, alone=True)]
        ],
        "manifests": [
            {
                **_descriptor(m.descriptor.media_type, m.descriptor.digest, m.descriptor.size),
                **_from(report.origins.get(m.descriptor.digest), m.descriptor.digest),
            }
            for m in report.graph.manifests
            # A docker-archive has none.
            if not any(result.image_id for result in results)
        ],
        "blobs": [
            {
                **_descriptor(m.descriptor.media_type, m.descriptor.digest, m.descriptor.size),
                "how": _json_key(m.how),
                **({"why": str(report.graph.leaving[m.descriptor.digest])} if m.how == "left out" else {}),
                **({"resumed": m.resumed} if m.resumed else {}),
                **({"cached": from_cache} if from_cache else {}),
                **_from(m.source, m.descriptor.digest),
            }
            for m, from_cache in zip(report.blobs, _cached(report, cached), strict=True)
        ],
        "referrers": [
            {
                "subject": one.subject,
                "digest": one.descriptor.digest,
                **({"artifactType": one.descriptor.artifact_type} if one.descriptor.artifact_type else {}),
                **({"tag": one.tag} if one.tag else {}),
                "kind": kind_of(one.descriptor.artifact_type, one.tag),
            }
            for one in report.graph.all_attached
        ],
        "leftBehind": [
            {key: value for key, value in asdict(left).items() if value is not None}
            for left in report.graph.left_behind
        ],
        "incomplete": [
            {key: value for key, value in asdict(index).items() if value is not None}
            for index in report.graph.incomplete
        ],
        "foreign": [_descriptor(b.media_type, b.digest, b.size) for b in report.graph.foreign],
        "bytes": {_json_key(how): _total(report, how) for how in _HOW},
        "resumed": sum(m.resumed for m in report.blobs),
        "cached": sum(_cached(report, cached)),
        "retried": retried,
        "upload": dict(upload),
        "seconds": round(report.seconds, 3),
    }
    write_document(path, document)


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document of --result.

    Raises:
        LocalDiskError: it cannot be written.
    """
    write_pieces(path, [harmless_json(json.dumps(document, indent=2)).encode(), b"\n"])


def write_pieces(path: Path, pieces: Iterable[bytes]) -> None:
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


def _platforms(root: Root) -> dict[str, Any]:
    if (taken := root.taken) is None:
        return {}
    shown = {"taken": taken.platforms, "offered": taken.offered, "byDefault": not taken.explicit}
    return {"platforms": {"index": taken.index, **shown}}


def _cached(report: Report, cached: Mapping[str, int]) -> list[int]:
    """Give how many bytes of each blob came from the cache; of what was converted, of what it was made of."""
    return [
        cached.get(m.source or m.descriptor.digest, 0) if m.how in {"copied", "converted"} else 0 for m in report.blobs
    ]


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _json_key(how: str) -> str:
    return "leftOut" if how == "left out" else how


def _from(source: str | None, result: str) -> dict[str, str]:
    return {"from": source} if source is not None and source != result else {}


def _total(report: Report, how: str) -> int:
    return sum(moved.descriptor.size for moved in report.blobs if moved.how == how)
