"""Which subnet for which budget: candidates, frontier, choice, verification; pure functions."""

from pliant.search.allocation import Option, allocate, rank_and_cut, sensitive_blocks
from pliant.search.budget import Budget
from pliant.search.candidate import Candidate, SearchSpace, candidates
from pliant.search.frontier import frontier, spread
from pliant.search.mixed import matrix_options, mixed, with_mixed_bits, with_planes
from pliant.search.story import Scored, Search, predicted_frontier, search

__all__ = [
    "Budget",
    "Candidate",
    "Option",
    "Scored",
    "Search",
    "SearchSpace",
    "allocate",
    "candidates",
    "frontier",
    "matrix_options",
    "mixed",
    "predicted_frontier",
    "rank_and_cut",
    "search",
    "sensitive_blocks",
    "spread",
    "with_mixed_bits",
    "with_planes",
]
