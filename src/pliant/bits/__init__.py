"""How a matrix becomes nested bit-planes: layout, codecs, bit plans (NumPy only)."""

from pliant.bits.codec import PADDING_FAULT, Codec, CompensatedCodec, EncodedMatrix, PlaneForm
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
from pliant.bits.shift_add import ACC_REFUSED, ShiftAddCodec
from pliant.bits.uniform import UniformCodec

#: Every codec by the name that artifacts record; each passes tests/bits/test_codec_contract.py.
codecs: dict[str, Codec] = {codec.name: codec for codec in (UniformCodec(), ShiftAddCodec())}
#: Codings that are known and cannot be stored, with the reason.
refused_codecs: dict[str, str] = {"shift-add-acc": ACC_REFUSED}


def most_planes(codec: str) -> int:
    """The most planes that a codec makes; of a name that is none, those of any."""
    return codecs[codec].planes if codec in codecs else MAX_PLANES


__all__ = [
    "CHUNK_BYTES",
    "CHUNK_COLUMNS",
    "GROUP_COLUMNS",
    "MAX_PLANES",
    "MIN_VOCABULARY_PLANES",
    "PADDING_FAULT",
    "TILE_ROWS",
    "BitPlan",
    "BlockBits",
    "Codec",
    "CompensatedCodec",
    "EncodedMatrix",
    "ErrorFeedback",
    "PlaneForm",
    "ShiftAddCodec",
    "UniformCodec",
    "ceil_div",
    "codecs",
    "most_planes",
    "num_chunks",
    "num_scale_groups",
    "num_tiles",
    "plane_bytes",
    "refused_codecs",
    "scale_bytes",
]
