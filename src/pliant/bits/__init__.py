"""How a matrix becomes nested bit-planes: layout, codecs, bit plans (NumPy only)."""

from pliant.bits.codec import Codec, CompensatedCodec, EncodedMatrix
from pliant.bits.feedback import ErrorFeedback
from pliant.bits.layout import (
    CHUNK_BYTES,
    CHUNK_COLUMNS,
    GROUP_COLUMNS,
    TILE_ROWS,
    ceil_div,
    num_chunks,
    num_scale_groups,
    num_tiles,
    plane_bytes,
    scale_bytes,
)
from pliant.bits.plan import MAX_PLANES, MIN_VOCABULARY_PLANES, BitPlan, BlockBits
from pliant.bits.uniform import UniformCodec

#: Every codec by the name that artifacts record; each passes tests/bits/test_codec_contract.py.
codecs: dict[str, Codec] = {codec.name: codec for codec in (UniformCodec(),)}

__all__ = [
    "CHUNK_BYTES",
    "CHUNK_COLUMNS",
    "GROUP_COLUMNS",
    "MAX_PLANES",
    "MIN_VOCABULARY_PLANES",
    "TILE_ROWS",
    "BitPlan",
    "BlockBits",
    "Codec",
    "CompensatedCodec",
    "EncodedMatrix",
    "ErrorFeedback",
    "UniformCodec",
    "ceil_div",
    "codecs",
    "num_chunks",
    "num_scale_groups",
    "num_tiles",
    "plane_bytes",
    "scale_bytes",
]
