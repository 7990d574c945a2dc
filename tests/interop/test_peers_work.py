"""The other implementations work. No code of ocistream runs here."""

from __future__ import annotations

import contextlib
import http.client
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.debian_image import DebianImage
from tests.images import Layout, small_image
from tests.peers import Dockerd, DockerRegistry, Nginx, Tools
from tests.registry_http import assert_no_image, basic, get, manifest_digest, seed
from tests.token_server import TokenServer, User

Start = Callable[..., DockerRegistry]
StartTokens = Callable[..., TokenServer]


def test_skopeo_pushes_to_a_registry_and_pulls_back_the_same_digest(
    registry: DockerRegistry, tools: Tools, layout: Layout, tmp_path: Path
) -> None:
    image = small_image(layout, name="v1")
    tools.run("skopeo", "copy", f"oci:{layout.path}:v1", f"docker://{registry.host}/team/app:v1")
    assert registry.tags("team/app") == {"v1": image["digest"]}
    assert manifest_digest(registry.host, "team/app", "v1") == image["digest"]
    tools.run("skopeo", "copy", f"docker://{registry.host}/team/app:v1", f"oci:{tmp_path / 'back'}:v1")
    assert (tmp_path / "back/blobs/sha256" / image["digest"][7:]).is_file()
    assert any(line.startswith("PUT /v2/team/app/manifests/v1 201") for line in registry.requests())


def test_nginx_forwards_and_logs_requests(
    registry: DockerRegistry, start_nginx: Callable[..., Nginx], layout: Layout
) -> None:
    front = start_nginx(f"location / {{ proxy_pass {registry.url}; }}")
    image = small_image(layout)
    seed(layout, image, front.host, "app", "v1", headers=basic("ada", "pw"))
    assert registry.tags("app") == {"v1": image["digest"]}
    front.stop()
    assert front.requests()[-1] == "PUT /v2/app/manifests/v1 201"
    assert front.entries()[-1]["authorization"] == basic("ada", "pw")["Authorization"]
    assert front.entries()[-1]["length"] == str(image["size"])


def test_assert_no_image_accepts_only_an_empty_registry(registry: DockerRegistry, layout: Layout) -> None:
    assert_no_image(registry)
    seed(layout, small_image(layout), registry.host, "app", "v1")
    with pytest.raises(AssertionError):
        assert_no_image(registry)
    assert manifest_digest(registry.host, "app", "v2") is None


def test_a_deleted_upload_session_is_no_longer_counted(registry: DockerRegistry) -> None:
    with contextlib.closing(http.client.HTTPConnection(registry.host)) as connection:
        connection.request("POST", "/v2/app/blobs/uploads/", headers={"Content-Length": "0"})
        answer = connection.getresponse()
        answer.read()
        assert len(registry.uploads("app")) == 1
        connection.request("DELETE", answer.headers["Location"])
        assert connection.getresponse().status == 204
    assert registry.uploads("app") == []


def test_a_stopped_registry_refuses_connections(registry: DockerRegistry) -> None:
    registry.stop()
    with pytest.raises(ConnectionError):
        get(registry.host, "/v2/")


def test_htpasswd_requires_the_password(start_registry: Start, layout: Layout) -> None:
    registry = start_registry(auth={"ada": "lovelace"})
    assert get(registry.host, "/v2/")[0] == 401
    assert get(registry.host, "/v2/", headers=basic("ada", "wrong"))[0] == 401
    seed(layout, small_image(layout), registry.host, "app", "v1", headers=basic("ada", "lovelace"))
    assert list(registry.tags("app")) == ["v1"]


def test_token_authentication_refuses_an_anonymous_push_and_accepts_a_user(
    start_registry: Start, start_token_server: StartTokens, tools: Tools, layout: Layout
) -> None:
    tokens = start_token_server(users={"ada": User("lovelace")}, anonymous={"*": ["pull"]})
    registry = start_registry(auth=tokens)
    small_image(layout, name="v1")
    copy = ("skopeo", "copy", f"oci:{layout.path}:v1", f"docker://{registry.host}/team/app:v1")
    refused = tools.run(*copy, check=False)
    assert refused.returncode != 0
    assert_no_image(registry)
    tools.run(*copy, "--dest-creds=ada:lovelace")
    assert list(registry.tags("team/app")) == ["v1"]
    tools.run("skopeo", "inspect", f"docker://{registry.host}/team/app:v1")
    assert {request.user for request in tokens.requests} == {None, "ada"}
    assert any("repository:team/app:pull,push" in request.scopes for request in tokens.requests)


def test_an_expired_token_is_refused(start_registry: Start, start_token_server: StartTokens) -> None:
    tokens = start_token_server(anonymous={"*": ["pull"]})
    registry = start_registry(auth=tokens)
    access = tokens.granted(tokens.anonymous, ["repository:app:pull"])
    good = {"Authorization": f"Bearer {tokens.token('', access)}"}
    assert get(registry.host, "/v2/app/tags/list", headers=good)[0] == 404
    tokens.lifetime = -61
    ended = {"Authorization": f"Bearer {tokens.token('', access)}"}
    assert get(registry.host, "/v2/app/tags/list", headers=ended)[0] == 401


@pytest.mark.nightly
def test_docker_loads_and_runs_the_debian_image(
    docker_daemon: Dockerd, debian_image: DebianImage, tools: Tools, tmp_path: Path
) -> None:
    archive = tmp_path / "debian.tar"
    source = f"oci:{debian_image.layout.path}:debian"
    tools.run("skopeo", "copy", source, f"docker-archive:{archive}:localhost/debian:peers")
    docker_daemon.docker("load", stdin=archive)
    output = docker_daemon.docker("run", "--rm", "--network=none", "localhost/debian:peers").stdout
    assert output.split(".")[0].isdigit()


@pytest.mark.nightly
def test_the_debian_image_has_four_layers_and_50_to_100_mb(debian_image: DebianImage) -> None:
    manifest = debian_image.layout.read(debian_image.manifest["digest"])
    assert len(manifest["layers"]) == 4
    assert 50_000_000 < sum(layer["size"] for layer in manifest["layers"]) < 100_000_000


def test_a_registry_uses_tls(start_registry: Start, tools: Tools, certificate: object) -> None:
    registry = start_registry(tls=certificate)
    assert registry.url.startswith("https://127.0.0.1:")
    refused = subprocess.run(
        [*tools("skopeo"), "list-tags", f"docker://{registry.host}/app"], capture_output=True, check=False
    )
    assert refused.returncode != 0
    assert get(registry.host, "/v2/")[0] == 400
