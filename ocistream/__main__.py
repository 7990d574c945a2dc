"""Run ocistream with `python -m ocistream`."""

from ocistream.cli import run

if __name__ == "__main__":
    run()
