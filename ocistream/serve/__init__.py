"""The embedded registry: the server side of distribution-spec v1.1 over a layout directory or an archive.

Without a password the server listens on loopback only. This package sends no requests to other registries.
"""

from ocistream.serve.access_control import BasicAuth
from ocistream.serve.http_handler import AccessLogEntry
from ocistream.serve.server import Registry

__all__ = ["AccessLogEntry", "BasicAuth", "Registry"]
