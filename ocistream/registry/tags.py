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
from ocistream.notices import notify
from ocistream.oci.reference import is_digest, is_digest_tag, is_tag, printable
from ocistream.oci.strict_json import parse_json
from ocistream.registry.repository import next_page_url, reject_web_page

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocistream.http.response import Response
    from ocistream.registry.repository import Repository

_ACCEPT: Final = "application/json"
#: Tags on one page. ECR refuses a larger number; some registries send all tags if the request has none.
_PAGE_SIZE: Final = 1000
#: At most this many similar tags are suggested; if the repository has only a few tags, all are listed.
_MAX_SUGGESTIONS: Final = 3
_MAX_LISTED_TAGS: Final = 8
#: At most this many entries that are not tags are named.
_MAX_IGNORED_NAMES: Final = 3


@dataclass(frozen=True, slots=True)
class TagList:
    """Tags without duplicates, in the order of the registry's list.

    `incomplete_reason` says why the list is not complete, or is None.
    """

    tags: tuple[str, ...]
    incomplete_reason: str | None = None


def list_tags(repository: Repository) -> TagList:
    """Return the tags of a repository, from at most `MAX_PAGES` pages and at most `MAX_TAGS` of them.

    Raises:
        NotFoundError: the repository does not exist.
        ArchiveError: a page is malformed.
        NetworkError, AuthenticationError: the registry failed or denied access.
    """
    tags_by_name: dict[str, None] = {}
    urls_seen: set[str] = set()
    response, raw = _fetch_first_page(repository)
    for _ in range(limits.MAX_PAGES):
        tags_by_name.update(dict.fromkeys(_find_tags(_parse_names(raw, repository), repository)))
        if len(tags_by_name) > limits.MAX_TAGS:
            break
        url = next_page_url(response)
        if url is None or url in urls_seen:
            # A page that links to an earlier page: all pages have been read.
            return TagList(tuple(tags_by_name))
        if Origin.from_url(url) != repository.endpoint.origin:
            return TagList(tuple(tags_by_name), f"the list continues at {redact_url(url)}, which is not followed")
        urls_seen.add(url)
        response, raw = repository.fetch_document(url, _ACCEPT)
    tags = tuple(tags_by_name)[: limits.MAX_TAGS]
    return TagList(tags, f"only {limits.MAX_TAGS} tags on {limits.MAX_PAGES} pages are read")


def suggest_tags(repository: Repository, tag: str) -> str | None:
    """Return a hint for a tag that does not exist, or None.

    This reads only the first page of tags and does not retry, because it is only advice.
    """
    url = f"{repository.url('tags/list')}?n={_PAGE_SIZE}"
    retries = repository.client.start_retries(repository.endpoint, 1)
    try:
        names = _parse_names(repository.fetch_document(url, _ACCEPT, retries=retries)[1], repository)
    except NotFoundError as error:
        return (
            error.hint
            or "the repository does not exist, or you have no permission to pull it: check the name, or log in"
        )
    except OcistreamError:
        return None
    # Users do not type the tags of signatures.
    tags = [name for name in names if is_tag(name) and not is_digest_tag(name)][: limits.MAX_SUGGESTION_CANDIDATES]
    if tag in tags:
        # After a clean-up of the registry, tags often exist without their manifest.
        lost = "the registry lists this tag, but has lost its manifest"
        return f"{lost}: push the image again, or omit it (`copy --tags '!{tag}'`)"
    if close := get_close_matches(tag, tags, _MAX_SUGGESTIONS):
        return f"did you mean {' or '.join(close)}? `ocistream inspect {repository}` lists its tags"
    if 0 < len(tags) <= _MAX_LISTED_TAGS:
        return f"its tags are: {', '.join(tags)}"
    return f"`ocistream inspect {repository}` lists its tags"


def _fetch_first_page(repository: Repository) -> tuple[Response, bytes]:
    url = repository.url("tags/list")
    try:
        return repository.fetch_document(f"{url}?n={_PAGE_SIZE}", _ACCEPT)
    except NotFoundError as error:
        msg = f"{repository} not found ({error.message})"
        raise NotFoundError(msg, hint=error.hint or "check the repository name") from error
    except RegistryError as error:
        if error.status != 400:
            raise
        # The registry may not support pages, or not of this size.
        return repository.fetch_document(url, _ACCEPT)


def _parse_names(raw: bytes, repository: Repository) -> list[str]:
    """Return the names on a page, valid or not; some registries send `"tags": null` for none."""
    label = f"the list of tags of {repository}"
    reject_web_page(raw, label)
    listed = parse_json(raw, label, keys={"tags"}, convert={"tags": lambda _, tag: tag}).get("tags")
    return [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []


def _find_tags(names: Sequence[str], repository: Repository) -> list[str]:
    """Return the valid tags among names. A notice names the others, but no digests: those are not missing tags."""
    ignored = [name for name in names if not is_tag(name) and not is_digest(name)]
    if ignored:
        shown = ", ".join(repr(printable(name, 40)) for name in ignored[:_MAX_IGNORED_NAMES])
        more = f" and {len(ignored) - _MAX_IGNORED_NAMES} more" if len(ignored) > _MAX_IGNORED_NAMES else ""
        notify(f"the list of tags of {repository}: ignored names that are not valid tags: {shown}{more}")
    return [name for name in names if is_tag(name)]
