"""The configuration file: which one is read, which keys it may have, and the errors for malformed ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from ocistream import limits
from ocistream.auth.credentials import CredentialSource
from ocistream.config.config_toml import parse_host_rules, read_configuration
from ocistream.errors import UsageError
from ocistream.http.settings import HostSettings
from ocistream.registry.configuration import HostRule, Mirror
from ocistream.streams.paths import find_configuration_file

NOWHERE = Path("/nowhere/config.toml")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def read_host_rules(env: dict[str, str], home: Path, system: Path = NOWHERE) -> dict[str, HostRule]:
    path = find_configuration_file(env, home, system=system)
    return {} if path is None else parse(path, home)


def parse(path: Path, home: Path) -> dict[str, HostRule]:
    table = read_configuration(path, home)
    assert table is not None
    return parse_host_rules(table)


def read(tmp_path: Path, text: str) -> dict[str, HostRule]:
    return parse(write(tmp_path / "conf/config.toml", text), tmp_path / "home")


def of_a(tmp_path: Path, text: str) -> HostRule:
    return read(tmp_path, f'[registry."a.example"]\n{text}')["a.example"]


class TestFileSelection:
    text = '[registry."{}"]'

    def test_the_users_file_precedes_the_systems(self, tmp_path: Path) -> None:
        system = write(tmp_path / "etc/config.toml", self.text.format("system.example"))
        assert list(read_host_rules({}, tmp_path, system)) == ["system.example"]
        write(tmp_path / ".config/ocistream/config.toml", self.text.format("user.example"))
        assert list(read_host_rules({}, tmp_path, system)) == ["user.example"]
        env = {"XDG_CONFIG_HOME": str(tmp_path / "xdg")}
        assert list(read_host_rules(env, tmp_path, system)) == ["system.example"]
        write(tmp_path / "xdg/ocistream/config.toml", self.text.format("xdg.example"))
        assert list(read_host_rules(env, tmp_path, system)) == ["xdg.example"]

    def test_a_relative_xdg_config_home_is_ignored(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path / "c/ocistream/config.toml", self.text.format("stranger.example"))
        write(tmp_path / "home/.config/ocistream/config.toml", self.text.format("user.example"))
        monkeypatch.chdir(tmp_path)
        found = read_host_rules({"XDG_CONFIG_HOME": "c"}, tmp_path / "home")
        assert list(found) == ["user.example"]

    def test_without_a_file_there_are_no_rules(self, tmp_path: Path) -> None:
        assert read_host_rules({}, tmp_path) == {}


def test_all_keys_are_read(tmp_path: Path) -> None:
    for name in ("conf/ca.pem", "conf/other.pem", "conf/client.pem", "home/key.pem"):
        write(tmp_path / name, "")
    rules = read(
        tmp_path,
        """
        [registry."Registry.example.com:5000"]
        mirrors = ["mirror.local:5000/hub", {location = "m2.example.com", insecure = true, pull = "digest-only"}]
        plain-http = true
        insecure = false
        ca-cert = ["ca.pem", "other.pem"]
        client-cert = "client.pem"
        client-key = "~/key.pem"
        url = "https://gateway.example.com/registry/"
        requests-per-second = 5
        upload = "chunk=4MiB"
        profile = "amazon-ecr"
        credentials = "helper:ecr-login"
        [registry."registry-1.docker.io"]
        ca-cert = "ca.pem"
        """,
    )
    folder = tmp_path / "conf"
    assert rules["registry.example.com:5000"] == HostRule(
        HostSettings(
            plain_http=True,
            ca_files=(str(folder / "ca.pem"), str(folder / "other.pem")),
            client_certificates=((str(folder / "client.pem"), str(tmp_path / "home/key.pem")),),
            url="https://gateway.example.com/registry",
            requests_per_second=5.0,
            upload="chunk=4MiB",
            profile="amazon-ecr",
        ),
        insecure=False,
        mirrors=(Mirror("mirror.local:5000/hub"), Mirror("m2.example.com", insecure=True, pull_mode="digest-only")),
        credentials=CredentialSource("helper", "ecr-login"),
    )
    assert rules["docker.io"].settings.ca_files == (str(folder / "ca.pem"),)


def test_an_empty_registry_table_changes_nothing(tmp_path: Path) -> None:
    assert of_a(tmp_path, "") == HostRule()


def test_an_empty_list_of_mirrors_is_not_a_missing_one(tmp_path: Path) -> None:
    assert of_a(tmp_path, "mirrors = []").mirrors == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mirors = []", "unknown key 'mirors'"),
        ("mirrors = 'm.example'", "mirrors is not a list"),
        ("mirrors = [1]", r"mirrors\[0\] is neither a location nor a table"),
        ("mirrors = ['m.example', 'https://m.example']", r"mirrors\[1\] is not HOST\[:PORT\]\[/PATH\]"),
        ("mirrors = [{pull = 'all'}]", r"mirrors\[0\]: the key 'location' is missing"),
        (
            "mirrors = [{location = 'm.example', pull = 'never'}]",
            r"mirrors\[0\]: pull is not one of all, digest-only, tag-only",
        ),
        ("mirrors = [{location = 'm.example', plain = true}]", r"mirrors\[0\]: unknown key 'plain'"),
        ("mirrors = [{location = 'm.example', insecure = 1}]", r"mirrors\[0\]: insecure is neither true nor false"),
        ("plain-http = 'yes'", "plain-http is neither true nor false"),
        ("insecure = 1", "insecure is neither true nor false"),
        ("ca-cert = 1", "ca-cert is neither a path nor a list of paths"),
        ("ca-cert = [1]", "ca-cert is neither a path nor a list of paths"),
        ("ca-cert = 'gone.pem'", r"ca-cert names .*/conf/gone\.pem: no such file"),
        ("client-key = 'config.toml'", "client-key is set without client-cert"),
        ("client-cert = 1", "client-cert is not a string"),
        ("url = 'gateway.example.com'", "url is not"),
        ("url = 'ftp://gateway.example.com'", "url is not"),
        ("url = 'https://gateway.example.com/?x'", "url is not"),
        ("url = 'https://gateway.example.com:99999'", "url is not"),
        ("url = 'https://'", "url is not"),
        ("requests-per-second = 0", "requests-per-second is not a number above 0"),
        ("requests-per-second = true", "requests-per-second is not a number above 0"),
        ("requests-per-second = nan", "requests-per-second is not a number above 0"),
        ("requests-per-second = inf", "requests-per-second is not a number above 0"),
        ("upload = 4", "upload is not a string"),
        ("profile = 'Harbour'", "profile is not one of amazon-ecr, .*harbor"),
        ("upload = 'bogus'", "upload is refused: malformed upload method 'bogus'"),
        ("upload = 'chunk=1G'", "upload is refused: chunks .*too large"),
        ("profile = 1", "profile is not a string"),
        ("credentials = 'env:1X'", "credentials is not env:PREFIX, helper:NAME or file:PATH"),
        ("credentials = 'helper:../x'", "credentials is not env:PREFIX"),
        ("credentials = 'file:'", "credentials is not env:PREFIX"),
        ("credentials = {password = 'x'}", "credentials is not a string"),
    ],
)
def test_an_invalid_key_is_refused_with_the_file_and_the_key(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"conf/config\.toml, registry, a\.example(: |, ){words}"):
        of_a(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "unknown key 'x'"),
        ("registry = 1", "registry is not a table"),
        ("[registry]\nx = 1", r"registry: x is not a table"),
        ('[registry."https://a/b"]', r"registry: https://a/b is not a registry's HOST\[:PORT\]"),
        ('[registry."docker.io"]\n[registry."index.docker.io"]', "is set twice"),
        ("[[registry]]", "registry is not a table"),
        ("defaults = 1", "defaults is not a table"),
        ("\nx = =", r"is not TOML: .*line 2"),
        ("x = " + "[" * 5000, "is not TOML|nested too deeply"),
        ("x = " + "9" * 5000, "a number has too many digits"),
        ("x = 1 #" + "x" * limits.MAX_CONFIG_FILE, f"larger than {limits.MAX_CONFIG_FILE}"),
    ],
)
def test_an_invalid_file_is_refused(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"conf/config\.toml.*({words})"):
        read(tmp_path, text)


def test_bytes_that_are_not_utf_8_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"# \xff\n")
    with pytest.raises(UsageError, match="byte 2 is not UTF-8"):
        parse(path, tmp_path)


@pytest.mark.parametrize("key", ["password", "username", "auth", "identity-token", "client_secret"])
def test_a_password_key_is_refused_with_a_hint_and_never_shown(key: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        of_a(tmp_path, f'{key} = "hunter2"')
    assert "ocistream login" in (caught.value.hint or "")
    assert "hunter2" not in caught.value.message + (caught.value.hint or "")


def test_a_password_in_a_url_is_refused_and_never_shown(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        of_a(tmp_path, 'url = "https://me:hunter2@gateway.example.com"')
    assert "hunter2" not in caught.value.message


def test_a_malformed_credential_source_is_never_shown(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        of_a(tmp_path, 'credentials = "me:hunter2"')
    assert "hunter2" not in caught.value.message + (caught.value.hint or "")
    assert "helper:ecr-login" in (caught.value.hint or "")


@pytest.mark.parametrize(("text", "path"), [("auth.json", "conf/auth.json"), ("~/auth.json", "home/auth.json")])
def test_a_relative_credentials_file_is_next_to_the_configuration(text: str, path: str, tmp_path: Path) -> None:
    assert of_a(tmp_path, f'credentials = "file:{text}"').credentials == CredentialSource("file", str(tmp_path / path))


def test_defaults_add_no_registry(tmp_path: Path) -> None:
    assert read(tmp_path, "[defaults]\njobs = 8\n[defaults.pull]\nretries = 1") == {}
