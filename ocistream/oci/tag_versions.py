"""Parse versions in tags (`1.4`, `v2.0.1`, `3.0.0-rc.1`) and ranges of versions, ordered as semver.org defines."""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ocistream.errors import UsageError
from ocistream.oci.reference import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Version", "VersionRange", "parse_range", "parse_version"]

_NUMBERS: Final = 4
#: Characters of a tag.
_MAX_LENGTH: Final = 128
#: Digits of one number: dates have eight, and times fourteen.
_VERSION = re.compile(r"v?([0-9]{1,18}(?:\.[0-9]{1,18}){0,3})(?:-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?\Z")
_BOUND = re.compile(r"\s*(>=|<=|!=|=|>|<)\s*(\S+)\s*\Z")
_COMPARE: Final[dict[str, Callable[[Any, Any], bool]]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "=": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}


class Version(NamedTuple):
    """A version in the form in which it is compared: numbers, whether it is a release, and what it is before one.

    Of a pre-release's parts, those that are numbers come first, in the order of numbers.
    """

    numbers: tuple[int, ...]
    is_release: bool = True
    prerelease: tuple[tuple[bool, int, str], ...] = ()


def parse_version(text: str) -> Version | None:
    """Give the version that a tag is, or None."""
    match = _VERSION.match(text) if len(text) <= _MAX_LENGTH else None
    if match is None:
        return None
    numbers = [int(number) for number in match[1].split(".")]
    numbers += [0] * (_NUMBERS - len(numbers))
    parts = match[2].split(".") if match[2] else []
    before = tuple((not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts)
    return Version(tuple(numbers), not parts, before)


class VersionRange(NamedTuple):
    """Bounds, all of which hold."""

    bounds: tuple[tuple[str, Version], ...]

    def contains(self, version: Version) -> bool:
        """Say whether a version is within the range.

        A pre-release is, if the range names one, and unless it is one of the release that is an upper bound itself:
        2.0.0-rc.1 is not wanted by who says `<2`.
        """
        if not version.is_release:
            if all(bound.is_release for _, bound in self.bounds):
                return False
            ends = {bound.numbers for sign, bound in self.bounds if sign == "<" and bound.is_release}
            if version.numbers in ends:
                return False
        return all(_COMPARE[sign](version, bound) for sign, bound in self.bounds)


def parse_range(text: str) -> VersionRange:
    """Parse a range such as `>=1.4, <2`.

    Raises:
        UsageError: it is malformed.
    """
    return VersionRange(tuple(_parse_bounds(text)))


def _parse_bounds(text: str) -> Iterable[tuple[str, Version]]:
    for part in text.split(","):
        match = _BOUND.match(part)
        version = parse_version(match[2]) if match else None
        if match is None or version is None:
            msg = f"malformed range {printable(text)!r}: {printable(part.strip())!r} is no bound of a version"
            raise UsageError(msg, hint="write it as in '>=1.4, <2'; there are =, !=, <, <=, > and >=")
        yield match[1], version
