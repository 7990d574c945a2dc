"""Where credentials are searched, and which one is sent for a repository. Statements 54 and 55."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from tests.cli import assertions
from tests.faulty_auth import Basic
from tests.quirks.credential_probe import HUB, Home, encoded, entry, write
from tests.quirks.fixture_types import Start
from tests.quirks.statements import quirk


@pytest.fixture
def home(start: Start, tmp_path: Path) -> Home:
    return Home(tmp_path / "home", tmp_path / "bin", start(auth=Basic("nobody", "is let in")))


# The order of places --------------------------------------------------------------------------------------------


@quirk(54)
def test_the_first_place_that_has_the_registry_is_used(home: Home, tmp_path: Path) -> None:
    runtime, named, inline = tmp_path / "runtime", tmp_path / "named.json", {"auths": {home.host: entry("inline")}}
    assert home.user() is None
    write(home.docker, "")
    write(home.podman, " \n")
    assert home.user() is None
    write(home.podman, {"auths": {home.host: entry("podman-config")}})
    assert home.user() == "podman-config"
    write(runtime / "containers" / "auth.json", {"auths": {home.host: entry("podman-runtime")}})
    home.env["XDG_RUNTIME_DIR"] = str(runtime)
    assert home.user() == "podman-runtime"
    write(home.docker, {"auths": {home.host: entry("docker")}})
    assert home.user() == "docker"
    write(named, {"auths": {home.host: entry("named")}})
    home.env["REGISTRY_AUTH_FILE"] = str(named)
    assert home.user() == "named"
    home.env["DOCKER_AUTH_CONFIG"] = json.dumps(inline)
    assert home.user() == "inline"
    write(home.config, f'[registry."{home.host}"]\ncredentials = "env:CI"\n')
    home.env |= {"CI_USERNAME": "configured", "CI_PASSWORD": "p"}
    assert home.user() == "configured"
    home.env |= {"OCISTREAM_USERNAME": "env", "OCISTREAM_PASSWORD": "p"}
    assert home.user() == "env"


@quirk(54)
def test_a_refused_login_is_not_to_be_renewed_if_a_variable_overrides_it(home: Home, tmp_path: Path) -> None:
    home.helper("pass")
    home.keep("pass", home.host, "helped")
    named = tmp_path / "named.json"
    write(named, {"auths": {home.host: entry("named")}})
    for place, env in {
        f"{named}, which REGISTRY_AUTH_FILE names": {"REGISTRY_AUTH_FILE": str(named)},
        "docker-credential-pass, which DOCKER_AUTH_CONFIG names": {"DOCKER_AUTH_CONFIG": '{"credsStore": "pass"}'},
        "DOCKER_AUTH_CONFIG": {"DOCKER_AUTH_CONFIG": named.read_text()},
    }.items():
        hint = f"check the user name and password from {place}: they take precedence over `ocistream login {home.host}`"
        assertions.failure(home.run("inspect", f"{home.host}/app:1", env=env), 3, hint)
    write(home.docker, {"auths": {home.host: entry("docker")}})
    assertions.failure(home.run("inspect", f"{home.host}/app:1"), 3, f"\n  ocistream login {home.host}\n")


@quirk(54)
def test_a_place_without_the_registry_is_skipped(home: Home, tmp_path: Path) -> None:
    named = tmp_path / "named.json"
    write(named, {"auths": {"other.example": entry("x")}})
    write(home.docker, {"auths": {"third.example": entry("x"), home.host: {}}})
    write(home.podman, {"auths": {home.host: entry("podman")}})
    assert home.user(env={"REGISTRY_AUTH_FILE": str(named), "DOCKER_AUTH_CONFIG": "{}"}) == "podman"
    names = ("OCISTREAM_USERNAME", "OCISTREAM_PASSWORD", "DOCKER_AUTH_CONFIG", "REGISTRY_AUTH_FILE", "DOCKER_CONFIG")
    # An empty variable is ignored.
    assert home.user(env=dict.fromkeys((*names, "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"), "")) == "podman"


@quirk(54)
def test_docker_config_and_xdg_config_home_move_the_files(home: Home, tmp_path: Path) -> None:
    write(home.docker, {"auths": {home.host: entry("default")}})
    write(tmp_path / "d" / "config.json", {"auths": {home.host: entry("moved")}})
    assert home.user(env={"DOCKER_CONFIG": str(tmp_path / "d")}) == "moved"
    home.docker.unlink()
    write(home.podman, {"auths": {home.host: entry("default")}})
    write(tmp_path / "x" / "containers" / "auth.json", {"auths": {home.host: entry("moved again")}})
    assert home.user(env={"XDG_CONFIG_HOME": str(tmp_path / "x")}) == "moved again"


@quirk(54)
def test_after_a_configured_source_without_a_credential_the_other_places_are_searched(home: Home) -> None:
    home.helper("pass")
    write(home.path / "auth.json", {"auths": {}})
    write(home.docker, {"auths": {home.host: entry("docker")}})
    for source in ("env:CI", "helper:pass", f"file:{home.path}/auth.json"):
        write(home.config, f'[registry."{home.host}"]\ncredentials = "{source}"\n')
        assert home.user() == "docker"
    home.keep("pass", home.host, "helped")
    write(home.path / "auth.json", {"auths": {home.host: entry("filed")}})
    write(home.config, f'[registry."{home.host}"]\ncredentials = "helper:pass"\n')
    assert home.user() == "helped"
    write(home.config, f'[registry."{home.host}"]\ncredentials = "file:{home.path}/auth.json"\n')
    assert home.user() == "filed"


@quirk(54)
@pytest.mark.parametrize(
    ("source", "env", "code", "words"),
    [
        ("file:gone.json", {}, 3, "the configuration names ~/.config/ocistream/gone.json, which does not exist"),
        ("env:CI", {"CI_USERNAME": "x"}, 2, "CI_USERNAME is set, but CI_PASSWORD is not"),
        ("helper:gone", {}, 3, "docker-credential-gone"),
    ],
)
def test_a_missing_configured_source_is_an_error_that_names_the_configuration(
    source: str, env: dict[str, str], code: int, words: str, home: Home
) -> None:
    write(home.config, f'[registry."{home.host}"]\ncredentials = "{source}"\n')
    assertions.failure(home.run("inspect", f"{home.host}/app:1", env=env), code, words)


# Hosts and namespaces -------------------------------------------------------------------------------------------


@quirk(55)
def test_the_longest_namespace_of_complete_path_components_is_used(home: Home) -> None:
    keys = {"": "host", "/org": "org", "/org/app": "app", "/org/app/deep": "deep"}
    auths = {f"{home.host}{name}": entry(user) for name, user in keys.items()}
    write(home.podman, {"auths": {**auths, f"http://{home.host}/project": entry("project")}})
    expected = {
        "org": "org",
        "org/app": "app",
        "org/app/sub": "app",
        "org/app/deep/er/still": "deep",
        "org/other": "org",
        "org/other/app/deep": "org",
        "organ/app": "host",
        "project/x": "project",
        "app": "host",
    }
    assert {name: home.user(f"{home.host}/{name}") for name in expected} == expected
    write(home.podman, {"auths": {**auths, f"{home.host}/org": {}, f"{home.host}/org/app": None}})
    # An empty entry is skipped in favor of a shorter namespace.
    assert home.user(f"{home.host}/org/app") == "host"


@quirk(55)
def test_a_credential_is_never_sent_to_another_host_or_port(home: Home) -> None:
    port = home.port
    name = "127.0.0.1"
    others = [name, f"{name}:{port}0", f"{name}:{port - 1}", f"x{name}:{port}", f"{name}.evil:{port}", f"{name}:443"]
    home.helper("pass")
    for other in others:
        home.keep("pass", other, "helped")
    keys = [form.format(other) for other in others for form in ("{}", "https://{}", "https://{}/v1/", "{}/org")]
    write(home.docker, {"auths": {key: entry("alice") for key in keys}})
    assert home.user() is None
    write(home.docker, {"credHelpers": dict.fromkeys(keys, "pass")})
    assert home.user() is None
    assert home.calls("pass") == []


@quirk(55)
def test_every_form_of_a_host_in_the_files_of_docker_and_podman_is_understood(home: Home) -> None:
    write(home.config, f'[registry."docker.io"]\nurl = "{home.registry.url}"\n')
    local = f"localhost:{home.port}"
    forms = {
        local: ["{}", "https://{}", "http://{}/", "https://{}/v1/", "https://{}/v2", "LocalHost:" + str(home.port)],
        "docker.io": [HUB, "docker.io", "index.docker.io", "https://registry-1.docker.io"],
        "index.docker.io": ["docker.io"],
    }
    found = {}
    for registry, keys in forms.items():
        for key in keys:
            broken = {"//": entry("x"), "https://": entry("x")}
            write(home.docker, {"auths": {**broken, key.format(registry): entry("alice")}})
            found[registry, key] = home.user(f"{registry}/org/app")
    assert set(found.values()) == {"alice"}, found
    # If a host has several forms, Docker's own is used.
    three = {"docker.io": entry("podmans"), "index.docker.io": entry("old"), HUB: entry("dockers")}
    write(home.docker, {"auths": three})
    assert home.user("docker.io/org/app") == "dockers"


#: Entries of Docker's and Podman's files, and the USER:PASSWORD that each stands for.
ENTRIES: Final[tuple[tuple[dict[str, Any], str | None], ...]] = (
    ({"auth": encoded("alice", "secret")}, "alice:secret"),
    ({"auth": encoded("alice", "se:cr:et")}, "alice:se:cr:et"),
    ({"auth": encoded("alice", "secret\0\0")}, "alice:secret"),
    ({"auth": encoded("alice", "")}, "alice:"),
    ({"auth": encoded("ålice", "sécret")}, "ålice:sécret"),
    ({"auth": "YWxpY2U6cORzcw=="}, "alice:p\udce4ss"),
    ({"auth": encoded("alice", "long" * 30)[:80] + "\n" + encoded("alice", "long" * 30)[80:]}, "alice:" + "long" * 30),
    ({"username": "alice", "password": "secret"}, "alice:secret"),
    ({"auth": encoded("alice", "secret"), "username": "bob", "password": "x"}, "alice:secret"),
    # With Basic, an identity token replaces the password.
    ({"auth": "", "identitytoken": "token"}, "<token>:token"),
    ({"auth": encoded("alice", "old"), "identitytoken": "token"}, "alice:token"),
    # A token for the registry itself is not a password.
    ({"registrytoken": "token"}, None),
    ({"auth": None, "email": "a@example.com"}, None),
    ({}, None),
)


@quirk(55)
def test_an_entry_is_read_as_docker_reads_it(home: Home) -> None:
    found = []
    for fields, _ in ENTRIES:
        write(home.docker, {"auths": {home.host: fields}})
        found.append(home.shown())
    assert found == [expected for _, expected in ENTRIES]


# Malformed files and variables ----------------------------------------------------------------------------------

MALFORMED: Final = (
    ("{", "is not valid JSON"),
    ("[]", "is not a JSON object"),
    ('{"auths": {}, "auths": {}}', "an object has the same key twice"),
    ("[" * 10_000, "nested too deeply"),
    ('{"auths": []}', "auths is not a JSON object"),
    ('{"auths": {"HOST": "hidden"}}', "is not a JSON object"),
    ('{"auths": {"HOST": {"auth": 1}}}', "auth is not a string"),
    ('{"auths": {"HOST": {"identitytoken": ["hidden"]}}}', "identitytoken is not a string"),
    ('{"auths": {"HOST": {"auth": "hidden!"}}}', "auth is not base64 of user:password"),
    ('{"auths": {"HOST": {"auth": "hidden\\u00e9"}}}', "auth is not base64 of user:password"),
    ('{"auths": {"HOST": {"auth": "aGlkZGVu"}}}', "auth is not base64 of user:password"),
    ('{"credHelpers": {"HOST": 1}}', "is not a string"),
    ('{"credHelpers": "pass"}', "credHelpers is not a JSON object"),
    ('{"credsStore": {"a": "b"}}', "credsStore is not a string"),
    ('{"credsStore": "../pass"}', "'../pass' is not the name of a credential helper"),
    ('{"credsStore": "pass\\n"}', "is not the name of a credential helper"),
    ("{}" + " " * 1024 * 1024, "is larger than 1048576 bytes"),
)


@quirk(55)
def test_a_malformed_file_is_an_error_that_names_it_without_its_content(home: Home) -> None:
    for content, words in MALFORMED:
        text = content.replace("HOST", home.host)
        write(home.docker, text)
        result = home.run("inspect", f"{home.host}/app:1")
        assertions.failure(result, 2, "~/.docker/config.json", words)
        assert "hidden" not in result.err
        if len(text) < 50_000:
            home.docker.unlink()
            result = home.run("inspect", f"{home.host}/app:1", env={"DOCKER_AUTH_CONFIG": text})
            assertions.failure(result, 2, "error: DOCKER_AUTH_CONFIG", words)
            assert "hidden" not in result.err
    # A malformed file after the place that is used does not matter, nor does another host's entry.
    write(home.docker, "{")
    assert home.user(env={"DOCKER_AUTH_CONFIG": json.dumps({"auths": {home.host: entry("inline")}})}) == "inline"
    write(home.docker, {"auths": {"other.example": 1, home.host: entry("alice")}})
    assert home.user() == "alice"


@quirk(55)
def test_an_unreadable_file_is_a_disk_error(home: Home) -> None:
    home.docker.mkdir(parents=True)
    words = "cannot read ~/.docker/config.json"
    assertions.failure(home.run("inspect", f"{home.host}/app:1"), 9, f"{words}: Is a directory")
    home.docker.rmdir()
    home.docker.symlink_to(home.docker)
    assertions.failure(home.run("inspect", f"{home.host}/app:1"), 9, words)
    home.docker.unlink()
    home.docker.parent.rmdir()
    write(home.docker.parent, "not a folder")
    assert home.user() is None
    result = home.run("inspect", f"{home.host}/app:1", env={"REGISTRY_AUTH_FILE": str(home.path / "no.json")})
    assertions.failure(result, 3, "REGISTRY_AUTH_FILE names ~/no.json, which does not exist")


@quirk(54)
@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"OCISTREAM_USERNAME": "a"}, "OCISTREAM_USERNAME is set, but OCISTREAM_PASSWORD is not"),
        ({"OCISTREAM_PASSWORD": "a"}, "OCISTREAM_PASSWORD is set, but OCISTREAM_USERNAME is not"),
        ({"OCISTREAM_USERNAME": "a", "OCISTREAM_PASSWORD": ""}, "OCISTREAM_PASSWORD is not"),
    ],
)
def test_a_user_name_without_a_password_or_the_reverse_is_an_error(env: dict[str, str], words: str, home: Home) -> None:
    assertions.failure(home.run("inspect", f"{home.host}/app:1", env=env), 2, words, "set both or neither")


# Helpers --------------------------------------------------------------------------------------------------------


@quirk(55)
def test_in_a_file_the_host_s_helper_comes_first_then_auths_then_the_store(home: Home) -> None:
    for name in ("own", "store"):
        home.helper(name)
    home.keep("store", home.host, "from-store")
    document: dict[str, object] = {"credsStore": "store"}
    write(home.docker, document)
    assert home.shown() == "from-store:kept"
    document["auths"] = {home.host: entry("from-auths")}
    write(home.docker, document)
    assert home.user() == "from-auths"
    document["credHelpers"] = {home.host: "own"}
    write(home.docker, document)
    assert home.user() == "from-auths"
    home.keep("own", home.host, "from-own")
    assert home.user() == "from-own"
    assert home.calls("own") == [f"get {home.host}"] * 2
    assert home.calls("store") == [f"get {home.host}"]


@quirk(55)
@pytest.mark.parametrize("own", ["own", "", None])
def test_a_host_with_a_helper_of_its_own_never_asks_the_store(own: str | None, home: Home) -> None:
    for name in ("own", "store"):
        home.helper(name)
    home.keep("store", home.host, "from-store")
    write(home.docker, {"credsStore": "store", "credHelpers": {home.host: own}})
    assert home.user() is None
    assert home.calls("store") == []
    assert home.user(f"localhost:{home.port}/app") is None
    assert home.calls("store") == [f"get localhost:{home.port}"]


@quirk(55)
@pytest.mark.parametrize("key", ["docker.io", "index.docker.io", HUB])
def test_helpers_are_asked_for_docker_hub_by_its_old_address(key: str, home: Home) -> None:
    write(home.config, f'[registry."docker.io"]\nurl = "{home.registry.url}"\n')
    home.helper("pass")
    home.keep("pass", HUB, "alice")
    write(home.docker, {"credHelpers": {key: "pass"}})
    assert home.user("docker.io/library/nginx") == "alice"
    assert home.calls("pass") == [f"get {HUB}"]


#: Output of helpers, and the credential that is sent.
ANSWERS: Final = (
    ("#!/bin/sh\necho '{}'\n", None),
    ('#!/bin/sh\necho \'{"Username": "", "Secret": ""}\'\n', None),
    ('#!/bin/sh\necho \'{"Username": "alice"}\'\n', "alice:"),
    ('#!/bin/sh\necho \'{"Username": "<token>", "Secret": "identity"}\'\n', "<token>:identity"),
    ('#!/bin/sh\nexec 0<&-\nsleep 0.1\necho \'{"Username": "deaf", "Secret": "s"}\'\n', "deaf:s"),
    ('#!/bin/sh\nprintf \'{"Username": "%s", "Secret": "%s"}\' "$WHO" "${LEAK-none}"\n', "the environment:none"),
)


@quirk(55)
def test_a_helper_s_credential_is_sent(home: Home) -> None:
    write(home.docker, {"credsStore": "some"})
    found = []
    for script, _ in ANSWERS:
        home.helper("some", script)
        found.append(home.shown(env={"WHO": "the environment"}))
    assert found == [expected for _, expected in ANSWERS]


FAILING: Final = (
    ("#!/bin/sh\necho hidden; echo hidden >&2; exit 1\n", "exit status 1 of get"),
    ("#!/bin/sh\nkill -9 $$\n", "exit status -9 of get"),
    ("#!/bin/sh\necho hidden\n", "its answer is not valid JSON"),
    ("#!/bin/sh\necho '[]'\n", "its answer is not a JSON object"),
    ("#!/bin/sh\n", "its answer is not valid JSON"),
    ('#!/bin/sh\necho \'{"Username": ["a"], "Secret": "hidden"}\'\n', "its output has no user name and secret"),
    ("#!/bin/sh\nwhile :; do echo hidden; done\n", "its output is larger than 65536 bytes"),
    ("#!/no/such/interpreter\n", "No such file or directory"),
)


@quirk(55)
def test_a_failing_helper_is_an_error_that_names_it_without_its_output(home: Home) -> None:
    write(home.docker, {"credsStore": "bad"})
    for script, reason in FAILING:
        home.helper("bad", script)
        result = home.run("inspect", f"{home.host}/app:1")
        words = f"credential helper docker-credential-bad failed: {reason}"
        assertions.failure(result, 3, words, "remove it from ~/.docker/config.json")
        assert "hidden" not in result.err


@quirk(55)
@pytest.mark.parametrize("path", ["", ".", "bin", ":bin:", "/nowhere:bin"])
def test_a_helper_in_the_current_directory_is_never_run(path: str, home: Home) -> None:
    home.helper("pass")
    write(home.docker, {"credsStore": "pass"})
    folder = home.bin if path == "." else home.bin.parent
    result = home.run("inspect", f"{home.host}/app:1", env={"PATH": path}, cwd=folder)
    assertions.failure(result, 3, "docker-credential-pass failed: it is not in PATH")
    assert home.calls("pass") == []
