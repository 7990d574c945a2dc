"""OCI image layouts in directories: blobs, `index.json`, garbage collection, and the cache, which is a layout.

The functions for `index.json` also serve `archive`, because an OCI archive is a layout in a tar.
"""
