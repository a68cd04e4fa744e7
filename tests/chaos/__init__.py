"""Fault injection: the real commands, killed and damaged at moments that a seed chooses, and what
was lost. `python -m tests.chaos --help`; docs/chaos.md tells what is asserted and what was found.
"""
