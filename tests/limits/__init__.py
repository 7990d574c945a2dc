"""Tests of the numbered rules about untrusted input."""
