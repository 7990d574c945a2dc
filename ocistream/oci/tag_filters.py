"""Filter tags by shell patterns or by version range."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeAlias

from ocistream.errors import NotFoundError
from ocistream.oci.reference import is_digest_tag
from ocistream.oci.tag_versions import parse_range, parse_version

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["TagFilter", "glob_filter", "require_some", "version_filter"]

#: Returns the selected tags, and raises NotFoundError if no tag is selected.
TagFilter: TypeAlias = "Callable[[Sequence[str]], list[str]]"


def glob_filter(globs: Sequence[str]) -> TagFilter:
    """Return a filter by shell patterns. It selects tags that match a pattern, and no pattern that begins with `!`.

    Without a positive pattern, all tags match. Tags of referrers (cosign's, and referrers lists) are copied with their
    image. They are selected only by a pattern that begins like them.
    """
    included = [glob for glob in globs if not glob.startswith("!")]
    excluded = [glob[1:] for glob in globs if glob.startswith("!")]

    def choose(tags: Sequence[str]) -> list[str]:
        chosen = [
            tag
            for tag in tags
            if _matches(tag, included or ["*"]) and not any(fnmatchcase(tag, glob) for glob in excluded)
        ]
        return require_some(chosen, tags)

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
        return require_some([tag for tag in tags if tag in selected], tags)

    return choose


def _matches(tag: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(tag, glob) and (not is_digest_tag(tag) or glob[:3] == tag[:3]) for glob in globs)


def require_some(chosen: list[str], tags: Sequence[str]) -> list[str]:
    """Return the selected tags.

    Raises:
        NotFoundError: no tag is selected.
    """
    if not chosen:
        shown = ", ".join(tags[:10]) + (f" and {len(tags) - 10} more" if len(tags) > 10 else "")
        msg = f"none of {len(tags)} tags matches" if tags else "no tags exist"
        raise NotFoundError(msg, hint=f"the tags are: {shown}" if tags else None)
    return chosen
