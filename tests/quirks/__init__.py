"""Tests of known behavior of real registries and archives, by number.

`statements` is the list. `registry_quirks`, `upload_quirks` and `registry_models` describe registries as data.
"""
