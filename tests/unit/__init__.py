"""Tests of single modules, over real sockets and files if the module uses them."""
