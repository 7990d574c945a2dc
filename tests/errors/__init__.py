"""The commonest failures: what is said of each, and what to do; docs/errors.md has the same table."""
