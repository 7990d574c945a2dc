"""What becomes of the sources when others are to have them: man pages, packages, one file that runs by itself."""
