"""Tests of the tools that the other tests rely on."""
