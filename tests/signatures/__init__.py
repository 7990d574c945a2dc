"""Signatures of images: which are accepted, and which attacks fail."""
