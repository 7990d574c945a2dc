"""Choose manifests of an index by platform, and check the platform of a single image.

No other module chooses platforms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ocistream.errors import NotFoundError, UsageError
from ocistream.oci.descriptor import Platform, parse_platform
from ocistream.oci.documents import parse_config_platform
from ocistream.oci.reference import printable
from ocistream.oci.strict_json import canonical_json, canonical_json_with_items, parse_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocistream.oci.descriptor import Descriptor, Manifest

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


def choose_manifests(leaves: Sequence[Descriptor], choice: PlatformChoice, name: str) -> list[Descriptor] | None:
    """Return the manifests of the chosen platforms, or None if there is nothing to choose from.

    With several platforms, the attestations of these images are included.
    """
    available = _available(leaves)
    if not available and not choice.explicit:
        return None
    selected: dict[str, Descriptor] = {}
    for wanted in choice.platforms:
        matches = [(leaf, platform) for leaf, platform in available if wanted.matches(platform)]
        if not matches:
            platform_names = ", ".join(dict.fromkeys(printable(str(platform)) for _, platform in available))
            msg = f"{name} has no platform {wanted}" + ("" if choice.explicit else ", which is this machine's")
            hint = f"its platforms are: {platform_names}; choose one with --platform, or all"
            if not available:
                hint = "its platforms are: none with a name (it may be a build cache): omit --platform"
            raise NotFoundError(msg, hint=hint)
        best, _ = _best_match(wanted, matches)
        selected[best.digest] = best
    if len(selected) > 1:
        selected.update({leaf.digest: leaf for leaf in leaves if attestation_subject(leaf) in selected})
    if len(selected) > 1 and len(selected) == len({leaf.digest for leaf in leaves}):
        return None
    # A digest may be listed for several platforms. The descriptor of the selected one counts.
    return [selected[digest] for digest in dict.fromkeys(leaf.digest for leaf in leaves) if digest in selected]


def describe_choice(index: Descriptor, leaves: Sequence[Descriptor], choice: PlatformChoice) -> ChosenPlatforms:
    """Describe the result of `choose_manifests`: the selected and the available platforms of an index."""
    available = _available(leaves)
    selected: list[str] = []
    ambiguous = []
    for wanted in choice.platforms:
        matches = [(leaf, platform) for leaf, platform in available if wanted.matches(platform)]
        best, platform = _best_match(wanted, matches)
        selected.append(str(platform))
        plain = {leaf.digest for leaf, platform in matches if wanted.has_same_variant(platform)}
        if best.digest not in plain or len(plain) > 1:
            others = tuple(dict.fromkeys(str(other) for leaf, other in matches if leaf.digest != best.digest))
            ambiguous.append((str(wanted), str(platform), others))
    return ChosenPlatforms(
        index.digest,
        tuple(dict.fromkeys(selected)),
        tuple(list_platforms(leaves)),
        choice.explicit,
        tuple(ambiguous),
        tuple(leaf for leaf, _ in available),
    )


def list_platforms(leaves: Sequence[Descriptor]) -> list[str]:
    """Return the platforms of the manifests that an index lists, without attestations."""
    return list(dict.fromkeys(str(platform) for _, platform in _available(leaves)))


def _available(leaves: Sequence[Descriptor]) -> list[tuple[Descriptor, Platform]]:
    return [(leaf, leaf.platform) for leaf in leaves if leaf.platform and leaf.platform.os != "unknown"]


def _best_match(wanted: Platform, matches: Sequence[tuple[Descriptor, Platform]]) -> tuple[Descriptor, Platform]:
    return next((match for match in matches if wanted.has_same_variant(match[1])), matches[0])


def build_smaller_index(documents: Sequence[Manifest], chosen: Sequence[Descriptor]) -> bytes:
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
    return canonical_json_with_items(fields, "manifests", (entries[child.digest] for child in chosen))


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
