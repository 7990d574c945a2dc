"""`ocistream serve` over an archive, with TLS and with a password: Docker's daemon, podman and skopeo pull and push."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.archives import items_of, tar_of
from tests.certificates import Certificate
from tests.cli import assertions
from tests.debian_image import DebianImage
from tests.docker_archives import archive_of, of_docker, saved
from tests.images import Descriptor, Layout, digest_of, small_image, two_platforms
from tests.peers import Dockerd, Tools
from tests.registry_http import basic, manifest, manifest_digest
from tests.runner import Argument, ocistream, started_fork

PASSWORD = "an-engine-of-1843"


@contextlib.contextmanager
def serving(*argv: Argument, password: str | None = None) -> Iterator[str]:
    """Run `ocistream serve`, with a user if a password is given, and yield its address."""
    user: list[Argument] = ["--username=ada"] if password else []
    env = {"OCISTREAM_PASSWORD": password}
    with started_fork("serve", *argv, *user, "--listen=127.0.0.1:0", env=env) as process:
        assert process.stdout is not None
        yield process.stdout.readline().decode().strip()


@pytest.fixture
def image(layout: Layout) -> Descriptor:
    """Return an image in the layout, named registry.example/team/app:v1."""
    return small_image(layout, name="registry.example/team/app:v1", config={"Cmd": ["out of an archive"]})


@pytest.fixture
def archive(layout: Layout, image: Descriptor, tmp_path: Path) -> Path:
    """Return an archive with that image and a signature that refers to it."""
    signature = layout.artifact(b"a signature", subject={key: image[key] for key in ("mediaType", "digest", "size")})
    layout.enter(signature)
    path = tmp_path / "app.tar"
    path.write_bytes(tar_of(items_of(layout)))
    return path


class TestPull:
    def test_docker(self, archive: Path, image: Descriptor, docker_daemon: Dockerd) -> None:
        with serving(archive) as host:
            docker_daemon.docker("pull", f"{host}/team/app:v1")
            shown = docker_daemon.docker("inspect", f"{host}/team/app:v1").stdout
            assert json.loads(shown)[0]["RepoDigests"] == [f"{host}/team/app@{image['digest']}"]
            docker_daemon.docker("rmi", f"{host}/team/app:v1")
            docker_daemon.docker("pull", f"{host}/team/app@{image['digest']}")
            docker_daemon.docker("tag", f"{host}/team/app@{image['digest']}", f"{host}/team/app:v2")
            refused = docker_daemon.docker("push", f"{host}/team/app:v2", check=False)
            assert refused.returncode != 0

    def test_podman(self, archive: Path, image: Descriptor, tools: Tools) -> None:
        with serving(archive) as host:
            tools.run("podman", "pull", f"{host}/team/app:v1")
            shown = tools.run("podman", "inspect", "--format={{.Digest}}", f"{host}/team/app:v1").stdout
            assert shown.strip() == image["digest"]
            assert tools.run("podman", "push", f"{host}/team/app:v1", check=False).returncode != 0

    def test_skopeo(self, archive: Path, image: Descriptor, tools: Tools, tmp_path: Path) -> None:
        with serving(archive) as host:
            listed = json.loads(tools.run("skopeo", "list-tags", f"docker://{host}/team/app").stdout)
            assert listed["Tags"] == ["v1"]
            tools.run("skopeo", "copy", f"docker://{host}/team/app:v1", f"oci:{tmp_path / 'back'}:v1")
            index = json.loads((tmp_path / "back/index.json").read_bytes())
            assert [entry["digest"] for entry in index["manifests"]] == [image["digest"]]

    def test_a_copy_includes_the_referrers(self, archive: Path, image: Descriptor, tmp_path: Path) -> None:
        with serving(archive) as host:
            assertions.success(ocistream("copy", f"{host}/team/app:v1", f"oci:{tmp_path / 'back'}:v1"))
        index = json.loads((tmp_path / "back/index.json").read_bytes())
        assert len(index["manifests"]) == 2
        assert index["manifests"][0]["digest"] == image["digest"]

    def test_all_platforms_of_an_index(self, layout: Layout, tools: Tools, tmp_path: Path) -> None:
        index = two_platforms(layout, name="registry.example/both:v1")
        path = tmp_path / "both.tar"
        path.write_bytes(tar_of(items_of(layout)))
        with serving(path) as host:
            tools.run("skopeo", "copy", "--all", f"docker://{host}/both:v1", f"dir:{tmp_path / 'back'}")
        assert digest_of((tmp_path / "back/manifest.json").read_bytes()) == index["digest"]

    @pytest.mark.nightly
    def test_an_archive_of_the_debian_image(
        self, debian_archive: Path, debian_image: DebianImage, docker_daemon: Dockerd
    ) -> None:
        with serving(debian_archive) as host:
            docker_daemon.docker("pull", f"{host}/team/debian:v1")
            shown = docker_daemon.docker("inspect", "--format={{json .RepoDigests}}", f"{host}/team/debian:v1").stdout
            assert json.loads(shown) == [f"{host}/team/debian@{debian_image.manifest['digest']}"]
            docker_daemon.docker("rmi", f"{host}/team/debian:v1")


class TestArchivesOfOtherTools:
    def test_docker_podman_and_skopeo_pull_from_an_archive_of_docker_save(
        self, layout: Layout, docker_daemon: Dockerd, tools: Tools, tmp_path: Path
    ) -> None:
        loaded = tmp_path / "loaded.tar"
        loaded.write_bytes(archive_of(of_docker([saved(layout, small_image(layout), "saved/app:v1")])))
        docker_daemon.docker("load", "-i", loaded)
        path = tmp_path / "saved.tar"
        docker_daemon.docker("save", "-o", path, "saved/app:v1")
        docker_daemon.docker("rmi", "saved/app:v1")
        with serving(path) as host:
            docker_daemon.docker("pull", f"{host}/saved/app:v1")
            tools.run("podman", "pull", f"{host}/saved/app:v1")
            tools.run("skopeo", "copy", f"docker://{host}/saved/app:v1", f"dir:{tmp_path / 'back'}")
            docker_daemon.docker("rmi", f"{host}/saved/app:v1")

    @pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
    def test_an_archive_of_skopeo(
        self, layout: Layout, image: Descriptor, tools: Tools, tmp_path: Path, kind: str
    ) -> None:
        del image
        path = tmp_path / "written.tar"
        name = f"{kind}:{path}:saved/app:v1" if kind == "docker-archive" else f"{kind}:{path}:v1"
        tools.run("skopeo", "copy", f"oci:{layout.path}:registry.example/team/app:v1", name)
        repository = "saved/app" if kind == "docker-archive" else "written"
        with serving(path) as host:
            tools.run("podman", "pull", f"{host}/{repository}:v1")
            tools.run("skopeo", "copy", f"docker://{host}/{repository}:v1", f"dir:{tmp_path / 'back'}")

    def test_an_archive_of_skopeo_without_a_name(
        self, layout: Layout, image: Descriptor, tools: Tools, tmp_path: Path
    ) -> None:
        path = tmp_path / "app.tar"
        tools.run("skopeo", "copy", f"oci:{layout.path}:registry.example/team/app:v1", f"oci-archive:{path}")
        with serving(path) as host:
            tools.run("podman", "pull", f"{host}/app")
            assert manifest_digest(host, "app", "latest") == image["digest"]


def test_a_layout_that_docker_pushed_to_can_be_served_as_an_archive(
    archive: Path, docker_daemon: Dockerd, tmp_path: Path
) -> None:
    with serving(archive) as source, serving(tmp_path / "filled") as target:
        docker_daemon.docker("pull", f"{source}/team/app:v1")
        docker_daemon.docker("tag", f"{source}/team/app:v1", f"{target}/filled:v1")
        docker_daemon.docker("push", f"{target}/filled:v1")
        docker_daemon.docker("rmi", f"{source}/team/app:v1", f"{target}/filled:v1")
        digest = manifest_digest(target, "filled", "v1")
    path = tmp_path / "again.tar"
    assertions.success(ocistream("copy", f"oci:{tmp_path / 'filled'}", f"oci-archive:{path}"))
    with serving(path) as host:
        assert manifest_digest(host, "filled", "v1") == digest
        docker_daemon.docker("pull", f"{host}/filled:v1")
        docker_daemon.docker("rmi", f"{host}/filled:v1")


class TestPasswordAndTls:
    def test_docker_logs_in_pulls_and_pushes(
        self, layout: Layout, image: Descriptor, docker_daemon: Dockerd, tmp_path: Path
    ) -> None:
        (tmp_path / "password").write_text(PASSWORD)
        (tmp_path / "wrong").write_text("guess")
        with serving(layout.path, password=PASSWORD) as host:
            assert docker_daemon.docker("pull", f"{host}/team/app:v1", check=False).returncode != 0
            login = ("login", "--username=ada", "--password-stdin", host)
            assert docker_daemon.docker(*login, stdin=tmp_path / "wrong", check=False).returncode != 0
            docker_daemon.docker(*login, stdin=tmp_path / "password")
            docker_daemon.docker("pull", f"{host}/team/app:v1")
            docker_daemon.docker("tag", f"{host}/team/app:v1", f"{host}/team/copy:v1")
            docker_daemon.docker("push", f"{host}/team/copy:v1")
            docker_daemon.docker("logout", host)
            docker_daemon.docker("rmi", f"{host}/team/app:v1", f"{host}/team/copy:v1")
            assert manifest(host, "team/copy", "v1", headers=basic("ada", PASSWORD)) is not None
            assert image["digest"]

    def test_docker_with_tls(self, archive: Path, certificate: Certificate, docker_daemon: Dockerd) -> None:
        # Docker's daemon does not verify the certificate of a registry on loopback.
        tls = ("--tls-cert", certificate.file, "--tls-key", certificate.key_file)
        with serving(archive, *tls) as host:
            docker_daemon.docker("pull", f"{host}/team/app:v1")
            docker_daemon.docker("rmi", f"{host}/team/app:v1")

    def test_podman_and_skopeo_with_tls_and_a_password(
        self, layout: Layout, image: Descriptor, certificate: Certificate, tools: Tools, tmp_path: Path
    ) -> None:
        certs = tmp_path / "certs"
        certs.mkdir()
        (certs / "ca.crt").write_bytes(certificate.file.read_bytes())
        tls = ("--tls-cert", certificate.file, "--tls-key", certificate.key_file)
        with serving(layout.path, *tls, password=PASSWORD) as host:
            creds = f"ada:{PASSWORD}"
            pull = ("podman", "pull", "--tls-verify=true", f"--cert-dir={certs}")
            assert tools.run(*pull, f"{host}/team/app:v1", check=False).returncode != 0
            tools.run(*pull, f"--creds={creds}", f"{host}/team/app:v1")
            push = ("podman", "push", "--tls-verify=true", f"--cert-dir={certs}", f"--creds={creds}")
            tools.run(*push, f"{host}/team/app:v1", f"{host}/team/podman:v1")
            verify = ("--src-tls-verify=true", f"--src-cert-dir={certs}", f"--src-creds={creds}")
            tools.run("skopeo", "copy", *verify, f"docker://{host}/team/app:v1", f"dir:{tmp_path / 'back'}")
        assert digest_of((tmp_path / "back/manifest.json").read_bytes()) == image["digest"]
