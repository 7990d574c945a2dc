"""Check that each image of a graph is signed by one of the given keys. The caller reads the payloads of signatures."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ocistream import limits
from ocistream.errors import ArchiveError, IntegrityError, UnsupportedError
from ocistream.oci.descriptor import Descriptor
from ocistream.oci.documents import MANIFEST_FIELDS, DescriptorListParser
from ocistream.oci.graph import Root, is_image
from ocistream.oci.reference import printable
from ocistream.oci.referrers import (
    REFERRER_NAME,
    SIGSTORE_BUNDLE,
    SIMPLE_SIGNING,
    SUBJECT,
    cosign_subject,
    is_signature,
)
from ocistream.oci.strict_json import parse_json
from ocistream.signatures import bundle, simple_signing
from ocistream.signatures.keys import find_signers, load_keys
from ocistream.signatures.messages import RefusedSignatureError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from ocistream.oci.graph import Graph
    from ocistream.signatures.keys import PublicKey
    from ocistream.signatures.messages import SignedMessage
    from ocistream.signatures.policy import TrustRule

_NO_SIGNATURE: Final = "it has no signature"
_OTHER_KEY: Final = "it is signed by another key"
_SYNTHESIZED: Final = "a docker-archive has no manifest that can be signed"
_MISSING: Final = "the payload of its signature is missing"
#: Layers of images, with any compression, encryption or place of distribution.
_LAYERS: Final = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.")
_HINTS: Final = {
    _NO_SIGNATURE: "sign this digest, or, if its index is signed, copy all platforms (--platform all)",
    _SYNTHESIZED: "check the image in its registry, or use an OCI archive, which can have signatures",
}
#: Reasons that are shown for one image, and that are kept for one manifest.
_MAX_SHOWN: Final = 3
_MAX_REASONS: Final = 100


@dataclass(frozen=True, slots=True)
class ImageSignature:
    """Whether an image is signed: by which `keys` (their files), or the `problem`.

    `names` are the names that signers wrote into valid signatures. They prove nothing about the registry.
    """

    root: Root
    keys: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    problem: str | None = None

    def document(self) -> dict[str, Any]:
        """Return the result as JSON."""
        return {"problem": self.problem} if self.problem else {"keys": list(self.keys), "names": list(self.names)}

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
        return IntegrityError(f"{shown}: no valid signature: {self.problem}{others}", hint=self._hint())

    def _hint(self) -> str | None:
        """Return what to sign, or what to check instead."""
        if self.problem == _NO_SIGNATURE and self.root.chosen_platforms is not None:
            return f"sign the index {self.root.chosen_platforms.index}: then each of its platforms counts as signed"
        if self.problem == _NO_SIGNATURE and self.root.descriptor.is_index:
            return "sign this digest: then each platform of the index counts as signed"
        return _HINTS.get(self.problem or "")


class _Claim(NamedTuple):
    """A signature that was found for a manifest, and whose payload was not read yet."""

    subject: str
    #: The signature of a simple signing payload in base64; None for a bundle, which contains its signature.
    annotation: str | None = None


@dataclass(slots=True)
class _Results:
    """What is known about the signatures of one manifest."""

    keys: dict[str, None] = field(default_factory=dict)
    names: dict[str, None] = field(default_factory=dict)
    reasons: dict[str, None] = field(default_factory=dict)


class SignatureCheck:
    """Checks the signatures of one graph: `start`, then `add` for each payload, then `results` or `finish`.

    `keys` are keys one of which must have signed each image; empty if only rules hold. `find_rules` returns the rules
    of the policy for a root, and `find_names` the names that it gets at the destination.
    """

    def __init__(
        self,
        keys: Sequence[PublicKey] = (),
        find_rules: Callable[[Root], Sequence[TrustRule]] = lambda _root: (),
        find_names: Callable[[Root], Sequence[str]] = lambda _root: (),
    ) -> None:
        """Take what must hold."""
        self._keys = keys
        self._find_rules = find_rules
        self._find_names = find_names
        #: The keys of the rules that hold for images of the graph, by their files.
        self._rule_keys: dict[str, PublicKey] = {}
        self._rules: dict[int, Sequence[TrustRule]] = {}
        self._graph: Graph | None = None
        self._raw: dict[str, bytes] = {}
        #: By the digest of a payload: the signatures of it.
        self._claims: dict[str, list[_Claim]] = {}
        self._count = 0
        #: Signatures that were read, by their subjects, and their size in bytes.
        self._unverified: list[tuple[str, SignedMessage]] = []
        self._unverified_size = 0
        self._results: dict[str, _Results] = {}

    def start(self, graph: Graph) -> list[Descriptor]:
        """Find the signatures of a graph. Return the payloads to read, each of which has a bounded size.

        Raises:
            UsageError: the key of a rule cannot be used.
            UnsupportedError: there are too many signatures.
        """
        self._graph = graph
        subjects = [uncopied.subject for uncopied in graph.uncopied_signatures]
        self._raw = {manifest.descriptor.digest: manifest.raw for manifest in (*graph.manifests, *subjects)}
        self._rules = {id(root): self._find_rules(root) for root in graph.roots}
        files = dict.fromkeys(file for rules in self._rules.values() for rule in rules for file in rule.keys)
        self._rule_keys = {key.name: key for key in load_keys(list(files))}
        if not self._keys and not self._rule_keys:
            return []
        payloads: dict[str, Descriptor] = {}
        for subject, raw in self._find_signatures(graph):
            for payload, claim in _read_layers(subject, raw):
                self._count += 1
                if self._count > limits.MAX_SIGNATURES:
                    msg = f"the images have more than {limits.MAX_SIGNATURES} signatures"
                    raise UnsupportedError(msg, hint="copy fewer images at a time")
                if max(payload.size, len(claim.annotation or "")) > limits.MAX_SIGNATURE_PAYLOAD:
                    self._refuse(subject, f"its signature is larger than {limits.MAX_SIGNATURE_PAYLOAD} bytes")
                    continue
                payloads[payload.digest] = payload
                self._claims.setdefault(payload.digest, []).append(claim)
        return list(payloads.values())

    def add(self, payload: Descriptor, content: bytes) -> None:
        """Check the signatures of a payload, whose bytes match its digest."""
        for claim in self._claims.pop(payload.digest, ()):
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
            self._check_root(self._graph, root)
            for root in self._graph.roots
            if not self._is_artifact(self._graph, root) or self._find_rejection(root) is not None
        ]

    def finish(self) -> None:
        """Raise an error unless each image is signed.

        Raises:
            IntegrityError: images are not signed by one of the keys.
        """
        if unsigned := [result for result in self.results() if result.problem]:
            raise unsigned[0].to_error(len(unsigned) - 1)

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
            signed = bundle.read_bundle(content, subject, self._raw.get(subject, b""))
        else:
            signed = simple_signing.read_payload(content, claim.annotation, subject)
        self._unverified.append((subject, signed))
        self._unverified_size += len(signed.message) + len(signed.signature)
        if self._unverified_size > limits.MAX_UNVERIFIED_SIGNATURES:
            self._verify()

    def _verify(self) -> None:
        """Verify the signatures that were read, all at once: it takes a process."""
        known = {**self._rule_keys, **{key.name: key for key in self._keys}}
        signers = find_signers(list(known.values()), [signed for _, signed in self._unverified])
        for (subject, signed), keys in zip(self._unverified, signers, strict=True):
            if not keys:
                self._refuse(subject, _OTHER_KEY)
                continue
            results = self._results.setdefault(subject, _Results())
            results.keys.update(dict.fromkeys(keys))
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
        """Check a root against the keys, and against each rule that holds for it."""
        if (rejection := self._find_rejection(root)) is not None:
            problem = f"the configuration rejects the images of {printable(rejection.prefix)}"
            return ImageSignature(root, problem=problem)
        required = [frozenset(key.name for key in self._keys)] if self._keys else []
        required += [frozenset(rule.keys) for rule in self._rules.get(id(root), ()) if rule.keys]
        keys, names = dict[str, None](), dict[str, None]()
        for allowed in required:
            result = self._check_keys(graph, root, allowed)
            if result.problem:
                return result
            keys.update(dict.fromkeys(result.keys))
            names.update(dict.fromkeys(result.names))
        return ImageSignature(root, tuple(keys), tuple(names))

    def _check_keys(self, graph: Graph, root: Root, allowed: AbstractSet[str]) -> ImageSignature:
        """Check that one of the allowed keys has signed a root."""
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
        return ImageSignature(root, tuple(found.keys), tuple(found.names))

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
        if any(found.keys for found in results):
            reasons.add(_OTHER_KEY)
        if reasons:
            # Payloads are read in several threads, in any order.
            return "; ".join(sorted(reasons)[:_MAX_SHOWN])
        document = graph.documents.get(root.descriptor.digest)
        unsigned = [child for child in (document.manifests if document else ()) if signed.find(child.digest) is None]
        if document is None or len(unsigned) in {0, len(document.manifests)}:
            return _NO_SIGNATURE
        first = unsigned[0]
        return f"{_NO_SIGNATURE}, and of its manifests {first.platform or first.digest} has none"


class _SignedManifests:
    """Which manifests of a graph some keys have signed."""

    def __init__(self, graph: Graph, results: Mapping[str, _Results], keys: AbstractSet[str]) -> None:
        self._graph = graph
        self._results = results
        self._keys = keys
        self._known: dict[str, _Results | None] = {}

    def find_alone(self, digest: str) -> _Results | None:
        """Return the signatures of a manifest itself by the keys, or None."""
        results = self._results.get(digest)
        keys = {key: None for key in results.keys if key in self._keys} if results is not None else {}
        return replace(results, keys=keys) if results is not None and keys else None

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
                    {key: None for child in signed for key in child.keys},
                    {name: None for child in signed for name in child.names},
                )
        self._known[digest] = found
        return found


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
            yield payload, _Claim(subject, layer.annotations.get(simple_signing.SIGNATURE_ANNOTATION, ""))
        elif layer.media_type == SIGSTORE_BUNDLE:
            yield payload, _Claim(subject)
