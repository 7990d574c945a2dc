"""Find, save and erase the credentials of a registry: flags, environment, auth files, credential helpers.

The environment and the home directory are parameters. A secret is never in an error or a repr.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocistream import notices
from ocistream.auth.docker_config import (
    MAX_AUTH_FILE,
    AuthFile,
    Credential,
    check_storable,
    describe_file,
    docker_server_name,
    encode_entry,
    normalize_host,
    with_named_source,
)
from ocistream.auth.tokens import TOKEN_USERNAME
from ocistream.errors import AuthenticationError, UsageError
from ocistream.oci.reference import printable
from ocistream.streams.files import atomic_file, disk_errors, locked_directory, write_all
from ocistream.streams.paths import is_pipe, write_target

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from typing import TypeAlias

    from ocistream.auth.credential_helpers import CredentialHelper

    #: A credential, a helper that may have one, or nothing.
    _Place: TypeAlias = Credential | CredentialHelper | None

#: Podman's directory without XDG_RUNTIME_DIR, as is usual for root and in CI.
PODMAN_RUN_DIRECTORY: Final = Path("/run/containers")

DEFAULT_VARIABLE_PREFIX: Final = "OCISTREAM"
#: The variables that contain a file in Docker's format, and that name one.
_INLINE_VARIABLE: Final = "DOCKER_AUTH_CONFIG"
_FILE_VARIABLE: Final = "REGISTRY_AUTH_FILE"
#: The name of the configuration file in messages.
_CONFIGURATION: Final = "the configuration"
#: Allowed text after the colon of a `CredentialSource`, by its kind.
_SOURCE_PATTERNS: Final = {
    "env": re.compile(r"[A-Za-z_][A-Za-z0-9_]*"),
    "helper": re.compile(r"[a-z0-9-]+"),
    "file": re.compile(r"[^\0]+"),
}


@dataclass(frozen=True, slots=True)
class CredentialSource:
    """The place of one registry's secret: variables that start with `name`, the helper `name`, or the file `name`."""

    #: One of `env`, `helper` and `file`.
    kind: str
    name: str

    def __str__(self) -> str:
        """Return the text that `parse_credential_source` reads."""
        return f"{self.kind}:{self.name}"


def parse_credential_source(text: str) -> CredentialSource:
    """Parse `env:PREFIX`, `helper:NAME` or `file:PATH`.

    Raises:
        UsageError: the text is none of these. The error does not show it, because it may be a password.
    """
    kind, _, name = text.partition(":")
    if kind not in _SOURCE_PATTERNS or not _SOURCE_PATTERNS[kind].fullmatch(name):
        msg = "is not env:PREFIX, helper:NAME or file:PATH"
        hint = (
            "for example env:CI (CI_USERNAME and CI_PASSWORD), helper:ecr-login "
            "(docker-credential-ecr-login), file:auth.json"
        )
        raise UsageError(msg, hint=hint)
    return CredentialSource(kind, name)


class Keychain:
    """Finds credentials, asking each place in the order of `_places`. It stores nothing in memory."""

    def __init__(
        self,
        env: Mapping[str, str],
        *,
        home: Path,
        given: Credential | None = None,
        prefix: str = DEFAULT_VARIABLE_PREFIX,
        named_registries: Collection[str] | None = None,
        configured: Callable[[str], CredentialSource | None] = lambda _host: None,
        auth_file: tuple[Path, str] | None = None,
    ) -> None:
        """Look in `env` and below `home`; `given` overrides everything.

        `prefix` is "OCISTREAM_SRC" or "OCISTREAM_DEST" for the two sides of `copy`. `named_registries` are those that
        the user named (None: all). `given` and the user names of the environment do not say for which registry they
        are: only these registries get them, not a mirror from the configuration. `configured(host)` returns the place
        that the configuration names for a host. `auth_file` is a file in Docker's format and the option that names it
        ("--authfile"). It replaces all other such files, as in skopeo: to use another file would be a choice that the
        user does not see.
        """
        #: The path of the file, and the option that names it.
        self.auth_file = auth_file
        self._env = env
        self._home = home
        self._given = given
        self._prefix = prefix
        self._configured = configured
        self._named_registries = (
            None if named_registries is None else {normalize_host(registry) for registry in named_registries}
        )

    def check_auth_file(self) -> None:
        """Read the file that an option names, so that an error does not depend on whether a registry asks.

        Raises:
            UsageError: the file is malformed.
            LocalDiskError: the file cannot be read.
            AuthenticationError: the file does not exist.
        """
        # A pipe, such as <(COMMAND) of a shell, can be read only once: when a registry asks.
        if self.auth_file is not None and not is_pipe(self.auth_file[0]):
            file = self._load_named(*self.auth_file)
            # Both check the section that they read.
            file.find_helper("")
            file.list_entries("")

    def find(self, registry: str, repository: str = "") -> Credential | None:
        """Return the credential for `repository` at `registry` ("docker.io", "localhost:5000"); None for anonymous.

        Host and port must match exactly. Within a file, the host's own entry of `credHelpers` comes first, then `auths`
        (the longest of `host/ns/repo`, `host/ns`, `host`, as in Podman), then `credsStore`. As in Docker, a host in
        `credHelpers` never asks `credsStore`, and an empty entry there disables helpers for it.

        Raises:
            UsageError: half a pair in the environment, or a malformed auth file (exit code 2). To continue anonymously
                would end in a puzzling 401.
            LocalDiskError: a file cannot be read.
            AuthenticationError: a credential helper failed; or `REGISTRY_AUTH_FILE` or the configuration names a file
                that does not exist.
        """
        host = normalize_host(registry)
        for named_by, places in self._places(host, repository):
            if (credential := _find_first(places, host)) is not None:
                return with_named_source(credential, named_by) if named_by else credential
            if named_by == _CONFIGURATION:
                source = printable(str(self._configured(host)))
                notices.notify(f"{host}: {source} of the configuration has no credential for it")
        return None

    def list_places(self, registry: str) -> list[str]:
        """Return the names of the places that are asked for a registry, in order, up to the first with a credential.

        No helper is run, and no secret is returned.

        Raises:
            UsageError, LocalDiskError, AuthenticationError: as `find`.
        """
        names: dict[str, None] = {}
        for place in itertools.chain.from_iterable(places for _, places in self._places(normalize_host(registry))):
            if isinstance(place, Credential):
                names[place.source] = None
                break
            if place is not None:
                names[place.program] = None
        return list(names)

    def save(self, registry: str, credential: Credential) -> str:
        """Save `credential` for `registry` where Docker would, and return the name of that place.

        If the host has a helper, the helper stores the credential, and Docker's file gets the empty entry that marks
        the login. Otherwise the file stores it. Other entries of the same host are removed, so that none of them is
        found first. The rest of the file stays unchanged.

        Raises:
            UsageError: the credential cannot be written in Docker's format, or its file is malformed.
            LocalDiskError: the file cannot be read or written.
            AuthenticationError: the credential helper failed.
        """
        host = normalize_host(registry)
        check_storable(credential)
        path = self._docker_path()
        file = self._load(path, self._docker_variable()) or AuthFile(self._display_path(path), {})
        helper = self._build_helper(file.find_helper(host), file.description)
        if helper is None:
            self._write_entry(path, host, encode_entry(credential))
            return file.display_name
        token = credential.identity_token
        helper.store(
            docker_server_name(host),
            credential.username if token is None else TOKEN_USERNAME,
            credential.secret if token is None else token,
        )
        self._write_entry(path, host, {})
        return helper.program

    def erase(self, registry: str) -> str | None:
        """Remove the credential of `registry` from Docker's file and its helper; return where it was, or None.

        Entries of single repositories (`host/ns`) are Podman's and stay, as do Podman's own files.

        Raises:
            UsageError, LocalDiskError, AuthenticationError: as `save`.
        """
        host = normalize_host(registry)
        path = self._docker_path()
        file = self._load(path, self._docker_variable())
        if file is None:
            return None
        places = []
        helper = self._build_helper(file.find_helper(host), file.description)
        # Helpers differ in their reply to `erase` for an unknown server; their replies to `get` are alike.
        if helper is not None and helper.get(docker_server_name(host)) is not None:
            helper.erase(docker_server_name(host))
            places.append(helper.program)
        entries = file.list_entries(host)
        if entries:
            self._write_entry(path, host, None)
        if any(fields for _, fields in entries):
            places.append(file.display_name)
        return " and ".join(places) or None

    def _places(self, host: str, repository: str = "") -> Iterator[tuple[str, Iterable[_Place]]]:
        """Yield groups of places in the order in which they are asked, each with the option or variable that names it.

        The name is "" for places that nothing names. A named place replaces or precedes Docker's file, so a new login
        does not override it.
        """
        is_named = self._named_registries is None or host in self._named_registries
        if is_named:
            yield "", [self._given]
        if self.auth_file is not None:
            path, option = self.auth_file
            yield option, self._file_places(self._load_named(path, option), host, repository)
        if is_named:
            yield "", map(self._from_variables, dict.fromkeys((self._prefix, DEFAULT_VARIABLE_PREFIX)))
        if (source := self._configured(host)) is not None:
            yield _CONFIGURATION, self._source_places(source, host, repository)
        if self.auth_file is not None:
            return
        if inline := self._env.get(_INLINE_VARIABLE):
            file = AuthFile.parse(inline.encode(errors="surrogateescape"), _INLINE_VARIABLE)
            yield _INLINE_VARIABLE, self._file_places(file, host, repository)
        if named_path := self._env.get(_FILE_VARIABLE):
            file = self._load_named(Path(named_path), _FILE_VARIABLE)
            yield _FILE_VARIABLE, self._file_places(file, host, repository)
        # Docker's file precedes Podman's, because `login` writes Docker's.
        docker = self._docker_path(), self._docker_variable()
        for path, variable in (docker, *((path, "") for path in self._podman_paths())):
            if (stored := self._load(path, variable)) is not None:
                yield "", self._file_places(stored, host, repository)

    def _from_variables(self, prefix: str) -> Credential | None:
        names = f"{prefix}_USERNAME", f"{prefix}_PASSWORD"
        username, password = (self._env.get(name, "") for name in names)
        if username and password:
            return Credential(username, password, source=names[0], is_named_by_user=True)
        if username or password:
            set_name, missing_name = names if username else names[::-1]
            msg = f"{set_name} is set, but {missing_name} is not"
            raise UsageError(msg, hint="set both or neither")
        return None

    def _source_places(self, source: CredentialSource, host: str, repository: str) -> Iterator[_Place]:
        if source.kind == "env":
            yield self._from_variables(source.name)
        elif source.kind == "helper":
            yield self._build_helper(source.name, _CONFIGURATION)
        else:
            yield from self._file_places(self._load_named(Path(source.name), _CONFIGURATION), host, repository)

    def _file_places(self, file: AuthFile, host: str, repository: str) -> Iterator[_Place]:
        host_helper = file.find_host_helper(host)
        yield self._build_helper(host_helper, file.description)
        yield file.find_entry(host, repository)
        if host_helper is None:
            yield self._build_helper(file.find_default_helper(), file.description)

    def _build_helper(self, name: str | None, configured_in: str) -> CredentialHelper | None:
        if not name:
            return None
        from ocistream.auth.credential_helpers import CredentialHelper

        return CredentialHelper(name, self._env, configured_in)

    def _docker_path(self) -> Path:
        if self.auth_file is not None:
            return self.auth_file[0]
        directory = self._env.get("DOCKER_CONFIG")
        return (Path(directory) if directory else self._home / ".docker") / "config.json"

    def _docker_variable(self) -> str:
        """Return the variable that names Docker's directory, or "" for the default directory or another file."""
        return "DOCKER_CONFIG" if self.auth_file is None and self._env.get("DOCKER_CONFIG") else ""

    def _podman_paths(self) -> Iterator[Path]:
        runtime = self._env.get("XDG_RUNTIME_DIR")
        if runtime:
            yield Path(runtime) / "containers" / "auth.json"
        else:
            yield PODMAN_RUN_DIRECTORY / str(os.getuid()) / "auth.json"
        # A relative path is used too, as in Podman's tools (skopeo 1.9).
        config = self._env.get("XDG_CONFIG_HOME")
        yield (Path(config) if config else self._home / ".config") / "containers" / "auth.json"

    def _display_path(self, path: Path) -> str:
        if path.is_relative_to(self._home):
            return f"~/{path.relative_to(self._home)}"
        return str(path)

    def _load_named(self, path: Path, named_by: str) -> AuthFile:
        variable = named_by if named_by == _FILE_VARIABLE else ""
        file = self._load(path, variable)
        if file is None:
            # Not a NotFoundError (exit code 4), which would speak of the image.
            msg = f"{named_by} names {self._display_path(path)}, which does not exist"
            raise AuthenticationError(
                msg, hint=f"correct {named_by}, or unset it" if variable else f"correct {named_by}"
            )
        return file

    def _load(self, path: Path, variable: str = "") -> AuthFile | None:
        display_name = self._display_path(path)
        with disk_errors(f"cannot read {describe_file(display_name, variable)}"):
            try:
                with path.open("rb") as file:
                    raw = file.read(MAX_AUTH_FILE + 1)
            except (FileNotFoundError, NotADirectoryError):
                return None
        return AuthFile.parse(raw, display_name, variable)

    def _write_entry(self, path: Path, host: str, entry: dict[str, str] | None) -> None:
        """Replace all entries of `host` in the file at `path` by `entry`; None removes them."""
        # A config.json that is a link, such as into a directory of dot files, stays a link: its target is replaced.
        target = write_target(path)
        with disk_errors(f"cannot write {self._display_path(path)}"):
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with locked_directory(target.parent):
                file = self._load(path) or AuthFile(self._display_path(path), {})
                fields = file.with_entry(host, entry)
                if fields != file.fields:
                    with atomic_file(target, mode=0o600) as out:
                        write_all(out, json.dumps(fields, indent="\t").encode())


def _find_first(places: Iterable[_Place], host: str) -> Credential | None:
    """Return the first credential of a host, and ask the helpers that come before it."""
    for place in places:
        if isinstance(place, Credential):
            return place
        if place is not None and (login := place.get(docker_server_name(host))) is not None:
            username, secret = login
            if username == TOKEN_USERNAME:
                return Credential(username, "", secret, place.program)
            return Credential(username, secret, None, place.program)
    return None
