"""Read images from registries and write images to registries: the distribution-spec and the quirks of its servers.

Provides repositories, blob downloads, blob uploads that resume, referrers, tags and mirrors.
"""
