"""The release files, built from these sources: wheel, sdist, zipapp, image and man pages."""
