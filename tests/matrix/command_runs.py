"""The commands whose requests are the rows, each with its surroundings and a function that reads its visible result."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from ocistream.limits import MIB
from tests.certificates import Certificate, make_certificate
from tests.faulty_auth import Bearer
from tests.faulty_registry import FaultyHandler, FaultyRegistry, Request
from tests.fork_runner import Astray
from tests.http_doubles import RawServer
from tests.images import Layout, tar_layer
from tests.matrix.request_faults import Led, Means, NotApplicable, Trouble
from tests.matrix.request_rows import At, Contents, Step
from tests.registry import Answer
from tests.runner import Result, ocistream

#: More than the kernels on both sides buffer, so that a body has a middle.
_LAYER: Final = 2 * MIB
_RECEIVE_BUFFER: Final = 64 * 1024
_TAG: Final = "app:v1"


class MatrixRegistry(FaultyRegistry):
    """A registry at `NAME.test`, with TLS and tokens. It closes the connection after request number `last`, from 1."""

    last: int | None = None

    def __init__(self, name: str, path: Path, certificate: Certificate, record: list[tuple[str, Request]]) -> None:
        self.name = name
        self._record_of_all = record
        super().__init__(path, tls=certificate, receive_buffer=_RECEIVE_BUFFER)
        self.place = f"{name}.test"
        self.auth = Bearer(realm=f"https://{self.place}/token")

    @property
    def port(self) -> int:
        """Its port on this machine, whatever port its clients use."""
        return int(self.host.rpartition(":")[2])

    @property
    def handler_type(self) -> type[FaultyHandler]:
        return _Handler

    def note(self, request: Request) -> None:
        self._record_of_all.append((self.name, request))
        super().note(request)


class _Handler(FaultyHandler):
    """Closes a connection after the request at which its registry requires that."""

    def transmit(self, answer: Answer) -> None:
        registry = cast("MatrixRegistry", self.registry)
        self.close_connection = self.close_connection or len(registry.requests) == registry.last
        super().transmit(answer)


class Elsewhere:
    """Servers for rerouted connections; `ports` has their ports by behavior."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        closed = stack.enter_context(contextlib.closing(socket.socket()))
        # The port is bound without a listener.
        closed.bind(("127.0.0.1", 0))
        answer = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"
        other = FaultyRegistry(folder / "other", tls=make_certificate(folder / "another", "another"))
        hosts = {
            "hangs up": stack.enter_context(RawServer(b"")).host,
            "plain": stack.enter_context(RawServer(answer)).host,
            "other": stack.enter_context(other).host,
        }
        self.ports = {name: int(host.rpartition(":")[2]) for name, host in hosts.items()}
        self.ports["closed"] = int(closed.getsockname()[1])


@dataclasses.dataclass(frozen=True)
class Flow:
    """A command. `argv` makes its arguments from a scene; `seen` returns the visible state of its destination.

    `keeps` is the destination's path within the scene, if an image exists there before. `rows` selects the kinds of
    requests that are rows: all except those that another flow makes in the same way. A `sampled` flow combines two
    others, and is tested with one fault of each sort.
    """

    name: str
    registries: tuple[str, ...]
    argv: Callable[[Scene], Sequence[str]]
    seen: Callable[[Scene], Mapping[str, str]]
    keeps: str = "target"
    from_pipe: bool = False
    rows: Callable[[Step], bool] = lambda _: True
    sampled: bool = False

    def meets(self, trouble: Trouble) -> bool:
        """Return whether a fault is a column of this command's table."""
        return trouble.sample or not self.sampled

    def endures(self, trouble: Trouble) -> bool:
        """Return whether the fault is also tested as a lasting one."""
        return trouble.lasts and (not self.sampled or trouble.sort == "busy")


class Stage:
    """What all cells share: an image in a registry and in an archive, and certificates."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        authority = make_certificate(folder / "authority")
        self.certificate = authority.issue(folder / "certificate", names=["source.test", "target.test"])
        self.source, self.target = folder / "source", folder / "target"
        layout = Layout(self.source)
        image = layout.image([_LAYER, tar_layer({"etc/motd": b"hello\n"})])
        layout.index([image], name=_TAG)
        manifest = layout.read(image["digest"])
        names = {layer["digest"]: "layer" for layer in manifest["layers"]} | {manifest["config"]["digest"]: "config"}
        self.contents = Contents(names, {_LAYER: "layer"})
        # The destination has an image of the same name, which must be kept until the new one is complete.
        before = Layout(self.target)
        before.index([before.image([tar_layer({"etc/motd": b"as it was\n"})])], name=_TAG)
        self.env = {"HOME": str(folder), "SSL_CERT_FILE": str(authority.file)}
        self.elsewhere = Elsewhere(folder, stack)
        self.archive = folder / "archive" / "image.tar"
        self._numbers = iter(range(1_000_000))
        self._lock = threading.Lock()
        self.archive.parent.mkdir()
        with self.scene(PULL_TAR) as scene:
            assert scene.run().code == 0
            shutil.copy(scene.folder / "out" / "image.tar", self.archive)

    @contextlib.contextmanager
    def scene(self, flow: Flow) -> Iterator[Scene]:
        """Yield a temporary place for one cell, with its own registries."""
        with self._lock:
            folder = self.folder / f"cell-{next(self._numbers)}"
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, folder)
            yield Scene(self, flow, folder, stack)


class Scene:
    """One cell: a folder, registries, and one command that runs there, perhaps twice."""

    def __init__(self, stage: Stage, flow: Flow, folder: Path, stack: contextlib.ExitStack) -> None:
        self.stage, self.flow, self.folder = stage, flow, folder
        (folder / "out").mkdir(parents=True)
        if flow.keeps:
            shutil.copytree(stage.target, folder / flow.keeps)
        self.requests: list[tuple[str, Request]] = []
        paths = {"source": stage.source, "target": folder / "target"}
        self.registries = {
            name: stack.enter_context(MatrixRegistry(name, paths[name], stage.certificate, self.requests))
            for name in flow.registries
        }

    def image(self, registry: str) -> str:
        """Return the image's name in one of the registries."""
        return f"{self.registries[registry].place}/{_TAG}"

    def disturb(self, step: Step, means: Means, times: int | None) -> Astray | None:
        """Apply a fault to a step, `times` times or always; pass the returned value to `run`."""
        assert not isinstance(means, NotApplicable)
        registry = self.registries[step.registry]
        if isinstance(means, Led):
            # All requests use one connection; closing it makes the request open another one.
            registry.last = step.first - 1
            connection = 2 if registry.last else 1
            return Astray(registry.place, connection, times, means.how, self.stage.elsewhere.ports.get(means.port, 0))
        registry.faults = [At(means, times=times, kind=step.kind, kind_of=self.stage.contents.kind)]
        return None

    def calm(self) -> None:
        """Remove all faults."""
        for registry in self.registries.values():
            registry.faults = []
            registry.last = None
            registry.release()

    def run(self, *options: str, astray: Astray | None = None) -> Result:
        """Run the command."""
        argv = [*self.flow.argv(self), "--jobs=1", "--retries=1", "--progress=none", *options]
        return ocistream(
            *argv,
            stdin=self.stage.archive.read_bytes() if self.flow.from_pipe else None,
            env={**self.stage.env, "XDG_STATE_HOME": str(self.folder / "state")},
            no_waits=True,
            names={registry.place: registry.port for registry in self.registries.values()},
            astray=astray,
        )


def _seen_in_layout(path: Path) -> dict[str, str]:
    """Return the named images of a layout, after checking that all its visible content is correct and complete."""
    blobs = path / "blobs" / "sha256"
    names = {file.name for file in blobs.iterdir() if not file.name.startswith(".")}
    for name in names:
        content = (blobs / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == name, f"{name} has another digest"
        lacking = _needed_by(content) - names
        assert not lacking, f"{name} exists, but its children are missing: {lacking}"
    entries = json.loads((path / "index.json").read_bytes())["manifests"]
    found = {
        entry.get("annotations", {}).get("org.opencontainers.image.ref.name"): entry["digest"] for entry in entries
    }
    # Entries without a name are complete, but only reachable by digest: they are not visible images.
    return {name: digest for name, digest in found.items() if name}


def _needed_by(content: bytes) -> set[str]:
    try:
        document: Any = json.loads(content)
    except ValueError:
        return set()
    children = [*document.get("manifests", []), *document.get("layers", []), document.get("config")]
    return {child["digest"].partition(":")[2] for child in children if child and "digest" in child}


def _seen_tar(scene: Scene) -> dict[str, str]:
    files = [file for file in (scene.folder / "out").iterdir() if file.is_file() and not file.name.startswith(".")]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _argv_of_pull(path: str) -> Callable[[Scene], Sequence[str]]:
    return lambda scene: ["pull", scene.image("source"), "--platform=all", "-o", f"{scene.folder}/out/{path}"]


def _seen_target(scene: Scene) -> dict[str, str]:
    return _seen_in_layout(scene.folder / "target")


def _seen_directory(scene: Scene) -> dict[str, str]:
    return _seen_in_layout(scene.folder / "out" / "layout")


def _argv_of_push(*options: str) -> Callable[[Scene], Sequence[str]]:
    return lambda scene: ["push", scene.image("target"), *options, *([str(scene.stage.archive)] if options else [])]


def _argv_of_copy(scene: Scene) -> Sequence[str]:
    return ["copy", scene.image("source"), scene.image("target"), "--platform=all"]


#: Threads that run cells at once: more than there are cores, because stalls take time without work.
WORKERS: Final = 4
PULL_TAR: Final = Flow("pull to a tar file", ("source",), _argv_of_pull("image.tar"), _seen_tar, keeps="")
PULL_DIRECTORY: Final = Flow(
    "pull to a directory",
    ("source",),
    _argv_of_pull("layout/"),
    _seen_directory,
    keeps="out/layout",
    # Before the first blob, the source behaves as for a tar file.
    rows=lambda step: step.what in {"config", "layer"},
)
PUSH_FILE: Final = Flow("push from a file", ("target",), _argv_of_push("-i"), _seen_target)
PUSH_PIPE: Final = Flow(
    "push from a pipe",
    ("target",),
    _argv_of_push(),
    _seen_target,
    from_pipe=True,
    # Bytes from a pipe cannot always be sent again; all other requests are as from a file.
    rows=lambda step: "upload" in step.what,
)
COPY: Final = Flow("copy", ("source", "target"), _argv_of_copy, _seen_target, sampled=True)
FLOWS: Final = (PULL_TAR, PULL_DIRECTORY, PUSH_FILE, PUSH_PIPE, COPY)
