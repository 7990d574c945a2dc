"""OCI archives (a layout in a tar) out: everything small first, so that the other end knows what is coming.

The order is `oci-layout`, `index.json`, `manifest.json`, manifests, configs, layers. The same graph gives the same
bytes. Reading is archive_file.py's and archive_stream.py's business.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from io import FileIO
from typing import TYPE_CHECKING, Protocol

from ocistream import files, limits
from ocistream.errors import UsageError
from ocistream.stores import tar
from ocistream.stores.index import OCI_LAYOUT, blob_name, docker_manifest_json, entry_for, index_json
from ocistream.strict_json import canonical_json

if TYPE_CHECKING:
    from pathlib import Path

    from ocistream.graph import Graph
    from ocistream.interfaces import Blob
    from ocistream.model import Descriptor
    from ocistream.stream import Chunk

__all__ = ["ArchiveSink", "Output", "file_output", "open_output", "stream_output"]


class Output(Protocol):
    """Where an archive goes, and what it takes to make it visible there."""

    def write(self, chunk: Chunk) -> None:
        """Write all of a chunk."""

    def finish(self) -> None:
        """Make what was written durable, and give it its name."""

    def close(self) -> None:
        """Drop it, unless it was finished."""


class ArchiveSink:
    """Images into one tar, written from the front to the back."""

    parallel = False

    def __init__(self, output: Output, *, mtime: int = 0) -> None:
        """Write to `output`; `mtime` (seconds since 1970) stands in every entry."""
        self._output = output
        self._mtime = mtime
        self._written: set[str] = set()

    def begin(self, graph: Graph) -> None:
        """Write everything small, unless a blob had to be written before it was known."""
        if not self._written:
            self._entry("oci-layout", OCI_LAYOUT)
        self._entry("index.json", index_json([entry_for(root) for root in graph.roots]))
        docker = docker_manifest_json(graph)
        if docker != canonical_json([]):
            self._entry("manifest.json", docker)
        for manifest in graph.manifests:
            self._small_blob(manifest.descriptor.digest, manifest.raw)

    def has(self, descriptor: Descriptor) -> bool:
        """Say whether the blob was written: the same digest is not stored twice."""
        return descriptor.digest in self._written

    has_manifest = has

    def put(self, blob: Blob) -> None:
        """Append a blob. If its chunks raise, the entry stays short and the archive without an end."""
        if not self._written:
            self._entry("oci-layout", OCI_LAYOUT)
        size = blob.descriptor.size
        self._written.add(blob.descriptor.digest)
        self._output.write(tar.header(blob_name(blob.descriptor.digest), size, self._mtime))
        for chunk in blob.open():
            self._output.write(chunk)
        self._output.write(tar.padding(size))

    def commit(self, graph: Graph) -> None:  # noqa: ARG002 - the graph was written first
        """Write the end of the archive, and let the output make it visible."""
        self._output.write(tar.END)
        self._output.finish()

    def close(self) -> None:
        """Drop what was not committed."""
        self._output.close()

    def _small_blob(self, digest: str, content: bytes) -> None:
        if digest not in self._written:
            self._written.add(digest)
            self._entry(blob_name(digest), content)

    def _entry(self, name: str, content: bytes) -> None:
        self._output.write(tar.header(name, len(content), self._mtime) + content + tar.padding(len(content)))


class _FileOutput:
    """A file that gets its name when it is whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._what = f"cannot write {path}"
        self._stack = contextlib.ExitStack()
        with files.disk_errors(self._what):
            self._file = self._stack.enter_context(files.atomic_file(path))

    def write(self, chunk: Chunk) -> None:
        with files.disk_errors(self._what):
            files.write_all(self._file, chunk)

    def finish(self) -> None:
        with files.disk_errors(self._what):
            self._stack.close()

    def close(self) -> None:
        # What `finish` has closed has no part in this any more.
        with contextlib.suppress(_Dropped), self._stack:
            raise _Dropped


class _Dropped(Exception):  # noqa: N818 - a signal to the file's own context, not an error
    """Makes an unfinished file's context remove it."""


class _StreamOutput:
    """A pipe, or whatever else is there already and cannot be renamed: what is written is written."""

    def __init__(self, file: FileIO, what: str) -> None:
        self._file = file
        self._what = f"cannot write {what}"
        # A larger pipe saves switches between the two processes; where the user may not, it stays as it is.
        with contextlib.suppress(OSError):
            fcntl.fcntl(file.fileno(), fcntl.F_SETPIPE_SZ, limits.PIPE)

    def write(self, chunk: Chunk) -> None:
        with files.disk_errors(self._what):
            files.write_all(self._file, chunk)

    def finish(self) -> None:
        # A regular file behind stdout: a full disk may show only now.
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.EROFS, errno.ENOTSUP}:
                raise files.disk_error(self._what, error) from error

    def close(self) -> None:
        """What was written cannot be taken back: it has no end, so that no reader takes it for whole."""


class _OpenedOutput(_StreamOutput):
    """The same, for a file that was opened here."""

    def close(self) -> None:
        # Whoever reads a FIFO waits for this. What could fail late was found out by `finish`.
        with contextlib.suppress(OSError):
            self._file.close()


def stream_output(file: FileIO, what: str) -> Output:
    """Give the output that writes to an open, unbuffered file which is called `what` in errors."""
    return _StreamOutput(file, what)


def open_output(path: Path) -> Output:
    """Give the output that writes to something that is there and is no regular file: a FIFO, a device.

    Raises:
        UsageError: it is a terminal.
        LocalDiskError: it cannot be written.
    """
    with files.disk_errors(f"cannot write {path}"):
        file = FileIO(path, "wb")
    if file.isatty():
        file.close()
        msg = f"{path} is a terminal, to which no archive is written"
        raise UsageError(msg)
    return _OpenedOutput(file, str(path))


def file_output(path: Path) -> Output:
    """Give the output that writes a regular file at `path`.

    Raises:
        NotFoundError: its folder is not there.
        LocalDiskError: it cannot be written.
    """
    # A link is followed, as `>` does it: what it points to is replaced.
    return _FileOutput(path.resolve() if path.is_symlink() else path)
