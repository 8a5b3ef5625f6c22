"""The exact search over exits, heads and thresholds, on a calibration table alone; and promises about unseen images."""

from mess.searching.baselines import baselines, smaller_network
from mess.searching.cluster import on_ray
from mess.searching.promise import Guarantee, Guaranteed, guarantee
from mess.searching.solve import Report, SearchInterrupted, SearchResult, evaluate, search

__all__ = [
    "Guarantee",
    "Guaranteed",
    "Report",
    "SearchInterrupted",
    "SearchResult",
    "baselines",
    "evaluate",
    "guarantee",
    "on_ray",
    "search",
    "smaller_network",
]
