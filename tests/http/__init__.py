"""The client's HTTP and TLS: the command against servers that answer with raw bytes."""
