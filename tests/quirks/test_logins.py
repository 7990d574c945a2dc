"""Where a login is stored, in which form, and what else in a file stays unchanged. Statement 56."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.cli import assertions
from tests.faulty_auth import Basic
from tests.quirks.credential_probe import HUB, Home, encoded, entry, write
from tests.quirks.fixture_types import Start
from tests.quirks.statements import quirk

pytestmark = quirk(56)


@pytest.fixture
def member(start: Start, tmp_path: Path) -> Home:
    """Return the home of alice, whom the registry admits."""
    home = Home(tmp_path / "home", tmp_path / "bin", start(auth=Basic("alice", "se:cret")))
    write(home.config, f'[registry."docker.io"]\nurl = "{home.registry.url}"\n')
    return home


def login(home: Home, registry: str = "") -> str:
    """Log in, and return stderr."""
    result = home.run("login", registry or home.host, "-u", "alice", "--password-stdin", stdin=b"se:cret")
    assertions.success(result)
    return result.err


def logout(home: Home) -> str:
    result = home.run("logout", home.host)
    assertions.success(result)
    return result.err


@pytest.mark.parametrize("registry", ["docker.io", "index.docker.io", ""])
def test_a_login_is_stored_as_docker_stores_it_in_a_private_file(registry: str, member: Home) -> None:
    login(member, registry)
    document = json.loads(member.docker.read_text())
    assert document == {"auths": {HUB if registry else member.host: entry("alice", "se:cret")}}
    assert stat.S_IMODE(member.docker.stat().st_mode) == 0o600
    assert stat.S_IMODE(member.docker.parent.stat().st_mode) == 0o700
    member.docker.chmod(0o644)
    login(member, "docker.io")
    assert stat.S_IMODE(member.docker.stat().st_mode) == (0o644 if registry else 0o600)
    assert list(member.docker.parent.iterdir()) == [member.docker]
    assert member.user(f"{registry or member.host}/org/app") == "alice"


def test_everything_else_in_the_file_stays_unchanged(member: Home) -> None:
    kept = {"other.example": {"auth": "kept as it is", "new": 1}, f"{member.host}/org": entry("scoped"), "?": None}
    before: dict[str, Any] = {
        "HttpHeaders": {"X": "ü"},
        "auths": dict(kept),
        "unknown": {"deep": [1, 2.5, None, True, 10**30, "é"]},
    }
    write(member.docker, before)
    login(member)
    after = json.loads(member.docker.read_text())
    assert after["auths"].pop(member.host) == entry("alice", "se:cret")
    assert after == before
    assert list(after) == list(before)
    found = member.docker.stat()
    login(member)
    # A login that changes nothing does not write the file.
    assert (member.docker.stat().st_ino, member.docker.stat().st_mtime_ns) == (found.st_ino, found.st_mtime_ns)
    assert "~/.docker/config.json" in logout(member)
    assert json.loads(member.docker.read_text()) == before


def test_a_login_replaces_older_entries_of_the_host_but_keeps_their_other_fields(member: Home) -> None:
    old = {"auth": encoded("old", "x"), "identitytoken": "t", "registrytoken": "r", "username": "u", "password": "p"}
    write(member.docker, {"auths": {"docker.io": old, HUB: old | {"email": "a@example.com"}, "index.docker.io": old}})
    login(member, "docker.io")
    new = entry("alice", "se:cret") | {"email": "a@example.com"}
    assert json.loads(member.docker.read_text()) == {"auths": {HUB: new}}


@pytest.mark.parametrize("dangles", [True, False])
def test_a_symbolic_link_to_the_file_is_kept(dangles: bool, member: Home, tmp_path: Path) -> None:
    target = tmp_path / "dotfiles" / "docker.json"
    others = {} if dangles else {"other.example": entry("bob")}
    if dangles:
        target.parent.mkdir()
    else:
        write(target, {"auths": others})
    member.docker.parent.mkdir(parents=True)
    member.docker.symlink_to(target)
    login(member)
    assert member.docker.is_symlink()
    assert json.loads(target.read_text()) == {"auths": others | {member.host: entry("alice", "se:cret")}}
    assert list(target.parent.iterdir()) == [target]


def test_a_helper_stores_the_secret_and_the_file_has_only_an_empty_entry(member: Home) -> None:
    for configured in ({"credsStore": "pass"}, {"credHelpers": {member.host: "pass"}}):
        member.helper("pass")
        write(member.docker, {**configured, "auths": {member.host: entry("old")}})
        assert "docker-credential-pass" in login(member)
        kept = {"ServerURL": member.host, "Username": "alice", "Secret": "se:cret"}
        assert member.kept("pass") == {member.host: kept}
        assert json.loads(member.docker.read_text()) == {**configured, "auths": {member.host: {}}}
        assert member.shown() == "alice:se:cret"
        assert "docker-credential-pass" in logout(member)
        assert member.kept("pass") == {}
        assert json.loads(member.docker.read_text()) == {**configured, "auths": {}}


def test_a_login_for_a_host_with_a_disabled_helper_is_stored_in_the_file(member: Home) -> None:
    write(member.docker, {"credsStore": "pass", "credHelpers": {member.host: ""}})
    assert "~/.docker/config.json" in login(member)
    assert member.user() == "alice"


@pytest.mark.parametrize("verb", ["store", "erase"])
def test_a_helper_that_fails_to_store_or_erase_is_an_error_and_the_file_is_unchanged(verb: str, member: Home) -> None:
    member.helper("bad", f'#!/bin/sh\n[ $1 = {verb} ] && exit 3\necho \'{{"Username": "x", "Secret": "hidden"}}\'\n')
    document = {"credsStore": "bad", "auths": {member.host: entry("old")}}
    write(member.docker, document)
    if verb == "store":
        result = member.run("login", member.host, "-u", "alice", "--password-stdin", stdin=b"se:cret")
    else:
        result = member.run("logout", member.host)
    assertions.failure(result, 3, f"docker-credential-bad failed: exit status 3 of {verb}")
    assert json.loads(member.docker.read_text()) == document


def test_a_malformed_file_an_unwritable_folder_and_an_invalid_user_are_refused(member: Home) -> None:
    write(member.docker, "{ mine")
    for result in (
        member.run("login", member.host, "-u", "alice", "--password-stdin", stdin=b"se:cret"),
        member.run("logout", member.host),
    ):
        assertions.failure(result, 2, "not valid JSON")
    assert member.docker.read_text() == "{ mine"
    member.docker.unlink()
    member.docker.parent.rmdir()
    write(member.docker.parent, "not a folder")
    result = member.run("login", member.host, "-u", "alice", "--password-stdin", stdin=b"se:cret")
    assertions.failure(result, 9, "cannot write ~/.docker/config.json")
    for user in ("", "a:b"):
        refused = member.run("login", member.host, "-u", user, "--password-stdin", stdin=b"se:cret")
        assert refused.code == 2, refused.err
