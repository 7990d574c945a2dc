"""`ocistream verify`: an archive or a layout checked offline, in one pass."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any, Final

import click

from ocistream.cli.options import max_ratio_option, progress_option, session_options
from ocistream.cli.progress import counted, human_size, progress
from ocistream.errors import (
    ArchiveError,
    IntegrityError,
    InvalidNameError,
    MissingContentError,
    OcistreamError,
    UnsupportedError,
    UsageError,
)
from ocistream.left_out import grouped
from ocistream.reference import parse_reference, printable
from ocistream.stores import Want, open_source, parse_end
from ocistream.stores.index import is_plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocistream.cli.session import Session
    from ocistream.interfaces import Source
    from ocistream.verification import Findings

#: Of names in an archive and of digests, so many are written out; all are in the JSON, or counted there.
_MAX_LINES: Final = 100
_DOCKER_ARCHIVE: Final = "docker-archive"


@click.command()
@click.argument("path", default="-")
@click.option("--deep", is_flag=True, help="Unpack layers as well, and hold them against their configs' diff_ids.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as one JSON document.")
@max_ratio_option
@progress_option
@session_options
def verify(session: Session, path: str, *, deep: bool, as_json: bool) -> None:
    """Check the archive or layout PATH (default: stdin), offline and in one pass.

    Every blob is hashed, also those that no image needs; every image has to be complete, every name legal, and a tar
    has to end as it should. An archive that was made without some blobs (`pull --have`) says so, and is complete
    without them. Exit code 5: bytes are wrong. 6: something is missing or malformed.

    Only an archive on stdin that begins with more than 6 MiB of small JSON needs a temporary file for what is above.

    \b
    ocistream verify app.tar
    ssh build cat app.tar | ocistream verify --deep
    """
    from ocistream import verification

    if path.startswith("docker://"):
        msg = f"{path!r} is in a registry"
        raise UsageError(msg, hint="pull it first: `ocistream pull IMAGE | ocistream verify`")
    end = parse_end(path, bare_is_path=True)
    max_ratio = int(session.options["max_ratio"])
    with contextlib.ExitStack() as stack:
        if as_json:
            stack.enter_context(_said_as_json(path))
        want = Want(everything=True, max_ratio=max_ratio, referrers="listed")
        source = open_source(end, session.surroundings(), want)
        stack.callback(source.close)
        with progress(session.options["progress"], session.console) as observer:
            findings = verification.verify(
                source, observer, deep=deep, max_ratio=max_ratio, cancelled=session.cancelled
            )
        outcome = _Outcome(path, source, findings, deep=deep)
    click.echo(json.dumps(outcome.document(), indent=2) if as_json else "\n".join(outcome.lines()))
    outcome.raise_what_is_wrong()


@contextlib.contextmanager
def _said_as_json(path: str) -> Iterator[None]:
    """Print what ends all reading as a document too: whoever reads JSON is to get some."""
    try:
        yield
    except OcistreamError as error:
        click.echo(json.dumps({"path": path, "ok": False, "error": error.what}, indent=2))
        raise


class _Outcome:
    """What verifying has found, in the forms in which it is told."""

    def __init__(self, path: str, source: Source, findings: Findings, *, deep: bool) -> None:
        self._path = path
        self._findings = findings
        self._deep = deep
        self._format, self._foreign, illegal = _seen(source)
        is_legal = _is_docker_name if self._format == _DOCKER_ARCHIVE else is_plain
        names = dict.fromkeys(root.name for root in findings.graph.roots if root.name)
        self._illegal = [*illegal, *(name for name in names if not is_legal(name))]

    def document(self) -> dict[str, Any]:
        """Give the outcome as a JSON document."""
        found = self._findings
        left_out = found.graph.left_out
        return {
            "path": self._path,
            "format": self._format,
            "ok": not (found.missing or found.wrong or self._illegal),
            "deep": self._deep,
            "images": [
                {
                    "name": root.name,
                    "digest": root.descriptor.digest,
                    "mediaType": root.descriptor.media_type,
                }
                for root in found.graph.roots
            ],
            "blobs": found.blobs,
            "bytes": found.size,
            "unneeded": found.unneeded,
            "unpacked": found.unpacked,
            "missing": [
                {"digest": descriptor.digest, "mediaType": descriptor.media_type, "size": descriptor.size}
                for descriptor in found.missing
            ],
            "leftOut": [
                {"digest": one.digest, "mediaType": one.media_type, "size": one.size, "why": str(left_out[one.digest])}
                for one in found.left_out
            ],
            "wrong": [{"digest": wrong.digest, "problem": wrong.error.what} for wrong in found.wrong],
            "illegalNames": self._illegal,
            "otherFiles": self._foreign,
        }

    def lines(self) -> Iterator[str]:
        """Give the outcome as lines for people."""
        found = self._findings
        for root in found.graph.roots:
            yield f"{printable(root.name or '-')}@{root.descriptor.digest}"
        yield from self._limited([f"missing {descriptor.digest}" for descriptor in found.missing])
        yield from self._limited([f"wrong {wrong.error.what}" for wrong in found.wrong])
        yield from self._limited([f"illegal name {printable(name)!r}" for name in self._illegal])
        parts = [counted(len(found.graph.roots), "image"), counted(found.blobs, "blob"), human_size(found.size)]
        if found.unneeded:
            parts.append(f"{counted(found.unneeded, 'blob')} that no image needs")
        if found.unpacked:
            parts.append(f"{counted(found.unpacked, 'layer')} unpacked")
        if self._foreign:
            parts.append(counted(self._foreign, "other file"))
        sizes = {one.digest: one.size for one in found.left_out}
        for reason, digests in grouped({digest: found.graph.left_out[digest] for digest in sizes}).items():
            size = sum(sizes[digest] for digest in digests)
            yield f"left out {counted(len(digests), 'blob')}, {human_size(size)}: {reason}"
        verdict = "ok" if self.document()["ok"] else "NOT ok"
        yield f"{verdict}: {self._format}, {', '.join(parts)}"

    def raise_what_is_wrong(self) -> None:
        """End with the exit code of the gravest.

        Raises:
            IntegrityError: bytes are wrong.
            ArchiveError: something is missing or malformed.
        """
        found = self._findings
        errors: list[OcistreamError] = [wrong.error for wrong in found.wrong]
        integrity = [error for error in errors if isinstance(error, IntegrityError)]
        where = printable(self._path) if self._path != "-" else "the archive on stdin"
        if integrity:
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            msg = f"{where}: {integrity[0].what}{more}"
            raise IntegrityError(msg)
        if errors:
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            msg = f"{where}: {errors[0].what}{more}"
            raise ArchiveError(msg, hint=errors[0].hint)
        if found.missing:
            more = f" and {len(found.missing) - 1} more" if len(found.missing) > 1 else ""
            msg = f"{where} lacks {found.missing[0].digest}{more}"
            raise MissingContentError(msg, hint="it can still be pushed to a registry that has what is missing")
        if self._illegal:
            msg = f"{where} has a name that no image archive has: {printable(self._illegal[0])!r}"
            raise ArchiveError(msg)

    @staticmethod
    def _limited(lines: list[str]) -> Iterator[str]:
        yield from lines[:_MAX_LINES]
        if len(lines) > _MAX_LINES:
            yield f"... and {len(lines) - _MAX_LINES} more"


def _is_docker_name(name: str) -> bool:
    try:
        parse_reference(name)
    except (InvalidNameError, UnsupportedError):
        return False
    return True


def _seen(source: Source) -> tuple[str, int, list[str]]:
    """Say of what kind a source is, how many files in it belong to no image, and which names are illegal."""
    from ocistream.stores.layout import LayoutSource

    if isinstance(source, LayoutSource):
        return "OCI layout", 0, list(source.layout.strangers())
    from ocistream.stores.archive_file import ArchiveFileSource
    from ocistream.stores.archive_stream import ArchiveStreamSource

    assert isinstance(source, ArchiveFileSource | ArchiveStreamSource), source  # noqa: S101 - there are no others
    contents = source.contents
    illegal = [contents.first_illegal] if contents.illegal else []
    if contents.index is None:
        return _DOCKER_ARCHIVE, 0, illegal
    return "OCI archive", contents.foreign, illegal
