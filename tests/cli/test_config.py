"""`ocistream config`: the effective settings with their origins, and checks of a file."""

from __future__ import annotations

import base64
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import Certificate
from tests.cli import assertions
from tests.cli.user import User
from tests.runner import Argument, Result

SECRET = "hunter2"


class Operator(User):
    """A user who runs `ocistream config`."""

    def run(self, *argv: Argument, **env: str) -> Result:
        return super().run("config", *argv, **env)

    def show(self, *argv: str, **env: str) -> str:
        return assertions.success(self.run("show", *argv, **env)).out.decode()

    def document(self, *argv: str, **env: str) -> Any:
        return json.loads(self.show("--json", *argv, **env))


@pytest.fixture
def user(tmp_path: Path) -> Operator:
    return Operator(tmp_path / "home")


def test_without_a_file_all_values_are_built_in(user: Operator) -> None:
    shown = user.show()
    assert "\njobs = 4   # built in\n" in shown
    assert '\nprogress = "auto"   # built in\n' in shown
    assert "\n# cache is not set   # built in\n" in shown
    assert "registry" not in shown
    settings = user.document()["defaults"]
    assert list(settings) == ["defaults"]
    assert {setting["origin"] for setting in settings["defaults"].values()} == {"built in"}


def test_each_value_is_shown_with_its_origin(user: Operator) -> None:
    user.configure("[defaults]", "jobs = 8", "retries = 2", 'cache = "kept"', "[defaults.pull]", "retries = 3")
    shown = user.show(OCISTREAM_STALL_TIMEOUT="2.5", OCISTREAM_NO_REFERRERS="1")
    assert "# file: ~/.config/ocistream/config.toml\n" in shown
    assert "\njobs = 8   # file ~/.config/ocistream/config.toml [defaults]\n" in shown
    assert "\nstall-timeout = 2.5   # environment OCISTREAM_STALL_TIMEOUT\n" in shown
    assert "\nno-referrers = true   # environment OCISTREAM_NO_REFERRERS\n" in shown
    assert f'\ncache = "{user.file.parent}/kept"   # file' in shown
    assert "\n[defaults.pull]\nretries = 3   # file ~/.config/ocistream/config.toml [defaults.pull]\n" in shown
    assert "\nretries = 2   # file ~/.config/ocistream/config.toml [defaults]\n" in shown


def test_show_prints_the_settings_of_one_command(user: Operator) -> None:
    user.configure("[defaults]", "jobs = 8", "retries = 2", "[defaults.push]", "retries = 3")
    settings = user.document("push")["defaults"]["defaults.push"]
    assert settings["jobs"] == {"value": 8, "origin": "file", "where": f"{user.file} [defaults]"}
    assert settings["retries"] == {"value": 3, "origin": "file", "where": f"{user.file} [defaults.push]"}
    assert settings["progress"] == {"value": "auto", "origin": "built in", "where": None}
    assert "cache" not in settings
    assert "output" not in settings
    assertions.failure(user.run("show", "pul"), 2, "'pul' is not a command or an image", "pull, push")
    assertions.failure(user.run("show", "a.example:5000"), 2, "is not a command or an image", "HOST/REPO[:TAG]")


def test_the_output_of_show_is_an_equivalent_file(user: Operator, certificate: Certificate) -> None:
    user.write(".config/ocistream/ca.pem", certificate.file.read_text(), certificate.key_file.read_text())
    user.configure(
        "[defaults]",
        "jobs = 8",
        'ca-cert = "ca.pem"',
        'platform = ["linux/amd64", "linux/arm64"]',
        "[defaults.pull]",
        "retries = 3",
        '[registry."Docker.io"]',
        'mirrors = ["mirror.example/hub", { location = "c.example", pull = "digest-only", insecure = true }]',
        'ca-cert = "ca.pem"',
        'client-cert = "ca.pem"',
        'client-key = "~/.config/ocistream/ca.pem"',
        "requests-per-second = 2.5",
        'credentials = "file:auth.json"',
        'profile = "harbor"',
    )
    user.write(".config/ocistream/auth.json", "{}")
    # Control characters and quotes must be escaped.
    env = {"OCISTREAM_VIA_PROGRAM": 'a"\\ \x1b[31m \u202e é\u2028'}
    shown = user.show(**env)
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert tomllib.loads(shown)["defaults"]["via-program"] == env["OCISTREAM_VIA_PROGRAM"]
    before = user.document(**env)
    copy = user.write("elsewhere/copy.toml", shown)
    assertions.success(user.run("check", copy))
    after = user.document("--config", str(copy))
    values = [
        {
            "defaults": {
                (table, key): setting["value"]
                for table, settings in document["defaults"].items()
                for key, setting in settings.items()
            },
            "registries": {host: said["settings"] for host, said in document["registries"].items()},
        }
        for document in (before, after)
    ]
    for found in values:
        for settings in found["registries"].values():
            for setting in settings.values():
                del setting["where"]
    assert values[0] == values[1]
    assert before["registries"]["docker.io"]["settings"]["credentials"]["value"] == f"file:{user.file.parent}/auth.json"


def test_registries_are_shown_without_secrets(user: Operator) -> None:
    auth = base64.b64encode(f"me:{SECRET}".encode()).decode()
    user.write(".docker/config.json", json.dumps({"auths": {"b.example": {"auth": auth}}, "credsStore": "gone"}))
    user.write(".config/containers/certs.d/c.example:5000/ca.crt")
    user.write(".config/containers/certs.d/no registry/ca.crt")
    containers = user.write(
        ".config/containers/registries.conf",
        "[[registry]]",
        'prefix = "b.example/team"',
        'location = "elsewhere.example/team"',
        "blocked = true",
        "[[registry.mirror]]",
        'location = "mirror.example"',
    )
    user.configure('[registry."a.example"]', 'credentials = "env:CI"', "plain-http = true")
    env = {"CI_USERNAME": "me", "CI_PASSWORD": SECRET}
    document = user.document(**env)
    registries = document["registries"]
    assert registries["a.example"] == {
        "settings": {
            "credentials": {"value": "env:CI", "origin": "file", "where": str(user.file)},
            "plain-http": {"value": True, "origin": "file", "where": str(user.file)},
        },
        "certificates": None,
        "credentials": ["CI_USERNAME"],
    }
    # The helper does not exist: to run it would be an error.
    assert registries["b.example"]["credentials"] == ["~/.docker/config.json"]
    assert registries["c.example:5000"]["credentials"] == ["docker-credential-gone"]
    assert registries["c.example:5000"]["certificates"] == f"{user.home}/.config/containers/certs.d/c.example:5000"
    assert "no registry" not in registries
    assert document["containers"] == [
        {
            "prefix": "b.example/team",
            "location": "elsewhere.example/team",
            "blocked": True,
            "mirrors": [{"location": "mirror.example", "pull": "all", "insecure": False}],
            "where": str(containers),
        }
    ]
    shown = user.show(**env)
    assert SECRET not in shown + json.dumps(document)
    assert '\n[registry."a.example"]\ncredentials = "env:CI"   # file ~/.config/ocistream/config.toml\n' in shown
    assert "\n# credentials: CI_USERNAME\n" in shown
    assert "\n# certificates: ~/.config/containers/certs.d/c.example:5000\n" in shown
    assert "\n# ~/.config/containers/registries.conf\n#   prefix = " in shown
    assert set(tomllib.loads(shown)["registry"]) == {"a.example", "b.example", "c.example:5000"}


def test_show_names_the_variable_that_is_not_set(user: Operator) -> None:
    user.configure('[registry."a.example"]', 'credentials = "env:CI"')
    assert "\n# credentials: none (CI_USERNAME is not set)\n" in user.show() + "\n"
    user.write(".docker/config.json", json.dumps({"auths": {"a.example": {"auth": "bWU6c2VjcmV0"}}}))
    assert "\n# credentials: ~/.docker/config.json (CI_USERNAME is not set)\n" in user.show() + "\n"


@pytest.mark.parametrize(
    ("table", "line", "reason"),
    [
        ('[registry."a.example"]', 'ca-cert = "bad.pem"', "has no CA certificate, or a malformed one"),
        ('[registry."a.example"]', 'client-cert = "bad.pem"', "is not a client certificate with its key"),
        ('[trust."a.example"]', 'keys = ["bad.pem"]', "cannot be used as a key"),
    ],
)
def test_check_reads_certificates_and_keys(user: Operator, table: str, line: str, reason: str) -> None:
    bad = user.write(".config/ocistream/bad.pem", "nonsense")
    file = user.configure(table, line)
    assertions.failure(user.run("check"), 2, f"{file}: {table}: {bad} {reason}")


def test_check_finds_mistakes_for_all_commands(user: Operator) -> None:
    for line, words in (
        ("[defaults.gc]\nmax-size = 'huge'", "[defaults.gc] max-size: --max-size 'huge' is not a size"),
        ("[defaults]\njobs = 99", "[defaults] jobs: '99' is not a whole number from 1 to 32"),
        ("[defaults.push]\ncache = 'x'", "cache is not an option of `ocistream push`"),
        ("[registry.'a.example']\nprofile = 'x'", "profile is not one of"),
        ("[register]", "unknown key 'register'"),
        ("x =", "is not TOML"),
    ):
        file = user.write("other.toml", line)
        assertions.failure(user.run("check", file), 2, str(file), words)
        assertions.failure(user.run("check", "--config", file), 2, str(file), words)
        assertions.failure(user.run("check", OCISTREAM_CONFIG=str(file)), 2, str(file), words)
        assertions.failure(user.run("show", "--config", file), 2, str(file), words)


def test_check_finds_too_deep_nesting(user: Operator) -> None:
    file = user.write("other.toml", "x = " + 5000 * "[")
    result = user.run("check", file)
    assertions.failure(result, 2, str(file))
    # The limit of Python's parser depends on its version.
    assert re.search("is nested too deeply|is not TOML", result.err)


def test_check_names_the_valid_file(user: Operator) -> None:
    assert "no configuration file found" in user.run("check").err
    user.configure("[defaults]", "jobs = 8")
    result = assertions.success(user.run("check"))
    assert f"{user.file} is valid" in result.err
    assertions.failure(user.run("check", "nowhere.toml"), 4, "nowhere.toml: no such file")
    assertions.failure(user.run("check", user.file, "--config", user.file), 2, "FILE and --config both name the file")
    assertions.failure(user.run("check", "--json"), 2, "--json is only for `config show`")


def test_another_file_is_checked_even_if_the_default_file_is_invalid(user: Operator) -> None:
    user.configure("[defaults")
    assertions.success(user.run("check", user.write("other.toml", "[defaults]")))
    assertions.success(user.run("show", "--config", user.home / "other.toml"))
