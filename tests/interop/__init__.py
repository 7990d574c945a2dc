"""Tests against the real peers: registries, daemons and tools of others."""
