"""Parse and check image references, registries, repositories, tags and digests.

Every name that becomes a path or a URL is checked here first (CVE-2024-3727). No I/O.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ocistream.errors import InvalidNameError, UnsupportedError

DEFAULT_REGISTRY: Final = "docker.io"
DEFAULT_TAG: Final = "latest"
#: Docker's names for Docker Hub. All are the same registry.
_HUB_ALIASES: Final = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})

#: Number of hex characters for each registered algorithm (image-spec, descriptor.md, "Registered algorithms").
DIGEST_HEX_LENGTHS: Final = {"sha256": 64, "sha512": 128}

_DIGEST = re.compile(r"(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})\Z")
_OTHER_DIGEST = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+\Z")
# distribution-spec, "Pulling manifests": <name> and <reference>.
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*\Z")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}\Z")
#: A user with a password before a host, as URLs have it. What follows the `@` of a name is a digest.
_USER_INFO = re.compile(r"(^|//)[^/@\s]*:[^/@\s]*@(?!sha[0-9])")
_DIGEST_TAG = re.compile(r"sha(?:256|512)-[0-9a-f]{64}(?:\.(?:sig|att|sbom))?\Z")
_HOST = re.compile(
    r"(?:(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])(?:\.(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]))*"
    # Another spelling of a port, such as :0443, would escape the rules of the host.
    r"|\[[0-9a-fA-F:.]+\])(?::[1-9][0-9]{0,4})?\Z"
)
#: The longest repository name, with its host, that Docker accepts and the distribution-spec recommends.
_MAX_NAME: Final = 255
_MAX_PORT: Final = 65535
_REPOSITORY_HINT: Final = "a repository name has lower-case letters and digits, separated by . _ / or dashes"
_TAG_HINT: Final = "a tag has at most 128 characters: letters, digits, dots, dashes and underscores"
_HOST_HINT: Final = "write HOST[:PORT] with letters, digits, dots and dashes, and a port from 1 to 65535; IPv6 in [ ]"
#: Scripts with letters that look like letters of another one (UTS #39).
_CONFUSABLE_SCRIPTS: Final = frozenset({"LATIN", "CYRILLIC", "GREEK", "ARMENIAN", "COPTIC", "CHEROKEE"})


def is_digest(text: object) -> bool:
    """Return whether `text` is a sha256 or sha512 digest in lower-case hex. No other digest is accepted."""
    return isinstance(text, str) and _DIGEST.match(text) is not None


def is_repository(text: str) -> bool:
    """Return whether `text` is a repository's path (distribution-spec) of at most 255 characters."""
    return len(text) <= _MAX_NAME and _REPOSITORY.match(text) is not None


def is_tag(text: str) -> bool:
    """Return whether `text` is a tag (distribution-spec) of at most 128 characters."""
    return _TAG.match(text) is not None


def is_digest_tag(text: str) -> bool:
    """Return whether a tag names referrers of a manifest, not an image.

    That is a list of referrers (distribution-spec, "Referrers Tag Schema"), or, with `.sig`, `.att` or `.sbom`, a
    manifest by cosign.
    """
    return _DIGEST_TAG.match(text) is not None


@dataclass(frozen=True, slots=True)
class Digest:
    """A digest in two parts: `algorithm` ("sha256" or "sha512") and lower-case `hex`."""

    algorithm: str
    hex: str

    def __str__(self) -> str:
        """Return the digest as text: `sha256:<hex>`."""
        return f"{self.algorithm}:{self.hex}"


def parse_digest(text: str) -> Digest:
    """Split a digest such as `sha256:<64 hex>`.

    Raises:
        UnsupportedError: the digest is well-formed, but its algorithm is not supported.
        InvalidNameError: the text is not a digest.
    """
    if _DIGEST.match(text):
        algorithm, _, hexadecimal = text.partition(":")
        return Digest(algorithm, hexadecimal)
    algorithm = text.partition(":")[0]
    if _OTHER_DIGEST.match(text) and algorithm not in DIGEST_HEX_LENGTHS:
        msg = f"digest algorithm {printable(algorithm, 40)!r} is not supported (only sha256 and sha512 are)"
        raise UnsupportedError(msg)
    msg = f"malformed digest {printable(text)!r}"
    length, right = len(text.partition(":")[2]), DIGEST_HEX_LENGTHS.get(algorithm)
    if right is not None and length != right:
        msg += f": {length} characters follow {algorithm}:, not {right}"
    raise InvalidNameError(msg, hint="write sha256: with 64 hex digits (0-9, a-f), or sha512: with 128")


def printable(text: str, limit: int = 200) -> str:
    """Return `text`, shortened and with `?` in place of control characters.

    Untrusted text must not control a terminal.
    """
    if len(text) <= limit and text.isprintable():
        return text
    clean = "".join(c if c.isprintable() else "?" for c in text[: limit + 1])
    return clean[:limit] + "…" if len(clean) > limit else clean


def without_password(text: str) -> str:
    """Return a name for messages, without the user and password that a URL may have before its host."""
    return _USER_INFO.sub(r"\1...@", text)


@dataclass(frozen=True, slots=True)
class Reference:
    """The full name of an image in a registry.

    `registry` is a host in ASCII with an optional port ("docker.io", "localhost:5000", "[::1]:5000"). `repository` is a
    path ("library/nginx"). A reference without a tag and without a digest means the tag "latest".
    """

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        """Return the full name: `docker.io/library/nginx:1@sha256:...`."""
        return self.name + (f"@{self.digest}" if self.digest else "")

    @property
    def name(self) -> str:
        """The full name without the digest: `docker.io/library/nginx:1`."""
        return f"{self.registry}/{self.repository}" + (f":{self.tag}" if self.tag else "")

    @property
    def familiar(self) -> str:
        """The name as `docker images` shows it, without Docker Hub's defaults: `nginx:1`."""
        short = self.name.removeprefix(f"{DEFAULT_REGISTRY}/").removeprefix("library/")
        # Without their prefix, `docker.io/a.example/b` and `docker.io/library/a/b` would name other images.
        return short if _split(short)[:2] == (self.registry, self.repository) else self.name

    @property
    def target(self) -> str:
        """The digest to request from the registry, if there is one, otherwise the tag."""
        return self.digest or self.tag or DEFAULT_TAG


def parse_reference(text: str, *, default_tag: bool = True) -> Reference:
    """Parse `[docker://]HOST[:PORT]/REPO[:TAG][@DIGEST]`, or a short name of Docker Hub.

    Without a tag and a digest, `default_tag` sets the tag "latest".

    Raises:
        InvalidNameError: the text is not a reference. The message says which part is wrong.
    """
    given: object = text
    if not isinstance(given, str):
        msg = f"an image name is text, not {type(given).__name__}"
        raise InvalidNameError(msg)
    rest = text.removeprefix("docker://")
    printed_text = printable(without_password(text))
    if "://" in rest:
        msg = f"malformed image name {printed_text!r}: a URL is not a name"
        raise InvalidNameError(msg, hint="write HOST[:PORT]/REPOSITORY[:TAG][@DIGEST], without http:// or https://")
    rest, separator, digest = rest.partition("@")
    if separator and "/" in digest:
        msg = f"malformed image name {printed_text!r}: a user name is not part of a name"
        raise InvalidNameError(msg, hint="use --username, or `ocistream login HOST`")
    host, repository, tag = _split(rest)
    if tag is None and not separator and default_tag:
        tag = DEFAULT_TAG
    return _check_parts(printed_text, host, repository, tag, digest if separator else None)


def check_reference(reference: Reference) -> Reference:
    """Check the parts of a reference that a program made, and return it as `parse_reference` does.

    Raises:
        InvalidNameError: a part is malformed, or is not text.
    """
    printed_text = printable(without_password(str(reference)))
    optional_parts: tuple[object, ...] = (reference.tag, reference.digest)
    parts = (reference.registry, reference.repository, *(part for part in optional_parts if part is not None))
    if not all(isinstance(part, str) for part in parts):
        msg = f"malformed image name {printed_text!r}: a part is not text"
        raise InvalidNameError(msg)
    return _check_parts(printed_text, reference.registry, reference.repository, reference.tag, reference.digest)


def _check_parts(printed_text: str, host: str, repository: str, tag: str | None, digest: str | None) -> Reference:
    if digest is not None:
        parse_digest(digest)
    registry = _parse_host(host, f"malformed image name {printed_text!r}: {printable(host)!r} is not a registry host")
    if not _REPOSITORY.match(repository) or len(registry) + len(repository) + 1 > _MAX_NAME:
        hint = "repository names are lower case" if repository.lower() != repository else _REPOSITORY_HINT
        msg = f"malformed image name {printed_text!r}: {printable(repository)!r} is not a repository"
        raise InvalidNameError(msg, hint=hint)
    if tag is not None and not _TAG.match(tag):
        msg = f"malformed image name {printed_text!r}: {printable(tag)!r} is not a tag"
        raise InvalidNameError(msg, hint=_TAG_HINT)
    return Reference(registry, repository, tag, digest)


def parse_full_name(name: str) -> Reference | None:
    """Parse a full name, with registry and tag, or return None."""
    try:
        reference = parse_reference(name, default_tag=False)
    except (InvalidNameError, UnsupportedError):
        return None
    return reference if reference.tag and name.startswith(f"{reference.registry}/") else None


def _parse_host(text: str, error_message: str) -> str:
    """Check `HOST[:PORT]` and return it in ASCII. An internationalised name is converted by IDNA 2008.

    `error_message` is the message of the InvalidNameError for an invalid or ambiguous host. Zones of addresses and a
    trailing dot are refused: certificates and credentials do not have them.
    """
    host = text if text.isascii() else _to_ascii(text, error_message)
    name, port = host, "0"
    if not host.endswith("]") and ":" in host:
        name, _, port = host.rpartition(":")
    if "%" in name and name.startswith("["):
        raise InvalidNameError(
            error_message, hint="an address with a zone (%) is valid on one machine only: omit the zone"
        )
    if name.endswith(".") and name.strip("."):
        raise InvalidNameError(error_message, hint="omit the last dot: certificates and credentials do not have it")
    if not _HOST.match(host) or int(port) > _MAX_PORT or (name.startswith("[") and not _is_ipv6(name[1:-1])):
        raise InvalidNameError(error_message, hint=_HOST_HINT)
    return host


def _to_ascii(text: str, error_message: str) -> str:
    """Return an internationalised name in ASCII.

    Only case and composition are normalised. Other mappings of UTS #46 turn some characters into several, or into a dot
    or a slash. Then the name that the user sees is not the host that is asked.
    """
    import unicodedata

    import idna

    name, colon, port = text.rpartition(":")
    if not colon:
        name, port = text, ""
    labels = unicodedata.normalize("NFC", name.lower()).split(".")
    if any(_mixes_scripts(label) for label in labels):
        hint = "one part mixes similar letters of several scripts"
        raise InvalidNameError(error_message, hint=hint)
    try:
        return idna.encode(".".join(labels), std3_rules=True).decode() + colon + port
    except (idna.IDNAError, UnicodeError) as error:
        raise InvalidNameError(error_message) from error


def _mixes_scripts(label: str) -> bool:
    """Return whether a label has letters of two scripts that look alike."""
    import unicodedata

    scripts = {unicodedata.name(letter, "").partition(" ")[0] for letter in label if letter.isalpha()}
    return len(scripts & _CONFUSABLE_SCRIPTS) > 1


def _is_ipv6(text: str) -> bool:
    import ipaddress

    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _split(name: str) -> tuple[str, str, str | None]:
    """Split `[HOST/]REPO[:TAG]` as Docker does.

    The first part is a host if it has a dot or a port, or is "localhost".
    """
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        registry, path = first, rest
    else:
        registry, path = DEFAULT_REGISTRY, name
    repository, colon, tag = path.partition(":")
    if registry in _HUB_ALIASES:
        registry = DEFAULT_REGISTRY
        if repository and "/" not in repository:
            repository = f"library/{repository}"
    return registry, repository, tag if colon else None


def parse_registry(text: str) -> str:
    """Check a registry's `HOST[:PORT]` as `login` and `--to` take it, and return it in its usual spelling.

    Raises:
        InvalidNameError: the text is not a host.
    """
    host = text.removeprefix("https://").removeprefix("http://").rstrip("/")
    host = host.removesuffix("/v1").removesuffix("/v2")
    try:
        host = _parse_host(host, f"malformed registry {printable(without_password(text))!r}")
    except InvalidNameError as error:
        raise InvalidNameError(
            error.message, hint="write HOST[:PORT]" if error.hint == _HOST_HINT else error.hint
        ) from None
    return DEFAULT_REGISTRY if host in _HUB_ALIASES else host
