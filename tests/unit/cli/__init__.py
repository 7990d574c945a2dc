"""Unit tests of `ocistream.cli`."""
