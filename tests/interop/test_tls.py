"""TLS with a docker-registry that has its own CA, and with an nginx that requires client certificates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.certificates import make_certificate
from tests.cli import assertions
from tests.http.tls_identities import Identities
from tests.images import Descriptor, Layout, small_image
from tests.peers import DockerRegistry, Nginx, docker_registry, nginx
from tests.registry_http import seed
from tests.runner import ocistream, pipe

Start = Callable[..., DockerRegistry]


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    return Identities.make(tmp_path_factory.mktemp("ids"))


@pytest.fixture
def image(layout: Layout, registry: DockerRegistry) -> Descriptor:
    """Return a small image, which the plain registry has as `app:1`."""
    made = small_image(layout, name="app")
    seed(layout, made, registry.host, "app", "1")
    return made


@pytest.fixture
def encrypted(start_registry: Start, ids: Identities) -> DockerRegistry:
    """Return an empty docker-registry with TLS."""
    return start_registry(tls=ids.server)


@pytest.fixture
def guard(ids: Identities, tmp_path: Path) -> Iterator[Nginx]:
    """Return an nginx that requires a client certificate, with an empty docker-registry behind it."""
    with docker_registry(tmp_path / "behind", settings={"REGISTRY_HTTP_RELATIVEURLS": "true"}) as behind:
        server = f"client_max_body_size 0; location / {{ proxy_pass {behind.url}; proxy_set_header Host $http_host; }}"
        with nginx(tmp_path / "nginx", server, tls=ids.server, client_authority=ids.authority.file) as running:
            yield running


def test_pull_from_a_plain_registry_and_push_to_one_with_its_own_ca(
    registry: DockerRegistry, encrypted: DockerRegistry, image: Descriptor, ids: Identities
) -> None:
    source, target = f"{registry.host}/app:1", f"{encrypted.host}/app:1"
    for result in pipe(["pull", source], ["push", target, ids.ca]):
        assertions.success(result)
    assert encrypted.tags("app") == {"1": image["digest"]}
    assertions.success(ocistream("copy", target, f"{registry.host}/back:1", ids.ca))
    assert registry.tags("back") == {"1": image["digest"]}


def test_a_registry_with_an_unknown_ca_needs_ca_cert_or_insecure(
    encrypted: DockerRegistry, image: Descriptor, layout: Layout, tmp_path: Path
) -> None:
    del image
    env: dict[str, str | None] = {"HOME": str(tmp_path), "SSL_CERT_FILE": None}
    result = ocistream("push", "-i", layout.path, f"{encrypted.host}/app:1", env=env)
    assertions.failure(result, 7, f"https://{encrypted.host}/", "not trusted", "--ca-cert")
    assertions.success(ocistream("push", "-i", layout.path, f"{encrypted.host}/app:1", "--insecure", env=env))
    # Over plain HTTP the registry answers 400, and the error names the fix.
    plain = ocistream("push", "-i", layout.path, f"{encrypted.host}/app:1", "--plain-http", env=env)
    assertions.failure(plain, 7, "400", "omit --plain-http")


def test_nginx_that_requires_a_client_certificate(
    registry: DockerRegistry, guard: Nginx, image: Descriptor, ids: Identities, tmp_path: Path
) -> None:
    source, target = f"{registry.host}/app:1", f"{guard.host}/app:1"
    refused = ocistream("copy", source, target, ids.ca)
    assertions.failure(refused, 7, "400", "--dest-client-cert")
    # The error of a pull names the option too.
    refused = ocistream("copy", target, f"{registry.host}/x:1", ids.ca)
    assertions.failure(refused, 7, "400", "the registry requires a client certificate", "--src-client-cert")
    # The server refuses a certificate of an unknown authority.
    (tmp_path / "stranger").mkdir()
    stranger = make_certificate(tmp_path / "stranger")
    another = [f"--client-cert={stranger.file}", f"--client-key={stranger.key_file}"]
    assertions.failure(ocistream("copy", source, target, ids.ca, *another), 7, "400")
    for result in pipe(["pull", source], ["push", target, ids.ca, *ids.shown]):
        assertions.success(result)
    # The same from certs.d, as Docker and podman read it.
    folder = tmp_path / ".config/containers/certs.d" / guard.host
    folder.mkdir(parents=True)
    for name, file in (("ca.crt", ids.authority.file), ("me.cert", ids.client.file), ("me.key", ids.client.key_file)):
        (folder / name).write_bytes(file.read_bytes())
    assertions.success(ocistream("copy", target, f"{registry.host}/back:1", env={"HOME": str(tmp_path)}))
    assert registry.tags("back") == {"1": image["digest"]}


def test_a_docker_registry_that_requires_a_client_certificate(
    start_registry: Start, image: Descriptor, layout: Layout, ids: Identities
) -> None:
    del image
    authority = f"[{ids.authority.file}]"
    registry = start_registry(tls=ids.server, settings={"REGISTRY_HTTP_TLS_CLIENTCAS": authority})
    push = ["push", "-i", str(layout.path), f"{registry.host}/app:1", ids.ca]
    assertions.failure(ocistream(*push), 7, "--client-cert")
    assertions.success(ocistream(*push, *ids.shown))
