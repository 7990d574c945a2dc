"""Credentials for a real docker-registry with htpasswd (Basic) and with a token server (Bearer)."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.certificates import Certificate
from tests.cli import assertions
from tests.images import Descriptor, Layout, small_image
from tests.peers import Dockerd, DockerRegistry, Tools, docker_registry
from tests.registry_http import basic, seed
from tests.runner import Result, ocistream
from tests.token_server import TokenServer, User, token_server

USER: Final = "ada"
PASSWORD: Final = "lovelace: the 1st"
WRONG: Final = "wr0ng-secret"

Start = Callable[..., DockerRegistry]
StartTokens = Callable[..., TokenServer]


@dataclasses.dataclass(frozen=True)
class Guarded:
    """A registry that requires USER's PASSWORD, with the image team/app:v1, which `archive` also has."""

    scheme: str
    registry: DockerRegistry
    archive: Path
    image: Descriptor

    @property
    def name(self) -> str:
        return f"{self.registry.host}/team/app:v1"


@pytest.fixture(scope="module", params=["Basic", "Bearer"])
def guarded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, certificate: Certificate
) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    layout = Layout(folder / "made")
    image = small_image(layout, name="v1")
    archive = folder / "app.tar"
    subprocess.run(["tar", "--create", "--file", archive, "--directory", layout.path, "."], check=True)
    with token_server(certificate, users={USER: User(PASSWORD)}) as tokens:
        auth = {USER: PASSWORD} if request.param == "Basic" else tokens
        with docker_registry(folder / "registry", auth=auth) as registry:
            guarded = Guarded(request.param, registry, archive, image)
            assertions.success(ocistream("push", guarded.name, "-i", archive, env=by_environment(PASSWORD)))
            yield guarded


def by_environment(password: str) -> dict[str, str]:
    return {"OCISTREAM_USERNAME": USER, "OCISTREAM_PASSWORD": password}


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def assert_refused(result: Result, *secrets: str) -> None:
    """Assert that a command failed for lack of permission, with one or two lines without secrets."""
    assert (result.code, result.out) == (3, b""), result.err
    assert 1 <= len(result.err.splitlines()) <= 2
    assert_silent_about(result, *secrets)


def assert_silent_about(result: Result, *secrets: str) -> None:
    said = result.err + result.out.decode()
    for secret in secrets:
        assert secret not in said
        assert basic(USER, secret)["Authorization"].removeprefix("Basic ") not in said


# -- both schemes; tests/quirks/test_credentials.py tests every source of a password -------------------------


def test_pull_and_push_succeed_only_with_the_password(guarded: Guarded, tmp_path: Path) -> None:
    pull = ("pull", guarded.name, "-o", tmp_path / "pulled.tar")
    push = ("push", f"{guarded.registry.host}/pushed:v2", "-i", guarded.archive)
    for command in (pull, push):
        refused = ocistream(*command, env=by_environment(WRONG))
        assert_refused(refused, WRONG)
        assert "OCISTREAM_USERNAME" in refused.err
        refused = ocistream(*command)
        assert_refused(refused)
        assert f"ocistream login {guarded.registry.host}" in refused.err
    assert not (tmp_path / "pulled.tar").exists()
    assert guarded.registry.tags("pushed") == {}
    pulled = ocistream(*pull, env=by_environment(PASSWORD))
    assert pulled.lines() == [f"{guarded.name}@{guarded.image['digest']}"], pulled.err
    assert ocistream(*push, env=by_environment(PASSWORD)).code == 0
    assert guarded.registry.tags("pushed") == {"v2": guarded.image["digest"]}


def test_a_login_is_checked_and_kept_until_logout(guarded: Guarded, tmp_path: Path) -> None:
    env, host = {"HOME": str(tmp_path)}, guarded.registry.host
    login = ("login", host, "-u", USER, "--password-stdin")
    assert_refused(ocistream(*login, stdin=WRONG.encode(), env=env), WRONG)
    assert not (tmp_path / ".docker").exists()
    kept = assertions.success(ocistream(*login, stdin=PASSWORD.encode(), env=env))
    assert_silent_about(kept, PASSWORD)
    pull = ("pull", guarded.name, "-o", tmp_path / "pulled.tar")
    assert ocistream(*pull, env=env).code == 0
    assert ocistream("logout", host, env=env).code == 0
    assert_refused(ocistream(*pull, env=env), PASSWORD)


# -- logins of other tools: the file is the same for both schemes ------------------------------------------

with_htpasswd = pytest.mark.parametrize("guarded", ["Basic"], indirect=True)


@with_htpasswd
def test_docker_and_skopeo_use_our_login(
    guarded: Guarded, docker_daemon: Dockerd, tools: Tools, tmp_path: Path
) -> None:
    host, env = guarded.registry.host, {"HOME": str(tmp_path)}
    assert ocistream("login", host, "-u", USER, "--password-stdin", stdin=PASSWORD.encode(), env=env).code == 0
    folder = tmp_path / ".docker"
    tools.run("skopeo", "inspect", f"--authfile={folder / 'config.json'}", f"docker://{guarded.name}")
    dataclasses.replace(docker_daemon, config=folder).docker("pull", guarded.name)


@with_htpasswd
def test_the_logins_of_docker_and_skopeo_are_used(
    guarded: Guarded, docker_daemon: Dockerd, tools: Tools, tmp_path: Path
) -> None:
    host, folder = guarded.registry.host, tmp_path / "docker"
    (tmp_path / "password").write_text(PASSWORD)
    login = ("login", "--username", USER, "--password-stdin", host)
    dataclasses.replace(docker_daemon, config=folder).docker(*login, stdin=tmp_path / "password")
    assertions.success(ocistream("pull", guarded.name, "-o", tmp_path / "1.tar", env={"DOCKER_CONFIG": str(folder)}))
    file = tmp_path / "auth.json"
    tools.run("skopeo", "login", f"--authfile={file}", "--username", USER, "--password", PASSWORD, host)
    assertions.success(ocistream("pull", guarded.name, "-o", tmp_path / "2.tar", env={"REGISTRY_AUTH_FILE": str(file)}))


# -- rights and tokens ------------------------------------------------------------------------------------


def test_pull_and_push_need_the_rights_of_the_token_server(
    start_registry: Start, start_token_server: StartTokens, layout: Layout, tmp_path: Path
) -> None:
    tokens = start_token_server(users={"reader": User(PASSWORD, {"*": ["pull"]})}, anonymous={"public/*": ["pull"]})
    registry = start_registry(auth=tokens)
    image = small_image(layout)
    for repository in ("public/app", "private/app"):
        access = [{"type": "repository", "name": repository, "actions": ["pull", "push"]}]
        header = {"Authorization": f"Bearer {tokens.token('', access)}"}
        seed(layout, image, registry.host, repository, "v1", headers=header)
    archive = tmp_path / "app.tar"
    assert ocistream("pull", f"{registry.host}/public/app:v1", "-o", archive).code == 0
    assert_refused(ocistream("pull", f"{registry.host}/private/app:v1", "-o", tmp_path / "none.tar"))
    reader = {"OCISTREAM_USERNAME": "reader", "OCISTREAM_PASSWORD": PASSWORD}
    assert ocistream("pull", f"{registry.host}/private/app:v1", "-o", archive, env=reader).code == 0
    for env in ({}, reader):
        refused = ocistream("push", f"{registry.host}/public/app:v2", "-i", archive, env=env)
        assert_refused(refused, PASSWORD)
    assert registry.tags("public/app") == {"v1": image["digest"]}


# -- separate credentials for source and destination ------------------------------------------------------


def test_copy_sends_each_registry_its_own_password(start_registry: Start, layout: Layout) -> None:
    source, target = start_registry(auth={"ada": "lovelace"}), start_registry(auth={"grace": "hopper"})
    image = small_image(layout)
    seed(layout, image, source.host, "app", "v1", headers=basic("ada", "lovelace"))
    env = {
        "OCISTREAM_SRC_USERNAME": "ada",
        "OCISTREAM_SRC_PASSWORD": "lovelace",
        "OCISTREAM_DEST_USERNAME": "grace",
        "OCISTREAM_DEST_PASSWORD": "hopper",
    }
    assertions.success(ocistream("copy", f"{source.host}/app:v1", f"{target.host}/copy:v1", env=env))
    assert target.tags("copy") == {"v1": image["digest"]}
