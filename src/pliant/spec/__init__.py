"""The numbers of an architecture: `ModelSpec`, `Rope`, and how they are read from a config."""

from pliant.spec.architectures import ARCHITECTURES
from pliant.spec.huggingface import read_spec
from pliant.spec.model import BLOCK_MATRICES, Activation, ModelSpec
from pliant.spec.rope import Rope, RopeKind

__all__ = [
    "ARCHITECTURES",
    "BLOCK_MATRICES",
    "Activation",
    "ModelSpec",
    "Rope",
    "RopeKind",
    "read_spec",
]
