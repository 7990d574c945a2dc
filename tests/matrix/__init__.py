"""The fault matrix: each kind of request of each command, with each fault, once and lasting.

A flow runs once undisturbed. Each kind of request that it makes becomes a row, each fault a column. Each cell runs
the command with the fault at the first such request; if the fault is absorbed, perhaps again with a lasting fault.
`rules.py` has the expected outcome of each cell with its reason: absorbed with the same result, or an exit code,
one or two lines, nothing visible, and success when the command is run again.

To add a fault: a line in `request_faults.py`, its rule in `rules.py`, and, for a new action, a dataclass in
`tests/fault_actions.py`. A new request needs nothing: it appears by method and path until `request_rows.py` names it.
"""
