"""The tests' own registry: the server side of distribution-spec v1.1, written independently of `ocistream.serve`.

If the product's client and server shared a mistake, tests between them could not detect it. So nothing here may import
`ocistream`; `tests/self` checks that. Real clients and the conformance cases show that the registry is right.
`tests.faulty_registry` adds faults, passwords and a record of requests, and `tests.quirks.quirky_registry` adds quirks.

Implemented, with the section of the specification where the answer is defined:

- Pulling: manifests and blobs by GET and HEAD, with Docker-Content-Digest; one range of a blob (206, 416).
- Pushing blobs: POST with `digest`; POST and PUT; POST, PATCH (streamed, or chunks with Content-Range, 416) and PUT;
  the state of a session (GET, 204), cancelling it (DELETE), `OCI-Chunk-Min-Length`.
- Mounting: with `from`, and without `from` if any repository has the blob; otherwise it opens a session (202).
- Pushing manifests: by tag, by digest and with `tag` parameters; `OCI-Subject`, `OCI-Tag`; a missing blob or manifest
  is refused (400), as is a digest or a media type that is not the manifest's.
- Listing: tags, repositories and referrers, in pages (`n`, `last`, Link); `artifactType` (`OCI-Filters-Applied`).
- Deleting: tags, manifests and blobs.

A blob or manifest exists only in the repositories to which it was pushed or mounted.
"""

from tests.registry.http_messages import Answer, Body, Part, RefusedError
from tests.registry.server import Handler, Registry

__all__ = ["Answer", "Body", "Handler", "Part", "RefusedError", "Registry"]
