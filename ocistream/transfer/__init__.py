"""Copy images from a source to a destination, and verify them: the engine of every command that moves images.

Knows no store, terminal or network. The functions `copy` and `verify` are imported from their modules.
"""
