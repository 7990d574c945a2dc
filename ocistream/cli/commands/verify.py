"""`ocistream verify`: check archives and layouts offline, in one pass."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from ocistream.cli.console import escape_ci_commands, sanitize_line
from ocistream.cli.options import context_options, max_ratio_option, progress_option
from ocistream.cli.progress import format_count, format_size, show_progress
from ocistream.cli.report import format_result_line
from ocistream.errors import (
    ArchiveError,
    IntegrityError,
    InvalidNameError,
    MissingContentError,
    OcistreamError,
    UnsupportedError,
    UsageError,
)
from ocistream.layout.index import entry_name_of, is_printable_name, subject_of, tag_of
from ocistream.locations import Selection, open_sources, parse_location
from ocistream.oci.omitted_blobs import VOLUME, group_by_reason
from ocistream.oci.reference import parse_reference, printable
from ocistream.oci.referrers import cosign_subject

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ocistream.cli.context import CommandContext
    from ocistream.oci.graph import Root
    from ocistream.oci.volumes import Volume
    from ocistream.transfer.interfaces import Source
    from ocistream.transfer.verify import Findings

#: The most lines for names or for digests; the JSON has all of them, or their number.
_MAX_LINES: Final = 100
#: The most volumes that a line names.
_MAX_NAMES: Final = 20
_DOCKER_ARCHIVE: Final = "docker-archive"


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--deep", is_flag=True, help="Unpack layers as well, and hold them against their configs' diff_ids.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as one JSON document.")
@max_ratio_option
@progress_option
@context_options
def verify(context: CommandContext, paths: tuple[str, ...], *, deep: bool, as_json: bool) -> None:
    """Check the archive or layout PATH (default: stdin), offline and in one pass; or several that belong together.

    Every blob is hashed, also those that no image needs; every image has to be complete, every name legal, and a tar
    has to end as it should. An archive that was made without some blobs (`pull --have`) says so, and is complete
    without them; so is a volume (`pull --split`). Exit code 5: bytes are wrong. 6: something is missing or malformed.

    Only an archive on stdin that begins with more than 6 MiB of small JSON needs a temporary file for what is above.

    \b
    ocistream verify app.tar
    ocistream verify app.000.tar app.001.tar
    ssh build cat app.tar | ocistream verify --deep
    """
    from ocistream.transfer import verify as verification

    paths = paths or ("-",)
    for path in paths:
        if path.startswith("docker://"):
            msg = f"{path!r} is in a registry"
            raise UsageError(msg, hint="pull it first: `ocistream pull IMAGE | ocistream verify`")
    locations = [parse_location(path, bare_is_path=True) for path in paths]
    max_ratio = int(context.options["max_ratio"])
    with contextlib.ExitStack() as stack:
        if as_json:
            stack.enter_context(_print_error_as_json(paths))
        selection = Selection(all_blobs=True, max_ratio=max_ratio, referrers="listed")
        source = open_sources(locations, context.build_open_context(), selection)
        stack.callback(source.close)
        with show_progress(context.options["progress"], context.console) as observer:
            findings = verification.verify(
                source, observer, deep=deep, max_ratio=max_ratio, cancelled=context.cancelled
            )
        report = _VerifyReport(paths, source, findings, deep=deep)
    click.echo(
        escape_ci_commands(json.dumps(report.document(), indent=2))
        if as_json
        else "\n".join(map(sanitize_line, report.lines()))
    )
    report.raise_for_findings()


@contextlib.contextmanager
def _print_error_as_json(paths: tuple[str, ...]) -> Iterator[None]:
    """Print an error that ends the run as a JSON document too, so that stdout is always JSON."""
    try:
        yield
    except OcistreamError as error:
        click.echo(
            escape_ci_commands(json.dumps({"path": _paths_json(paths), "ok": False, "error": error.message}, indent=2))
        )
        raise


class _VerifyReport:
    """The result of a verification, as JSON and as text."""

    def __init__(self, paths: tuple[str, ...], source: Source, findings: Findings, *, deep: bool) -> None:
        self._paths = paths
        self._volumes = _VolumeSet.from_source(source)
        self._findings = findings
        self._deep = deep
        self._format, self._other_files, illegal = _describe_source(source)
        is_legal = _is_docker_name if self._format == _DOCKER_ARCHIVE else is_printable_name
        names = dict.fromkeys(root.name for root in findings.graph.roots if root.name)
        self._illegal_names = [*illegal, *(name for name in names if not is_legal(name))]

    def document(self) -> dict[str, Any]:
        """Return the result as a JSON document."""
        findings = self._findings
        omitted_reasons = findings.graph.omitted_from_source
        return {
            "path": _paths_json(self._paths),
            "format": self._format,
            "ok": not (findings.missing or findings.failures or self._illegal_names),
            "deep": self._deep,
            "images": [
                {
                    "name": root.name,
                    **(
                        {"imageId": findings.graph.image_id(root)}
                        if root.is_synthesized
                        else {"digest": root.descriptor.digest, "mediaType": root.descriptor.media_type}
                    ),
                    **({"subject": subject} if (subject := self._subject(root)) else {}),
                }
                for root in findings.graph.roots
            ],
            "blobs": findings.blobs,
            "bytes": findings.size,
            "unneeded": findings.unreferenced,
            "unpacked": findings.unpacked,
            **({"volumes": self._volumes.document(findings.parts)} if self._volumes else {}),
            "missing": [
                {"digest": descriptor.digest, "mediaType": descriptor.media_type, "size": descriptor.size}
                for descriptor in findings.missing
            ],
            "leftOut": [
                {
                    "digest": blob.digest,
                    "mediaType": blob.media_type,
                    "size": blob.size,
                    "why": str(omitted_reasons[blob.digest]),
                }
                for blob in findings.omitted
            ],
            "incomplete": [
                {
                    **({"name": index.name} if index.name else {}),
                    "digest": index.digest,
                    "platforms": list(index.platforms),
                    "missing": list(index.missing),
                }
                for index in findings.incomplete
            ],
            "wrong": [{"digest": failure.digest, "problem": failure.error.message} for failure in findings.failures],
            "illegalNames": self._illegal_names,
            "otherFiles": self._other_files,
        }

    def lines(self) -> Iterator[str]:
        """Return the result as lines for people."""
        findings = self._findings
        for root in findings.graph.roots:
            digest = None if root.is_synthesized else root.descriptor.digest
            yield format_result_line(root.name or "-", digest, findings.graph.image_id(root))
        yield from self._limit_lines([f"missing {descriptor.digest}" for descriptor in findings.missing])
        yield from self._limit_lines([f"wrong {failure.error.message}" for failure in findings.failures])
        yield from self._limit_lines([f"illegal name {printable(name)!r}" for name in self._illegal_names])
        if self._volumes:
            yield self._volumes.line()
        sizes = {blob.digest: blob.size for blob in findings.omitted}
        for reason, digests in group_by_reason(
            {digest: findings.graph.omitted_from_source[digest] for digest in sizes}
        ).items():
            if self._volumes and reason.kind == VOLUME:
                continue
            size = sum(sizes[digest] for digest in digests)
            yield f"left out {format_count(len(digests), 'blob')}, {format_size(size)}: {reason}"
        for index in findings.incomplete:
            name = printable(index.name or index.digest)
            yield from self._limit_lines([f"not exported: {printable(missing)} of {name}" for missing in index.missing])
        verdict = "ok" if self.document()["ok"] else "NOT ok"
        yield f"{verdict}: {self._format}, {', '.join(self._counts())}"

    def _counts(self) -> list[str]:
        """Return the counts of the last line."""
        findings = self._findings
        referrers = sum(1 for root in findings.graph.roots if self._subject(root))
        parts = [format_count(len(findings.graph.roots) - referrers, "image")]
        if referrers:
            parts.append(format_count(referrers, "referrer"))
        parts += [format_count(findings.blobs, "blob"), format_size(findings.size)]
        if findings.unreferenced:
            parts.append(f"{format_count(findings.unreferenced, 'blob')} that no image needs")
        if findings.unpacked:
            parts.append(f"{format_count(findings.unpacked, 'layer')} unpacked")
        if findings.parts:
            parts.append(f"{format_count(findings.parts, 'part')} of blobs")
        if self._other_files:
            parts.append(format_count(self._other_files, "other file"))
        return parts

    def _subject(self, root: Root) -> str | None:
        """Return the subject of an entry without a name; None for an image."""
        document = self._findings.graph.documents.get(root.descriptor.digest)
        if root.name is not None:
            return None
        if document is not None and document.subject is not None:
            return document.subject.digest
        return subject_of(root.descriptor) or cosign_subject(tag_of(entry_name_of(root.descriptor)) or "")

    def raise_for_findings(self) -> None:
        """Raise the gravest error: IntegrityError for wrong bytes, else ArchiveError for missing content."""
        findings = self._findings
        errors: list[OcistreamError] = [failure.error for failure in findings.failures]
        integrity = [error for error in errors if isinstance(error, IntegrityError)]
        target = "the archive on stdin" if self._paths == ("-",) else printable(" ".join(self._paths), 1024)
        if integrity:
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            msg = f"{target}: {integrity[0].message}{more}"
            raise IntegrityError(msg)
        if errors:
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            msg = f"{target}: {errors[0].message}{more}"
            raise ArchiveError(msg, hint=errors[0].hint)
        if findings.missing:
            more = f" and {len(findings.missing) - 1} more" if len(findings.missing) > 1 else ""
            msg = f"{target} lacks {findings.missing[0].digest}{more}"
            raise MissingContentError(msg, hint="it can still be pushed to a registry that has what is missing")
        if self._illegal_names:
            msg = f"{target} has a name that no image archive has: {printable(self._illegal_names[0])!r}"
            raise ArchiveError(msg)

    @staticmethod
    def _limit_lines(lines: list[str]) -> Iterator[str]:
        yield from lines[:_MAX_LINES]
        if len(lines) > _MAX_LINES:
            yield f"... and {len(lines) - _MAX_LINES} more"


class _VolumeSet(NamedTuple):
    """The volumes of a set that were verified."""

    present: Sequence[Volume]

    @classmethod
    def from_source(cls, source: Source) -> _VolumeSet | None:
        """Return the volumes of a source, or None if it has none."""
        volume = getattr(source, "volume", None)
        volumes = [volume] if volume is not None else getattr(source, "volumes", None)
        return cls(volumes) if volumes else None

    @property
    def absent_names(self) -> list[str]:
        """The names of the other volumes of the set."""
        first, numbers = self.present[0], {volume.number for volume in self.present}
        return [first.template.format_name(number) for number in range(first.total) if number not in numbers]

    def document(self, parts: int) -> dict[str, Any]:
        """Return the volumes as JSON; `parts` is how many parts of blobs were verified."""
        names = [volume.name for volume in self.present]
        return {"here": names, "total": self.present[0].total, "elsewhere": self.absent_names, "parts": parts}

    def line(self) -> str:
        """Return the volumes as a line for people."""
        present, total = self.present, self.present[0].total
        numbers = ", ".join(str(volume.number + 1) for volume in present)
        description = str(present[0]) if len(present) == 1 else f"volumes {numbers} of {total}"
        if not self.absent_names:
            return f"{description}: all of them"
        more_text = f" and {len(self.absent_names) - _MAX_NAMES} more" if len(self.absent_names) > _MAX_NAMES else ""
        names = ", ".join(printable(name) for name in self.absent_names[:_MAX_NAMES])
        return f"{description}; {names}{more_text} {'has' if len(self.absent_names) == 1 else 'have'} the rest"


def _paths_json(paths: tuple[str, ...]) -> str | list[str]:
    return paths[0] if len(paths) == 1 else list(paths)


def _is_docker_name(name: str) -> bool:
    try:
        parse_reference(name)
    except (InvalidNameError, UnsupportedError):
        return False
    return True


def _describe_source(source: Source) -> tuple[str, int, list[str]]:
    """Return the kind of a source, how many files belong to no image, and the illegal names."""
    from ocistream.layout.source import LayoutSource

    if isinstance(source, LayoutSource):
        return "OCI layout", 0, list(source.layout.list_foreign_files())
    from ocistream.archive.file_source import ArchiveFileSource
    from ocistream.archive.joined_source import JoinedSource
    from ocistream.archive.stream_source import ArchiveStreamSource

    if isinstance(source, JoinedSource):
        descriptions = [_describe_source(archive) for archive in source.inputs]
        kinds = " and ".join(sorted({kind for kind, _, _ in descriptions}))
        illegal = [name for _, _, names in descriptions for name in names]
        return f"{kinds}, put together", sum(foreign for _, foreign, _ in descriptions), illegal
    assert isinstance(source, ArchiveFileSource | ArchiveStreamSource), source  # noqa: S101 - there are no others
    contents = source.contents
    illegal = [contents.first_illegal_name] if contents.illegal_count else []
    if contents.is_docker_archive:
        return _DOCKER_ARCHIVE, 0, illegal
    return "OCI archive", contents.foreign_count, illegal
