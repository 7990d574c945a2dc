"""Bytes on their way: chunks, hashes, compression, files that are written atomically, worker threads."""
