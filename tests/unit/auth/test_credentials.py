"""Credentials from files, variables and helpers, and the hosts that they are used for. Helpers are real programs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ocistream.auth import credential_helpers as credential_helper
from ocistream.auth import credentials
from ocistream.auth.credentials import Keychain, parse_credential_source
from ocistream.auth.docker_config import Credential
from ocistream.errors import AuthenticationError, UsageError
from tests.quirks.credential_probe import UserHome, encoded, entry, write


class Home(UserHome):
    """A home directory whose credentials a test asks for."""

    def keychain(self, **env: str) -> Keychain:
        return Keychain({"PATH": f"{self.bin}:/usr/bin:/bin"} | env, home=self.path)


def username(found: Credential | None) -> str | None:
    return None if found is None else found.username


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setattr(credentials, "PODMAN_RUN_DIRECTORY", tmp_path / "run")
    return Home(tmp_path / "home", tmp_path / "bin")


# -- order of the sources --------------------------------------------------------------------------------------


@pytest.mark.parametrize("explicit", [None, Credential("flag", "p", source="--username")])
def test_credentials_without_a_registry_are_for_the_registries_of_the_command_line(
    home: Home, explicit: Credential | None
) -> None:
    env = {"OCISTREAM_USERNAME": "u", "OCISTREAM_PASSWORD": "p"}
    keychain = Keychain(env, home=home.path, given=explicit, named_registries=["R.example", "index.docker.io"])
    for named in ("r.example", "docker.io"):
        assert keychain.find(named) is not None
    for other in ("m.example", "r.example:5000"):
        assert keychain.find(other) is None
    write(home.docker, {"auths": {"m.example": entry("the mirror's own")}})
    assert username(keychain.find("m.example")) == "the mirror's own"


def test_podmans_file_is_read_without_a_runtime_directory(home: Home, tmp_path: Path) -> None:
    write(tmp_path / "run" / str(os.getuid()) / "auth.json", {"auths": {"r.example": entry("run")}})
    assert username(home.keychain().find("r.example")) == "run"
    assert home.keychain(XDG_RUNTIME_DIR=str(tmp_path / "elsewhere")).find("r.example") is None


def test_a_relative_xdg_config_home_is_used_as_by_podman(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "x" / "containers" / "auth.json", {"auths": {"r.example": entry("moved")}})
    assert username(home.keychain(XDG_CONFIG_HOME="x").find("r.example")) == "moved"


# -- entries ---------------------------------------------------------------------------------------------------


def test_no_secret_is_in_a_repr(home: Home) -> None:
    write(home.docker, {"auths": {"r.example": {"auth": encoded("alice", "hidden"), "identitytoken": "hidden"}}})
    keychain = home.keychain(OCISTREAM_USERNAME="a", OCISTREAM_PASSWORD="hidden")
    assert "hidden" not in repr((Credential("alice", "hidden", "hidden"), keychain))
    assert "hidden" not in repr(home.keychain().find("r.example"))


# -- malformed sources -----------------------------------------------------------------------------------------


def test_a_variable_that_is_not_utf8_is_malformed(home: Home) -> None:
    with pytest.raises(UsageError, match="DOCKER_AUTH_CONFIG is not valid JSON") as caught:
        home.keychain(DOCKER_AUTH_CONFIG=b'{"\xff": 1}'.decode(errors="surrogateescape")).find("r.example")
    assert caught.value.hint == "correct it, or move it and log in again"


# -- helpers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"Username": "alice"}, ("alice", "")),
        ({"Secret": "s"}, ("", "s")),
        ({"Username": "alice", "Secret": "credentials not found in native keychain"}, None),
    ],
)
def test_the_answer_of_a_successful_helper_is_used(
    home: Home, said: dict[str, str], expected: tuple[str, str] | None
) -> None:
    home.helper("some", f"#!/bin/sh\necho '{json.dumps(said)}'\n")
    write(home.docker, {"credsStore": "some"})
    found = home.keychain().find("r.example")
    assert found is not None
    assert (found.username, found.secret) == (expected or tuple(said.values()))


def test_a_helper_need_not_read_its_input(home: Home) -> None:
    home.helper("deaf", '#!/bin/sh\nexec 0<&-\nsleep 0.1\necho \'{"Username": "alice", "Secret": "s"}\'\n')
    write(home.docker, {"credsStore": "deaf"})
    assert username(home.keychain().find("r.example")) == "alice"
    # More than a pipe can buffer: the rest is written to a closed pipe.
    assert home.keychain().save("r.example", Credential("alice", "x" * 200_000)) == "docker-credential-deaf"


def test_a_secret_longer_than_a_pipe_reaches_the_helper(home: Home) -> None:
    home.helper("pass")
    write(home.docker, {"credsStore": "pass"})
    home.keychain().save("r.example", Credential("alice", "x" * 200_000))
    assert home.kept("pass")["r.example"]["Secret"] == "x" * 200_000


@pytest.mark.parametrize(
    "script",
    [
        "#!/bin/sh\nexec sleep 9\n",
        "#!/bin/sh\nsleep 9\n",  # its child keeps the pipe open after the shell is killed
        "#!/bin/sh\necho '{}'\nexec >&-\nexec sleep 9\n",
    ],
)
def test_a_helper_that_does_not_end_is_stopped(home: Home, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setattr(credential_helper, "HELPER_TIMEOUT", 0.3)
    home.helper("slow", script)
    write(home.docker, {"credsStore": "slow"})
    with pytest.raises(AuthenticationError, match=r"no answer within 0\.3 seconds"):
        home.keychain().find("r.example")


def test_the_helper_is_looked_up_in_the_given_environment(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.helper("pass")
    write(home.docker, {"credsStore": "pass"})
    monkeypatch.setenv("PATH", str(home.bin), prepend=":")
    with pytest.raises(AuthenticationError, match="not in PATH"):
        Keychain({}, home=home.path).find("r.example")


# -- login -----------------------------------------------------------------------------------------------------


def test_an_identity_token_is_saved_with_the_user_name(home: Home) -> None:
    home.keychain().save("r.example", Credential("alice", "", "identity"))
    assert json.loads(home.docker.read_text())["auths"]["r.example"] == {
        "auth": encoded("alice", ""),
        "identitytoken": "identity",
    }
    home.keychain().save("r.example", Credential("", "", "identity"))
    assert json.loads(home.docker.read_text())["auths"]["r.example"] == {"identitytoken": "identity"}
    assert home.keychain().find("r.example") == Credential("", "", "identity", "~/.docker/config.json")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Credential("", "secret"), "empty or contains a colon"),
        (Credential("a:b", "secret"), "empty or contains a colon"),
        (Credential("a:b", "", "identity"), "empty or contains a colon"),
        (Credential("a", "hid\udce4den"), "not UTF-8"),
        (Credential("a", "", "hid\ud800den"), "not UTF-8"),
    ],
)
def test_a_credential_that_would_be_read_differently_is_not_saved(home: Home, bad: Credential, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        home.keychain().save("r.example", bad)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert not home.docker.exists()


def test_an_identity_token_is_given_to_a_helper_with_the_user_name_token(home: Home) -> None:
    home.helper("pass")
    write(home.docker, {"credsStore": "pass"})
    home.keychain().save("r.example", Credential("alice", "", "identity"))
    assert home.kept("pass")["r.example"] == {"ServerURL": "r.example", "Username": "<token>", "Secret": "identity"}


# -- logout ----------------------------------------------------------------------------------------------------


def test_erasing_removes_all_entries_of_the_registry_and_no_others(home: Home) -> None:
    kept = {"other.example": entry("bob"), "r.example/org": entry("scoped"), "r.example:5000": entry("port")}
    write(home.docker, {"auths": {**kept, "r.example": entry("a"), "https://r.example/v1/": entry("b")}, "x": 1})
    assert home.keychain().erase("r.example") == "~/.docker/config.json"
    assert json.loads(home.docker.read_text()) == {"auths": kept, "x": 1}
    assert home.keychain().find("r.example") is None


# -- configured sources ----------------------------------------------------------------------------------------


def configured(home: Home, source: str, **env: str) -> Keychain:
    found = parse_credential_source(source)
    of = {"r.example": found}
    path = {"PATH": f"{home.bin}:/usr/bin:/bin"}
    return Keychain(path | env, home=home.path, named_registries=["named.example"], configured=of.get)


def test_sources_are_listed_without_running_a_helper(home: Home) -> None:
    helper = home.helper("pass")
    write(home.docker, {"auths": {"r.example": entry("docker")}, "credsStore": "pass"})
    write(home.podman, {"auths": {"r.example": entry("podman"), "x.example": entry("podman")}})
    assert configured(home, "helper:pass").list_places("r.example") == [
        "docker-credential-pass",
        "~/.docker/config.json",
    ]
    assert configured(home, "env:CI").list_places("r.example") == ["~/.docker/config.json"]
    env = {"CI_USERNAME": "variable", "CI_PASSWORD": "x"}
    assert configured(home, "env:CI", **env).list_places("r.example") == ["CI_USERNAME"]
    assert configured(home, "env:CI").list_places("x.example") == [
        "docker-credential-pass",
        "~/.config/containers/auth.json",
    ]
    write(home.docker, {"credHelpers": {"r.example": "pass"}})
    assert home.keychain().list_places("r.example") == ["docker-credential-pass", "~/.config/containers/auth.json"]
    assert home.keychain().list_places("nobody.example") == []
    file = configured(home, f"file:{home.docker}")
    assert file.list_places("r.example") == ["docker-credential-pass", "~/.config/containers/auth.json"]
    assert home.keychain(OCISTREAM_USERNAME="x", OCISTREAM_PASSWORD="x").list_places("x.example") == [
        "OCISTREAM_USERNAME"
    ]
    assert not helper.with_name("docker-credential-pass.calls").exists()
