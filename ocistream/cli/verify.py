"""`ocistream verify`: an archive or a layout checked offline, in one pass."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from ocistream.cli.console import harmless_json, in_one_line
from ocistream.cli.options import max_ratio_option, progress_option, session_options
from ocistream.cli.progress import counted, human_size, progress
from ocistream.cli.results import result_line
from ocistream.errors import (
    ArchiveError,
    IntegrityError,
    InvalidNameError,
    MissingContentError,
    OcistreamError,
    UnsupportedError,
    UsageError,
)
from ocistream.layout.index import called, is_plain, subject_of, tag_of
from ocistream.oci.omitted_blobs import VOLUME, grouped
from ocistream.oci.reference import parse_reference, printable
from ocistream.oci.referrers import cosign_subject
from ocistream.stores import Want, open_sources, parse_end

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ocistream.cli.session import Session
    from ocistream.oci.graph import Root
    from ocistream.oci.volumes import Volume
    from ocistream.transfer.interfaces import Source
    from ocistream.transfer.verify import Findings

#: Of names in an archive and of digests, so many are written out; all are in the JSON, or counted there.
_MAX_LINES: Final = 100
#: So many volumes are named.
_MAX_NAMES: Final = 20
_DOCKER_ARCHIVE: Final = "docker-archive"


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--deep", is_flag=True, help="Unpack layers as well, and hold them against their configs' diff_ids.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as one JSON document.")
@max_ratio_option
@progress_option
@session_options
def verify(session: Session, paths: tuple[str, ...], *, deep: bool, as_json: bool) -> None:
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
    ends = [parse_end(path, bare_is_path=True) for path in paths]
    max_ratio = int(session.options["max_ratio"])
    with contextlib.ExitStack() as stack:
        if as_json:
            stack.enter_context(_said_as_json(paths))
        want = Want(everything=True, max_ratio=max_ratio, referrers="listed")
        source = open_sources(ends, session.surroundings(), want)
        stack.callback(source.close)
        with progress(session.options["progress"], session.console) as observer:
            findings = verification.verify(
                source, observer, deep=deep, max_ratio=max_ratio, cancelled=session.cancelled
            )
        outcome = _Outcome(paths, source, findings, deep=deep)
    click.echo(
        harmless_json(json.dumps(outcome.document(), indent=2))
        if as_json
        else "\n".join(map(in_one_line, outcome.lines()))
    )
    outcome.raise_what_is_wrong()


@contextlib.contextmanager
def _said_as_json(paths: tuple[str, ...]) -> Iterator[None]:
    """Print what ends all reading as a document too: whoever reads JSON is to get some."""
    try:
        yield
    except OcistreamError as error:
        click.echo(harmless_json(json.dumps({"path": _path(paths), "ok": False, "error": error.what}, indent=2)))
        raise


class _Outcome:
    """What verifying has found, in the forms in which it is told."""

    def __init__(self, paths: tuple[str, ...], source: Source, findings: Findings, *, deep: bool) -> None:
        self._paths = paths
        self._volumes = _Volumes.of(source)
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
            "path": _path(self._paths),
            "format": self._format,
            "ok": not (found.missing or found.wrong or self._illegal),
            "deep": self._deep,
            "images": [
                {
                    "name": root.name,
                    **(
                        {"imageId": found.graph.image_id(root)}
                        if root.made
                        else {"digest": root.descriptor.digest, "mediaType": root.descriptor.media_type}
                    ),
                    **({"subject": subject} if (subject := self._subject(root)) else {}),
                }
                for root in found.graph.roots
            ],
            "blobs": found.blobs,
            "bytes": found.size,
            "unneeded": found.unneeded,
            "unpacked": found.unpacked,
            **({"volumes": self._volumes.document(found.parts)} if self._volumes else {}),
            "missing": [
                {"digest": descriptor.digest, "mediaType": descriptor.media_type, "size": descriptor.size}
                for descriptor in found.missing
            ],
            "leftOut": [
                {"digest": one.digest, "mediaType": one.media_type, "size": one.size, "why": str(left_out[one.digest])}
                for one in found.left_out
            ],
            "incomplete": [
                {
                    **({"name": index.name} if index.name else {}),
                    "digest": index.digest,
                    "platforms": list(index.platforms),
                    "missing": list(index.missing),
                }
                for index in found.incomplete
            ],
            "wrong": [{"digest": wrong.digest, "problem": wrong.error.what} for wrong in found.wrong],
            "illegalNames": self._illegal,
            "otherFiles": self._foreign,
        }

    def lines(self) -> Iterator[str]:
        """Give the outcome as lines for people."""
        found = self._findings
        for root in found.graph.roots:
            digest = None if root.made else root.descriptor.digest
            yield result_line(root.name or "-", digest, found.graph.image_id(root))
        yield from self._limited([f"missing {descriptor.digest}" for descriptor in found.missing])
        yield from self._limited([f"wrong {wrong.error.what}" for wrong in found.wrong])
        yield from self._limited([f"illegal name {printable(name)!r}" for name in self._illegal])
        if self._volumes:
            yield self._volumes.line()
        sizes = {one.digest: one.size for one in found.left_out}
        for reason, digests in grouped({digest: found.graph.left_out[digest] for digest in sizes}).items():
            if self._volumes and reason.kind == VOLUME:
                continue
            size = sum(sizes[digest] for digest in digests)
            yield f"left out {counted(len(digests), 'blob')}, {human_size(size)}: {reason}"
        for index in found.incomplete:
            name = printable(index.name or index.digest)
            yield from self._limited([f"not exported: {printable(missing)} of {name}" for missing in index.missing])
        verdict = "ok" if self.document()["ok"] else "NOT ok"
        yield f"{verdict}: {self._format}, {', '.join(self._counts())}"

    def _counts(self) -> list[str]:
        """Count what was found, for people."""
        found = self._findings
        referrers = sum(1 for root in found.graph.roots if self._subject(root))
        parts = [counted(len(found.graph.roots) - referrers, "image")]
        if referrers:
            parts.append(counted(referrers, "referrer"))
        parts += [counted(found.blobs, "blob"), human_size(found.size)]
        if found.unneeded:
            parts.append(f"{counted(found.unneeded, 'blob')} that no image needs")
        if found.unpacked:
            parts.append(f"{counted(found.unpacked, 'layer')} unpacked")
        if found.parts:
            parts.append(f"{counted(found.parts, 'part')} of blobs")
        if self._foreign:
            parts.append(counted(self._foreign, "other file"))
        return parts

    def _subject(self, root: Root) -> str | None:
        """Give what an entry without an image's name refers to; None for an image."""
        document = self._findings.graph.documents.get(root.descriptor.digest)
        if root.name is not None:
            return None
        if document is not None and document.subject is not None:
            return document.subject.digest
        return subject_of(root.descriptor) or cosign_subject(tag_of(called(root.descriptor)) or "")

    def raise_what_is_wrong(self) -> None:
        """End with the exit code of the gravest.

        Raises:
            IntegrityError: bytes are wrong.
            ArchiveError: something is missing or malformed.
        """
        found = self._findings
        errors: list[OcistreamError] = [wrong.error for wrong in found.wrong]
        integrity = [error for error in errors if isinstance(error, IntegrityError)]
        where = "the archive on stdin" if self._paths == ("-",) else printable(" ".join(self._paths), 1024)
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


class _Volumes(NamedTuple):
    """Which volumes of a set were looked at."""

    here: Sequence[Volume]

    @classmethod
    def of(cls, source: Source) -> _Volumes | None:
        """Find out whether a source is one volume, or several."""
        volume = getattr(source, "volume", None)
        here = [volume] if volume is not None else getattr(source, "volumes", None)
        return cls(here) if here else None

    @property
    def elsewhere(self) -> list[str]:
        """The names of all others."""
        first, numbers = self.here[0], {volume.number for volume in self.here}
        return [first.template.name(number) for number in range(first.total) if number not in numbers]

    def document(self, parts: int) -> dict[str, Any]:
        """Give it as JSON; `parts` is how many parts of blobs were looked at."""
        names = [volume.name for volume in self.here]
        return {"here": names, "total": self.here[0].total, "elsewhere": self.elsewhere, "parts": parts}

    def line(self) -> str:
        """Give it as a line for people."""
        here, total = self.here, self.here[0].total
        numbers = ", ".join(str(volume.number + 1) for volume in here)
        which = str(here[0]) if len(here) == 1 else f"volumes {numbers} of {total}"
        if not self.elsewhere:
            return f"{which}: all of them"
        more = f" and {len(self.elsewhere) - _MAX_NAMES} more" if len(self.elsewhere) > _MAX_NAMES else ""
        names = ", ".join(printable(name) for name in self.elsewhere[:_MAX_NAMES])
        return f"{which}; {names}{more} {'has' if len(self.elsewhere) == 1 else 'have'} the rest"


def _path(paths: tuple[str, ...]) -> str | list[str]:
    return paths[0] if len(paths) == 1 else list(paths)


def _is_docker_name(name: str) -> bool:
    try:
        parse_reference(name)
    except (InvalidNameError, UnsupportedError):
        return False
    return True


def _seen(source: Source) -> tuple[str, int, list[str]]:
    """Say of what kind a source is, how many files in it belong to no image, and which names are illegal."""
    from ocistream.layout.store import LayoutSource

    if isinstance(source, LayoutSource):
        return "OCI layout", 0, list(source.layout.strangers())
    from ocistream.archive.file import ArchiveFileSource
    from ocistream.archive.joined import JoinedSource
    from ocistream.archive.stream import ArchiveStreamSource

    if isinstance(source, JoinedSource):
        seen = [_seen(one) for one in source.inputs]
        kinds = " and ".join(sorted({kind for kind, _, _ in seen}))
        illegal = [name for _, _, names in seen for name in names]
        return f"{kinds}, put together", sum(foreign for _, foreign, _ in seen), illegal
    assert isinstance(source, ArchiveFileSource | ArchiveStreamSource), source  # noqa: S101 - there are no others
    contents = source.contents
    illegal = [contents.first_illegal] if contents.illegal else []
    if contents.is_docker_archive:
        return _DOCKER_ARCHIVE, 0, illegal
    return "OCI archive", contents.foreign, illegal
