"""Unit tests of `ocistream.layout`."""
