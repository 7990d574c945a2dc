"""Unit tests of `ocistream.archive`."""
