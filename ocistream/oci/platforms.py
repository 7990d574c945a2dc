"""Choose manifests of an index by platform, and check the platform of a single image.

No other module chooses platforms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ocistream.errors import NotFoundError, UsageError
from ocistream.oci.descriptor import Descriptor, Manifest, Platform, compute_digest, parse_platform
from ocistream.oci.documents import parse_config_platform
from ocistream.oci.reference import printable
from ocistream.oci.strict_json import canonical_json, canonical_json_with_items, parse_json

if TYPE_CHECKING:
    from collections.abc import Sequence

_ARCHITECTURES: Final = {
    "x86_64": "amd64",
    "amd64": "amd64",
    "aarch64": "arm64",
    "arm64": "arm64",
    "armv7l": "arm",
    "armv6l": "arm",
    "i386": "386",
    "i686": "386",
}


#: At most this many platforms that were not selected are printed.
_MAX_OTHERS: Final = 10


@dataclass(frozen=True, slots=True)
class PlatformChoice:
    """Which platforms of an index are wanted; all if `platforms` is empty.

    `explicit` is False for the default that the user did not ask for. An image without a platform to choose from is
    then copied as it is.
    """

    platforms: tuple[Platform, ...] = ()
    explicit: bool = True


ALL_PLATFORMS = PlatformChoice()


def parse_platform_choice(texts: Sequence[str], default: Platform | None = None) -> PlatformChoice:
    """Return the choice that texts such as `linux/amd64` or `all` make; without texts, `default`, or all if it is None.

    A text may be a list with commas.

    Raises:
        InvalidNameError: a text is not a platform.
        UsageError: `all` and a platform are chosen together.
    """
    texts = [item for text in texts for item in text.split(",")]
    if "all" in texts:
        if others := [text for text in texts if text != "all"]:
            msg = f"--platform all already includes {printable(others[0])!r}"
            raise UsageError(msg, hint="use either `all` or single platforms")
        return PlatformChoice()
    if texts:
        return PlatformChoice(tuple(dict.fromkeys(map(parse_platform, texts))))
    return PlatformChoice((default,), explicit=False) if default else PlatformChoice()


def default_platform() -> Platform:
    """Return linux on this machine's architecture."""
    import platform

    name = platform.machine().lower()
    return Platform("linux", _ARCHITECTURES.get(name, name), "v6" if name == "armv6l" else "")


@dataclass(frozen=True, slots=True)
class ChosenPlatforms:
    """Which `platforms` were selected of the `available` ones of an `index` (its digest).

    `explicit` says that the user named the platforms. `ambiguous` has the wanted platforms that several manifests
    match, or only another variant matches: what was wanted, what was selected, and the other matches. `manifests` are
    the manifests of the available platforms.
    """

    index: str
    platforms: tuple[str, ...]
    available: tuple[str, ...]
    explicit: bool
    ambiguous: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    manifests: tuple[Descriptor, ...] = ()

    def describe_ambiguities(self) -> list[str]:
        """Return a line of text for each ambiguous platform."""
        lines = []
        for wanted, selected, others in self.ambiguous:
            shown = ", ".join(map(printable, others[:_MAX_OTHERS]))
            more = f" and {len(others) - _MAX_OTHERS} more" if len(others) > _MAX_OTHERS else ""
            lines.append(f"{wanted} matches {printable(selected)}" + (f"; not copied: {shown}{more}" if shown else ""))
        return lines


#: buildx adds an attestation manifest for each image. This annotation has the digest of that image.
_ATTESTED_DIGEST = "vnd.docker.reference.digest"


def attestation_subject(leaf: Descriptor) -> str | None:
    """Return the digest of the image that an attestation describes, or None if the manifest is not an attestation."""
    return leaf.annotations.get(_ATTESTED_DIGEST)


def choose_manifests(
    index: Descriptor, leaves: Sequence[Descriptor], choice: PlatformChoice, name: str
) -> tuple[list[Descriptor], ChosenPlatforms] | None:
    """Return the manifests of the chosen platforms of an index; None if there is nothing to choose from, or all are.

    With several platforms, the attestations of these images are included.
    """
    available = [(leaf, leaf.platform) for leaf in leaves if leaf.platform and leaf.platform.os != "unknown"]
    if not available and not choice.explicit:
        return None
    selected: dict[str, Descriptor] = {}
    platforms: list[str] = []
    ambiguous = []
    for wanted in choice.platforms:
        matches = [(leaf, platform) for leaf, platform in available if wanted.matches(platform)]
        if not matches:
            raise _not_found_error(name, wanted, leaves, choice)
        plain = [match for match in matches if wanted.has_same_variant(match[1])]
        best, platform = (plain or matches)[0]
        selected[best.digest] = best
        platforms.append(str(platform))
        if len({leaf.digest for leaf, _ in plain}) != 1:
            others = tuple(dict.fromkeys(str(other) for leaf, other in matches if leaf.digest != best.digest))
            ambiguous.append((str(wanted), str(platform), others))
    if len(selected) > 1:
        selected.update({leaf.digest: leaf for leaf in leaves if attestation_subject(leaf) in selected})
    if len(selected) > 1 and len(selected) == len({leaf.digest for leaf in leaves}):
        return None
    # A digest may be listed for several platforms. The descriptor of the selected one counts.
    chosen = [selected[digest] for digest in dict.fromkeys(leaf.digest for leaf in leaves) if digest in selected]
    return chosen, ChosenPlatforms(
        index.digest,
        tuple(dict.fromkeys(platforms)),
        tuple(list_platforms(leaves)),
        choice.explicit,
        tuple(ambiguous),
        tuple(leaf for leaf, _ in available),
    )


def _not_found_error(
    name: str, wanted: Platform, leaves: Sequence[Descriptor], choice: PlatformChoice
) -> NotFoundError:
    names = ", ".join(map(printable, list_platforms(leaves)))
    msg = f"{name} has no platform {wanted}" + ("" if choice.explicit else ", which is this machine's")
    if names:
        return NotFoundError(msg, hint=f"its platforms are: {names}; choose one with --platform, or all")
    return NotFoundError(msg, hint="its platforms are: none with a name (it may be a build cache): omit --platform")


def list_platforms(leaves: Sequence[Descriptor]) -> list[str]:
    """Return the platforms of the manifests that an index lists, without attestations."""
    platforms = [leaf.platform for leaf in leaves if leaf.platform and leaf.platform.os != "unknown"]
    return list(dict.fromkeys(map(str, platforms)))


def build_smaller_index(index: Descriptor, documents: Sequence[Manifest], chosen: Sequence[Descriptor]) -> Manifest:
    """Return an index that lists only the chosen manifests, with their entries unchanged.

    `documents` are the index and the indexes below it. Registries refuse an index that lists missing manifests.
    `--platform all` copies the index itself.
    """
    wanted = {child.digest for child in chosen}
    entries: dict[str, bytes] = {}

    def keep(_: int, entry: dict[str, Any]) -> None:
        if entry["digest"] in wanted and entry["digest"] not in entries:
            entries[entry["digest"]] = canonical_json(entry)

    # The documents are parsed again: keeping the entries of all indexes would cost more than this time.
    fields, *_ = [
        parse_json(document.raw, f"manifest {document.descriptor.digest}", convert={"manifests": keep})
        for document in documents
    ]
    raw = canonical_json_with_items(fields, "manifests", (entries[child.digest] for child in chosen))
    return Manifest(Descriptor(index.media_type, compute_digest(raw), len(raw), artifact_type=index.artifact_type), raw)


def check_config_platform(choice: PlatformChoice, name: str, config: bytes) -> None:
    """Check the config of a single image (not an index) against the chosen platforms."""
    if (platform := parse_config_platform(config, f"the config of {name}")) is not None:
        check_platform_matches(choice, name, platform)


def check_platform_matches(choice: PlatformChoice, name: str, platform: Platform) -> None:
    """Check the platform of a single image (not an index) against the chosen platforms."""
    if not any(wanted.matches(platform) for wanted in choice.platforms):
        wanted_text = ", ".join(str(wanted) for wanted in choice.platforms)
        msg = f"{name} has no platform {wanted_text}"
        hint = f"it is a single image, for {printable(str(platform))}: omit --platform, or use a multi-platform image"
        raise NotFoundError(msg, hint=hint)
