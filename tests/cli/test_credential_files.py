"""--password-file and --authfile, for all commands that log in."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.cli import assertions
from tests.cli.commands import commands, options
from tests.cli.fixture_types import Start
from tests.cli.serving import serving
from tests.faulty_auth import Basic
from tests.faulty_registry import FaultyRegistry
from tests.images import Layout, small_image
from tests.registry_http import basic, get, seed
from tests.runner import Result, ocistream

SECRET = "hunter2-secret"
#: The hint for the options of one side.
OF_A_SIDE = "use --{0}-username, and --{0}-password-file or --{0}-password-stdin for the password"


class User:
    """A user with a registry that requires a password, files with it, and Docker's file with a wrong one."""

    def __init__(self, registry: FaultyRegistry, layout: Layout, home: Path) -> None:
        self.registry, self.home, self.layout = registry, home, layout.path
        seed(layout, small_image(layout, name="app"), registry.host, "app", "1", headers=basic("me", SECRET))
        registry.requests.clear()
        home.mkdir()
        self.password = home / "password"
        self.password.write_text(f"{SECRET}\n")
        self.auth_file = self.write("auth.json", "me", SECRET)
        self.write("docker/config.json", "other", "docker-secret")

    def write(self, name: str, user: str, password: str) -> Path:
        path = self.home / name
        path.parent.mkdir(exist_ok=True)
        entry = {"username": user, "password": password}
        path.write_text(json.dumps({"auths": {self.registry.host: entry}}))
        return path

    def run(self, *argv: str | Path, **env: str) -> Result:
        homes = {"HOME": str(self.home), "DOCKER_CONFIG": str(self.home / "docker")}
        result = ocistream(*argv, env={**homes, **env})
        for secret in (SECRET, "docker-secret"):
            assert secret not in result.err
        return result

    def each(self, *options: str | Path) -> None:
        """Run every command that connects to a registry, and check that it succeeds."""
        host = self.registry.host
        for argv in (
            ["pull", f"{host}/app:1", "-o", str(self.home / "x.tar")],
            ["push", "-i", str(self.layout), f"{host}/new:1"],
            ["copy", f"{host}/app:1", f"{host}/copied:1"],
            ["inspect", f"{host}/app:1"],
            ["have", f"{host}/app"],
        ):
            assertions.success(self.run(*argv, *options, "-v"))

    def pull(self, *options: str | Path, **env: str) -> Result:
        return self.run("pull", f"{self.registry.host}/app:1", "-o", self.home / "x.tar", *options, **env)


@pytest.fixture
def user(start: Start, layout: Layout, tmp_path: Path) -> User:
    return User(start(auth=Basic("me", SECRET)), layout, tmp_path / "home")


def test_every_command_that_logs_in_has_these_options() -> None:
    found = {name: set(options(name)) for name in commands()}
    logging_in = {name for name, there in found.items() if "--username" in there}
    assert logging_in >= {"pull", "push", "copy", "inspect", "have", "serve", "login"}
    for name in logging_in:
        assert {"-u", "--password-stdin", "--password-file"} <= found[name], name
        assert "--authfile" in found[name] or name == "serve", name


def test_a_password_is_read_from_a_file(user: User) -> None:
    user.each("-u", "me", "--password-file", user.password)


def test_credentials_are_read_from_an_authfile(user: User) -> None:
    user.each("--authfile", user.auth_file)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the pipe has its name in /proc")
def test_an_authfile_may_be_a_pipe(user: User) -> None:
    # As with <(COMMAND) of a shell, a second reader finds it empty.
    reader, writer = os.pipe()
    os.write(writer, user.auth_file.read_bytes())
    os.close(writer)
    try:
        assertions.success(user.pull("--authfile", Path(f"/proc/{os.getpid()}/fd/{reader}")))
    finally:
        os.close(reader)


def test_an_authfile_overrides_everything_but_the_user_name(user: User) -> None:
    wrong = user.write("wrong.json", "other", "docker-secret")
    env = {"OCISTREAM_USERNAME": "other", "OCISTREAM_PASSWORD": "docker-secret", "REGISTRY_AUTH_FILE": str(wrong)}
    assertions.success(user.pull("--authfile", user.auth_file, **env))
    refused = user.pull("--authfile", wrong)
    assertions.failure(
        refused, 3, "check the user name and password from ~/wrong.json, which --authfile names: they take precedence"
    )
    assertions.success(user.pull("--authfile", wrong, "--username=me", "--password-file", user.password))


def test_an_authfile_replaces_other_credential_files(user: User) -> None:
    user.write("docker/config.json", "me", SECRET)
    empty = user.home / "empty.json"
    empty.write_text("{}")
    assertions.success(user.pull())
    user.registry.requests.clear()
    others: list[dict[str, str]] = [
        {},
        {"REGISTRY_AUTH_FILE": str(user.auth_file)},
        {"DOCKER_AUTH_CONFIG": user.auth_file.read_text()},
    ]
    for env in others:
        hint = f"\n  ocistream login {user.registry.host} --authfile {empty}\n"
        assertions.failure(user.pull("--authfile", empty, **env), 3, "none were found", hint)
    hint = f"\n  ocistream login {user.registry.host} --plain-http --insecure --authfile {empty}\n"
    assertions.failure(user.pull("--authfile", empty, "--insecure", "--plain-http"), 3, "none were found", hint)
    assert {request.headers["Authorization"] for request in user.registry.requests} == {None}


def test_a_missing_authfile_is_an_error_even_without_authentication(user: User) -> None:
    user.registry.auth = None
    for option in ("--authfile", "--src-authfile"):
        end = [f"{user.registry.host}/app:1", f"oci:{user.home}/out"]
        result = user.run("copy", *end, f"{option}={user.home}/none.json")
        assertions.failure(result, 3, f"{option} {user.home}/none.json: no such file")


@pytest.mark.parametrize("content", ["{", "[]", '{"auths": []}', '{"credHelpers": 1}'])
def test_a_malformed_authfile_is_an_error_even_without_authentication(user: User, content: str) -> None:
    user.registry.auth = None
    (user.home / "broken.json").write_text(content)
    assertions.failure(user.pull("--authfile", user.home / "broken.json"), 2, "broken.json", "log in again")
    assert user.registry.requests == []


def test_login_and_logout_keep_credentials_in_an_authfile(user: User) -> None:
    before = (user.home / "docker/config.json").read_bytes()
    kept = user.home / "kept.json"
    login = ["login", user.registry.host, "--username=me", f"--password-file={user.password}", f"--authfile={kept}"]
    assertions.success(user.run(*login))
    assert kept.stat().st_mode & 0o777 == 0o600
    assertions.success(user.pull("--authfile", kept))
    assertions.success(user.run("logout", user.registry.host, "--authfile", kept))
    assert json.loads(kept.read_bytes())["auths"] == {}
    assert (user.home / "docker/config.json").read_bytes() == before


def test_serve_reads_its_password_from_a_file(user: User) -> None:
    with serving(user.layout, "-u", "ada", "--password-file", user.password) as (_, host):
        assert get(host, "/v2/")[0] == 401
        assert get(host, "/v2/", headers=basic("ada", SECRET))[0] == 200
    alone = user.run("serve", user.layout, "--password-file", user.password)
    assertions.failure(alone, 2, "--password-file without --username")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--username=me", "--password-file=none"], 4, ["--password-file none: no such file"]),
        (["--username=me", "--password-file=empty"], 2, ["--password-file empty is empty"]),
        (["--username=me", "--password-file=long"], 2, ["--password-file long has more than"]),
        (["--username=me", "--password-file=."], 9, ["--password-file .: "]),
        (["--username=me", "--password-file=-"], 2, ["--password-file - is not a file", "--password-stdin"]),
        (["--username=me", f"--password-file={'x' * 5000}"], 9, ["--password-file xxx"]),
        (["--username=", "--password-file=one"], 2, ["--username is empty"]),
        (["--username=me", "--password-file="], 2, ["--password-file is empty"]),
        (["--authfile="], 2, ["--authfile is empty"]),
        (["--password-file=one"], 2, ["--password-file needs --username", "OCISTREAM_USERNAME"]),
        (["--username=me", "--password-file=one", "--password-stdin"], 2, ["both give the password"]),
    ],
)
def test_mistakes_are_reported_before_any_request(
    served: FaultyRegistry, tmp_path: Path, options: list[str], code: int, words: list[str]
) -> None:
    (tmp_path / "one").write_text("x")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "long").write_text("x" * 100_000)
    argv = ["pull", f"{served.host}/app:1", "-o", "x.tar", *options]
    assertions.failure(ocistream(*argv, cwd=tmp_path, stdin=b"secret"), code, *words)
    assert served.requests == []


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        ("copy --src-creds me:hunter2 a b", OF_A_SIDE.format("src")),
        ("copy --dest-creds=me:hunter2 a b", OF_A_SIDE.format("dest")),
        ("pull --creds=me:hunter2 a", "use --username, and --password-file or --password-stdin for the password"),
        ("pull --src-creds=me:hunter2 a", "use --username, and --password-file or --password-stdin for the password"),
        ("push --password=hunter2 a", "use --password-file or --password-stdin"),
        ("login --password hunter2", "use --password-file or --password-stdin"),
        ("copy --dest-tls-verify=false a b", "--dest-insecure disables certificate verification"),
        ("verify --creds=me:hunter2", "use --username, and --password-file or --password-stdin"),
        ("gc --creds=me:hunter2", "see `ocistream gc --help`"),
    ],
)
def test_options_of_other_tools_get_a_hint_with_the_option_of_ocistream(argv: str, hint: str) -> None:
    result = ocistream(*argv.split())
    assertions.failure(result, 2, "No such option", hint)
    assert "hunter2" not in result.err
