"""Data of the OCI specifications as Python values: references, descriptors, documents, platforms, graphs.

The package does no I/O. It also has the names and annotations of split archives, and tag filters.
"""
