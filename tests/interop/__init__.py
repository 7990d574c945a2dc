"""Tests against other implementations: registries, daemons and tools."""
