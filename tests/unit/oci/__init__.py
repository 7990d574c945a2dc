"""Unit tests of `ocistream.oci`."""
