"""Byte streams: chunks, hashing, compression, files (atomic, partial, locked), paths and worker threads."""
