from mess.searching.solve import Report, SearchResult, evaluate, search

__all__ = ["Report", "SearchResult", "evaluate", "search"]
