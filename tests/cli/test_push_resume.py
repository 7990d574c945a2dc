"""Resume a killed push with the same command: which bytes are sent again, and what is left."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.fixture_types import Start
from tests.cli.signalling import signalled
from tests.faulty_auth import Bearer
from tests.faulty_registry import Fault, FaultyRegistry, Header, PauseReading, Request, WithholdAnswer
from tests.images import Descriptor, Layout
from tests.registry_http import manifest_digest
from tests.runner import Argument, Result, command, ocistream, run, started_fork

MIB = 1 << 20
#: More than the socket buffers on both sides.
LAYER = 16 * MIB
#: Bytes of the layer that the registry reads before the push is stopped; not a multiple of a chunk.
HALF = 5 * MIB // 2
#: The same for chunks of 8 MiB. The rest of the second chunk exceeds the socket buffers, so it is interrupted.
HALF_OF_LARGE_CHUNKS = 17 * MIB // 2
#: The message about an interrupted request.
MAY_HAVE = "may have stored a part of 1 blob: re-run the same command; it reports what it resumes"

pytestmark = pytest.mark.usefixtures("interruptible")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test its own state directory, because ports are reused."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def image(layout: Layout) -> Descriptor:
    """Return an image with one large layer."""
    return layout.image([LAYER], name="v1")


@pytest.fixture
def source(request: pytest.FixtureRequest, layout: Layout, image: Descriptor, tmp_path: Path) -> Path:
    """Return the location of the image: a layout directory, unless the test requests an archive."""
    del image
    if getattr(request, "param", "layout") == "layout":
        return layout.path
    path = tmp_path / "image.tar"
    succeed("copy", f"oci:{layout.path}:v1", path)
    return path


def push(served: FaultyRegistry, source: Path, *options: Argument) -> list[Argument]:
    return ["push", "-i", source, f"{served.host}/app:1", *options]


def records(state: Path) -> list[Path]:
    return [path for path in (state / "ocistream" / "uploads").glob("*") if path.is_file()]


def sessions(served: FaultyRegistry) -> list[Path]:
    """Return the files of open uploads in the registry."""
    return list((served.layout.path / "blobs").glob("*/*.upload.partial"))


def received(served: FaultyRegistry) -> int:
    return sum(request.received for request in served.asked("PATCH|PUT", "/uploads/"))


def halfway(served: FaultyRegistry, arguments: Sequence[Argument] = ()) -> int:
    """Make the registry stop reading in the middle of a layer, until `gone`; return how many bytes it reads."""
    chunk = next((size for size in (1, 8) if f"chunk={size}MiB" in arguments), LAYER // MIB) * MIB
    size = HALF_OF_LARGE_CHUNKS if chunk == 8 * MIB else HALF
    served.faults = [Fault(PauseReading(size % chunk), "PATCH", larger_than=MIB // 2, skip=size // chunk)]
    return size


def has_half(served: FaultyRegistry, size: int = HALF) -> bool:
    """Return whether the registry has read that many bytes."""
    return sum(request.received for request in served.asked("PATCH") if _is_layers(request)) >= size


def _is_layers(request: Request) -> bool:
    return int(request.headers["Content-Length"]) > MIB // 2


def gone(served: FaultyRegistry) -> None:
    """Let the registry continue, and wait until it has noticed that the client closed its connections."""
    served.release()
    assertions.wait_for(lambda: served.open_connections == 0)


def ended(served: FaultyRegistry, number: signal.Signals, arguments: list[Argument]) -> Result:
    """Run a push until the registry has half of it, stop it with a signal, and wait until the registry noticed."""
    size = halfway(served, arguments)
    # One job: otherwise the upload of the config may be active, too.
    result = signalled(number, *arguments, "--jobs", "1", until=lambda: has_half(served, size))
    gone(served)
    return result


def check_whole(served: FaultyRegistry, image: Descriptor, state: Path) -> None:
    assert manifest_digest(served.host, "app", "1") == image["digest"]
    assert records(state) == []
    assert sessions(served) == []


@pytest.mark.parametrize(
    ("source", "way", "number"),
    [("layout", "auto", signal.SIGKILL), ("archive", "auto", signal.SIGTERM), ("layout", "chunk=8MiB", signal.SIGINT)],
    indirect=["source"],
)
def test_stored_bytes_are_not_sent_again(
    served: FaultyRegistry,
    source: Path,
    image: Descriptor,
    layout: Layout,
    state: Path,
    number: signal.Signals,
    way: str,
) -> None:
    result = ended(served, number, push(served, source, "--upload", way))
    assert result.code == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert "Traceback" not in result.err
    if number != signal.SIGKILL:
        first, second = [line for line in result.err.splitlines() if "MB/s" not in line]
        assert first == f"ocistream: error: {'terminated' if number == signal.SIGTERM else 'interrupted'}"
        # The request was interrupted, so the client does not know how much of it the registry keeps.
        assert second.strip() == f"{served.host} {MAY_HAVE}"
    assertions.no_image(served)
    assert len(records(state)) == 1
    before = received(served)
    again = succeed(*push(served, source, "--upload", way, "-v"))
    assert f"{served.host}: resumed " in again.err
    assert HALF <= before < LAYER
    assert received(served) == sum(blob["size"] for blob in layout.blobs(image))
    check_whole(served, image, state)


@pytest.mark.parametrize(("is_answered", "size"), [(False, "2.1"), (True, "3.1")])
def test_confirmed_chunks_are_reported_as_stored_if_no_request_is_interrupted(
    served: FaultyRegistry, source: Path, state: Path, is_answered: bool, size: str
) -> None:
    served.faults = [Fault(WithholdAnswer(), "PATCH", larger_than=MIB // 2, skip=2)]
    with started_fork(*push(served, source, "--upload", "chunk=1MiB", "--jobs", "1")) as process:
        assertions.wait_for(lambda: received(served) >= 3 * MIB)
        process.send_signal(signal.SIGTERM)
        if is_answered:
            # The push must handle the signal first. Then it does not send the next chunk.
            time.sleep(1)
            served.release()
        _, err = process.communicate(timeout=60)
    gone(served)
    assert process.returncode == 143
    hint = f"{served.host} has stored {size} MB of 1 unfinished blob: re-run the same command to resume"
    assert err.decode().splitlines()[-1].strip() == hint
    assert len(records(state)) == 1


@pytest.mark.parametrize("kind", ["stdin", "fifo"])
def test_a_push_that_is_stopped_while_its_pipe_is_silent_completes_its_request(
    served: FaultyRegistry, layout: Layout, image: Descriptor, tmp_path: Path, state: Path, kind: str
) -> None:
    archive, configuration = tmp_path / "image.tar", tmp_path / "config.toml"
    succeed("copy", f"oci:{layout.path}:v1", archive)
    configuration.write_text(f'[registry."{served.host}"]\nprofile = "distribution"\n')
    arguments: list[Argument] = ["push", f"{served.host}/app:1", "--config", configuration]
    fifo = tmp_path / "fifo"
    if kind == "fifo":
        os.mkfifo(fifo)
        arguments += ["-i", fifo]
    with started_fork(*arguments, stdin=subprocess.PIPE) as process, contextlib.ExitStack() as stack:
        assert process.stdin
        pipe = process.stdin if kind == "stdin" else stack.enter_context(fifo.open("wb"))
        pipe.write(archive.read_bytes()[: 4 * MIB])
        pipe.flush()
        assertions.wait_for(lambda: received(served) > 3 * MIB)
        process.send_signal(signal.SIGTERM)
        # The pipe stays open and silent.
        first, hint = process.stderr.read().decode().splitlines()[-2:]
        assert process.wait(60) == 143
    assert first == "ocistream: error: terminated"
    assert re.fullmatch(
        rf"  {served.host} has stored (3\.\d|4\.\d) MB of 1 unfinished blob: re-run the same command to resume", hint
    )
    before = received(served)
    assert [patch.status for patch in served.asked("PATCH")][-1] == 202
    again = succeed("push", f"{served.host}/app:1", stdin=archive)
    assert f"{served.host}: resumed {hint.split()[3]} MB of 16.8 MB of sha256:" in again.err
    assert received(served) == sum(blob["size"] for blob in layout.blobs(image))
    assert before > 3 * MIB
    check_whole(served, image, state)


def test_a_push_from_a_truncated_pipe_is_resumed(
    served: FaultyRegistry, layout: Layout, image: Descriptor, tmp_path: Path, state: Path
) -> None:
    archive = tmp_path / "image.tar"
    succeed("copy", f"oci:{layout.path}:v1", archive)
    arguments = ["push", f"{served.host}/app:1", "--upload", "chunk=1MiB"]
    broken = ocistream(*arguments, stdin=archive.read_bytes()[: HALF + 100])
    # The chunk is complete, and the registry has confirmed its bytes.
    hint = "has stored 2.6 MB of 1 unfinished blob: re-run the same command to resume"
    assertions.failure(broken, 6, "truncated", f"{served.host} {hint}")
    assertions.no_image(served)
    assert len(records(state)) == 1
    again = succeed(*arguments, stdin=archive.read_bytes())
    assert f"{served.host}: resumed 2.6 MB of 16.8 MB of sha256:" in again.err
    assert "2.6 MB resumed from an earlier run" in again.err
    assert received(served) == sum(blob["size"] for blob in layout.blobs(image))
    check_whole(served, image, state)


def test_a_blob_that_another_push_completed_leaves_no_session(
    served: FaultyRegistry, source: Path, image: Descriptor, state: Path, tmp_path: Path
) -> None:
    ended(served, signal.SIGKILL, push(served, source))
    other = {"XDG_STATE_HOME": str(tmp_path / "other")}
    succeed(*push(served, source), env=other)
    assert len(sessions(served)) == len(records(state)) == 1
    succeed(*push(served, source))
    check_whole(served, image, state)


def test_the_hint_to_resume_is_missing_after_a_digest_mismatch(served: FaultyRegistry, layout: Layout) -> None:
    image = layout.image([LAYER, MIB], name="v1")
    damaged = layout.file(layout.read(image["digest"])["layers"][1]["digest"])
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    for _ in range(10):
        # Only the other layer is large enough to be paused. Its upload must be incomplete when the damage is found.
        served.faults = [Fault(PauseReading(after=HALF), "PATCH", times=2)]
        failed = ocistream("push", "-i", layout.path, f"{served.host}/app:1", "--jobs", "2")
        assert failed.code == 5, failed.err
        assert served.host not in failed.err.splitlines()[-1]
        if sessions(served):
            break
    assert len(sessions(served)) == 1


def test_a_record_that_cannot_be_written_is_removed_and_reported(
    served: FaultyRegistry, source: Path, image: Descriptor, state: Path
) -> None:
    argv = [*command(), *map(str, push(served, source, "-v"))]
    # Coverage would write a file.
    env = dict.fromkeys(name for name in os.environ if name.startswith("COVERAGE_"))
    result = assertions.success(run(["sh", "-c", 'ulimit -f 0 && exec "$@"', "sh", *argv], env=env))
    assert result.err.count("cannot store upload records: File too large") == 1
    check_whole(served, image, state)


def test_no_credential_is_ever_in_the_state_directory(start: Start, source: Path, state: Path) -> None:
    served = start(auth=Bearer({"alice": "s3cret-pw"}))
    env = {"OCISTREAM_USERNAME": "alice", "OCISTREAM_PASSWORD": "s3cret-pw"}
    halfway(served)
    with started_fork(*push(served, source, "--jobs", "1"), env=env) as process:
        assertions.wait_for(lambda: has_half(served))
        process.kill()
    assert len(records(state)) == 1
    shown = {request.headers["Authorization"] for request in served.requests} - {None}
    kept = b"\n".join(path.read_bytes() for path in state.rglob("*") if path.is_file())
    for secret in {"s3cret-pw", "alice", "Authorization", "Bearer", "Basic", *(str(v).split()[1] for v in shown)}:
        assert secret.encode() not in kept


def test_a_push_with_recompression_restarts_and_leaves_no_session(
    served: FaultyRegistry, source: Path, state: Path
) -> None:
    arguments = push(served, source, "--compress", "zstd", "--upload", "chunk=1MiB")
    ended(served, signal.SIGKILL, arguments)
    assert len(sessions(served)) == len(records(state)) == 1
    succeed(*arguments)
    assert sessions(served) == []
    assert records(state) == []


def test_an_expired_session_is_restarted(served: FaultyRegistry, source: Path, image: Descriptor, state: Path) -> None:
    ended(served, signal.SIGKILL, push(served, source))
    served.uploads.close()
    before = received(served)
    succeed(*push(served, source))
    assert received(served) - before >= LAYER
    check_whole(served, image, state)


def test_a_registry_that_lies_about_its_offset_is_not_believed(
    served: FaultyRegistry, source: Path, image: Descriptor, state: Path
) -> None:
    ended(served, signal.SIGKILL, push(served, source))
    served.faults = [Fault(Header("Range", f"0-{LAYER * 2}"), "GET", "/uploads/", times=None)]
    succeed(*push(served, source))
    check_whole(served, image, state)
