"""ocistream: copy container images between registries, archives and layouts as streams.

The names in `__all__` are the public Python API, imported on first use; see docs/api.md. Other names may change. Pull
an image into an archive and recompress its layers::

    context = ocistream.create_context()
    source = ocistream.open_source(
        ocistream.parse_location("localhost:5000/app:1"), context, ocistream.Selection()
    )
    destination = ocistream.open_destination(ocistream.parse_location("oci-archive:app.tar"), context)
    try:
        report = ocistream.copy(source, destination, recompression=ocistream.parse_recompression("zstd"))
    finally:
        destination.close()
        source.close()

"""

from __future__ import annotations

TYPE_CHECKING = False  # not typing's: importing typing takes longer than the rest of this module
if TYPE_CHECKING:
    from ocistream.api.registries import create_context
    from ocistream.auth.docker_config import Credential
    from ocistream.errors import OcistreamError
    from ocistream.http.client import HttpClient, HttpSettings
    from ocistream.locations import Location, OpenContext, Selection, open_destination, open_source, parse_location
    from ocistream.oci.descriptor import Descriptor, Platform, parse_platform
    from ocistream.oci.graph import Graph, Root
    from ocistream.oci.platforms import PlatformChoice
    from ocistream.oci.reference import Reference, parse_reference
    from ocistream.transfer.copy import Report, copy
    from ocistream.transfer.interfaces import Blob, Destination, Observer, Source
    from ocistream.transfer.recompress import Recompression, parse_recompression
    from ocistream.transfer.verify import Findings, verify

__version__ = "0.1.0"

_EXPORTS_BY_MODULE = {
    "api.registries": ("create_context",),
    "auth.docker_config": ("Credential",),
    "transfer.recompress": ("Recompression", "parse_recompression"),
    "errors": ("OcistreamError",),
    "oci.graph": ("Graph", "Root"),
    "transfer.interfaces": ("Blob", "Observer", "Destination", "Source"),
    "oci.descriptor": ("Descriptor", "Platform", "parse_platform"),
    "oci.platforms": ("PlatformChoice",),
    "oci.reference": ("Reference", "parse_reference"),
    "locations": ("Location", "OpenContext", "Selection", "open_destination", "open_source", "parse_location"),
    "transfer.copy": ("Report", "copy"),
    "http.client": ("HttpClient", "HttpSettings"),
    "transfer.verify": ("Findings", "verify"),
}
_MODULE_OF = {name: module for module, names in _EXPORTS_BY_MODULE.items() for name in names}

__all__ = [
    "Blob",
    "Credential",
    "Descriptor",
    "Destination",
    "Findings",
    "Graph",
    "HttpClient",
    "HttpSettings",
    "Location",
    "Observer",
    "OcistreamError",
    "OpenContext",
    "Platform",
    "PlatformChoice",
    "Recompression",
    "Reference",
    "Report",
    "Root",
    "Selection",
    "Source",
    "__version__",
    "copy",
    "create_context",
    "open_destination",
    "open_source",
    "parse_location",
    "parse_platform",
    "parse_recompression",
    "parse_reference",
    "verify",
]


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562), so that `import ocistream` is fast."""
    if name not in _MODULE_OF:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    # importlib would be imported before the command has installed its signal handlers.
    return getattr(__import__(f"{__name__}.{_MODULE_OF[name]}", fromlist=[name]), name)


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted(__all__)
