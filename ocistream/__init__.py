"""Copy container images between registries, archives and layouts as streams.

The names in `__all__` are the public Python API, imported on first use. Other names may change. `help(ocistream.copy)`
describes one of them. Copy an image into an archive, and verify the archive::

    ocistream.copy("localhost:5000/app:1", "oci-archive:app.tar", platforms="all")
    ocistream.verify("app.tar").raise_for_findings()

"""

from __future__ import annotations

TYPE_CHECKING = False  # not typing's: importing typing takes longer than the rest of this module
if TYPE_CHECKING:
    from ocistream.api.client import Client, copy, delete, digest, inspect, tags, verify
    from ocistream.api.results import CopyResult, ImageResult
    from ocistream.api.settings import RegistrySettings, TlsFiles
    from ocistream.api.verification import VerifyResult
    from ocistream.auth.docker_config import Credential
    from ocistream.errors import (
        ArchiveError,
        AuthenticationError,
        CancelledError,
        IntegrityError,
        InvalidNameError,
        LocalDiskError,
        NetworkError,
        NotFoundError,
        OcistreamError,
        OutputClosedError,
        RegistryError,
        UnsupportedError,
        UsageError,
        VolumesNeededError,
    )
    from ocistream.oci.descriptor import Descriptor, Platform
    from ocistream.oci.graph import Graph
    from ocistream.oci.reference import Reference, parse_reference
    from ocistream.transfer.interfaces import Observer
    from ocistream.transfer.report import BlobResult
    from ocistream.transfer.verify import Findings

__version__ = "0.1.0"

_EXPORTS_BY_MODULE = {
    "api.client": ("Client", "copy", "delete", "digest", "inspect", "tags", "verify"),
    "api.results": ("CopyResult", "ImageResult"),
    "api.settings": ("RegistrySettings", "TlsFiles"),
    "api.verification": ("VerifyResult",),
    "auth.docker_config": ("Credential",),
    "errors": (
        "ArchiveError",
        "AuthenticationError",
        "CancelledError",
        "IntegrityError",
        "InvalidNameError",
        "LocalDiskError",
        "NetworkError",
        "NotFoundError",
        "OcistreamError",
        "OutputClosedError",
        "RegistryError",
        "UnsupportedError",
        "UsageError",
        "VolumesNeededError",
    ),
    "oci.descriptor": ("Descriptor", "Platform"),
    "oci.graph": ("Graph",),
    "oci.reference": ("Reference", "parse_reference"),
    "transfer.interfaces": ("Observer",),
    "transfer.report": ("BlobResult",),
    "transfer.verify": ("Findings",),
}
_MODULE_OF = {name: module for module, names in _EXPORTS_BY_MODULE.items() for name in names}

__all__ = [
    "ArchiveError",
    "AuthenticationError",
    "BlobResult",
    "CancelledError",
    "Client",
    "CopyResult",
    "Credential",
    "Descriptor",
    "Findings",
    "Graph",
    "ImageResult",
    "IntegrityError",
    "InvalidNameError",
    "LocalDiskError",
    "NetworkError",
    "NotFoundError",
    "Observer",
    "OcistreamError",
    "OutputClosedError",
    "Platform",
    "Reference",
    "RegistryError",
    "RegistrySettings",
    "TlsFiles",
    "UnsupportedError",
    "UsageError",
    "VerifyResult",
    "VolumesNeededError",
    "__version__",
    "copy",
    "delete",
    "digest",
    "inspect",
    "parse_reference",
    "tags",
    "verify",
]


if not TYPE_CHECKING:  # a type checker must see misspelt names

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
