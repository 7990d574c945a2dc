"""Split archives: the names of volumes, the annotations that describe them, and the parts of blobs in them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from ocistream import limits
from ocistream.errors import ArchiveError, IntegrityError, UsageError
from ocistream.oci.reference import is_digest, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = [
    "PARTS_ANNOTATION",
    "VOLUME_ANNOTATION",
    "Volume",
    "VolumePart",
    "VolumeTemplate",
    "checksum_line",
    "checksum_name",
    "is_template",
    "parse_checksum_line",
    "parse_part_name",
    "parse_template",
    "parse_volume",
    "part_error",
    "part_name",
    "volume_annotations",
]

#: The annotation of an `index.json` that says which volume it is of: `NUMBER TOTAL IDENTITY TEMPLATE`.
VOLUME_ANNOTATION: Final = "vnd.ocistream.volume"
#: That of the blobs which are continued: for each a line `# DIGEST`, and below it `VOLUME OFFSET SIZE` for each part.
PARTS_ANNOTATION: Final = "vnd.ocistream.parts"

_CONVERSION: Final = re.compile(r"%(?:(%)|(0[1-9]|)(d)|(.?))", re.DOTALL)
_PART: Final = re.compile(
    r"parts/(?:(sha256)/([0-9a-f]{64})|(sha512)/([0-9a-f]{128}))/(0|[1-9][0-9]{0,17})(\.sha256)?\Z"
)
_NUMBER: Final = re.compile(r"(?:0|[1-9][0-9]{0,17})\Z")
#: A file's name has no more characters, in whatever file system.
_MAX_TEMPLATE: Final = 255


class VolumeTemplate(NamedTuple):
    """How volumes are called: what stands before the number and behind it, and how many digits that has at least."""

    prefix: str
    width: int
    suffix: str

    def format_name(self, number: int) -> str:
        """Give a volume's name."""
        return f"{self.prefix}{number:0{self.width}d}{self.suffix}"

    def parse_number(self, name: str) -> int | None:
        """Give the number of the volume that is called so, or None."""
        inner = len(name) - len(self.prefix) - len(self.suffix)
        digits = name[len(self.prefix) : len(self.prefix) + max(0, inner)]
        if not digits.isascii() or not digits.isdigit() or len(digits) > max(self.width, len(str(limits.MAX_VOLUMES))):
            return None
        return int(digits) if self.format_name(int(digits)) == name else None

    def __str__(self) -> str:
        """Write it, as it was given."""
        before, after = (text.replace("%", "%%") for text in (self.prefix, self.suffix))
        return f"{before}%{f'0{self.width}' if self.width else ''}d{after}"


def parse_template(text: str) -> VolumeTemplate:
    """Read how volumes are to be called, such as `app.%03d.tar`; `%%` is a percent sign.

    Raises:
        UsageError: it has no place for one number, or another conversion.
    """
    shown = printable(text)
    hint = "write one %d, or one with leading zeros as in app.%03d.tar; %% is a percent sign"
    if not text.isprintable() or "/" in text or len(text) > _MAX_TEMPLATE:
        msg = f"{shown!r} is no name for volumes: it is too long, or has characters that a name should not have"
        raise UsageError(msg)
    texts, widths = [""], []
    position = 0
    for match in _CONVERSION.finditer(text):
        texts[-1] += text[position : match.start()]
        position = match.end()
        if match[1]:
            texts[-1] += "%"
        elif match[3]:
            widths.append(int(match[2] or 0))
            texts.append("")
        else:
            msg = f"{shown!r} is no name for volumes: %{printable(match[4])} is no place for a number"
            raise UsageError(msg, hint=hint)
    texts[-1] += text[position:]
    if len(widths) != 1:
        msg = f"{shown!r} is no name for volumes: it has {len(widths) or 'no'} places for a number"
        raise UsageError(msg, hint=hint)
    return VolumeTemplate(texts[0], widths[0], texts[1])


def is_template(text: str) -> bool:
    """Say whether a file's name looks as if it was meant for volumes."""
    return any(match[3] for match in _CONVERSION.finditer(text))


class VolumePart(NamedTuple):
    """A run of a blob's bytes, from `offset` on, in the volume of that number."""

    volume: int
    offset: int
    size: int


class Volume(NamedTuple):
    """Which volume something is, numbered from 0, of how many, and of which set; and what is continued in that set."""

    number: int
    total: int
    identity: str
    template: VolumeTemplate
    parts: Mapping[str, Sequence[VolumePart]]

    @property
    def name(self) -> str:
        """How it is called by whoever wrote it."""
        return self.template.format_name(self.number)

    def __str__(self) -> str:
        """Say it to people, who count from 1."""
        return f"volume {self.number + 1} of {self.total} ({printable(self.name)})"


def volume_annotations(volume: Volume) -> dict[str, str]:
    """Write the annotations that say it."""
    notes = {VOLUME_ANNOTATION: f"{volume.number} {volume.total} {volume.identity} {volume.template}"}
    if volume.parts:
        lines: list[str] = []
        for digest, pieces in volume.parts.items():
            lines.append(f"# {digest}")
            lines += [f"{piece.volume} {piece.offset} {piece.size}" for piece in pieces]
        notes[PARTS_ANNOTATION] = "\n".join(lines)
    return notes


def parse_volume(notes: Mapping[str, str]) -> Volume | None:
    """Read the annotations; None where they say that it is no volume.

    Raises:
        ArchiveError: they are malformed.
    """
    text = notes.get(VOLUME_ANNOTATION)
    if text is None:
        return None
    fields = text.split(" ", 3)
    if len(fields) != 4 or not _NUMBER.match(fields[0]) or not _NUMBER.match(fields[1]) or not is_digest(fields[2]):
        raise _malformed(VOLUME_ANNOTATION, text)
    number, total = int(fields[0]), int(fields[1])
    if not number < total <= limits.MAX_VOLUMES:
        raise _malformed(VOLUME_ANNOTATION, text)
    try:
        template = parse_template(fields[3])
    except UsageError as error:
        raise _malformed(VOLUME_ANNOTATION, text) from error
    return Volume(number, total, fields[2], template, dict(_parse_parts(notes.get(PARTS_ANNOTATION, ""), total)))


def _parse_parts(text: str, total: int) -> Iterator[tuple[str, Sequence[VolumePart]]]:
    """Read what is continued: the parts of each blob follow upon each other, each in a later volume.

    That their sizes make up the blob's can only be seen where that is known.
    """
    lines = text.split("\n", limits.MAX_PART_LINES + 1) if text else []
    if len(lines) > limits.MAX_PART_LINES:
        raise _malformed(PARTS_ANNOTATION, f"more than {limits.MAX_PART_LINES} lines")
    seen: set[str] = set()
    while lines:
        head = lines.pop(0)
        digest = head.removeprefix("# ")
        if not is_digest(digest) or digest in seen or head == digest:
            raise _malformed(PARTS_ANNOTATION, head)
        seen.add(digest)
        pieces: list[VolumePart] = []
        end = 0
        while lines and not lines[0].startswith("#"):
            line = lines.pop(0)
            numbers = line.split(" ")
            if len(numbers) != 3 or not all(map(_NUMBER.match, numbers)):
                raise _malformed(PARTS_ANNOTATION, line)
            piece = VolumePart(*map(int, numbers))
            after = pieces[-1].volume if pieces else -1
            if piece.offset != end or not piece.size or not after < piece.volume < total:
                raise _malformed(PARTS_ANNOTATION, line)
            end += piece.size
            pieces.append(piece)
        if not pieces:
            raise _malformed(PARTS_ANNOTATION, head)
        yield digest, tuple(pieces)


def _malformed(annotation: str, text: str) -> ArchiveError:
    return ArchiveError(f"index.json has a malformed annotation {annotation}: {printable(text, 80)!r}")


def part_name(digest: str, offset: int) -> str:
    """Give the name in a volume of the part of a blob that begins at `offset`."""
    algorithm, _, encoded = digest.partition(":")
    return f"parts/{algorithm}/{encoded}/{offset}"


def checksum_name(part: str) -> str:
    """Give the name of what says the digest of a part."""
    return f"{part}.sha256"


def checksum_line(part: str, digest: str) -> bytes:
    """Write the digest of a part, as `sha256sum --check` reads it."""
    return f"{digest.removeprefix('sha256:')}  {part}\n".encode()


def parse_checksum_line(part: str, line: bytes) -> str:
    """Read the digest of a part.

    Raises:
        ArchiveError: it is malformed.
    """
    digest = f"sha256:{line[:64].decode('ascii', 'replace')}"
    if not is_digest(digest) or line != checksum_line(part, digest):
        msg = f"{checksum_name(part)} in the archive is malformed"
        raise ArchiveError(msg)
    return digest


def part_error(digest: str, offset: int, volume: str, error: IntegrityError) -> IntegrityError:
    """Say of which blob a part is that was found wrong, and where it lies."""
    what = f"{digest}: its part from byte {offset} on, in {printable(volume)}, is wrong: {error.message}"
    return IntegrityError(what, hint=error.hint)


def parse_part_name(name: str) -> tuple[str, int, bool] | None:
    """Give the digest and the offset that a part's name says, and whether it is that of its checksum; else None."""
    match = _PART.match(name)
    if match is None:
        return None
    return f"{match[1] or match[3]}:{match[2] or match[4]}", int(match[5]), bool(match[6])
