"""The distribution-spec's conformance suite, case by case, against `ocistream serve`'s registry over real sockets.

`statements` lists the cases; what was found of the suite itself, run by hand, is in CONTRIBUTING.md.
"""
