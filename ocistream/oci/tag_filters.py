"""Choose tags by shell patterns, or by ranges of versions (`1.4`, `v2.0.1`, `3.0.0-rc.1`) in the order of semver.org.

Ranges have only comparisons: `^`, `~` and `x` mean different things in different tools.
"""

from __future__ import annotations

import operator
import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from ocistream import notices
from ocistream.errors import NotFoundError, UsageError
from ocistream.oci.reference import is_digest_tag, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

#: Returns the selected tags, and raises NotFoundError if no tag is selected.
TagFilter: TypeAlias = "Callable[[Sequence[str]], list[str]]"

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


def glob_filter(globs: Sequence[str]) -> TagFilter:
    """Return a filter by shell patterns. It selects tags that match a pattern, and no pattern that begins with `!`.

    Without a positive pattern, all tags match. A notice names a positive pattern that no tag matches.

    Tags of referrers (cosign's, and referrers lists) are copied with their image. They are selected only by a pattern
    that begins like them.
    """
    included = [glob for glob in globs if not glob.startswith("!")]
    excluded = [glob[1:] for glob in globs if glob.startswith("!")]

    def choose(tags: Sequence[str]) -> list[str]:
        chosen = [
            tag
            for tag in tags
            if _matches(tag, included or ["*"]) and not any(fnmatchcase(tag, glob) for glob in excluded)
        ]
        selected = require_some(chosen, tags, f"matches {' '.join(map(repr, globs))}")
        for glob in included:
            # Perhaps a typo, or a tag that was deleted.
            if not any(_matches(tag, [glob]) for tag in tags):
                notices.notify(f"no tag matches {printable(glob)!r}")
        return selected

    return choose


def version_filter(within: str | None = None, *, latest: int | None = None, suffix: str = "") -> TagFilter:
    """Return a filter for tags that are versions: those `within` a range, and of these the `latest` highest ones.

    With a `suffix` such as `-alpine`, only tags that end with it are selected, and the version is the text before it.
    Otherwise `1.25-alpine` would be a pre-release. Without a range, all releases are selected and no pre-releases.

    Raises:
        UsageError: the range is malformed.
    """
    bounds = parse_range(within if within is not None else ">=0")

    def choose(tags: Sequence[str]) -> list[str]:
        versions = []
        for tag in tags:
            version = parse_version(tag.removesuffix(suffix)) if tag.endswith(suffix) else None
            if version is not None and bounds.contains(version):
                versions.append((version, tag))
        # Of two tags for one version, the longer one is more specific. The order must not depend on the order of the
        # tags.
        versions.sort(key=lambda pair: (pair[0], len(pair[1]), pair[1]))
        selected = {tag for _, tag in (versions if latest is None else versions[-latest:])}
        wanted = f"is a version {within if within is not None else 'of a release'}"
        wanted += f" with the suffix {suffix}" if suffix else ""
        return require_some([tag for tag in tags if tag in selected], tags, wanted)

    return choose


def _matches(tag: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(tag, glob) and (not is_digest_tag(tag) or glob[:3] == tag[:3]) for glob in globs)


def require_some(chosen: list[str], tags: Sequence[str], condition: str) -> list[str]:
    """Return the selected tags. `condition` is what none of them fulfills in the error, such as "matches 'v*'".

    Raises:
        NotFoundError: no tag is selected.
    """
    if not chosen:
        shown = ", ".join(tags[:10]) + (f" and {len(tags) - 10} more" if len(tags) > 10 else "")
        msg = f"no tag {printable(condition, 200)}" if tags else "no tags exist"
        raise NotFoundError(msg, hint=f"the tags are: {shown}" if tags else None)
    return chosen


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
    """Parse a range such as `>=1.4, <2`."""
    return VersionRange(tuple(_parse_bounds(text)))


def _parse_bounds(text: str) -> Iterable[tuple[str, Version]]:
    for part in text.split(","):
        match = _BOUND.match(part)
        version = parse_version(match[2]) if match else None
        if match is None or version is None:
            msg = f"malformed version range {printable(text)!r}: {printable(part.strip())!r} is not a version bound"
            raise UsageError(msg, hint="for example '>=1.4, <2'; operators are =, !=, <, <=, > and >=")
        yield match[1], version
