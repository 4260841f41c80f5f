"""From an artifact and a subnet to a native decoder: views of mapped planes, without a copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pliant import _native
from pliant.adapters import AdapterSpec, Factors
from pliant.bits import PlaneForm
from pliant.bits.cache import CacheFormat, CacheType
from pliant.errors import OutOfSpaceError, UsageError
from pliant.runtime.low_rank import encode_factors
from pliant.shape import SubnetShape
from pliant.spec import ModelSpec
from pliant.subnet import Subnet

Activations = Literal["int8", "float32"]
Preload = Literal["none", "ahead", "all", "lock"]
#: Bytes of one stored key or value of whole bytes; int8 rows have an fp32 scale beside them.
CACHE_VALUE_BYTES: dict[CacheType, int] = {"int8": 1, "float16": 2, "float32": 4}


class WeightSource(Protocol):
    """The part of an artifact that an engine reads."""

    @property
    def spec(self) -> ModelSpec:
        """The spec of the dense model."""

    def planes(self, name: str) -> list[NDArray[np.uint8]]:
        """All stored planes of a matrix, most significant first."""

    def scales(self, name: str) -> NDArray[np.uint16]:
        """fp16 bits of the scales of a matrix."""

    def vector(self, name: str) -> NDArray[np.float32]:
        """A norm weight or bias."""


@runtime_checkable
class FormedSource(WeightSource, Protocol):
    """A source that says what its planes stand for; those of others are uniform."""

    @property
    def plane_form(self) -> PlaneForm:
        """The form of all its matrices, by the codec that made them."""


def plane_form(source: WeightSource) -> PlaneForm:
    """What the planes of a source stand for."""
    return source.plane_form if isinstance(source, FormedSource) else "uniform"


@runtime_checkable
class AdaptedSource(WeightSource, Protocol):
    """A source that may have adapters beside its planes."""

    @property
    def adapters(self) -> AdapterSpec | None:
        """Their numbers; None where there are none."""

    def low_rank(self, shape: SubnetShape) -> Callable[[str, int, int], Factors] | None:
        """Makes the update of a matrix for a shape, from its name and the rows and columns kept."""


def decoder_config(
    spec: ModelSpec, threads: int, activations: str, cache: CacheFormat
) -> _native.DecoderConfig:
    """The numbers of a spec and how to run them, as the decoder takes them."""
    config = _native.DecoderConfig()
    for name in ("vocab_size", "hidden_size", "heads_per_group", "head_dim", "max_context",
                 "norm_epsilon", "norm_offset", "embedding_scale", "attention_scale",
                 "attention_softcap", "logit_softcap"):  # fmt: skip
        setattr(config, name, getattr(spec, name))
    config.activation = getattr(_native.Activation, spec.activation)
    config.threads = threads
    if activations not in ("int8", "float32"):
        raise UsageError(f"Activations {activations!r} were asked for; use int8 or float32.")
    config.mode = getattr(_native.ActivationMode, activations)
    config.cache_type = getattr(_native.CacheType, "float16" if cache.is_coded else cache.type)
    if cache.is_coded:
        config.cache_bits, config.cache_window = cache.bits, cache.window
    for rope in spec.ropes:
        frequencies = rope.frequencies(spec.head_dim, spec.max_context)
        config.add_rotation(frequencies, rope.amplitude)
    return config


def native_decoder(
    config: _native.DecoderConfig, artifact: WeightSource, subnet: Subnet
) -> _native.Decoder:
    """The decoder of a subnet over views of the artifact's planes.

    `UsageError` for a subnet of another model, `OutOfSpaceError` where memory is refused.
    """
    if artifact.spec != subnet.spec:
        raise UsageError("The subnet was cut for another model; cut it from this artifact.")
    spec, bits = subnet.spec, subnet.bits
    vocabulary = (spec.vocab_size, spec.hidden_size)
    update = artifact.low_rank(subnet.shape) if isinstance(artifact, AdaptedSource) else None
    head_name = "embedding" if spec.tied_embeddings else "head"
    embedding = _plane_matrix(artifact, "embedding", vocabulary, bits.embedding)
    head = _plane_matrix(artifact, head_name, vocabulary, bits.head)
    blocks = [_block(artifact, subnet, place, update) for place in range(len(subnet.shape.blocks))]
    try:
        return _native.Decoder(config, embedding, head, artifact.vector("final_norm"), blocks)
    except MemoryError as error:
        raise OutOfSpaceError(
            f"{subnet.weight_bytes} bytes of weights cannot be held in memory; allow more "
            "locked memory (ulimit -l), take a smaller cut, or preload less."
        ) from error


def _block(
    artifact: WeightSource,
    subnet: Subnet,
    place: int,
    update: Callable[[str, int, int], Factors] | None,
) -> _native.Block:
    """The kept block number `place` with prefixes of its matrices and biases, and its updates."""
    spec, shape = subnet.spec, subnet.shape
    index, groups, neurons = shape.blocks[place], shape.groups[place], shape.neurons[place]
    rotation, window = spec.block_ropes[index], spec.block_windows[index]
    block = _native.Block(index, groups, neurons, rotation, window)
    for name, size in spec.block_tensors(groups, neurons).items():
        full_name = f"blocks.{index}.{name}"
        if len(size) == 1:
            block.set_vector(name, artifact.vector(full_name)[: size[0]])
        else:
            planes = getattr(subnet.bits.blocks[place], name)
            block.set_matrix(name, _plane_matrix(artifact, full_name, size, planes))
            if update is not None:
                factors = update(full_name, size[0], size[1])
                block.set_low_rank(name, encode_factors(factors).native())
    return block


def _plane_matrix(
    artifact: WeightSource, name: str, kept: tuple[int, ...], planes: int
) -> _native.PlaneMatrix:
    """Views of the first `planes` planes of a matrix, of which the prefix `kept` is used."""
    stored = artifact.planes(name)
    if planes > len(stored):
        raise UsageError(
            f"{planes} planes of {name} were asked for; the artifact stores {len(stored)}."
        )
    stored_rows, stored_columns = artifact.spec.tensors()[name]
    return _native.PlaneMatrix(
        stored[:planes], artifact.scales(name), kept[0], kept[1], stored_rows, stored_columns,
        plane_form(artifact),
    )  # fmt: skip
