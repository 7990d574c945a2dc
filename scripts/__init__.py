"""Commands of the project: checks, builds, benchmarks and releases. Not part of the package."""
