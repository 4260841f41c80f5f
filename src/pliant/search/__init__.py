"""Which subnet for which budget: candidates, frontier, choice, verification; pure functions."""

from pliant.search.allocation import Option, allocate, rank_and_cut, sensitive_blocks
from pliant.search.budget import Budget
from pliant.search.caches import FEWER_CACHE_BITS, in_caches
from pliant.search.candidate import Candidate, SearchSpace, candidates
from pliant.search.evolution import Evolution, evolve
from pliant.search.frontier import frontier, spread
from pliant.search.mixed import matrix_options, mixed, with_mixed_bits, with_planes
from pliant.search.predictor import LossPredictor, axis_increases
from pliant.search.story import Scored, Search, predicted_frontier, search
from pliant.search.study import SpeedPredictor, Study, spread_design

__all__ = [
    "FEWER_CACHE_BITS",
    "Budget",
    "Candidate",
    "Evolution",
    "LossPredictor",
    "Option",
    "Scored",
    "Search",
    "SearchSpace",
    "SpeedPredictor",
    "Study",
    "allocate",
    "axis_increases",
    "candidates",
    "evolve",
    "frontier",
    "in_caches",
    "matrix_options",
    "mixed",
    "predicted_frontier",
    "rank_and_cut",
    "search",
    "sensitive_blocks",
    "spread",
    "spread_design",
    "with_mixed_bits",
    "with_planes",
]
