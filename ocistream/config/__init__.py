"""Configuration files: ours, registries.conf and certs.d."""
