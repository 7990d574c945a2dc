"""The embedded registry: the distribution-spec's server side (v1.1) over a layout directory.

`Registry` is all that others need; `Handler` is what a test derives from to add faults. The rooms within: `server`
(sockets and threads), `exchange` (one request and its answer, HTTP and nothing else), `bodies`, `ranges`,
`handler` (the endpoints), `uploads` (sessions), `repositories` and `names` (what the layout holds under which name).

It listens on loopback only. No code in here is for tests alone, and none speaks to another registry.
"""

from ocistream.serve.exchange import AccessEntry, Answer, Part
from ocistream.serve.handler import Handler
from ocistream.serve.refusals import RefusedError
from ocistream.serve.server import Registry

__all__ = ["AccessEntry", "Answer", "Handler", "Part", "RefusedError", "Registry"]
