"""Read configuration files: ocistream's config.toml, containers' registries.conf, and certs.d directories."""
