"""The command line where this machine fails."""
