"""The embedded registry, tested over HTTP: only `ocistream.serve.Registry` and its public companions are imported."""
