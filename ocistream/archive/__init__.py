"""Image archives (tar): OCI and Docker archives, from files and from pipes, and archives in volumes."""
