"""OCI image layouts in directories: index.json, blobs, garbage collection, and the cache, which is a layout."""
