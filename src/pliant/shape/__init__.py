"""Shapes of subnets: which blocks, groups and neurons stay, and in which order they matter."""

from pliant.shape.channels import ChannelStatistics
from pliant.shape.depth import (
    DEPTH_METHODS,
    CachedEvaluation,
    DepthChoice,
    DepthMethod,
    DepthPath,
    Evaluate,
    Keep,
    depth_path,
    losses_from_json,
    losses_to_json,
    num_evaluations,
    one_by_one,
    programme_rows,
)
from pliant.shape.finer import WidthRanking, rank_widths, shape_of_halves
from pliant.shape.orders import (
    WIDTH_METHODS,
    WidthMethod,
    WidthOrders,
    bias_compensation,
    descending_order,
    group_scores,
    width_scores,
)
from pliant.shape.space import DEFAULT_WIDTHS, ShapeSpace
from pliant.shape.subnet_shape import SubnetShape

__all__ = [
    "DEFAULT_WIDTHS",
    "DEPTH_METHODS",
    "WIDTH_METHODS",
    "CachedEvaluation",
    "ChannelStatistics",
    "DepthChoice",
    "DepthMethod",
    "DepthPath",
    "Evaluate",
    "Keep",
    "ShapeSpace",
    "SubnetShape",
    "WidthMethod",
    "WidthOrders",
    "WidthRanking",
    "bias_compensation",
    "depth_path",
    "descending_order",
    "group_scores",
    "losses_from_json",
    "losses_to_json",
    "num_evaluations",
    "one_by_one",
    "programme_rows",
    "rank_widths",
    "shape_of_halves",
    "width_scores",
]
