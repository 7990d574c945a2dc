"""The corpus of hostile archives, and tests that run the command on them."""
