"""Where each bit of a plane and each scale lies: the tile layout shared by file and engine.

A plane of `W[O, I]` is a run of tiles of 32 rows. A tile is a run of chunks of 32 columns, a chunk
is two 64-byte vectors (rows 0-15, rows 16-31 of the tile), and in a vector

    byte 4 * (row % 16) + column % 4, bit (column % 32) // 4

holds one row and column: a 4-byte lane is one row and its bytes are consecutive columns, which is
what one dot-product instruction multiplies. Scales are fp16,
`[tile][group of 64 columns][32 rows]`. Rows and columns beyond the matrix are stored as zero bits
and zero scales.
"""

from __future__ import annotations

TILE_ROWS = 32
CHUNK_COLUMNS = 32
CHUNK_BYTES = TILE_ROWS * CHUNK_COLUMNS // 8
GROUP_COLUMNS = 64


def ceil_div(value: int, unit: int) -> int:
    """`value / unit` rounded up."""
    return -(-value // unit)


def num_tiles(rows: int) -> int:
    """Tiles of 32 rows that `rows` occupy."""
    return ceil_div(rows, TILE_ROWS)


def num_chunks(columns: int) -> int:
    """Chunks of 32 columns that `columns` occupy."""
    return ceil_div(columns, CHUNK_COLUMNS)


def num_scale_groups(columns: int) -> int:
    """Scale groups of 64 columns that `columns` occupy; the last may be short."""
    return ceil_div(columns, GROUP_COLUMNS)


def plane_bytes(rows: int, columns: int) -> int:
    """Stored bytes of one plane of a `[rows, columns]` matrix, padding included."""
    return num_tiles(rows) * num_chunks(columns) * CHUNK_BYTES


def scale_bytes(rows: int, columns: int) -> int:
    """Stored bytes of the fp16 scales of a `[rows, columns]` matrix, padding included."""
    return num_tiles(rows) * num_scale_groups(columns) * TILE_ROWS * 2
