"""Notices at the start about images that are served under another name, or by digest only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ocistream.errors import NotFoundError
from ocistream.serve import Registry
from tests.archives import small_first, tar_of
from tests.docker_archives import archive_of, of_docker, saved
from tests.images import OCI_MANIFEST, Descriptor, Layout, digest_of, small_image
from tests.raw_http import Client

NAME = "org.opencontainers.image.ref.name"


def start(path: Path) -> list[str]:
    """Start a registry and return its notices."""
    with Registry(path) as registry:
        return registry.operator_notices()


@pytest.fixture
def archived(tmp_path: Path) -> Callable[[Layout], Path]:
    """Return a function that writes a layout as an archive `app.tar`."""

    def make(layout: Layout) -> Path:
        path = tmp_path / "app.tar"
        path.write_bytes(tar_of(small_first(layout)))
        return path

    return make


def list_images(layout: Layout, *named: tuple[Descriptor, str | None]) -> None:
    """Write an index.json that lists images by these names; a name may occur twice."""
    layout.clear()
    layout.enter(*({**image, "annotations": {NAME: name}} if name else image for image, name in named))


def two(layout: Layout) -> tuple[Descriptor, Descriptor]:
    return small_image(layout), layout.image([4000])


@pytest.mark.parametrize("kind", ["archive", "directory"])
def test_two_images_with_one_name_are_reported(layout: Layout, archived: Callable[[Layout], Path], kind: str) -> None:
    first, last = two(layout)
    list_images(layout, (first, "registry.example/app:1"), (last, "registry.example/app:1"))
    path = archived(layout) if kind == "archive" else layout.path
    line = f"two images have the name app:1: {last['digest']} is served under it; "
    line += f"{first['digest']} is served by digest only"
    assert start(path) == [line]
    with Registry(path) as registry, Client(registry.host) as ask:
        assert ask("GET", "/v2/app/manifests/1").headers["Docker-Content-Digest"] == last["digest"]
        assert ask("GET", f"/v2/app/manifests/{first['digest']}").status == 200


def test_two_images_that_share_only_the_short_name_are_reported(layout: Layout) -> None:
    first, last = two(layout)
    list_images(layout, (first, "a.example/app:1"), (last, "b.example/app:1"))
    line = f"two images have the name app:1: {last['digest']} is served under it; "
    assert start(layout.path) == [f"{line}{first['digest']} is served as a.example/app:1"]


def test_two_images_with_one_name_in_a_docker_archive_are_reported(layout: Layout, tmp_path: Path) -> None:
    images = [saved(layout, image, "nginx:1") for image in two(layout)]
    (tmp_path / "app.tar").write_bytes(archive_of(of_docker(images)))
    (line,) = start(tmp_path / "app.tar")
    assert line.startswith("two images have the name library/nginx:1: ")


def test_one_image_with_several_names_is_not_reported(layout: Layout) -> None:
    image = small_image(layout)
    list_images(layout, (image, "a.example/app:1"), (image, "b.example/app:1"), (image, "1"), (image, None))
    assert start(layout.path) == []


def test_a_name_that_cannot_be_a_repository_is_reported(layout: Layout) -> None:
    image = small_image(layout)
    list_images(layout, (image, "My App!"))
    assert start(layout.path) == [
        f"'My App!' is not the name of a repository with a tag: {image['digest']} is served by digest only"
    ]


def test_the_name_given_to_the_only_image_is_reported(layout: Layout, archived: Callable[[Layout], Path]) -> None:
    list_images(layout, (small_image(layout), None))
    assert start(archived(layout)) == ["the image has no name: it is served as app:latest"]


def test_unnamed_images_are_counted_without_referrers(layout: Layout, archived: Callable[[Layout], Path]) -> None:
    first, last = two(layout)
    signature = layout.artifact(b"signed", subject=first)
    list_images(layout, (first, "app:1"), (signature, None))
    assert start(archived(layout)) == []
    list_images(layout, (first, None), (last, None), (signature, None))
    line = f"2 images without a name, served by digest only: {first['digest']}, {last['digest']}"
    assert start(archived(layout)) == [line]
    assert start(layout.path) == [line]


def test_many_unnamed_entries_are_counted_without_reading_them(layout: Layout) -> None:
    # The registry reads at most a hundred entries to find out whether they are referrers.
    digests = [digest_of(b"%d" % number) for number in range(101)]
    missing: list[Descriptor] = [{"mediaType": OCI_MANIFEST, "digest": digest, "size": 1} for digest in digests]
    list_images(layout, *((entry, None) for entry in missing))
    shown = ", ".join(digests[:3])
    assert start(layout.path) == [f"101 images or referrers without a name, served by digest only: {shown} and 98 more"]


def test_at_most_ten_names_are_reported(layout: Layout) -> None:
    image = small_image(layout)
    list_images(layout, *((image, f"No {number}") for number in range(13)))
    lines = start(layout.path)
    assert len(lines) == 11
    assert lines[-1] == "and 3 more such images"


def test_an_archive_without_images_is_refused_and_a_directory_reported(
    layout: Layout, archived: Callable[[Layout], Path], tmp_path: Path
) -> None:
    list_images(layout)
    with pytest.raises(NotFoundError, match=r"app\.tar has no images"):
        start(archived(layout))
    assert start(layout.path) == [f"{layout.path} has no images yet"]
    assert start(tmp_path / "new") == [f"{tmp_path / 'new'} has no images yet"]
