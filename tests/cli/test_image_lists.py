"""`pull --images`: images are named in a file, one per line, as k3s and RKE2 publish them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ocistream import limits
from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.faulty_registry import FaultyRegistry
from tests.images import Descriptor, Layout, small_image
from tests.registry_http import seed
from tests.runner import ocistream


@pytest.fixture
def images(served: FaultyRegistry, layout: Layout) -> dict[str, Descriptor]:
    """Fill the registry with app:1 to app:3, and return the image of each name."""
    made = {f"{served.host}/app:{tag}": small_image(layout, annotations={"tag": tag}) for tag in "123"}
    for name, image in made.items():
        seed(layout, image, served.host, "app", name[-1])
    return made


def names_in(path: Path) -> list[str]:
    return ocistream("tags", path).lines()


@pytest.mark.parametrize("how", ["file", "stdin"])
def test_a_list_has_comments_and_blank_lines(images: dict[str, Descriptor], tmp_path: Path, how: str) -> None:
    first, second, third = images
    text = f"\ufeff# images of a release\r\n\r\n{first}\r\n  {second}  # the second\n\n{first}\n#{third}".encode()
    path = tmp_path / "images.txt"
    path.write_bytes(text)
    out = tmp_path / "x.tar"
    result = succeed(
        *("pull", "--images", path if how == "file" else "-", "-o", out), stdin=None if how == "file" else text
    )
    assert result.lines() == [f"{name}@{images[name]['digest']}" for name in (first, second)]
    assert names_in(out) == [first, second]


def test_several_lists_and_arguments_are_joined(images: dict[str, Descriptor], tmp_path: Path) -> None:
    first, second, third = images
    (tmp_path / "a").write_text(second)
    (tmp_path / "b").write_text(f"{third}\n")
    lists = ("--images", tmp_path / "a", "--images", tmp_path / "b")
    succeed("pull", first, *lists, "-o", tmp_path / "x.tar")
    assert names_in(tmp_path / "x.tar") == [first, second, third]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"example.com/UPPER:1", "is not a repository"),
        (b"example.com/a:1 example.com/b:1", "is more than one image name"),
        (b"./app.tar", "is a path"),
        (b"oci:dir", "is a layout"),
        (b"https://example.com/app", "a URL is not a name"),
        (b"caf\xe9", "is not text in UTF-8"),
        (b"x" * (limits.MAX_IMAGE_LIST_LINE + 1), "is not a list of images"),
    ],
)
def test_a_bad_line_is_named_with_its_file_and_number(
    served: FaultyRegistry, tmp_path: Path, line: bytes, problem: str
) -> None:
    path = tmp_path / "images.txt"
    path.write_bytes(f"# comment\n{served.host}/app:1\n".encode() + line + b"\n")
    arguments = ("pull", "-o", tmp_path / "x.tar", "--images")
    assertions.failure(ocistream(*arguments, path), 2, f"{path}, line 3: ", problem)
    assertions.failure(ocistream(*arguments, "-", stdin=path.read_bytes()), 2, "the list on stdin, line 3: ", problem)
    assert served.requests == []
    assert not (tmp_path / "x.tar").exists()


def test_a_list_of_too_many_lines_is_refused(tmp_path: Path) -> None:
    result = ocistream("pull", "--images", "-", "-o", tmp_path / "x", stdin=b"\n" * (limits.MAX_IMAGE_LIST_LINES + 1))
    assertions.failure(result, 2, f"line {limits.MAX_IMAGE_LIST_LINES + 1}: this is not a list of images")


def test_an_empty_list_and_no_list_are_errors(tmp_path: Path) -> None:
    (tmp_path / "images.txt").write_text("# none yet\n")
    assertions.failure(ocistream("pull", "--images", tmp_path / "images.txt"), 2, "images.txt has no images")
    assertions.failure(ocistream("pull", "--images", tmp_path / "none.txt"), 4, "none.txt", "no such file")
    assertions.failure(ocistream("pull"), 2, "IMAGE", "--images FILE")


def test_stdin_has_one_list() -> None:
    assertions.failure(ocistream("pull", "--images", "-", "--have", "-", stdin=b""), 2, "only one list")
    result = ocistream("pull", "--images", "-", "-u", "ada", "--password-stdin", stdin=b"")
    assertions.failure(result, 2, "stdin cannot be both the list and the password")


def test_an_image_of_the_list_that_does_not_exist_is_named(
    images: dict[str, Descriptor], served: FaultyRegistry, tmp_path: Path
) -> None:
    (tmp_path / "images.txt").write_text("\n".join([*images, f"{served.host}/app:none"]))
    result = ocistream("pull", "--images", tmp_path / "images.txt", "-o", tmp_path / "x.tar")
    assertions.failure(result, 4, f"{served.host}/app:none not found", "its tags are: 1, 2, 3")
    assert not (tmp_path / "x.tar").exists()
