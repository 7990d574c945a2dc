"""The list format of `ocistream have`: write and read digests of blobs that a location already has.

Lines of digests and of headers (`# ocistream have 1`); lists may be joined with `cat` or written by hand.
Must not open files or connections.
"""

from __future__ import annotations

import itertools
import re
from functools import partial
from typing import IO, TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import ArchiveError, TruncatedError, UnsupportedError
from ocistream.oci.reference import is_digest, printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

_FORMAT: Final = "# ocistream have "
_VERSION: Final = "1"
_ORIGIN: Final = "# origin "
_BY: Final = "# by ocistream "
_PARTIAL: Final = "# partial "
_DIGESTS: Final = "# digests "
_LINES_PER_PIECE: Final = 512
_COUNT = re.compile(r"[0-9]{1,9}\Z")
_OFFSET = re.compile(r"[1-9][0-9]{0,17}\Z")
#: First bytes of files that are not text with one byte a character, and the message for each.
_FOREIGN_FORMATS: Final = {
    b"\x1f\x8b": "it is compressed with gzip: decompress it",
    b"\x28\xb5\x2f\xfd": "it is compressed with zstd: decompress it",
    b"\xff\xfe": "it is UTF-16, as > in PowerShell writes: write it as ASCII",
    b"\xfe\xff": "it is UTF-16: write it as ASCII",
}
#: Some editors write this before UTF-8 text; it has no meaning.
_UTF8_BOM: Final = b"\xef\xbb\xbf"
_HINT: Final = "a list has one digest per line, as `ocistream have` prints it"


def format_have_list(
    origins: Sequence[str], digests: Collection[str], *, version: str, partial_blobs: Mapping[str, int] | None = None
) -> Iterator[str]:
    """Yield the text of a list in pieces of some lines; the digests are sorted.

    `version` is the ocistream version that writes the list. `partial_blobs` has the bytes that exist of unfinished
    blobs; they are headers, which older readers ignore. The number of digests comes first, so that a reader notices a
    truncated list.
    """
    lines = [f"{_FORMAT}{_VERSION}"]
    lines += [f"{_ORIGIN}{printable(origin, limits.MAX_HAVE_LINE // 8)}" for origin in origins]
    lines.append(f"{_BY}{version}")
    partial_sizes = sorted((partial_blobs or {}).items())[: limits.MAX_RESUMABLE_BLOBS]
    lines += [f"{_PARTIAL}{digest} {offset}" for digest, offset in partial_sizes]
    lines.append(f"{_DIGESTS}{len(digests)}")
    remaining = iter(itertools.chain(lines, sorted(digests)))
    while piece := "".join(f"{line}\n" for line in itertools.islice(remaining, _LINES_PER_PIECE)):
        yield piece


class HaveListReader:
    """Read a list once. Iterate to get its digests, with duplicates; the headers are complete at the end.

    `origins` are the locations listed, and `writers` the versions of ocistream that wrote the list: both in order,
    without duplicates, at most `limits.MAX_HAVE_HEADERS`. `total` counts all digests.

    Unknown headers are ignored, because later versions may add some; another format number is refused. A list without a
    number of digests counts as complete, because people make such lists with jq.
    """

    def __init__(self, file: IO[bytes], label: str) -> None:
        """Take the file, without reading it; `label` names the list in errors."""
        # Each line is cut one byte above the limit, so that `_decode_line` notices.
        self._lines = iter(partial(file.readline, limits.MAX_HAVE_LINE + 1), b"")
        self._what = label
        #: Dictionaries used as ordered sets.
        self.origins: dict[str, None] = {}
        self.writers: dict[str, None] = {}
        self.total = 0
        #: Digest of an unfinished blob -> bytes that exist.
        self.partial_blobs: dict[str, int] = {}
        #: Number of joined lists by their format lines and by their counts, and the sum of the counts.
        self._list_count = 0
        self._total_count = 0
        self._expected_digests = 0

    def __iter__(self) -> Iterator[str]:
        """Yield all digests.

        Raises:
            ArchiveError: this is not a list, or it is truncated.
            UnsupportedError: the list has an unknown format, or too many lines.
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
            elif text and self.total < self._expected_digests and not line.endswith(b"\n"):
                raise self._truncated_error(f"{self.total} of {self._expected_digests} digests")
            elif text:
                raise self._malformed_error(number, f"{printable(text, 80)!r} is not a digest")
        self._check_complete()

    def find(self, wanted: Collection[str]) -> set[str]:
        """Read the list, and return the wanted digests that it has. Memory does not grow with the list."""
        return {digest for digest in self if digest in wanted}

    def _decode_line(self, line: bytes, number: int) -> str:
        if number == 1:
            for magic, reason in _FOREIGN_FORMATS.items():
                if line.startswith(magic):
                    msg = f"{self._what} is not a list of digests: {reason}"
                    raise ArchiveError(msg, hint=_HINT)
        if len(line) > limits.MAX_HAVE_LINE:
            raise self._malformed_error(number, f"it has more than {limits.MAX_HAVE_LINE} bytes")
        # An origin may have any bytes. A digest is ASCII: one with replaced characters is not valid.
        return line.removeprefix(_UTF8_BOM).decode(errors="replace").strip(" \t\r\n")

    def _parse_header(self, text: str, number: int) -> None:
        """Parse a line that begins with `#`, and ignore unknown headers."""
        if text.startswith(_FORMAT):
            version = text.removeprefix(_FORMAT)
            if version != _VERSION:
                msg = f"{self._what} is a list of format {printable(version, 40)}; this version reads only {_VERSION}"
                raise UnsupportedError(msg, hint="a newer ocistream wrote it: install the same version here")
            self._list_count += 1
        elif text.startswith(_DIGESTS):
            count = text.removeprefix(_DIGESTS)
            if _COUNT.match(count) is None:
                raise self._malformed_error(number, f"{printable(count, 40)!r} is not a number of digests")
            self._total_count += 1
            self._expected_digests += int(count)
        elif text.startswith(_PARTIAL):
            # A malformed value is ignored: this header only saves bytes.
            digest, _, offset = text.removeprefix(_PARTIAL).partition(" ")
            if is_digest(digest) and _OFFSET.match(offset) and len(self.partial_blobs) < limits.MAX_RESUMABLE_BLOBS:
                self.partial_blobs[digest] = int(offset)
        else:
            for prefix, values in ((_ORIGIN, self.origins), (_BY, self.writers)):
                if text.startswith(prefix) and len(values) < limits.MAX_HAVE_HEADERS:
                    values[printable(text.removeprefix(prefix), len(text))] = None

    def _check_complete(self) -> None:
        if self.total < self._expected_digests:
            raise self._truncated_error(f"{self.total} of {self._expected_digests} digests")
        if self._total_count < self._list_count:
            raise self._truncated_error("a `# digests` line is missing")
        if not self.total and not self._total_count:
            msg = f"{self._what} has no digests and no `# digests` line"
            raise TruncatedError(msg, hint="the command that wrote the list may have failed")

    def _truncated_error(self, how: str) -> TruncatedError:
        return TruncatedError(f"{self._what} is truncated: {how}", hint="transfer it again")

    def _malformed_error(self, number: int, reason: str) -> ArchiveError:
        return ArchiveError(f"{self._what} is not a list of digests: line {number}: {reason}", hint=_HINT)
