"""The list format of `ocistream have`: write and read digests of blobs that a location already has.

Lines of digests and of headers (`# ocistream have 1`); lists may be joined with `cat` or written by hand.
Must not open files or connections.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from string import hexdigits
from typing import IO, TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import ArchiveError, UnsupportedError
from ocistream.oci.reference import DIGEST_HEX_LENGTHS, is_digest, printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

__all__ = ["HaveListMatch", "HaveListReader", "format_have_list", "match_have_list", "read_lines"]

_FORMAT: Final = "# ocistream have "
_VERSION: Final = "1"
_ORIGIN: Final = "# origin "
_BY: Final = "# by ocistream "
_REACHED: Final = "# reached "
_DIGESTS: Final = "# digests "
_COUNT = re.compile(r"[0-9]{1,9}\Z")
_OFFSET = re.compile(r"[1-9][0-9]{0,17}\Z")
#: How files begin that are no text of one byte a character, and what is to be said of them.
_FOREIGN_FORMATS: Final = {
    b"\x1f\x8b": "it is compressed by gzip: unpack it",
    b"\x28\xb5\x2f\xfd": "it is compressed by zstd: unpack it",
    b"\xff\xfe": "it is UTF-16, as a > of PowerShell's makes it: write it as ASCII",
    b"\xfe\xff": "it is UTF-16: write it as ASCII",
}
#: What some editors put before UTF-8; it says nothing.
_UTF8_BOM: Final = b"\xef\xbb\xbf"
_HINT: Final = "a list has one digest a line, as `ocistream have` prints it"


@dataclass(frozen=True, slots=True)
class HaveListMatch:
    """What of the wanted is in a list: its digests, and what its headers say.

    `origins` are the ends that it is of and `writers` the versions of ocistream that wrote it, each once and in order,
    up to `limits.MAX_HAVE_HEADERS` of them, empty where it was made by hand. `total` counts all digests in it.
    """

    digests: set[str]
    origins: tuple[str, ...]
    writers: tuple[str, ...]
    total: int


def format_have_list(
    origins: Sequence[str], digests: Collection[str], *, version: str, partial_blobs: Mapping[str, int] | None = None
) -> Iterator[str]:
    """Write a list, as lines with their ends; the digests in order.

    `by` is the version that writes it, and `reached` how many bytes are there of blobs that can be gone on with.
    """
    yield f"{_FORMAT}{_VERSION}\n"
    for origin in origins:
        yield f"{_ORIGIN}{printable(origin, limits.MAX_HAVE_LINE // 8)}\n"
    yield f"{_BY}{version}\n"
    for digest, offset in sorted((partial_blobs or {}).items())[: limits.MAX_RESUMABLE_BLOBS]:
        yield f"{_REACHED}{digest} {offset}\n"
    yield f"{_DIGESTS}{len(digests)}\n"
    for digest in sorted(digests):
        yield f"{digest}\n"


def read_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Give the lines of a file, none of them longer than it takes to see that it is too long."""
    while line := file.readline(limits.MAX_HAVE_LINE + 1):
        yield line


def match_have_list(lines: Iterable[bytes], wanted: Collection[str], what: str) -> HaveListMatch:
    """Read a list, and give what of the wanted is in it. Memory does not grow with the list.

    `what` names it in errors. `lines` are with or without their ends, of whatever length.

    Raises:
        ArchiveError: it is no list, or not all of one.
        UnsupportedError: it has a format that is not known yet, or too many lines.
    """
    read = HaveListReader(lines, what)
    digests = {digest for digest in read if digest in wanted}
    return HaveListMatch(digests, tuple(read.origins), tuple(read.writers), read.total)


class HaveListReader:
    """A list that is read once, as its digests, each as often as it stands there; the headers are known at its end."""

    def __init__(self, lines: Iterable[bytes], what: str) -> None:
        """Take the lines, of which none is looked at yet; `what` names the list in errors."""
        self._lines = lines
        self._what = what
        #: In the place of sets, since they are in order.
        self.origins: dict[str, None] = {}
        self.writers: dict[str, None] = {}
        self.total = 0
        #: Of which blobs how many bytes are there.
        self.partial_blobs: dict[str, int] = {}
        #: How many lists are joined in it, by their first lines and by their counts; how many digests these promise.
        self._list_count = 0
        self._total_count = 0
        self._expected_digests = 0

    def __iter__(self) -> Iterator[str]:
        """Read all of it.

        Raises:
            ArchiveError, UnsupportedError: as `found_in`.
        """
        for number, line in enumerate(self._lines, 1):
            if number > limits.MAX_HAVE_LINES:
                msg = f"{self._what} has more than {limits.MAX_HAVE_LINES} lines"
                raise UnsupportedError(msg, hint=_HINT)
            text = self._decode_line(line, number)
            if text.startswith("#"):
                self._parse_header(text, number)
            elif is_digest(text):
                self.total += 1
                yield text
            elif text and self.total < self._expected_digests and _is_truncated_digest(text):
                raise self._truncated_error(f"{self.total} of {self._expected_digests} digests")
            elif text:
                raise self._malformed_error(number, f"{printable(text, 80)!r} is no digest")
        self._check_complete()

    def _decode_line(self, line: bytes, number: int) -> str:
        if number == 1:
            for beginning, why in _FOREIGN_FORMATS.items():
                if line.startswith(beginning):
                    msg = f"{self._what} is no list of digests: {why}"
                    raise ArchiveError(msg, hint=_HINT)
        if len(line) > limits.MAX_HAVE_LINE:
            raise self._malformed_error(number, f"it has more than {limits.MAX_HAVE_LINE} bytes")
        # Names of origins may be anything; a digest is ASCII, and replaced is none.
        return line.removeprefix(_UTF8_BOM).decode(errors="replace").strip(" \t\r\n")

    def _parse_header(self, text: str, number: int) -> None:
        """Take a line that is no digest; what is not known is passed over: later versions may say more."""
        if text.startswith(_FORMAT):
            version = text.removeprefix(_FORMAT)
            if version != _VERSION:
                msg = f"{self._what} is a list of format {printable(version, 40)}, and only {_VERSION} is known here"
                raise UnsupportedError(msg, hint="a later ocistream has written it: have the same one here")
            self._list_count += 1
        elif text.startswith(_DIGESTS):
            count = text.removeprefix(_DIGESTS)
            if _COUNT.match(count) is None:
                raise self._malformed_error(number, f"{printable(count, 40)!r} is no number of digests")
            self._total_count += 1
            self._expected_digests += int(count)
        elif text.startswith(_REACHED):
            # It only spares something: what makes no sense is passed over.
            digest, _, offset = text.removeprefix(_REACHED).partition(" ")
            if is_digest(digest) and _OFFSET.match(offset) and len(self.partial_blobs) < limits.MAX_RESUMABLE_BLOBS:
                self.partial_blobs[digest] = int(offset)
        else:
            for prefix, known in ((_ORIGIN, self.origins), (_BY, self.writers)):
                if text.startswith(prefix) and len(known) < limits.MAX_HAVE_HEADERS:
                    known[printable(text.removeprefix(prefix), len(text))] = None

    def _check_complete(self) -> None:
        if self.total < self._expected_digests:
            raise self._truncated_error(f"{self.total} of {self._expected_digests} digests")
        if self._total_count < self._list_count:
            raise self._truncated_error("it ends before it says how many digests there are")
        if not self.total and not self._total_count:
            msg = f"{self._what} has no digest in it, and does not say that there are none"
            raise ArchiveError(msg, hint="did the command that was to write it fail?")

    def _truncated_error(self, how: str) -> ArchiveError:
        return ArchiveError(f"{self._what} is cut short: {how}", hint="carry it over once more")

    def _malformed_error(self, number: int, reason: str) -> ArchiveError:
        return ArchiveError(f"{self._what} is no list of digests: line {number}: {reason}", hint=_HINT)


def _is_truncated_digest(text: str) -> bool:
    """Say whether a line could be the beginning of a digest."""
    algorithm, colon, encoded = text.partition(":")
    if colon:
        return len(encoded) < DIGEST_HEX_LENGTHS.get(algorithm, 0) and set(encoded) <= set(hexdigits.lower())
    return any(known.startswith(text) for known in DIGEST_HEX_LENGTHS)
