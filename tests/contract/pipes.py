"""A real pipe with a thread at its other end."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import select
import struct
import termios
import threading
import time

from tests.archives import END, files_in


class Pipe:
    """A real pipe, with a thread at its other end that writes or reads a tar."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._taken = bytearray()
        self._lock = threading.Lock()
        self._outlet: int | None = None

    def opened_to_read(self, content: bytes) -> io.BufferedReader:
        """Return the end of the pipe from which `content` can be read."""
        outlet, inlet = os.pipe()
        thread = threading.Thread(target=_feed, args=(inlet, content), daemon=True)
        thread.start()
        self._stack.callback(thread.join)
        return io.BufferedReader(io.FileIO(outlet, "rb"))

    def opened_to_write(self) -> io.FileIO:
        """Return the end of the pipe to write to; `whole` returns what was written."""
        self._outlet, inlet = os.pipe()
        file = io.FileIO(inlet, "wb")
        thread = threading.Thread(target=self._drain, args=(self._outlet,), daemon=True)
        thread.start()
        self._stack.callback(thread.join)
        self._stack.callback(file.close)
        return file

    def whole(self) -> dict[str, bytes]:
        """Return the files of the archive that came through the pipe; none if the archive is truncated."""
        while self._outlet is not None:
            with self._lock:
                if not _waiting(self._outlet):
                    taken = bytes(self._taken)
                    return files_in(taken) if taken.endswith(END) else {}
            time.sleep(0.001)
        return {}

    def _drain(self, outlet: int) -> None:
        while True:
            select.select([outlet], [], [])
            with self._lock:
                got = os.read(outlet, 1 << 16)
                self._taken += got
            if not got:
                os.close(outlet)
                return


def _feed(inlet: int, content: bytes) -> None:
    # The reader may have found a defect and closed its end.
    with contextlib.suppress(BrokenPipeError), io.FileIO(inlet, "wb") as file:
        view = memoryview(content)
        while view:
            view = view[file.write(view) :]


def _waiting(outlet: int) -> int:
    """Return how many bytes are in the pipe."""
    with contextlib.suppress(OSError):
        return int(struct.unpack("i", fcntl.ioctl(outlet, termios.FIONREAD, bytes(4)))[0])
    return 0
