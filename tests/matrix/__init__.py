"""The fault matrix: each request of each command, with each fault, once and for ever."""
