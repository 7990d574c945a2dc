"""Mirrors and configuration files on the command line: sources, messages, and which host gets which credentials."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.certificates import Certificate, make_certificate
from tests.cli import assertions
from tests.cli.fixture_types import Start
from tests.cli.user import User
from tests.faulty_auth import Basic
from tests.faulty_registry import Fault, FaultyRegistry, HangUp
from tests.images import Descriptor, Layout, small_image
from tests.registry_http import basic, seed, tags

USER, PASSWORD = "me", "correct-horse"
CONTAINERS = ".config/containers/registries.conf"


class Machine(User):
    """A user with a registry that has an image `team/app:1`, and a mirror that has the same image below `hub/`."""

    def __init__(self, start: Start, layout: Layout, home: Path) -> None:
        super().__init__(home)
        self.registry, self.mirror = start(), start()
        self.image = small_image(layout)
        seed(layout, self.image, self.registry.host, "team/app", "1")
        seed(layout, self.image, self.mirror.host, "hub/team/app", "1")
        self.registry.requests.clear()
        self.mirror.requests.clear()
        self.name = f"{self.registry.host}/team/app:1"

    def use_mirror(self) -> None:
        """Configure the mirror."""
        self.configure_registry(f'mirrors = ["{self.mirror.host}/hub"]')

    def configure_registry(self, *lines: str) -> Path:
        """Write ocistream's configuration with a table of the registry."""
        return self.configure(f'[registry."{self.registry.host}"]', *lines)

    def containers(self, *lines: str) -> Path:
        """Write the user's registries.conf with an entry for the registry."""
        return self.write(CONTAINERS, "[[registry]]", f'location = "{self.registry.host}"', *lines)

    def move(self, location: str) -> None:
        """Write the user's registries.conf with `location` as the location of apps.example."""
        self.write(CONTAINERS, "[[registry]]", 'prefix = "apps.example"', f'location = "{location}"')

    def asked_for(self) -> list[str]:
        """Return the paths that the registry itself was asked for, except for referrers."""
        return [request.path for request in self.registry.asked(path=r"/(manifests/(?!sha256-)|blobs/)")]

    def log_in(self, *hosts: str) -> None:
        """Store USER's password for these hosts, or paths on them, in Docker's file."""
        auth = basic(USER, PASSWORD)["Authorization"].removeprefix("Basic ")
        self.write(".docker/config.json", json.dumps({"auths": {host: {"auth": auth} for host in hosts}}))


@pytest.fixture
def machine(start: Start, layout: Layout, tmp_path: Path) -> Machine:
    return Machine(start, layout, tmp_path / "home")


# -- sources ------------------------------------------------------------------------------------------------


def test_an_image_comes_from_the_mirror_and_keeps_its_name(machine: Machine, folder: Path) -> None:
    machine.use_mirror()
    pulled = assertions.success(machine.run("pull", machine.name, "-o", folder / "app.tar"))
    assert machine.asked_for() == []
    assert pulled.lines() == [f"{machine.name}@{machine.image['digest']}"]
    (entry,) = assertions.index_of(folder / "app.tar")
    assert entry["annotations"]["io.containerd.image.name"] == machine.name
    assert machine.mirror.host not in json.dumps(entry)
    # A mirror that works is not reported.
    assert machine.mirror.host not in pulled.err


def test_no_mirrors_reads_the_same_archive_only_from_the_registry(machine: Machine, folder: Path) -> None:
    machine.use_mirror()
    assertions.success(machine.run("pull", machine.name, "-o", folder / "one.tar"))
    machine.mirror.requests.clear()
    assertions.success(machine.run("pull", "--no-mirrors", machine.name, "-o", folder / "two.tar"))
    assert machine.mirror.requests == []
    assert (folder / "one.tar").read_bytes() == (folder / "two.tar").read_bytes()


def test_containers_mirrors_are_used(machine: Machine, folder: Path) -> None:
    machine.containers("[[registry.mirror]]", f'location = "{machine.mirror.host}/hub"')
    assertions.success(machine.run("pull", machine.name, "-o", folder / "app.tar"))
    assert machine.asked_for() == []


def test_mirrors_in_config_toml_take_precedence(machine: Machine, folder: Path) -> None:
    machine.containers("[[registry.mirror]]", f'location = "{machine.mirror.host}/hub"')
    machine.configure_registry("mirrors = []")
    assertions.success(machine.run("pull", machine.name, "-o", folder / "app.tar"))
    assert machine.mirror.requests == []


def test_an_image_from_another_location_keeps_its_name(machine: Machine, folder: Path) -> None:
    machine.move(f"{machine.registry.host}/team")
    pulled = assertions.success(machine.run("pull", "-v", "apps.example/app:1", "-o", folder / "app.tar"))
    assert pulled.lines() == [f"apps.example/app:1@{machine.image['digest']}"]
    assert f"apps.example/app is read from {machine.registry.host}/team/app, its location in " in pulled.err


def test_config_toml_sets_the_url_of_a_registry(machine: Machine, folder: Path) -> None:
    machine.configure(f'[registry."apps.example"]\nurl = "{machine.registry.url}"\n')
    assertions.success(machine.run("pull", "apps.example/team/app:1", "-o", folder / "app.tar"))
    assert machine.registry.asked("GET", "/v2/team/app/manifests/1")


@pytest.mark.parametrize("command", ["inspect", "copy"])
def test_other_commands_read_from_mirrors_too(command: str, machine: Machine, start: Start) -> None:
    machine.use_mirror()
    other = start()
    argv = [machine.name] if command == "inspect" else [machine.name, f"{other.host}/copy:1"]
    assertions.success(machine.run(command, *argv))
    # The registry itself is asked for referrers, if the mirror has none.
    assert not machine.registry.asked(path="/(manifests/[^s]|blobs/)")
    assert machine.mirror.asked("GET", "/hub/team/app/manifests/1")


def test_nothing_is_pushed_to_a_mirror(machine: Machine, folder: Path) -> None:
    machine.use_mirror()
    assertions.success(machine.run("pull", machine.name, "-o", folder / "app.tar"))
    machine.mirror.requests.clear()
    assertions.success(machine.run("push", f"{machine.registry.host}/team/new:1", "-i", folder / "app.tar"))
    assert tags(machine.registry.host, "team/new") == ["1"]
    assert machine.mirror.requests == []


# -- messages -----------------------------------------------------------------------------------------------


def test_verbose_reports_that_a_mirror_lacks_an_image(machine: Machine, folder: Path) -> None:
    machine.configure_registry(f'mirrors = ["{machine.mirror.host}/empty"]')
    for number, (options, told) in enumerate({(): False, ("-v",): True}.items()):
        pulled = assertions.success(machine.run("pull", *options, machine.name, "-o", folder / f"{number}.tar"))
        assert (f"the mirror {machine.mirror.host}/empty/team/app: " in pulled.err) == told


# -- invalid files ------------------------------------------------------------------------------------------


def commands(machine: Machine, layout: Layout, folder: Path) -> list[list[str]]:
    """Return command lines that read from the registry or write to it."""
    return [
        ["pull", machine.name, "-o", f"{folder}/app.tar"],
        ["push", machine.name, "-i", str(layout.path)],
        ["copy", f"oci:{layout.path}", machine.name],
        ["copy", machine.name, f"oci:{folder}/layout"],
        ["inspect", machine.name],
    ]


@pytest.mark.parametrize("kind", ["ours", "containers'"])
def test_2_for_a_malformed_file_before_any_request(kind: str, machine: Machine, layout: Layout, folder: Path) -> None:
    path = machine.configure_registry("mirors = []") if kind == "ours" else machine.containers("blocked = 1")
    for argv in commands(machine, layout, folder):
        assertions.failure(machine.run(*argv), 2, str(path), "mirors" if kind == "ours" else "blocked")
    assertions.nothing_left(folder)
    assert machine.registry.requests == machine.mirror.requests == []


def test_4_for_a_missing_configuration_file(machine: Machine, folder: Path) -> None:
    result = machine.run("pull", "--config", folder / "gone.toml", machine.name, "-o", folder / "app.tar")
    assertions.failure(result, 4, "--config", "gone.toml")


def test_config_replaces_the_default_configuration_file(machine: Machine, folder: Path) -> None:
    machine.configure("malformed")
    table = f'[registry."{machine.registry.host}"]'
    named = machine.write("named.toml", table, f'mirrors = ["{machine.mirror.host}/hub"]')
    assertions.success(machine.run("pull", "--config", named, machine.name, "-o", folder / "app.tar"))
    assert machine.asked_for() == []


def test_malformed_tables_of_registries_do_not_affect_commands_without_a_registry(
    machine: Machine, layout: Layout, folder: Path
) -> None:
    machine.configure_registry("mirrors = 'malformed'")
    machine.containers("malformed")
    small_image(layout, name="app")
    assertions.success(machine.run("copy", f"oci:{layout.path}:app", folder / "app.tar"))
    assertions.success(machine.run("verify", folder / "app.tar"))
    assertions.success(machine.run("inspect", folder / "app.tar"))
    assertions.success(machine.run("pull", "--help"))


def test_a_blocked_mirror_is_not_asked_and_verbose_reports_it(machine: Machine, folder: Path) -> None:
    path = machine.containers(
        *("[[registry.mirror]]", f'location = "{machine.mirror.host}/hub"'),
        *("[[registry]]", f'location = "{machine.mirror.host}"', "blocked = true"),
    )
    pulled = assertions.success(machine.run("pull", "-v", machine.name, "-o", folder / "app.tar"))
    assert machine.mirror.requests == []
    assert f"the mirror {machine.mirror.host}/hub/team/app is not used: {path} blocks it" in pulled.err


# -- blocked registries -------------------------------------------------------------------------------------


def test_3_for_a_blocked_registry(machine: Machine, layout: Layout, folder: Path) -> None:
    path = machine.containers("blocked = true")
    small_image(layout, name=machine.name)
    push_to = ["push", "--to", machine.registry.host, "-i", str(layout.path)]
    for argv in (*commands(machine, layout, folder), push_to):
        assertions.failure(machine.run(*argv), 3, machine.registry.host, "is blocked", str(path))
    assert machine.registry.requests == []
    assertions.nothing_left(folder)


# -- credentials --------------------------------------------------------------------------------------------


def shown(registry: FaultyRegistry) -> str:
    """Return all requests to a registry: the first line and the headers of each."""
    return "\n".join(f"{request.method} {request.target}\n{request.headers}" for request in registry.requests)


def assert_shown_nothing(registry: FaultyRegistry) -> None:
    assert registry.requests, "the registry got no request"
    seen = shown(registry)
    assert "Authorization" not in seen
    assert PASSWORD not in seen


def test_another_location_does_not_get_the_password_of_the_registry(machine: Machine, folder: Path) -> None:
    machine.move(f"{machine.registry.host}/team")
    env = {"OCISTREAM_USERNAME": USER, "OCISTREAM_PASSWORD": PASSWORD}
    assertions.success(machine.run("pull", "apps.example/app:1", "-o", folder / "app.tar", **env))
    assert_shown_nothing(machine.registry)


def test_another_location_gets_neither_the_client_certificate_nor_insecure(
    machine: Machine, start: Start, folder: Path, tmp_path: Path
) -> None:
    authority = make_certificate(tmp_path / "authority", "an authority")
    client = authority.issue(tmp_path / "client", common_name="me")
    curious = start(tls=authority.issue(tmp_path / "server"), client_authority=authority, asks_only=True)
    machine.move(f"{curious.host}/team")
    pull: list[str | Path] = ["pull", "-o", folder / "app.tar", "--retries=0"]
    shown = [f"--client-cert={client.file}", f"--client-key={client.key_file}"]
    assertions.failure(machine.run(*pull, "apps.example/app:1", "--insecure", *shown), 7, "not trusted")
    assert curious.requests == []
    trusted = f"--ca-cert={authority.file}"
    for name, seen in (("apps.example/app:1", False), (f"{curious.host}/team/app:1", True)):
        assertions.failure(machine.run(*pull, name, trusted, *shown), 4)
        assert {bool(request.certificate) for request in curious.requests} == {seen}
        curious.requests.clear()


@pytest.mark.parametrize("ours", [False, True])
def test_an_insecure_repository_leaves_the_rest_of_the_registry_checked(
    ours: bool, machine: Machine, start: Start, folder: Path, certificate: Certificate
) -> None:
    registry = start(tls=certificate, auth=Basic(USER, PASSWORD))
    machine.log_in(registry.host)
    if ours:
        mirror = f'{{location = "{registry.host}/dev", insecure = true}}'
        machine.configure(f'[registry."apps.example"]\nmirrors = [{mirror}]\n')
    else:
        entry = f'[[registry]]\nprefix = "{registry.host}/dev"\ninsecure = true\n'
        machine.write(CONTAINERS, entry)
    env = {"SSL_CERT_FILE": str(machine.home / ".config")}
    pull = ["pull", "--retries=0", "-o", str(folder / "app.tar")]
    assertions.failure(machine.run(*pull, f"{registry.host}/prod/app:1", **env), 7, "not trusted")
    assert registry.requests == []
    assertions.failure(machine.run(*pull, f"{registry.host}/dev/app:1", **env), 4)
    assert registry.requests


def test_the_registry_does_not_get_the_password_of_the_mirror(machine: Machine, folder: Path) -> None:
    machine.use_mirror()
    machine.log_in(machine.mirror.host)
    machine.mirror.auth = Basic(USER, PASSWORD)
    # The registry is asked for blobs that the mirror does not deliver.
    machine.mirror.faults.append(Fault(HangUp(), path="/blobs/", times=None))
    assertions.success(machine.run("pull", machine.name, "-o", folder / "app.tar"))
    assert "Authorization" in shown(machine.mirror)
    assert_shown_nothing(machine.registry)


@pytest.mark.parametrize(("scope", "good"), [("hub", True), ("hub/team/app", True), ("team", False), ("hub/te", False)])
def test_a_password_for_a_path_of_a_mirror_is_sent_only_for_that_path(
    scope: str, good: bool, machine: Machine, folder: Path
) -> None:
    machine.use_mirror()
    machine.log_in(f"{machine.mirror.host}/{scope}")
    machine.mirror.auth = Basic(USER, PASSWORD)
    assertions.success(machine.run("pull", machine.name, "-o", folder / "app.tar"))
    assert (machine.asked_for() == []) == good
    if not good:
        assert_shown_nothing(machine.mirror)


def test_each_side_of_a_copy_has_its_mirrors_and_its_own_password(machine: Machine, start: Start) -> None:
    target = start(auth=Basic("grace", "hopper"))
    machine.use_mirror()
    machine.mirror.auth = Basic("another", "password")
    env = {
        "OCISTREAM_SRC_USERNAME": USER,
        "OCISTREAM_SRC_PASSWORD": PASSWORD,
        "OCISTREAM_DEST_USERNAME": "grace",
        "OCISTREAM_DEST_PASSWORD": "hopper",
    }
    assertions.success(machine.run("copy", machine.name, f"{target.host}/copy:1", **env))
    assert_shown_nothing(machine.mirror)


def test_an_image_of_the_same_name_in_another_registry_is_not_read_from_the_mirror(
    machine: Machine, start: Start, layout: Layout, folder: Path
) -> None:
    machine.use_mirror()
    other = start()
    image: Descriptor = small_image(layout)
    seed(layout, image, other.host, "team/app", "1")
    assertions.success(machine.run("pull", f"{other.host}/team/app:1", "-o", folder / "app.tar"))
    assert machine.mirror.requests == []
