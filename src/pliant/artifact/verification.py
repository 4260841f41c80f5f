"""Reading every byte of an artifact and comparing it with what the manifest says."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant.artifact.folder import sha256_inside
from pliant.artifact.manifest import Manifest
from pliant.artifact.reader import Artifact
from pliant.artifact.tensors import adapter_types, matrix_shapes, vector_sizes
from pliant.bits import CHUNK_COLUMNS, PADDING_FAULT, TILE_ROWS, codecs, num_chunks, num_tiles
from pliant.errors import ArtifactError, VerificationError
from pliant.measurement import Progress, silent


class Verification(msgspec.Struct, frozen=True):
    """What was verified: files and bytes hashed, matrices whose scales and padding were read."""

    files: int
    num_bytes: int
    matrices: int


def verify(path: str | Path, deep: bool = True, progress: Progress = silent) -> Verification:
    """Check an artifact; `VerificationError` for the first thing that is not as it must be.

    Always: structure, names, sizes, saved cuts. With `deep` also the hash of every file, that
    scales are finite and not negative, norms, biases and adapters finite, and padding zero.
    `ArtifactError` where there is no artifact at all. Golden logits are checked by `evaluate`.
    """
    path = Path(path)
    if not path.is_dir():
        raise ArtifactError(f"{path} does not exist or is not a folder; give an X.pliant folder.")
    try:
        artifact = Artifact.open(path)
        for name in artifact.subnet_names():
            artifact.subnet(name)
        if not deep:
            return Verification(0, 0, 0)
        _check_hashes(artifact, progress)
        matrices = _check_values(artifact, progress)
    except ArtifactError as error:
        raise VerificationError(str(error)) from error
    files = artifact.manifest.files
    return Verification(len(files), sum(record.size for record in files.values()), matrices)


def _check_hashes(artifact: Artifact, progress: Progress) -> None:
    manifest: Manifest = artifact.manifest
    for done, (name, record) in enumerate(manifest.files.items()):
        progress("hashes", done, len(manifest.files))
        found = sha256_inside(artifact.path, name)
        if found != record.sha256:
            raise VerificationError(
                f"{artifact.path / name} has SHA-256 {found[:16]}..., the manifest says "
                f"{record.sha256[:16]}...; copy or build the artifact again."
            )
    progress("hashes", len(manifest.files), len(manifest.files))


def _check_values(artifact: Artifact, progress: Progress) -> int:
    """Scales, padding, norms and biases; the number of matrices read."""
    shapes, codec = matrix_shapes(artifact.spec), codecs[artifact.manifest.codec.name]
    for done, (name, (rows, columns)) in enumerate(shapes.items()):
        progress("values", done, len(shapes))
        fault = codec.fault(artifact.encoded(name))
        padding = [_plane_padding(plane, rows, columns) for plane in artifact.planes(name)]
        if fault is None and any(part.any() for parts in padding for part in parts):
            fault = PADDING_FAULT
        if fault is not None:
            raise VerificationError(
                f"{name} in {artifact.path} has {fault}; build the artifact again."
            )
    for name in vector_sizes(artifact.spec):
        if not np.isfinite(artifact.vector(name)).all():
            raise VerificationError(
                f"{name} in {artifact.path} has a NaN or infinite value; build it again."
            )
    if artifact.adapters is not None:
        for name in adapter_types(artifact.spec, artifact.adapters):
            if not np.isfinite(artifact.adapter(name)).all():
                raise VerificationError(
                    f"{name} in {artifact.path} has a NaN or infinite value; build it again."
                )
    progress("values", len(shapes), len(shapes))
    return len(shapes)


def _used(rows: int) -> int:
    """Rows of the last tile that belong to the matrix."""
    return (rows - 1) % TILE_ROWS + 1


def _plane_padding(plane: NDArray[np.uint8], rows: int, columns: int) -> list[NDArray[np.uint8]]:
    """The bytes of a plane that hold padding: of rows in the last tile, columns in the last chunk.

    Byte `4 * row + column % 4` of a chunk holds columns of one residue, one per bit.
    """
    chunks = num_chunks(columns)
    bytes_of = plane.reshape(num_tiles(rows), chunks, TILE_ROWS, 4)
    last = (columns - 1) % CHUNK_COLUMNS + 1
    # Bits `column // 4` of each byte lane that lie beyond the last column.
    masks = [255 & ~((1 << -(-(last - lane) // 4)) - 1) for lane in range(4)]
    return [
        bytes_of[-1, :, _used(rows) :],
        bytes_of[:, -1] & np.array(masks, np.uint8),
    ]
