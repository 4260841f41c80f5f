"""Which subnet for which budget: candidates, frontier, choice, verification; pure functions."""

from pliant.search.budget import Budget
from pliant.search.candidate import Candidate, SearchSpace, candidates
from pliant.search.frontier import frontier, spread
from pliant.search.story import Scored, Search, predicted_frontier, search

__all__ = [
    "Budget",
    "Candidate",
    "Scored",
    "Search",
    "SearchSpace",
    "candidates",
    "frontier",
    "predicted_frontier",
    "search",
    "spread",
]
