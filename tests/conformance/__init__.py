"""The cases of the distribution-spec's conformance suite (v1.1.1), over real sockets.

They run against the registry of `ocistream serve`, and against the registry of the tests (`tests.registry`). The
modules are the suite's chapters, and `test_data` has the kinds of content of the newer suite (on `main`). A case that
the suite repeats, for example to clean up after a chapter, is here once.

The suite itself (`conformance/` of opencontainers/distribution-spec, commit 967efdc) was built and run by hand: with a
directory, all 858 cases that it enables pass; with all cases that it disables (digest headers, cancelled uploads, tags
as parameters), all but the 13 on sparse manifests; with an archive, 26 of 26.
"""
