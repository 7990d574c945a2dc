"""Parse versions in tags (`1.4`, `v2.0.1`, `3.0.0-rc.1`) and ranges of versions, ordered as semver.org defines.

Ranges have only comparisons: `^`, `~` and `x` mean different things in different tools.
"""

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
#: Length of a tag in characters.
_MAX_LENGTH: Final = 128
#: Up to 18 digits a number: dates have 8, and timestamps 14.
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
    """A version in comparable form: its numbers, whether it is a release, and the parts of a pre-release.

    Numeric parts sort before others, and by value (semver.org, section 11).
    """

    numbers: tuple[int, ...]
    is_release: bool = True
    prerelease: tuple[tuple[bool, int, str], ...] = ()


def parse_version(text: str) -> Version | None:
    """Return the version that a tag names, or None."""
    match = _VERSION.match(text) if len(text) <= _MAX_LENGTH else None
    if match is None:
        return None
    numbers = [int(number) for number in match[1].split(".")]
    numbers += [0] * (_NUMBERS - len(numbers))
    parts = match[2].split(".") if match[2] else []
    prerelease = tuple((not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts)
    return Version(tuple(numbers), not parts, prerelease)


class VersionRange(NamedTuple):
    """Bounds that must all hold."""

    bounds: tuple[tuple[str, Version], ...]

    def contains(self, version: Version) -> bool:
        """Return whether a version is in the range.

        A pre-release is in the range only if a bound names a pre-release. It is not if its release is an exclusive
        upper bound: `<2` does not mean 2.0.0-rc.1 (as in PEP 440).
        """
        if not version.is_release:
            if all(bound.is_release for _, bound in self.bounds):
                return False
            upper_bounds = {bound.numbers for sign, bound in self.bounds if sign == "<" and bound.is_release}
            if version.numbers in upper_bounds:
                return False
        return all(_COMPARE[sign](version, bound) for sign, bound in self.bounds)


def parse_range(text: str) -> VersionRange:
    """Parse a range such as `>=1.4, <2`.

    Raises:
        UsageError: the range is malformed.
    """
    return VersionRange(tuple(_parse_bounds(text)))


def _parse_bounds(text: str) -> Iterable[tuple[str, Version]]:
    for part in text.split(","):
        match = _BOUND.match(part)
        version = parse_version(match[2]) if match else None
        if match is None or version is None:
            msg = f"malformed range {printable(text)!r}: {printable(part.strip())!r} is not a version bound"
            raise UsageError(msg, hint="for example '>=1.4, <2'; operators are =, !=, <, <=, > and >=")
        yield match[1], version
