"""What a subnet costs, from its numbers alone: operations, bytes, memory; time on a device."""

from pliant.costs.experts import Described, Experts, read_described
from pliant.costs.footprint import EngineOptions, Footprint, footprint, split_step
from pliant.costs.graph import Graph, step_graph, total
from pliant.costs.memory import MemoryCost, WorkingSet, artifact_bytes, subnet_memory
from pliant.costs.operators import Operator, Widths
from pliant.costs.step import Step, prefill_steps
from pliant.costs.traffic import TokenTraffic, decode_traffic, tokens_per_second_bound

__all__ = [
    "Described",
    "EngineOptions",
    "Experts",
    "Footprint",
    "Graph",
    "MemoryCost",
    "Operator",
    "Step",
    "TokenTraffic",
    "Widths",
    "WorkingSet",
    "artifact_bytes",
    "decode_traffic",
    "footprint",
    "prefill_steps",
    "read_described",
    "split_step",
    "step_graph",
    "subnet_memory",
    "tokens_per_second_bound",
    "total",
]
