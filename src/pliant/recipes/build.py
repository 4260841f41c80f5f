"""`build`: a checkpoint becomes an artifact. The whole story, one stage after another.

    checkpoint → calibration tokens → width orders → depth paths → planes → sensitivities → receipts
    → golden

Every stage leaves its result in the partial folder beside the artifact, so a build that was
stopped, even by SIGKILL, goes on where it was and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
import torch

from pliant.artifact import (
    Artifact,
    ArtifactWriter,
    CalibrationRecord,
    Findings,
    SourceRecord,
    SpecialTokens,
)
from pliant.bits import EncodedMatrix, codecs
from pliant.calibrate import (
    BlockErrors,
    block_errors,
    check_enough,
    find_depth_paths,
    find_width_orders,
    matrix_sensitivities,
    measure_sensitivities,
    remeasured_paths,
)
from pliant.evaluate import (
    GOLDEN_TEXTS_FILE,
    Activations,
    golden_json,
    golden_texts_json,
    record_golden,
    record_golden_texts,
)
from pliant.measurement import (
    MemoryLimit,
    Progress,
    peak_memory_bytes,
    silent,
)
from pliant.models import Checkpoint, ShapeAdapters, Supernet, streamed_supernet
from pliant.receipt import Receipt
from pliant.recipes.build_options import BuildOptions
from pliant.recipes.build_receipt import BuildReceipt
from pliant.recipes.cache_sensitivity import cache_losses
from pliant.recipes.calibration_text import CalibrationTokens, calibration_windows
from pliant.recipes.encoding import encoded_matrices
from pliant.recipes.finer import Finer, find_finer, remeasured_finer
from pliant.recipes.matrix_planes import matrix_planes
from pliant.recipes.memory_plan import MemoryPlan, plan_memory
from pliant.recipes.quality import (
    WINDOWS,
    QualityBounds,
    measured_counts,
    rounding_receipts,
)
from pliant.recipes.tuned_checkpoint import (
    ADAPTERS_FILE,
    TuningRecord,
    read_adapters,
    read_record,
)
from pliant.runtime import Engine, Tokenizer
from pliant.runtime.kernel_path import kernel_warnings
from pliant.sensitivities import Sensitivities
from pliant.shape import (
    DepthPath,
    ShapeSpace,
    WidthOrders,
    losses_from_json,
    losses_to_json,
)
from pliant.subnet import Subnet

#: Files of a checkpoint that belong to its tokenizer or to how it is run.
COMPANIONS = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip

Value = TypeVar("Value")


def build(
    checkpoint: str | Path,
    output: str | Path,
    *,
    calibration: str | Path | None = None,
    max_ram: str | int | None = None,
    options: BuildOptions | None = None,
    replace: bool = False,
    bounds: QualityBounds | None = None,
    progress: Progress = silent,
) -> BuildReceipt:
    """Make the artifact `output` (`X.pliant`) from a Hugging Face folder or hub id.

    `calibration` is a UTF-8 text, plain or `.xz`, with documents separated by lines
    `<|endoftext|>`; by default a packaged excerpt of public-domain books. `max_ram` (`"2GB"` or
    bytes) bounds the resident memory of the process: weights are then streamed block by block.
    `replace` allows `output` to exist and discards a partial build of other inputs. `bounds`
    say how far all planes together may be from the dense model on held-out text.

    Raises `UnsupportedError` before any weight is read where the model cannot be run,
    `QualityFloorError` beyond `bounds`, `CheckpointError`, `DataError`, `OutOfSpaceError` and
    `UsageError` as their names say; whatever happens, an existing `output` stays whole and finished
    work is taken up by the next call.
    """
    started = time.monotonic()
    options = options or BuildOptions()
    bounds = bounds or QualityBounds()
    source = Checkpoint.open(checkpoint)
    tokenizer = Tokenizer.load(source.folder)
    tokens = calibration_windows(
        source.spec, tokenizer, calibration, options.windows, options.window_tokens, options.seed
    )
    sequences, length = tokens.orders_BT.shape
    if options.rounding != "nearest":
        check_enough(source.spec, tokens.orders_BT.size)
    tuned = read_record(source.folder, source.spec)
    adapters = tuned.adapters if tuned else None
    memory = plan_memory(
        source.spec,
        sequences,
        length,
        _limit(max_ram),
        rounding=options.rounding,
        adapters=adapters,
    )
    fingerprint = source.fingerprint
    choices = tuned and (tuned.depth_paths, tuned.finer)
    inputs = repr((fingerprint, tokens.fingerprint, options, choices))
    loaded = None
    if adapters is not None:
        loaded = read_adapters(source.folder, source.spec, adapters)
        inputs += hashlib.sha256((source.folder / ADAPTERS_FILE).read_bytes()).hexdigest()
    planes = matrix_planes(source, loaded, memory, tokens, options, progress)
    writer = ArtifactWriter(
        output, source.spec, options.codec, options.planes, matrix_planes=planes, adapters=adapters,
        fingerprint=hashlib.sha256(inputs.encode()).hexdigest(), replace=replace,
    )  # fmt: skip
    with writer:
        was_resumed = writer.is_resumed
        record = SourceRecord(source.folder.name, fingerprint)
        work = _Build(source, tokenizer, tokens, memory, options, tuned, loaded, writer, progress)
        findings, errors = work.run(record, bounds)
        bounds.check_receipts(findings.receipts)
        artifact = writer.finish(findings)
    assert findings.sensitivities is not None and findings.default_depth_method is not None
    return BuildReceipt(
        artifact=str(output),
        num_parameters=Subnet.full(source.spec).num_parameters,
        artifact_bytes=artifact.num_bytes,
        dense_loss=findings.sensitivities.dense_loss,
        plane_losses=findings.sensitivities.planes,
        depth_method=findings.default_depth_method,
        seconds=time.monotonic() - started,
        peak_bytes=peak_memory_bytes(),
        predicted_bytes=memory.total,
        was_resumed=was_resumed,
        warnings=kernel_warnings(),
        receipts=findings.receipts,
        block_errors=errors,
    )


@dataclass(frozen=True)
class _Build:
    """One build: its inputs, and a method for each stage."""

    source: Checkpoint
    tokenizer: Tokenizer
    tokens: CalibrationTokens
    memory: MemoryPlan
    options: BuildOptions
    tuned: TuningRecord | None
    adapters: ShapeAdapters | None
    writer: ArtifactWriter
    progress: Progress

    def run(self, source: SourceRecord, bounds: QualityBounds) -> tuple[Findings, BlockErrors]:
        """All stages; what a run that was stopped has finished is taken from its folder."""
        orders = self._stage("orders.json", WidthOrders, self._find_orders)
        ordered = self._supernet(orders)
        ordered.adapters = self.adapters
        paths = self._stage("paths.json", dict[str, DepthPath], lambda: self._find_paths(ordered))
        default = min(paths, key=lambda method: sum(paths[method].losses.values()))
        finer = self._stage("finer.json", Finer, lambda: self._find_finer(ordered))
        self._write_weights(ordered)
        self._write_adapters()
        errors = self._stage("block_errors.json", BlockErrors, lambda: self._errors(ordered))
        bounds.check_blocks(errors)
        companions = self._write_companions()
        findings = Findings(
            source=source,
            tokens=SpecialTokens(self.tokenizer.bos_id, tuple(sorted(self.tokenizer.eos_ids))),
            calibration=CalibrationRecord(
                self.tokens.description, self.tokens.num_tokens, self.tokens.fingerprint
            ),
            depth_paths=paths,
            default_depth_method=default,
            half_path=finer.half_path,
            width_ranking=finer.width_ranking,
            tokenizer_files=companions,
            orders=orders,
        )
        artifact = self.writer.preview(findings)
        sensitivities = self._stage(
            "sensitivities.json",
            Sensitivities,
            lambda: self._measure(ordered, paths[default], finer, artifact),
        )
        receipts = self._stage(
            "receipts.json", tuple[Receipt, ...], lambda: self._receipts(ordered, artifact)
        )
        write_golden(self.writer, artifact, self.tokenizer, self.progress)
        found = msgspec.structs.replace(findings, sensitivities=sensitivities, receipts=receipts)
        return found, errors

    def _stage(self, name: str, kind: type[Value], work: Callable[[], Value]) -> Value:
        """The stored result of a stage, or that of doing it now."""
        stored = self.writer.load_stage(name)
        if stored is not None:
            return msgspec.json.decode(stored, type=kind)
        result = work()
        self.writer.save_stage(name, msgspec.json.encode(result))
        return result

    def _supernet(self, orders: WidthOrders | None = None) -> Supernet:
        """The dense model, streamed within the memory that weights were granted."""
        return streamed_supernet(self.source.spec, self.source.tensor, self.memory.weights, orders)

    def _find_orders(self) -> WidthOrders:
        if self.tuned is not None:
            return WidthOrders.identity(self.source.spec)
        tokens_BT = torch.from_numpy(self.tokens.orders_BT)
        return find_width_orders(
            self._supernet(), tokens_BT, self.options.width_method, self.options.seed,
            progress=self.progress,
        )  # fmt: skip

    def _find_paths(self, ordered: Supernet) -> dict[str, DepthPath]:
        options = self.options
        choices_BT = torch.from_numpy(self.tokens.choices_BT)
        if self.tuned is not None:
            return remeasured_paths(ordered, choices_BT, self.tuned.depth_paths)
        fewest, first, last = options.depth_limits(ordered.spec.num_blocks)
        stored = self.writer.load_stage("depth_losses.json")
        known = losses_from_json(msgspec.json.decode(stored)) if stored else None

        def keep(losses: Mapping[tuple[int, ...], float]) -> None:
            self.writer.save_stage("depth_losses.json", msgspec.json.encode(losses_to_json(losses)))

        return find_depth_paths(
            ordered,
            choices_BT,
            options.depth_methods,
            fewest,
            protect_first=first,
            protect_last=last,
            seed=options.seed,
            cache_bytes=self.memory.state_bytes,
            known=known,
            on_round=keep,
            progress=self.progress,
        )

    def _find_finer(self, ordered: Supernet) -> Finer:
        method = self.options.finer
        if method is None:
            return Finer()
        if self.tuned is not None and self.tuned.finer.half_path is not None:
            choices_BT = torch.from_numpy(self.tokens.choices_BT)
            return remeasured_finer(ordered, choices_BT, self.tuned.finer)
        fewest, first, last = self.options.depth_limits(ordered.spec.num_blocks)
        return find_finer(
            ordered, self.tokens, method, self.options.width_method, fewest,
            protect_first=first, protect_last=last, seed=self.options.seed,
            cache_bytes=self.memory.state_bytes, progress=self.progress,
        )  # fmt: skip

    def _write_weights(self, ordered: Supernet) -> None:
        """Encode every matrix that is not on disk yet, block by block."""
        codec = codecs[self.options.codec].with_planes(self.options.planes)
        tokens_BT = torch.from_numpy(self.tokens.orders_BT)
        # Blocks are learned as the weights alone make them: adapters are added to what is rounded.
        learned = self.options.rounding == "reconstruct"
        ordered = ordered.without_adapters() if learned else ordered.at()
        names = list(ordered.spec.tensors())
        left = [name for name in names if not self.writer.is_done(name)]
        done = len(names) - len(left)
        self.progress("encoding", done, len(names))
        encoded = encoded_matrices(
            ordered, left, codec, self.options.rounding, tokens_BT,
            stored=self.writer.read_matrix, planes=self.writer.codec.fewer_planes,
            seed=self.options.seed,
        )  # fmt: skip
        for name, value in encoded:
            if isinstance(value, EncodedMatrix):
                self.writer.write_matrix(name, value)
            else:
                self.writer.write_vector(name, value)
            done += 1
            self.progress("encoding", done, len(names))

    def _write_adapters(self) -> None:
        if self.adapters is None:
            return
        for name, tensor in self.adapters.stored_tensors().items():
            if not self.writer.is_done(name):
                self.writer.write_adapter(name, tensor.numpy())

    def _errors(self, ordered: Supernet) -> BlockErrors:
        """How far each block's output is from the dense one, on held-out windows."""
        codec = codecs[self.options.codec].with_planes(self.options.planes)
        choices_BT = torch.from_numpy(self.tokens.choices_BT[:WINDOWS])
        counts = measured_counts(self.options.planes)
        return block_errors(
            ordered.at(), choices_BT, codec, self.writer.read_matrix, counts, self.progress
        )

    def _measure(
        self, ordered: Supernet, path: DepthPath, finer: Finer, artifact: Artifact
    ) -> Sensitivities:
        """Held-out loss of each cut alone, the planes as they lie on disk."""
        codec = codecs[self.options.codec].with_planes(self.options.planes)
        choices_BT = torch.from_numpy(self.tokens.choices_BT)

        measured = measure_sensitivities(
            ordered,
            choices_BT,
            path.blocks,
            codec,
            widths=ShapeSpace.of(ordered.spec, path.blocks).widths,
            encoded=artifact.encoded,
            known_depths={choice.blocks: choice.loss for choice in path.choices},
            half_losses={} if finer.half_path is None else finer.half_path.losses,
            ranking=finer.width_ranking,
            progress=self.progress,
        )
        matrices = matrix_sensitivities(
            ordered.at(), choices_BT, codec, artifact.encoded, self.progress
        )
        cache = cache_losses(artifact, self.tokens.choices_BT, measured.dense_loss, self.progress)
        return msgspec.structs.replace(measured, matrices=matrices, cache=cache)

    def _receipts(self, ordered: Supernet, artifact: Artifact) -> tuple[Receipt, ...]:
        """How far some numbers of planes are from the dense model, on held-out text."""
        choices_BT = torch.from_numpy(self.tokens.choices_BT)
        text_name = f"held-out part of {self.tokens.description}"
        return rounding_receipts(
            artifact, ordered.at(), choices_BT, self.tokenizer, text_name, self.progress
        )

    def _write_companions(self) -> tuple[str, ...]:
        """Copy config and tokenizer; names of the files that belong to the tokenizer."""
        folder = self.source.folder
        self.writer.copy_file(folder / "config.json")
        found = [name for name in COMPANIONS if (folder / name).is_file()]
        for name in found:
            self.writer.copy_file(folder / name)
        return tuple(found)


def write_golden(
    writer: ArtifactWriter, artifact: Artifact, tokenizer: Tokenizer, progress: Progress
) -> None:
    """Logits and texts that a copy of this artifact has to reproduce, made by the engine."""
    shortest = min(artifact.depth_path())
    records = []
    small = f"d{shortest}-w0.5-b{min(4, artifact.num_planes)}"
    runs: tuple[tuple[str, Activations], ...] = (
        ("", "float32"), ("", "int8"), (small, "float32"), (small, "int8"),
    )  # fmt: skip
    for address, activations in runs:
        with Engine(artifact, artifact.subnet(address), activations=activations) as engine:
            records.append(record_golden(engine, address, engine.kernels, activations))
    writer.write_file("golden.json", golden_json(records))
    with Engine(artifact, artifact.subnet(), activations="float32", cache_type="float32") as engine:
        texts = record_golden_texts(engine, tokenizer, artifact.num_planes, progress)
    writer.write_file(GOLDEN_TEXTS_FILE, golden_texts_json(texts))


def _limit(max_ram: str | int | None) -> MemoryLimit | None:
    if max_ram is None:
        return None
    return MemoryLimit.parse(max_ram) if isinstance(max_ram, str) else MemoryLimit(max_ram)
