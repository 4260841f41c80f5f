"""Which tensors an artifact holds, in which file, under which name, of which type and shape.

All of it follows from the spec and the numbers of planes, so writer and reader ask the same tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from pliant.adapters import AdapterSpec, factor_shapes, router_shapes
from pliant.bits import (
    CHUNK_BYTES,
    TILE_ROWS,
    num_chunks,
    num_scale_groups,
    num_tiles,
)
from pliant.spec import BLOCK_MATRICES, ModelSpec
from pliant.subnet import Subnet

VECTORS_FILE = "vectors.safetensors"
SCALES_FILE = "scales.safetensors"
ADAPTERS_FILE = "adapters.safetensors"


def plane_file(plane: int) -> str:
    """Name of the file that holds plane number `plane`, 0 the most significant."""
    return f"plane-{plane}.safetensors"


class TensorType(msgspec.Struct, frozen=True):
    """Element type (`U8`, `F16` or `F32`, as safetensors names them) and shape of a tensor."""

    dtype: str
    shape: tuple[int, ...]


def matrix_shapes(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """Rows and columns of every stored matrix, in stored order: vocabulary, then block by block."""
    return {cut.name: (cut.rows, cut.columns) for cut in Subnet.full(spec).matrices()}


def block_vector_sizes(spec: ModelSpec, block: int) -> dict[str, int]:
    """Entries of every norm and bias of one block, in stored order."""
    sizes = {"attention_norm": spec.hidden_size, "mlp_norm": spec.hidden_size}
    if spec.post_norms:
        sizes |= {"attention_post_norm": spec.hidden_size, "mlp_post_norm": spec.hidden_size}
    if spec.qk_norm:
        sizes |= {"q_norm": spec.head_dim, "k_norm": spec.head_dim}
    for matrix in BLOCK_MATRICES:
        if spec.has_bias(matrix):
            rows, _ = spec.matrix_shape(matrix, spec.num_groups, spec.ffn_size)
            sizes[f"{matrix}.bias"] = rows
    return {f"blocks.{block}.{name}": size for name, size in sizes.items()}


def vector_sizes(spec: ModelSpec) -> dict[str, int]:
    """Entries of every stored vector, in stored order: block by block, then the final norm."""
    sizes: dict[str, int] = {}
    for block in range(spec.num_blocks):
        sizes |= block_vector_sizes(spec, block)
    return sizes | {"final_norm": spec.hidden_size}


def adapter_types(spec: ModelSpec, adapters: AdapterSpec) -> dict[str, TensorType]:
    """The tensors of adapters, in stored order: router in fp32, then factors block by block."""
    router = {n: TensorType("F32", shape) for n, shape in router_shapes(spec, adapters).items()}
    factors = {n: TensorType("F16", shape) for n, shape in factor_shapes(spec, adapters).items()}
    return router | factors


def tensor_files(
    spec: ModelSpec,
    planes: int,
    adapters: AdapterSpec | None = None,
    matrix_planes: Mapping[str, int] | None = None,
) -> dict[str, dict[str, TensorType]]:
    """The tensors of each file, in stored order.

    `planes` of every matrix but those of `matrix_planes`, which have as many as it says. Planes of
    the same matrices are one and the same table.
    """
    shapes = matrix_shapes(spec)
    plane = {
        name: TensorType("U8", (num_tiles(rows), num_chunks(columns), CHUNK_BYTES))
        for name, (rows, columns) in shapes.items()
    }
    scales = {
        name: TensorType("F16", (num_tiles(rows), num_scale_groups(columns), TILE_ROWS))
        for name, (rows, columns) in shapes.items()
    }
    vectors = {name: TensorType("F32", (size,)) for name, size in vector_sizes(spec).items()}
    files = {VECTORS_FILE: vectors, SCALES_FILE: scales}
    if adapters is not None:
        files[ADAPTERS_FILE] = adapter_types(spec, adapters)
    for index in range(planes):
        for name, count in (matrix_planes or {}).items():
            if count == index:
                plane = {other: kind for other, kind in plane.items() if other != name}
        files[plane_file(index)] = plane
    return files


def units(spec: ModelSpec, adapters: AdapterSpec | None = None) -> Iterator[tuple[str, ...]]:
    """Tensors that are finished together: those of one block, or one tensor outside all blocks."""
    outside = [name for name in matrix_shapes(spec) if not name.startswith("blocks.")]
    yield from ((name,) for name in (*outside, "final_norm"))
    for block in range(spec.num_blocks):
        matrices = (f"blocks.{block}.{matrix}" for matrix in BLOCK_MATRICES)
        yield (*matrices, *block_vector_sizes(spec, block))
    if adapters is not None:
        names = adapter_types(spec, adapters)
        for prefix in ("router.", *(f"blocks.{block}." for block in range(spec.num_blocks))):
            if unit := tuple(name for name in names if name.startswith(prefix)):
                yield unit
