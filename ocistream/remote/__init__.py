"""Copy through a remote command (`copy --via`), and report which blobs a location already has (`ocistream have`)."""
