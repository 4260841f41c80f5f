"""A subnet where people already run models: Hugging Face folders and GGUF files."""

from pliant.export.dense import DenseWeights, HeldShape
from pliant.export.gguf_file import GGUF_TYPES, GgufPlan, export_gguf, import_gguf, plan_gguf
from pliant.export.hf_folder import SHARD_BYTES, HfPlan, export_hf, plan_hf
from pliant.export.number_types import NumberType, parse_number_type
from pliant.export.record import ExportRecord
from pliant.export.storage import storage_of

__all__ = [
    "GGUF_TYPES",
    "SHARD_BYTES",
    "DenseWeights",
    "ExportRecord",
    "GgufPlan",
    "HeldShape",
    "HfPlan",
    "NumberType",
    "export_gguf",
    "export_hf",
    "import_gguf",
    "parse_number_type",
    "plan_gguf",
    "plan_hf",
    "storage_of",
]
