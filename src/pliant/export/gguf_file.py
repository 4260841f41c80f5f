"""`export_gguf`: a subnet as one GGUF file for llama.cpp and everything built on it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant.artifact import Artifact
from pliant.bits import GROUP_COLUMNS, UniformCodec
from pliant.errors import UnsupportedError, UsageError
from pliant.export.dense import DenseWeights, HeldShape, held_spec
from pliant.export.gguf_blocks import BLOCK_TYPES, BlockType, smallest_exact
from pliant.export.gguf_metadata import (
    architecture_keys,
    check_held,
    gguf_architecture,
    gguf_context,
    gguf_tensor_name,
    rope_factors,
    row_order,
)
from pliant.export.gguf_vocabulary import Vocabulary, gguf_vocabulary
from pliant.export.nearest import held_or_nearest
from pliant.export.number_types import bfloat16_bits, stored_numbers
from pliant.export.record import ExportRecord, record_of
from pliant.export.target import new_target
from pliant.measurement import Progress, silent
from pliant.runtime import Tokenizer

if TYPE_CHECKING:
    from gguf import GGUFWriter

#: Types of plain numbers, and bytes of each.
_NUMBER_TYPES = {"F32": 4, "F16": 2, "BF16": 2}
#: `exact` chooses for every matrix the smallest type that holds its planes.
GGUF_TYPES = ("exact", *_NUMBER_TYPES, *BLOCK_TYPES)


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the file: its name there, its shape, its type, and whether that is exact."""

    name: str
    shape: tuple[int, ...]
    kind: str
    num_bytes: int
    is_exact: bool


@dataclass(frozen=True, kw_only=True)
class GgufPlan:
    """What an export to GGUF will write, known before it starts; `tensors` by artifact name."""

    weights: DenseWeights
    vocabulary: Vocabulary
    tokenizer: Tokenizer
    kind: str
    tensors: dict[str, TensorPlan]
    padding: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())

    @property
    def num_bytes(self) -> int:
        """Bytes of the file, the vocabulary and alignment rounded up."""
        words = (*self.vocabulary.tokens, *self.vocabulary.merges)
        text = sum(len(word.encode()) + 24 for word in words)
        return self.weight_bytes + text + 256 * len(self.tensors) + 64 * 1024

    @property
    def storage(self) -> str:
        """The types of all matrices with how many there are of each."""
        counts = Counter(plan.kind for plan in self.tensors.values() if len(plan.shape) == 2)
        return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())

    @property
    def is_exact(self) -> bool:
        """Whether every weight of the file equals what the planes stand for to the last bit."""
        return all(plan.is_exact for plan in self.tensors.values())

    @property
    def notes(self) -> list[str]:
        """Sentences about what the target made necessary."""
        notes = []
        spec, held = self.weights.spec, self.weights.held
        if self.padding:
            notes.append(
                f"filled up with {self.padding:,} weights of zero to {held.groups} groups and "
                f"{held.neurons} neurons in every block; the function is the same"
            )
        if gguf_context(spec) < spec.max_context:
            notes.append(
                f"the context is {gguf_context(spec)} instead of {spec.max_context} tokens, as "
                f"llama.cpp ignores the sliding windows of a {spec.architecture}"
            )
        other = Counter(
            plan.kind for plan in self.tensors.values()
            if len(plan.shape) == 2 and self.kind not in ("exact", plan.kind)
        )  # fmt: skip
        notes += [
            f"{count} matrices are {kind}, since blocks of {self.kind} do not hold their planes or "
            "columns" for kind, count in other.items()
        ]  # fmt: skip
        return notes


def plan_gguf(
    artifact: Artifact, address: str, kind: str = "exact", *, pad: bool = True
) -> GgufPlan:
    """Check that llama.cpp can hold the subnet at `address` and choose types; reads no weights.

    `kind` is one of `GGUF_TYPES` in any case. Matrices that a block type cannot hold, by their
    planes or by their columns, take the smallest that holds them exactly, or F16.
    `UnsupportedError` where the architecture, the shape or the tokenizer has no equal there.
    """
    kind = _known_type(kind)
    subnet = artifact.subnet(address)
    weights = DenseWeights(artifact, subnet)
    padding = weights.held.padding(subnet)
    if padding and not pad:
        raise UnsupportedError(
            "The subnet has blocks of different widths or halves of blocks, and llama.cpp builds "
            "all blocks of this architecture alike and whole. The "
            f"nearest it can hold has {weights.held.groups} groups and {weights.held.neurons} "
            f"neurons in every block: export with --pad, which fills up with {padding:,} weights "
            "of zero and computes the same, or cut the subnet to that width."
        )
    held_or_nearest(artifact, subnet, lambda one: check_held(held_spec(one, HeldShape.around(one))))
    tokenizer = Tokenizer.load(artifact.path, artifact.manifest.files)
    return GgufPlan(
        weights=weights,
        vocabulary=gguf_vocabulary(tokenizer, weights.spec.vocab_size),
        tokenizer=tokenizer,
        kind=kind,
        tensors={name: _plan_tensor(weights, name, kind) for name in weights.shapes()},
        padding=padding,
    )


def _known_type(kind: str) -> str:
    known = {name.upper(): name for name in GGUF_TYPES}
    if kind.upper() not in known:
        raise UsageError(f"{kind!r} is no type of GGUF here; choose {', '.join(GGUF_TYPES)}.")
    return known[kind.upper()]


def _plan_tensor(weights: DenseWeights, name: str, kind: str) -> TensorPlan:
    shape = weights.shapes()[name]
    file_name = gguf_tensor_name(name)
    if len(shape) == 1:
        return TensorPlan(file_name, shape, "F32", 4 * shape[0], is_exact=True)
    _, planes, kept = weights.origin(name)
    rows, columns = shape
    block = None
    # Columns that were filled up may end within a group, whose codes then mean nothing; so do the
    # codes of weights to which adapters are added.
    plain = isinstance(weights.codec, UniformCodec) and not weights.is_adapted(name)
    if weights.is_left_out(name):
        # Zeros are zeros in every type; one plane takes the smallest.
        planes, kept = 1, shape
    if plain and kind not in _NUMBER_TYPES:
        asked = BLOCK_TYPES.get(kind)
        holds = asked and planes <= asked.most_planes and columns % asked.columns == 0
        block = asked if holds else smallest_exact(planes, columns)
    if block is None or kept[1] != columns:
        number = kind if kind in _NUMBER_TYPES else "F16"
        size = _NUMBER_TYPES[number] * rows * columns
        return TensorPlan(file_name, shape, number, size, is_exact=number == "F32")
    size = block.bytes_of(rows, columns)
    return TensorPlan(file_name, shape, block.name, size, is_exact=block.is_exact)


def export_gguf(
    plan: GgufPlan, address: str, path: Path, *, force: bool = False, progress: Progress = silent
) -> ExportRecord:
    """Write the file `path`: metadata, vocabulary, chat template, weights, provenance.

    It appears when it is whole. Raises `UsageError` for a place that may not be written,
    `OutOfSpaceError` for a disk without room, `UnsupportedError` for scales beyond fp16.
    """
    gguf = import_gguf()
    artifact = plan.weights.artifact
    record = record_of(
        artifact, plan.weights.subnet, address, "gguf", plan.storage, plan.weight_bytes
    )
    architecture = gguf_architecture(plan.weights.spec).name
    with new_target(path, plan.num_bytes, is_folder=False, force=force) as partial:
        writer = gguf.GGUFWriter(partial, architecture)
        try:
            _add_metadata(writer, plan, record, gguf)
            _write_tensors(writer, plan, gguf, progress)
        finally:
            writer.close()
    return record


def import_gguf() -> Any:
    """The package `gguf`; `UsageError` with the pip command where it is missing."""
    try:
        import gguf
    except ModuleNotFoundError as error:
        if error.name != "gguf":
            raise
        raise UsageError(
            "Writing GGUF needs the package gguf, which is not installed: "
            "pip install 'pliant[export]'."
        ) from error
    return gguf


def _add_metadata(writer: GGUFWriter, plan: GgufPlan, record: ExportRecord, gguf: Any) -> None:
    """Everything but the tensors."""
    writer.add_type("model")
    writer.add_name(f"{record.source} {record.address}")
    writer.add_quantized_by(f"pliant {record.pliant_version}")
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, record.source)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(_file_type(plan, gguf))
    for key, value in architecture_keys(plan.weights.spec):
        _add(writer, key, value)
    _add(writer, "pliant.address", record.address)
    _add(writer, "pliant.source_fingerprint", record.source_fingerprint)
    _add(writer, "pliant.version", record.pliant_version)
    _add(writer, "pliant.blocks", " ".join(map(str, plan.weights.subnet.shape.blocks)))
    _add(writer, "pliant.effective_bits", float(record.effective_bits))
    _add(writer, "pliant.weights_are_exact", plan.is_exact)
    if record.receipt is not None:
        _add(writer, "pliant.receipt", msgspec.json.encode(record.receipt).decode())
    _add_vocabulary(writer, plan)


def _add(writer: GGUFWriter, key: str, value: bool | int | float | str) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)


def _add_vocabulary(writer: GGUFWriter, plan: GgufPlan) -> None:
    vocabulary, tokenizer = plan.vocabulary, plan.tokenizer
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(list(vocabulary.kinds))
    if vocabulary.pre:
        writer.add_tokenizer_pre(vocabulary.pre)
        writer.add_token_merges(list(vocabulary.merges))
    else:
        writer.add_token_scores(list(vocabulary.scores))
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    if tokenizer.bos_id is not None:
        writer.add_bos_token_id(tokenizer.bos_id)
    named = tokenizer.special_tokens
    ends = sorted(tokenizer.eos_ids)
    if ends:
        eos = named.get("eos_token")
        first = next((end for end in ends if vocabulary.tokens[end] == eos), ends[0])
        writer.add_eos_token_id(first)
        for other in ends:
            if other != first:
                writer.add_eot_token_id(other)
                break
    for name, add in (
        ("unk_token", writer.add_unk_token_id),
        ("pad_token", writer.add_pad_token_id),
    ):
        if named.get(name) in vocabulary.tokens:
            add(vocabulary.tokens.index(named[name]))
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(False)
    templates = tokenizer.chat_template.templates if tokenizer.chat_template else {}
    if list(templates) == ["default"]:
        writer.add_chat_template(templates["default"])
    elif templates:
        writer.add_chat_template(
            [{"name": name, "template": text} for name, text in templates.items()]
        )


def _file_type(plan: GgufPlan, gguf: Any) -> int:
    """The file type named after the type that most weights have."""
    sizes: Counter[str] = Counter()
    for tensor in plan.tensors.values():
        sizes[tensor.kind] += tensor.num_bytes if len(tensor.shape) == 2 else 0
    name = sizes.most_common(1)[0][0]
    kinds = gguf.LlamaFileType
    names = (f"MOSTLY_{name}", f"ALL_{name}", f"MOSTLY_{name}_M")
    return int(next(getattr(kinds, one) for one in names if hasattr(kinds, one)))


def _write_tensors(writer: GGUFWriter, plan: GgufPlan, gguf: Any, progress: Progress) -> None:
    """The table of tensors, then their data, one after another."""
    factors = rope_factors(plan.weights.spec)
    if factors is not None:
        _add_info(
            writer,
            TensorPlan("rope_freqs.weight", factors.shape, "F32", factors.nbytes, True),
            gguf,
        )
    for tensor in plan.tensors.values():
        _add_info(writer, tensor, gguf)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    for done, name in enumerate(plan.tensors, start=1):
        writer.write_tensor_data(_tensor_data(plan, name))
        progress("writing weights", done, len(plan.tensors))


def _add_info(writer: GGUFWriter, tensor: TensorPlan, gguf: Any) -> None:
    kind = gguf.GGMLQuantizationType[tensor.kind]
    dtype = np.dtype({"F32": np.float32, "F16": np.float16}.get(tensor.kind, np.uint8))
    shape = tensor.shape
    if dtype == np.uint8:
        shape = (*shape[:-1], tensor.num_bytes // int(np.prod(shape[:-1])))
    writer.add_tensor_info(tensor.name, shape, dtype, tensor.num_bytes, raw_dtype=kind)


def _tensor_data(plan: GgufPlan, name: str) -> NDArray[Any]:
    """The bytes of one tensor as the file has them, rows in their order."""
    tensor, weights = plan.tensors[name], plan.weights
    order = row_order(weights.spec, name)
    if tensor.kind in BLOCK_TYPES:
        return _blocks(weights, name, BLOCK_TYPES[tensor.kind], order)
    value = weights.tensor(name)
    if "norm" in name:
        value = value + np.float32(weights.spec.norm_offset)
    value = value if order is None else value[order]
    if tensor.kind == "F16":
        return stored_numbers(value, "float16", name)
    return bfloat16_bits(value).view(np.uint8) if tensor.kind == "BF16" else value


def _blocks(
    weights: DenseWeights, name: str, block: BlockType, order: NDArray[np.int64] | None
) -> NDArray[np.uint8]:
    """A matrix as blocks made of its codes; rows that were filled up have the scale 0."""
    codec = weights.codec
    assert isinstance(codec, UniformCodec)
    stored, planes, kept = weights.origin(name)
    if weights.is_left_out(name):
        rows, columns = weights.shapes()[name]
        groups = -(-columns // GROUP_COLUMNS)
        return block.write(
            np.zeros((rows, columns), np.uint8), np.zeros((rows, groups), np.float16), 1
        )
    code_OI, scale_OG = codec.codes(weights.artifact.encoded(stored), planes, kept[0], kept[1])
    missing = weights.shapes()[name][0] - kept[0]
    if missing:
        code_OI = np.pad(code_OI, ((0, missing), (0, 0)))
        scale_OG = np.pad(scale_OG, ((0, missing), (0, 0)))
    if order is not None:
        code_OI, scale_OG = code_OI[order], scale_OG[order]
    return block.write(code_OI, scale_OG, planes)
