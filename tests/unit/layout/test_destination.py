"""`index.json` is written for several images at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ocistream import limits
from ocistream.errors import LocalDiskError, UnsupportedError
from ocistream.layout.destination import LayoutWriter
from ocistream.layout.directory import LayoutDirectory
from ocistream.layout.index import REF_NAME
from ocistream.oci.descriptor import OCI_MANIFEST, Descriptor

ONE, TWO = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"


def entry(name: str | None, digest: str = ONE) -> Descriptor:
    return Descriptor(OCI_MANIFEST, digest, 10, annotations={REF_NAME: name} if name else {})


def add(
    writer: LayoutWriter, *entries: Descriptor, check: Callable[[], None] = lambda: None
) -> Callable[[], Exception | None]:
    """Add a change; return the function that returns its error."""
    change = writer.add(entries, {}, check)
    return lambda: change.error


@pytest.fixture
def writer(tmp_path: Path) -> LayoutWriter:
    writer = LayoutWriter(tmp_path / "layout")
    writer.prepare()
    return writer


def written(writer: LayoutWriter) -> list[tuple[str | None, str]]:
    writer.index.flush()
    entries = LayoutDirectory(writer.directory.path).read_index().entries
    return [(found.annotations.get(REF_NAME), found.digest) for found in entries]


def test_a_new_entry_replaces_the_old_ones_of_its_name(writer: LayoutWriter) -> None:
    add(writer, entry("v1"), entry("v2"), entry(None, TWO))
    add(writer, entry("v1", TWO))
    assert written(writer) == [("v2", ONE), (None, TWO), ("v1", TWO)]
    assert list(map(writer.list_images().find_digest, ("v2", "v1", "v3"))) == [ONE, TWO, None]
    add(writer, entry("v2", TWO))
    assert written(writer) == [(None, TWO), ("v1", TWO), ("v2", TWO)]
    assert writer.list_images().referrers == {TWO}


def test_an_entry_without_a_name_is_written_once(writer: LayoutWriter) -> None:
    for _ in range(2):
        add(writer, entry(None))
        assert written(writer) == [(None, ONE)]
    add(writer, entry("v1"), entry("v2"), entry(None))
    assert written(writer) == [("v1", ONE), ("v2", ONE), (None, ONE)]


def test_changes_of_another_process_stay(writer: LayoutWriter) -> None:
    add(writer, entry("v1"))
    assert written(writer) == [("v1", ONE)]
    path = writer.directory.index_path
    document: dict[str, Any] = json.loads(path.read_bytes())
    document["annotations"] = {"org.example": "kept"}
    document["manifests"].append({"mediaType": OCI_MANIFEST, "digest": TWO, "size": 5, "org.example": 1})
    path.write_text(json.dumps(document))
    assert writer.list_images().find_digest("v1") == ONE
    assert writer.list_images().referrers == {TWO}
    add(writer, entry("v2"))
    assert written(writer) == [("v1", ONE), (None, TWO), ("v2", ONE)]
    document = json.loads(path.read_bytes())
    assert document["annotations"] == {"org.example": "kept"}
    assert document["manifests"][1]["org.example"] == 1


def test_one_image_that_cannot_be_listed_does_not_stop_the_others(
    writer: LayoutWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise LocalDiskError("removed")

    monkeypatch.setattr(limits, "MAX_LIST_ENTRIES", 2)
    errors = [
        add(writer, entry("v1"), check=fail),
        add(writer, entry("v2")),
        add(writer, entry("v3"), entry("v4")),
        add(writer, entry("v5")),
        add(writer, entry("v2", TWO)),
    ]
    assert written(writer) == [("v5", ONE), ("v2", TWO)]
    assert [type(error()) for error in errors] == [LocalDiskError, type(None), UnsupportedError, *[type(None)] * 2]


def test_all_waiting_images_fail_if_the_file_cannot_be_written(writer: LayoutWriter) -> None:
    add(writer, entry("v1"))
    assert written(writer) == [("v1", ONE)]
    path = writer.directory.index_path
    path.rename(writer.directory.path / "old")
    path.mkdir()
    errors = [add(writer, entry("v2")), add(writer, entry("v3"))]
    writer.index.flush()
    assert all(error() for error in errors)
    path.rmdir()
    (writer.directory.path / "old").rename(path)
    add(writer, entry("v4"))
    assert written(writer) == [("v1", ONE), ("v4", ONE)]


def test_an_unforeseen_error_is_raised_and_fails_the_other_waiting_images(writer: LayoutWriter) -> None:
    def fail() -> None:
        raise KeyError("a defect")

    errors = [add(writer, entry("v1")), add(writer, entry("v2"), check=fail)]
    with pytest.raises(KeyError):
        writer.index.flush()
    assert [type(error()) for error in errors] == [LocalDiskError, LocalDiskError]
    add(writer, entry("v3"))
    assert written(writer) == [("v3", ONE)]
