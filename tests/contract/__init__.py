"""The contract of a source and a sink, run over every store."""
