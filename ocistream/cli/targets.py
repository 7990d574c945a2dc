"""Where many images go at once: each to a place of its own, and none over another."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ocistream.errors import NotFoundError, UsageError
from ocistream.reference import Reference, is_digest_tag, printable
from ocistream.stores.index import tag_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ocistream.graph import Root
    from ocistream.stores.index import Selection

__all__ = ["apart", "matching", "tagged", "under_own_tag"]


def apart(target: Callable[[Root], Reference], select: Selection) -> Selection:
    """Make sure that of the images that `select` chooses no two go to one place: the second would replace the first.

    What it gives raises UsageError where they do.
    """

    def chosen(roots: Sequence[Root]) -> Sequence[Root]:
        found = select(roots)
        places: dict[Reference, Root] = {}
        for root in found:
            place = target(root)
            if places.setdefault(place, root).descriptor.digest != root.descriptor.digest:
                both = f"{printable(places[place].name or '')} and {printable(root.name or '')}"
                msg = f"{both} would both become {place.name}"
                raise UsageError(msg, hint="push one of them with `ocistream push HOST/REPOSITORY:TAG --image NAME`")
        return found

    return chosen


def matching(globs: Sequence[str]) -> Callable[[Sequence[str]], list[str]]:
    """Give the way to choose tags by a shell's patterns: those that one matches and none with a `!` before it does.

    Without a pattern, or only with `!` ones, that is all. Tags which only say what hangs on an image (its signatures,
    the list of its referrers) go with it, and are chosen for themselves only by a pattern that begins like them.
    What it gives raises NotFoundError where nothing is left.
    """
    wanted = [glob for glob in globs if not glob.startswith("!")]
    unwanted = [glob[1:] for glob in globs if glob.startswith("!")]

    def choose(tags: Sequence[str]) -> list[str]:
        chosen = [
            tag
            for tag in tags
            if _matches(tag, wanted or ["*"]) and not any(fnmatchcase(tag, glob) for glob in unwanted)
        ]
        if not chosen:
            shown = ", ".join(tags[:10]) + (f" and {len(tags) - 10} more" if len(tags) > 10 else "")
            msg = f"none of {len(tags)} tags is chosen" if tags else "there are no tags"
            raise NotFoundError(msg, hint=f"the tags are: {shown}" if tags else None)
        return chosen

    return choose


def _matches(tag: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(tag, glob) and (not is_digest_tag(tag) or glob[:3] == tag[:3]) for glob in globs)


def tagged(choose: Callable[[Sequence[str]], Sequence[str]]) -> Selection:
    """Give the way to choose those images of an archive that have a tag, by it; all others are left."""

    def select(roots: Sequence[Root]) -> Sequence[Root]:
        tags = [tag for root in roots if (tag := tag_of(root.name))]
        chosen = set(choose(list(dict.fromkeys(tags))))
        return [root for root in roots if tag_of(root.name) in chosen]

    return select


def under_own_tag(repository: Reference) -> Callable[[Root], Reference]:
    """Give the way to name images within one repository: each keeps its tag."""

    def target(root: Root) -> Reference:
        return Reference(repository.registry, repository.repository, tag_of(root.name))

    return target
