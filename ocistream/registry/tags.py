"""The tags of one repository (distribution-spec, "Listing Tags"): page by page, as registries really list them.

Within a list there may be what is no tag: null (Nexus), digests (Artifactory). It may say that it goes on at another
place, or in a circle. It is read up to a bound, and whoever gets it is told whether it is whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import NotFoundError, OcistreamError, RegistryError
from ocistream.http.origins import Origin, redacted
from ocistream.oci.reference import is_digest_tag, is_tag
from ocistream.oci.strict_json import parse_json
from ocistream.registry.repository import linked_page

if TYPE_CHECKING:
    from ocistream.http.connections import Answer
    from ocistream.registry.repository import Repository

__all__ = ["TagList", "list_tags", "nearby"]

#: Tags in one page: ECR refuses to give more, and some give all there are to who does not ask for a number.
_PAGE: Final = 1000
#: How many tags are proposed, and up to how many all there are.
_PROPOSED: Final = 3
_FEW: Final = 8


@dataclass(frozen=True, slots=True)
class TagList:
    """Tags in the order in which the registry lists them, each once; `cut` says why it is not all of them, if so."""

    tags: tuple[str, ...]
    cut: str | None = None


def list_tags(repository: Repository) -> TagList:
    """Ask for the tags of a repository, `MAX_PAGES` pages and `MAX_TAGS` tags at most.

    Raises:
        NotFoundError: the repository is not there.
        ArchiveError: a page is malformed.
        NetworkError, AuthenticationError: the registry failed or refused.
    """
    found: dict[str, None] = {}
    seen: set[str] = set()
    answer, raw = _first_page(repository)
    for _ in range(limits.MAX_PAGES):
        found.update(dict.fromkeys(_tags_of(raw, repository)))
        if len(found) > limits.MAX_TAGS:
            break
        url = linked_page(answer)
        if url is None or url in seen:
            # In a circle, everything has been seen.
            return TagList(tuple(found))
        if Origin.of(url) != repository.endpoint.origin:
            return TagList(tuple(found), f"the list goes on at {redacted(url)}, which is not asked")
        seen.add(url)
        answer, raw = _page(repository, url)
    tags = tuple(found)[: limits.MAX_TAGS]
    return TagList(tags, f"no more than {limits.MAX_TAGS} tags, on {limits.MAX_PAGES} pages, are read")


def nearby(repository: Repository, tag: str) -> str | None:
    """Say what may have been meant by a tag that is not there; None where nobody can tell.

    The first page of tags is asked for, once, since it is only for a word of advice.
    """
    transport = repository.transport
    url = f"{repository.url('tags/list')}?n={_PAGE}"
    accept = {"Accept": "application/json"}
    try:
        answer = transport.request(
            repository.endpoint, "GET", url, scopes=repository.scopes, headers=accept, tries=transport.tries(1)
        )
        listed = _tags_of(answer.read(limits.MAX_MANIFEST), repository)
    except NotFoundError:
        return "there is no such repository, or none that you may see: is it spelt right?"
    except OcistreamError:
        return None
    # Those of signatures are nobody's to type.
    tags = [one for one in listed if not is_digest_tag(one)][: limits.MAX_COMPARED_TAGS]
    if tag in tags:
        return "the registry lists this tag, and has lost what it stands for: push the image there again"
    if close := get_close_matches(tag, tags, _PROPOSED):
        return f"did you mean {' or '.join(close)}? `ocistream inspect {repository}` lists its tags"
    if 0 < len(tags) <= _FEW:
        return f"its tags are: {', '.join(tags)}"
    return f"`ocistream inspect {repository}` lists its tags"


def _first_page(repository: Repository) -> tuple[Answer, bytes]:
    url = repository.url("tags/list")
    try:
        return _page(repository, f"{url}?n={_PAGE}")
    except NotFoundError as error:
        msg = f"{repository} is not there ({error.what})"
        raise NotFoundError(msg, hint="is the repository spelt right?") from error
    except RegistryError as error:
        if error.status != 400:
            raise
        # It may not know pages, or none of that size.
        return _page(repository, url)


def _page(repository: Repository, url: str) -> tuple[Answer, bytes]:
    return repository.small(url, "application/json")


def _tags_of(raw: bytes, repository: Repository) -> list[str]:
    """Take what can be a tag out of a page; `"tags": null` is how some say that there are none."""
    what = f"the list of tags of {repository}"
    listed = parse_json(raw, what, keys={"tags"}, convert={"tags": lambda _, tag: tag}).get("tags")
    return [tag for tag in listed if isinstance(tag, str) and is_tag(tag)] if isinstance(listed, list) else []
