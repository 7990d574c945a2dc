"""Build the release files: man pages, the zipapp, the container image and the recording of docs/."""
