"""Copying images from a source to a destination, and verifying them: what every command that moves images uses."""
