"""Fuzz every parser of untrusted input.

`targets` is the table of fuzz targets. A target has a function that reads bytes, seeds, and the expected exit codes.
If a digest or a checksum would detect every flipped bit, the target also has a function that makes inputs with one
invalid place. A find is any other exception, more than 32 MiB, 30 seconds, a file outside the folder, a started
program, an error text that is not one short line, or a failed assertion of the target.

To fuzz: `scripts/fuzz [TARGET...] --seconds 3600`; it prints its seed. From Python 3.12 on it keeps inputs that
reach new branches in `.cache/fuzz/corpus`. The tests try the first inputs of seed 0; `OCISTREAM_FUZZ_SEED=7
scripts/test -e fuzz` tries others.

A find is minimized and stored in `.cache/fuzz/found/TARGET`. `scripts/fuzz --replay FILE TARGET` prints its
traceback. Copy it to `tests/fuzz/found/TARGET`, see the test fail, fix the code, and add a test to the suite of
that code.

To add a target: write a function and an entry in one of the tables. Then break the code and check that the target
notices.
"""
