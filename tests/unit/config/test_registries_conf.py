"""containers' registries.conf(5): which files are read, in which order, and which keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from ocistream.config.registries_conf import load_namespaces
from ocistream.errors import NotFoundError, UsageError
from ocistream.registry.configuration import Mirror, RegistryNamespace

_DROP_INS = "registries.conf.d"


class Files:
    """The files of a system and of a user; `found` reads them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def system(self, text: str, name: str = "registries.conf") -> None:
        self._write(self.path / "etc" / name, text)

    def user(self, text: str, name: str = "registries.conf") -> None:
        self._write(self.path / "home/.config/containers" / name, text)

    def found(self, env: Mapping[str, str] | None = None) -> dict[str, RegistryNamespace]:
        namespaces = load_namespaces(env or {}, self.path / "home", system=self.path / "etc")
        return {namespace.prefix: namespace for namespace in namespaces}

    @staticmethod
    def _write(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def registry(location: str, *lines: str) -> str:
    return "\n".join(["[[registry]]", f'location = "{location}"', *lines, ""])


def test_without_files_there_are_no_namespaces(files: Files) -> None:
    assert files.found() == {}


def test_known_keys_are_read_and_others_ignored(files: Files) -> None:
    files.system("""
        unqualified-search-registries = ["example.com"]
        short-name-mode = "permissive"
        credential-helpers = ["containers-auth.json"]
        something-new = 1

        [[registry]]
        prefix = "Example.com/foo/"
        location = "internal.example.net:5000/bar"
        insecure = true
        blocked = true
        something-new = 1

        [[registry.mirror]]
        location = "mirror-0.local/foo"

        [[registry.mirror]]
        location = "mirror-1.local"
        insecure = true
        pull-from-mirror = "tag-only"

        [aliases]
        "app" = "example.com/app"
    """)
    (namespace,) = files.found().values()
    assert namespace == RegistryNamespace(
        "example.com/foo",
        "internal.example.net:5000/bar",
        insecure=True,
        blocked=True,
        mirrors=(Mirror("mirror-0.local/foo", False), Mirror("mirror-1.local", True, "tag-only")),
        config_file=str(files.path / "etc/registries.conf"),
    )


def test_mirror_by_digest_only_applies_to_every_mirror(files: Files) -> None:
    files.system(registry("a.example", "mirror-by-digest-only = true", "[[registry.mirror]]", 'location = "m.example"'))
    assert files.found()["a.example"].mirrors == (Mirror("m.example", False, "digest-only"),)


def test_prefix_or_location_may_be_missing(files: Files) -> None:
    files.system(registry("a.example/x") + '[[registry]]\nprefix = "*.corp.example"\nblocked = true\n')
    found = files.found()
    assert found["a.example/x"].location is None
    assert found["*.corp.example"].blocked


def test_an_entry_for_a_tag_matches_no_repository(files: Files) -> None:
    files.system(registry("a.example/x", 'prefix = "a.example/x:1"', "blocked = true"))
    (namespace,) = files.found().values()
    assert namespace.strip_prefix("a.example/x") is None


class TestOrder:
    def test_the_users_files_replace_all_of_the_systems(self, files: Files) -> None:
        files.system(registry("system.example"))
        files.system(registry("folder.example"), "registries.conf.d/1.conf")
        assert set(files.found()) == {"system.example", "folder.example"}
        files.user(registry("user.example"))
        files.user(registry("own-folder.example"), "registries.conf.d/1.conf")
        assert set(files.found()) == {"user.example", "own-folder.example"}

    def test_with_the_variable_both_directories_are_read(self, files: Files) -> None:
        files.system(registry("system.example"))
        files.user(registry("user.example"))
        files.system(registry("named.example"), "named")
        files.system(registry("folder.example"), "registries.conf.d/1.conf")
        files.user(registry("own-folder.example"), "registries.conf.d/1.conf")
        env = {"CONTAINERS_REGISTRIES_CONF": str(files.path / "etc/named")}
        assert set(files.found(env)) == {"named.example", "folder.example", "own-folder.example"}

    def test_the_file_named_by_the_variable_must_exist(self, files: Files) -> None:
        with pytest.raises(NotFoundError, match=r"CONTAINERS_REGISTRIES_CONF: /nowhere"):
            files.found({"CONTAINERS_REGISTRIES_CONF": "/nowhere"})

    def test_a_later_file_replaces_complete_entries(self, files: Files) -> None:
        files.system(registry("a.example", "blocked = true", "insecure = true"))
        files.system(registry("a.example", "blocked = true"), "registries.conf.d/10.conf")
        files.system(registry("b.example"), "registries.conf.d/20.conf")
        found = files.found()
        assert (found["a.example"].blocked, found["a.example"].insecure) == (True, False)
        files.system(registry("a.example", "insecure = true"), "registries.conf.d/9.conf")
        found = files.found()
        # As text, 9 comes after 10.
        assert (found["a.example"].blocked, found["a.example"].insecure) == (False, True)
        files.user(registry("a.example"), "registries.conf.d/0.conf")
        assert not files.found()["a.example"].insecure
        assert "b.example" in found

    def test_files_of_a_directory_are_read_in_the_order_of_their_names(self, files: Files) -> None:
        # The order on disk is hardly both of these.
        for names in (sorted("abcdefgh"), sorted("abcdefgh", reverse=True)):
            for name in names:
                files.system(
                    registry("a.example", f'[[registry.mirror]]\nlocation = "{name}"'), f"{_DROP_INS}/{name}.conf"
                )
            assert files.found()["a.example"].mirrors[0].location == "h"
            for name in names:
                (files.path / "etc" / _DROP_INS / f"{name}.conf").unlink()

    def test_other_files_and_directories_in_a_directory_are_ignored(self, files: Files) -> None:
        files.system("not TOML", "registries.conf.d/1.conf.rpmsave")
        files.system("not TOML", "registries.conf.d/README")
        files.system("not TOML", "registries.conf.d/sub.conf/1.conf")
        assert files.found() == {}


def test_the_older_format_is_read(files: Files) -> None:
    files.system("""
        [registries.search]
        registries = ["x.example"]
        [registries.insecure]
        registries = ["a.example", "b.example"]
        [registries.block]
        registries = ["b.example", "c.example/d"]
    """)
    found = files.found()
    assert {prefix: (rule.insecure, rule.blocked) for prefix, rule in found.items()} == {
        "a.example": (True, False),
        "b.example": (True, True),
        "c.example/d": (False, True),
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x =", "is not TOML"),
        ("registry = 1", "registry is not a list"),
        ("registry = [1]", r"registry\[0\] is not a table"),
        ("[[registry]]", r"registry\[0\]: location is missing, and so is prefix"),
        (registry("http://a.example"), "location is not HOST"),
        (registry("a.example", "blocked = 1"), "blocked is neither true nor false"),
        (registry("a.example", 'prefix = "*.corp.example/x"'), "has a path"),
        (registry("a.example", 'pull-from-mirror = "all"'), r"belongs in a \[\[registry\.mirror\]\]"),
        (registry("a.example", "[[registry.mirror]]"), r"mirror\[0\]: the key 'location' is missing"),
        (registry("a.example", "[[registry.mirror]]", 'location = "m"', 'pull-from-mirror = "no"'), "is not one of"),
        (
            registry(
                "a.example",
                "mirror-by-digest-only = true",
                "[[registry.mirror]]",
                'location = "m"',
                'pull-from-mirror = "all"',
            ),
            "exclude each other",
        ),
        (registry("a.example") + registry("a.example", "blocked = true"), "is set twice with different values"),
        ("[registries.block]\nregistries = [1]", "not a string"),
    ],
)
def test_a_malformed_file_is_refused_with_its_name(text: str, words: str, files: Files) -> None:
    files.system(text)
    with pytest.raises(UsageError, match=rf"etc/registries\.conf.*{words}"):
        files.found()


def test_a_malformed_file_in_a_directory_is_refused_with_its_name(files: Files) -> None:
    files.user("x =", "registries.conf.d/1.conf")
    with pytest.raises(UsageError, match=r"registries\.conf\.d/1\.conf is not TOML"):
        files.found()
