"""What the other side of a transfer already has: lists of digests, and ocistream run by a remote command."""
