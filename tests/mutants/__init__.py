"""Mutation testing: a seeded sample of small changes to the product, each of which a test should notice.

Existing libraries do not fit. mutmut selects a mutant in the process that runs the tests, and maps tests to functions
there; most tests here start the command in another process. cosmic-ray installs nothing and has no mutant that removes
a statement, which is the most useful kind here.
"""
