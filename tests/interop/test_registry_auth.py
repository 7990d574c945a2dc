"""Credentials from everywhere, shown to a real docker-registry: by htpasswd (Basic), and by a token server (Bearer)."""

from __future__ import annotations

import base64
import dataclasses
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.certificates import Certificate
from tests.images import Descriptor, Layout, small_image
from tests.peers import Dockerd, DockerRegistry, Tools, docker_registry
from tests.registry_http import assert_no_image, basic, seed
from tests.runner import Result, ocistream
from tests.token_server import TokenServer, User, token_server

MIB: Final = 1 << 20
USER: Final = "ada"
PASSWORD: Final = "lovelace: the 1st"
WRONG: Final = "wr0ng-secret"

Start = Callable[..., DockerRegistry]
StartTokens = Callable[..., TokenServer]


@dataclasses.dataclass(frozen=True)
class Guarded:
    """A registry that wants USER's PASSWORD, with one image in it: team/app:v1, which is `archive` too."""

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
            pushed = ocistream("push", guarded.name, "-i", archive, env=by_environment(PASSWORD))
            assert pushed.code == 0, pushed.err
            yield guarded


@dataclasses.dataclass(frozen=True)
class Way:
    """How a password is given: what it adds to a command line, its environment and stdin, and what errors call it."""

    called: str
    options: Sequence[str] = ()
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    stdin: bytes | None = None

    def run(self, command: str, *argv: str | Path) -> Result:
        return ocistream(command, *self.options, *argv, env=self.env, stdin=self.stdin)


def by_environment(password: str) -> dict[str, str]:
    return {"OCISTREAM_USERNAME": USER, "OCISTREAM_PASSWORD": password}


@dataclasses.dataclass(frozen=True)
class Secret:
    """A password for a registry, and the HOME below which it may be kept."""

    host: str
    password: str
    home: Path

    def auths(self) -> str:
        """Return a document of Docker's format that holds it."""
        entry = base64.b64encode(f"{USER}:{self.password}".encode()).decode()
        return json.dumps({"auths": {self.host: {"auth": entry}}})

    def env(self, **variables: object) -> dict[str, str]:
        return {"HOME": str(self.home), **{name: str(value) for name, value in variables.items()}}


def in_the_environment(secret: Secret) -> Way:
    return Way("OCISTREAM_USERNAME", env=secret.env(**by_environment(secret.password)))


def by_flags(secret: Secret) -> Way:
    options = ("--username", USER, "--password-stdin")
    return Way("--username", options, secret.env(), secret.password.encode() + b"\n")


def in_dockers_file(secret: Secret) -> Way:
    write(secret.home / ".docker/config.json", secret.auths())
    return Way("~/.docker/config.json", env=secret.env())


def in_podmans_file(secret: Secret) -> Way:
    file = write(secret.home / "run/containers/auth.json", secret.auths())
    return Way("~/run/containers/auth.json", env=secret.env(XDG_RUNTIME_DIR=file.parents[1]))


def in_a_named_file(secret: Secret) -> Way:
    file = write(secret.home / "named.json", secret.auths())
    return Way("~/named.json", env=secret.env(REGISTRY_AUTH_FILE=file))


def in_dockers_variable(secret: Secret) -> Way:
    return Way("DOCKER_AUTH_CONFIG", env=secret.env(DOCKER_AUTH_CONFIG=secret.auths()))


def by_a_credential_program(secret: Secret) -> Way:
    answer = json.dumps({"ServerURL": secret.host, "Username": USER, "Secret": secret.password})
    program = write(
        secret.home / "bin/docker-credential-from-test",
        f"""#!/bin/sh
read -r server
if [ "$1 $server" = "get {secret.host}" ]; then
    echo '{answer}'
else
    echo 'credentials not found in native keychain'
    exit 1
fi
""",
    )
    program.chmod(0o755)
    write(secret.home / ".docker/config.json", json.dumps({"credHelpers": {secret.host: "from-test"}}))
    return Way("docker-credential-from-test", env=secret.env(PATH=f"{program.parent}:/usr/bin:/bin"))


ways = pytest.mark.parametrize(
    "way",
    [
        in_the_environment,
        by_flags,
        in_dockers_file,
        in_podmans_file,
        in_a_named_file,
        in_dockers_variable,
        by_a_credential_program,
    ],
    ids=lambda way: way.__name__.replace("_", " "),
)
MakeWay = Callable[[Secret], Way]


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def assert_refused(result: Result, *secrets: str) -> None:
    """Assert that it ended as one without permission does, in a line or two that tell no secret."""
    assert (result.code, result.out) == (3, b""), result.err
    assert 1 <= len(result.err.splitlines()) <= 2
    assert_silent_about(result, *secrets)


def assert_silent_about(result: Result, *secrets: str) -> None:
    said = result.err + result.out.decode()
    for secret in secrets:
        assert secret not in said
        assert basic(USER, secret)["Authorization"].removeprefix("Basic ") not in said


# -- where a password comes from --------------------------------------------------------------------------


@ways
def test_a_password_opens_the_registry(way: MakeWay, guarded: Guarded, tmp_path: Path) -> None:
    given = way(Secret(guarded.registry.host, PASSWORD, tmp_path))
    # One of the two a scheme: where a password comes from is the same question for both.
    if guarded.scheme == "Basic":
        pulled = given.run("pull", guarded.name, "-o", tmp_path / "pulled.tar")
        assert pulled.lines() == [f"{guarded.name}@{guarded.image['digest']}"], pulled.err
    else:
        repository = f"pushed/{way.__name__}"
        pushed = given.run("push", f"{guarded.registry.host}/{repository}:v2", "-i", guarded.archive)
        assert pushed.code == 0, pushed.err
        assert guarded.registry.tags(repository) == {"v2": guarded.image["digest"]}


@ways
def test_a_wrong_password_is_refused_by_the_name_of_where_it_came_from(
    way: MakeWay, guarded: Guarded, tmp_path: Path
) -> None:
    given = way(Secret(guarded.registry.host, WRONG, tmp_path))
    pulled = given.run("pull", guarded.name, "-o", tmp_path / "pulled.tar")
    assert_refused(pulled, WRONG)
    assert given.called in pulled.err
    assert guarded.registry.host in pulled.err
    assert not (tmp_path / "pulled.tar").exists()


@pytest.mark.parametrize("command", ["pull", "push"])
def test_even_tracebacks_are_silent_about_a_password(command: str, guarded: Guarded, tmp_path: Path) -> None:
    for password, code in ((WRONG, 3), (PASSWORD, 0)):
        end = f"-o{tmp_path / 'pulled.tar'}" if command == "pull" else f"-i{guarded.archive}"
        result = ocistream(command, "-vv", guarded.name, end, env=by_environment(password))
        assert result.code == code
        assert ("Traceback" in result.err) == (code != 0)
        assert_silent_about(result, password, "Bearer ey")


def test_nobodys_push_is_refused_and_told_how_to_log_in(guarded: Guarded) -> None:
    refused = ocistream("push", f"{guarded.registry.host}/nobody:v1", "-i", guarded.archive)
    assert_refused(refused)
    assert f"ocistream login {guarded.registry.host}" in refused.err
    assert guarded.registry.tags("nobody") == {}


def test_a_password_is_for_its_own_registry_only(guarded: Guarded, start_registry: Start, tmp_path: Path) -> None:
    other = start_registry(auth={USER: PASSWORD})
    way = in_dockers_file(Secret(guarded.registry.host, PASSWORD, tmp_path))
    assert_refused(way.run("pull", f"{other.host}/team/app:v1", "-o", tmp_path / "pulled.tar"), PASSWORD)


# -- logging in and out -----------------------------------------------------------------------------------


def test_who_has_logged_in_may_pull_until_logging_out(guarded: Guarded, tmp_path: Path) -> None:
    env, host = {"HOME": str(tmp_path)}, guarded.registry.host
    pull = ("pull", guarded.name, "-o", tmp_path / "pulled.tar")
    login = ocistream("login", host, "-u", USER, "--password-stdin", stdin=PASSWORD.encode(), env=env)
    assert login.code == 0, login.err
    assert_silent_about(login, PASSWORD)
    file = tmp_path / ".docker/config.json"
    assert list(json.loads(file.read_text())["auths"]) == [host]
    assert file.stat().st_mode & 0o777 == 0o600
    assert ocistream(*pull, env=env).code == 0
    assert ocistream("logout", host, env=env).code == 0
    assert_refused(ocistream(*pull, env=env), PASSWORD)


def test_a_login_with_a_wrong_password_is_refused_and_not_kept(guarded: Guarded, tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path)}
    login = ocistream("login", guarded.registry.host, "-u", USER, "--password-stdin", stdin=WRONG.encode(), env=env)
    assert_refused(login, WRONG)
    assert not (tmp_path / ".docker").exists()


def test_docker_and_skopeo_use_our_login(
    guarded: Guarded, docker_daemon: Dockerd, tools: Tools, tmp_path: Path
) -> None:
    host, env = guarded.registry.host, {"HOME": str(tmp_path)}
    assert ocistream("login", host, "-u", USER, "--password-stdin", stdin=PASSWORD.encode(), env=env).code == 0
    folder = tmp_path / ".docker"
    tools.run("skopeo", "inspect", f"--authfile={folder / 'config.json'}", f"docker://{guarded.name}")
    dataclasses.replace(docker_daemon, config=folder).docker("pull", guarded.name)


def test_the_logins_of_docker_and_skopeo_are_used(
    guarded: Guarded, docker_daemon: Dockerd, tools: Tools, tmp_path: Path
) -> None:
    host, folder = guarded.registry.host, tmp_path / "docker"
    write(tmp_path / "password", PASSWORD)
    login = ("login", "--username", USER, "--password-stdin", host)
    dataclasses.replace(docker_daemon, config=folder).docker(*login, stdin=tmp_path / "password")
    pulled = ocistream("pull", guarded.name, "-o", tmp_path / "1.tar", env={"DOCKER_CONFIG": str(folder)})
    assert pulled.code == 0, pulled.err
    file = tmp_path / "auth.json"
    tools.run("skopeo", "login", f"--authfile={file}", "--username", USER, "--password", PASSWORD, host)
    pulled = ocistream("pull", guarded.name, "-o", tmp_path / "2.tar", env={"REGISTRY_AUTH_FILE": str(file)})
    assert pulled.code == 0, pulled.err


# -- rights and tokens ------------------------------------------------------------------------------------


def test_anybody_pulls_where_that_is_allowed_and_nobody_pushes_where_it_is_not(
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


# -- two sides with credentials of their own --------------------------------------------------------------


@pytest.mark.parametrize("flags", [False, True], ids=["by environment", "the source by flags"])
def test_copy_shows_each_side_its_own_password(flags: bool, start_registry: Start, layout: Layout) -> None:
    source, target = start_registry(auth={"ada": "lovelace"}), start_registry(auth={"grace": "hopper"})
    image = small_image(layout)
    seed(layout, image, source.host, "app", "v1", headers=basic("ada", "lovelace"))
    env = {"OCISTREAM_DEST_USERNAME": "grace", "OCISTREAM_DEST_PASSWORD": "hopper"}
    options = []
    if flags:
        options = ["--src-username", "ada", "--src-password-stdin"]
    else:
        env |= {"OCISTREAM_SRC_USERNAME": "ada", "OCISTREAM_SRC_PASSWORD": "lovelace"}
    copied = ocistream(
        "copy", *options, f"{source.host}/app:v1", f"{target.host}/copy:v1", env=env, stdin=b"lovelace\n"
    )
    assert copied.code == 0, copied.err
    assert target.tags("copy") == {"v1": image["digest"]}


def test_copy_says_which_sides_password_was_refused(start_registry: Start, layout: Layout) -> None:
    source, target = start_registry(auth={"ada": "lovelace"}), start_registry(auth={"grace": "hopper"})
    seed(layout, small_image(layout), source.host, "app", "v1", headers=basic("ada", "lovelace"))
    env = {
        "OCISTREAM_SRC_USERNAME": "ada",
        "OCISTREAM_SRC_PASSWORD": "lovelace",
        "OCISTREAM_DEST_USERNAME": "grace",
        "OCISTREAM_DEST_PASSWORD": WRONG,
    }
    refused = ocistream("copy", f"{source.host}/app:v1", f"{target.host}/copy:v1", env=env)
    assert_refused(refused, "lovelace", WRONG)
    assert "OCISTREAM_DEST_USERNAME" in refused.err
    assert target.host in refused.err
    assert_no_image(target, headers=basic("grace", "hopper"))
