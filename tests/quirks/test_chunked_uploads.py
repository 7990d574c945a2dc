"""Uploads in chunks, and broken uploads: statements 6 to 11, 29, 30, 40 and 41, as far as they need options.

The tests push from a file and from a pipe to 127.0.0.1, a host without a known profile.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from tests.cli import assertions
from tests.faulty_registry import Fault, Request, StopReading, refusal
from tests.images import Descriptor, Layout
from tests.quirks import registry_quirks, upload_quirks
from tests.quirks.command_runner import How, both_ways, run
from tests.quirks.fixture_types import Move, Start
from tests.quirks.quirky_registry import Quirk, QuirkyHandler, QuirkyRegistry, changed, refused
from tests.quirks.small_images import MIB, is_stored, layer_of, one_layer, upload_of
from tests.quirks.statements import quirk
from tests.registry.storage import Upload
from tests.registry_http import manifest_digest, seed
from tests.runner import Result

#: A layer of three chunks of a MiB, and a few bytes.
SIZE: Final = 3 * MIB + 5
#: A layer that no proxy with `client_max_body_size 10m` accepts at once.
LARGE: Final = 11 * MIB


def push(how: How, registry: QuirkyRegistry, archive: bytes, folder: Path, *options: str) -> Result:
    """Push to app:v1; `folder` has the state directory."""
    path = folder / "given.tar"
    path.write_bytes(archive)
    given = ["-i", str(path)] if how == "file" else []
    env = {"XDG_STATE_HOME": str(folder / "state"), "HOME": str(folder)}
    stdin = archive if how == "pipe" else None
    return run("push", f"{registry.host}/app:v1", *given, "--retries", "3", *options, stdin=stdin, env=env)


def chunks_of(requests: Sequence[Request]) -> list[tuple[int, int]]:
    """Return the first and last byte of each chunk from Content-Range, which must be exactly two numbers."""
    found = []
    for request in requests:
        match = re.fullmatch(r"([0-9]+)-([0-9]+)", request.headers["Content-Range"] or "")
        assert match is not None, request.headers["Content-Range"]
        found.append((int(match[1]), int(match[2])))
        assert request.headers["Content-Length"] == str(int(match[2]) - int(match[1]) + 1)
    return found


def sent(registry: QuirkyRegistry, blob: Descriptor, status: int = 202) -> list[tuple[int, int]]:
    """Return the accepted chunks of a blob, in order."""
    patches = [request for request in upload_of(registry, blob) if request.method == "PATCH"]
    return chunks_of([request for request in patches if request.status == status])


def whole(registry: QuirkyRegistry, layout: Layout, image: Descriptor) -> None:
    """Assert that the registry has an image and its complete layer."""
    assert manifest_digest(registry.host, "app", "v1") == image["digest"]
    assert is_stored(registry, layout, layer_of(layout, image))


@quirk(3, 6)
@both_ways
def test_a_chunk_has_a_range_of_two_numbers_and_goes_to_the_last_location(
    how: How, start: Start, layout: Layout, tmp_path: Path
) -> None:
    registry = start(upload_quirks.STATE)
    image, archive = one_layer(layout, SIZE)
    assertions.success(push(how, registry, archive, tmp_path, "--upload", "chunk=1MiB"))
    found = sent(registry, layer_of(layout, image))
    assert [end - begin + 1 for begin, end in found] == [MIB, MIB, MIB, 5]
    assert [begin for begin, _ in found] == [0, MIB, 2 * MIB, 3 * MIB]
    whole(registry, layout, image)


@quirk(8, 10, 40)
@both_ways
@pytest.mark.parametrize(
    "habit",
    [upload_quirks.STALLED_RANGE, upload_quirks.BACKWARD_RANGE, upload_quirks.LAST_RANGE, upload_quirks.NO_RANGE],
    ids=str,
)
def test_an_implausible_range_between_chunks_is_ignored(
    habit: Quirk, how: How, start: Start, layout: Layout, tmp_path: Path
) -> None:
    registry = start(habit)
    image, archive = one_layer(layout, SIZE)
    assertions.success(push(how, registry, archive, tmp_path, "--upload", "chunk=1MiB"))
    whole(registry, layout, image)


@quirk(8)
@both_ways
def test_chunks_are_limited_to_the_known_maximum_of_github(
    how: How, start: Start, layout: Layout, tmp_path: Path
) -> None:
    def github(_: Any, answer: Any) -> Any:
        return changed(answer, X_GitHub_Request_Id="C0FF:EE")

    registry = start(upload_quirks.no_larger_than(4 * MIB, 416, chunks_only=True), Quirk("is GitHub's", outward=github))
    registry.faults.append(Fault(refusal(413), "PATCH", larger_than=LARGE - 1, times=None))
    image, archive = one_layer(layout, LARGE)
    assertions.success(push(how, registry, archive, tmp_path))
    assert max(end - begin + 1 for begin, end in sent(registry, layer_of(layout, image))) <= 4 * MIB
    # GitHub's limit is known, so no larger chunk is tried.
    assert [request.status for request in registry.requests if request.status == 416] == []
    whole(registry, layout, image)


@quirk(9)
@both_ways
def test_after_413_a_blob_is_uploaded_in_chunks(how: How, start: Start, layout: Layout, tmp_path: Path) -> None:
    registry = start(upload_quirks.no_larger_than(10 * MIB, 413))
    image, archive = one_layer(layout, LARGE)
    assertions.success(push(how, registry, archive, tmp_path))
    assert all(end - begin + 1 <= 10 * MIB for begin, end in sent(registry, layer_of(layout, image)))
    assert len([request for request in registry.requests if request.status == 413]) == 1
    whole(registry, layout, image)


@quirk(9)
@both_ways
@pytest.mark.parametrize("status", [404, 405])
def test_a_registry_without_patch_gets_a_put(
    status: int, how: How, start: Start, layout: Layout, tmp_path: Path
) -> None:
    registry = start(upload_quirks.refusing("PATCH", status))
    image, archive = one_layer(layout)
    assertions.success(push(how, registry, archive, tmp_path))
    (put,) = [request for request in upload_of(registry, layer_of(layout, image)) if request.status == 201]
    assert put.received == layer_of(layout, image)["size"]
    whole(registry, layout, image)


@quirk(10)
@both_ways
@pytest.mark.parametrize("action", [StopReading(MIB + 7, reset=True), StopReading(MIB + 7)], ids=["reset", "hang up"])
def test_a_broken_upload_resumes_at_the_offset_of_the_registry(
    action: StopReading, how: How, start: Start, layout: Layout, tmp_path: Path
) -> None:
    image, archive = one_layer(layout, 2 * MIB)
    registry = start(upload_quirks.STATE)
    registry.faults.append(Fault(action, "PATCH", larger_than=MIB))
    assertions.success(push(how, registry, archive, tmp_path))
    asked = registry.asked("GET", "/blobs/uploads/")
    assert [request.status for request in asked] == [204]
    assert len(registry.asked("POST")) == 2
    # The bytes that the registry has are not sent again.
    first, *rest = [request for request in upload_of(registry, layer_of(layout, image)) if request.method == "PATCH"]
    assert first.received <= MIB + 7
    assert sum(request.received for request in rest) == layer_of(layout, image)["size"] - first.received
    whole(registry, layout, image)


@quirk(10)
@both_ways
@pytest.mark.parametrize("status", [500, 503])
def test_after_a_refused_chunk_the_upload_resumes_without_gaps(
    status: int, how: How, start: Start, layout: Layout, tmp_path: Path
) -> None:
    image, archive = one_layer(layout, SIZE)
    registry = start(Quirk("one chunk is refused", (Fault(refusal(status), "PATCH", skip=2, larger_than=MIB - 1),)))
    assertions.success(push(how, registry, archive, tmp_path, "--upload", "chunk=1MiB"))
    whole(registry, layout, image)
    taken = sent(registry, layer_of(layout, image))
    assert all(one[1] + 1 == other[0] for one, other in itertools.pairwise(taken))


@quirk(10)
@both_ways
def test_after_416_bytes_that_the_registry_has_are_not_sent_again(
    how: How, start: Start, layout: Layout, tmp_path: Path
) -> None:
    def forgets(handler: QuirkyHandler, answer: Any) -> Any:
        """Accept the second chunk, but answer 416."""
        with handler.registry.lock:
            turn = (handler.headers.get("Content-Range") or "").startswith(f"{MIB}-")
            turn = turn and handler.registry.memory.setdefault("forgot", handler) is handler
        return refused(416, "BLOB_UPLOAD_INVALID") if turn else answer

    image, archive = one_layer(layout, SIZE)
    registry = start(Quirk("416 for what was taken", outward=forgets))
    assertions.success(push(how, registry, archive, tmp_path, "--upload", "chunk=1MiB"))
    whole(registry, layout, image)
    assert registry.asked("GET", "/blobs/uploads/") != []
    begins = [begin for begin, _ in sent(registry, layer_of(layout, image))]
    assert begins == [0, 2 * MIB, 3 * MIB]


@quirk(11)
@both_ways
def test_chunks_have_the_minimum_size_that_the_registry_requires(
    how: How, start: Start, layout: Layout, tmp_path: Path
) -> None:
    registry = start(upload_quirks.chunks_of_at_least(2 * MIB))
    image, archive = one_layer(layout, SIZE + 2 * MIB)
    assertions.success(push(how, registry, archive, tmp_path, "--upload", "chunk=1MiB"))
    *full, last = sent(registry, layer_of(layout, image))
    assert all(end - begin + 1 >= 2 * MIB for begin, end in full)
    assert full
    assert last[1] == layer_of(layout, image)["size"] - 1
    whole(registry, layout, image)


@quirk(11)
@both_ways
def test_a_blob_is_streamed_if_the_minimum_chunk_exceeds_the_memory(
    how: How, start: Start, layout: Layout, tmp_path: Path
) -> None:
    registry = start(upload_quirks.chunks_of_at_least(1 << 40))
    image, archive = one_layer(layout, SIZE)
    assertions.success(push(how, registry, archive, tmp_path, "--upload", "chunk=1MiB"))
    whole(registry, layout, image)


@quirk(29, 30)
@pytest.mark.parametrize(
    "habit",
    [
        registry_quirks.too_many("nothing", methods="PATCH"),
        registry_quirks.in_trouble(503, methods="PATCH"),
        registry_quirks.hanging_up(methods="PATCH"),
    ],
    ids=str,
)
def test_a_body_from_a_pipe_is_sent_again_after_one_refusal(
    habit: Quirk, start: Start, mover: Move, layout: Layout
) -> None:
    registry = start(habit)
    image, archive = one_layer(layout)
    mover().push(archive, f"{registry.host}/app:v1", "pipe")
    whole(registry, layout, image)


@quirk(30)
def test_an_upload_from_a_pipe_resumes_after_a_loss_of_more_than_one_read(
    start: Start, mover: Move, layout: Layout
) -> None:
    image, archive = one_layer(layout, 6 * MIB)
    registry = start()
    registry.faults += [Fault(StopReading(2 * MIB, reset=True), "PATCH", larger_than=MIB, times=2)]
    mover().push(archive, f"{registry.host}/app:v1", "pipe")
    whole(registry, layout, image)


@quirk(10)
def test_a_push_fails_if_the_registry_accepts_almost_nothing_of_each_chunk(
    start: Start, mover: Move, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = Upload.receive

    def sparing(upload: Upload, read: Callable[[memoryview], int], buffer: memoryview) -> None:
        left = [100]

        def some(view: memoryview) -> int:
            got = taken = min(read(view), left[0])
            left[0] -= taken
            while not taken and (got := read(view)):
                pass
            return taken or got

        receive(upload, some, buffer)

    monkeypatch.setattr(Upload, "receive", sparing)
    _, archive = one_layer(layout, SIZE)
    registry = start()
    mover("--upload", "chunk=1MiB", "--retries", "2").push(
        archive, f"{registry.host}/app:v1", code=7, says="accepted 100 of "
    )
    assert len(registry.asked("PATCH")) <= 10


@quirk(41)
@both_ways
def test_a_registry_that_refuses_one_put_gets_a_patch(how: How, start: Start, layout: Layout, tmp_path: Path) -> None:
    registry = start(upload_quirks.NO_SINGLE_PUT)
    image, archive = one_layer(layout)
    # Automatic: PATCH, because the registry refuses one PUT. A forced method fails instead.
    assertions.success(push(how, registry, archive, tmp_path))
    assert [request.method for request in upload_of(registry, layer_of(layout, image))] == ["PATCH", "PUT"]
    refused = push(how, registry, one_layer(Layout(tmp_path / "other"), 9000)[1], tmp_path, "--upload", "put")
    assertions.failure(refused, 7, "404")


@quirk(17, 18)
@both_ways
def test_a_push_mounts_from_the_named_repository(how: How, start: Start, layout: Layout, tmp_path: Path) -> None:
    def forget(handler: Any, answer: Any) -> Any:
        return refused(404) if handler.command == "HEAD" and "/v2/app/blobs/" in handler.path else answer

    registry = start(Quirk("blobs belong to repositories", outward=forget), registry_quirks.MOUNT_WANTS_FROM)
    image, archive = one_layer(layout)
    seed(layout, image, registry.host, "base/image", "v1")
    registry.requests.clear()
    assertions.success(push(how, registry, archive, tmp_path, "--mount-from", "base/image"))
    mounts = registry.asked("POST", "mount=")
    assert [request.query["from"] for request in mounts] == [["base/image"]] * 2
    assert registry.asked("PATCH") == []
    whole(registry, layout, image)
