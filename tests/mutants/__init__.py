"""Mutation testing: a seeded sample of small changes to the product, each of which some test should notice.

The libraries for this do not fit. mutmut selects a mutant in the process that runs the tests, and maps tests to
functions there; most tests here start the command in another process. cosmic-ray installs nothing and has no mutant
that drops a statement, which is the kind that finds the most here.
"""
