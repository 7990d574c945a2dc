"""`ocistream login` and `logout`: check a credential, store it where Docker does, and remove it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.fixture_types import Start
from tests.cli.terminal import on_terminal
from tests.faulty_auth import Basic, Bearer
from tests.faulty_registry import Fault, FaultyRegistry, HangUp
from tests.runner import Result, ocistream


@pytest.fixture
def registry(start: Start) -> FaultyRegistry:
    """Return a registry that one user may access."""
    return start(auth=Basic("me", "right"))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of the test's credentials file, which does not exist yet."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    return tmp_path / "docker" / "config.json"


def login(registry: FaultyRegistry, *argv: str, password: bytes | None = b"right\n") -> Result:
    options = ["--password-stdin"] if password is not None else []
    return ocistream("login", *argv, *options, registry.host, stdin=password)


def kept(config: Path) -> dict[str, Any]:
    return dict(json.loads(config.read_bytes())["auths"])


def test_a_stored_credential_is_used_until_logout(registry: FaultyRegistry, config: Path, tmp_path: Path) -> None:
    pull = ["pull", f"{registry.host}/app:1", "-o", str(tmp_path / "x.tar")]
    assertions.failure(ocistream(*pull), 3, f"ocistream login {registry.host}")
    result = login(registry, "-u", "me")
    assert (result.code, result.out) == (0, b"")
    assert f"logged in to {registry.host}" in result.err
    assert str(config) in result.err
    assert kept(config) == {registry.host: {"auth": base64.b64encode(b"me:right").decode()}}
    assert config.stat().st_mode & 0o777 == 0o600
    # The credential is accepted; the image does not exist.
    assertions.failure(ocistream(*pull), 4)
    result = ocistream("logout", registry.host)
    assert (result.code, result.out) == (0, b"")
    assert f"removed the credential of {registry.host}" in result.err
    assert "me" not in config.read_text()
    assertions.failure(ocistream(*pull), 3)


def test_a_registry_that_asks_for_no_credential_cannot_check_one(served: FaultyRegistry, config: Path) -> None:
    result = assertions.success(login(served, "-u", "me"))
    assert f"{served.host} does not ask for credentials: nothing was checked; the credential is stored in" in result.err
    assert served.host in kept(config)


@pytest.mark.parametrize(("user", "password"), [("me", b"wrong"), ("you", b"right"), ("me", b"not UTF-8: \xe4")])
def test_a_refused_credential_is_not_stored(registry: FaultyRegistry, config: Path, user: str, password: bytes) -> None:
    result = login(registry, "-u", user, password=password)
    assertions.failure(result, 3, f"{registry.host} refused the user name or the password")
    assert not config.exists()


def test_an_unchecked_credential_is_not_stored(registry: FaultyRegistry, config: Path) -> None:
    registry.faults = [Fault(HangUp(), times=None, before_auth=True)]
    assertions.failure(login(registry, "-u", "me"), 7, registry.host)
    assert not config.exists()


def test_a_refused_login_keeps_the_earlier_credential(registry: FaultyRegistry, config: Path) -> None:
    assertions.success(login(registry, "-u", "me"))
    before = config.read_bytes()
    assertions.failure(login(registry, "-u", "me", password=b"wrong"), 3)
    assert config.read_bytes() == before


def test_the_user_may_come_from_the_environment(
    registry: FaultyRegistry, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCISTREAM_USERNAME", "me")
    assertions.success(login(registry))
    monkeypatch.setenv("OCISTREAM_PASSWORD", "right")
    assertions.success(login(registry, password=None))
    assert set(kept(config)) == {registry.host}


def test_a_token_server_checks_the_credential(start: Start, config: Path) -> None:
    registry = start(auth=Bearer(users={"me": "right"}))
    assertions.failure(login(registry, "-u", "me", password=b"wrong"), 3)
    assert not config.exists()
    assertions.success(login(registry, "-u", "me"))
    assert set(kept(config)) == {registry.host}


def test_a_registry_may_be_written_as_a_url(registry: FaultyRegistry, config: Path) -> None:
    argv = ["-u", "me", "--password-stdin", "--plain-http", f"http://{registry.host}/v2/"]
    succeed("login", *argv, stdin=b"right")
    assert set(kept(config)) == {registry.host}


def test_quiet_prints_nothing(registry: FaultyRegistry, config: Path) -> None:
    assert login(registry, "-q", "-u", "me").err == ""
    assert ocistream("logout", "-q", registry.host).err == ""
    assert kept(config) == {}


def test_messages_may_be_json(registry: FaultyRegistry, config: Path) -> None:
    (line,) = assertions.json_lines(login(registry, "-u", "me", "--log-format=json").err)
    assert str(config) in line["message"]
    (line,) = assertions.json_lines(login(registry, "-u", "me", "--log-format=json", password=b"wrong").err)
    assert line["exit_code"] == 3


@pytest.mark.usefixtures("config")
def test_logout_without_a_login_succeeds() -> None:
    for argv, host in ([], "docker.io"), (["registry.example"], "registry.example"):
        result = ocistream("logout", *argv)
        assert (result.code, result.err) == (0, f"ocistream: not logged in to {host}\n")


# Prompts on a terminal -----------------------------------------------------------------------------------------


def test_prompts_on_a_terminal_do_not_show_the_password(registry: FaultyRegistry, config: Path) -> None:
    dialogue = [("Username: ", "me\n"), ("Password: ", "right\n")]
    seen = on_terminal("login", registry.host, dialogue=dialogue)
    assert seen.code == 0, seen.screen
    assert "right" not in seen.screen
    assert set(kept(config)) == {registry.host}


def test_there_are_prompts_only_for_missing_values(registry: FaultyRegistry, config: Path) -> None:
    seen = on_terminal("login", "-u", "me", registry.host, dialogue=[("Password: ", "right\n")])
    assert seen.code == 0
    assert "Username" not in seen.screen
    assert set(kept(config)) == {registry.host}


@pytest.mark.parametrize("dialogue", [[("Username: ", "\n")], [("Username: ", "me\n"), ("Password: ", "\x04")]])
def test_no_input_at_a_prompt_is_an_error(
    registry: FaultyRegistry, config: Path, dialogue: list[tuple[str, str]]
) -> None:
    seen = on_terminal("login", registry.host, dialogue=dialogue)
    assert seen.code == 2
    assert "no input" in seen.screen
    assert not config.exists()


def test_prompts_are_not_written_to_stdout(registry: FaultyRegistry, config: Path) -> None:
    dialogue = [("Username: ", "me\n"), ("Password: ", "right\n")]
    seen = on_terminal("login", registry.host, dialogue=dialogue, streams=["stdin", "stderr"])
    assert (seen.code, seen.out) == (0, b"")
    assert config.exists()
