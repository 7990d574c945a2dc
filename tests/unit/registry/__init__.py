"""Unit tests of `ocistream.registry`."""
