"""Credentials are found where people keep them, and go to no one else. Files and helper programs are real."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from ocistream import credential_helper, credentials
from ocistream.credentials import Credential, Keychain, parse_source
from ocistream.errors import AuthenticationError, InvalidNameError, LocalDiskError, UsageError

HUB = "https://index.docker.io/v1/"
#: A helper that keeps what it is told in a file beside it, and notes each call with its question.
STORE = f"""#!{sys.executable} -IS
import json, pathlib, sys
kept = pathlib.Path(__file__).with_suffix(".json")
entries = json.loads(kept.read_text()) if kept.exists() else {{}}
question = sys.stdin.read()
with open(__file__ + ".calls", "a") as calls:
    print(sys.argv[1], question, file=calls)
if sys.argv[1] == "get":
    if question not in entries:
        print("credentials not found in native keychain")
        sys.exit(1)
    print(json.dumps(entries[question]))
elif sys.argv[1] == "store":
    entry = json.loads(question)
    entries[entry["ServerURL"]] = entry
else:
    del entries[question]
kept.write_text(json.dumps(entries))
"""


def auth(username: str, password: str) -> str:
    return base64.b64encode(f"{username}:{password}".encode()).decode()


def entry(username: str, word: str = "secret") -> dict[str, str]:
    return {"auth": auth(username, word)}


class Home:
    """A user's home directory, with an environment to match and a `bin` for helpers."""

    def __init__(self, path: Path) -> None:
        self.path = path / "home"
        self.bin = path / "bin"
        self.bin.mkdir(parents=True)
        self.env = {"PATH": f"{self.bin}:/usr/bin:/bin"}
        self.docker = self.path / ".docker" / "config.json"
        self.podman = self.path / ".config" / "containers" / "auth.json"

    def keychain(self, **env: str) -> Keychain:
        return Keychain(self.env | env, home=self.path)

    def helper(self, name: str, script: str = STORE) -> Path:
        program = self.bin / f"docker-credential-{name}"
        program.write_text(script)
        program.chmod(0o755)
        return program

    def keep(self, name: str, server: str, username: str, word: str = "kept") -> None:
        kept = self.bin / f"docker-credential-{name}.json"
        entries = json.loads(kept.read_text()) if kept.exists() else {}
        entries[server] = {"ServerURL": server, "Username": username, "Secret": word}
        kept.write_text(json.dumps(entries))

    def kept(self, name: str) -> dict[str, dict[str, str]]:
        document: dict[str, dict[str, str]] = json.loads((self.bin / f"docker-credential-{name}.json").read_text())
        return document

    def calls(self, name: str) -> list[str]:
        calls = self.bin / f"docker-credential-{name}.calls"
        return calls.read_text().splitlines() if calls.exists() else []


def write(path: Path, document: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))


def username(found: Credential | None) -> str | None:
    return None if found is None else found.username


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setattr(credentials, "PODMAN_RUN_DIRECTORY", tmp_path / "run")
    return Home(tmp_path)


# -- the order of places ---------------------------------------------------------------------------------------


def test_nothing_anywhere_is_anonymous(home: Home) -> None:
    assert home.keychain().find("docker.io", "library/nginx") is None
    write(home.docker, "")
    write(home.podman, " \n")
    assert home.keychain().find("docker.io", "library/nginx") is None


def test_the_first_place_that_knows_the_registry_wins(home: Home, tmp_path: Path) -> None:
    runtime, named = tmp_path / "runtime", tmp_path / "named.json"
    write(home.podman, {"auths": {"r.example": entry("podman-config")}})
    env: dict[str, str] = {}

    def found() -> tuple[str, str]:
        credential = home.keychain(**env).find("r.example", "org/app")
        assert credential is not None
        return credential.username, credential.source

    assert found() == ("podman-config", "~/.config/containers/auth.json")
    write(runtime / "containers" / "auth.json", {"auths": {"r.example": entry("podman-runtime")}})
    env["XDG_RUNTIME_DIR"] = str(runtime)
    assert found() == ("podman-runtime", f"{runtime}/containers/auth.json")
    write(home.docker, {"auths": {"r.example": entry("docker")}})
    assert found() == ("docker", "~/.docker/config.json")
    write(named, {"auths": {"r.example": entry("named")}})
    env["REGISTRY_AUTH_FILE"] = str(named)
    assert found() == ("named", str(named))
    env["DOCKER_AUTH_CONFIG"] = json.dumps({"auths": {"r.example": entry("inline")}})
    assert found() == ("inline", "DOCKER_AUTH_CONFIG")
    env |= {"OCISTREAM_USERNAME": "env", "OCISTREAM_PASSWORD": "p"}
    assert found() == ("env", "OCISTREAM_USERNAME")
    explicit = Credential("flag", "p", source="--username")
    assert Keychain(env, home=home.path, explicit=explicit).find("r.example") is explicit


@pytest.mark.parametrize("explicit", [None, Credential("flag", "p", source="--username")])
def test_what_has_no_registrys_name_with_it_is_for_those_that_the_user_named(
    home: Home, explicit: Credential | None
) -> None:
    env = {"OCISTREAM_USERNAME": "u", "OCISTREAM_PASSWORD": "p"}
    keychain = Keychain(env, home=home.path, explicit=explicit, named=["R.example", "index.docker.io"])
    for named in ("r.example", "docker.io"):
        assert keychain.find(named) is not None
    for other in ("m.example", "r.example:5000"):
        assert keychain.find(other) is None
    write(home.docker, {"auths": {"m.example": entry("the mirror's own")}})
    assert username(keychain.find("m.example")) == "the mirror's own"


def test_a_place_that_does_not_know_the_registry_is_passed_over(home: Home, tmp_path: Path) -> None:
    named = tmp_path / "named.json"
    write(named, {"auths": {"other.example": entry("x")}})
    write(home.docker, {"auths": {"third.example": entry("x"), "r.example": {}}})
    write(home.podman, {"auths": {"r.example": entry("podman")}})
    keychain = home.keychain(REGISTRY_AUTH_FILE=str(named), DOCKER_AUTH_CONFIG="{}")
    assert username(keychain.find("r.example")) == "podman"


def test_podmans_file_of_this_user_is_read_where_there_is_no_runtime_directory(home: Home, tmp_path: Path) -> None:
    write(tmp_path / "run" / str(os.getuid()) / "auth.json", {"auths": {"r.example": entry("run")}})
    assert username(home.keychain().find("r.example")) == "run"
    assert home.keychain(XDG_RUNTIME_DIR=str(tmp_path / "elsewhere")).find("r.example") is None


def test_docker_config_and_xdg_config_home_move_the_files(home: Home, tmp_path: Path) -> None:
    write(home.docker, {"auths": {"r.example": entry("default")}})
    write(tmp_path / "d" / "config.json", {"auths": {"r.example": entry("moved")}})
    assert username(home.keychain(DOCKER_CONFIG=str(tmp_path / "d")).find("r.example")) == "moved"
    home.docker.unlink()
    write(home.podman, {"auths": {"r.example": entry("default")}})
    write(tmp_path / "x" / "containers" / "auth.json", {"auths": {"r.example": entry("moved")}})
    assert username(home.keychain(XDG_CONFIG_HOME=str(tmp_path / "x")).find("r.example")) == "moved"


def test_podmans_files_are_where_podman_has_them_by_relative_paths_too(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "x" / "containers" / "auth.json", {"auths": {"r.example": entry("moved")}})
    assert username(home.keychain(XDG_CONFIG_HOME="x").find("r.example")) == "moved"


# -- the environment -------------------------------------------------------------------------------------------


def test_each_side_of_a_copy_has_variables_of_its_own_and_falls_back_to_the_common_ones(home: Home) -> None:
    env = {"OCISTREAM_USERNAME": "both", "OCISTREAM_PASSWORD": "1"}
    env |= {"OCISTREAM_SRC_USERNAME": "source", "OCISTREAM_SRC_PASSWORD": "2"}
    source, destination, neither = (
        Keychain(env, home=home.path, prefix=prefix).find("r.example")
        for prefix in ("OCISTREAM_SRC", "OCISTREAM_DEST", "OCISTREAM")
    )
    assert source == Credential("source", "2", source="OCISTREAM_SRC_USERNAME")
    assert destination == neither == Credential("both", "1", source="OCISTREAM_USERNAME")


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"OCISTREAM_USERNAME": "a"}, "OCISTREAM_USERNAME is set, but OCISTREAM_PASSWORD is not"),
        ({"OCISTREAM_PASSWORD": "a"}, "OCISTREAM_PASSWORD is set, but OCISTREAM_USERNAME is not"),
        ({"OCISTREAM_USERNAME": "a", "OCISTREAM_PASSWORD": ""}, "OCISTREAM_PASSWORD is not"),
        (
            {"OCISTREAM_SRC_USERNAME": "a", "OCISTREAM_USERNAME": "b", "OCISTREAM_PASSWORD": "c"},
            "OCISTREAM_SRC_USERNAME is set, but OCISTREAM_SRC_PASSWORD is not",
        ),
    ],
)
def test_half_a_pair_in_the_environment_is_an_error(home: Home, env: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Keychain(env, home=home.path, prefix="OCISTREAM_SRC").find("r.example")
    assert caught.value.hint == "set both or neither"


def test_empty_variables_are_as_good_as_none(home: Home) -> None:
    empty = dict.fromkeys(
        ["OCISTREAM_USERNAME", "OCISTREAM_PASSWORD", "DOCKER_AUTH_CONFIG", "REGISTRY_AUTH_FILE", "DOCKER_CONFIG"], ""
    )
    empty |= {"XDG_RUNTIME_DIR": "", "XDG_CONFIG_HOME": ""}
    write(home.podman, {"auths": {"r.example": entry("podman")}})
    assert username(home.keychain(**empty).find("r.example")) == "podman"


# -- exact hosts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        "example.com.evil",
        "evil-example.com",
        "www.example.com",
        "example.com:5000",
        "example.com:443",
        "example.co",
        "com",
    ],
)
@pytest.mark.parametrize("key", ["example.com", "https://example.com", "https://example.com/v1/", "example.com/org"])
def test_a_credential_never_goes_to_another_host_or_port(home: Home, other: str, key: str) -> None:
    helper = {"credHelpers": {key: "pass"}}
    home.helper("pass")
    home.keep("pass", "example.com", "helped")
    home.keep("pass", other, "helped")
    write(home.docker, {"auths": {key: entry("alice")}})
    assert home.keychain().find(other, "org/app") is None
    write(home.docker, helper)
    assert home.keychain().find(other, "org/app") is None
    assert home.calls("pass") == []


@pytest.mark.parametrize(
    ("registry", "key"),
    [
        ("r.example", "r.example"),
        ("r.example", "R.Example"),
        ("R.Example", "r.example"),
        ("r.example", "https://r.example"),
        ("r.example", "http://r.example/"),
        ("r.example", "https://r.example/v1/"),
        ("r.example", "https://r.example/v2"),
        ("localhost:5000", "localhost:5000"),
        ("[::1]:5000", "http://[::1]:5000"),
        ("docker.io", HUB),
        ("docker.io", "docker.io"),
        ("docker.io", "index.docker.io"),
        ("docker.io", "https://registry-1.docker.io"),
        ("index.docker.io", "docker.io"),
    ],
)
def test_every_form_in_which_docker_and_podman_write_a_host_is_understood(home: Home, registry: str, key: str) -> None:
    write(home.docker, {"auths": {"//": entry("x"), "https://": entry("x"), key: entry("alice")}})
    assert username(home.keychain().find(registry, "org/app")) == "alice"


def test_of_two_forms_for_one_host_the_one_that_docker_writes_counts(home: Home) -> None:
    write(
        home.docker, {"auths": {"docker.io": entry("podmans"), "index.docker.io": entry("old"), HUB: entry("dockers")}}
    )
    assert username(home.keychain().find("docker.io")) == "dockers"
    write(home.docker, {"auths": {"https://r.example/v1/": entry("old"), "r.example": entry("new")}})
    assert username(home.keychain().find("r.example")) == "new"


def test_the_longest_namespace_wins_and_a_namespace_is_no_prefix_of_a_name(home: Home) -> None:
    write(
        home.podman,
        {
            "auths": {
                "r.example": entry("host"),
                "r.example/org": entry("org"),
                "r.example/org/app": entry("app"),
                "https://r.example/project": entry("project"),
                "docker.io/library": entry("library"),
            }
        },
    )
    found = {
        repository: username(home.keychain().find("r.example", repository))
        for repository in ("", "org", "org/app", "org/app/sub", "org/other", "organ/app", "project/x", "app")
    }
    assert found == {
        "": "host",
        "org": "org",
        "org/app": "app",
        "org/app/sub": "app",
        "org/other": "org",
        "organ/app": "host",
        "project/x": "project",
        "app": "host",
    }
    assert username(home.keychain().find("docker.io", "library/nginx")) == "library"
    assert home.keychain().find("docker.io", "org/app") is None


def test_an_empty_entry_of_a_namespace_leaves_it_to_the_shorter_one(home: Home) -> None:
    write(home.podman, {"auths": {"r.example": entry("host"), "r.example/org": {}, "r.example/org/app": None}})
    assert username(home.keychain().find("r.example", "org/app")) == "host"


def test_a_registry_that_is_no_host_is_refused(home: Home) -> None:
    with pytest.raises(InvalidNameError):
        home.keychain().find("../../etc")


# -- what an entry says ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"auth": auth("alice", "secret")}, Credential("alice", "secret")),
        ({"auth": auth("alice", "se:cr:et")}, Credential("alice", "se:cr:et")),
        ({"auth": auth("alice", "secret\0\0")}, Credential("alice", "secret")),
        ({"auth": auth("alice", "")}, Credential("alice", "")),
        ({"auth": auth("ålice", "sécret")}, Credential("ålice", "sécret")),
        ({"auth": base64.b64encode(b"alice:p\xe4ss").decode()}, Credential("alice", "p\udce4ss")),
        (
            {"auth": auth("alice", "long" * 30)[:80] + "\n" + auth("alice", "long" * 30)[80:]},
            Credential("alice", "long" * 30),
        ),
        ({"auth": base64.b64encode(b"\xe4:secret").decode()}, Credential("\udce4", "secret")),
        ({"password": "secret"}, Credential("", "secret")),
        ({"username": "alice", "password": "secret"}, Credential("alice", "secret")),
        ({"auth": auth("alice", "secret"), "username": "bob", "password": "x"}, Credential("alice", "secret")),
        ({"auth": "", "identitytoken": "token"}, Credential("", "", "token")),
        ({"auth": auth("alice", "old"), "identitytoken": "token"}, Credential("alice", "", "token")),
        ({"registrytoken": "token"}, Credential("", "", registry_token="token")),
        ({"auth": auth("alice", "old"), "registrytoken": "token"}, Credential("alice", "", registry_token="token")),
        ({"auth": None, "email": "a@example.com"}, None),
        ({}, None),
    ],
)
def test_an_entry_is_read_as_docker_reads_it(
    home: Home, fields: dict[str, object], expected: Credential | None
) -> None:
    write(home.docker, {"auths": {"r.example": fields}})
    found = home.keychain().find("r.example")
    if expected is not None:
        expected = dataclasses.replace(expected, source="~/.docker/config.json")
    assert found == expected


def test_no_secret_is_in_a_repr(home: Home) -> None:
    write(home.docker, {"auths": {"r.example": {"auth": auth("alice", "hidden"), "identitytoken": "hidden"}}})
    keychain = home.keychain(OCISTREAM_USERNAME="a", OCISTREAM_PASSWORD="hidden")
    assert "hidden" not in repr((Credential("alice", "hidden", "hidden"), keychain))
    assert "hidden" not in repr(home.keychain().find("r.example"))


# -- files that are wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is not a JSON object"),
        ('{"auths": {}, "auths": {}}', "a key stands twice"),
        ("[" * 10_000, "nested too deeply"),
        ('{"auths": []}', "auths is not a JSON object"),
        ('{"auths": {"r.example": "hidden"}}', "auths of r.example is not a JSON object"),
        ('{"auths": {"r.example": {"auth": 1}}}', "auths of r.example: auth is not a string"),
        ('{"auths": {"r.example": {"identitytoken": ["hidden"]}}}', "identitytoken is not a string"),
        ('{"auths": {"r.example": {"auth": "hidden!"}}}', "auth is not base64 of user:password"),
        ('{"auths": {"r.example": {"auth": "hidden\\u00e9"}}}', "auth is not base64 of user:password"),
        ('{"auths": {"r.example": {"auth": "aGlkZGVu"}}}', "auth is not base64 of user:password"),
        ('{"credHelpers": {"r.example": 1}}', "credHelpers: r.example is not a string"),
        ('{"credHelpers": "pass"}', "credHelpers is not a JSON object"),
        ('{"credsStore": {"a": "b"}}', "credsStore is not a string"),
        ('{"credsStore": "../pass"}', "'../pass' is not the name of a credential helper"),
        ('{"credsStore": "PASS"}', "'PASS' is not the name of a credential helper"),
        ('{"credsStore": "pass\\n"}', "'pass\\?' is not the name of a credential helper"),
        ('{"credHelpers": {"r.example": "a b"}}', "'a b' is not the name of a credential helper"),
        ("{}" + " " * 1024 * 1024, "is larger than 1048576 bytes"),
    ],
)
def test_a_malformed_file_is_an_error_that_names_it_and_shows_nothing_of_it(
    home: Home, content: str, message: str
) -> None:
    write(home.docker, content)
    with pytest.raises(UsageError, match=message) as caught:
        home.keychain().find("r.example")
    assert "~/.docker/config.json" in caught.value.what
    assert "hidden" not in caught.value.what
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    home.docker.unlink()
    with pytest.raises(UsageError, match=r"^DOCKER_AUTH_CONFIG"):
        home.keychain(DOCKER_AUTH_CONFIG=content).find("r.example")


def test_a_variable_that_is_not_utf8_is_malformed(home: Home) -> None:
    with pytest.raises(UsageError, match="DOCKER_AUTH_CONFIG is not valid JSON") as caught:
        home.keychain(DOCKER_AUTH_CONFIG=b'{"\xff": 1}'.decode(errors="surrogateescape")).find("r.example")
    assert caught.value.hint == "correct it, or move it away and log in again"


def test_a_malformed_file_does_not_matter_where_an_earlier_place_knows_the_registry(home: Home) -> None:
    write(home.docker, "{")
    inline = json.dumps({"auths": {"r.example": entry("inline")}})
    assert username(home.keychain(DOCKER_AUTH_CONFIG=inline).find("r.example")) == "inline"


def test_a_malformed_entry_of_another_host_does_not_matter(home: Home) -> None:
    write(home.docker, {"auths": {"other.example": 1, "r.example": entry("alice")}})
    assert username(home.keychain().find("r.example")) == "alice"


def test_a_named_file_that_is_not_there_is_an_error(home: Home) -> None:
    with pytest.raises(AuthenticationError, match=r"REGISTRY_AUTH_FILE names ~/no\.json, which does not exist"):
        home.keychain(REGISTRY_AUTH_FILE=str(home.path / "no.json")).find("r.example")


def test_a_file_that_cannot_be_read_is_the_disks_error(home: Home) -> None:
    home.docker.mkdir(parents=True)
    with pytest.raises(LocalDiskError, match=r"cannot read ~/\.docker/config\.json: Is a directory"):
        home.keychain().find("r.example")
    home.docker.rmdir()
    home.docker.symlink_to(home.docker)
    with pytest.raises(LocalDiskError, match=r"cannot read ~/\.docker/config\.json"):
        home.keychain().save("r.example", Credential("a", "b"))


def test_a_file_without_permission_is_the_disks_error(home: Home) -> None:
    write(home.docker, "{}")
    home.docker.chmod(0)
    before = os.geteuid()
    if before == 0:
        # Root may read everything, so root becomes nobody for a moment.
        os.seteuid(65534)
    try:
        with pytest.raises(LocalDiskError, match="Permission denied"):
            home.keychain().find("r.example")
    finally:
        os.seteuid(before)


def test_a_folder_that_is_a_file_holds_nothing(home: Home) -> None:
    write(home.path / ".docker", "not a folder")
    assert home.keychain().find("r.example") is None


# -- helpers ---------------------------------------------------------------------------------------------------


def test_within_a_file_the_hosts_helper_is_asked_then_auths_then_the_store(home: Home) -> None:
    for name in ("own", "store"):
        home.helper(name)
    home.keep("store", "r.example", "from-store")
    document: dict[str, object] = {"credsStore": "store"}
    write(home.docker, document)
    assert home.keychain().find("r.example", "org/app") == Credential(
        "from-store", "kept", source="docker-credential-store"
    )
    document["auths"] = {"r.example": entry("from-auths")}
    write(home.docker, document)
    assert username(home.keychain().find("r.example", "org/app")) == "from-auths"
    document["credHelpers"] = {"r.example": "own"}
    write(home.docker, document)
    assert username(home.keychain().find("r.example", "org/app")) == "from-auths"
    home.keep("own", "r.example", "from-own")
    assert username(home.keychain().find("r.example", "org/app")) == "from-own"
    assert home.calls("own") == ["get r.example"] * 2
    assert home.calls("store") == ["get r.example"]


@pytest.mark.parametrize("own", ["own", "", None])
def test_a_host_with_a_helper_of_its_own_never_asks_the_store(home: Home, own: str | None) -> None:
    for name in ("own", "store"):
        home.helper(name)
    home.keep("store", "r.example", "from-store")
    write(home.docker, {"credsStore": "store", "credHelpers": {"r.example": own}})
    assert home.keychain().find("r.example") is None
    assert home.calls("store") == []
    assert home.keychain().find("other.example") is None
    assert home.calls("store") == ["get other.example"]


@pytest.mark.parametrize("key", ["docker.io", "index.docker.io", HUB])
def test_docker_hub_has_its_old_address_as_its_name_with_helpers(home: Home, key: str) -> None:
    home.helper("pass")
    home.keep("pass", HUB, "alice")
    write(home.docker, {"credHelpers": {key: "pass"}})
    assert username(home.keychain().find("docker.io", "library/nginx")) == "alice"
    assert home.calls("pass") == [f"get {HUB}"]


def test_a_helper_marks_an_identity_token_by_its_user_name(home: Home) -> None:
    home.helper("acr")
    home.keep("acr", "r.example", "<token>", "identity")
    write(home.docker, {"credsStore": "acr"})
    assert home.keychain().find("r.example") == Credential("<token>", "", "identity", "docker-credential-acr")


def test_a_helper_that_does_not_know_the_host_leaves_it_to_the_next_place(home: Home) -> None:
    home.helper("pass")
    write(home.docker, {"credsStore": "pass"})
    assert home.keychain().find("r.example") is None
    write(home.podman, {"auths": {"r.example": entry("podman")}})
    assert username(home.keychain().find("r.example")) == "podman"


@pytest.mark.parametrize("said", ["{}", '{"Username": "", "Secret": ""}'])
def test_a_helper_that_answers_nothing_knows_nothing(home: Home, said: str) -> None:
    home.helper("empty", f"#!/bin/sh\necho '{said}'\n")
    write(home.docker, {"credsStore": "empty"})
    assert home.keychain().find("r.example") is None


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"Username": "alice"}, ("alice", "")),
        ({"Secret": "s"}, ("", "s")),
        ({"Username": "alice", "Secret": "credentials not found in native keychain"}, None),
    ],
)
def test_a_helpers_answer_counts_when_it_ended_well_and_said_anything(
    home: Home, said: dict[str, str], expected: tuple[str, str] | None
) -> None:
    home.helper("some", f"#!/bin/sh\necho '{json.dumps(said)}'\n")
    write(home.docker, {"credsStore": "some"})
    found = home.keychain().find("r.example")
    assert found is not None
    assert (found.username, found.secret) == (expected or tuple(said.values()))


def test_a_helper_gets_the_environment_that_was_handed_in(home: Home) -> None:
    home.helper("env", '#!/bin/sh\nprintf \'{"Username": "%s", "Secret": "%s"}\' "$WHO" "${LEAK-none}"\n')
    write(home.docker, {"credsStore": "env"})
    os.environ["LEAK"] = "leaked"
    try:
        assert home.keychain(WHO="alice").find("r.example") == Credential(
            "alice", "none", source="docker-credential-env"
        )
    finally:
        del os.environ["LEAK"]


def test_a_helper_that_answers_without_reading_the_question_is_heard(home: Home) -> None:
    home.helper("deaf", '#!/bin/sh\nexec 0<&-\nsleep 0.1\necho \'{"Username": "alice", "Secret": "s"}\'\n')
    write(home.docker, {"credsStore": "deaf"})
    assert username(home.keychain().find("r.example")) == "alice"
    # More than a pipe holds: the rest of it meets a closed pipe.
    assert home.keychain().save("r.example", Credential("alice", "x" * 200_000)) == "docker-credential-deaf"


def test_a_secret_that_is_longer_than_a_pipe_reaches_the_helper_whole(home: Home) -> None:
    home.helper("pass")
    write(home.docker, {"credsStore": "pass"})
    home.keychain().save("r.example", Credential("alice", "x" * 200_000))
    assert home.kept("pass")["r.example"]["Secret"] == "x" * 200_000


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("#!/bin/sh\necho hidden; echo hidden >&2; exit 1\n", "exit status 1 of get"),
        ("#!/bin/sh\nkill -9 $$\n", "exit status -9 of get"),
        ("#!/bin/sh\necho hidden\n", "its answer is not valid JSON"),
        ("#!/bin/sh\necho '[]'\n", "its answer is not a JSON object"),
        ("#!/bin/sh\n", "its answer is not valid JSON"),
        ('#!/bin/sh\necho \'{"Username": "a", "Secret": 1}\'\n', "its answer has no user name and secret"),
        ('#!/bin/sh\necho \'{"Username": ["a"], "Secret": "hidden"}\'\n', "its answer has no user name and secret"),
        ("#!/bin/sh\nwhile :; do echo hidden; done\n", "it answered more than 65536 bytes"),
        ("#!/no/such/interpreter\n", "No such file or directory"),
    ],
)
def test_a_helper_that_fails_is_named_and_what_it_said_is_not_shown(
    home: Home, capfd: pytest.CaptureFixture[str], script: str, reason: str
) -> None:
    home.helper("bad", script)
    write(home.docker, {"credsStore": "bad"})
    with pytest.raises(AuthenticationError) as caught:
        home.keychain().find("r.example")
    assert caught.value.what.startswith(f"credential helper docker-credential-bad failed: {reason}")
    assert caught.value.hint == "it is configured in ~/.docker/config.json"
    assert "hidden" not in caught.value.what + "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "script",
    [
        "#!/bin/sh\nexec sleep 9\n",
        "#!/bin/sh\nsleep 9\n",  # its child holds the pipe open when it is killed itself
        "#!/bin/sh\necho '{}'\nexec >&-\nexec sleep 9\n",
    ],
)
def test_a_helper_that_does_not_come_to_an_end_is_stopped(
    home: Home, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(credential_helper, "HELPER_SECONDS", 0.3)
    home.helper("slow", script)
    write(home.docker, {"credsStore": "slow"})
    with pytest.raises(AuthenticationError, match=r"no answer within 0\.3 seconds"):
        home.keychain().find("r.example")


@pytest.mark.parametrize("path", ["", ".", "bin", ":bin:", "/nowhere:bin"])
def test_a_helper_is_never_taken_from_the_current_directory(
    home: Home, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    home.helper("pass")
    write(home.docker, {"credsStore": "pass"})
    monkeypatch.chdir(home.bin if path == "." else home.bin.parent)
    with pytest.raises(AuthenticationError, match="docker-credential-pass failed: it is not in PATH"):
        home.keychain(PATH=path).find("r.example")


def test_the_helper_is_looked_up_in_the_environment_that_was_handed_in(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.helper("pass")
    write(home.docker, {"credsStore": "pass"})
    monkeypatch.setenv("PATH", str(home.bin), prepend=":")
    with pytest.raises(AuthenticationError, match="not in PATH"):
        Keychain({}, home=home.path).find("r.example")


# -- login -----------------------------------------------------------------------------------------------------

ALICE = Credential("alice", "se:cret")


@pytest.mark.parametrize(("registry", "key"), [("docker.io", HUB), ("index.docker.io", HUB), ("r.example:5000",) * 2])
def test_what_is_saved_is_found_and_lies_where_docker_puts_it(home: Home, registry: str, key: str) -> None:
    assert home.keychain().save(registry, ALICE) == "~/.docker/config.json"
    assert json.loads(home.docker.read_text()) == {"auths": {key: entry("alice", "se:cret")}}
    assert home.keychain().find(registry, "org/app") == Credential("alice", "se:cret", None, "~/.docker/config.json")


def test_the_saved_file_is_for_its_owner_only_and_nothing_is_left_beside_it(home: Home) -> None:
    home.keychain().save("r.example", ALICE)
    assert stat.S_IMODE(home.docker.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.docker.parent.stat().st_mode) == 0o700
    home.docker.chmod(0o644)
    home.keychain().save("r.example", Credential("bob", "x"))
    assert stat.S_IMODE(home.docker.stat().st_mode) == 0o600
    assert list(home.docker.parent.iterdir()) == [home.docker]


def test_everything_else_in_the_file_stays_as_it_is(home: Home) -> None:
    before: dict[str, object] = {
        "HttpHeaders": {"X": "ü"},
        "auths": {"other.example": {"auth": "kept as it is", "new": 1}, "r.example/org": entry("scoped"), "?": None},
        "unknown": {"deep": [1, 2.5, None, True, 10**30, "é"]},
    }
    write(home.docker, before)
    home.keychain().save("r.example", ALICE)
    after = json.loads(home.docker.read_text())
    assert after["auths"].pop("r.example") == entry("alice", "se:cret")
    assert after == before
    assert list(after) == list(before)


def test_older_entries_of_the_same_host_give_way_but_their_other_fields_stay(home: Home) -> None:
    old = {"auth": auth("old", "x"), "identitytoken": "t", "registrytoken": "r", "username": "u", "password": "p"}
    write(home.docker, {"auths": {"docker.io": old, HUB: old | {"email": "a@example.com"}, "index.docker.io": old}})
    home.keychain().save("docker.io", ALICE)
    assert json.loads(home.docker.read_text()) == {
        "auths": {HUB: entry("alice", "se:cret") | {"email": "a@example.com"}}
    }


def test_an_identity_token_is_saved_beside_the_user_name(home: Home) -> None:
    home.keychain().save("r.example", Credential("alice", "", "identity"))
    assert json.loads(home.docker.read_text())["auths"]["r.example"] == {
        "auth": auth("alice", ""),
        "identitytoken": "identity",
    }
    home.keychain().save("r.example", Credential("", "", "identity"))
    assert json.loads(home.docker.read_text())["auths"]["r.example"] == {"identitytoken": "identity"}
    assert home.keychain().find("r.example") == Credential("", "", "identity", "~/.docker/config.json")


@pytest.mark.parametrize("others", [{"other.example": entry("bob")}, None])
def test_a_config_that_is_a_symbolic_link_stays_one_and_may_dangle(
    home: Home, tmp_path: Path, others: dict[str, object] | None
) -> None:
    target = tmp_path / "dotfiles" / "docker.json"
    if others is not None:
        write(target, {"auths": others})
    home.docker.parent.mkdir(parents=True)
    home.docker.symlink_to(target)
    home.keychain().save("r.example", ALICE)
    assert home.docker.is_symlink()
    assert json.loads(target.read_text()) == {"auths": (others or {}) | {"r.example": entry("alice", "se:cret")}}
    assert list(target.parent.iterdir()) == [target]


def test_a_file_that_would_not_change_is_not_written(home: Home) -> None:
    home.keychain().save("r.example", ALICE)
    before = home.docker.stat()
    home.keychain().save("r.example", ALICE)
    assert (home.docker.stat().st_ino, home.docker.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Credential("", "secret"), "empty or holds a colon"),
        (Credential("a:b", "secret"), "empty or holds a colon"),
        (Credential("a:b", "", "identity"), "empty or holds a colon"),
        (Credential("a", "hid\udce4den"), "not UTF-8"),
        (Credential("a", "", "hid\ud800den"), "not UTF-8"),
    ],
)
def test_what_would_be_read_back_as_something_else_is_not_saved(home: Home, bad: Credential, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        home.keychain().save("r.example", bad)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert not home.docker.exists()


def test_a_folder_that_cannot_be_made_is_the_disks_error(home: Home) -> None:
    write(home.path / ".docker", "not a folder")
    with pytest.raises(LocalDiskError, match=r"cannot write ~/\.docker/config\.json"):
        home.keychain().save("r.example", ALICE)


def test_a_malformed_file_is_not_overwritten(home: Home) -> None:
    write(home.docker, "{ mine")
    with pytest.raises(UsageError, match="not valid JSON"):
        home.keychain().save("r.example", ALICE)
    with pytest.raises(UsageError, match="not valid JSON"):
        home.keychain().erase("r.example")
    assert home.docker.read_text() == "{ mine"


@pytest.mark.parametrize("configured", [{"credsStore": "pass"}, {"credHelpers": {"docker.io": "pass"}}])
def test_with_a_helper_the_secret_goes_there_and_the_file_only_knows_of_it(
    home: Home, configured: Mapping[str, object]
) -> None:
    home.helper("pass")
    write(home.docker, {**configured, "auths": {"docker.io": entry("old")}})
    assert home.keychain().save("docker.io", ALICE) == "docker-credential-pass"
    assert home.kept("pass") == {HUB: {"ServerURL": HUB, "Username": "alice", "Secret": "se:cret"}}
    assert json.loads(home.docker.read_text()) == {**configured, "auths": {HUB: {}}}
    assert home.keychain().find("docker.io") == Credential("alice", "se:cret", None, "docker-credential-pass")


def test_an_identity_token_goes_to_a_helper_under_the_name_that_marks_it(home: Home) -> None:
    home.helper("pass")
    write(home.docker, {"credsStore": "pass"})
    home.keychain().save("r.example", Credential("alice", "", "identity"))
    assert home.kept("pass")["r.example"] == {"ServerURL": "r.example", "Username": "<token>", "Secret": "identity"}


def test_a_host_whose_helper_is_switched_off_is_saved_in_the_file(home: Home) -> None:
    write(home.docker, {"credsStore": "pass", "credHelpers": {"r.example": ""}})
    assert home.keychain().save("r.example", ALICE) == "~/.docker/config.json"
    assert username(home.keychain().find("r.example")) == "alice"


@pytest.mark.parametrize("verb", ["store", "erase"])
def test_a_helper_that_fails_to_save_or_to_erase_is_named_and_the_file_is_left(home: Home, verb: str) -> None:
    fails = f'#!/bin/sh\n[ $1 = {verb} ] && exit 3\necho \'{{"Username": "hidden", "Secret": "hidden"}}\'\n'
    home.helper("bad", fails)
    document = {"credsStore": "bad", "auths": {"r.example": entry("old")}}
    write(home.docker, document)
    with pytest.raises(AuthenticationError, match=f"docker-credential-bad failed: exit status 3 of {verb}"):
        _ = home.keychain().save("r.example", ALICE) if verb == "store" else home.keychain().erase("r.example")
    assert json.loads(home.docker.read_text()) == document


# -- logout ----------------------------------------------------------------------------------------------------


def test_what_is_erased_is_not_found_any_more_and_nothing_else_goes(home: Home) -> None:
    kept = {"other.example": entry("bob"), "r.example/org": entry("scoped"), "r.example:5000": entry("port")}
    write(home.docker, {"auths": {**kept, "r.example": entry("a"), "https://r.example/v1/": entry("b")}, "x": 1})
    assert home.keychain().erase("r.example") == "~/.docker/config.json"
    assert json.loads(home.docker.read_text()) == {"auths": kept, "x": 1}
    assert home.keychain().find("r.example") is None


def test_erasing_where_there_is_nothing_says_so_and_writes_nothing(home: Home) -> None:
    assert home.keychain().erase("r.example") is None
    assert not home.docker.exists()
    write(home.docker, '{ "auths": {} }')
    assert home.keychain().erase("r.example") is None
    assert home.docker.read_text() == '{ "auths": {} }'


def test_a_helper_erases_too_and_both_places_are_named(home: Home) -> None:
    home.helper("pass")
    home.keep("pass", "r.example", "alice")
    home.keep("pass", "other.example", "bob")
    write(home.docker, {"credsStore": "pass", "auths": {"r.example": entry("old")}})
    assert home.keychain().erase("r.example") == "docker-credential-pass and ~/.docker/config.json"
    assert set(home.kept("pass")) == {"other.example"}
    assert json.loads(home.docker.read_text()) == {"credsStore": "pass", "auths": {}}


def test_the_empty_entry_of_a_login_goes_with_it_and_alone_counts_as_nothing(home: Home) -> None:
    home.helper("pass")
    write(home.docker, {"credsStore": "pass"})
    home.keychain().save("r.example", ALICE)
    assert home.keychain().erase("r.example") == "docker-credential-pass"
    assert json.loads(home.docker.read_text()) == {"credsStore": "pass", "auths": {}}
    write(home.docker, {"credsStore": "pass", "auths": {"r.example": {}}})
    assert home.keychain().erase("r.example") is None
    assert json.loads(home.docker.read_text()) == {"credsStore": "pass", "auths": {}}


# -- what the configuration says ---------------------------------------------------------------------------------


def configured(home: Home, source: str, **env: str) -> Keychain:
    found = parse_source(source)
    of = {"r.example": found}
    return Keychain(home.env | env, home=home.path, named=["named.example"], configured=of.get)


def test_the_configured_source_comes_before_all_files_and_for_its_registry_alone(home: Home) -> None:
    inline = json.dumps({"auths": {"r.example": entry("inline"), "other.example": entry("inline")}})
    write(home.path / "auth.json", {"auths": {"r.example": entry("file"), "other.example": entry("file")}})
    home.helper("pass")
    home.keep("pass", "r.example", "helper")
    home.keep("pass", "other.example", "helper")
    env = {"DOCKER_AUTH_CONFIG": inline, "CI_USERNAME": "variable", "CI_PASSWORD": "x"}
    for source, username, shown in (
        ("env:CI", "variable", "CI_USERNAME"),
        ("helper:pass", "helper", "docker-credential-pass"),
        (f"file:{home.path}/auth.json", "file", "~/auth.json"),
    ):
        keychain = configured(home, source, **env)
        found = keychain.find("R.example", "team/app")
        assert found is not None
        assert (found.username, found.source) == (username, f"{shown}, which the configuration names")
        assert found.is_named
        other = keychain.find("other.example")
        assert other is not None
        assert not other.is_named
        assert other.username == "inline"


def test_what_was_given_for_this_run_comes_before_it(home: Home) -> None:
    env = {"CI_USERNAME": "variable", "CI_PASSWORD": "x", "OCISTREAM_USERNAME": "run", "OCISTREAM_PASSWORD": "x"}
    keychain = Keychain(home.env | env, home=home.path, configured=lambda _: parse_source("env:CI"))
    found = keychain.find("r.example")
    assert found is not None
    assert found.username == "run"


@pytest.mark.parametrize("source", ["env:CI", "helper:pass", "file:{home}/auth.json"])
def test_one_that_knows_nothing_leaves_it_to_the_others(home: Home, source: str) -> None:
    home.helper("pass")
    write(home.path / "auth.json", {"auths": {}})
    write(home.docker, {"auths": {"r.example": entry("docker")}})
    found = configured(home, source.format(home=home.path)).find("r.example")
    assert found is not None
    assert (found.username, found.source) == ("docker", "~/.docker/config.json")


def test_one_that_is_not_there_is_an_error_that_says_who_named_it(home: Home) -> None:
    with pytest.raises(AuthenticationError, match=r"the configuration names ~/auth\.json, which does not exist"):
        configured(home, f"file:{home.path}/auth.json").find("r.example")
    with pytest.raises(UsageError, match="CI_USERNAME is set, but CI_PASSWORD is not"):
        configured(home, "env:CI", CI_USERNAME="x").find("r.example")
    with pytest.raises(AuthenticationError, match="docker-credential-gone"):
        configured(home, "helper:gone").find("r.example")


def test_the_places_are_named_and_no_helper_is_run(home: Home) -> None:
    helper = home.helper("pass")
    write(home.docker, {"auths": {"r.example": entry("docker")}, "credsStore": "pass"})
    write(home.podman, {"auths": {"r.example": entry("podman"), "x.example": entry("podman")}})
    assert configured(home, "helper:pass").sources("r.example") == ["docker-credential-pass", "~/.docker/config.json"]
    assert configured(home, "env:CI").sources("r.example") == ["~/.docker/config.json"]
    env = {"CI_USERNAME": "variable", "CI_PASSWORD": "x"}
    assert configured(home, "env:CI", **env).sources("r.example") == ["CI_USERNAME"]
    assert configured(home, "env:CI").sources("x.example") == [
        "docker-credential-pass",
        "~/.config/containers/auth.json",
    ]
    write(home.docker, {"credHelpers": {"r.example": "pass"}})
    assert home.keychain().sources("r.example") == ["docker-credential-pass", "~/.config/containers/auth.json"]
    assert home.keychain().sources("nobody.example") == []
    file = configured(home, f"file:{home.docker}")
    assert file.sources("r.example") == ["docker-credential-pass", "~/.config/containers/auth.json"]
    assert home.keychain(OCISTREAM_USERNAME="x", OCISTREAM_PASSWORD="x").sources("x.example") == ["OCISTREAM_USERNAME"]
    assert not helper.with_name("docker-credential-pass.calls").exists()
