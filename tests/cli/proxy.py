"""A proxy that tunnels (CONNECT), whatever host it is asked for, to one place on this machine."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Iterator
from typing import cast

_PIECE = 1 << 16


class Proxy(socketserver.ThreadingTCPServer):
    """`asked` has the HOST:PORT of each CONNECT, in order."""

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Tunnel)
        host, _, port = target.rpartition(":")
        self.target = host, int(port)
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        """Where it is, as HTTPS_PROXY has it."""
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextlib.contextmanager
def tunnelling_to(target: str) -> Iterator[Proxy]:
    """Run a proxy whose tunnels all lead to `target`, HOST:PORT, while the block runs."""
    with Proxy(target) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()


class _Tunnel(socketserver.StreamRequestHandler):
    rbufsize = 0

    def handle(self) -> None:
        proxy = cast("Proxy", self.server)
        method, where, _ = self.rfile.readline().decode().split()
        while self.rfile.readline().strip():
            pass
        proxy.asked.append(where)
        if method != "CONNECT":
            self.wfile.write(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
            return
        with socket.create_connection(proxy.target) as other:
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=_relay, args=(other, self.connection))
            back.start()
            _relay(self.connection, other)
            back.join()


def _relay(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(_PIECE):
            target.sendall(piece)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
