"""Unit tests of `ocistream.streams`."""
