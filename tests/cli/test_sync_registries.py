"""`sync` between registries with different connection options: each has a table in the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli import assertions
from tests.cli.fixture_types import Start
from tests.cli.two_registries import PASSWORDS, World
from tests.images import Layout, small_image
from tests.registry_http import basic, seed
from tests.runner import Result, ocistream

LOGINS = """
[registry."{https}"]
username = "me"
password-file = "one"
{secure}
[registry."{http}"]
credentials = "you"
{plain}
[credentials.you]
username = "you"
password-env = "YOURS"
[[sync]]
from = "{https}/app:1"
to = "{http}/copied:1"
"""
CA = 'ca-cert = "authority/certificate.pem"'


@pytest.fixture
def world(start: Start, layout: Layout, tmp_path: Path) -> World:
    return World(start, layout, tmp_path)


def sync(world: World, *argv: str, secure: str = CA, plain: str = "plain-http = true", text: str = LOGINS) -> Result:
    file = world.folder / "sync.toml"
    file.write_text(text.format(https=world.https, http=world.http, secure=secure, plain=plain))
    return world.run("sync", file, "--retries=0", *argv, env={"YOURS": PASSWORDS[1]})


def shown_to(world: World) -> list[set[str | None]]:
    return [
        {request.headers["Authorization"] for request in registry.requests} for registry in (world.secure, world.plain)
    ]


def test_each_registry_is_connected_as_its_table_states(world: World) -> None:
    result = assertions.success(sync(world, "-vv"))
    assert result.lines() == [f"{world.http}/copied:1@{world.image['digest']}"]
    me, you = basic("me", PASSWORDS[0])["Authorization"], basic("you", PASSWORDS[1])["Authorization"]
    assert shown_to(world) == [{None, me}, {None, you}]


def test_hints_name_the_key_and_the_table(world: World) -> None:
    where = '[registry."HOST"] of the sync file'
    no_ca = sync(world, secure="")
    assert no_ca.code == 7
    assert f"{world.https}/v2/" in no_ca.err
    assert f"use ca-cert FILE (a key of {where}), " in no_ca.err
    no_http = sync(world, plain="")
    assert no_http.code == 7
    assert f"the registry seems to use plain HTTP: use plain-http (a key of {where})" in no_http.err
    both = sync(world, "--plain-http", plain="")
    assert both.code == 7
    assert f"omit --plain-http (or set plain-http = false in {where})" in both.err


@pytest.mark.uncounted
def test_a_table_overrides_the_options_and_the_configuration(world: World) -> None:
    assertions.success(sync(world, "--plain-http", secure=f"{CA}\nplain-http = false", plain=""))
    checked = sync(world, "--insecure", secure="insecure = false")
    assert checked.code == 7
    assert "the certificate is not trusted" in checked.err
    assertions.success(sync(world, "--insecure", secure=""))
    config = world.folder / "config.toml"
    config.write_text(f'[registry."{world.https}"]\ninsecure = true\nca-cert = "fake/certificate.pem"\n')
    assertions.success(sync(world, "--config", str(config), secure=""))
    checked = sync(world, "--config", str(config), secure="insecure = false")
    assert "the certificate is not trusted" in checked.err
    assertions.success(sync(world, "--config", str(config), secure=f"insecure = false\n{CA}"))


def test_insecure_in_a_table_affects_only_its_registry(world: World) -> None:
    assert sync(world, secure="", plain="plain-http = true\ninsecure = true").code == 7
    assert world.secure.requests == []
    assertions.success(sync(world, secure="insecure = true"))


@pytest.mark.uncounted
def test_a_client_certificate_in_a_table_overrides_the_option(world: World) -> None:
    client = world.authority.issue(world.folder / "client", common_name="me")
    other = world.fake.issue(world.folder / "other", common_name="other")
    mutual = world.start(tls=world.authority.issue(world.folder / "server"), client_authority=world.authority)
    host = mutual.host.replace("127.0.0.1", "registry.test")
    shown = [f"--client-cert={client.file}", f"--client-key={client.key_file}"]
    assertions.success(world.run("push", "-i", world.layout.path, f"{host}/app:1", world.ca, *shown))
    text = f'[registry."{host}"]\n{CA}\n{{secure}}\n[[sync]]\nfrom = "{host}/app:1"\nto = "oci:out"\n'
    refused = sync(world, text=text, secure="")
    assert refused.code == 7
    assert "client-cert and client-key" in refused.err
    keys = 'client-cert = "client/certificate.pem"\nclient-key = "client/key.pem"'
    wrong = [f"--client-cert={other.file}", f"--client-key={other.key_file}"]
    assertions.success(sync(world, *wrong, text=text, secure=keys))


def test_credentials_of_a_location_override_those_of_its_registry(world: World) -> None:
    (world.folder / "auth.json").write_text(
        json.dumps({"auths": {world.https: {"username": "me", "password": PASSWORDS[0]}}})
    )
    (world.folder / "wrong").write_text("a-third-secret")
    sources = {
        'username = "me"\npassword-file = "wrong"': "one",
        'authfile = "auth.json"': None,
        'credentials = "file:auth.json"': None,
    }
    for keys, named in sources.items():
        source = f'"{world.https}/app:1"'
        source = f'{{{{ location = {source}, credentials = "{named}" }}}}' if named else source
        text = f'[registry."{world.https}"]\n{CA}\n{keys}\n'
        text += '[credentials.one]\nusername = "me"\npassword-file = "one"\n'
        assertions.success(sync(world, text=f'{text}[[sync]]\nfrom = {source}\nto = "oci:out-{len(keys)}"\n'))
    text = f'[registry."{world.https}"]\n{CA}\n[[sync]]\nfrom = "{world.https}/app:1"\nto = "oci:out"\n'
    assertions.success(sync(world, "--authfile", str(world.folder / "auth.json"), text=text))
    refused = sync(
        world, text=text.replace("[[sync]]", 'username = "me"\npassword-file = "wrong"\n[[sync]]'), secure=""
    )
    assert refused.code == 3
    assert "wrong, which the sync file names" in refused.err
    assert "a-third-secret" not in refused.err


@pytest.mark.uncounted
def test_the_table_of_a_registry_does_not_apply_to_its_mirror(world: World) -> None:
    world.open_both()
    mirror = world.start()
    seed(world.layout, world.image, mirror.host, "app", "1")
    mirror.requests.clear()
    named = mirror.host.replace("127.0.0.1", "other.test")
    config = world.folder / "config.toml"
    config.write_text(f'[registry."{world.http}"]\nmirrors = ["{named}"]\n')
    text = f'[registry."{world.http}"]\nplain-http = true\n{{plain}}[[sync]]\nfrom = "{world.http}/app:1"\n'
    text += 'to = "oci:out{secure}"\n'
    assertions.success(sync(world, "--config", str(config), text=text, plain="", secure="1"))
    assert mirror.requests == []
    own = f'[registry."{named}"]\nplain-http = true\n'
    assertions.success(sync(world, "--config", str(config), text=text, plain=own, secure="2"))
    assert mirror.requests != []


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("ca-cert = 'none'", ["ca-cert names", "none: no such file"]),
        ("ca-cert = 1", ["ca-cert is neither a path nor a list of paths"]),
        ("plain-http = 'yes'", ["plain-http is neither true nor false"]),
        ("client-key = 'sync.toml'", ["client-key is set without client-cert"]),
        ("mirrors = ['x']", ["unknown key 'mirrors'", "plain-http"]),
        ("password = 'x'", ["unknown key 'password'", "do not write passwords here", "password-file"]),
        ("username = 'x'", ["the key 'password-env' is missing", "password-file"]),
        ("password-env = 'X'", ["the key 'username' is missing"]),
        ("username = 'x'\npassword-file = 'none'", ["password-file names", "none: no such file"]),
        (
            "username = 'x'\npassword-file = 'sync.toml'\npassword-env = 'X'",
            ["password-file and password-env are both set: use one"],
        ),
        ("username = 'x'\nauthfile = 'sync.toml'", ["authfile and a user name are both set: use one"]),
        ("credentials = 'me'\nauthfile = 'sync.toml'", ["credentials and authfile are both set: use one"]),
        ("credentials = 'hunter2'", ["credentials is not the NAME", "available: me"]),
        ("credentials = 'me'\n[registry.'other.example']\ncredentials = 'me'", ["one password, 'me'", "other.example"]),
    ],
)
def test_a_mistake_is_named_with_the_file_the_table_and_the_key(tmp_path: Path, keys: str, words: list[str]) -> None:
    file = tmp_path / "sync.toml"
    file.write_text(
        "[credentials.me]\nusername = 'me'\npassword-env = 'X'\n[[sync]]\nfrom = 'r.example/a:1'\nto = 'oci:x'\n"
        f"[registry.'r.example']\n{keys}\n"
    )
    result = ocistream("sync", file)
    table = "other.example" if "other.example" in keys else "r.example"
    assertions.failure(result, 2, f"{file}, registry, {table}: ", *words)
    assert "hunter2" not in result.err


def test_verbose_reports_a_table_that_no_entry_needs(layout: Layout, tmp_path: Path) -> None:
    small_image(layout, name="app")
    file = tmp_path / "sync.toml"
    file.write_text(f"[registry.'r.exmaple']\n[[sync]]\nfrom = 'oci:{layout.path}:app'\nto = 'oci:out'\n")
    note = '[registry."r.exmaple"]: no entry names this registry'
    assert note not in ocistream("sync", file).err
    assert note in ocistream("sync", file, "-v").err


def test_a_table_that_names_no_registry_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "sync.toml"
    file.write_text("[registry.'r.example/a']\n[[sync]]\nfrom = 'r.example/a:1'\nto = 'oci:x'\n")
    assertions.failure(ocistream("sync", file), 2, "registry: r.example/a is not a registry's HOST[:PORT]")
