"""A proxy whose tunnels (CONNECT) lead to one port of this machine, for any requested host."""

from __future__ import annotations

import base64
import contextlib
import http.client
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator, Mapping
from typing import cast

from tests.certificates import Certificate

_PIECE = 1 << 16
#: Unsets the variables for proxies, in both spellings.
NO_PROXIES: Mapping[str, str | None] = dict.fromkeys(
    spelled for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy") for spelled in (name, name.upper())
)


class Proxy(socketserver.ThreadingTCPServer):
    """`asked` has the HOST:PORT of each CONNECT, in order.

    `authorizations` has the Proxy-Authorization header of each, and `certificates` the certificate of its client in TLS
    (DER). With a `password`, "USER:PASSWORD", the proxy requires it.
    """

    daemon_threads = True

    def __init__(self, target: str, tls: ssl.SSLContext | None, password: str | None) -> None:
        super().__init__(("127.0.0.1", 0), _Tunnel)
        self.tls = tls
        self.authorization = password and "Basic " + base64.b64encode(password.encode()).decode()
        self.authorizations: list[str | None] = []
        self.certificates: list[bytes | None] = []
        host, _, port = target.rpartition(":")
        self.target = host, int(port)
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        """The URL of the proxy, for HTTPS_PROXY."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.server_address[1]}"

    def get_request(self) -> tuple[socket.socket, object]:
        connection, address = super().get_request()
        if self.tls is None:
            return connection, address
        return self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: a client may reject the certificate."""


@contextlib.contextmanager
def tunnelling_to(
    target: str,
    *,
    tls: Certificate | None = None,
    client_authority: Certificate | None = None,
    password: str | None = None,
) -> Iterator[Proxy]:
    """Run a proxy whose tunnels all lead to `target`, HOST:PORT, while the block runs.

    With `tls` it is an https:// proxy, which asks for a certificate of `client_authority` but does not require one.
    """
    context = None
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.file, tls.key_file)
        if client_authority is not None:
            context.load_verify_locations(client_authority.file)
            context.verify_mode = ssl.CERT_OPTIONAL
    with Proxy(target, context, password) as proxy:
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
        headers = http.client.parse_headers(self.rfile)
        proxy.asked.append(where)
        proxy.authorizations.append(headers["Proxy-Authorization"])
        tls = self.connection if isinstance(self.connection, ssl.SSLSocket) else None
        proxy.certificates.append(tls.getpeercert(binary_form=True) if tls else None)
        if proxy.authorization not in {None, headers["Proxy-Authorization"]}:
            self.wfile.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            return
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
