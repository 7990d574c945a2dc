"""The records of interrupted uploads: private files, used only if they are plausible. Statement 51."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from ocistream import limits
from tests.quirks.fixture_types import MakePushes, Start
from tests.quirks.interrupted_pushes import SENT, Pushes
from tests.quirks.statements import quirk

pytestmark = quirk(51)

_HOUR: Final = 3600.0


def begins_again(pushes: Pushes) -> None:
    """Assert that an interrupted push ignores what is in its record's place, and writes a valid record."""
    pushes.interrupt()
    assert (pushes.record()["size"], pushes.record()["digest"]) == (pushes.size, pushes.digest)
    (path,) = pushes.records()
    found = path.lstat()
    assert stat.S_ISREG(found.st_mode)
    assert (stat.S_IMODE(found.st_mode), found.st_nlink) == (0o600, 1)
    assert found.st_size < 1000


def test_a_record_and_its_directory_are_private_and_its_name_reveals_nothing(pushes: MakePushes) -> None:
    used = pushes()
    used.interrupt()
    (path,) = used.records()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert "app" not in path.name
    assert used.digest[7:] not in path.name
    path.parent.chmod(0o755)
    used.push()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("seconds", "known"),
    [
        (limits.MAX_UPLOAD_RECORD_AGE - _HOUR, True),
        (limits.MAX_UPLOAD_RECORD_AGE + _HOUR, False),
        (-_HOUR, True),
        (-30 * _HOUR, False),
    ],
    ids=["recent", "old", "by a clock that was set back", "of the future"],
)
def test_a_record_is_valid_for_seven_days(seconds: float, known: bool, pushes: MakePushes) -> None:
    used = pushes()
    used.interrupt()
    location = used.record()["location"]
    used.age(seconds)
    used.push()
    sent_to_it = [request for request in used.uploads("GET|PATCH|PUT") if location.endswith(request.path)]
    assert bool(sent_to_it) == known
    assert used.received() == used.size - (SENT if known else 0)
    assert used.is_complete()
    assert used.records() == []


def changed(**fields: Any) -> Callable[[dict[str, Any]], bytes]:
    return lambda document: json.dumps({**document, **fields}).encode()


def less(field: str) -> Callable[[dict[str, Any]], bytes]:
    return lambda document: json.dumps({name: value for name, value in document.items() if name != field}).encode()


#: Contents that are malformed, implausible, or of another upload.
NONSENSE: Final[tuple[Callable[[dict[str, Any]], bytes], ...]] = (
    lambda _: b"",
    lambda _: b"not JSON",
    lambda _: b"[]",
    lambda _: b"\xff\xfe{}",
    lambda _: b'{"version":' * 1000,
    lambda document: json.dumps(document).encode()[:-20],
    lambda document: json.dumps(document).encode().ljust(limits.MAX_UPLOAD_RECORD + 1),
    lambda document: json.dumps(document).encode()[:-1] + b',"size":1}',
    *(less(field) for field in ("version", "registry", "size", "location", "min_chunk", "since")),
    changed(version=2),
    changed(version=True),
    changed(more=1),
    changed(registry="registry.example"),
    changed(registry=["registry.example"]),
    changed(repository="other"),
    changed(repository=None),
    changed(digest=f"sha256:{'b' * 64}"),
    changed(size=1),
    changed(size="4000000"),
    changed(size=4e6),
    changed(location=1),
    changed(location=None),
    changed(min_chunk=-1),
    changed(min_chunk=10**30),
    changed(since="x"),
    changed(since=1e999),
)


def test_a_malformed_record_is_ignored(pushes: MakePushes) -> None:
    used = pushes()
    used.interrupt()
    for make in NONSENSE:
        (path,) = used.records()
        location = used.record()["location"]
        path.write_bytes(content := make(used.record()))
        begins_again(used)
        assert used.record()["location"] != location, content[:200]


def writable_copy(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())
    path.chmod(0o666)


#: Things in a record's place; the content of the record is in another file.
IN_ITS_PLACE: Final[dict[str, Callable[[Path, Path], object]]] = {
    "a symbolic link": lambda path, other: path.symlink_to(other),
    "a second name of a file": lambda path, other: path.hardlink_to(other),
    "a file that others may write": writable_copy,
    "a FIFO": lambda path, _: os.mkfifo(path, 0o600),
}


@pytest.mark.parametrize("what", IN_ITS_PLACE)
def test_anything_but_a_private_file_in_a_record_s_place_is_not_read_and_is_replaced(
    what: str, pushes: MakePushes
) -> None:
    used = pushes()
    used.interrupt()
    (path,) = used.records()
    location, other = used.record()["location"], used.mover.folder / "other"
    path.rename(other)
    content = other.read_bytes()
    IN_ITS_PLACE[what](path, other)
    begins_again(used)
    assert used.record()["location"] != location
    assert other.read_bytes() == content


@pytest.mark.parametrize("what", ["a directory", "a link in place of the directory", "a file in place of it"])
def test_a_push_without_a_place_for_records_succeeds_with_one_notice(what: str, pushes: MakePushes) -> None:
    used = pushes()
    folder = used.mover.folder / "state" / "ocistream" / "uploads"
    elsewhere = used.mover.folder / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    if what == "a directory":
        used.interrupt()
        (path,) = used.records()
        path.unlink()
        path.mkdir()
    elif what == "a link in place of the directory":
        folder.parent.mkdir(parents=True)
        folder.symlink_to(elsewhere)
    else:
        folder.parent.mkdir(parents=True)
        folder.touch()
    result = used.push("file", "-v")
    assert result.err.count("cannot store upload records") == 1
    assert list(elsewhere.iterdir()) == []
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o755
    assert used.is_complete()


#: Locations that a record must not have: on another host, in another repository, or with a possible secret.
FORBIDDEN: Final = (
    "http://{other}/v2/app/blobs/uploads/{session}",
    "http://user@{host}/v2/app/blobs/uploads/{session}",
    "http://{host}/v2/other/blobs/uploads/{session}",
    "http://{host}/v2/app/blobs/uploads/{session}?token=x",
    "http://{host}/v2/app/blobs/uploads/{session}#x",
    "/v2/app/blobs/uploads/{session}",
    "file:///etc/passwd",
)


@pytest.mark.parametrize("form", FORBIDDEN)
def test_a_forbidden_location_in_a_record_is_not_requested(form: str, pushes: MakePushes, start: Start) -> None:
    used, other = pushes(), start()
    used.interrupt()
    (path,) = used.records()
    session = used.record()["location"].rpartition("/")[2]
    location = form.format(host=used.registry.host, other=other.host, session=session)
    path.write_text(json.dumps({**used.record(), "location": location}))
    digests = used.mover.folder / "digests"
    digests.write_text(f"{used.digest}\n")
    used.mover.run("have", f"{used.registry.host}/app", "--among", digests)
    used.push()
    assert other.requests == []
    assert [request for request in used.uploads() if session in request.target] == []
    assert used.received() == used.size
    assert used.is_complete()


def test_records_of_other_images_and_other_files_are_kept(pushes: MakePushes) -> None:
    used = pushes()
    used.interrupt()
    (path,) = used.records()
    (path.parent / "README").touch()
    os.utime(path.parent / "README", (0, 0))
    host = used.registry.host
    used.mover.push(used.archive, f"{host}/other:v1")
    assert [request.method for request in used.uploads() if "/v2/app/" in request.path] == []
    assert used.records() == sorted([path, path.parent / "README"])


def test_any_push_that_writes_records_deletes_expired_ones(pushes: MakePushes) -> None:
    used = pushes()
    used.interrupt()
    used.age(limits.MAX_UPLOAD_RECORD_AGE + _HOUR)
    used.mover.push(used.archive, f"{used.registry.host}/other:v1")
    # The expired record is of another repository, so its session is not touched.
    assert [request.method for request in used.uploads() if "/v2/app/" in request.path] == []
    assert used.records() == []
