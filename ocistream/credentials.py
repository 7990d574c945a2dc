"""Where secrets come from, and where `login` puts them: flags, environment, auth files, credential helpers.

`Keychain.find` asks, in this order, and the first that knows the registry wins:

1. what the command line gave, for the registries that the user named;
2. `<prefix>_USERNAME` and `<prefix>_PASSWORD`, then `OCISTREAM_USERNAME` and `OCISTREAM_PASSWORD`, for the same;
3. `DOCKER_AUTH_CONFIG`, a whole document of Docker's format (as GitLab's runners and Docker have it);
4. the file that `REGISTRY_AUTH_FILE` names;
5. Docker's file, `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`. It comes before Podman's since
   `login` writes there: what was just typed must not lose against an older file;
6. Podman's files (containers-auth.json(5)), `$XDG_RUNTIME_DIR/containers/auth.json` (or the one in
   `/run/containers/<uid>`), then `$XDG_CONFIG_HOME/containers/auth.json`.

This room knows no network and no `os.environ`: the environment and the home directory are handed in. A secret
leaves it in a `Credential` only, never in an error or a repr.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ocistream.credential_helper import CredentialHelper
from ocistream.errors import ArchiveError, InvalidNameError, NotFoundError, UsageError
from ocistream.files import atomic_file, disk_errors, locked_directory, write_all
from ocistream.reference import DEFAULT_REGISTRY, parse_registry, printable
from ocistream.strict_json import parse_json

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

__all__ = ["Credential", "Keychain"]

#: Bytes of an auth file, and of `DOCKER_AUTH_CONFIG`.
MAX_AUTH_FILE: Final = 1024 * 1024
#: Where Podman keeps its file when there is no XDG_RUNTIME_DIR, as is usual for root and in CI.
PODMAN_RUN_DIRECTORY: Final = Path("/run/containers")

DEFAULT_PREFIX: Final = "OCISTREAM"
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
    "--username", "OCISTREAM_USERNAME", "~/.docker/config.json", "docker-credential-pass".
    """

    username: str
    secret: str = field(repr=False)
    identity_token: str | None = field(default=None, repr=False)
    source: str = ""
    registry_token: str | None = field(default=None, repr=False)


class Keychain:
    """The places that hold credentials, asked in the order of this module's docstring. It keeps nothing."""

    def __init__(
        self,
        env: Mapping[str, str],
        *,
        home: Path,
        explicit: Credential | None = None,
        prefix: str = DEFAULT_PREFIX,
        named: Collection[str] | None = None,
    ) -> None:
        """Look in `env` and below `home`; `explicit` beats everything.

        `prefix` is "OCISTREAM_SRC" or "OCISTREAM_DEST" for the two sides of `copy`. `named` are the registries that
        the user named (None: all there are): what has no registry's name with it, `explicit` and the user names of
        the environment, is for those alone, and not for a mirror or another location that a configuration names.
        """
        self._env = env
        self._home = home
        self._explicit = explicit
        self._prefix = prefix
        self._named = None if named is None else {_host(registry) for registry in named}

    def find(self, registry: str, repository: str = "") -> Credential | None:
        """Find what to show to `registry` ("docker.io", "localhost:5000") for `repository`; None: anonymous.

        Host and port must match exactly. Within a file the host's own entry of `credHelpers` is asked first,
        then `auths` (the longest of `host/ns/repo`, `host/ns`, `host`, as Podman has it), then `credsStore`.
        As with Docker, a host that has an entry in `credHelpers` never asks `credsStore`, and an empty entry
        there switches helpers off for it.

        Raises:
            UsageError: half a pair in the environment, or a malformed auth file. It is the user's to correct,
                so this is exit 2; going on without it would end as a puzzling refusal by the registry.
            NotFoundError: `REGISTRY_AUTH_FILE` names a file that is not there.
            LocalDiskError: a file cannot be read.
            AuthenticationError: a credential helper failed.
        """
        host = _host(registry)
        if self._named is None or host in self._named:
            found = self._explicit or self._from_environment()
            if found is not None:
                return found
        for file in self._files():
            found = self._from_file(file, host, repository)
            if found is not None:
                return found
        return None

    def save(self, registry: str, credential: Credential) -> str:
        """Keep `credential` for `registry` where Docker would, and say where that was.

        With a helper configured for the host it goes there, and Docker's file gets the empty entry by which
        Docker knows of the login; otherwise the file holds it. Older entries of the same host go, so that
        none of them is found first. Everything else in the file stays as it is.

        Raises:
            UsageError: the credential cannot be written in Docker's format, or its file is malformed.
            LocalDiskError: the file cannot be read or written.
            AuthenticationError: the credential helper failed.
        """
        host = _host(registry)
        _check_storable(credential)
        path = self._docker_path()
        file = self._load(path) or _AuthFile(self._shown(path), {})
        helper = self._helper(file.helper_of(host), file)
        if helper is None:
            self._replace(path, host, _entry_of(credential))
            return file.shown
        token = credential.identity_token
        helper.store(
            _server(host),
            credential.username if token is None else TOKEN_USERNAME,
            credential.secret if token is None else token,
        )
        self._replace(path, host, {})
        return helper.program

    def erase(self, registry: str) -> str | None:
        """Forget what Docker's file and its helper hold for `registry`; say where it was, None: nowhere.

        Entries of single repositories (`host/ns`) are Podman's and stay, as do Podman's own files.

        Raises:
            UsageError, LocalDiskError, AuthenticationError: as `save`.
        """
        host = _host(registry)
        path = self._docker_path()
        file = self._load(path)
        if file is None:
            return None
        places = []
        helper = self._helper(file.helper_of(host), file)
        # Helpers differ in what they answer to `erase` when there is nothing; to `get` they all answer alike.
        if helper is not None and helper.get(_server(host)) is not None:
            helper.erase(_server(host))
            places.append(helper.program)
        entries = file.entries_of(host)
        if entries:
            self._replace(path, host, None)
        if any(fields for _, fields in entries):
            places.append(file.shown)
        return " and ".join(places) or None

    def _from_environment(self) -> Credential | None:
        for prefix in dict.fromkeys((self._prefix, DEFAULT_PREFIX)):
            names = f"{prefix}_USERNAME", f"{prefix}_PASSWORD"
            username, password = (self._env.get(name, "") for name in names)
            if username and password:
                return Credential(username, password, source=names[0])
            if username or password:
                given, missing = names if username else names[::-1]
                msg = f"{given} is set, but {missing} is not"
                raise UsageError(msg, hint="set both or neither")
        return None

    def _files(self) -> Iterator[_AuthFile]:
        inline = self._env.get("DOCKER_AUTH_CONFIG")
        if inline:
            yield _AuthFile.parse(inline.encode(errors="surrogateescape"), "DOCKER_AUTH_CONFIG")
        named = self._env.get("REGISTRY_AUTH_FILE")
        if named:
            yield self._load_named(Path(named))
        for path in (self._docker_path(), *self._podman_paths()):
            file = self._load(path)
            if file is not None:
                yield file

    def _from_file(self, file: _AuthFile, host: str, repository: str) -> Credential | None:
        own = file.own_helper(host)
        found = self._ask(own, file, host) or file.entry(host, repository)
        if found is None and own is None:
            found = self._ask(file.default_helper(), file, host)
        return found

    def _ask(self, name: str | None, file: _AuthFile, host: str) -> Credential | None:
        helper = self._helper(name, file)
        answer = helper.get(_server(host)) if helper is not None else None
        if helper is None or answer is None:
            return None
        username, secret = answer
        if username == TOKEN_USERNAME:
            return Credential(username, "", secret, helper.program)
        return Credential(username, secret, None, helper.program)

    def _helper(self, name: str | None, file: _AuthFile) -> CredentialHelper | None:
        return CredentialHelper(name, self._env, file.shown) if name else None

    def _docker_path(self) -> Path:
        directory = self._env.get("DOCKER_CONFIG")
        return (Path(directory) if directory else self._home / ".docker") / "config.json"

    def _podman_paths(self) -> Iterator[Path]:
        runtime = self._env.get("XDG_RUNTIME_DIR")
        if runtime:
            yield Path(runtime) / "containers" / "auth.json"
        else:
            yield PODMAN_RUN_DIRECTORY / str(os.getuid()) / "auth.json"
        config = self._env.get("XDG_CONFIG_HOME")
        yield (Path(config) if config else self._home / ".config") / "containers" / "auth.json"

    def _shown(self, path: Path) -> str:
        if path.is_relative_to(self._home):
            return f"~/{path.relative_to(self._home)}"
        return str(path)

    def _load_named(self, path: Path) -> _AuthFile:
        file = self._load(path)
        if file is None:
            msg = f"REGISTRY_AUTH_FILE names {self._shown(path)}, which is not there"
            raise NotFoundError(msg, hint="correct REGISTRY_AUTH_FILE, or unset it")
        return file

    def _load(self, path: Path) -> _AuthFile | None:
        shown = self._shown(path)
        with disk_errors(f"cannot read {shown}"):
            try:
                with path.open("rb") as file:
                    raw = file.read(MAX_AUTH_FILE + 1)
            except (FileNotFoundError, NotADirectoryError):
                return None
        return _AuthFile.parse(raw, shown)

    def _replace(self, path: Path, host: str, entry: dict[str, str] | None) -> None:
        """Put `entry` in place of all that `path` holds for `host`; None removes it."""
        # A config.json that is a link into a folder of dot files stays one: its target is replaced.
        target = path.resolve()
        with disk_errors(f"cannot write {self._shown(path)}"):
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with locked_directory(target.parent):
                file = self._load(path) or _AuthFile(self._shown(path), {})
                fields = file.with_entry(host, entry)
                if fields != file.fields:
                    with atomic_file(target, mode=0o600) as out:
                        write_all(out, json.dumps(fields, indent="\t").encode())


def _host(registry: str) -> str:
    """Give a registry's host and port in the one spelling that is compared; Docker Hub's aliases are one."""
    return parse_registry(registry.lower())


def _server(host: str) -> str:
    """Give the name by which Docker's file and the helpers know `host`."""
    return _HUB_SERVER if host == DEFAULT_REGISTRY else host


def _scope(key: str) -> str | None:
    """Read a key of `auths` or `credHelpers` as `HOST[/PATH]`; None for one that names no registry.

    Docker's old forms (`https://HOST/v1/`, `https://HOST`) mean the whole host. Another path limits the key:
    taken for the whole host, it would show one project's secret to all of them.
    """
    host, _, path = key.removeprefix("https://").removeprefix("http://").rstrip("/").partition("/")
    try:
        host = _host(host)
    except InvalidNameError:
        return None
    return host if path in {"", "v1", "v2"} else f"{host}/{path}"


@dataclass(frozen=True, slots=True)
class _AuthFile:
    """One document of Docker's format: `shown` names it in errors, `fields` is all that it says."""

    shown: str
    fields: dict[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, raw: bytes, shown: str) -> _AuthFile:
        """Read a document; an empty one says nothing, as for Docker.

        Raises:
            UsageError: it is malformed or too large.
        """
        if not raw.strip():
            return cls(shown, {})
        try:
            return cls(shown, parse_json(raw, shown, MAX_AUTH_FILE))
        except ArchiveError as error:
            # Without its cause, which holds the document and so the secrets.
            raise UsageError(error.what, hint="correct it, or move it away and log in again") from None

    def own_helper(self, host: str) -> str | None:
        """The helper of this host alone; "" switches helpers off, None leaves it to `default_helper`."""
        helpers = self._section("credHelpers")
        for key in helpers:
            if _scope(key) == host:
                return _text(helpers, key, f"{self.shown}: credHelpers")
        return None

    def default_helper(self) -> str:
        """The helper of all other hosts, "" for none."""
        return _text(self.fields, "credsStore", self.shown)

    def helper_of(self, host: str) -> str:
        """The one helper that keeps the secrets of `host`, "" for none."""
        own = self.own_helper(host)
        return self.default_helper() if own is None else own

    def entry(self, host: str, repository: str) -> Credential | None:
        """The credential in `auths` whose key is the longest that `host`/`repository` lies in."""
        scope = f"{host}/{repository}" if repository else host
        while scope:
            for key, fields in self.entries_of(scope):
                found = self._credential(key, fields)
                if found is not None:
                    return found
            scope = scope.rpartition("/")[0]
        return None

    def entries_of(self, scope: str) -> list[tuple[str, dict[str, Any]]]:
        """The entries of `auths` for `scope` itself, the one that Docker would write first."""
        auths = self._section("auths")
        keys = sorted((key for key in auths if _scope(key) == scope), key=lambda key: key != _server(scope))
        return [(key, _object(auths[key], self._where(key))) for key in keys]

    def with_entry(self, host: str, entry: dict[str, str] | None) -> dict[str, Any]:
        """Give all fields, with `entry` as the only one of `host`; None leaves it with none."""
        auths = {key: value for key, value in self._section("auths").items() if _scope(key) != host}
        if entry is not None:
            before = dict(self.entries_of(host)).get(_server(host), {})
            kept = {name: value for name, value in before.items() if name not in _SECRET_FIELDS}
            auths[_server(host)] = kept | entry
        return self.fields | {"auths": auths}

    def _section(self, name: str) -> dict[str, Any]:
        return _object(self.fields.get(name), f"{self.shown}: {name}")

    def _where(self, key: str) -> str:
        return f"{self.shown}: auths of {printable(key)}"

    def _credential(self, key: str, fields: dict[str, Any]) -> Credential | None:
        where = self._where(key)
        token, auth = (_text(fields, name, where) for name in ("identitytoken", "auth"))
        registry_token = _text(fields, "registrytoken", where)
        username, password = (_text(fields, name, where) for name in ("username", "password"))
        if auth:
            username, password = _decode_auth(auth, where)
        if token:
            return Credential(username, "", token, self.shown)
        if registry_token:
            return Credential(username, "", None, self.shown, registry_token)
        return Credential(username, password, None, self.shown) if username or password else None


def _object(value: object, where: str) -> dict[str, Any]:
    """Take a JSON object, or null as an empty one, which is how Docker reads it."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        msg = f"{where} is not a JSON object"
        raise UsageError(msg)
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


def _entry_of(credential: Credential) -> dict[str, str]:
    token = credential.identity_token
    auth = base64.b64encode(f"{credential.username}:{credential.secret}".encode()).decode()
    if token is None:
        return {"auth": auth}
    # Docker refuses an `auth` without a user name, and needs none beside an identity token.
    return {"auth": auth, "identitytoken": token} if credential.username else {"identitytoken": token}


def _check_storable(credential: Credential) -> None:
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
