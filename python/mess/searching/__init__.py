"""Targets in, configurations out; the search itself is `mess_core`'s."""

from mess.searching.baselines import baselines
from mess.searching.solve import Report, SearchResult, evaluate, search

__all__ = ["Report", "SearchResult", "baselines", "evaluate", "search"]
