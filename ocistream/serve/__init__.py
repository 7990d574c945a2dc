"""The embedded registry: the distribution-spec's server side (v1.1) over a layout directory or an archive.

`Registry` is all that others need; `Handler` is what a test derives from to add faults. The rooms within: `server`
(sockets and threads), `room` (for how many), `exchange` (one request and its answer, HTTP and nothing else), `heads`,
`bodies`, `ranges`, `handler` (the endpoints), `gate` (who is let in), `uploads` (sessions), `repositories` and `names`
(what a layout holds under which name), `storage` (where that lies).

Without a password it listens on loopback only. No code in here is for tests alone, and none speaks to another registry.
"""

from ocistream.serve.basic_auth import BasicAuth
from ocistream.serve.errors import RequestRejectedError
from ocistream.serve.handler import RegistryHandler
from ocistream.serve.http import AccessLogEntry, FileSection, ServerResponse
from ocistream.serve.server import Registry

__all__ = [
    "AccessLogEntry",
    "BasicAuth",
    "FileSection",
    "Registry",
    "RegistryHandler",
    "RequestRejectedError",
    "ServerResponse",
]
