"""Tests of single rooms, over real sockets and files where those are what a room handles."""
