"""What a subnet costs, computed from its numbers alone: memory now, time on a device later."""

from pliant.costs.memory import MemoryCost, WorkingSet, artifact_bytes, subnet_memory
from pliant.costs.traffic import TokenTraffic, decode_traffic, tokens_per_second_bound

__all__ = [
    "MemoryCost",
    "TokenTraffic",
    "WorkingSet",
    "artifact_bytes",
    "decode_traffic",
    "subnet_memory",
    "tokens_per_second_bound",
]
