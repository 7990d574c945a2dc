"""Registries: repositories, uploads, referrers, mirrors; a registry as a source and as a destination of images."""
