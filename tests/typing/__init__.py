"""The public API, type-checked as users call it."""
