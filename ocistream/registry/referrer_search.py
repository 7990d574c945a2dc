"""Find the referrers of images in registries: listed referrers, cosign tags, and the referrers of those.

Several manifests are queried at a time. Referrers of an index that is copied in part are only reported.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import ArchiveError, AuthenticationError, NotFoundError, RegistryError, UnsupportedError
from ocistream.oci.documents import parse_document
from ocistream.oci.referrers import (
    DUPLICATE_TAG,
    LIST_TRUNCATED,
    LISTING_DENIED,
    NOT_FOUND,
    PLATFORM_FILTERED,
    SUBJECT_MISMATCH,
    UNSUPPORTED_TYPE,
    Referrer,
    SkippedReferrer,
    classify_referrer,
    cosign_tags,
    strip_descriptor,
)
from ocistream.streams.workers import run_each

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ocistream.errors import OcistreamError
    from ocistream.oci.descriptor import Descriptor, Manifest
    from ocistream.oci.documents import Document
    from ocistream.registry.mirrors import ReadableRepository
    from ocistream.transfer.graph_builder import GraphBuilder

__all__ = ["ReferrerSearch"]

#: Of what is left behind of one subject for one reason, so many are named, and the others counted.
_MAX_NAMED: Final = 10
#: Statuses below 500 by which a registry says that it would answer at another time.
_TRANSIENT_STATUSES: Final = frozenset({408, 429})


@dataclass(frozen=True, slots=True)
class _ReferrerQuery:
    """What hangs on this manifest, in this repository? If it does not move, only so much that it can be said."""

    repository: ReadableRepository
    digest: str
    is_selected: bool = True


@dataclass(frozen=True, slots=True)
class _FoundReferrer:
    query: _ReferrerQuery
    referrer: Referrer
    manifest: Manifest


class ReferrerSearch:
    """Asks, and gives what it finds to the builder of a graph."""

    def __init__(
        self,
        builder: GraphBuilder,
        fetch_children: Callable[[ReadableRepository, str], None],
        *,
        jobs: int,
        cancelled: threading.Event,
    ) -> None:
        """`complete` brings what the builder needs for a manifest that comes out of a repository.

        So many questions as there are `jobs` are asked at a time. `cancelled` is the transfer's: it ends them, and is
        set when one of them fails.
        """
        self._jobs = jobs
        self._cancelled = cancelled
        self._builder = builder
        self._fetch_children = fetch_children
        #: One for each name, whoever asks: it knows whether its registry has the API.
        self._repositories: dict[str, ReadableRepository] = {}
        self._queried: set[tuple[str, str]] = set()
        self._digests_by_tag: dict[tuple[str, str], str] = {}
        self._lock = threading.Lock()
        self._found: list[_FoundReferrer] = []
        self._listed_count = 0
        self._found_count = 0
        self._found_bytes = 0
        self._skipped: dict[SkippedReferrer, None] = {}
        self._unreadable_repositories: set[str] = set()

    def collect(
        self, selected: Iterable[tuple[ReadableRepository, str]], incomplete: Iterable[tuple[ReadableRepository, str]]
    ) -> None:
        """Ask about manifests that move and about indexes that were cut down, and about what is found, in turn.

        Raises:
            UnsupportedError: there is too much, or it hangs on each other too deeply.
            OcistreamError: a registry failed; that it does not know what is asked for is no failure.
        """
        questions = [_ReferrerQuery(*place) for place in selected]
        questions += [_ReferrerQuery(*place, is_selected=False) for place in incomplete]
        for _ in range(limits.MAX_REFERRER_DEPTH + 1):
            self._query_all(questions)
            questions = self._move_to_graph(questions)
            if not questions:
                break
        else:
            msg = f"signatures, SBOMs and the like hang on each other more than {limits.MAX_REFERRER_DEPTH} deep"
            raise UnsupportedError(msg, hint="leave them behind with --no-referrers")
        for left in _summarize(self._skipped):
            self._builder.add_skipped_referrer(left)

    def _query_all(self, questions: Sequence[_ReferrerQuery]) -> None:
        by_place = {(str(question.repository), question.digest): question for question in questions}
        new = [question for place, question in by_place.items() if place not in self._queried]
        self._queried.update(by_place)
        # One alone shows whether the repository's registry knows the API at all.
        first = {str(question.repository): question for question in reversed(new)}
        for name, question in first.items():
            if name not in self._repositories:
                self._repositories[name] = question.repository
                self._query(question)
                new.remove(question)
        run_each(self._query, new, jobs=self._jobs if len(new) > 1 else 1, cancelled=self._cancelled)

    def _query(self, query: _ReferrerQuery) -> None:
        for ask in (self._query_referrers, self._query_cosign_tags):
            try:
                ask(query)
            except (AuthenticationError, ArchiveError) as error:
                self._report_unreadable(query, error)
            except RegistryError as error:
                if error.status >= 500 or error.status in _TRANSIENT_STATUSES:
                    raise
                self._report_unreadable(query, error)

    def _report_unreadable(self, query: _ReferrerQuery, error: OcistreamError) -> None:
        """Say once of a repository why nobody knows what hangs there.

        The image itself could be had, with the same rights, so there is no reason to refuse that.
        """
        why = f"{LISTING_DENIED}: {error.message}"
        with self._lock:
            if str(query.repository) not in self._unreadable_repositories:
                self._unreadable_repositories.add(str(query.repository))
                self._skipped[SkippedReferrer(query.digest, why)] = None

    def _query_referrers(self, query: _ReferrerQuery) -> None:
        found = self._repositories[str(query.repository)].list_referrers(query.digest)
        with self._lock:
            # All that a registry lists costs a request each, whatever comes of it.
            self._listed_count += len(found.descriptors)
            if self._listed_count > limits.MAX_REFERRERS:
                raise _too_many_error(f"more than {limits.MAX_REFERRERS} signatures, SBOMs and the like are listed")
            if found.incomplete_reason:
                self._skipped[SkippedReferrer(query.digest, f"{LIST_TRUNCATED}: {found.incomplete_reason}")] = None
        for descriptor in found.descriptors:
            if not query.is_selected:
                self._skip(descriptor, query.digest, PLATFORM_FILTERED)
                continue
            try:
                manifest, document = self._resolve(query.repository, descriptor.digest)
            except NotFoundError:
                self._skip(descriptor, query.digest, NOT_FOUND)
            except (ArchiveError, UnsupportedError):
                self._skip(descriptor, query.digest, UNSUPPORTED_TYPE)
            else:
                if document.subject is None or document.subject.digest != query.digest:
                    self._skip(descriptor, query.digest, SUBJECT_MISMATCH)
                else:
                    self._add_found(query, manifest, None)

    def _query_cosign_tags(self, query: _ReferrerQuery) -> None:
        for tag in cosign_tags(query.digest):
            if query.repository.find_digest(tag) is None:
                continue
            if not query.is_selected:
                self._skip(None, query.digest, PLATFORM_FILTERED, tag)
                continue
            try:
                manifest, _ = self._resolve(query.repository, tag)
            except NotFoundError:
                self._skip(None, query.digest, NOT_FOUND, tag)
            except UnsupportedError:
                self._skip(None, query.digest, UNSUPPORTED_TYPE, tag)
            else:
                self._add_found(query, manifest, tag)

    @staticmethod
    def _resolve(repository: ReadableRepository, target: str) -> tuple[Manifest, Document]:
        manifest = repository.resolve(target)
        return manifest, parse_document(manifest.descriptor, manifest.raw)

    def _add_found(self, query: _ReferrerQuery, manifest: Manifest, tag: str | None) -> None:
        attached = Referrer(strip_descriptor(manifest.descriptor), query.digest, tag)
        with self._lock:
            self._found_count += 1
            self._found_bytes += len(manifest.raw)
            if self._found_count > limits.MAX_REFERRERS or self._found_bytes > limits.MAX_GRAPH_BYTES:
                raise _too_many_error(
                    f"more than {limits.MAX_REFERRERS} signatures, SBOMs and the like hang on the images, "
                    f"or more than {limits.MAX_GRAPH_BYTES} bytes of their manifests"
                )
            self._found.append(_FoundReferrer(query, attached, manifest))

    def _skip(self, descriptor: Descriptor | None, subject: str, reason: str, tag: str | None = None) -> None:
        kind = classify_referrer(descriptor.artifact_type if descriptor else None, tag)
        with self._lock:
            self._skipped[SkippedReferrer(subject, reason, kind, descriptor.digest if descriptor else None, tag)] = None

    def _move_to_graph(self, asked: Sequence[_ReferrerQuery]) -> list[_ReferrerQuery]:
        """Give what was found to the builder, in the order in which it was asked for; ask about that next."""
        places = {id(question): place for place, question in enumerate(asked)}
        found = sorted(self._found, key=lambda one: (places[id(one.query)], *one.referrer.sort_key))
        self._found = []
        questions = []
        for one in found:
            attached, digest = one.referrer, one.referrer.descriptor.digest
            if attached.tag and self._digests_by_tag.setdefault((attached.subject, attached.tag), digest) != digest:
                self._skipped[SkippedReferrer.from_referrer(attached, DUPLICATE_TAG)] = None
                continue
            self._builder.add_referrer(attached)
            if digest in self._builder.needs:
                self._builder.supply(digest, one.manifest.raw)
            self._fetch_children(one.query.repository, digest)
            questions.append(_ReferrerQuery(one.query.repository, digest))
        return questions


def _too_many_error(what: str) -> UnsupportedError:
    return UnsupportedError(what, hint="leave them behind with --no-referrers")


def _summarize(left: Iterable[SkippedReferrer]) -> Iterator[SkippedReferrer]:
    """Give what is left behind in order; of many alike, the first by name and the others by number."""
    alike: dict[tuple[str | None, str, str | None], list[SkippedReferrer]] = {}
    for one in sorted(left, key=lambda one: (one.why, one.subject or "", one.digest or "", one.tag or "")):
        alike.setdefault((one.subject, one.why, one.kind), []).append(one)
    for (subject, why, kind), those in alike.items():
        yield from those[:_MAX_NAMED]
        if len(those) > _MAX_NAMED:
            yield SkippedReferrer(subject, why, kind, count=len(those) - _MAX_NAMED)
