"""The Python API, and the plans of copies that the command line runs too."""
