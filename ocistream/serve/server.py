"""The sockets and threads of the embedded registry: one thread per connection.

The server listens on loopback; other addresses need a password. `endpoints` answers the requests.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import socketserver
import sys
import threading
import time
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING, Final, cast

from ocistream import limits
from ocistream.errors import NetworkError, UsageError
from ocistream.oci.reference import printable
from ocistream.serve.capacity import MemorySlots, limit_by_descriptors
from ocistream.serve.endpoints import RegistryHandler
from ocistream.serve.repositories import Repositories
from ocistream.serve.storage import ArchiveStorage, DirectoryStorage
from ocistream.serve.uploads import Uploads
from ocistream.streams import paths

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType
    from typing import Any, Self, TypeAlias

    from ocistream.serve.access_control import BasicAuth
    from ocistream.serve.http_handler import AccessLogEntry
    from ocistream.serve.storage import Storage

    #: As socketserver's methods take it, whose datagram servers have a tuple there.
    Connection: TypeAlias = socket.socket | tuple[bytes, socket.socket]

__all__ = ["ConnectionServer", "Registry"]

#: How soon, in seconds, the accepting thread notices that it is to stop, where nothing wakes it.
_POLL_INTERVAL: Final = 0.5
#: How long, in seconds, connections that were cut have to end.
_STOP_TIMEOUT: Final = 5.0
#: How long, in seconds, one that was cut to make room for another may take to end.
_EVICTION_TIMEOUT: Final = 1.0
#: How long, in seconds, nothing is accepted when the process has no file descriptor left.
_DESCRIPTOR_RETRY_DELAY: Final = 0.1
_MAX_PORT: Final = 65535


class Registry:
    """A registry over a layout directory, or over an archive for reading; without a `gate` for this machine only.

    Many clients may read and write at once, other processes may change the layout meanwhile. It listens as soon as
    it is made, and answers from `start`, or `serve_forever`, on.
    """

    def __init__(
        self,
        path: Path,
        *,
        address: tuple[str, int] = ("127.0.0.1", 0),
        read_only: bool = False,
        handler: type[RegistryHandler] = RegistryHandler,
        log: Callable[[AccessLogEntry], None] | None = None,
        auth: BasicAuth | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Open the layout at `path` (made if it is not there, unless `read_only`) and listen at `address`.

        If `path` is a regular file, it is an archive, and only read. Port 0 lets the kernel choose one; `host` says
        which. `log` is called for each request, in the thread of its connection. With a `gate` whoever connects has to
        show a password; with `tls` by way of that.

        Raises:
            UsageError: the address is beyond loopback and there is no gate, or the directory holds something else than
                a layout.
            NotFoundError, ArchiveError: there is no layout or archive to read.
            UnsupportedError: the archive cannot be read where its blobs lie.
            NetworkError: the address is taken, or may not be had.
            LocalDiskError: the layout cannot be made.
        """
        self.log = log
        self.auth = auth
        self.large_push_slots = MemorySlots(limits.MAX_LARGE_PUSHES, limits.LARGE_PUSH_QUEUE_TIMEOUT)
        self._tls = tls
        self._thread: threading.Thread | None = None
        self._serving = False
        family, resolved = _resolve_listen_address(address, has_password=auth is not None)
        try:
            self._server = ConnectionServer(self, family, resolved, handler)
        except OSError as error:
            msg = f"cannot listen on {address[0]}:{address[1]}: {error.strerror or error}"
            raise NetworkError(msg, hint="choose another port; 0 takes one that is free") from error
        #: Closed at the end, in this order: the layout's lock, the archive.
        self._resources = contextlib.ExitStack()
        self.storage: Storage
        try:
            self._open_storage(path, read_only=read_only)
        except BaseException:
            self._resources.close()
            self._server.server_close()
            raise

    def _open_storage(self, path: Path, *, read_only: bool) -> None:
        directory: DirectoryStorage | None = None
        if paths.is_file(path):
            self.storage = archive = ArchiveStorage(path)
            self._resources.callback(archive.close)
        else:
            self.storage = directory = DirectoryStorage(path)
            _open_layout(directory, read_only=read_only)
        self.read_only = read_only or directory is None
        self.repositories = Repositories(self.storage)
        self.uploads = Uploads(directory, directory.record_intact if directory else None)
        if directory is not None and not read_only:
            # A push may begin at any time: `gc` is to know of that before it does.
            if (lock := directory.lock_blobs()) is not None:
                self._resources.callback(os.close, lock)
            self.uploads.delete_abandoned()

    @property
    def layout(self) -> DirectoryStorage:
        """The layout directory that is served.

        Raises:
            UsageError: it is an archive.
        """
        if not isinstance(self.storage, DirectoryStorage):
            msg = "what is served is no directory"
            raise UsageError(msg)
        return self.storage

    def operator_notices(self) -> list[str]:
        """Return what the operator should know of the images and their names, a line each.

        Raises:
            OcistreamError: the storage cannot be read.
        """
        return self.repositories.operator_notices()

    @property
    def host(self) -> str:
        """The registry as it stands in an image's name: `127.0.0.1:5000`, `[::1]:5000`."""
        name, port = self._server.server_address[:2]
        return f"[{name!s}]:{port}" if ":" in str(name) else f"{name!s}:{port}"

    def start(self) -> None:
        """Answer in a thread of its own, until `stop`."""
        self._serving = True
        self._thread = threading.Thread(target=self._serve, name=f"registry {self.host}", daemon=True)
        self._thread.start()

    def serve_forever(self) -> None:
        """Answer until this thread is interrupted by an exception, or another one calls `stop`.

        After `start` it only waits for that: the other thread goes on answering.
        """
        if self._thread is not None:
            self._thread.join()
        else:
            self._serve()

    def stop(self) -> None:
        """Stop listening, cut every connection, drop unfinished uploads. May be called twice.

        From a signal's handler in the thread that serves it would wait for itself: raise an exception there.
        """
        if self._serving:
            # On Linux this wakes the accepting thread; elsewhere it may fail.
            with contextlib.suppress(OSError):
                self._server.socket.shutdown(socket.SHUT_RDWR)
            self._server.shutdown()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._server.server_close()
        self._server.cut_connections()
        self.uploads.close()
        self._resources.close()

    def wrap_connection(self, connection: socket.socket) -> socket.socket:
        """Take a new connection; what this gives is what the handler speaks through."""
        if self._tls is None:
            return connection
        # The handshake is the connection's thread's business: a client may take its time.
        return self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop."""
        self.stop()

    def _serve(self) -> None:
        self._serving = True
        self._server.serve_forever(poll_interval=_POLL_INTERVAL)


class ConnectionServer(ThreadingHTTPServer):
    """The listening socket, and the threads of its connections."""

    daemon_threads = True
    # Strangers that connect again as soon as they are cut fill a short queue, and the kernel drops the other clients'
    # attempts to connect. In a queue of this length each client gets its turn (bounded by net.core.somaxconn).
    request_queue_size = 2 * limits.MAX_CLIENTS

    def __init__(
        self, registry: Registry, family: socket.AddressFamily, address: tuple[str, int], handler: type[RegistryHandler]
    ) -> None:
        """Listen at an address that was found to be one."""
        self.registry = registry
        self.address_family = family
        self._connections: set[Connection] = set()
        #: Connections without an admitted request, and since when (`time.monotonic`), the longest wait first.
        self._waiting: dict[Connection, float] = {}
        #: Connections that have had an admitted request.
        self._admitted: set[Connection] = set()
        self._changed = threading.Condition()
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Bind without asking the name service who we are, as the base class would: that may take seconds."""
        socketserver.TCPServer.server_bind(self)
        name, port = self.server_address[:2]
        self.server_name, self.server_port = str(name), int(port)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection."""
        try:
            connection, client = super().get_request()
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                # It is still there to be accepted: to ask again at once would be all that this process does.
                time.sleep(_DESCRIPTOR_RETRY_DELAY)
            raise
        return self.registry.wrap_connection(connection), client

    def process_request(self, request: Connection, client_address: object) -> None:
        """Start a connection's thread, if there is room; `cut_connections` knows of it from now on."""
        with self._changed:
            most = limit_by_descriptors(limits.MAX_CLIENTS)
            if len(self._connections) >= most and self._waiting:
                self._cut(self._find_longest_waiting())
                self._changed.wait_for(lambda: len(self._connections) < most, _EVICTION_TIMEOUT)
            if has_room := len(self._connections) < most:
                self._connections.add(request)
                self._waiting[request] = time.monotonic()
        if not has_room:
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:
            # The system has no thread left for it.
            self.shutdown_request(request)

    def _find_longest_waiting(self) -> Connection:
        """Return the connection to close for a new one. The caller holds `_changed`, and some connection waits.

        Connections that never had an admitted request come first: a flood of strangers displaces only strangers.
        """
        strangers = (request for request in self._waiting if request not in self._admitted)
        return next(strangers, next(iter(self._waiting)))

    def set_waiting(self, request: Connection, is_waiting: bool) -> None:
        """Note that a connection waits, until its next request is admitted.

        The time of a connection that waits already goes on: a refused request wins no further time.
        """
        with self._changed:
            if is_waiting:
                self._waiting.setdefault(request, time.monotonic())
            else:
                self._waiting.pop(request, None)
                self._admitted.add(request)

    def service_actions(self) -> None:
        """Close the connections that have waited too long. The accepting thread calls this regularly."""
        super().service_actions()
        with self._changed:
            latest = time.monotonic() - limits.REQUEST_TIMEOUT
            for request in [request for request, since in self._waiting.items() if since < latest]:
                self._cut(request)

    def shutdown_request(self, request: Connection) -> None:
        """Close a connection that is over."""
        super().shutdown_request(request)
        with self._changed:
            self._connections.discard(request)
            self._waiting.pop(request, None)
            self._admitted.discard(request)
            self._changed.notify_all()

    def handle_error(self, request: Connection, client_address: object) -> None:
        """Say nothing of a client that went away; a mistake of ours is shown as Python shows it, on stderr."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def cut_connections(self) -> None:
        """End every connection, and wait a while until the threads have noticed."""
        with self._changed:
            for connection in self._connections:
                self._cut(connection)
            self._changed.wait_for(lambda: not self._connections, _STOP_TIMEOUT)

    def _cut(self, connection: Connection) -> None:
        """Shut a connection down, so that its thread ends. The caller holds `_changed`."""
        self._waiting.pop(connection, None)
        with contextlib.suppress(OSError):
            # The plain socket's: that of TLS would take the encryption away from under the thread that uses it.
            socket.socket.shutdown(cast("socket.socket", connection), socket.SHUT_RDWR)


def _open_layout(layout: DirectoryStorage, *, read_only: bool) -> None:
    if not read_only:
        layout.create()
        if not paths.exists(layout.path / "index.json"):
            # Without one it would be no layout until the first push.
            layout.change_index(lambda entries: entries)
    layout.check()


def _resolve_listen_address(
    address: tuple[str, int], *, has_password: bool
) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Give the family and the numeric form of an address to listen at: on loopback, and any if it is `guarded`.

    Raises:
        UsageError: it is another one, or malformed.
    """
    name, port = address
    if not 0 <= port <= _MAX_PORT:
        msg = f"there is no port {port}"
        raise UsageError(msg)
    try:
        numeric = ipaddress.ip_address("127.0.0.1" if name == "localhost" else name.strip("[]"))
    except ValueError:
        numeric = None
    if numeric is None and has_password:
        msg = f"{printable(name)} is not a numeric address, nor localhost"
        raise UsageError(msg, hint="write 127.0.0.1 or [::1]; 0.0.0.0 or [::] are all addresses of this machine")
    if numeric is None or not (has_password or numeric.is_loopback):
        msg = f"{printable(name)} is not an address on loopback"
        hint = "beyond this machine only those are served who know a password: --username, with --password-stdin"
        raise UsageError(msg, hint=hint)
    family = socket.AF_INET if numeric.version == 4 else socket.AF_INET6
    return family, (str(numeric), port)
