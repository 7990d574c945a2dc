"""Docker's credential file format: parse and write the entries of a host. No file access."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from ocistream.errors import ArchiveError, InvalidNameError, UsageError
from ocistream.oci.reference import DEFAULT_REGISTRY, parse_registry, printable
from ocistream.oci.strict_json import parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "AuthFile",
    "Credential",
    "check_storable",
    "describe_file",
    "docker_server_name",
    "encode_entry",
    "normalize_host",
    "with_named_source",
]

#: Bytes of an auth file, and of `DOCKER_AUTH_CONFIG`.
MAX_AUTH_FILE: Final = 1024 * 1024
#: The user name by which a helper says that its secret is an identity token.
TOKEN_USERNAME: Final = "<token>"  # noqa: S105 - it marks a secret and is none
#: What Docker calls Docker Hub in its file and to its helpers.
_HUB_SERVER: Final = "https://index.docker.io/v1/"
_SECRET_FIELDS: Final = frozenset({"auth", "identitytoken", "registrytoken", "username", "password"})


@dataclass(frozen=True, slots=True)
class Credential:
    """What is shown to a registry or its token server.

    `secret` is a password, or "" where there is an `identity_token` (a token for the token server, which gave it at
    `docker login`) or a `registry_token` (one for the registry itself). `source` says for people where it was found:
    "--username", "OCISTREAM_USERNAME", "~/.docker/config.json", "docker-credential-pass". `is_named` says that an
    option or a file of the user's named that place, so that it is asked before what `login` keeps.
    """

    username: str
    secret: str = field(repr=False)
    identity_token: str | None = field(default=None, repr=False)
    source: str = ""
    registry_token: str | None = field(default=None, repr=False)
    is_explicit: bool = False


def with_named_source(credential: Credential, by: str) -> Credential:
    """Return a credential whose source `by` named, such as the configuration."""
    return replace(credential, source=f"{credential.source}, which {by} names", is_explicit=True)


def normalize_host(registry: str) -> str:
    """Give a registry's host and port in the one spelling that is compared; Docker Hub's aliases are one."""
    return parse_registry(registry.lower())


def docker_server_name(host: str) -> str:
    """Give the name by which Docker's file and the helpers know `host`."""
    return _HUB_SERVER if host == DEFAULT_REGISTRY else host


def _parse_key(key: str) -> str | None:
    """Read a key of `auths` or `credHelpers` as `HOST[/PATH]`; None for one that names no registry.

    Docker's old forms (`https://HOST/v1/`, `https://HOST`) mean the whole host. Another path limits the key:
    taken for the whole host, it would show one project's secret to all of them.
    """
    host, _, path = key.removeprefix("https://").removeprefix("http://").rstrip("/").partition("/")
    try:
        host = normalize_host(host)
    except InvalidNameError:
        return None
    return host if path in {"", "v1", "v2"} else f"{host}/{path}"


@dataclass(frozen=True, slots=True)
class AuthFile:
    """One document of Docker's format: `shown` names it, `fields` is all that it says.

    `variable` is the environment variable that names the file, or "". Errors name the variable beside the file.
    """

    display_name: str
    fields: dict[str, Any] = field(repr=False)
    variable: str = ""

    @classmethod
    def parse(cls, raw: bytes, shown: str, variable: str = "") -> AuthFile:
        """Read a document; an empty one says nothing, as for Docker.

        Raises:
            UsageError: it is malformed or too large.
        """
        if not raw.strip():
            return cls(shown, {}, variable)
        try:
            return cls(shown, parse_json(raw, describe_file(shown, variable), MAX_AUTH_FILE), variable)
        except ArchiveError as error:
            # Without its cause, which holds the document and so the secrets.
            raise UsageError(error.message, hint="correct it, or move it away and log in again") from None

    @property
    def description(self) -> str:
        """The document's name in errors: the file, and the variable that names the file."""
        return describe_file(self.display_name, self.variable)

    def host_helper(self, host: str) -> str | None:
        """The helper of this host alone; "" switches helpers off, None leaves it to `default_helper`."""
        helpers = self._section("credHelpers")
        for key in helpers:
            if _parse_key(key) == host:
                return _text(helpers, key, f"{self.description}: credHelpers")
        return None

    def default_helper(self) -> str:
        """The helper of all other hosts, "" for none."""
        return _text(self.fields, "credsStore", self.description)

    def find_helper(self, host: str) -> str:
        """The one helper that keeps the secrets of `host`, "" for none."""
        own = self.host_helper(host)
        return self.default_helper() if own is None else own

    def find_entry(self, host: str, repository: str) -> Credential | None:
        """The credential in `auths` whose key is the longest that `host`/`repository` lies in."""
        scope = f"{host}/{repository}" if repository else host
        while scope:
            for key, fields in self.list_entries(scope):
                found = self._credential(key, fields)
                if found is not None:
                    return found
            scope = scope.rpartition("/")[0]
        return None

    def list_entries(self, scope: str) -> list[tuple[str, dict[str, Any]]]:
        """The entries of `auths` for `scope` itself, the one that Docker would write first."""
        auths = self._section("auths")
        keys = sorted(
            (key for key in auths if _parse_key(key) == scope), key=lambda key: key != docker_server_name(scope)
        )
        return [(key, _object(auths[key], self._where(key))) for key in keys]

    def with_entry(self, host: str, entry: dict[str, str] | None) -> dict[str, Any]:
        """Give all fields, with `entry` as the only one of `host`; None leaves it with none."""
        auths = {key: value for key, value in self._section("auths").items() if _parse_key(key) != host}
        if entry is not None:
            before = dict(self.list_entries(host)).get(docker_server_name(host), {})
            kept = {name: value for name, value in before.items() if name not in _SECRET_FIELDS}
            auths[docker_server_name(host)] = kept | entry
        return self.fields | {"auths": auths}

    def _section(self, name: str) -> dict[str, Any]:
        return _object(self.fields.get(name), f"{self.description}: {name}")

    def _where(self, key: str) -> str:
        return f"{self.description}: auths of {printable(key)}"

    def _credential(self, key: str, fields: dict[str, Any]) -> Credential | None:
        where = self._where(key)
        token, auth = (_text(fields, name, where) for name in ("identitytoken", "auth"))
        registry_token = _text(fields, "registrytoken", where)
        username, password = (_text(fields, name, where) for name in ("username", "password"))
        if auth:
            username, password = _decode_auth(auth, where)
        if token:
            return Credential(username, "", token, self.display_name)
        if registry_token:
            return Credential(username, "", None, self.display_name, registry_token)
        return Credential(username, password, None, self.display_name) if username or password else None


def describe_file(shown: str, variable: str) -> str:
    """Give the name of a file in errors, with the environment variable that names the file."""
    return f"{shown} (named by {variable})" if variable else shown


def _object(value: object, where: str) -> dict[str, Any]:
    """Take a JSON object, or null as an empty one, which is how Docker reads it."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        msg = f"{where} is not a JSON object"
        raise UsageError(msg, hint="correct it, or move the file away and log in again")
    return value


def _text(fields: Mapping[str, Any], name: str, where: str) -> str:
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        msg = f"{where}: {printable(name)} is not a string"
        raise UsageError(msg)
    return value


def _decode_auth(auth: str, where: str) -> tuple[str, str]:
    """Split base64 of `user:password`; the password may hold colons, and Docker drops NULs around it."""
    try:
        plain = base64.b64decode("".join(auth.split()), validate=True)
    except (binascii.Error, ValueError):
        plain = b""
    username, colon, password = plain.partition(b":")
    if not colon:
        msg = f"{where}: auth is not base64 of user:password"
        raise UsageError(msg, hint="log in again")
    # A password need not be UTF-8: its bytes go out as they came in.
    return username.decode(errors="surrogateescape"), password.strip(b"\0").decode(errors="surrogateescape")


def encode_entry(credential: Credential) -> dict[str, str]:
    """Write a credential as Docker does; it has been found to be storable."""
    token = credential.identity_token
    auth = base64.b64encode(f"{credential.username}:{credential.secret}".encode()).decode()
    if token is None:
        return {"auth": auth}
    # Docker refuses an `auth` without a user name, and needs none beside an identity token.
    return {"auth": auth, "identitytoken": token} if credential.username else {"identitytoken": token}


def check_storable(credential: Credential) -> None:
    """Refuse what would come out of Docker's file or of a helper as something else.

    Raises:
        UsageError: the user name is empty or holds a colon, or something is not text.
    """
    if ":" in credential.username or not (credential.username or credential.identity_token):
        msg = "a user name that is empty or holds a colon cannot be saved"
        raise UsageError(msg)
    try:
        f"{credential.username}{credential.secret}{credential.identity_token}".encode()
    except UnicodeEncodeError:
        msg = "a user name or password that is not UTF-8 cannot be saved"
        # Without its cause, which holds the password.
        raise UsageError(msg) from None
