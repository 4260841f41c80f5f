"""`build_data_free`: an artifact from weights alone, in the time that reading and writing takes.

    checkpoint → widths by weights → planes to nearest → golden

No text is run, so nothing is known of quality: no depth paths, no sensitivities, no receipts. Such
an artifact runs, is cut by width and planes, and is exported; `fit` refuses it.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import msgspec
import numpy as np

from pliant.artifact import ArtifactWriter, Findings, SourceRecord, SpecialTokens, tensor_file_plan
from pliant.bits import codecs
from pliant.calibrate import find_width_orders
from pliant.errors import OutOfSpaceError
from pliant.measurement import MemoryLimit, Progress, format_bytes, peak_memory_bytes, silent
from pliant.models import Checkpoint, streamed_supernet, weight_units
from pliant.recipes.build import COMPANIONS, write_golden
from pliant.recipes.build_receipt import BuildReceipt
from pliant.runtime import Tokenizer
from pliant.runtime.kernel_path import kernel_warnings
from pliant.shape import WidthOrders
from pliant.spec import ModelSpec
from pliant.subnet import Subnet

#: Interpreter, torch and the allocators' slack; measured on small models.
_BASE_BYTES = 400 * 2**20
#: A block or a vocabulary as read, as fp32, as permuted, and its planes.
_COPIES = 3


def build_data_free(
    checkpoint: str | Path,
    output: str | Path,
    *,
    planes: int = 8,
    max_ram: int | None = None,
    seed: int = 0,
    replace: bool = False,
    progress: Progress = silent,
) -> BuildReceipt:
    """Make the artifact `output` of a checkpoint without looking at any text.

    KV groups and neurons are ordered by the norms of their columns (`magnitude`), every matrix is
    rounded to nearest. Holds one block at a time. Raises what `build` does, `OutOfSpaceError`
    where `max_ram` bytes are too few; a stopped build goes on when called again.
    """
    started = time.monotonic()
    source = Checkpoint.open(checkpoint)
    tokenizer = Tokenizer.load(source.folder)
    spec = source.spec
    predicted = data_free_memory(spec, planes)
    if max_ram is not None and predicted > MemoryLimit(max_ram).num_bytes:
        raise OutOfSpaceError(
            f"This build needs {format_bytes(predicted)} of memory and {format_bytes(max_ram)} "
            "were given; raise --max-ram."
        )
    inputs = repr(("data-free", source.fingerprint, planes, seed))
    fingerprint = hashlib.sha256(inputs.encode()).hexdigest()
    with ArtifactWriter(
        output, spec, "uniform", planes, fingerprint=fingerprint, replace=replace
    ) as writer:
        was_resumed = writer.is_resumed
        orders = _orders(source, writer, seed, progress)
        _write_weights(source, writer, orders, planes, progress)
        for name in ("config.json", *COMPANIONS):
            if (source.folder / name).is_file():
                writer.copy_file(source.folder / name)
        findings = Findings(
            source=SourceRecord(source.folder.name, source.fingerprint),
            tokens=SpecialTokens(tokenizer.bos_id, tuple(sorted(tokenizer.eos_ids))),
            tokenizer_files=tuple(n for n in COMPANIONS if (source.folder / n).is_file()),
            orders=orders,
        )
        write_golden(writer, writer.preview(findings), tokenizer, progress)
        artifact = writer.finish(findings)
    return BuildReceipt(
        artifact=str(output),
        num_parameters=Subnet.full(spec).num_parameters,
        artifact_bytes=artifact.num_bytes,
        dense_loss=None,
        plane_losses={},
        depth_method=None,
        seconds=time.monotonic() - started,
        peak_bytes=peak_memory_bytes(),
        predicted_bytes=predicted,
        was_resumed=was_resumed,
        warnings=kernel_warnings(),
    )


def data_free_memory(spec: ModelSpec, planes: int) -> int:
    """The peak of resident memory, bytes: a few copies of the largest unit, or the mapped planes.

    The engine that writes golden logits maps the whole artifact and reads all of it, while the
    allocator still holds what the last unit took.
    """
    largest = max(weight_units(spec).values())
    mapped = sum(file.size for file in tensor_file_plan(spec, planes).values())
    return _BASE_BYTES + max(_COPIES * largest, mapped + largest)


def _orders(
    source: Checkpoint, writer: ArtifactWriter, seed: int, progress: Progress
) -> WidthOrders:
    stored = writer.load_stage("orders.json")
    if stored is not None:
        return msgspec.json.decode(stored, type=WidthOrders)
    supernet = streamed_supernet(source.spec, source.tensor, 0)
    orders = find_width_orders(supernet, None, "magnitude", seed, progress=progress)
    writer.save_stage("orders.json", msgspec.json.encode(orders))
    return orders


def _write_weights(
    source: Checkpoint, writer: ArtifactWriter, orders: WidthOrders, planes: int, progress: Progress
) -> None:
    """Encode every tensor that is not on disk yet, in stored order."""
    codec = codecs["uniform"].with_planes(planes)
    supernet = streamed_supernet(source.spec, source.tensor, 0, orders)
    names = list(source.spec.tensors())
    for done, name in enumerate(names):
        progress("encoding", done, len(names))
        if writer.is_done(name):
            continue
        weight = np.ascontiguousarray(supernet.weights[name].numpy())
        if weight.ndim == 1:
            writer.write_vector(name, weight)
        else:
            writer.write_matrix(name, codec.encode(weight, name))
    progress("encoding", len(names), len(names))
