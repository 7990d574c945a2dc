"""What hangs on images in registries, asked for: referrers, cosign's tags, and what hangs on those in turn.

For each manifest that moves that is a request for its referrers and one for each of cosign's tags, several of them at a
time. For an index of which only a part moves it is asked too, so that what stays behind can be said.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import ArchiveError, AuthenticationError, NotFoundError, RegistryError, UnsupportedError
from ocistream.oci.documents import parse_document
from ocistream.oci.referrers import (
    CUT,
    DISOWNED,
    GONE,
    HIDDEN,
    NARROWED,
    SAME_TAG,
    UNKNOWN_KIND,
    Attached,
    LeftBehind,
    bare,
    cosign_tags,
    kind_of,
)
from ocistream.streams.workers import each

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ocistream.errors import OcistreamError
    from ocistream.oci.descriptor import Descriptor, Manifest
    from ocistream.oci.documents import Document
    from ocistream.registry.mirrors import Readable
    from ocistream.transfer.walk import GraphBuilder

__all__ = ["Hanging"]

#: Of what is left behind of one subject for one reason, so many are named, and the others counted.
_NAMED: Final = 10
#: Statuses below 500 by which a registry says that it would answer at another time.
_PASSING: Final = frozenset({408, 429})


@dataclass(frozen=True, slots=True)
class _Question:
    """What hangs on this manifest, in this repository? If it does not move, only so much that it can be said."""

    repository: Readable
    digest: str
    moves: bool = True


@dataclass(frozen=True, slots=True)
class _Found:
    question: _Question
    attached: Attached
    manifest: Manifest


class Hanging:
    """Asks, and gives what it finds to the builder of a graph."""

    def __init__(
        self,
        builder: GraphBuilder,
        complete: Callable[[Readable, str], None],
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
        self._complete = complete
        #: One for each name, whoever asks: it knows whether its registry has the API.
        self._lists: dict[str, Readable] = {}
        self._asked: set[tuple[str, str]] = set()
        self._tags: dict[tuple[str, str], str] = {}
        self._lock = threading.Lock()
        self._found: list[_Found] = []
        self._listed = 0
        self._count = 0
        self._bytes = 0
        self._left: dict[LeftBehind, None] = {}
        self._hidden: set[str] = set()

    def collect(self, moving: Iterable[tuple[Readable, str]], cut: Iterable[tuple[Readable, str]]) -> None:
        """Ask about manifests that move and about indexes that were cut down, and about what is found, in turn.

        Raises:
            UnsupportedError: there is too much, or it hangs on each other too deeply.
            OcistreamError: a registry failed; that it does not know what is asked for is no failure.
        """
        questions = [_Question(*place) for place in moving]
        questions += [_Question(*place, moves=False) for place in cut]
        for _ in range(limits.MAX_ATTACHED_DEPTH + 1):
            self._ask_all(questions)
            questions = self._take(questions)
            if not questions:
                break
        else:
            msg = f"signatures, SBOMs and the like hang on each other more than {limits.MAX_ATTACHED_DEPTH} deep"
            raise UnsupportedError(msg, hint="leave them behind with --no-referrers")
        for left in _summed_up(self._left):
            self._builder.leave(left)

    def _ask_all(self, questions: Sequence[_Question]) -> None:
        by_place = {(str(question.repository), question.digest): question for question in questions}
        new = [question for place, question in by_place.items() if place not in self._asked]
        self._asked.update(by_place)
        # One alone shows whether the repository's registry knows the API at all.
        first = {str(question.repository): question for question in reversed(new)}
        for name, question in first.items():
            if name not in self._lists:
                self._lists[name] = question.repository
                self._ask(question)
                new.remove(question)
        each(self._ask, new, jobs=self._jobs if len(new) > 1 else 1, cancelled=self._cancelled)

    def _ask(self, question: _Question) -> None:
        for ask in (self._ask_for_referrers, self._ask_for_tags):
            try:
                ask(question)
            except (AuthenticationError, ArchiveError) as error:
                self._cannot_tell(question, error)
            except RegistryError as error:
                if error.status >= 500 or error.status in _PASSING:
                    raise
                self._cannot_tell(question, error)

    def _cannot_tell(self, question: _Question, error: OcistreamError) -> None:
        """Say once of a repository why nobody knows what hangs there.

        The image itself could be had, with the same rights, so there is no reason to refuse that.
        """
        why = f"{HIDDEN}: {error.what}"
        with self._lock:
            if str(question.repository) not in self._hidden:
                self._hidden.add(str(question.repository))
                self._left[LeftBehind(question.digest, why)] = None

    def _ask_for_referrers(self, question: _Question) -> None:
        found = self._lists[str(question.repository)].referrers(question.digest)
        with self._lock:
            # All that a registry lists costs a request each, whatever comes of it.
            self._listed += len(found.descriptors)
            if self._listed > limits.MAX_ATTACHED:
                raise _too_many(f"more than {limits.MAX_ATTACHED} signatures, SBOMs and the like are listed")
            if found.cut:
                self._left[LeftBehind(question.digest, f"{CUT}: {found.cut}")] = None
        for descriptor in found.descriptors:
            if not question.moves:
                self._leave(descriptor, question.digest, NARROWED)
                continue
            try:
                manifest, document = self._resolved(question.repository, descriptor.digest)
            except NotFoundError:
                self._leave(descriptor, question.digest, GONE)
            except (ArchiveError, UnsupportedError):
                self._leave(descriptor, question.digest, UNKNOWN_KIND)
            else:
                if document.subject is None or document.subject.digest != question.digest:
                    self._leave(descriptor, question.digest, DISOWNED)
                else:
                    self._keep(question, manifest, None)

    def _ask_for_tags(self, question: _Question) -> None:
        for tag in cosign_tags(question.digest):
            if question.repository.digest_of(tag) is None:
                continue
            if not question.moves:
                self._leave(None, question.digest, NARROWED, tag)
                continue
            try:
                manifest, _ = self._resolved(question.repository, tag)
            except NotFoundError:
                self._leave(None, question.digest, GONE, tag)
            except UnsupportedError:
                self._leave(None, question.digest, UNKNOWN_KIND, tag)
            else:
                self._keep(question, manifest, tag)

    @staticmethod
    def _resolved(repository: Readable, target: str) -> tuple[Manifest, Document]:
        manifest = repository.resolve(target)
        return manifest, parse_document(manifest.descriptor, manifest.raw)

    def _keep(self, question: _Question, manifest: Manifest, tag: str | None) -> None:
        attached = Attached(bare(manifest.descriptor), question.digest, tag)
        with self._lock:
            self._count += 1
            self._bytes += len(manifest.raw)
            if self._count > limits.MAX_ATTACHED or self._bytes > limits.MAX_GRAPH_BYTES:
                raise _too_many(
                    f"more than {limits.MAX_ATTACHED} signatures, SBOMs and the like hang on the images, "
                    f"or more than {limits.MAX_GRAPH_BYTES} bytes of their manifests"
                )
            self._found.append(_Found(question, attached, manifest))

    def _leave(self, descriptor: Descriptor | None, subject: str, why: str, tag: str | None = None) -> None:
        kind = kind_of(descriptor.artifact_type if descriptor else None, tag)
        with self._lock:
            self._left[LeftBehind(subject, why, kind, descriptor.digest if descriptor else None, tag)] = None

    def _take(self, asked: Sequence[_Question]) -> list[_Question]:
        """Give what was found to the builder, in the order in which it was asked for; ask about that next."""
        places = {id(question): place for place, question in enumerate(asked)}
        found = sorted(self._found, key=lambda one: (places[id(one.question)], *one.attached.order))
        self._found = []
        questions = []
        for one in found:
            attached, digest = one.attached, one.attached.descriptor.digest
            if attached.tag and self._tags.setdefault((attached.subject, attached.tag), digest) != digest:
                self._left[LeftBehind.of(attached, SAME_TAG)] = None
                continue
            self._builder.attach(attached)
            if digest in self._builder.needs:
                self._builder.supply(digest, one.manifest.raw)
            self._complete(one.question.repository, digest)
            questions.append(_Question(one.question.repository, digest))
        return questions


def _too_many(what: str) -> UnsupportedError:
    return UnsupportedError(what, hint="leave them behind with --no-referrers")


def _summed_up(left: Iterable[LeftBehind]) -> Iterator[LeftBehind]:
    """Give what is left behind in order; of many alike, the first by name and the others by number."""
    alike: dict[tuple[str | None, str, str | None], list[LeftBehind]] = {}
    for one in sorted(left, key=lambda one: (one.why, one.subject or "", one.digest or "", one.tag or "")):
        alike.setdefault((one.subject, one.why, one.kind), []).append(one)
    for (subject, why, kind), those in alike.items():
        yield from those[:_NAMED]
        if len(those) > _NAMED:
            yield LeftBehind(subject, why, kind, count=len(those) - _NAMED)
