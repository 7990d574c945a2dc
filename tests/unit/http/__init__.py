"""Unit tests of `ocistream.http`."""
