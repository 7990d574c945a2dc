"""Unit tests of `ocistream.sync`."""
