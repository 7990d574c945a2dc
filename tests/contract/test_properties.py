"""Properties of any archive: a file and a pipe give the same answer, and names are preserved."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocistream.errors import OcistreamError
from tests.archives import Item, files_in, index_in, items_of, small_first, tar_of
from tests.contract.adapter import Source, archive_destination, archive_source, copy, layout_destination, layout_source
from tests.contract.docker_stores import several_images
from tests.contract.stores import REF_NAME
from tests.contract.test_pipes import Pipe, piped
from tests.docker_archives import DIALECTS, Saved, archive_of
from tests.images import Layout, small_image, tar_layer

FULL_NAME: Final = "io.containerd.image.name"
#: Changes of an entry of an archive.
CHANGES: Final = ("flip", "cut", "grow", "remove", "empty", "again", "again, changed", "swap")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Return a layout of three images, which no test may change.

    None is an index: for an index with missing platforms a file and a pipe may differ, because a pipe learns too late
    that they are missing.
    """
    layout = Layout(tmp_path_factory.mktemp("made") / "layout")
    image = small_image(layout, name="v1")
    layout.image([tar_layer({"etc/motd": b"hello\n"}, compression="zstd"), b""], name="v2", algorithm="sha512")
    layout.artifact(b"a list of parts", subject=image, name="v3")
    return layout


def answer(source: Source, out: Path) -> object:
    """Copy an archive into a layout; return the exit code, or everything in the layout."""
    try:
        copy(source, layout_destination(out))
    except OcistreamError as error:
        assert not (out / "index.json").exists()
        return error.exit_code
    finally:
        source.close()
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def changed(items: list[Item], data: st.DataObject) -> list[Item]:
    """Change one entry of an archive."""
    place = data.draw(st.integers(0, len(items) - 1))
    other = data.draw(st.integers(0, len(items) - 1))
    name, content = items[place]
    content = content or b""
    at = data.draw(st.integers(0, max(0, len(content) - 1)))
    flipped = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :] if content else b"x"
    kind = data.draw(st.sampled_from(CHANGES))
    new: dict[str, list[Item]] = {
        "flip": [(name, flipped)],
        "cut": [(name, content[:at])],
        "grow": [(name, content + b" ")],
        "remove": [],
        "empty": [(name, b"")],
        "again": [(name, content), (name, content)],
        "again, changed": [(name, content), (name, flipped)],
        "swap": [(name, items[other][1])],
    }
    return [*items[:place], *new[kind], *items[place + 1 :]]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_file_and_a_pipe_give_the_same_answer(
    made: Layout, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    items = data.draw(st.sampled_from([items_of(made), small_first(made)]))
    archive = tar_of(changed(data.draw(st.permutations(items)) if data.draw(st.booleans()) else items, data))
    folder = tmp_path_factory.mktemp("answers")
    (folder / "x.tar").write_bytes(archive)
    try:
        file: object = answer(archive_source(folder / "x.tar"), folder / "file")
    except OcistreamError as error:
        file = error.exit_code
    assert answer(piped(Pipe(archive)), folder / "pipe") == file


@pytest.fixture(scope="module")
def docker_images(tmp_path_factory: pytest.TempPathFactory) -> list[Saved]:
    return several_images(Layout(tmp_path_factory.mktemp("docker") / "layout"))


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_docker_archive_has_the_same_images_in_any_order_and_tar_dialect(
    docker_images: list[Saved], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("docker")
    entries = DIALECTS[data.draw(st.sampled_from(sorted(DIALECTS)))](docker_images)
    (folder / "x.tar").write_bytes(archive_of(entries))
    expected = answer(archive_source(folder / "x.tar"), folder / "file")
    assert isinstance(expected, dict)
    archive = archive_of(
        data.draw(st.permutations(entries)),
        kind=data.draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])),
        prefix=data.draw(st.sampled_from(["", "./"])),
    )
    sizes = data.draw(st.lists(st.integers(1, 1 << 17), min_size=1, max_size=5))
    found = answer(piped(Pipe(archive, sizes)), folder / "pipe")
    # The result of a pipe may also have blobs that no image needs.
    assert isinstance(found, dict)
    assert expected.items() <= found.items()


#: Names as tools write them, and unusual names.
NAMES: Final = st.one_of(
    st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True),
    st.from_regex(r"r\.example(:5000)?/[a-z]{1,8}(/[a-z]{1,8})?:[a-z0-9]{1,8}", fullmatch=True),
    st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8})?:[a-z0-9]{1,8}", fullmatch=True),
    st.text(min_size=1, max_size=20),
)


def entries_of(files: dict[str, bytes]) -> dict[str, set[str]]:
    """Return the digests of the images by name: the full name, or else the tag."""
    found: dict[str, set[str]] = {}
    for entry in index_in(files):
        annotations = entry.get("annotations") or {}
        name = annotations.get(FULL_NAME) or annotations.get(REF_NAME)
        if name is not None:
            found.setdefault(name, set()).add(entry["digest"])
    return found


@settings(max_examples=30, deadline=None)
@given(names=st.lists(NAMES, min_size=1, max_size=3, unique=True), key=st.sampled_from([REF_NAME, FULL_NAME]))
def test_a_copy_keeps_the_name_of_an_image_or_is_refused(
    made: Layout, tmp_path_factory: pytest.TempPathFactory, names: list[str], key: str
) -> None:
    folder = tmp_path_factory.mktemp("names")
    items = dict(items_of(made))
    listed: list[dict[str, Any]] = index_in({"index.json": items["index.json"] or b""})
    entries = [{**entry, "annotations": {key: name}} for entry, name in zip(listed, names, strict=False)]
    items["index.json"] = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    (folder / "x.tar").write_bytes(tar_of(items.items()))
    expected = {name: {entry["digest"]} for entry, name in zip(listed, names, strict=False)}
    try:
        with archive_source(folder / "x.tar") as source:
            copy(source, layout_destination(folder / "layout"))
        with layout_source(folder / "layout") as source:
            copy(source, archive_destination(folder / "again.tar"))
    except OcistreamError:
        return
    for files in (
        {"index.json": (folder / "layout" / "index.json").read_bytes()},
        files_in((folder / "again.tar").read_bytes()),
    ):
        assert entries_of(files) == expected
