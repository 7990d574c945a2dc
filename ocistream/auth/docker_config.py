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

#: Maximum size of an auth file and of `DOCKER_AUTH_CONFIG`, in bytes.
MAX_AUTH_FILE: Final = 1024 * 1024
#: Docker Hub's name in Docker's file and helpers.
_HUB_SERVER: Final = "https://index.docker.io/v1/"
_SECRET_FIELDS: Final = frozenset({"auth", "identitytoken", "registrytoken", "username", "password"})


@dataclass(frozen=True, slots=True)
class Credential:
    """A username with a secret, or a token, for a registry or its token server.

    `secret` is a password, or "" with a token. An `identity_token` is for the token server, which issued it at `docker
    login`; a `registry_token` is for the registry itself. `source` is where the credential was found, for messages:
    "--username", "OCISTREAM_USERNAME", "~/.docker/config.json", "docker-credential-pass". `is_named_by_user` says that
    an option, a variable or a file of the user names this source, so that `login` does not override it.
    """

    username: str
    secret: str = field(repr=False)
    identity_token: str | None = field(default=None, repr=False)
    source: str = ""
    registry_token: str | None = field(default=None, repr=False)
    is_named_by_user: bool = False

    def __post_init__(self) -> None:
        """Raise UsageError for a wrong type, without the value, which may be a secret."""
        texts: tuple[object, ...] = (self.username, self.secret, self.source)
        tokens: tuple[object, ...] = (self.identity_token, self.registry_token)
        for value in (*texts, *(token for token in tokens if token is not None)):
            if not isinstance(value, str):
                msg = f"the parts of a Credential must be text, not {type(value).__name__}"
                raise UsageError(msg)


def with_named_source(credential: Credential, named_by: str) -> Credential:
    """Return a credential whose source is named by `named_by`, such as the configuration, or is `named_by` itself."""
    own = credential.source
    return replace(
        credential, source=own if own == named_by else f"{own}, which {named_by} names", is_named_by_user=True
    )


def normalize_host(registry: str) -> str:
    """Return a registry's host and port in one spelling for comparisons; Docker Hub's aliases become one."""
    return parse_registry(registry.lower())


def docker_server_name(host: str) -> str:
    """Return the name of `host` in Docker's file and helpers."""
    return _HUB_SERVER if host == DEFAULT_REGISTRY else host


def _parse_key(key: str) -> str | None:
    """Parse a key of `auths` or `credHelpers` as `HOST[/PATH]`; return None if it names no registry.

    Docker's old forms (`https://HOST/v1/`, `https://HOST`) mean the complete host. Any other path limits the key:
    otherwise the secret of one project would be shown to all projects of the host.
    """
    host, _, path = key.removeprefix("https://").removeprefix("http://").rstrip("/").partition("/")
    try:
        host = normalize_host(host)
    except InvalidNameError:
        return None
    return host if path in {"", "v1", "v2"} else f"{host}/{path}"


@dataclass(frozen=True, slots=True)
class AuthFile:
    """A document in Docker's format. `display_name` is its name in messages, `fields` its contents.

    `variable` is the environment variable that names the file, or "". Errors show the variable after the file.
    """

    display_name: str
    fields: dict[str, Any] = field(repr=False)
    variable: str = ""

    @classmethod
    def parse(cls, raw: bytes, display_name: str, variable: str = "") -> AuthFile:
        """Parse a document; an empty one has no fields, as in Docker.

        Raises:
            UsageError: the document is malformed or too large.
        """
        if not raw.strip():
            return cls(display_name, {}, variable)
        try:
            return cls(display_name, parse_json(raw, describe_file(display_name, variable), MAX_AUTH_FILE), variable)
        except ArchiveError as error:
            # Without its cause, which contains the document and its secrets.
            raise UsageError(error.message, hint="correct it, or move it and log in again") from None

    @property
    def description(self) -> str:
        """The document's name in errors: the file, and the variable that names the file."""
        return describe_file(self.display_name, self.variable)

    def find_host_helper(self, host: str) -> str | None:
        """Return the helper of this host; "" if helpers are disabled for it, None if `find_default_helper` applies."""
        helpers = self._section("credHelpers")
        for key in helpers:
            if _parse_key(key) == host:
                return _read_text(helpers, key, f"{self.description}: credHelpers")
        return None

    def find_default_helper(self) -> str:
        """Return the helper of all other hosts, "" for none."""
        return _read_text(self.fields, "credsStore", self.description)

    def find_helper(self, host: str) -> str:
        """Return the helper that stores the secrets of `host`, "" for none."""
        host_helper = self.find_host_helper(host)
        return self.find_default_helper() if host_helper is None else host_helper

    def find_entry(self, host: str, repository: str) -> Credential | None:
        """Return the credential of `auths` with the longest key that contains `host`/`repository`."""
        scope = f"{host}/{repository}" if repository else host
        while scope:
            for key, fields in self.list_entries(scope):
                credential = self._parse_entry(key, fields)
                if credential is not None:
                    return credential
            scope = scope.rpartition("/")[0]
        return None

    def list_entries(self, scope: str) -> list[tuple[str, dict[str, Any]]]:
        """Return the entries of `auths` for `scope` itself; the key that Docker writes comes first."""
        auths = self._section("auths")
        keys = sorted(
            (key for key in auths if _parse_key(key) == scope), key=lambda key: key != docker_server_name(scope)
        )
        return [(key, _read_object(auths[key], self._where(key))) for key in keys]

    def with_entry(self, host: str, entry: dict[str, str] | None) -> dict[str, Any]:
        """Return all fields with `entry` as the only entry of `host`, or without any entry if it is None."""
        auths = {key: value for key, value in self._section("auths").items() if _parse_key(key) != host}
        if entry is not None:
            old_entry = dict(self.list_entries(host)).get(docker_server_name(host), {})
            other_fields = {name: value for name, value in old_entry.items() if name not in _SECRET_FIELDS}
            auths[docker_server_name(host)] = other_fields | entry
        return self.fields | {"auths": auths}

    def _section(self, name: str) -> dict[str, Any]:
        return _read_object(self.fields.get(name), f"{self.description}: {name}")

    def _where(self, key: str) -> str:
        return f"{self.description}: auths of {printable(key)}"

    def _parse_entry(self, key: str, fields: dict[str, Any]) -> Credential | None:
        where = self._where(key)
        token, auth = (_read_text(fields, name, where) for name in ("identitytoken", "auth"))
        registry_token = _read_text(fields, "registrytoken", where)
        username, password = (_read_text(fields, name, where) for name in ("username", "password"))
        if auth:
            username, password = _decode_auth(auth, where)
        if token:
            return Credential(username, "", token, self.display_name)
        if registry_token:
            return Credential(username, "", None, self.display_name, registry_token)
        return Credential(username, password, None, self.display_name) if username or password else None


def describe_file(display_name: str, variable: str) -> str:
    """Return the name of a file in errors, with the environment variable that names the file."""
    return f"{display_name} (named by {variable})" if variable else display_name


def _read_object(value: object, where: str) -> dict[str, Any]:
    """Return a JSON object; null becomes an empty one, as in Docker."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        msg = f"{where} is not a JSON object"
        raise UsageError(msg, hint="correct the file, or move it and log in again")
    return value


def _read_text(fields: Mapping[str, Any], name: str, where: str) -> str:
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        msg = f"{where}: {printable(name)} is not a string"
        raise UsageError(msg)
    return value


def _decode_auth(auth: str, where: str) -> tuple[str, str]:
    """Return the user and password of base64 `user:password`.

    The password may contain colons. Docker strips NULs around it.
    """
    try:
        plain = base64.b64decode("".join(auth.split()), validate=True)
    except (binascii.Error, ValueError):
        plain = b""
    username, colon, password = plain.partition(b":")
    if not colon:
        msg = f"{where}: auth is not base64 of user:password"
        raise UsageError(msg, hint="log in again")
    # A password may be any bytes: surrogateescape sends them unchanged.
    return username.decode(errors="surrogateescape"), password.strip(b"\0").decode(errors="surrogateescape")


def encode_entry(credential: Credential) -> dict[str, str]:
    """Return Docker's entry for a credential that passed `check_storable`."""
    token = credential.identity_token
    auth = base64.b64encode(f"{credential.username}:{credential.secret}".encode()).decode()
    if token is None:
        return {"auth": auth}
    # Docker refuses an `auth` without a user name, and an identity token needs none.
    return {"auth": auth, "identitytoken": token} if credential.username else {"identitytoken": token}


def check_storable(credential: Credential) -> None:
    """Refuse a credential that would be read differently from Docker's file or from a helper.

    Raises:
        UsageError: the user name is empty or contains a colon, or a part is not UTF-8.
    """
    if ":" in credential.username or not (credential.username or credential.identity_token):
        msg = "a user name that is empty or contains a colon cannot be saved"
        raise UsageError(msg)
    try:
        f"{credential.username}{credential.secret}{credential.identity_token}".encode()
    except UnicodeEncodeError:
        msg = "a user name or password that is not UTF-8 cannot be saved"
        # Without its cause, which contains the password.
        raise UsageError(msg) from None
