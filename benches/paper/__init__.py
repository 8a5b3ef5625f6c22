"""The tables of the paper, on data that is at hand: `python benches/paper/tables.py --help`."""
