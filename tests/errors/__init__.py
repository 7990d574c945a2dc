"""Common failures: the error message and the hint for each; docs/errors.md has the same table."""
