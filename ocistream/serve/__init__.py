"""The embedded registry: the server side of distribution-spec v1.1 over a layout directory or an archive.

Without a password the server listens on loopback only. This package sends no requests to other registries.
"""

from ocistream.serve.access_control import BasicAuth
from ocistream.serve.endpoints import RegistryHandler
from ocistream.serve.http_handler import AccessLogEntry, FileSection, ServerResponse
from ocistream.serve.request import RequestRejectedError
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
