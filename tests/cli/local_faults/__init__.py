"""Tests of the command line on a machine with faults."""
