"""`ArtifactWriter`: an artifact written tensor by tensor, resumable, published as a whole."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant.adapters import AdapterSpec
from pliant.artifact.folder import (
    disk_errors,
    free_bytes,
    read_inside,
    sha256_inside,
    sync_folder,
    write_atomically,
)
from pliant.artifact.job import BuildJob, require_artifact_name
from pliant.artifact.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    CodecRecord,
    FileRecord,
    Findings,
    Manifest,
    is_file_name,
)
from pliant.artifact.reader import MAX_SMALL_FILE_BYTES, Artifact
from pliant.artifact.tensor_file import TensorFile, lay_out
from pliant.artifact.tensors import (
    ADAPTERS_FILE,
    SCALES_FILE,
    VECTORS_FILE,
    adapter_types,
    matrix_shapes,
    plane_file,
    tensor_files,
    units,
    vector_sizes,
)
from pliant.bits import MAX_PLANES, EncodedMatrix
from pliant.errors import ArtifactError, CheckpointError, OutOfSpaceError, UsageError
from pliant.measurement import format_bytes
from pliant.spec import ModelSpec

#: Room for the manifest, tokenizer and other small files, which are not known at the start.
_SPARE_BYTES = 4 * 1024 * 1024


class ArtifactWriter:
    """Writes `path` in any order of tensors; holds no tensor, so memory is that of the caller.

    All offsets follow from the spec, so every file has its header and full size before the first
    tensor is written at its place. When the last tensor of a block arrives, files are synced and
    the block is recorded. A run that was killed, even by SIGKILL, is taken up by making a writer
    with the same arguments: `is_done` says what can be left out, and the files come out
    byte-identical.

        with ArtifactWriter("X.pliant", spec, fingerprint=inputs) as writer:
            for name, weight_OI in weights:
                if not writer.is_done(name):
                    writer.write_matrix(name, codec.encode(weight_OI, name))
            ...                                      # vectors, config.json, tokenizer files
            artifact = writer.preview(findings)      # optional: measure before it is published
            artifact = writer.finish(findings)
    """

    def __init__(
        self,
        path: str | Path,
        spec: ModelSpec,
        codec: str = "uniform",
        planes: int = MAX_PLANES,
        *,
        matrix_planes: Mapping[str, int] | None = None,
        adapters: AdapterSpec | None = None,
        fingerprint: str = "",
        replace: bool = False,
    ) -> None:
        """Begin or take up the build of `path`; with `adapters` their tensors belong to it.

        Matrices have `planes` planes, those of `matrix_planes` so many as it says, but no more.
        `fingerprint` is any text that changes when an input of the build changes. `UsageError`
        where `path` exists (unless `replace`) or a partial build of other inputs lies beside it
        (discarded with `replace`); `OutOfSpaceError` where the disk has no room for all files.
        """
        path = Path(path)
        require_artifact_name(path)
        self.spec = spec
        self.codec = CodecRecord.of(codec, planes, matrix_planes or {})
        self.adapters = adapters
        self._files = tensor_file_plan(spec, planes, adapters, self.codec.fewer_planes)
        self._matrices, self._vectors = matrix_shapes(spec), vector_sizes(spec)
        self._unit_of = {name: unit for unit in units(spec, adapters) for name in unit}
        self._job = BuildJob(path, self._inputs(fingerprint), replace)
        self._descriptors: dict[str, int] = {}
        self._small_files: set[str] = set()
        self._unrecorded: set[str] = set()
        self._hashes: dict[str, str] = {}
        try:
            self._open_files()
        except BaseException:
            self.close()
            raise

    def _inputs(self, fingerprint: str) -> str:
        """Hash of everything the bytes of the files depend on."""
        inputs: tuple[object, ...] = (
            FORMAT_VERSION, _pliant_version(), self.spec, self.codec, fingerprint
        )  # fmt: skip
        if self.adapters is not None:
            inputs += (self.adapters,)
        return hashlib.sha256(msgspec.json.encode(inputs)).hexdigest()

    def _open_files(self) -> None:
        """Give every file its full size and its header, so that the disk cannot fill up later."""
        self._require_space()
        with disk_errors(self._job.artifact):
            for name, file in self._files.items():
                path = self._job.artifact / name
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                self._descriptors[name] = descriptor
                os.ftruncate(descriptor, file.size)
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(descriptor, 0, file.size)
                _write_at(descriptor, file.header, 0)
                os.fsync(descriptor)
            sync_folder(self._job.artifact)
        self._job.record(self._job.state.done)

    def _require_space(self) -> None:
        """Refuse to begin what cannot end for want of disk space."""
        total = sum(file.size for file in self._files.values()) + _SPARE_BYTES
        with disk_errors(self._job.folder):
            files = self._job.artifact.iterdir()
            needed = total - sum(file.stat().st_blocks * 512 for file in files)
            free = free_bytes(self._job.folder)
        if needed > free:
            raise OutOfSpaceError(
                f"{self._job.target} needs {needed} more bytes ({format_bytes(needed)}) and "
                f"{free} ({format_bytes(free)}) are free; make room or write to another disk."
            )

    @property
    def folder(self) -> Path:
        """The partial folder that holds the work until it is published."""
        return self._job.folder

    @property
    def is_resumed(self) -> bool:
        """Whether an interrupted build of the same inputs was taken up."""
        return self._job.is_resumed

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensor files, known from the start."""
        return sum(file.size for file in self._files.values())

    def is_done(self, name: str) -> bool:
        """Whether a tensor is written and recorded, in this run or the one taken up."""
        return name in self._job.state.done

    def write_matrix(self, name: str, encoded: EncodedMatrix) -> None:
        """Write planes and scales of one matrix; `ValueError` where it is not as the spec says."""
        if (encoded.rows, encoded.columns) != self._matrices.get(name):
            raise ValueError(
                f"{name} is {encoded.rows} x {encoded.columns}; the spec has "
                f"{self._matrices.get(name, 'no such matrix')}."
            )
        if len(encoded.planes) != (count := self.codec.planes_of(name)):
            raise ValueError(f"{name} has {len(encoded.planes)} planes, not {count}.")
        for index, plane in enumerate(encoded.planes):
            self._write(plane_file(index), name, plane)
        self._write(SCALES_FILE, name, encoded.scales)
        self._finish_tensor(name)

    def read_matrix(self, name: str) -> EncodedMatrix:
        """A matrix that is written already, in this run or the one taken up.

        `ValueError` where it is not (`is_done`).
        """
        if not self.is_done(name) and name not in self._unrecorded:
            raise ValueError(f"{name} is not written yet.")
        rows, columns = self._matrices[name]
        count = self.codec.planes_of(name)
        planes = [self._read(plane_file(index), name) for index in range(count)]
        return EncodedMatrix(rows, columns, planes, self._read(SCALES_FILE, name).view(np.uint16))

    def _read(self, file: str, name: str) -> NDArray[np.uint8]:
        place = self._files[file].places[name]
        with disk_errors(self._job.artifact / file):
            content = os.pread(self._descriptors[file], place.end - place.begin, place.begin)
        return np.frombuffer(content, np.uint8)

    def write_vector(self, name: str, vector: NDArray[np.float32]) -> None:
        """Write a norm weight or bias as fp32.

        `ValueError` where its size is not the spec's, `CheckpointError` for NaN or infinity.
        """
        if vector.shape != (self._vectors.get(name),):
            raise ValueError(f"{name} has shape {vector.shape}; the spec has {self._vectors}.")
        if not np.isfinite(vector).all():
            raise CheckpointError(
                f"{name} holds NaN or infinite values; the checkpoint is damaged."
            )
        self._write(VECTORS_FILE, name, vector.astype(np.float32))
        self._finish_tensor(name)

    def write_adapter(self, name: str, tensor: NDArray[np.float32]) -> None:
        """Write one tensor of the adapters: of the router as fp32, a factor as fp16.

        `ValueError` where its shape is not the spec's, `CheckpointError` for NaN, infinity, or a
        factor beyond what fp16 holds.
        """
        types = adapter_types(self.spec, self.adapters) if self.adapters else {}
        if name not in types or tensor.shape != types[name].shape:
            raise ValueError(f"{name} has shape {tensor.shape}; the spec has {types.get(name)}.")
        with np.errstate(over="ignore"):
            stored = tensor.astype(np.float32 if types[name].dtype == "F32" else np.float16)
        if not np.isfinite(stored).all():
            raise CheckpointError(f"{name} holds values that fp16 does not; tune it again.")
        self._write(ADAPTERS_FILE, name, stored)
        self._finish_tensor(name)

    def _write(self, file: str, name: str, values: NDArray[np.generic]) -> None:
        place = self._files[file].places[name]
        content = np.ascontiguousarray(values).view(np.uint8).data
        if content.nbytes != place.end - place.begin:
            raise AssertionError(f"{name} in {file}: {content.nbytes} bytes for {place}")
        self._hashes.pop(file, None)
        with disk_errors(self._job.artifact / file):
            _write_at(self._descriptors[file], content, place.begin)

    def _finish_tensor(self, name: str) -> None:
        """Record the tensor's block once it is complete."""
        self._unrecorded.add(name)
        written = self._unrecorded | set(self._job.state.done)
        if all(part in written for part in self._unit_of[name]):
            self._commit(self._unit_of[name])

    def _commit(self, unit: tuple[str, ...]) -> None:
        """Sync the files, then record the tensors of `unit` as done."""
        with disk_errors(self._job.artifact):
            for descriptor in self._descriptors.values():
                os.fsync(descriptor)
        done = dict.fromkeys((*self._job.state.done, *unit))
        self._job.record(tuple(done))
        self._unrecorded.difference_update(unit)

    def copy_file(self, source: str | Path, name: str | None = None) -> None:
        """Copy a small file such as `config.json` or `tokenizer.json`, under its own name."""
        source = Path(source)
        content = read_inside(source.resolve().parent, source.resolve().name, MAX_SMALL_FILE_BYTES)
        self.write_file(name or source.name, content)

    def write_file(self, name: str, content: bytes) -> None:
        """Add a small file, replacing one of that name; `UsageError` for a name that is taken."""
        if not is_file_name(name) or name in self._files or name == MANIFEST_FILE:
            raise UsageError(f"{name!r} is not a name that a file of an artifact may have.")
        write_atomically(self._job.artifact / name, content)
        self._small_files.add(name)

    def save_stage(self, name: str, result: bytes) -> None:
        """Keep the result of a stage of the build, for a run that takes this one up."""
        self._job.save_stage(name, result)

    def load_stage(self, name: str) -> bytes | None:
        """What `save_stage` kept under `name`, or None."""
        return self._job.load_stage(name)

    def preview(self, findings: Findings) -> Artifact:
        """The complete artifact before it is published, to measure it; writing may go on.

        `ArtifactError` where a tensor or `config.json` was not written.
        """
        self._seal(findings)
        return Artifact.open(self._job.artifact)

    def finish(self, findings: Findings) -> Artifact:
        """Write the manifest, publish the artifact under its name and open it."""
        self._seal(findings)
        self._close_files()
        self._job.publish()
        self.close()
        return Artifact.open(self._job.target)

    def _seal(self, findings: Findings) -> None:
        """Hash all files and write the manifest."""
        missing = [name for name in self._unit_of if not self.is_done(name)]
        if missing:
            raise ArtifactError(
                f"{missing[0]} was not written; {len(missing)} tensors are missing."
            )
        folder = self._job.artifact
        with disk_errors(folder):
            # A small file of the interrupted run that this run did not write is not part of it.
            for path in folder.iterdir():
                if path.name not in {*self._files, *self._small_files, MANIFEST_FILE}:
                    path.unlink()
            sizes = {name: (folder / name).stat().st_size for name in self._small_files}
        records = {
            name: FileRecord(size, sha256_inside(folder, name)) for name, size in sizes.items()
        }
        for name, file in self._files.items():
            table = hashlib.sha256(file.header).hexdigest()
            if name not in self._hashes:
                self._hashes[name] = sha256_inside(folder, name)
            records[name] = FileRecord(file.size, self._hashes[name], table)
        manifest = Manifest.of(
            findings,
            pliant_version=_pliant_version(),
            spec=self.spec,
            codec=self.codec,
            files=records,
            adapters=self.adapters,
        )
        write_atomically(folder / MANIFEST_FILE, manifest.to_json())

    def _close_files(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def close(self) -> None:
        """Let go of files and lock; unfinished work stays on disk to be taken up."""
        self._close_files()
        self._job.close()

    def __enter__(self) -> ArtifactWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def tensor_file_plan(
    spec: ModelSpec,
    planes: int = MAX_PLANES,
    adapters: AdapterSpec | None = None,
    matrix_planes: Mapping[str, int] | None = None,
) -> dict[str, TensorFile]:
    """Header, places and size of every tensor file of an artifact, before it is written."""
    files = tensor_files(spec, planes, adapters, matrix_planes)
    return {name: lay_out(tensors) for name, tensors in files.items()}


def _pliant_version() -> str:
    try:
        return metadata.version("pliant")
    except metadata.PackageNotFoundError:
        return "0+unknown"


def _write_at(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    """All of `content` at `offset`; a write may take less than it is given."""
    rest = memoryview(content)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written
