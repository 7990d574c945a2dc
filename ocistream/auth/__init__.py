"""Credentials and tokens for registries: challenges, token servers, Docker's credential files and helpers."""
