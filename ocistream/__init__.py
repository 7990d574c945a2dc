"""ocistream: container images as streams."""

__version__ = "0.1.0"
