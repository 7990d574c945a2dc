"""The distribution-spec's conformance suite, case by case, over real sockets.

The cases run against the registry of `ocistream serve`, and against the registry of the tests (`tests.registry`).

`statements` lists the cases; what was found of the suite itself, run by hand, is in CONTRIBUTING.md.
"""
