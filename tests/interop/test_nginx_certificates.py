"""A real docker-registry behind a real nginx that speaks TLS on loopback, wants certificates and bounds bodies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.archives import files_in, small_first, tar_of
from tests.certificates import Certificate, make_certificate
from tests.images import Layout
from tests.peers import DockerRegistry, Nginx
from tests.quirks.statements import quirk
from tests.registry_http import basic, manifest_digest
from tests.runner import Result, ocistream

MIB: Final = 1 << 20
USER: Final = "ada"
PASSWORD: Final = "lovelace: the 1st"
LOGIN: Final = {"OCISTREAM_USERNAME": USER, "OCISTREAM_PASSWORD": PASSWORD}

StartRegistry = Callable[..., DockerRegistry]
StartNginx = Callable[..., Nginx]
both_ways = pytest.mark.parametrize("how", ["a file", "a pipe"])


@pytest.fixture
def own(tmp_path: Path) -> Certificate:
    """Return the certificate of a client, which is its own authority."""
    folder = tmp_path / "own"
    folder.mkdir()
    return make_certificate(folder)


def push(how: str, host: str, archive: bytes, folder: Path, *options: str | Path) -> Result:
    path = folder / "given.tar"
    path.write_bytes(archive)
    given = ["-i", str(path)] if how == "a file" else []
    env = {**LOGIN, "HOME": str(folder), "XDG_STATE_HOME": str(folder / "state")}
    return ocistream("push", f"{host}/app:v1", *given, *options, stdin=None if given else path, env=env)


def pull(host: str, folder: Path, *options: str | Path) -> Result:
    env = {**LOGIN, "HOME": str(folder)}
    return ocistream("pull", f"{host}/app:v1", "-o", folder / "pulled.tar", *options, env=env)


@both_ways
def test_a_client_shows_its_certificate_where_one_is_wanted(
    how: str,
    start_registry: StartRegistry,
    start_nginx: StartNginx,
    certificate: Certificate,
    own: Certificate,
    layout: Layout,
    tmp_path: Path,
) -> None:
    registry = start_registry(auth={USER: PASSWORD})
    front = start_nginx(f"location / {{ proxy_pass {registry.url}; }}", tls=certificate, client_authority=own.file)
    image = layout.image([3 * MIB], name="app")
    archive = tar_of(small_first(layout))
    shown: list[str | Path] = ["--ca-cert", certificate.file, "--client-cert", own.file, "--client-key", own.key_file]
    pushed = push(how, front.host, archive, tmp_path, *shown)
    assert pushed.code == 0, pushed.err
    assert registry.tags("app") == {"v1": image["digest"]}
    pulled = pull(front.host, tmp_path, *shown)
    assert pulled.code == 0, pulled.err
    files = files_in((tmp_path / "pulled.tar").read_bytes())
    assert all(files[f"blobs/sha256/{path.name}"] == path.read_bytes() for path in layout.path.glob("blobs/sha256/*"))
    anothers: list[str | Path] = ["--client-cert", certificate.file, "--client-key", certificate.key_file]
    for lacking in (shown[:2], [*shown[:2], *anothers]):
        refused = push(how, front.host, archive, tmp_path, *lacking, "--retries", "0")
        assert refused.code != 0
        assert PASSWORD not in refused.err
    # Without the authority nobody is spoken to at all.
    assert pull(front.host, tmp_path, *shown[2:], "--retries", "0").code != 0
    front.stop()
    # nginx says 400 to who has no certificate, or another one; a registry behind it sees nothing of that.
    assert {entry["status"] for entry in front.entries()} <= {"200", "201", "202", "400", "401", "404"}
    assert len(registry.requests()) == len([entry for entry in front.entries() if entry["status"] != "400"])


@both_ways
def test_certificates_are_found_in_the_folder_of_their_host(
    how: str,
    start_registry: StartRegistry,
    start_nginx: StartNginx,
    certificate: Certificate,
    own: Certificate,
    layout: Layout,
    tmp_path: Path,
) -> None:
    registry = start_registry()
    front = start_nginx(f"location / {{ proxy_pass {registry.url}; }}", tls=certificate, client_authority=own.file)
    folder = tmp_path / ".config/containers/certs.d" / front.host
    folder.mkdir(parents=True)
    for name, file in {"ca.crt": certificate.file, "client.cert": own.file, "client.key": own.key_file}.items():
        (folder / name).write_bytes(file.read_bytes())
    image = layout.image([3 * MIB], name="app")
    pushed = push(how, front.host, tar_of(small_first(layout)), tmp_path)
    assert pushed.code == 0, pushed.err
    assert registry.tags("app") == {"v1": image["digest"]}


@quirk(9)
@both_ways
def test_by_tls_and_with_a_password_and_with_bodies_of_ten_megabytes_at_most(
    how: str,
    start_registry: StartRegistry,
    start_nginx: StartNginx,
    certificate: Certificate,
    layout: Layout,
    tmp_path: Path,
) -> None:
    registry = start_registry(auth={USER: PASSWORD})
    front = start_nginx(
        f"client_max_body_size 10m;\nlocation / {{ proxy_pass {registry.url}; }}",
        tls=certificate,
    )
    image = layout.image([12 * MIB, 5000], name="app")
    pushed = push(how, front.host, tar_of(small_first(layout)), tmp_path, "--ca-cert", certificate.file)
    assert pushed.code == 0, pushed.err
    assert registry.tags("app") == {"v1": image["digest"]}
    assert registry.uploads("app") == []
    front.stop()
    taken = [int(entry["length"] or 0) for entry in front.entries() if entry["status"] in {"201", "202"}]
    assert max(taken) <= 10 * MIB
    assert "413" in {entry["status"] for entry in front.entries()}


def test_plain_http_on_loopback_needs_no_certificate_still(
    start_registry: StartRegistry, start_nginx: StartNginx, layout: Layout, tmp_path: Path
) -> None:
    registry = start_registry(auth={USER: PASSWORD})
    front = start_nginx(f"location / {{ proxy_pass {registry.url}; }}")
    image = layout.image([5000], name="app")
    pushed = push("a pipe", front.host, tar_of(small_first(layout)), tmp_path)
    assert pushed.code == 0, pushed.err
    assert registry.tags("app") == {"v1": image["digest"]}
    assert manifest_digest(front.host, "app", "v1", headers=basic(USER, PASSWORD)) == image["digest"]
