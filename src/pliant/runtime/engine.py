"""`Engine`: the Python face of the native decoder.

It turns an artifact and a subnet into views of the mapped planes (a cut copies no weights), checks
what the caller asks for, and crosses into C++ once per forward call.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pliant import _native
from pliant.errors import OutOfSpaceError, UsageError
from pliant.runtime.chunk import Chunk
from pliant.spec import ModelSpec
from pliant.subnet import Subnet

KVCache = _native.KVCache
Activations = Literal["int8", "float32"]
CacheType = Literal["float16", "float32"]


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


class Engine:
    """One subnet of an artifact, ready to compute logits; a `TokenModel`.

    - `threads`: 1 to 256; None takes the physical cores this process may use (affinity and cgroup
      quota counted). Results do not depend on it.
    - `activations`: "int8" rounds them per group of 64 before each matrix product, as the fast
      kernels need; "float32" is the exact reference.
    - `cache_type`: the type of stored keys and values.
    - `check_finite`: after every operation look for NaN and infinity and raise `GenerationError`
      naming block and operation; slow, for debugging.

    A sequence's logits depend neither on the others in its batch nor, with int8 activations, on
    how its tokens were cut into chunks, to the last bit. Several Python threads may use an engine;
    they take turns. Options that cannot be raise `UsageError`.
    """

    def __init__(
        self,
        artifact: WeightSource,
        subnet: Subnet,
        threads: int | None = None,
        activations: Activations = "int8",
        cache_type: CacheType = "float16",
        *,
        check_finite: bool = False,
    ) -> None:
        if artifact.spec != subnet.spec:
            raise UsageError("The subnet was cut for another model; cut it from this artifact.")
        self._subnet = subnet
        self._threads = _checked_threads(threads)
        self._kernels = _kernel_path()
        config = _config(subnet.spec, self._threads, activations, cache_type)
        config.check_finite = check_finite
        self._decoder = _decoder(config, artifact, subnet)

    @property
    def subnet(self) -> Subnet:
        """The subnet that runs."""
        return self._subnet

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        return self._subnet.spec.vocab_size

    @property
    def max_context(self) -> int:
        """Most tokens of one sequence."""
        return self._subnet.spec.max_context

    @property
    def threads(self) -> int:
        """Threads that compute, the caller's included."""
        return self._threads

    @property
    def kernels(self) -> str:
        """The kernel path that computes, such as `avx2`; one path always gives the same bits."""
        return self._kernels

    def new_cache(self, capacity: int, max_bytes: int | None = None) -> _native.KVCache:
        """An empty cache for `capacity` tokens of one sequence.

        Its bytes are reserved at once and become resident as tokens are written. `max_bytes` is a
        hard limit: it lowers the capacity to what fits, and `GenerationError` names both numbers
        where not even one token does. `UsageError` for a capacity below 1 or above the context,
        `OutOfSpaceError` where the memory cannot be had.
        """
        if max_bytes is not None and max_bytes < 1:
            raise UsageError(f"A cache of at most {max_bytes} bytes was asked for; allow more.")
        # More than 32 bits is above any context; the sentence for that is the decoder's.
        try:
            return self._decoder.new_cache(min(max(capacity, 0), 2**31 - 1), max_bytes or 0)
        except MemoryError as error:
            raise OutOfSpaceError(
                f"A cache of {capacity} tokens does not fit into memory; make it smaller."
            ) from error

    def forward_chunk(self, chunks: Sequence[Chunk]) -> list[NDArray[np.float32]]:
        """Append each chunk to its cache and compute the logits it asks for.

        Returns float32 `[n or 1 or 0, vocab_size]` for each chunk, views of one array. All chunks
        pass through the matrix products together; attention is per sequence. Long ones are cut
        into steps of at most 256 tokens, between which Ctrl-C is heard.

        Raises `GenerationError` for tokens outside the vocabulary, the context or the cache, and
        `UsageError` for an empty batch or chunk, a cache that appears twice or belongs to another
        engine, and a closed engine. On any error all caches are as they were.
        """
        counts = [chunk.num_logits for chunk in chunks]
        for chunk in chunks:
            if not isinstance(chunk.cache, KVCache):
                raise UsageError(f"{chunk.cache!r} is no cache; make one with new_cache.")
        try:
            logits = np.empty((sum(counts), self.vocab_size), np.float32)
            self._decoder.forward(
                [chunk.cache for chunk in chunks],
                [chunk.tokens for chunk in chunks],
                [chunk.positions for chunk in chunks],
                [chunk.mask for chunk in chunks],
                counts,
                logits,
            )
        except MemoryError as error:
            raise OutOfSpaceError(
                f"{sum(counts)} rows of logits and their scratch do not fit into memory; "
                "run fewer tokens at once."
            ) from error
        if len(counts) == 1:
            return [logits]
        ends = np.cumsum(counts)
        return [logits[end - count : end] for count, end in zip(counts, ends, strict=True)]

    def memory(self) -> dict[str, int]:
        """Bytes this engine uses.

        `mapped`: planes and scales it reads, shared with every engine of the artifact; `vectors`:
        norms and biases; `cache`: reserved by its live caches; `scratch`: everything else.
        """
        return self._decoder.memory()

    def close(self) -> None:
        """Release threads and scratch; caches stay readable. Closing twice is harmless."""
        self._decoder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _checked_threads(threads: int | None) -> int:
    if threads is None:
        return _native.default_threads()
    if not 1 <= threads <= _native.MAX_THREADS:
        raise UsageError(
            f"{threads} threads were asked for; use 1 to {_native.MAX_THREADS}, "
            f"best {_native.default_threads()} on this machine."
        )
    return threads


def _kernel_path() -> str:
    """The fastest kernel path of this machine, or what PLIANT_ISA asks for if it is here."""
    try:
        return str(_native.kernels.best())
    except ValueError as error:
        raise UsageError(str(error)) from error


def _config(
    spec: ModelSpec, threads: int, activations: str, cache_type: str
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
    if cache_type not in ("float16", "float32"):
        raise UsageError(f"A cache of {cache_type!r} was asked for; use float16 or float32.")
    config.cache_type = getattr(_native.CacheType, cache_type)
    for rope in spec.ropes:
        frequencies = rope.frequencies(spec.head_dim, spec.max_context)
        config.add_rotation(frequencies, rope.amplitude)
    return config


def _decoder(
    config: _native.DecoderConfig, artifact: WeightSource, subnet: Subnet
) -> _native.Decoder:
    spec, bits = subnet.spec, subnet.bits
    vocabulary = (spec.vocab_size, spec.hidden_size)
    head_name = "embedding" if spec.tied_embeddings else "head"
    return _native.Decoder(
        config,
        _plane_matrix(artifact, "embedding", vocabulary, bits.embedding),
        _plane_matrix(artifact, head_name, vocabulary, bits.head),
        artifact.vector("final_norm"),
        [_block(artifact, subnet, place) for place in range(len(subnet.shape.blocks))],
    )


def _block(artifact: WeightSource, subnet: Subnet, place: int) -> _native.Block:
    """The kept block number `place` with prefixes of its matrices and biases."""
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
        stored[:planes], artifact.scales(name), kept[0], kept[1], stored_rows, stored_columns
    )
