"""HTTP and TLS of the client: the command against servers that answer raw bytes."""
