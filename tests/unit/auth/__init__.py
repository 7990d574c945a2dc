"""Unit tests of `ocistream.auth`."""
