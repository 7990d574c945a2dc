"""Choose manifests of an index by platform, and check the platform of a single image.

No other module chooses platforms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ocistream.errors import NotFoundError
from ocistream.oci.documents import parse_config_platform
from ocistream.oci.reference import printable
from ocistream.oci.strict_json import canonical_json, canonical_json_with_items, parse_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocistream.oci.descriptor import Descriptor, Manifest, Platform

__all__ = [
    "ALL_PLATFORMS",
    "ChosenPlatforms",
    "PlatformChoice",
    "attestation_subject",
    "build_smaller_index",
    "check_config_platform",
    "check_platform_matches",
    "choose_manifests",
    "describe_choice",
]


#: So many platforms that were not taken are named.
_MAX_OTHERS: Final = 10


@dataclass(frozen=True, slots=True)
class PlatformChoice:
    """Which platforms of an index are wanted: all of them where `platforms` is empty.

    `explicit` is False for the default that a user did not ask for: an image that has no choice to offer is then
    taken as it is.
    """

    platforms: tuple[Platform, ...] = ()
    explicit: bool = True


ALL_PLATFORMS = PlatformChoice()


@dataclass(frozen=True, slots=True)
class ChosenPlatforms:
    """Which `platforms` were taken of those that an `index` (its digest) offers; `explicit` if the user named them.

    `unclear` has the wanted platforms that several images are for, or only another variant: what was wanted, what was
    taken for it, and what else is offered for it. `leaves` are the manifests of the offered platforms.
    """

    index: str
    platforms: tuple[str, ...]
    available: tuple[str, ...]
    explicit: bool
    ambiguous: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    manifests: tuple[Descriptor, ...] = ()

    def describe_ambiguities(self) -> list[str]:
        """Return a line for people for each unclear platform."""
        lines = []
        for wanted, got, others in self.ambiguous:
            shown = ", ".join(map(printable, others[:_MAX_OTHERS]))
            more = f" and {len(others) - _MAX_OTHERS} more" if len(others) > _MAX_OTHERS else ""
            lines.append(f"{wanted} matches {printable(got)}" + (f"; not copied: {shown}{more}" if shown else ""))
        return lines


#: What buildx puts beside each image: a manifest of no platform, that points to the image it vouches for.
_ATTESTED_DIGEST = "vnd.docker.reference.digest"


def attestation_subject(leaf: Descriptor) -> str | None:
    """Give the digest of the image that a manifest in an index is the attestation of; None for any other manifest."""
    return leaf.annotations.get(_ATTESTED_DIGEST)


def choose_manifests(leaves: Sequence[Descriptor], choice: PlatformChoice, name: str) -> list[Descriptor] | None:
    """Pick the manifests that a choice of platforms means; None where there is nothing to choose from.

    With several platforms, attestations go along with the images that they vouch for.

    Raises:
        NotFoundError: a platform is not there; the message lists those that are.
    """
    offered = _available(leaves)
    if not offered and not choice.explicit:
        return None
    picked: dict[str, Descriptor] = {}
    for wanted in choice.platforms:
        matches = [(leaf, platform) for leaf, platform in offered if wanted.matches(platform)]
        if not matches:
            there = ", ".join(dict.fromkeys(printable(str(platform)) for _, platform in offered))
            msg = f"{name} has no platform {wanted}" + ("" if choice.explicit else ", which is this machine's")
            hint = f"its platforms are: {there or 'none that is named'}; choose one with --platform, or all"
            raise NotFoundError(msg, hint=hint)
        best, _ = _best_match(wanted, matches)
        picked[best.digest] = best
    if len(picked) > 1:
        picked.update({leaf.digest: leaf for leaf in leaves if attestation_subject(leaf) in picked})
    if len(picked) > 1 and len(picked) == len({leaf.digest for leaf in leaves}):
        return None
    # A digest may be listed for several platforms: it is what it was picked as.
    return [picked[digest] for digest in dict.fromkeys(leaf.digest for leaf in leaves) if digest in picked]


def describe_choice(index: Descriptor, leaves: Sequence[Descriptor], choice: PlatformChoice) -> ChosenPlatforms:
    """Describe what `choose` picks, of all the platforms that an index offers."""
    offered = _available(leaves)
    taken: list[str] = []
    unclear = []
    for wanted in choice.platforms:
        matches = [(leaf, platform) for leaf, platform in offered if wanted.matches(platform)]
        best, platform = _best_match(wanted, matches)
        taken.append(str(platform))
        plain = {leaf.digest for leaf, platform in matches if wanted.has_same_variant(platform)}
        if best.digest not in plain or len(plain) > 1:
            others = tuple(dict.fromkeys(str(other) for leaf, other in matches if leaf.digest != best.digest))
            unclear.append((str(wanted), str(platform), others))
    return ChosenPlatforms(
        index.digest,
        tuple(dict.fromkeys(taken)),
        tuple(dict.fromkeys(str(platform) for _, platform in offered)),
        choice.explicit,
        tuple(unclear),
        tuple(leaf for leaf, _ in offered),
    )


def _available(leaves: Sequence[Descriptor]) -> list[tuple[Descriptor, Platform]]:
    return [(leaf, leaf.platform) for leaf in leaves if leaf.platform and leaf.platform.os != "unknown"]


def _best_match(wanted: Platform, matches: Sequence[tuple[Descriptor, Platform]]) -> tuple[Descriptor, Platform]:
    return next((match for match in matches if wanted.has_same_variant(match[1])), matches[0])


def build_smaller_index(documents: Sequence[Manifest], chosen: Sequence[Descriptor]) -> bytes:
    """Write an index that lists only the chosen manifests, each in its own words.

    `documents` are the index and those within it. An index that names what is left out could not be pushed: registries
    refuse it.
    """
    wanted = {child.digest for child in chosen}
    entries: dict[str, bytes] = {}

    def keep(_: int, entry: dict[str, Any]) -> None:
        if entry["digest"] in wanted and entry["digest"] not in entries:
            entries[entry["digest"]] = canonical_json(entry)

    # They are parsed again: to hold their words, of all indexes, would cost more than the time that this takes.
    fields, *_ = [
        parse_json(document.raw, f"manifest {document.descriptor.digest}", convert={"manifests": keep})
        for document in documents
    ]
    return canonical_json_with_items(fields, "manifests", (entries[child.digest] for child in chosen))


def check_config_platform(choice: PlatformChoice, name: str, config: bytes) -> None:
    """Hold an image that is no index against a choice, by its configuration.

    Raises:
        NotFoundError: it is for another platform.
    """
    if (platform := parse_config_platform(config, f"the config of {name}")) is not None:
        check_platform_matches(choice, name, platform)


def check_platform_matches(choice: PlatformChoice, name: str, platform: Platform) -> None:
    """Hold the platform of an image that is no index against a choice.

    Raises:
        NotFoundError: it is another one.
    """
    if not any(wanted.matches(platform) for wanted in choice.platforms):
        wanted_text = ", ".join(str(wanted) for wanted in choice.platforms)
        msg = f"{name} has no platform {wanted_text}"
        raise NotFoundError(msg, hint=f"it is a single image, for {printable(str(platform))}")
