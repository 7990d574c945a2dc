"""ocistream: container images as streams.

What the command line does can be done from Python with the names of `__all__`, which are imported when they are first
used; everything else may change without notice. An image out of a registry into an archive, compressed anew::

    around = ocistream.registries()
    source = ocistream.open_source(ocistream.parse_end("localhost:5000/app:1"), around, ocistream.Want())
    sink = ocistream.open_sink(ocistream.parse_end("oci-archive:app.tar"), around)
    try:
        report = ocistream.copy(source, sink, recompression=ocistream.parse_recompression("zstd"))
    finally:
        sink.close()
        source.close()

Every error is an `OcistreamError`. docs/api.md has more examples, and says what each name is.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing has it, the import of which takes longer than all of this
if TYPE_CHECKING:
    from ocistream.api import registries
    from ocistream.auth.docker_config import Credential
    from ocistream.errors import OcistreamError
    from ocistream.http.client import Transport, TransportSettings
    from ocistream.oci.descriptor import Descriptor, Platform, parse_platform
    from ocistream.oci.graph import Graph, Root
    from ocistream.oci.platforms import PlatformChoice
    from ocistream.oci.reference import Reference, parse_reference
    from ocistream.stores import End, Surroundings, Want, open_sink, open_source, parse_end
    from ocistream.transfer.copy import Report, copy
    from ocistream.transfer.interfaces import Blob, Observer, Sink, Source
    from ocistream.transfer.recompress import Recompression, parse_recompression
    from ocistream.transfer.verify import Findings, verify

__version__ = "0.1.0"

_HOMES = {
    "api": ("registries",),
    "auth.docker_config": ("Credential",),
    "transfer.recompress": ("Recompression", "parse_recompression"),
    "errors": ("OcistreamError",),
    "oci.graph": ("Graph", "Root"),
    "transfer.interfaces": ("Blob", "Observer", "Sink", "Source"),
    "oci.descriptor": ("Descriptor", "Platform", "parse_platform"),
    "oci.platforms": ("PlatformChoice",),
    "oci.reference": ("Reference", "parse_reference"),
    "stores": ("End", "Surroundings", "Want", "open_sink", "open_source", "parse_end"),
    "transfer.copy": ("Report", "copy"),
    "http.client": ("Transport", "TransportSettings"),
    "transfer.verify": ("Findings", "verify"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Blob",
    "Credential",
    "Descriptor",
    "End",
    "Findings",
    "Graph",
    "Observer",
    "OcistreamError",
    "Platform",
    "PlatformChoice",
    "Recompression",
    "Reference",
    "Report",
    "Root",
    "Sink",
    "Source",
    "Surroundings",
    "Transport",
    "TransportSettings",
    "Want",
    "__version__",
    "copy",
    "open_sink",
    "open_source",
    "parse_end",
    "parse_platform",
    "parse_recompression",
    "parse_reference",
    "registries",
    "verify",
]


def __getattr__(name: str) -> object:
    """Import what is asked for (PEP 562): `import ocistream` costs next to nothing."""
    if name not in _HOME_OF:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    # Not by importlib, which this module would import before the command has installed its signal handlers.
    return getattr(__import__(f"{__name__}.{_HOME_OF[name]}", fromlist=[name]), name)


def __dir__() -> list[str]:
    """List what there is, imported or not."""
    return sorted(__all__)
