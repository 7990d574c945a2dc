"""Image archives: OCI archives and docker-archives in tar files and pipes, and archives split into volumes.

Bytes that are read here are not verified: `transfer` and the callers do that. Nothing is ever extracted to disk.
"""
