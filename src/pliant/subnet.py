"""`Subnet`: one model out of the many in an artifact, as a value; exact counts; addresses."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import msgspec

from pliant.bits import BitPlan, BlockBits, plane_bytes, scale_bytes
from pliant.errors import UsageError
from pliant.shape import SubnetShape
from pliant.spec import BLOCK_MATRICES, ModelSpec


class MatrixCut(msgspec.Struct, frozen=True):
    """What a subnet reads of one stored matrix: its name and the prefix kept of each axis."""

    name: str
    rows: int
    columns: int
    planes: int

    @property
    def num_bytes(self) -> int:
        """Bytes read: planes and scales, padding to whole tiles and chunks included."""
        planes = self.planes * plane_bytes(self.rows, self.columns)
        return planes + scale_bytes(self.rows, self.columns)


class Subnet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Spec, shape and bit plan: everything that decides what is computed from an artifact."""

    spec: ModelSpec
    shape: SubnetShape
    bits: BitPlan

    def __post_init__(self) -> None:
        self.shape.check_against(self.spec)
        if len(self.bits.blocks) != len(self.shape.blocks):
            raise UsageError(
                f"The bit plan is for {len(self.bits.blocks)} blocks, "
                f"the shape keeps {len(self.shape.blocks)}."
            )

    @classmethod
    def full(cls, spec: ModelSpec, planes: int = 8) -> Subnet:
        """The full shape with `planes` planes of every matrix."""
        return cls(spec, SubnetShape.full(spec), BitPlan.uniform(spec.num_blocks, planes))

    def with_cache(self, bits: int | None = None, window: int | None = None) -> Subnet:
        """The same with cached keys and values of other bits, or another window, where given.

        `UsageError` for those that cannot be (`CacheFormat`).
        """
        plan = msgspec.structs.replace(self.bits, cache=self.bits.cache.but(bits, window))
        return msgspec.structs.replace(self, bits=plan)

    def reading_at_most(self, planes_of: Callable[[str], int]) -> Subnet:
        """The subnet reading of no matrix more than `planes_of` its name."""
        plan, head = self.bits, "embedding" if self.spec.tied_embeddings else "head"
        blocks = tuple(
            BlockBits(**{
                matrix: min(getattr(bits, matrix), planes_of(f"blocks.{block}.{matrix}"))
                for matrix in BLOCK_MATRICES
            })
            for block, bits in zip(self.shape.blocks, plan.blocks, strict=True)
        )  # fmt: skip
        plan = msgspec.structs.replace(
            plan,
            embedding=min(plan.embedding, planes_of("embedding")),
            head=min(plan.head, planes_of(head)),
            blocks=blocks,
        )
        return msgspec.structs.replace(self, bits=plan)

    def to_json(self) -> bytes:
        """This subnet as readable JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2)

    @classmethod
    def from_json(cls, text: bytes) -> Subnet:
        """The subnet that `to_json` wrote; `UsageError` where the JSON is not one."""
        try:
            return msgspec.json.decode(text, type=cls)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"This is not the JSON of a subnet: {error}.") from error

    def matrices(self) -> Iterator[MatrixCut]:
        """Every plane matrix a token's forward pass reads, named as in the artifact.

        Tied embeddings appear once, at the larger plane count of embedding and head.
        """
        spec = self.spec
        vocabulary = (spec.vocab_size, spec.hidden_size)
        if spec.tied_embeddings:
            planes = max(self.bits.embedding, self.bits.head)
            yield MatrixCut("embedding", *vocabulary, planes)
        else:
            yield MatrixCut("embedding", *vocabulary, self.bits.embedding)
            yield MatrixCut("head", *vocabulary, self.bits.head)
        for place, block in enumerate(self.shape.blocks):
            yield from self.block_matrices(place, block)

    def block_matrices(self, place: int, block: int) -> Iterator[MatrixCut]:
        """The matrices of the kept block number `place`, which is block `block`: seven, or those
        of the half that is kept.
        """
        tensors = self.spec.block_tensors(self.shape.groups[place], self.shape.neurons[place])
        bits: BlockBits = self.bits.blocks[place]
        for matrix in BLOCK_MATRICES:
            if matrix in tensors:
                rows, columns = tensors[matrix]
                yield MatrixCut(f"blocks.{block}.{matrix}", rows, columns, getattr(bits, matrix))

    @property
    def num_parameters(self) -> int:
        """Weights of all kept matrices, norms and biases (tied embeddings once)."""
        return sum(cut.rows * cut.columns for cut in self.matrices()) + self._num_vector_entries()

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights this subnet holds in memory: planes, scales, fp32 norms and biases."""
        return sum(cut.num_bytes for cut in self.matrices()) + 4 * self._num_vector_entries()

    @property
    def effective_bits(self) -> float:
        """All stored bits, metadata and padding included, per parameter."""
        return 8 * self.weight_bytes / self.num_parameters

    def cache_bytes(self, tokens: int, bytes_per_value: int = 2) -> int:
        """Bytes of keys and values of `tokens` cached tokens of one sequence.

        Values of 1 byte (an int8 cache) come with an fp32 scale for each key and each value.
        """
        scale_bytes = 4 if bytes_per_value == 1 else 0
        row_bytes = self.spec.head_dim * bytes_per_value + scale_bytes
        return 2 * sum(self.shape.groups) * row_bytes * tokens

    @property
    def cache_bytes_per_token(self) -> float:
        """Bytes of keys and values of a token in the caches of the bit plan, behind the window."""
        spec = self.spec
        bits = self.bits.cache.effective_bits(spec.head_dim)
        return 2 * sum(self.shape.groups) * spec.head_dim * bits / 8

    def _num_vector_entries(self) -> int:
        entries = self.spec.hidden_size
        for groups, neurons in zip(self.shape.groups, self.shape.neurons, strict=True):
            shapes = self.spec.block_tensors(groups, neurons).values()
            entries += sum(shape[0] for shape in shapes if len(shape) == 1)
        return entries


_ADDRESS = re.compile(r"(?:d(?P<depth>\d+)|h(?P<halves>\d+))?"
                      r"(?:-?(?P<policy>[wg])(?P<width>\d*\.?\d+))?(?:-?b(?P<planes>\d+))?"
                      r"(?:-?e(?P<vocabulary>\d+))?(?:-?k(?P<cache>\d+))?")  # fmt: skip


class CutAddress(msgspec.Struct, frozen=True):
    """`d8-w0.75-b3-e4-k8`: blocks kept, width ratio, planes, planes of embedding and head, bits of
    cached keys and values.

    Parts left out mean all blocks, full width, all stored planes, the default vocabulary planes of
    `BitPlan.uniform`, and a float16 cache. `k` of few bits has the usual window. In finer units:
    `h13` keeps 13 halves of blocks (attentions and MLPs) in place of whole ones, `g0.75` a share of
    all weights of the blocks, spread over them by importance, in place of the same share of each.
    """

    depth: int | None = None
    width: float = 1.0
    planes: int | None = None
    vocabulary_planes: int | None = None
    halves: int | None = None
    is_ranked: bool = False
    cache_bits: int | None = None

    @classmethod
    def parse(cls, text: str) -> CutAddress:
        """Read an address; the empty text is the full shape at all planes."""
        match = _ADDRESS.fullmatch(text)
        if match is None:
            raise UsageError(
                f"{text!r} is not a subnet address; write it like d8-w0.75-b3, "
                "where d is blocks kept, w the width ratio, b the planes, and any may be left out; "
                "k4 holds keys and values in 4 bits, h15 counts halves of blocks, g0.75 ranks "
                "widths across blocks."
            )
        part = match.groupdict()
        return cls(
            depth=int(part["depth"]) if part["depth"] else None,
            width=float(part["width"]) if part["width"] else 1.0,
            planes=int(part["planes"]) if part["planes"] else None,
            vocabulary_planes=int(part["vocabulary"]) if part["vocabulary"] else None,
            halves=int(part["halves"]) if part["halves"] else None,
            is_ranked=part["policy"] == "g",
            cache_bits=int(part["cache"]) if part["cache"] else None,
        )

    def __str__(self) -> str:
        parts = [f"d{self.depth}"] if self.depth is not None else []
        parts += [f"h{self.halves}"] if self.halves is not None else []
        parts += [f"{'g' if self.is_ranked else 'w'}{self.width:g}"] if self.width != 1 else []
        parts += [f"b{self.planes}"] if self.planes is not None else []
        parts += [f"e{self.vocabulary_planes}"] if self.vocabulary_planes is not None else []
        parts += [f"k{self.cache_bits}"] if self.cache_bits is not None else []
        return "-".join(parts)
