"""List the tags of one repository (distribution-spec, "Listing Tags"), and suggest tags for a misspelt one.

Registries list null (Nexus) or digests (Artifactory) as tags, and may link pages in a circle: the list is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import NotFoundError, OcistreamError, RegistryError
from ocistream.http.origins import Origin, redact_url
from ocistream.oci.reference import is_digest_tag, is_tag
from ocistream.oci.strict_json import parse_json
from ocistream.registry.repository import next_page_url

if TYPE_CHECKING:
    from ocistream.http.connections import Response
    from ocistream.registry.repository import Repository

__all__ = ["TagList", "list_tags", "suggest_tags"]

#: Tags in one page: ECR refuses to give more, and some give all there are to who does not ask for a number.
_PAGE_SIZE: Final = 1000
#: How many tags are proposed, and up to how many all there are.
_MAX_SUGGESTIONS: Final = 3
_MAX_LISTED_TAGS: Final = 8


@dataclass(frozen=True, slots=True)
class TagList:
    """Tags in the order in which the registry lists them, each once; `cut` says why it is not all of them, if so."""

    tags: tuple[str, ...]
    incomplete_reason: str | None = None


def list_tags(repository: Repository) -> TagList:
    """Ask for the tags of a repository, `MAX_PAGES` pages and `MAX_TAGS` tags at most.

    Raises:
        NotFoundError: the repository is not there.
        ArchiveError: a page is malformed.
        NetworkError, AuthenticationError: the registry failed or refused.
    """
    found: dict[str, None] = {}
    seen: set[str] = set()
    answer, raw = _fetch_first_page(repository)
    for _ in range(limits.MAX_PAGES):
        found.update(dict.fromkeys(_parse_tags(raw, repository)))
        if len(found) > limits.MAX_TAGS:
            break
        url = next_page_url(answer)
        if url is None or url in seen:
            # In a circle, everything has been seen.
            return TagList(tuple(found))
        if Origin.from_url(url) != repository.endpoint.origin:
            return TagList(tuple(found), f"the list goes on at {redact_url(url)}, which is not asked")
        seen.add(url)
        answer, raw = _fetch_page(repository, url)
    tags = tuple(found)[: limits.MAX_TAGS]
    return TagList(tags, f"no more than {limits.MAX_TAGS} tags, on {limits.MAX_PAGES} pages, are read")


def suggest_tags(repository: Repository, tag: str) -> str | None:
    """Say what may have been meant by a tag that is not there; None where nobody can tell.

    The first page of tags is asked for, once, since it is only for a word of advice.
    """
    transport = repository.client
    url = f"{repository.url('tags/list')}?n={_PAGE_SIZE}"
    accept = {"Accept": "application/json"}
    try:
        answer = transport.request(
            repository.endpoint, "GET", url, scopes=repository.scopes, headers=accept, tries=transport.start_retries(1)
        )
        listed = _parse_tags(answer.read(limits.MAX_MANIFEST), repository)
    except NotFoundError:
        return "there is no such repository, or none that you may see: is it spelt right?"
    except OcistreamError:
        return None
    # Those of signatures are nobody's to type.
    tags = [one for one in listed if not is_digest_tag(one)][: limits.MAX_SUGGESTION_CANDIDATES]
    if tag in tags:
        return "the registry lists this tag, and has lost what it stands for: push the image there again"
    if close := get_close_matches(tag, tags, _MAX_SUGGESTIONS):
        return f"did you mean {' or '.join(close)}? `ocistream inspect {repository}` lists its tags"
    if 0 < len(tags) <= _MAX_LISTED_TAGS:
        return f"its tags are: {', '.join(tags)}"
    return f"`ocistream inspect {repository}` lists its tags"


def _fetch_first_page(repository: Repository) -> tuple[Response, bytes]:
    url = repository.url("tags/list")
    try:
        return _fetch_page(repository, f"{url}?n={_PAGE_SIZE}")
    except NotFoundError as error:
        msg = f"{repository} is not there ({error.message})"
        raise NotFoundError(msg, hint="is the repository spelt right?") from error
    except RegistryError as error:
        if error.status != 400:
            raise
        # It may not know pages, or none of that size.
        return _fetch_page(repository, url)


def _fetch_page(repository: Repository, url: str) -> tuple[Response, bytes]:
    return repository.fetch_document(url, "application/json")


def _parse_tags(raw: bytes, repository: Repository) -> list[str]:
    """Take what can be a tag out of a page; `"tags": null` is how some say that there are none."""
    what = f"the list of tags of {repository}"
    listed = parse_json(raw, what, keys={"tags"}, convert={"tags": lambda _, tag: tag}).get("tags")
    return [tag for tag in listed if isinstance(tag, str) and is_tag(tag)] if isinstance(listed, list) else []
