"""`copy --via` between registries that cannot reach each other, with real ssh into a network namespace."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.cli import assertions
from tests.docker_archives import archive_of, of_docker, saved
from tests.fault_actions import Stall
from tests.faulty_registry import Fault, FaultyRegistry
from tests.fork_runner import Server
from tests.images import Layout
from tests.interop.process_limits import MIB
from tests.interop.program_image import image_of_programs
from tests.peers import Dockerd, DockerRegistry, docker_registry, namespace, ssh_server
from tests.registry_http import seed
from tests.runner import Argument, Result, command, forking_command, ocistream, run, started_fork


@pytest.fixture(scope="module")
def inside() -> Iterator[list[str]]:
    """Return the start of a command line that runs in a separate network namespace."""
    with namespace(f"ocistream-{os.getpid()}") as line:
        yield line


@pytest.fixture(scope="module")
def forks(inside: list[str]) -> Iterator[Server]:
    """Return the fork server of that network namespace."""
    with contextlib.closing(Server(os.environ, inside)) as server:
        yield server


@pytest.fixture
def program(forks: Server, tmp_path: Path) -> list[str]:
    """Return the options that name the ocistream of that network namespace."""
    return forking_program(tmp_path / "ocistream", forks.address)


def forking_program(path: Path, address: str | None = None) -> list[str]:
    """Write a program that runs ocistream in a fork; return the options that name it."""
    path.write_text(f'#!/bin/sh\nexec {shlex.join(forking_command(address))} "$@"\n')
    path.chmod(0o755)
    return ["--via-program", str(path)]


@pytest.fixture
def far(inside: list[str], tmp_path: Path) -> Iterator[DockerRegistry]:
    """Return a registry in that network namespace."""
    with docker_registry(tmp_path / "far", within=inside) as registry:
        yield registry


@pytest.fixture(params=[pytest.param("namespace", marks=pytest.mark.nightly), "ssh"])
def via(request: pytest.FixtureRequest, inside: list[str], tmp_path: Path) -> Iterator[list[str]]:
    """Return the command for --via: ssh into the network namespace, or only the network namespace."""
    with contextlib.ExitStack() as stack:
        ssh = stack.enter_context(ssh_server(tmp_path / "ssh")) if request.param == "ssh" else []
        yield [*ssh, *inside]


@pytest.fixture
def near(tmp_path: Path) -> Iterator[FaultyRegistry]:
    """Return a local registry that can stall."""
    with FaultyRegistry(tmp_path / "near") as registry:
        yield registry


def copy(source: Argument, destination: str, via: Sequence[str], *options: Argument) -> Result:
    return ocistream("copy", source, destination, "--via", shlex.join(via), *options)


def test_an_image_is_copied_to_an_unreachable_registry(
    registry: DockerRegistry,
    far: DockerRegistry,
    forks: Server,
    program: list[str],
    via: list[str],
    layout: Layout,
    tmp_path: Path,
) -> None:
    image = layout.image([2 * MIB, 3 * MIB, 100_000])
    seed(layout, image, registry.host, "team/app", "v1")
    source, name = f"{registry.host}/team/app:v1", f"{far.host}/team/app:v1"
    for line, unreachable in ((forking_command(), name), (forking_command(forks.address), source)):
        shown = run([*line, "inspect", unreachable, "--retries", "0"])
        assert shown.code == 7, shown.err
    result = copy(source, name, via, *program)
    assertions.success(result)
    assert result.lines() == [f"{name}@{image['digest']}"]
    assert far.tags("team/app") == {"v1": image["digest"]}
    result = copy(source, name, via, *program, "--result", tmp_path / "r.json")
    assertions.success(result)
    document = layout.read(image["digest"])
    sizes = json.loads((tmp_path / "r.json").read_text())["bytes"]
    blobs = [document["config"], *document["layers"]]
    assert (sizes["copied"], sizes["omitted"]) == (0, sum(blob["size"] for blob in blobs))


def children(pid: int) -> list[int]:
    # A child belongs to the thread that started it.
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for children_of_thread in lists for child in children_of_thread.read_text().split()]


def begun(registry: DockerRegistry) -> list[int]:
    """Return the sizes of the registry's unfinished uploads."""
    sizes = []
    for path in registry.repository("app").glob("_uploads/*/data"):
        # The registry moves the file when the upload is complete.
        with contextlib.suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return sizes


def is_locked(state: Path) -> bool:
    """Return whether a process still uses an upload record."""
    for path in (state / "ocistream/uploads").iterdir():
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def test_a_copy_over_a_broken_connection_resumes(
    far: DockerRegistry, program: list[str], via: list[str], layout: Layout, near: FaultyRegistry, tmp_path: Path
) -> None:
    # The remote upload records must not come from another run of the tests.
    via = [*via, "env", f"XDG_STATE_HOME={tmp_path / 'state'}"]
    image = layout.image([2 * MIB, MIB, 6 * MIB])
    seed(layout, image, near.host, "app", "v1")
    layers = [layer["digest"] for layer in layout.read(image["digest"])["layers"]]
    near.faults.append(Fault(Stall(after=3 * MIB), path=layers[2], times=None))
    name = f"{far.host}/app:v1"
    with started_fork("copy", f"{near.host}/app:v1", name, "--via", shlex.join(via), *program) as process:
        # Wait until a part of the last layer has arrived.
        assertions.wait_for(lambda: far.blobs("app") >= {*layers[:2]})
        assertions.wait_for(lambda: any(size > 2 * MIB for size in begun(far)))
        (child,) = children(process.pid)
        os.kill(child, signal.SIGKILL)
        near.released.set()
        out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (7, b""), err
    assert b"re-run the command to resume" in err
    assert far.tags("app") == {}
    assert far.manifests("app") == set()
    near.faults.clear()
    # Behind ssh the remote process gets no signal but the end of its stdin, and then ends its request.
    assertions.wait_for(lambda: not is_locked(tmp_path / "state"))
    result = copy(f"{near.host}/app:v1", name, via, *program, "--result", tmp_path / "r.json")
    assertions.success(result)
    if "ssh" in via[0]:
        # Without ssh, the remote process itself was killed, and docker-registry loses a broken request.
        assert f"{layers[2]} resumes at byte" in result.err
    assert far.tags("app") == {"v1": image["digest"]}
    document = json.loads((tmp_path / "r.json").read_text())
    how = {blob["digest"]: blob["status"] for blob in document["blobs"]}
    assert [how[layer] for layer in layers] == ["omitted", "omitted", "copied"]


def test_into_a_container(docker_daemon: Dockerd, layout: Layout, tmp_path: Path) -> None:
    loaded = "via.test/container:1"
    programs = Layout(tmp_path / "programs")
    image = image_of_programs(programs, "chroot", "sleep")
    (tmp_path / "container.tar").write_bytes(archive_of(of_docker([saved(programs, image, loaded)])))
    docker_daemon.docker("load", "--input", tmp_path / "container.tar")
    # The container runs the ocistream of this machine, by `chroot`.
    program = ["--via-program", " ".join(command())]
    options = ["--detach", "--network=none", "--volume=/:/host"]
    container = docker_daemon.docker("run", *options, loaded, "sleep", "3600").stdout.strip()
    layout.image([b"one", b"two"], name="v1")
    docker = ["docker", "--host", docker_daemon.host, "--config", str(docker_daemon.config), "exec"]
    end, there = f"oci:{layout.path}", f"oci:{tmp_path}/there:x"
    try:
        lacking = copy(end, there, [*docker, "-i", container], *program)
        deaf = copy(end, there, [*docker, container, "chroot", "/host"], *program)
        results = [copy(end, there, [*docker, "-i", container, "chroot", "/host"], *program) for _ in range(2)]
        gone = copy(end, there, [*docker, "-i", "nobody"], *program)
    finally:
        docker_daemon.docker("rm", "--force", container)
    assertions.failure(lacking, 4, "--via-program")
    assertions.failure(deaf, 6, "docker exec -i")
    for result in results:
        assertions.success(result)
    assert "omitted 3 blobs" in results[1].err
    assertions.failure(gone, 7, "No such container")
    assertions.success(ocistream("verify", tmp_path / "there"))


def test_a_failure_behind_ssh_is_reported(tmp_path: Path, layout: Layout) -> None:
    layout.image([b"one"], name="v1")
    with ssh_server(tmp_path / "ssh") as ssh:
        end = f"oci:{layout.path}"
        there = f"oci:{tmp_path}/there:v1"
        result = ocistream("copy", end, there, "--via", shlex.join(ssh), "--via-program", "/nowhere/ocistream")
        assert result.code == 4, result.err
        assert "--via-program" in result.err
        program = forking_program(tmp_path / "ocistream")
        assertions.success(copy(end, there, ssh, *program))
        assertions.success(ocistream("verify", tmp_path / "there"))
    # The ssh server has stopped.
    result = copy(end, there, ssh, *program)
    assert result.code == 7, result.err
    assert "Connection refused" in result.err
