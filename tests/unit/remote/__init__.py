"""Unit tests of `ocistream.remote`."""
