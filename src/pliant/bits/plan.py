"""`BitPlan`: how many planes of each matrix are read, and in how many bits a cache holds."""

from __future__ import annotations

import msgspec

from pliant.bits.cache import CacheFormat
from pliant.errors import UsageError

#: The most planes a matrix can store, which makes a code one byte.
MAX_PLANES = 8
#: Rounding the embedding and head harder than this costs more loss than it saves bytes.
MIN_VOCABULARY_PLANES = 4


class BlockBits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Planes read of each matrix of one block."""

    q: int
    k: int
    v: int
    o: int
    gate: int
    up: int
    down: int

    @classmethod
    def uniform(cls, planes: int) -> BlockBits:
        """The same number of planes for all seven matrices."""
        return cls(*(planes,) * 7)


class BitPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Planes read of the embedding, of the head, and of each kept block's matrices.

    For tied embeddings `head` and `embedding` read the same stored planes and may still differ.
    `cache` is how keys and values are held while it runs, unless an engine is told otherwise.
    """

    embedding: int
    head: int
    blocks: tuple[BlockBits, ...]
    cache: CacheFormat = CacheFormat()

    def __post_init__(self) -> None:
        counts = [self.embedding, self.head]
        counts += [count for block in self.blocks for count in msgspec.structs.astuple(block)]
        wrong = [count for count in counts if not 1 <= count <= MAX_PLANES]
        if wrong:
            raise UsageError(f"{wrong[0]} planes asked for; a matrix reads 1 to {MAX_PLANES}.")

    @classmethod
    def uniform(
        cls,
        num_blocks: int,
        planes: int,
        vocabulary_planes: int | None = None,
        cache: CacheFormat | None = None,
    ) -> BitPlan:
        """`planes` for all block matrices.

        The embedding and head read `vocabulary_planes`, by default at least
        `MIN_VOCABULARY_PLANES`; `cache` is float16 unless given.
        """
        vocabulary = vocabulary_planes or max(planes, MIN_VOCABULARY_PLANES)
        blocks = (BlockBits.uniform(planes),) * num_blocks
        return cls(vocabulary, vocabulary, blocks, cache or CacheFormat())

    @property
    def most_planes(self) -> int:
        """The largest plane count that any matrix reads."""
        counts: list[int] = []
        for block in self.blocks:
            counts += msgspec.structs.astuple(block)
        return max(self.embedding, self.head, *counts)
