"""Signatures of images: which are accepted, and what an attacker may try."""
