"""The distribution-spec's conformance suite, case by case, over real sockets.

The cases run against the registry of `ocistream serve`, and against the registry of the tests (`tests.registry`).

`cases` lists the cases. The suite itself (`conformance/` of opencontainers/distribution-spec, commit 967efdc) was
built and run by hand: with a directory, all 858 cases that it enables pass; with all cases that it disables (digest
headers, cancelled uploads, tags as parameters), all but the 13 on sparse manifests; with an archive, 26 of 26.
"""
