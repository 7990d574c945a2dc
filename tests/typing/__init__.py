"""The public API, type-checked as its user calls it."""
