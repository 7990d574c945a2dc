"""One module for each command of `ocistream`. To add one: a module here, and one line in `entry_point.COMMANDS`.

A command parses its options and calls the packages below; it never imports another command.
"""
