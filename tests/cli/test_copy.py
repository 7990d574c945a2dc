"""`ocistream copy`: all sources and destinations, names, platforms, and mounts within one registry."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.archives import items_of, tar_of
from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.fixture_types import Start
from tests.faulty_auth import Basic
from tests.faulty_registry import FaultyRegistry
from tests.images import OCI_MANIFEST, Descriptor, Layout, digest_of, small_image, two_platforms
from tests.registry_http import basic, manifest_digest, seed
from tests.runner import ocistream

ENDS = ["registry", "layout", "archive", "stream"]


@dataclasses.dataclass(frozen=True)
class Place:
    """A location of any kind, with its own file, folder or repository; its image is named `x:1`."""

    kind: str
    registry: FaultyRegistry
    path: Path

    @property
    def end(self) -> str:
        """The location on the command line."""
        return {
            "registry": f"{self.registry.host}/{self.path.name}:1",
            "layout": f"oci:{self.path}:x:1",
            "archive": f"oci-archive:{self.path}:x:1",
            "stream": "oci-archive:-:x:1",
        }[self.kind]

    def fill(self, image: Callable[[Layout], Descriptor]) -> str:
        """Store an image in the location, and return its digest."""
        layout = Layout(self.path if self.kind == "layout" else self.path.with_suffix(".layout"))
        descriptor = image(layout)
        layout.name(descriptor, "x:1")
        if self.kind == "registry":
            seed(layout, descriptor, self.registry.host, self.path.name, "1")
        elif self.kind != "layout":
            self.path.write_bytes(tar_of(items_of(layout)))
        return str(descriptor["digest"])

    def digest(self) -> str | None:
        """Return the digest of the image in the location."""
        if self.kind == "registry":
            return manifest_digest(self.registry.host, self.path.name, "1")
        assert assertions.names_in(self.path) == ["x:1"]
        return str(assertions.index_of(self.path)[0]["digest"])


# tests/contract has every pair.
@pytest.mark.parametrize(("source", "target"), list(zip(ENDS, [*ENDS[1:], ENDS[0]], strict=True)))
def test_copy_between_any_two_kinds_of_locations(
    served: FaultyRegistry, tmp_path: Path, source: str, target: str
) -> None:
    first, second = Place(source, served, tmp_path / "from"), Place(target, served, tmp_path / "to")
    digest = first.fill(two_platforms)
    stdin = first.path if source == "stream" else None
    stdout = second.path if target == "stream" else None
    result = succeed("copy", first.end, second.end, stdin=stdin, stdout=stdout)
    assert second.digest() == digest
    name = second.end if target == "registry" else "x:1"
    assert result.lines() == ([] if target == "stream" else [f"{name}@{digest}"])


def test_without_a_name_all_images_are_copied(layout: Layout, tmp_path: Path) -> None:
    digests = [small_image(layout, name="one")["digest"], two_platforms(layout, name="two")["digest"]]
    for target in (tmp_path / "both.tar", f"oci:{tmp_path}/both"):
        succeed("copy", layout.path, target)
    for name in ("both.tar", "both"):
        assert assertions.names_in(tmp_path / name) == ["one", "two"]
        assert [entry["digest"] for entry in assertions.index_of(tmp_path / name)] == digests


def test_a_destination_name_requires_a_single_image(layout: Layout, tmp_path: Path) -> None:
    image = small_image(layout, name="one")
    two_platforms(layout, name="two")
    for target in (f"oci:{tmp_path}/x:new", f"oci-archive:{tmp_path}/x.tar:new", "127.0.0.1:1/x"):
        result = ocistream("copy", layout.path, target)
        assertions.failure(result, 2, f"{layout.path} has 2 images\n", "oci:DIR:NAME", "one, two")
    assert not (tmp_path / "x.tar").exists()
    succeed("copy", f"oci:{layout.path}:one", f"oci:{tmp_path}/x:new")
    assert assertions.index_of(tmp_path / "x")[0]["digest"] == image["digest"]


def test_an_existing_name_is_moved_to_the_new_image(layout: Layout, tmp_path: Path) -> None:
    first, second = small_image(layout, name="one"), two_platforms(layout, name="two")
    target = f"oci:{tmp_path}/x"
    for source, name in (("one", "kept"), ("one", "moved"), ("two", "moved")):
        succeed("copy", f"oci:{layout.path}:{source}", f"{target}:{name}")
    assert assertions.names_in(tmp_path / "x") == ["kept", "moved"]
    assert [entry["digest"] for entry in assertions.index_of(tmp_path / "x")] == [first["digest"], second["digest"]]


def test_an_empty_media_type_in_a_manifest_counts_as_none(layout: Layout, image: Descriptor, tmp_path: Path) -> None:
    manifest = json.dumps({**layout.read(image["digest"]), "mediaType": ""}).encode()
    layout.name(layout.blob(manifest, OCI_MANIFEST), "x:1")
    succeed("copy", f"oci:{layout.path}:x:1", f"oci:{tmp_path}/copied:x:1")
    assert Layout(tmp_path / "copied").file(digest_of(manifest)).read_bytes() == manifest


def test_a_copy_to_itself_sends_nothing(served: FaultyRegistry, layout: Layout, image: Descriptor) -> None:
    seed(layout, image, served.host, "app", "1")
    served.requests.clear()
    succeed("copy", f"{served.host}/app:1", f"{served.host}/app:1")
    assert served.asked("PUT|POST|PATCH") == []


def test_each_side_has_its_own_credential(start: Start, layout: Layout, image: Descriptor) -> None:
    one, two = start(auth=Basic("me", "first")), start(auth=Basic("you", "second"))
    seed(layout, image, one.host, "app", "1", headers=basic("me", "first"))
    ends = [f"{one.host}/app:1", f"{two.host}/app:1"]
    names = ["--src-username=me", "--dest-username=you"]
    for argv, env, stdin in (
        ([], {"SRC_USERNAME": "me", "SRC_PASSWORD": "first", "DEST_USERNAME": "you", "DEST_PASSWORD": "second"}, None),
        (names, {"SRC_PASSWORD": "first", "DEST_PASSWORD": "second"}, None),
        ([*names, "--src-password-stdin"], {"DEST_PASSWORD": "second"}, b"first\n"),
        ([*names, "--dest-password-stdin"], {"SRC_PASSWORD": "first"}, b"second\n"),
        (["--src-password-stdin"], {"SRC_USERNAME": "me", "DEST_USERNAME": "you", "DEST_PASSWORD": "second"}, b"first"),
    ):
        found = {f"OCISTREAM_{name}": value for name, value in env.items()}
        succeed("copy", *ends, *argv, env=found, stdin=stdin)
    swapped = {"OCISTREAM_SRC_PASSWORD": "second", "OCISTREAM_DEST_PASSWORD": "first"}
    assertions.failure(ocistream("copy", *ends, *names, env=swapped), 3, one.host)
    assertions.failure(ocistream("copy", *ends, *names), 2, "--src-username", "OCISTREAM_SRC_PASSWORD")
    assertions.failure(
        ocistream("copy", *ends, "--dest-username=you", env={"OCISTREAM_SRC_PASSWORD": "first"}),
        2,
        "--dest-username needs a password",
        "OCISTREAM_DEST_PASSWORD",
        "--dest-password-stdin",
    )


class TestDestinationNames:
    """The NAME of a layout or an archive as the destination."""

    @pytest.mark.parametrize("name", ["a b", "a\nb", "a\x1b[2J", "a\tb"])
    def test_a_name_with_blanks_or_control_characters_is_refused(
        self, layout: Layout, tmp_path: Path, name: str
    ) -> None:
        small_image(layout, name="v1")
        result = ocistream("copy", f"oci:{layout.path}", f"oci:{tmp_path / 'out'}:{name}")
        assertions.failure(result, 2, "malformed name")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("key", "name"), [("org.opencontainers.image.ref.name", "a\x1b[2J"), ("io.containerd.image.name", "a b")]
    )
    def test_an_invalid_name_from_the_source_is_not_written(
        self, layout: Layout, tmp_path: Path, key: str, name: str
    ) -> None:
        layout.write_index([{**small_image(layout), "annotations": {key: name}}])
        for to in (f"oci:{tmp_path / 'out'}", f"oci-archive:{tmp_path / 'out'}"):
            assertions.failure(
                ocistream("copy", f"oci:{layout.path}", to),
                2,
                "names have no spaces or control characters",
                "oci:DIR:NAME",
            )
            assert not (tmp_path / "out").exists()
        piped = ocistream("copy", f"oci:{layout.path}", "oci-archive:-")
        assert (piped.code, piped.out) == (2, b"")
        good = tmp_path / "good"
        succeed("copy", f"oci:{layout.path}", f"oci:{good}:app")
        succeed("verify", good)

    @pytest.mark.parametrize("digest", ["sha256:abc", "sha512:" + 64 * "a", "sha256:"])
    def test_a_malformed_digest_in_a_name_is_refused(self, layout: Layout, tmp_path: Path, digest: str) -> None:
        layout.image([b"layer"], name="app")
        result = ocistream("copy", f"oci:{layout.path}:app", f"oci-archive:{tmp_path / 'app.tar'}:x@{digest}")
        assertions.failure(result, 2, f"malformed digest '{digest}'")
        assert not (tmp_path / "app.tar").exists()

    def test_a_digest_in_a_name_must_match(self, layout: Layout, tmp_path: Path) -> None:
        image = small_image(layout, name="v1")
        wrong = ocistream("copy", f"oci:{layout.path}", f"oci:{tmp_path / 'out'}:app@sha256:{'0' * 64}")
        assertions.failure(wrong, 5, image["digest"])
        assert not (tmp_path / "out").exists()
        succeed("copy", f"oci:{layout.path}", f"oci:{tmp_path / 'out'}:app@{image['digest']}")
