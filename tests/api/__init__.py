"""The public Python API: copy, verify, inspect and Client, against registries, archives and pipes."""
