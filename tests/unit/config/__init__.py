"""Unit tests of `ocistream.config`."""
