"""The contract of sources and destinations, checked with every store."""
