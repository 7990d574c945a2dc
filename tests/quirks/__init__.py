"""What real registries and archives do, as numbered tests.

`statements` is the list; `habits` and `registries` are the registries' part of it, as data.
"""
