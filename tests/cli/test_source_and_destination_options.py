"""`copy` between registries with different connection options: each side has its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.certificates import Certificate
from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.commands import options as options_of
from tests.cli.fixture_types import Start
from tests.cli.two_registries import PASSWORDS, World
from tests.faulty_auth import Basic, Bearer
from tests.faulty_registry import Fault, FaultyRegistry, refusal
from tests.images import Layout, small_image
from tests.registry_http import basic, seed, tags
from tests.runner import ocistream


@pytest.fixture
def world(start: Start, layout: Layout, tmp_path: Path) -> World:
    return World(start, layout, tmp_path)


def shown_to(registry: FaultyRegistry) -> set[str | None]:
    return {request.headers["Authorization"] for request in registry.requests}


# -- TLS on one side ----------------------------------------------------------------------------------------------


def test_from_https_to_plain_http_and_back_each_with_its_own_password(world: World) -> None:
    there = assertions.success(world.there(world.ca_of("src"), "--dest-plain-http", "-vv"))
    assert there.lines() == [f"{world.http}/copied:1@{world.image['digest']}"]
    back = assertions.success(world.back(world.ca_of("dest"), "--src-plain-http", "-vv"))
    assert back.lines() == [f"{world.https}/copied:1@{world.image['digest']}"]
    assert shown_to(world.secure) == {None, basic("me", PASSWORDS[0])["Authorization"]}
    assert shown_to(world.plain) == {None, basic("you", PASSWORDS[1])["Authorization"]}


def test_hints_name_the_option_of_the_side(world: World) -> None:
    no_ca = world.there()
    assertions.failure(no_ca, 7, world.https, "not trusted", "--src-ca-cert")
    no_http = world.there(world.ca_of("src"))
    assertions.failure(no_http, 7, world.http, "use plain HTTP: use --dest-plain-http")
    both = world.there(world.ca_of("src"), "--plain-http")
    assertions.failure(both, 7, world.https, "omit --plain-http (--dest-plain-http is for the destination alone)")
    wrong = world.there(world.ca_of("src"), "--src-plain-http")
    assertions.failure(wrong, 7, world.https, "omit --src-plain-http, or correct the port")
    assertions.failure(world.back(), 7, world.http, "use plain HTTP: use --src-plain-http")
    assertions.failure(world.back("--src-plain-http"), 7, world.https, "not trusted", "--dest-ca-cert")
    both = world.back("--plain-http")
    assertions.failure(both, 7, world.https, "omit --plain-http (--src-plain-http is for the source alone)")
    one = world.run("pull", f"{world.http}/app:1", "-o", world.folder / "x.tar", "--retries=0")
    assertions.failure(one, 7, "use plain HTTP: use --plain-http")


@pytest.mark.parametrize("given", ["--dest-insecure", "--src-insecure", "--insecure"])
def test_insecure_affects_only_its_side(world: World, given: str) -> None:
    result = world.there("--dest-plain-http", given)
    if given == "--dest-insecure":
        assertions.failure(result, 7, world.https, "the certificate is not trusted")
        assert world.secure.requests == []
    else:
        assertions.success(result)


def test_an_insecure_source_does_not_affect_the_destination(world: World) -> None:
    assertions.failure(
        world.back("--src-plain-http", "--src-insecure"), 7, world.https, "the certificate is not trusted"
    )
    assert world.secure.requests == []
    assertions.success(world.back("--src-plain-http", "--dest-insecure"))


def test_the_ca_of_a_side_overrides_the_one_for_both(world: World) -> None:
    world.open_both()
    wrong = f"--ca-cert={world.fake.file}"
    assertions.success(world.there(wrong, world.ca_of("src"), "--dest-plain-http", credentials=False))
    refused = world.there(world.ca, world.ca_of("src", world.fake), "--dest-plain-http", credentials=False)
    assertions.failure(refused, 7, world.https, "not trusted")
    assertions.success(world.there(world.ca, world.ca_of("dest", world.fake), "--dest-plain-http", credentials=False))
    unset = world.there(world.ca, "--src-ca-cert=", "--dest-plain-http", credentials=False)
    assertions.failure(unset, 7, world.https, "not trusted")


def test_the_ca_of_a_side_may_be_set_by_variable_and_configuration(world: World) -> None:
    world.open_both()
    assertions.success(
        world.there("--dest-plain-http", credentials=False, env={"OCISTREAM_SRC_CA_CERT": str(world.authority.file)})
    )
    (world.folder / "config.toml").write_text('[defaults]\nsrc-ca-cert = "authority/certificate.pem"\n')
    assertions.success(
        world.there("--dest-plain-http", "--config", str(world.folder / "config.toml"), credentials=False)
    )


# -- client certificates ------------------------------------------------------------------------------------------


class Mutual(World):
    """Two registries; the one with TLS requires a client certificate."""

    def __init__(self, start: Start, layout: Layout, folder: Path) -> None:
        super().__init__(start, layout, folder)
        self.open_both()
        self.client = self.authority.issue(folder / "client", common_name="me")
        self.other = self.fake.issue(folder / "other", common_name="other")
        tls = self.authority.issue(folder / "server")
        self.secure = self.start_with_image(tls=tls, client_authority=self.authority)
        self.https = self.secure.host.replace("127.0.0.1", "registry.test")

    def shown(self, side: str, certificate: Certificate | None = None) -> list[str]:
        of = certificate or self.client
        return [f"--{side}client-cert={of.file}", f"--{side}client-key={of.key_file}"]


@pytest.fixture
def mutual(start: Start, layout: Layout, tmp_path: Path) -> Mutual:
    return Mutual(start, layout, tmp_path)


def test_a_client_certificate_is_for_its_side(mutual: Mutual) -> None:
    there = [mutual.ca, "--dest-plain-http"]
    assertions.failure(
        mutual.there(*there, credentials=False), 7, "TLS failed", "--src-client-cert and --src-client-key"
    )
    assertions.failure(mutual.there(*there, *mutual.shown("dest-"), credentials=False), 7, "TLS failed")
    assertions.success(mutual.there(*there, *mutual.shown("src-"), credentials=False))
    assertions.success(mutual.there(*there, *mutual.shown(""), credentials=False))
    back = [mutual.ca, "--src-plain-http"]
    assertions.failure(
        mutual.back(*back, *mutual.shown("src-"), credentials=False), 7, "TLS failed", "--dest-client-cert"
    )
    assertions.success(mutual.back(*back, *mutual.shown("dest-"), credentials=False))


def test_a_client_certificate_of_a_side_overrides_the_one_for_both_and_its_key(mutual: Mutual) -> None:
    there = [mutual.ca, "--dest-plain-http", *mutual.shown("", mutual.other)]
    assertions.failure(mutual.there(*there, credentials=False), 7, "TLS failed")
    assertions.success(mutual.there(*there, *mutual.shown("src-"), credentials=False))
    both = mutual.folder / "both.pem"
    both.write_bytes(mutual.client.file.read_bytes() + mutual.client.key_file.read_bytes())
    assertions.success(mutual.there(*there, f"--src-client-cert={both}", credentials=False))
    # The key for both sides is not used with this certificate.
    alone = mutual.there(*there, f"--src-client-cert={mutual.client.file}", credentials=False)
    assertions.failure(alone, 2, "is not a client certificate with its key", "or use --src-client-key")


@pytest.mark.parametrize("side", ["src", "dest"])
def test_a_key_without_its_certificate_is_refused(side: str, layout: Layout, tmp_path: Path) -> None:
    small_image(layout, name="app")
    result = ocistream("copy", layout.path, tmp_path / "x.tar", f"--{side}-client-key=x", "--client-cert=y")
    assertions.failure(result, 2, f"--{side}-client-key needs --{side}-client-cert")


def test_options_of_a_side_that_is_not_in_a_registry_are_reported(
    served: FaultyRegistry, layout: Layout, tmp_path: Path
) -> None:
    seed(layout, small_image(layout, name="app"), served.host, "app", "1")
    argv = ["copy", f"{served.host}/app:1", f"oci:{tmp_path / 'out'}"]
    result = succeed(*argv, "--dest-insecure", "--dest-ca-cert=x", "--src-insecure")
    assert "--dest-insecure, --dest-ca-cert have no effect: the destination is not in a registry" in result.err
    assert "--src-insecure" not in result.err
    asked = succeed(*argv, "--dest-insecure", "--have", f"localhost:{served.host.partition(':')[2]}/app")
    assert "no effect" not in asked.err
    assert "no effect" not in ocistream(*argv, env={"OCISTREAM_DEST_CA_CERT": "x"}).err


# -- one registry on both sides -----------------------------------------------------------------------------------


def test_one_registry_may_be_reached_in_two_ways_and_blobs_are_mounted(world: World) -> None:
    auth = Bearer({"reader": PASSWORDS[0], "writer": PASSWORDS[1]}, anonymous=(), realm=f"https://{world.https}/token")
    world.secure.auth = auth
    # A blob is not in a repository until it was uploaded or mounted there.
    world.secure.faults = [Fault(refusal(404), "HEAD", "/v2/copied/blobs/", times=None)]
    shown = ["--src-username=reader", f"--src-password-file={world.folder / 'one'}"]
    shown += ["--dest-username=writer", f"--dest-password-file={world.folder / 'two'}"]
    ends = [f"{world.https}/app:1", f"{world.https}/copied:1"]
    assertions.success(world.run("copy", *ends, *shown, world.ca_of("src"), "--dest-insecure"))
    assert len(world.secure.asked("POST", "mount=sha256:[0-9a-f]{64}&from=app$")) == len(world.secure.asked("POST")) > 0
    assert world.secure.asked("PATCH") == []
    assert {request.user for request in auth.requests} == {"reader", "writer"}
    world.secure.requests.clear()
    one_sided = world.run("copy", *ends, *shown, world.ca_of("src"), "--retries=0")
    assertions.failure(one_sided, 7, world.https, "not trusted", "--dest-ca-cert")
    assert world.secure.asked("POST|PUT|PATCH") == []


# -- mirrors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["src", "dest"])
def test_options_of_the_source_apply_to_its_mirror(world: World, side: str) -> None:
    world.open_both()
    mirror = world.start()
    seed(world.layout, world.image, mirror.host, "app", "1")
    mirror.requests.clear()
    named = mirror.host.replace("127.0.0.1", "other.test")
    (world.folder / "config.toml").write_text(f'[registry."registry.example"]\nmirrors = ["{named}"]\n')
    config = ["--config", str(world.folder / "config.toml"), "--retries=0"]
    out = world.run("copy", "registry.example/app:1", f"oci:{world.folder / 'out'}", *config, f"--{side}-plain-http")
    if side == "src":
        assertions.success(out)
    else:
        assert out.code == 7
        assert mirror.requests == []


# -- user names and passwords -------------------------------------------------------------------------------------


def test_a_short_name_of_docker_hub_is_in_the_same_registry_as_a_full_name(
    start: Start, layout: Layout, tmp_path: Path
) -> None:
    hub = start()
    seed(layout, small_image(layout), hub.host, "library/app", "1")
    config, password = tmp_path / "config.toml", tmp_path / "password"
    config.write_text(f'[registry."docker.io"]\nurl = "{hub.url}"\n')
    password.write_text("secret")
    me = ["--username=me", f"--password-file={password}"]
    succeed("copy", "docker.io/library/app:1", "app:2", *me, f"--config={config}")
    assert tags(hub.host, "library/app") == ["1", "2"]


def test_a_user_name_for_both_sides_is_for_one_registry(world: World) -> None:
    ways = [world.ca, "--dest-plain-http"]
    me = ["--username=me", f"--password-file={world.folder / 'one'}"]
    you = ["--dest-username=you", f"--dest-password-file={world.folder / 'two'}"]
    refused = world.there(*ways, *me, credentials=False)
    assertions.failure(refused, 2, "--username cannot be used for", "--src-username and --dest-username")
    assert world.secure.requests == world.plain.requests == []
    # If the destination has its own user name, --username is for the source.
    assertions.success(world.there(*ways, *me, *you, credentials=False))
    within = [f"{world.https}/app:1", f"{world.https}/within:1"]
    assertions.success(world.run("copy", *within, *me, world.ca))
    assertions.success(
        world.run("copy", *within, "-u", "me", "--password-stdin", world.ca, stdin=PASSWORDS[0].encode())
    )


def test_the_password_for_both_sides_is_not_sent_with_the_user_name_of_one(world: World) -> None:
    both = ["--username=me", f"--password-file={world.folder / 'one'}", "--dest-username=you"]
    result = world.there(world.ca, "--dest-plain-http", *both, credentials=False)
    assertions.failure(result, 2, "--dest-username needs a password", "--dest-password-file", "OCISTREAM_DEST_PASSWORD")
    assert world.plain.requests == []


def test_one_user_name_with_a_password_for_each_side(world: World) -> None:
    world.plain.auth = Basic("me", PASSWORDS[1])
    files = [f"--src-password-file={world.folder / 'one'}", f"--dest-password-file={world.folder / 'two'}"]
    assertions.success(world.there(world.ca, "--dest-plain-http", "--username=me", *files, credentials=False))


def test_an_authfile_for_each_side_or_for_both(world: World) -> None:
    def written(name: str, **hosts: tuple[str, str]) -> str:
        auths = {getattr(world, host): {"username": user, "password": word} for host, (user, word) in hosts.items()}
        (world.folder / name).write_text(json.dumps({"auths": auths}))
        return str(world.folder / name)

    me, you = ("me", PASSWORDS[0]), ("you", PASSWORDS[1])
    ways = [world.ca, "--dest-plain-http"]
    one, two = written("one.json", https=me), written("two.json", http=you)
    both = written("both.json", https=me, http=you)
    wrong = written("wrong.json", https=you, http=you)
    for options in (
        [f"--src-authfile={one}", f"--dest-authfile={two}"],
        [f"--authfile={both}"],
        [f"--authfile={two}", f"--src-authfile={one}"],
        [f"--authfile={wrong}", "--src-username=me", f"--src-password-file={world.folder / 'one'}"],
    ):
        assertions.success(world.there(*ways, *options, credentials=False))
    refused = world.there(*ways, f"--src-authfile={wrong}", f"--dest-authfile={two}", credentials=False)
    assertions.failure(refused, 3, world.https, "wrong.json, which --src-authfile names")


# -- completeness -------------------------------------------------------------------------------------------------


def test_both_sides_have_the_same_options() -> None:
    found = options_of("copy")
    source, destination = (
        [name.removeprefix(f"--{side}") for name in found if name.startswith(f"--{side}-")] for side in ("src", "dest")
    )
    assert source == destination
    assert source == [
        *("-username", "-password-stdin", "-password-file", "-authfile"),
        *("-plain-http", "-insecure", "-ca-cert", "-client-cert", "-client-key"),
    ]
