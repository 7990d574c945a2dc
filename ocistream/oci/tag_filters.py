"""Filter tags by shell patterns, by a regular expression, or by version range."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeAlias

from ocistream.errors import NotFoundError
from ocistream.oci.linear_regex import compile_full_match
from ocistream.oci.reference import is_digest_tag
from ocistream.oci.tag_versions import parse_range, parse_version

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["TagFilter", "glob_filter", "regex_filter", "version_filter"]

#: Gives the chosen ones of some tags, and raises NotFoundError where there are none.
TagFilter: TypeAlias = "Callable[[Sequence[str]], list[str]]"


def glob_filter(globs: Sequence[str]) -> TagFilter:
    """Give the way to choose tags by a shell's patterns: those that one matches and none with a `!` before it does.

    Without a pattern, or only with `!` ones, that is all. Tags which only say what hangs on an image (its signatures,
    the list of its referrers) go with it, and are chosen for themselves only by a pattern that begins like them.
    """
    wanted = [glob for glob in globs if not glob.startswith("!")]
    unwanted = [glob[1:] for glob in globs if glob.startswith("!")]

    def choose(tags: Sequence[str]) -> list[str]:
        chosen = [
            tag
            for tag in tags
            if _matches(tag, wanted or ["*"]) and not any(fnmatchcase(tag, glob) for glob in unwanted)
        ]
        return _require_some(chosen, tags)

    return choose


def regex_filter(pattern: str) -> TagFilter:
    """Give the way to choose tags by a regular expression (Python's) that matches the whole of them.

    Raises:
        UsageError: it is malformed, or refers to what it has matched before.
    """
    matches = compile_full_match(pattern)

    def choose(tags: Sequence[str]) -> list[str]:
        return _require_some([tag for tag in tags if not is_digest_tag(tag) and matches(tag)], tags)

    return choose


def version_filter(within: str | None = None, *, latest: int | None = None, suffix: str = "") -> TagFilter:
    """Give the way to choose tags that are versions: those `within` a range, and the `latest` so many of them.

    Of tags with a `suffix` such as `-alpine`, and of no others then, what is before that is the version. Without a
    range all releases are chosen, and no pre-releases.

    Raises:
        UsageError: the range is malformed.
    """
    bounds = parse_range(within if within is not None else ">=0")

    def choose(tags: Sequence[str]) -> list[str]:
        found = []
        for tag in tags:
            version = parse_version(tag.removesuffix(suffix)) if tag.endswith(suffix) else None
            if version is not None and bounds.contains(version):
                found.append((version, tag))
        # Of two tags for one version the longer one says more; the order is one, whatever that of the tags.
        found.sort(key=lambda one: (one[0], len(one[1]), one[1]))
        kept = {tag for _, tag in (found if latest is None else found[-latest:])}
        return _require_some([tag for tag in tags if tag in kept], tags)

    return choose


def _matches(tag: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(tag, glob) and (not is_digest_tag(tag) or glob[:3] == tag[:3]) for glob in globs)


def _require_some(chosen: list[str], tags: Sequence[str]) -> list[str]:
    if not chosen:
        shown = ", ".join(tags[:10]) + (f" and {len(tags) - 10} more" if len(tags) > 10 else "")
        msg = f"none of {len(tags)} tags is chosen" if tags else "there are no tags"
        raise NotFoundError(msg, hint=f"the tags are: {shown}" if tags else None)
    return chosen
