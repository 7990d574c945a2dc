"""Images into a registry and out of it again, as `push` and `pull` move them: from and to files, and pipes."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal

from ocistream.conversion import parse_recompression
from ocistream.interfaces import Sink, Source
from ocistream.stores import Surroundings, Want, open_sink, open_source, parse_end
from ocistream.stores.index import Selection, only_image
from ocistream.transfer import Report, copy
from ocistream.transport import Transport
from tests.archives import files_in
from tests.observers import Watch

How = Literal["file", "pipe"]
WAYS: Final[tuple[How, ...]] = ("file", "pipe")


@dataclasses.dataclass(frozen=True)
class Mover:
    """Moves images with one transport; `folder` is where it keeps archives."""

    transport: Transport
    folder: Path
    jobs: int = 4

    def push(self, archive: bytes, image: str, how: How = "file", *, select: Selection = only_image) -> Report:
        """Push the one image of an archive to `image`."""
        if how == "pipe":
            with _written(archive) as file:
                return self.push_stream(lambda: file, image, select=select)
        path = self.folder / "pushed.tar"
        path.write_bytes(archive)
        return self._move(
            open_source(parse_end(f"oci-archive:{path}"), self._around(), Want(select)), self._into(image)
        )

    def push_stream(
        self, stdin: Callable[[], io.BufferedReader], image: str, *, select: Selection = only_image
    ) -> Report:
        """Push what comes from a stream."""
        around = Surroundings(transport=lambda: self.transport, stdin=stdin)
        return self._move(open_source(parse_end("-"), around, Want(select)), self._into(image))

    def pull(self, image: str, how: How = "file") -> dict[str, bytes]:
        """Pull `image` and return the files of the archive."""
        path = self.folder / "pulled.tar"
        source = open_source(parse_end(f"docker://{image}"), self._around(), Want())
        if how == "file":
            self._move(source, open_sink(parse_end(f"oci-archive:{path}"), self._around()))
            return files_in(path.read_bytes())
        read, write = os.pipe()
        with _read(read) as received, io.FileIO(write, "wb") as file:
            self._move(source, open_sink(parse_end("-"), Surroundings(stdout=lambda: file)))
        return files_in(bytes(received))

    def copy(self, source: str, target: str) -> Report:
        """Copy an image from one registry, or repository, to another."""
        return self._move(open_source(parse_end(f"docker://{source}"), self._around(), Want()), self._into(target))

    def _around(self) -> Surroundings:
        return Surroundings(transport=lambda: self.transport)

    def _into(self, image: str) -> Sink:
        return open_sink(parse_end(f"docker://{image}"), self._around())

    def _move(self, source: Source, sink: Sink) -> Report:
        try:
            # The plain layers of a `docker save` are compressed, as the command has it.
            return copy(source, sink, Watch(), jobs=self.jobs, bare_layers=parse_recompression("gzip"))
        finally:
            sink.close()
            source.close()


@contextlib.contextmanager
def _written(content: bytes) -> Iterator[io.BufferedReader]:
    """Give the reading end of a pipe into which `content` is written; whoever stops reading ends that."""
    read, write = os.pipe()

    def fill() -> None:
        with contextlib.suppress(BrokenPipeError), io.FileIO(write, "wb") as file:
            left = memoryview(content)
            while left:
                left = left[file.write(left) :]

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        with io.open(read, "rb") as file:  # noqa: UP020
            yield file
    finally:
        thread.join()


@contextlib.contextmanager
def _read(descriptor: int) -> Iterator[bytearray]:
    """Collect what comes out of a pipe, until its other end is closed."""
    received = bytearray()

    def collect() -> None:
        with io.FileIO(descriptor, "rb") as file:
            while piece := file.read(1 << 20):
                received.extend(piece)

    thread = threading.Thread(target=collect)
    thread.start()
    yield received
    thread.join()
