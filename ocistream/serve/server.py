"""The sockets and threads of the embedded registry: one thread per connection.

The server listens on loopback; other addresses need a password. `endpoints` serves the requests.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import select
import socket
import socketserver
import sys
import threading
import time
from typing import TYPE_CHECKING, Final, cast

from ocistream import limits
from ocistream.errors import NetworkError, UsageError
from ocistream.oci.reference import printable
from ocistream.serve.capacity import limit_by_descriptors
from ocistream.serve.directory_storage import DirectoryStorage
from ocistream.serve.endpoints import RegistryHandler
from ocistream.serve.repositories import Repositories
from ocistream.serve.uploads import Uploads
from ocistream.streams import paths
from ocistream.streams.synchronization import Budget
from ocistream.streams.workers import start

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from types import TracebackType
    from typing import Any, Self, TypeAlias

    from ocistream.serve.access_control import BasicAuth
    from ocistream.serve.archive_storage import Storage
    from ocistream.serve.http_handler import AccessLogEntry
    from ocistream.streams.workers import Task

    #: The type in socketserver's methods; its datagram servers use a tuple.
    Connection: TypeAlias = socket.socket | tuple[bytes, socket.socket]

#: How soon, in seconds, the accepting thread notices `stop` if nothing wakes it.
_POLL_INTERVAL: Final = 0.5
#: How long, in seconds, to wait for the threads of cut connections.
_STOP_TIMEOUT: Final = 5.0
#: How long, in seconds, to wait for a connection that was cut to accept another.
_EVICTION_TIMEOUT: Final = 1.0
#: How long, in seconds, to accept nothing if the process has no file descriptor left.
_DESCRIPTOR_RETRY_DELAY: Final = 0.1
_MAX_PORT: Final = 65535
#: The event of a connection that the client has closed; outside Linux there is only one for both directions.
_CLOSED: Final = getattr(select, "POLLRDHUP", select.POLLHUP)


class Registry:
    """A registry over a layout directory, or read-only over an archive; without `auth` on loopback only.

    Many clients may read and write at once, and other processes may change the layout meanwhile. It listens once it is
    created, and responds from `start` or `serve_forever` on.
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
        as_docker: bool = False,
    ) -> None:
        """Open the layout at `path` (created if missing, unless `read_only`) and listen at `address`.

        A regular file at `path` is an archive and read only; with `as_docker`, its `manifest.json` counts and not its
        `index.json`. Port 0 lets the kernel choose a port; see `host`. `log` is
        called for each request, in the thread of its connection. With `auth` clients must send a password; with `tls`
        connections are encrypted. TLS is optional even beyond loopback, because a proxy or tunnel may provide it.

        Raises:
            UsageError: an address beyond loopback needs a password, or the directory is not a layout.
            NotFoundError, ArchiveError: the layout or archive does not exist, or cannot be read.
            UnsupportedError: the archive is compressed.
            NetworkError: the address is in use or not allowed.
            LocalDiskError: the layout cannot be created.
        """
        self.log = log
        self.auth = auth
        self.page_slot = Budget(1)
        self.large_push_slots = Budget(limits.MAX_LARGE_PUSHES)
        self._task: Task[None] | None = None
        self._serving = False
        family, resolved = _resolve_listen_address(address, has_password=auth is not None)
        try:
            self._server = ConnectionServer(self, family, resolved, handler, tls)
        except OSError as error:
            msg = f"cannot listen on {address[0]}:{address[1]}: {error.strerror or error}"
            hint = "choose another port; 0 chooses a free one"
            if error.errno == errno.EADDRNOTAVAIL:
                hint = "use an address of this machine, or 0.0.0.0 for all of them"
            raise NetworkError(msg, hint=hint) from error
        #: Closed at the end: the layout's lock or the archive.
        self._resources = contextlib.ExitStack()
        self.storage: Storage
        try:
            self._open_storage(path, read_only=read_only, as_docker=as_docker)
        except BaseException:
            self._resources.close()
            self._server.server_close()
            raise

    def _open_storage(self, path: Path, *, read_only: bool, as_docker: bool) -> None:
        directory: DirectoryStorage | None = None
        if paths.is_file(path):
            from ocistream.serve.archive_storage import ArchiveStorage

            self.storage = archive = ArchiveStorage(path, as_docker=as_docker)
            self._resources.callback(archive.close)
        else:
            self.storage = directory = DirectoryStorage(path)
            _open_layout(directory, read_only=read_only)
        self.read_only = read_only or directory is None
        self.repositories = Repositories(self.storage)
        self.uploads = Uploads(directory)
        if directory is not None and not read_only:
            # A push may start at any time: the lock shows that to `gc`.
            if (lock := directory.lock_blobs()) is not None:
                self._resources.callback(os.close, lock)
            self.uploads.delete_abandoned()

    @property
    def layout(self) -> DirectoryStorage:
        """The served layout directory; call it only for a registry that is not read-only."""
        return cast("DirectoryStorage", self.storage)

    def operator_notices(self) -> list[str]:
        """Return lines for the operator about the images and their names.

        Raises:
            OcistreamError: the storage cannot be read.
        """
        return self.repositories.operator_notices()

    @property
    def host(self) -> str:
        """The registry's host and port as in an image's name: `127.0.0.1:5000`, `[::1]:5000`."""
        name, port = self._server.server_address[:2]
        return f"[{name!s}]:{port}" if ":" in str(name) else f"{name!s}:{port}"

    def start(self) -> None:
        """Serve in a separate thread, until `stop`."""
        self._serving = True
        self._task = start(self._serve, f"registry {self.host}")

    def serve_forever(self) -> None:
        """Serve until an exception interrupts this thread, or another thread calls `stop`.

        After `start` it only waits: the other thread serves.
        """
        if self._task is not None:
            self._task.wait()
        else:
            self._serve()

    def stop(self) -> None:
        """Stop listening, cut all connections and discard unfinished uploads. May be called twice.

        Do not call it from a signal handler in the serving thread, which would wait for itself.
        """
        if self._serving:
            # On Linux this wakes the accepting thread; elsewhere it may fail.
            with contextlib.suppress(OSError):
                self._server.socket.shutdown(socket.SHUT_RDWR)
            self._server.shutdown()
        if self._task is not None:
            self._task.wait()
            self._task = None
        self._server.server_close()
        self._server.cut_connections()
        self.uploads.close()
        self._resources.close()

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


class ConnectionServer(socketserver.ThreadingTCPServer):
    """The listening socket and the threads of its connections.

    Not http.server's class, which asks the name service for this host's name: that may take seconds.
    """

    allow_reuse_address = True
    daemon_threads = True
    # Clients that reconnect as soon as they are cut would fill a short queue, and the kernel would drop other clients'
    # attempts. This length gives each client a turn (limited by net.core.somaxconn).
    request_queue_size = 2 * limits.MAX_CLIENTS

    def __init__(
        self,
        registry: Registry,
        family: socket.AddressFamily,
        address: tuple[str, int],
        handler: type[RegistryHandler],
        tls: ssl.SSLContext | None,
    ) -> None:
        """Listen at a checked address."""
        self.registry = registry
        self._tls = tls
        self.address_family = family
        self._connections: set[Connection] = set()
        #: Connections without an admitted request, and since when (`time.monotonic`), the longest wait first.
        self._waiting: dict[Connection, float] = {}
        #: Connections that have had an admitted request.
        self._admitted: set[Connection] = set()
        self._changed = threading.Condition()
        super().__init__(address, handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection."""
        try:
            connection, client = super().get_request()
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                # The connection is still queued: accepting again at once would loop.
                time.sleep(_DESCRIPTOR_RETRY_DELAY)
            raise
        if self._tls is not None:
            # The connection's thread does the handshake, because a client may be slow.
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, client

    def process_request(self, request: Connection, client_address: object) -> None:
        """Start a connection's thread, if the limit allows it; `cut_connections` can cut it from now on."""
        with self._changed:
            limit = limit_by_descriptors(limits.MAX_CLIENTS)
            if len(self._connections) >= limit and self._waiting:
                self._make_room(limit)
                self._changed.wait_for(lambda: len(self._connections) < limit, _EVICTION_TIMEOUT)
            if is_accepted := len(self._connections) < limit:
                self._connections.add(request)
                self._waiting[request] = time.monotonic()
        if not is_accepted:
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:
            # The system cannot start another thread.
            self.shutdown_request(request)

    def _make_room(self, limit: int) -> None:
        """Cut the connections that their clients have closed, and else one that waits. The caller holds `_changed`.

        Connections that never had an admitted request come before the others: a flood of unknown clients displaces
        only such clients.
        """
        # Their threads may not have noticed yet.
        closed = _find_closed(self._waiting)
        for connection in closed:
            self._cut(connection)
        if len(self._connections) - len(closed) >= limit and self._waiting:
            never_admitted = (request for request in self._waiting if request not in self._admitted)
            self._cut(next(never_admitted, next(iter(self._waiting))))

    def set_waiting(self, request: Connection, is_waiting: bool) -> None:
        """Record that a connection waits, until its next request is admitted.

        A rejected request does not restart the waiting time.
        """
        with self._changed:
            if is_waiting:
                self._waiting.setdefault(request, time.monotonic())
            else:
                self._waiting.pop(request, None)
                self._admitted.add(request)

    def buffer_size(self) -> int:
        """Return the size in bytes of the buffer for a body that begins now: a share of `limits.CLIENT_BUFFERS`."""
        return max(limits.DISCARD_BUFFER, min(limits.CHUNK_SIZE, limits.CLIENT_BUFFERS // len(self._connections)))

    def service_actions(self) -> None:
        """Close the connections that have waited too long. The accepting thread calls this regularly."""
        super().service_actions()
        with self._changed:
            latest = time.monotonic() - limits.REQUEST_TIMEOUT
            for request in [request for request, since in self._waiting.items() if since < latest]:
                self._cut(request)

    def shutdown_request(self, request: Connection) -> None:
        """Close a connection that has ended. When its client learns of that, the connection counts no more."""
        with self._changed:
            self._connections.discard(request)
            self._waiting.pop(request, None)
            self._admitted.discard(request)
            self._changed.notify_all()
        super().shutdown_request(request)

    def handle_error(self, request: Connection, client_address: object) -> None:
        """Ignore clients that disconnected; print our own bugs to stderr as Python does."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def cut_connections(self) -> None:
        """Cut all connections, and wait some seconds for their threads."""
        with self._changed:
            for connection in self._connections:
                self._cut(connection)
            self._changed.wait_for(lambda: not self._connections, _STOP_TIMEOUT)

    def _cut(self, connection: Connection) -> None:
        """Shut a connection down, so that its thread ends. The caller holds `_changed`."""
        self._waiting.pop(connection, None)
        with contextlib.suppress(OSError):
            # The plain socket's `shutdown`: TLS's would remove the encryption while another thread uses it.
            socket.socket.shutdown(cast("socket.socket", connection), socket.SHUT_RDWR)


def _find_closed(connections: Iterable[Connection]) -> list[Connection]:
    """Return the connections that the client has closed."""
    by_descriptor = {cast("socket.socket", connection).fileno(): connection for connection in connections}
    poll = select.poll()
    for descriptor in by_descriptor:
        poll.register(descriptor, _CLOSED)
    return [by_descriptor[descriptor] for descriptor, _ in poll.poll(0)]


def _open_layout(layout: DirectoryStorage, *, read_only: bool) -> None:
    if not read_only:
        layout.create()
        if not paths.exists(layout.path / "index.json"):
            # Without the file the directory would not be a layout until the first push.
            layout.change_index(lambda entries: entries)
    layout.check()


def _resolve_listen_address(
    address: tuple[str, int], *, has_password: bool
) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Return family and numeric form of an address to listen at: on loopback, or any address with a password.

    Archives need a password too: `--read-only` prevents changes, not reading.

    Raises:
        UsageError: the address is not allowed, or malformed.
    """
    name, port = address
    if not 0 <= port <= _MAX_PORT:
        msg = f"no such port: {port}"
        raise UsageError(msg)
    try:
        numeric = ipaddress.ip_address("127.0.0.1" if name == "localhost" else name.strip("[]"))
    except ValueError:
        numeric = None
    if numeric is None:
        msg = f"cannot listen on {printable(name)}: it is a host name, not an address"
        raise UsageError(msg, hint="write an IP address or localhost; 0.0.0.0 or [::] for all interfaces")
    if not (has_password or numeric.is_loopback):
        msg = f"refusing to listen on {printable(name)} without a password: other machines could connect"
        raise UsageError(msg, hint="add --username USER --password-file FILE, or listen only on loopback: 127.0.0.1")
    family = socket.AF_INET if numeric.version == 4 else socket.AF_INET6
    return family, (str(numeric), port)
