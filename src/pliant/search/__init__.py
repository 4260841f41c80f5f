"""Which subnet for which budget: candidates, frontier, choice, verification; pure functions."""

from pliant.search.budget import Budget
from pliant.search.candidate import Candidate, SearchSpace, candidates
from pliant.search.evolution import Evolution, evolve
from pliant.search.frontier import frontier, spread
from pliant.search.predictor import LossPredictor, axis_increases
from pliant.search.story import Scored, Search, predicted_frontier, search
from pliant.search.study import SpeedPredictor, Study, spread_design

__all__ = [
    "Budget",
    "Candidate",
    "Evolution",
    "LossPredictor",
    "Scored",
    "Search",
    "SearchSpace",
    "SpeedPredictor",
    "Study",
    "axis_increases",
    "candidates",
    "evolve",
    "frontier",
    "predicted_frontier",
    "search",
    "spread",
    "spread_design",
]
