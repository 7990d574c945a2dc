"""A machine whose resolver knows registry.test and other.test, which lead to itself: Python imports this first."""

from __future__ import annotations

import socket
from typing import Any

_resolve = socket.getaddrinfo


def _resolved(host: Any, *args: Any, **options: Any) -> Any:
    name = host.decode() if isinstance(host, bytes) else str(host)
    if name in {"registry.test", "other.test"}:
        return _resolve("127.0.0.1", *args, **options)
    if name.endswith(".test"):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return _resolve(host, *args, **options)


socket.getaddrinfo = _resolved
