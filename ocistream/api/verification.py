"""Verify archives and layouts: what is wrong, missing or malformed, as values and as a JSON document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ocistream.errors import (
    ArchiveError,
    IntegrityError,
    InvalidNameError,
    MissingContentError,
    UnsupportedError,
)
from ocistream.layout.image_selection import Selection
from ocistream.layout.index import entry_name_of, is_printable_name, subject_of, tag_of
from ocistream.locations import open_sources
from ocistream.oci.reference import parse_reference, printable
from ocistream.oci.referrers import cosign_subject
from ocistream.transfer import verify as verification

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from ocistream.errors import OcistreamError
    from ocistream.locations import Location, OpenContext
    from ocistream.oci.graph import Root
    from ocistream.oci.referrers import ReferrerMode
    from ocistream.oci.volumes import Volume
    from ocistream.signatures.check import ImageSignature
    from ocistream.signatures.signers import Signer
    from ocistream.transfer.interfaces import Observer, Source
    from ocistream.transfer.verify import Findings

_DOCKER_ARCHIVE: Final = "docker-archive"
_LAYOUT: Final = "OCI layout"
_REGISTRY: Final = "registry"


def open_locations(locations: Sequence[Location], context: OpenContext) -> Source:
    """Open an archive or layout, or several that belong together, or images in registries, to verify everything in it.

    Raises:
        OcistreamError: a location cannot be opened.
    """
    # A registry lists the referrers of an image; an archive lists images and referrers alike.
    mode: ReferrerMode = "copy" if any(location.kind == "docker" for location in locations) else "list"
    return open_sources(locations, context, Selection(all_blobs=True, referrers=mode))


def verify_source(
    source: Source,
    paths: Sequence[str],
    *,
    deep: bool,
    max_ratio: int,
    signers: Sequence[Signer],
    observer: Observer | None,
    cancelled: threading.Event,
) -> VerifyResult:
    """Verify a source of `open_locations`, whose locations are named `paths`.

    With `signers`, each image must be signed by one of them.

    Raises:
        OcistreamError: reading cannot continue, or the file of a signer cannot be used.
    """
    check = None
    if signers:
        # Imported here, because few runs check signatures.
        from ocistream.signatures.check import SignatureCheck
        from ocistream.signatures.verifier_process import load_signers

        check = SignatureCheck(load_signers(signers), is_local=source.may_lack_blobs)
    try:
        findings = verification.verify(
            source, observer, deep=deep, max_ratio=max_ratio, check=check, cancelled=cancelled
        )
    except IntegrityError as error:
        if error.digest and not error.hint and (kind := _describe_source(source)[0]) != _REGISTRY:
            error.message = f"{_format_target(paths)}: {error.message}"
            error.hint = _format_damage_hint(kind)
        raise
    kind, other_files, illegal = _describe_source(source)
    is_legal = _is_docker_name if kind == _DOCKER_ARCHIVE else is_printable_name
    names = dict.fromkeys(root.name for root in findings.graph.roots if root.name)
    return VerifyResult(
        paths=tuple(paths),
        findings=findings,
        format=kind,
        other_files=other_files,
        illegal_names=(*illegal, *(name for name in names if not is_legal(name))),
        volumes=VolumeSet.from_source(source),
        deep=deep,
        signatures=tuple(check.results()) if check is not None else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyResult:
    """The result of `verify`: what it found, the format of the archive, and names of entries that are not allowed.

    `other_files` counts files that belong to no image. `volumes` are the verified files of a split archive.
    `signatures` has the result for each image if signers were given; otherwise it is None.
    """

    paths: tuple[str, ...]
    findings: Findings
    format: str
    other_files: int
    illegal_names: tuple[str, ...]
    volumes: VolumeSet | None
    deep: bool
    signatures: tuple[ImageSignature, ...] | None = None

    @property
    def ok(self) -> bool:
        """Whether everything that the images need exists and is right, and all are signed if signers were given.

        Without an image, nothing is signed.
        """
        findings = self.findings
        return self.signatures != () and not (
            findings.missing or findings.failures or self.illegal_names or self.unsigned
        )

    @property
    def unsigned(self) -> list[ImageSignature]:
        """The results of images without a valid signature."""
        return [signature for signature in self.signatures or () if signature.problem]

    def document(self) -> dict[str, Any]:
        """Return what `ocistream verify --json` prints."""
        findings = self.findings
        intact, damaged = self._split_images()
        signatures = {id(signature.root): signature for signature in self.signatures or ()}
        names = self._first_images(self._problem_digests())
        omitted_reasons = findings.graph.omitted_from_source
        return {
            "path": format_paths(self.paths),
            "format": self.format,
            "ok": self.ok,
            "deep": self.deep,
            "images": [self._image_json(root, signatures.get(id(root))) for root in intact],
            "damagedImages": [self._image_json(root, signatures.get(id(root))) for root in damaged],
            "blobs": findings.blobs,
            "bytes": findings.size,
            "unreferenced": findings.unreferenced,
            "unpacked": findings.unpacked,
            **({"volumes": self.volumes.document(findings.parts)} if self.volumes else {}),
            "missing": [
                {
                    "image": names.get(descriptor.digest),
                    "digest": descriptor.digest,
                    "mediaType": descriptor.media_type,
                    "size": descriptor.size,
                }
                for descriptor in findings.missing
            ],
            "omitted": [
                {
                    "digest": blob.digest,
                    "mediaType": blob.media_type,
                    "size": blob.size,
                    "reason": str(omitted_reasons[blob.digest]),
                }
                for blob in findings.omitted
            ],
            "incomplete": [
                {
                    **({"name": index.name} if index.name else {}),
                    "digest": index.digest,
                    "platforms": list(index.platforms),
                    "missing": list(index.missing),
                }
                for index in findings.incomplete
            ],
            "failures": [
                {"image": names.get(failure.digest), "digest": failure.digest, "error": failure.error.message}
                for failure in findings.failures
            ],
            "illegalNames": list(self.illegal_names),
            "otherFiles": self.other_files,
        }

    def _identify(self, root: Root) -> str:
        """Return the digest of an image, or its image ID if the source has no manifest of it."""
        image_id = self.findings.graph.image_id(root) if root.is_synthesized else None
        return image_id or root.descriptor.digest

    def _image_json(self, root: Root, signature: ImageSignature | None) -> dict[str, Any]:
        if root.is_synthesized:
            identity = {"imageId": self._identify(root)}
        else:
            identity = {"digest": self._identify(root), "mediaType": root.descriptor.media_type}
        subject = self.subject(root)
        document = {"name": root.name, **identity, **({"subject": subject} if subject else {})}
        return {**document, **({"signature": signature.document()} if signature is not None else {})}

    def intact_images(self) -> list[Root]:
        """Return the images, and the referrers beside them, without any problem."""
        return self._split_images()[0]

    def _split_images(self) -> tuple[list[Root], list[Root]]:
        """Return the images without any problem, and the others."""
        graph, problems = self.findings.graph, self._problem_digests()
        intact: list[Root] = []
        damaged: list[Root] = []
        unsigned = {id(signature.root) for signature in self.unsigned}
        for root in graph.roots:
            is_intact = (
                root.name not in self.illegal_names
                and id(root) not in unsigned
                and (not problems or problems.isdisjoint(graph.reachable(root)))
            )
            (intact if is_intact else damaged).append(root)
        return intact, damaged

    def errors(self) -> list[OcistreamError]:
        """Return an error for each problem, the gravest first; each is named with the first image that it affects."""
        failures = self.findings.failures
        prefixes = {
            digest: f"{printable(name)}: " for digest, name in self._first_images(self._problem_digests()).items()
        }
        errors: list[OcistreamError] = []
        for failure in failures:
            kind = IntegrityError if isinstance(failure.error, IntegrityError) else ArchiveError
            hint = failure.error.hint
            if hint is None and isinstance(failure.error, IntegrityError) and failure.error.digest:
                hint = _format_damage_hint(self.format)
            errors.append(kind(f"{prefixes.get(failure.digest, '')}{failure.error.message}", hint=hint))
        errors += [signature.to_error() for signature in self.unsigned]
        if self.signatures == ():
            errors.append(IntegrityError("no valid signature: there is no image that could be signed"))
        errors.sort(key=lambda error: not isinstance(error, IntegrityError))
        hint = "pull the image again, or push it to a registry that already has these blobs"
        for descriptor in self.findings.missing:
            message = f"{prefixes.get(descriptor.digest, '')}missing {descriptor.digest}"
            errors.append(MissingContentError(message, hint=hint))
        for name in self.illegal_names:
            msg = f"{printable(name)!r} is a name that is not allowed in image archives"
            is_image = any(root.name == name for root in self.findings.graph.roots)
            rename_hint = (
                "names have no spaces or control characters: give it another one with `ocistream copy SRC oci:DIR:NAME`"
            )
            errors.append(ArchiveError(msg, hint=rename_hint if is_image and not is_printable_name(name) else None))
        return errors

    def raise_for_findings(self) -> None:
        """Raise the gravest problem as an error; do nothing if there is none.

        Raises:
            IntegrityError: bytes are wrong, or an image has no valid signature.
            ArchiveError: content is missing or malformed, or a name is illegal.
        """
        if errors := self.errors():
            error = errors[0]
            target = _format_target(self.paths)
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            # An image in a registry is its own target.
            name = target.removeprefix("docker://")
            prefix = "" if error.message.startswith((f"{name}: ", f"{name} ")) else f"{target}: "
            raise type(error)(f"{prefix}{error.message}{more}", hint=error.hint)

    def _problem_digests(self) -> set[str]:
        findings = self.findings
        return {failure.digest for failure in findings.failures} | {blob.digest for blob in findings.missing}

    def _first_images(self, digests: set[str]) -> dict[str, str]:
        """Return the name, or else the digest or image ID, of the first image that needs each digest."""
        names: dict[str, str] = {}
        graph, unnamed = self.findings.graph, set(digests)
        for root in graph.roots if digests else ():
            found = unnamed & graph.reachable(root)
            names.update(dict.fromkeys(found, root.name or self._identify(root)))
            unnamed -= found
        return names

    def subject(self, root: Root) -> str | None:
        """Return the subject of an entry without a name; None for an image."""
        document = self.findings.graph.documents.get(root.descriptor.digest)
        if root.name is not None:
            return None
        if document is not None and document.subject is not None:
            return document.subject.digest
        return subject_of(root.descriptor) or cosign_subject(tag_of(entry_name_of(root.descriptor)) or "")


class VolumeSet(NamedTuple):
    """The volumes of a set that were verified."""

    present: Sequence[Volume]

    @classmethod
    def from_source(cls, source: Source) -> VolumeSet | None:
        """Return the volumes of a source, or None if it has none."""
        from ocistream.archive.source import list_archives

        volumes = {archive.volume.number: archive.volume for archive in list_archives(source) if archive.volume}
        return cls([volumes[number] for number in sorted(volumes)]) if volumes else None

    @property
    def absent_names(self) -> list[str]:
        """The names of the other volumes of the set."""
        first, numbers = self.present[0], {volume.number for volume in self.present}
        return [first.template.format_name(number) for number in range(first.total) if number not in numbers]

    def document(self, parts: int) -> dict[str, Any]:
        """Return the volumes as JSON; `parts` is how many parts of blobs were verified."""
        names = [volume.name for volume in self.present]
        return {"present": names, "total": self.present[0].total, "absent": self.absent_names, "parts": parts}


def format_paths(paths: tuple[str, ...]) -> str | list[str]:
    """Return the paths as the JSON document shows them: a string for one path, a list for several."""
    return paths[0] if len(paths) == 1 else list(paths)


def _format_target(paths: Sequence[str]) -> str:
    return "the archive on stdin" if tuple(paths) == ("-",) else printable(" ".join(paths), 1024)


def _format_damage_hint(kind: str) -> str:
    if kind == _REGISTRY:
        return "ask the registry's operator to delete the damaged blob, then push the image again"
    return f"the {'layout' if kind == _LAYOUT else 'archive'} is damaged: copy or pull it again"


def _is_docker_name(name: str) -> bool:
    try:
        parse_reference(name)
    except (InvalidNameError, UnsupportedError):
        return False
    return True


def _describe_source(source: Source) -> tuple[str, int, list[str]]:
    """Return the kind of a source, how many files belong to no image, and the illegal names."""
    from ocistream.layout.source import LayoutSource

    if isinstance(source, LayoutSource):
        return _LAYOUT, 0, list(source.layout.list_foreign_files())
    from ocistream.archive.joined_source import JoinedSource
    from ocistream.archive.source import ArchiveSource

    if isinstance(source, JoinedSource):
        descriptions = [_describe_source(archive) for archive in source.inputs]
        kinds = " and ".join(sorted({kind for kind, _, _ in descriptions}))
        illegal = [name for _, _, names in descriptions for name in names]
        return f"{kinds}, joined", sum(foreign for _, foreign, _ in descriptions), illegal
    if not isinstance(source, ArchiveSource):
        return _REGISTRY, 0, []
    contents = source.contents
    illegal = [contents.first_illegal_name] if contents.illegal_count else []
    if contents.is_docker_archive:
        return _DOCKER_ARCHIVE, 0, illegal
    return "OCI archive", contents.foreign_count, illegal
