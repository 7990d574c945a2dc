"""Sync many images by a file: read the file, plan the copies, compare each destination, and copy what differs."""
