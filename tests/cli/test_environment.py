"""Environment variables: proxies, CA certificates, dates and credentials. Little of the environment is needed."""

from __future__ import annotations

import base64
import json
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificates import Certificate
from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.fixture_types import Start
from tests.cli.proxy import NO_PROXIES, Proxy, tunnelling_to
from tests.cli.terminal import on_terminal
from tests.faulty_auth import Basic
from tests.faulty_registry import FaultyRegistry
from tests.images import Descriptor, Layout
from tests.registry_http import basic, manifest_digest, seed
from tests.runner import Result, ocistream

pytestmark = pytest.mark.usefixtures("image")


# Proxies and certificate authorities ---------------------------------------------------------------------------


@pytest.fixture
def distant(start: Start, certificate: Certificate) -> Iterator[Proxy]:
    """Return a proxy to a registry with TLS named `registry.test`."""
    with tunnelling_to(start(tls=certificate).host) as proxy:
        yield proxy


def there_and_back(layout: Layout, folder: Path, *argv: str, env: dict[str, str | None]) -> tuple[Result, Result]:
    """Push to `registry.test`, and pull from it."""
    push = ocistream("push", "-i", layout.path, "registry.test/app:1", *argv, env=env)
    pull = ocistream("pull", "registry.test/app:1", "-o", folder / "back.tar", *argv, env=env)
    return push, pull


@pytest.mark.parametrize("variable", ["https_proxy", "ALL_PROXY"])
def test_a_registry_is_connected_through_a_proxy_and_trusted_by_its_ca(
    distant: Proxy, certificate: Certificate, layout: Layout, image: Descriptor, tmp_path: Path, variable: str
) -> None:
    env = {**NO_PROXIES, variable: distant.url, "SSL_CERT_FILE": str(certificate.file)}
    for result in there_and_back(layout, tmp_path, env=env):
        assertions.success(result)
        assert result.lines() == [f"registry.test/app:1@{image['digest']}"]
    assert set(distant.asked) == {"registry.test:443"}


def test_hosts_in_no_proxy_are_connected_directly(distant: Proxy, tmp_path: Path) -> None:
    pull = ["pull", "registry.test/app:1", "-o", str(tmp_path / "x.tar"), "--retries=0"]
    for listed in ("registry.test", "a.example,.test"):
        env = {**NO_PROXIES, "HTTPS_PROXY": distant.url, "no_proxy": listed}
        assertions.failure(ocistream(*pull, env=env), 7, "https://registry.test/v2/app/manifests/1")
    assert distant.asked == []


def test_loopback_never_uses_a_proxy(served: FaultyRegistry, layout: Layout) -> None:
    env = {**NO_PROXIES, "HTTP_PROXY": "http://127.0.0.1:1", "ALL_PROXY": "http://127.0.0.1:1"}
    succeed("push", "-i", layout.path, f"{served.host}/app:1", env=env)


def test_other_hosts_use_http_only_with_plain_http(
    served: FaultyRegistry, layout: Layout, image: Descriptor, tmp_path: Path
) -> None:
    # Without TLS a proxy gets complete URLs. The registry accepts them, as any server must, and acts as the proxy.
    env = {**NO_PROXIES, "HTTP_PROXY": f"http://{served.host}"}
    for result in there_and_back(layout, tmp_path, "--plain-http", env=env):
        assertions.success(result)
    assert manifest_digest(served.host, "app", "1") == image["digest"]
    assert all(request.headers["Host"] == "registry.test" for request in served.asked("PUT"))
    env |= {"HTTPS_PROXY": "http://127.0.0.1:1"}
    for result in there_and_back(layout, tmp_path, "--retries=0", env=env):
        assertions.failure(result, 7, "https://registry.test/v2/app/")


# Dates and colours ---------------------------------------------------------------------------------------------


def test_source_date_epoch_is_the_date_of_every_entry(layout: Layout, tmp_path: Path) -> None:
    for date in (None, "0", "1700000000"):
        succeed("copy", layout.path, tmp_path / "x.tar", env={"SOURCE_DATE_EPOCH": date})
        with tarfile.open(tmp_path / "x.tar") as tar:
            assert {entry.mtime for entry in tar} == {int(date or 0)}


@pytest.mark.parametrize("date", ["yesterday", "-1", "1.5", "9" * 20])
def test_an_invalid_source_date_epoch_is_a_usage_error(layout: Layout, tmp_path: Path, date: str) -> None:
    result = ocistream("copy", layout.path, tmp_path / "x.tar", env={"SOURCE_DATE_EPOCH": date})
    assertions.failure(result, 2, "SOURCE_DATE_EPOCH", date)
    assertions.nothing_left(tmp_path, "made")


@pytest.mark.parametrize("env", [{}, {"NO_COLOR": "1"}])
def test_output_has_no_colours(layout: Layout, tmp_path: Path, env: dict[str, str]) -> None:
    for argv in (["copy", "-v", str(layout.path), str(tmp_path / "x.tar")], ["pull", "-x"]):
        # The control sequences of a bar are not colours.
        assert re.search(r"\x1b\[[0-9;]*m", on_terminal(*argv, env=env).screen) is None


# Credentials: tests/quirks/test_credentials.py has the order of the places where they are found -----------------


def auths(host: str, password: str) -> str:
    """Return a document of Docker's format with a credential for `host`."""
    return json.dumps({"auths": {host: {"auth": base64.b64encode(f"me:{password}".encode()).decode()}}})


@pytest.fixture
def guarded(start: Start, layout: Layout, image: Descriptor) -> FaultyRegistry:
    """Return a registry with `app:1` that one user may access."""
    registry = start(auth=Basic("me", "right"))
    seed(layout, image, registry.host, "app", "1", headers=basic("me", "right"))
    return registry


@pytest.mark.parametrize(
    ("variable", "content", "code", "text"),
    [
        ("REGISTRY_AUTH_FILE", None, 3, "REGISTRY_AUTH_FILE names {path}, which does not exist"),
        ("REGISTRY_AUTH_FILE", "{", 2, "{path} (named by REGISTRY_AUTH_FILE) is not valid JSON"),
        ("REGISTRY_AUTH_FILE", '{"auths": 1}', 2, "{path} (named by REGISTRY_AUTH_FILE): auths is not a JSON object"),
        ("DOCKER_CONFIG", "[", 2, "{path} (named by DOCKER_CONFIG) is not valid JSON"),
        ("DOCKER_CONFIG", '{"credsStore": 1}', 2, "{path} (named by DOCKER_CONFIG): credsStore is not a string"),
        ("DOCKER_CONFIG", '{"credsStore": "nope"}', 3, "remove it from {path} (named by DOCKER_CONFIG)"),
        ("DOCKER_AUTH_CONFIG", "{", 2, "DOCKER_AUTH_CONFIG is not valid JSON"),
        ("DOCKER_AUTH_CONFIG", '{"auths": []}', 2, "DOCKER_AUTH_CONFIG: auths is not a JSON object"),
    ],
)
def test_an_error_of_a_credentials_file_names_the_variable_that_names_the_file(
    guarded: FaultyRegistry, tmp_path: Path, variable: str, content: str | None, code: int, text: str
) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    value = {"DOCKER_AUTH_CONFIG": content or "", "DOCKER_CONFIG": str(tmp_path)}.get(variable, str(path))
    result = ocistream("pull", f"{guarded.host}/app:1", "-o", tmp_path / "x.tar", env={variable: value})
    assertions.failure(result, code, text.format(path=path))


def test_options_override_the_environment_and_the_environment_overrides_files(
    guarded: FaultyRegistry, tmp_path: Path
) -> None:
    pull = ["pull", f"{guarded.host}/app:1", "-o", str(tmp_path / "x.tar")]
    env = {"DOCKER_AUTH_CONFIG": auths(guarded.host, "wrong")}
    assertions.failure(ocistream(*pull, env=env), 3)
    env |= {"OCISTREAM_USERNAME": "me", "OCISTREAM_PASSWORD": "right"}
    succeed(*pull, env=env)
    env |= {"OCISTREAM_PASSWORD": "wrong"}
    assertions.failure(ocistream(*pull, env=env), 3)
    succeed(*pull, "--username=me", "--password-stdin", env=env, stdin=b"right\n")
    succeed(*pull, "--password-stdin", env=env, stdin=b"right")
    env |= {"OCISTREAM_USERNAME": "you", "OCISTREAM_PASSWORD": "right"}
    succeed(*pull, "--username=me", env=env)


def test_one_user_name_is_not_sent_to_two_registries(
    served: FaultyRegistry, guarded: FaultyRegistry, tmp_path: Path
) -> None:
    one, other = f"{guarded.host}/app:1", f"{served.host}/app:1"
    env: dict[str, str | None] = {"OCISTREAM_USERNAME": "me", "OCISTREAM_PASSWORD": "right"}
    for argv in (["pull", one, other, "-o", str(tmp_path / "x.tar")], ["copy", one, other]):
        assertions.failure(ocistream(*argv, env=env), 2, "OCISTREAM_USERNAME", guarded.host, served.host)
    assert served.requests == []
    env |= {"OCISTREAM_SRC_USERNAME": "me", "OCISTREAM_SRC_PASSWORD": "right"}
    succeed("copy", one, other, env=env)


def test_no_home_is_needed(served: FaultyRegistry, layout: Layout) -> None:
    bare: dict[str, str | None] = dict.fromkeys(name for name in os.environ if not name.startswith("COVERAGE_"))
    succeed("push", "-i", layout.path, f"{served.host}/app:1", env=bare)
