"""Authentication to registries: credentials, Docker's credential files and helpers, challenges and tokens.

The package opens no connection; the HTTP client sends the token requests.
"""
