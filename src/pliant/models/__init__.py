"""Torch side of a model: the checkpoint it comes from and the supernet it becomes."""

from pliant.models.attention import KeyValueCache
from pliant.models.checkpoint import Checkpoint, read_config
from pliant.models.permutation import permuted_block
from pliant.models.smol import ShapeAdapters, gate_noise
from pliant.models.streamed import StreamedWeights, streamed_supernet, weight_units
from pliant.models.supernet import Supernet
from pliant.spec.checkpoint_names import checkpoint_names

__all__ = [
    "Checkpoint",
    "KeyValueCache",
    "ShapeAdapters",
    "StreamedWeights",
    "Supernet",
    "checkpoint_names",
    "gate_noise",
    "permuted_block",
    "read_config",
    "streamed_supernet",
    "weight_units",
]
