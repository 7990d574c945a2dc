"""Split archives: the names of volumes, the annotations that describe them, and the parts of blobs in them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from ocistream import limits
from ocistream.errors import ArchiveError, IntegrityError, UsageError
from ocistream.oci.reference import is_digest, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

#: The annotation of `index.json` that names the volume: `NUMBER TOTAL IDENTITY TEMPLATE`.
VOLUME_ANNOTATION: Final = "vnd.ocistream.volume"
#: The annotation with the parts of split blobs: for each blob a line `# DIGEST`, then `VOLUME OFFSET SIZE` for each
#: part.
PARTS_ANNOTATION: Final = "vnd.ocistream.parts"

#: The place of the number in a template whose `%%` were replaced.
_CONVERSION: Final = re.compile("%(?:0([1-9]))?d")
_PART: Final = re.compile(
    r"parts/(?:(sha256)/([0-9a-f]{64})|(sha512)/([0-9a-f]{128}))/(0|[1-9][0-9]{0,17})(\.sha256)?\Z"
)
_NUMBER: Final = re.compile(r"(?:0|[1-9][0-9]{0,17})\Z")
#: File systems allow no longer file names.
_MAX_TEMPLATE: Final = 255


class VolumeTemplate(NamedTuple):
    """The pattern of volume names: the text before and after the number, and the minimum number of digits."""

    prefix: str
    width: int
    suffix: str

    def format_name(self, number: int) -> str:
        """Return the name of a volume."""
        return f"{self.prefix}{number:0{self.width}d}{self.suffix}"

    def parse_number(self, name: str) -> int | None:
        """Return the number of the volume with this name, or None."""
        inner = len(name) - len(self.prefix) - len(self.suffix)
        digits = name[len(self.prefix) : len(self.prefix) + max(0, inner)]
        if not digits.isascii() or not digits.isdigit() or len(digits) > max(self.width, len(str(limits.MAX_VOLUMES))):
            return None
        return int(digits) if self.format_name(int(digits)) == name else None

    def __str__(self) -> str:
        """Return the template as the user wrote it."""
        before, after = (text.replace("%", "%%") for text in (self.prefix, self.suffix))
        return f"{before}%{f'0{self.width}' if self.width else ''}d{after}"


def parse_template(text: str) -> VolumeTemplate:
    """Parse a template for volume names, such as `app.%03d.tar`. `%%` is a percent sign.

    Raises:
        UsageError: the text does not have exactly one `%d`, or has another conversion.
    """
    shown = printable(text)
    hint = "write one %d, or %03d for leading zeros, such as app.%03d.tar; %% is a percent sign"
    if not text.isprintable() or "/" in text or len(text) > _MAX_TEMPLATE:
        msg = f"{shown!r} is not a valid name for volumes: it is too long, or has unusual characters"
        raise UsageError(msg)
    before, *conversions = _CONVERSION.split(text.replace("%%", "\0"))
    for literal in (before, *conversions[1::2]):
        if (place := literal.find("%")) >= 0:
            msg = f"{shown!r} is not a valid name for volumes: %{literal[place + 1 : place + 2]} is not %d"
            raise UsageError(msg, hint=hint)
    if len(conversions) != 2:
        msg = f"{shown!r} is not a valid name for volumes: it has {len(conversions) // 2 or 'no'} %d"
        raise UsageError(msg, hint=hint)
    width, after = conversions
    return VolumeTemplate(before.replace("\0", "%"), int(width or 0), after.replace("\0", "%"))


def is_template(text: str) -> bool:
    """Return whether a file name looks like a template for volume names."""
    return _CONVERSION.search(text.replace("%%", "\0")) is not None


class VolumePart(NamedTuple):
    """A run of a blob's bytes in a volume: the volume's number, and offset and size in bytes."""

    volume: int
    offset: int
    size: int


class Volume(NamedTuple):
    """One volume of a set of volumes.

    `number` counts from 0. `identity` is the same for all volumes of a set. `parts` are the parts of split blobs.
    """

    number: int
    total: int
    identity: str
    template: VolumeTemplate
    parts: Mapping[str, Sequence[VolumePart]]

    @property
    def name(self) -> str:
        """The name that the writer gave the volume."""
        return self.template.format_name(self.number)

    def __str__(self) -> str:
        """Return the volume as text for people, counted from 1."""
        return f"volume {self.number + 1} of {self.total} ({printable(self.name)})"


def volume_annotations(volume: Volume) -> dict[str, str]:
    """Return the annotations that describe a volume."""
    annotations = {VOLUME_ANNOTATION: f"{volume.number} {volume.total} {volume.identity} {volume.template}"}
    if volume.parts:
        lines: list[str] = []
        for digest, pieces in volume.parts.items():
            lines.append(f"# {digest}")
            lines += [f"{piece.volume} {piece.offset} {piece.size}" for piece in pieces]
        annotations[PARTS_ANNOTATION] = "\n".join(lines)
    return annotations


def parse_volume(annotations: Mapping[str, str]) -> Volume | None:
    """Parse the annotations of an index, or return None if it is not a volume's.

    Raises:
        ArchiveError: an annotation is malformed.
    """
    text = annotations.get(VOLUME_ANNOTATION)
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
    return Volume(number, total, fields[2], template, dict(_parse_parts(annotations.get(PARTS_ANNOTATION, ""), total)))


def _parse_parts(text: str, total: int) -> Iterator[tuple[str, Sequence[VolumePart]]]:
    """Yield the parts of each split blob. Parts must be contiguous, each in a later volume than the part before.

    Whether their sizes make up the blob is checked where the blob's size is known.
    """
    lines = text.split("\n", limits.MAX_PART_LINES + 1) if text else []
    if len(lines) > limits.MAX_PART_LINES:
        raise _malformed(PARTS_ANNOTATION, f"more than {limits.MAX_PART_LINES} lines")
    seen: set[str] = set()
    while lines:
        header = lines.pop(0)
        digest = header.removeprefix("# ")
        if not is_digest(digest) or digest in seen or header == digest:
            raise _malformed(PARTS_ANNOTATION, header)
        seen.add(digest)
        parts: list[VolumePart] = []
        next_offset = 0
        while lines and not lines[0].startswith("#"):
            line = lines.pop(0)
            numbers = line.split(" ")
            if len(numbers) != 3 or not all(map(_NUMBER.match, numbers)):
                raise _malformed(PARTS_ANNOTATION, line)
            part = VolumePart(*map(int, numbers))
            last_volume = parts[-1].volume if parts else -1
            if part.offset != next_offset or not part.size or not last_volume < part.volume < total:
                raise _malformed(PARTS_ANNOTATION, line)
            next_offset += part.size
            parts.append(part)
        if not parts:
            raise _malformed(PARTS_ANNOTATION, header)
        yield digest, tuple(parts)


def _malformed(annotation: str, text: str) -> ArchiveError:
    return ArchiveError(f"index.json has a malformed annotation {annotation}: {printable(text, 80)!r}")


def part_name(digest: str, offset: int) -> str:
    """Return the name in a volume of the part of a blob that starts at `offset`.

    It is not below `blobs/`: other tools would find a blob there whose bytes do not match its name.
    """
    algorithm, _, encoded = digest.partition(":")
    return f"parts/{algorithm}/{encoded}/{offset}"


def checksum_name(part: str) -> str:
    """Return the name of the file with the checksum of a part.

    The digest of a part is known only after its last byte, so the checksum is an entry of its own.
    """
    return f"{part}.sha256"


def checksum_line(part: str, digest: str) -> bytes:
    """Return the checksum of a part as `sha256sum --check` reads it."""
    return f"{digest.removeprefix('sha256:')}  {part}\n".encode()


def parse_checksum_line(part: str, line: bytes) -> str:
    """Return the digest of a part.

    Raises:
        ArchiveError: the line is malformed.
    """
    digest = f"sha256:{line[:64].decode('ascii', 'replace')}"
    if not is_digest(digest) or line != checksum_line(part, digest):
        msg = f"{checksum_name(part)} in the archive is malformed"
        raise ArchiveError(msg)
    return digest


def part_error(digest: str, offset: int, volume: str, error: IntegrityError) -> IntegrityError:
    """Return an error that names the blob and the volume of a corrupt part."""
    message = f"{digest}: its part from byte {offset} in {printable(volume)} is corrupt: {error.message}"
    return IntegrityError(message, digest=digest, hint=error.hint)


def parse_part_name(name: str) -> tuple[str, int, bool] | None:
    """Return the digest, the offset, and whether the name is that of a checksum; None for other names."""
    match = _PART.match(name)
    if match is None:
        return None
    return f"{match[1] or match[3]}:{match[2] or match[4]}", int(match[5]), bool(match[6])
