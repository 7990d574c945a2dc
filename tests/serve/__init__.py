"""Tests of the embedded registry over HTTP."""
