"""From a trained network to a table that the search runs on.

Reading order: `table` (a file; needs no torch, so nothing is imported here) -> `counts` (of a batch) -> `partial` (what
is done) -> `collect` -> `latency`; `cluster` spreads it over machines.
"""
