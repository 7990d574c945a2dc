"""Check that each image of a graph is signed by one of some signers. The caller reads the payloads of signatures."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ocistream import limits
from ocistream.errors import ArchiveError, IntegrityError, UnsupportedError
from ocistream.oci.descriptor import Descriptor
from ocistream.oci.documents import MANIFEST_FIELDS, DescriptorListParser
from ocistream.oci.graph import Root, is_image
from ocistream.oci.reference import printable
from ocistream.oci.referrers import (
    LIST_TRUNCATED,
    LISTING_DENIED,
    NOT_FOUND,
    REFERRER_NAME,
    SIGSTORE_BUNDLE,
    SIMPLE_SIGNING,
    SUBJECT,
    SUBJECT_MISMATCH,
    UNREADABLE,
    UNSUPPORTED_TYPE,
    cosign_subject,
    is_signature,
)
from ocistream.oci.strict_json import parse_json
from ocistream.signatures.messages import (
    CERTIFICATE_ANNOTATION,
    OTHER_IDENTITY,
    SIGNATURE_ANNOTATION,
    RefusedSignatureError,
    read_bundle,
    read_payload,
)
from ocistream.signatures.signers import Identity, PublicKey, Signer
from ocistream.signatures.verifier_process import load_signers, verify_messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from ocistream.oci.graph import Graph
    from ocistream.signatures.messages import SignedMessage
    from ocistream.signatures.policy import TrustRule

_NO_SIGNATURE: Final = "it has no signature"
_OTHER_KEY: Final = "it is signed by another key"
_NO_KEY: Final = "it is signed with a certificate (keyless), not by a given key"
_NO_CERTIFICATE: Final = "it is signed by a key, not with a certificate (keyless)"
_KEYLESS_TAG: Final = "its keyless signature is not in a Sigstore bundle, which alone proves its entry in the log"
_SYNTHESIZED: Final = "a docker-archive has no manifest that can be signed"
_MISSING: Final = "the payload of its signature is missing"
_UNSUPPORTED: Final = "its signature has a type that is not supported"
_NOT_READ: Final = "its signatures were not read: "
#: Beginnings of the reasons why signatures may exist that cannot be checked.
_LOST: Final = (NOT_FOUND, SUBJECT_MISMATCH, LISTING_DENIED, LIST_TRUNCATED, UNREADABLE)
#: Layers of images, with any compression, encryption or place of distribution.
_LAYERS: Final = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.")
_HINTS: Final = {
    _KEYLESS_TAG: "sign the image with cosign 3, or with cosign 2.6 and --new-bundle-format",
    _SYNTHESIZED: "check the image in its registry, or use an OCI archive, which can have signatures",
}
#: Characters of a reason that a verifier gives.
_MAX_REASON: Final = 300
#: Reasons that are shown for one image, and that are kept for one manifest.
_MAX_SHOWN: Final = 3
_MAX_REASONS: Final = 100


@dataclass(frozen=True, slots=True)
class ImageSignature:
    """Whether an image is signed: by which `signers`, or the `problem`.

    `names` are the names that signers wrote into valid signatures. They prove nothing about the registry.
    `rule` is the rule of the policy that the image does not meet. `is_local` says that an archive or a layout has the
    image, whose signatures may not have been copied into it.
    """

    root: Root
    signers: tuple[Signer, ...] = ()
    names: tuple[str, ...] = ()
    problem: str | None = None
    rule: TrustRule | None = None
    is_local: bool = False

    def document(self) -> dict[str, Any]:
        """Return the result as JSON."""
        if self.problem:
            return {"problem": self.problem}
        return {
            "keys": [signer.file for signer in self.signers if isinstance(signer, PublicKey)],
            "identities": [
                {"identity": signer.identity, "issuer": signer.issuer}
                for signer in self.signers
                if isinstance(signer, Identity)
            ],
            "names": list(self.names),
        }

    def to_error(self, more: int = 0) -> IntegrityError:
        """Return the error for an image without a valid signature, and `more` such images."""
        digest = self.root.descriptor.digest
        name = self.root.name or self.root.origin
        if self.root.is_synthesized:
            # The digest is known only here.
            shown = printable(name or self.root.image_id or digest)
        else:
            shown = f"{printable(name)} ({digest})" if name else digest
        others = f" (and {more} more)" if more else ""
        if self.rule is not None and self.rule.rejects:
            return IntegrityError(f"{shown}: {self.problem}{others}", hint=self._hint())
        rule = f'; the rule [trust."{printable(self.rule.prefix)}"] requires a signature' if self.rule else ""
        return IntegrityError(f"{shown}: no valid signature: {self.problem}{rule}{others}", hint=self._hint())

    def _hint(self) -> str | None:
        """Return what to sign, or what to check instead."""
        if self.rule is not None and self.rule.rejects:
            return 'it is the rule "reject" of [trust]; `ocistream config show IMAGE` prints it'
        if self.problem == _NO_SIGNATURE:
            return self._unsigned_hint()
        if (self.problem or "").startswith(f"{_NOT_READ}{LISTING_DENIED}"):
            return "check the permissions of your login"
        if (self.problem or "").startswith(_NOT_READ):
            return "copy the image with its signatures again from the registry in which it was signed, or sign it again"
        shows_rule = "`ocistream config show IMAGE` prints the rule" if self.rule is not None else None
        return _HINTS.get(self.problem or "", shows_rule)

    def _unsigned_hint(self) -> str:
        if self.is_local:
            bring = "if it is signed in its registry, bring the signatures: `ocistream pull --all IMAGE -o FILE`"
            return f"{bring}, without --no-referrers; otherwise sign this digest"
        if self.root.chosen_platforms is not None:
            return f"sign the index {self.root.chosen_platforms.index}: then each of its platforms counts as signed"
        if self.root.descriptor.is_index:
            return "sign this digest: then each platform of the index counts as signed"
        if self.root.default_platform is not None:
            return "sign this digest, or, if its index is signed, copy all platforms (--platform all)"
        return "sign this digest, or use the index that lists it, if the index is signed"


class _Claim(NamedTuple):
    """A signature that was found for a manifest, and whose payload was not read yet."""

    subject: str
    #: The signature of a simple signing payload in base64; None for a bundle, which contains its signature.
    annotation: str | None = None
    #: Whether a certificate is beside the annotation.
    is_keyless: bool = False


@dataclass(slots=True)
class _Results:
    """What is known about the signatures of one manifest."""

    signers: dict[Signer, None] = field(default_factory=dict)
    names: dict[str, None] = field(default_factory=dict)
    reasons: dict[str, None] = field(default_factory=dict)


class SignatureCheck:
    """Checks the signatures of one graph: `start`, then `add` for each pending payload, then `results` or `finish`.

    `signers` are the signers, with the contents of their files, one of whom must have signed each image; empty if only
    rules hold. `find_rules` returns the rules of the policy for a root, and `find_names` the names that it gets at the
    destination.
    """

    def __init__(
        self,
        signers: Mapping[Signer, str] = MappingProxyType({}),
        find_rules: Callable[[Root], Sequence[TrustRule]] = lambda _root: (),
        find_names: Callable[[Root], Sequence[str]] = lambda _root: (),
        *,
        is_local: bool = False,
    ) -> None:
        """Take what must hold. `is_local` says that the images come from an archive or a layout."""
        self._signers = signers
        self._find_rules = find_rules
        self._find_names = find_names
        self._is_local = is_local
        #: These signers and those of the rules that hold for images of the graph, with the contents of their files.
        self._known_signers: Mapping[Signer, str] = signers
        self._rules: dict[int, Sequence[TrustRule]] = {}
        self._graph: Graph | None = None
        self._raw: dict[str, bytes] = {}
        #: The payloads that were not added yet, by digest. Each has a bounded size.
        self.pending: dict[str, Descriptor] = {}
        #: By the digest of a payload: the signatures of it.
        self._claims: dict[str, list[_Claim]] = {}
        self._lock = threading.Lock()
        #: The images that are not signed; None until the check is finished.
        self._unsigned: list[ImageSignature] | None = None
        #: Signatures that were read, by their subjects, and their size in bytes.
        self._unverified: list[tuple[str, SignedMessage]] = []
        self._unverified_size = 0
        self._results: dict[str, _Results] = {}

    def start(self, graph: Graph) -> None:
        """Find the signatures of a graph, and so the pending payloads.

        Raises:
            UsageError: the file of a rule's signer cannot be used.
            UnsupportedError: there are too many signatures, or a package is not installed.
        """
        self._graph = graph
        subjects = [uncopied.subject for uncopied in graph.uncopied_signatures]
        self._raw = {manifest.descriptor.digest: manifest.raw for manifest in (*graph.manifests, *subjects)}
        self._rules = {id(root): self._find_rules(root) for root in graph.roots}
        rule_signers = {signer: None for rules in self._rules.values() for rule in rules for signer in rule.signers}
        self._known_signers = {**load_signers(rule_signers), **self._signers}
        if not self._known_signers:
            return
        count = 0
        for subject, raw in self._find_signatures(graph):
            for payload, claim in _read_layers(subject, raw):
                count += 1
                if count > limits.MAX_SIGNATURES:
                    msg = f"the images have more than {limits.MAX_SIGNATURES} signatures"
                    raise UnsupportedError(msg, hint="copy fewer images at a time")
                if max(payload.size, len(claim.annotation or "")) > limits.MAX_SIGNATURE_PAYLOAD:
                    self._refuse(subject, f"its signature is larger than {limits.MAX_SIGNATURE_PAYLOAD} bytes")
                    continue
                self.pending[payload.digest] = payload
                self._claims.setdefault(payload.digest, []).append(claim)
        for skipped in graph.skipped_referrers:
            if skipped.kind == "signature" and skipped.reason == UNSUPPORTED_TYPE and skipped.subject is not None:
                self._refuse(skipped.subject, _UNSUPPORTED)
        for digest, content in graph.embedded.items():
            self.add(digest, content)

    def add(self, digest: str, content: bytes) -> None:
        """Check the signatures of a payload, if this is one. Safe for several threads.

        The content matches the digest.
        """
        with self._lock:
            self.pending.pop(digest, None)
            for claim in self._claims.pop(digest, ()):
                try:
                    self._check(claim, content)
                except RefusedSignatureError as reason:
                    self._refuse(claim.subject, str(reason))
                except ArchiveError as error:
                    self._refuse(claim.subject, f"its signature is malformed: {error.message}")

    def results(self) -> list[ImageSignature]:
        """Return the result for each image. Payloads that were not added are missing."""
        assert self._graph is not None, "the check was started"  # noqa: S101 - its callers start it
        self._verify()
        for claims in self._claims.values():
            for claim in claims:
                self._refuse(claim.subject, _MISSING)
        self._claims.clear()
        return [
            replace(self._check_root(self._graph, root), is_local=self._is_local)
            for root in self._graph.roots
            if not self._is_artifact(self._graph, root) or self._find_rejection(root) is not None
        ]

    def finish(self) -> None:
        """Raise an error unless each image is signed. Further calls have the same outcome: many images take time.

        Raises:
            IntegrityError: images are not signed by one of the keys.
        """
        if self._unsigned is None:
            self._unsigned = [result for result in self.results() if result.problem]
        if self._unsigned:
            raise self._unsigned[0].to_error(len(self._unsigned) - 1)

    # -- finding signatures ----------------------------------------------------------------------------------

    def _find_signatures(self, graph: Graph) -> Iterator[tuple[str, bytes]]:
        """Yield each manifest of signatures, after the digest that it refers to."""
        references = [(referrer.subject, referrer.descriptor.digest) for referrer in graph.all_referrers]
        references += [
            (subject, root.descriptor.digest)
            for root in graph.roots
            if (subject := _find_subject(graph, root)) is not None
        ]
        for uncopied in graph.uncopied_signatures:
            for manifest in uncopied.manifests:
                yield uncopied.subject.descriptor.digest, manifest.raw
        for subject, digest in dict.fromkeys(references):
            document = graph.documents.get(digest)
            if document is not None and is_signature(document):
                yield subject, self._raw[digest]

    # -- checking signatures ---------------------------------------------------------------------------------

    def _check(self, claim: _Claim, content: bytes) -> None:
        subject = claim.subject
        if claim.annotation is None:
            signed = read_bundle(content, subject, self._raw.get(subject))
        else:
            signed = read_payload(content, claim.annotation, subject)
            signed = replace(signed, is_keyless=claim.is_keyless)
        self._unverified.append((subject, signed))
        self._unverified_size += signed.size
        if self._unverified_size > limits.MAX_UNVERIFIED_SIGNATURES:
            self._verify()

    def _verify(self) -> None:
        """Verify the signatures that were read, all at once: it takes a process."""
        verdicts = verify_messages(self._known_signers, [signed for _, signed in self._unverified])
        for (subject, signed), verdict in zip(self._unverified, verdicts, strict=True):
            if not verdict.signers:
                self._refuse(subject, _describe_refusal(signed, self._known_signers, verdict.problem))
                continue
            results = self._results.setdefault(subject, _Results())
            results.signers.update(dict.fromkeys(verdict.signers))
            if signed.name is not None:
                results.names[printable(signed.name)] = None
        self._unverified, self._unverified_size = [], 0

    def _refuse(self, subject: str, reason: str) -> None:
        reasons = self._results.setdefault(subject, _Results()).reasons
        if len(reasons) < _MAX_REASONS:
            reasons[reason] = None

    # -- images ----------------------------------------------------------------------------------------------

    def _is_artifact(self, graph: Graph, root: Root) -> bool:
        """Return whether a root is a referrer that cannot be run, such as a signature: these have no signatures.

        A root with a name of its own, at the source or destination, is an image, even if it refers to another one.
        """
        names = filter(None, (root.name, *self._find_names(root)))
        return (
            _find_subject(graph, root) is not None
            and all(cosign_subject(name.rpartition(":")[2]) for name in names)
            and not any(_can_run(graph, digest) for digest in graph.reachable(root, alone=True))
        )

    def _find_rejection(self, root: Root) -> TrustRule | None:
        return next((rule for rule in self._rules.get(id(root), ()) if rule.rejects), None)

    def _check_root(self, graph: Graph, root: Root) -> ImageSignature:
        """Check a root against the signers, and against each rule that holds for it."""
        if (rejection := self._find_rejection(root)) is not None:
            problem = f"the configuration rejects the images of {printable(rejection.prefix)}"
            return ImageSignature(root, problem=problem, rule=rejection)
        required: list[tuple[TrustRule | None, Iterable[Signer]]] = [(None, self._signers)] if self._signers else []
        required += [(rule, rule.signers) for rule in self._rules.get(id(root), ()) if rule.signers]
        signers, names = dict[Signer, None](), dict[str, None]()
        for rule, allowed in required:
            result = self._check_signers(graph, root, frozenset(allowed))
            if result.problem:
                return replace(result, rule=rule)
            signers.update(dict.fromkeys(result.signers))
            names.update(dict.fromkeys(result.names))
        return ImageSignature(root, tuple(signers), tuple(names))

    def _check_signers(self, graph: Graph, root: Root, allowed: AbstractSet[Signer]) -> ImageSignature:
        """Check that one of the allowed signers has signed a root."""
        signed = _SignedManifests(graph, self._results, allowed)
        found = signed.find(root.descriptor.digest)
        if found is None and root.chosen_platforms is not None:
            # The manifest was taken out of this index, so that the index has its digest.
            found = signed.find_alone(root.chosen_platforms.index)
        problem = (
            self._describe_problem(graph, root, signed)
            if found is None
            else self._find_unsigned_referrer(graph, root, signed)
        )
        if found is None or problem is not None:
            return ImageSignature(root, problem=problem)
        return ImageSignature(root, tuple(found.signers), tuple(found.names))

    def _find_unsigned_referrer(self, graph: Graph, root: Root, signed: _SignedManifests) -> str | None:
        """Return the problem if a referrer of a signed image is an image itself, and is not signed."""
        for digest in sorted(graph.reachable(root) - graph.reachable(root, alone=True)):
            if _can_run(graph, digest) and signed.find(digest) is None:
                return f"the image {digest}, which refers to it, has no valid signature"
        return None

    def _describe_problem(self, graph: Graph, root: Root, signed: _SignedManifests) -> str:
        if root.is_synthesized:
            return _SYNTHESIZED
        digests = [root.descriptor.digest]
        if root.chosen_platforms is not None:
            digests.append(root.chosen_platforms.index)
        results = [self._results[digest] for digest in digests if digest in self._results]
        reasons = {reason for found in results for reason in found.reasons}
        for signer in (signer for found in results for signer in found.signers):
            reasons.add(_OTHER_KEY if isinstance(signer, PublicKey) else f"{OTHER_IDENTITY}: {printable(str(signer))}")
        if reasons:
            # Payloads are read in several threads, in any order.
            return "; ".join(sorted(reasons)[:_MAX_SHOWN])
        for skipped in graph.skipped_referrers:
            if skipped.subject in digests and skipped.kind in {"signature", None} and skipped.reason.startswith(_LOST):
                return f"{_NOT_READ}{printable(skipped.reason, _MAX_REASON)}"
        document = graph.documents.get(root.descriptor.digest)
        unsigned = [child for child in (document.manifests if document else ()) if signed.find(child.digest) is None]
        if document is None or len(unsigned) in {0, len(document.manifests)}:
            return _NO_SIGNATURE
        first = unsigned[0]
        return f"{_NO_SIGNATURE}, and of its manifests {first.platform or first.digest} has none"


class _SignedManifests:
    """Which manifests of a graph some signers have signed."""

    def __init__(self, graph: Graph, results: Mapping[str, _Results], signers: AbstractSet[Signer]) -> None:
        self._graph = graph
        self._results = results
        self._signers = signers
        self._known: dict[str, _Results | None] = {}

    def find_alone(self, digest: str) -> _Results | None:
        """Return the signatures of a manifest itself by the signers, or None."""
        results = self._results.get(digest)
        found = {signer: None for signer in results.signers if signer in self._signers} if results is not None else {}
        return replace(results, signers=found) if results is not None and found else None

    def find(self, digest: str) -> _Results | None:
        """Return the signatures of a manifest, or of an index or all manifests of it; None if that is not signed."""
        if digest in self._known:
            return self._known[digest]
        found = self.find_alone(digest)
        document = self._graph.documents.get(digest)
        # A blob that an index lists has no signature of its own.
        if found is None and document is not None and document.manifests and not document.layers:
            children = [self.find(child.digest) for child in document.manifests]
            signed = [child for child in children if child is not None]
            if len(signed) == len(children):
                found = _Results(
                    {signer: None for child in signed for signer in child.signers},
                    {name: None for child in signed for name in child.names},
                )
        self._known[digest] = found
        return found


def _describe_refusal(signed: SignedMessage, signers: Iterable[Signer], problem: str | None) -> str:
    """Return why a signature is by none of the signers. `problem` is what the verifier knows about it."""
    kinds = {type(signer) for signer in signers}
    if Identity not in kinds:
        return _NO_KEY if signed.is_keyless else problem or _OTHER_KEY
    if signed.is_keyless:
        return _KEYLESS_TAG if problem is None or signed.bundle is None else printable(problem, _MAX_REASON)
    return problem or (_OTHER_KEY if PublicKey in kinds else _NO_CERTIFICATE)


def _can_run(graph: Graph, digest: str) -> bool:
    """Return whether a manifest may be run as an image; so may an index whose manifests are not in the source."""
    document = graph.documents.get(digest)
    if document is None:
        return False
    if any(child.digest not in graph.documents for child in document.manifests):
        return True
    return is_image(document) and any(layer.media_type.startswith(_LAYERS) for layer in document.layers)


def _find_subject(graph: Graph, root: Root) -> str | None:
    """Return the digest that a root refers to, if its manifest, its entry or a tag of cosign's says so."""
    document = graph.documents.get(root.descriptor.digest)
    if document is not None and document.subject is not None:
        return document.subject.digest
    annotations = root.descriptor.annotations
    name = root.name or annotations.get(REFERRER_NAME, "")
    return cosign_subject(name.rpartition(":")[2]) or annotations.get(SUBJECT)


def _read_layers(subject: str, raw: bytes) -> Iterator[tuple[Descriptor, _Claim]]:
    """Yield the payloads that a manifest lists, with their signatures."""
    what = "a signature"
    layers = DescriptorListParser("layers", what)
    fields = parse_json(raw, what, keys=frozenset({"layers"}), known_keys=MANIFEST_FIELDS, convert={"layers": layers})
    for layer in layers.descriptors(fields):
        payload = Descriptor(layer.media_type, layer.digest, layer.size)
        if layer.media_type == SIMPLE_SIGNING:
            signature = layer.annotations.get(SIGNATURE_ANNOTATION, "")
            is_keyless = CERTIFICATE_ANNOTATION in layer.annotations
            yield payload, _Claim(subject, signature, is_keyless)
        elif layer.media_type == SIGSTORE_BUNDLE:
            yield payload, _Claim(subject)
