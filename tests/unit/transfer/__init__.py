"""Unit tests of `ocistream.transfer`."""
