"""The commonest failures: what is said of each, and what to do; README's table of them is held to this one."""
