"""`certs.d`: which directory is used and which of its files, by containers-certs.d(5) and Docker's documentation."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ocistream.config.certs_d import certs_directories, read_certs_directory, read_registry_certs
from ocistream.errors import LocalDiskError, NotFoundError, UsageError
from ocistream.http.settings import TlsSettings

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that creates a directory with empty files of these names."""

    def run(folder: str, *names: str) -> Path:
        path = tmp_path / folder
        path.mkdir(parents=True)
        for name in names:
            (path / name).touch()
        return path

    return run


class TestDirectories:
    def test_directories_of_the_user_and_of_containers_come_first(self, tmp_path: Path) -> None:
        assert certs_directories({}, Path("/home/me"), tmp_path) == (
            Path("/home/me/.config/containers/certs.d"),
            Path("/home/me/.config/docker/certs.d"),
            tmp_path / "containers" / "certs.d",
            tmp_path / "docker" / "certs.d",
        )
        assert certs_directories({}, Path("/home/me"))[2:] == (
            Path("/etc/containers/certs.d"),
            Path("/etc/docker/certs.d"),
        )

    @pytest.mark.parametrize(
        ("value", "base"), [("/elsewhere", "/elsewhere"), ("", "/home/me/.config"), ("relative", "/home/me/.config")]
    )
    def test_xdg_config_home_is_used_if_it_is_absolute(self, value: str, base: str) -> None:
        assert certs_directories({"XDG_CONFIG_HOME": value}, Path("/home/me"))[0] == Path(base, "containers", "certs.d")


class TestRegistries:
    def test_only_the_first_directory_of_the_registry_is_used(self, make: Make, tmp_path: Path) -> None:
        make("two/registry.example", "two.crt")
        make("three/registry.example", "three.crt", "client.cert", "client.key")
        directories = [tmp_path / name for name in ("one", "two", "three")]
        assert read_registry_certs("registry.example", directories).ca_files == (
            str(tmp_path / "two/registry.example/two.crt"),
        )
        # An empty directory counts too.
        make("one/registry.example")
        assert read_registry_certs("registry.example", directories) == TlsSettings()

    @pytest.mark.parametrize("registry", ["registry.example:5000", "[::1]:5000", "docker.io", "xn--bcher-kva.example"])
    def test_the_directory_is_named_like_the_registry(self, make: Make, tmp_path: Path, registry: str) -> None:
        make(registry, "ca.crt")
        assert read_registry_certs(registry, [tmp_path]).ca_files == (str(tmp_path / registry / "ca.crt"),)
        for other in ("registry.example", "registry.example:443", "[::1]"):
            assert read_registry_certs(other, [tmp_path]) == TlsSettings()

    @pytest.mark.parametrize("registry", ["..", ".", "", "x/../..", "../x"])
    def test_a_name_cannot_leave_the_directory(self, make: Make, tmp_path: Path, registry: str) -> None:
        make("certs.d", "ca.crt")
        make("x", "ca.crt")
        (tmp_path / "ca.crt").touch()
        assert read_registry_certs(registry, [tmp_path / "certs.d"]) == TlsSettings()

    def test_a_file_is_not_a_directory(self, tmp_path: Path) -> None:
        (tmp_path / "registry.example").touch()
        assert read_registry_certs("registry.example", [tmp_path, tmp_path / "registry.example"]) == TlsSettings()

    def test_an_inaccessible_directory_is_ignored(
        self, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make("shut/registry.example", "ca.crt")
        make("open/registry.example", "ca.crt")
        # Tests may run as root, which can access every file.
        real = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: "shut" not in str(path) and real(path, mode))
        found = read_registry_certs("registry.example", [tmp_path / "shut", tmp_path / "open"])
        assert found.ca_files == (str(tmp_path / "open/registry.example/ca.crt"),)


class TestFiles:
    def test_files_are_classified_by_suffix_and_sorted_by_name(self, make: Make) -> None:
        folder = make("x", "b.crt", "a.crt", "2.key", "2.cert", "1.cert", "1.key", "README", "ca.pem", ".hidden.crt")
        (folder / "sub.crt").mkdir()
        assert read_certs_directory(folder) == TlsSettings(
            tuple(str(folder / name) for name in (".hidden.crt", "a.crt", "b.crt")),
            tuple((str(folder / f"{name}.cert"), str(folder / f"{name}.key")) for name in ("1", "2")),
        )

    def test_the_error_for_a_missing_key_says_how_cas_are_named(self, make: Make) -> None:
        folder = make("x", "ca.cert")
        with pytest.raises(UsageError, match=r"ca\.cert: the key .* ca\.key, is missing") as caught:
            read_certs_directory(folder)
        assert "*.crt" in str(caught.value.hint)

    def test_a_key_without_a_certificate_is_an_error(self, make: Make) -> None:
        with pytest.raises(UsageError, match=r"client\.key: the client certificate .* client\.cert, is missing"):
            read_certs_directory(make("x", "client.key", "other.cert", "other.key"))

    def test_a_missing_directory_and_a_file_are_errors(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError):
            read_certs_directory(tmp_path / "none")
        (tmp_path / "file").touch()
        with pytest.raises(LocalDiskError):
            read_certs_directory(tmp_path / "file")
