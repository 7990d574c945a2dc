"""The corpus of hostile archives, how it is given to the command, and the tests that do it."""
