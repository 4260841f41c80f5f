"""`Engine`: the Python face of the native decoder.

It turns an artifact and a subnet into views of the mapped planes (a cut copies no weights), checks
what the caller asks for, and crosses into C++ once per forward call.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant import _native
from pliant.adapters import update_rank
from pliant.bits.cache import CacheFormat, CacheType, SequenceCache, bits_of
from pliant.bits.layout import TILE_ROWS, plane_bytes, scale_bytes
from pliant.errors import OutOfSpaceError, UsageError
from pliant.runtime.assembly import (
    Activations,
    AdaptedSource,
    Preload,
    WeightSource,
    decoder_config,
    native_decoder,
)
from pliant.runtime.chunk import Chunk
from pliant.runtime.kernel_path import kernel_path
from pliant.runtime.sampling import Sampler
from pliant.runtime.switching import Entries, Switch, new_bytes, outcome_of
from pliant.runtime.threads import usable_threads
from pliant.subnet import Subnet

KVCache = _native.KVCache
#: `set` by one thread, lets a run of another one end after its step.
Interrupt = _native.Interrupt


class HeadScreening(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of the head that choosing `tokens` tokens has read, and would have read unscreened.

    Tokens of one step share what they read.
    """

    tokens: int
    unscreened_bytes: int
    read_bytes: int

    @property
    def saved(self) -> float:
        """The share of the head's bytes that was not read."""
        return 1 - self.read_bytes / self.unscreened_bytes if self.unscreened_bytes else 0.0


class Engine:
    """One subnet of an artifact, ready to compute logits; a `TokenModel`.

    - `threads`: 1 to 256; None takes the physical cores this process may use (affinity and cgroup
      quota counted). Results do not depend on it.
    - `activations`: "int8" rounds them per group of 64 before each matrix product, as the fast
      kernels need; "float32" is the exact reference.
    - `cache_type`: the type of stored keys and values, of this subnet and of those it switches
      to; None is what the bit plan of the subnet says. "float16", "float32", or "int8" with one
      scale per token and head, which halves the bytes that a long context costs. "int4", "int3"
      and "int2" keep the last `cache_window` (a multiple of 64) to `cache_window + 63` tokens as
      float16 and round those before to codes of so many bits (`pliant.bits.cache`).
    - `preload`: when the weights of the cut, and no others, come into memory. "ahead" asks the
      system to read them in the background, "none" leaves it to the first use of each page, "all"
      waits until they are there, "lock" also keeps them there until the engine is closed
      (`OutOfSpaceError` where the system does not allow it: `ulimit -l`).
    - `head_screen`: planes of the head that `greedy` multiplies all rows by; 0 reads all planes of
      all rows. Int8 activations and logits without a soft cap only.
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
        cache_type: CacheType | None = None,
        *,
        cache_window: int | None = None,
        preload: Preload = "ahead",
        head_screen: int = 0,
        check_finite: bool = False,
    ) -> None:
        self._artifact = artifact
        self._asked_cache = (bits_of(cache_type), cache_window)
        subnet = subnet.with_cache(*self._asked_cache)
        self._subnet = subnet
        self._turn = threading.Lock()
        self._threads = usable_threads(threads)
        self._kernels = kernel_path()
        config = decoder_config(subnet.spec, self._threads, activations, self.cache_format)
        if preload not in ("none", "ahead", "all", "lock"):
            raise UsageError(
                f"A preload of {preload!r} was asked for; use none, ahead, all or lock."
            )
        config.preload = getattr(_native.Preload, preload)
        config.check_finite = check_finite
        config.head_screen = head_screen if abs(head_screen) < 256 else -1
        self._config = config
        self._decoder = native_decoder(config, artifact, subnet)
        self._head_screen = head_screen
        self._adapters = artifact.adapters if isinstance(artifact, AdaptedSource) else None
        held = f"{self.cache_format.type} cache"
        self._options = f"{self._threads} threads, {activations} activations, {held}"

    def __repr__(self) -> str:
        shape = self._subnet.shape
        return (
            f"Engine({self._subnet.spec.architecture}, {len(shape.blocks)} blocks, "
            f"{self._subnet.weight_bytes} bytes of weights, {self._options}, {self.kernels})"
        )

    @property
    def subnet(self) -> Subnet:
        """The subnet that runs; its bit plan says how this engine's caches hold."""
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
    def adapter_rank(self) -> int:
        """Rank of the updates that adapters add to each matrix; 0 where they add none."""
        return update_rank(self._subnet.spec, self._adapters, self._subnet.shape)

    @property
    def threads(self) -> int:
        """Threads that compute, the caller's included."""
        return self._threads

    @property
    def cache_format(self) -> CacheFormat:
        """How its caches hold keys and values, and the bytes of each."""
        return self._subnet.bits.cache

    @property
    def sequence_cache(self) -> SequenceCache:
        """What a cache of this engine takes for any capacity, and where it can be cut."""
        shape, head_dim = self._subnet.shape, self._subnet.spec.head_dim
        return SequenceCache(format=self.cache_format, groups=sum(shape.groups), head_dim=head_dim)

    @property
    def head_screen(self) -> int:
        """Planes of the head that rule out most tokens in `greedy`; 0 where none do."""
        return self._head_screen

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
            with self._turn:
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
        _check_caches(chunk.cache for chunk in chunks)
        try:
            logits = np.empty((sum(counts), self.vocab_size), np.float32)
            with self._turn:
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

    def greedy(self, chunks: Sequence[Chunk]) -> list[NDArray[np.int32]]:
        """Append each chunk to its cache; the likeliest token behind each token it asks for.

        Returns int32 `[n or 1 or 0]` for each chunk: the argmax of each row of logits that
        `forward_chunk` would give, the lowest id among equals, without making those logits. With
        `head_screen` a first pass over the top planes of the head gives each token a score and a
        bound on what the other planes can add to or take from it (half the difference of the
        steps, times the scales, times the magnitudes of the activations); tiles of 32 tokens that
        the bounds rule out are not read further. The result is the same, always.

        Raises what `forward_chunk` raises, and `GenerationError` for logits that are NaN or
        infinite.
        """
        counts = [chunk.num_logits for chunk in chunks]
        _check_caches(chunk.cache for chunk in chunks)
        with self._turn:
            chosen = self._decoder.choose(
                [chunk.cache for chunk in chunks],
                [chunk.tokens for chunk in chunks],
                [chunk.positions for chunk in chunks],
                [chunk.mask for chunk in chunks],
                counts,
            )
        tokens = np.array(chosen, np.int32)
        return [tokens] if len(counts) == 1 else np.split(tokens, np.cumsum(counts)[:-1])

    def continue_texts(
        self,
        caches: Sequence[_native.KVCache],
        tokens: Sequence[int],
        steps: int,
        *,
        samplers: Sequence[Sampler] | None = None,
        ends: Iterable[int] = (),
        interrupt: Interrupt | None = None,
    ) -> NDArray[np.int32]:
        """Append a token to each cache, choose the next behind it, and so on for `steps` steps.

        The same as `greedy`, or `forward_chunk` and each text's `Sampler.sample`, called again and
        again, without Python between two steps. Returns the tokens that were chosen, int32
        `[steps, len(caches)]`, the last of each not yet in its cache. There are fewer rows where a
        text chose one of `ends`, where a cache is full, where `interrupt` was set, and where a
        later step than the first found a logit that is NaN or infinite, for the next call to meet.

        Raises what a first step alone would; broken logits that are drawn from, and Ctrl-C later
        on, leave tokens in the caches. `UsageError` unless there are as many tokens, and samplers
        if any, as caches, and a step.
        """
        _check_caches(caches)
        few = not caches or len(tokens) != len(caches) or steps < 1
        if few or (samplers is not None and len(samplers) != len(caches)):
            drawn = "" if samplers is None else f" and {len(samplers)} samplers"
            raise UsageError(
                f"A run of {steps} steps was asked for, with {len(caches)} caches, {len(tokens)} "
                f"tokens{drawn}; give one of each for each text, and a step or more."
            )
        room = min(cache.capacity - cache.length for cache in caches)
        steps = max(min(steps, room), 1)
        drawing = samplers or ()
        uniforms = np.array([sampler.numbers(steps) for sampler in drawing], np.float64)
        with self._turn:
            chosen = self._decoder.continue_texts(
                caches,
                tokens,
                steps,
                list(ends),
                interrupt,
                [sampler.native for sampler in drawing],
                np.ascontiguousarray(uniforms.reshape(len(drawing), steps).T),
            )
        for sampler in drawing:
            sampler.skip(len(chosen))
        return chosen

    def switch(self, subnet: Subnet, *, entries: Entries = "keep") -> Switch:
        """Go on as another subnet of the same artifact: deeper, wider, finer, or the reverse.

        Weights stay mapped where they are. All caches of this engine that are alive go along and
        keep their tokens and capacity, so texts go on with the next chunk. With `entries="keep"`
        stored keys and values stay where the new subnet has no block and no group that the old one
        lacks; what follows attends to what another subnet stored. Otherwise, and with "exact"
        unless they are the same, the tokens run through the new subnet, each at its position, as
        if a fresh engine had been given them. The `Switch` returned says which it was.

        Raises `UsageError` for a subnet of another artifact or with caches of another format (an
        engine that was told its own has that for all), for an unknown `entries`, for a cache that
        a forward pass is using and for a closed engine; `GenerationError` where a cache must be
        rebuilt and cannot be (merged entries, positions out of order) or would exceed its
        `max_bytes`; `OutOfSpaceError` where caches do not fit into memory. On any error the engine
        and its caches are as they were.
        """
        if entries not in ("keep", "exact"):
            raise UsageError(f"Entries {entries!r} were asked for; use keep or exact.")
        started = time.perf_counter()
        subnet = subnet.with_cache(*self._asked_cache)
        with self._turn:
            self._check_cache(subnet)
            before = self._subnet
            outcome = outcome_of(before, subnet, entries, self._adapters is not None)
            other = native_decoder(self._config, self._artifact, subnet)
            try:
                caches, tokens = self._decoder.switch_to(other, outcome == "rebuilt")
                self._subnet = subnet
            except MemoryError as error:
                raise OutOfSpaceError(
                    "The caches of both subnets do not fit into memory at once; close some texts."
                ) from error
            finally:
                other.close()
        return Switch(
            before=before,
            after=subnet,
            outcome=outcome,
            caches=caches,
            tokens=tokens,
            read_bytes=new_bytes(before, subnet),
            seconds=time.perf_counter() - started,
        )

    def _check_cache(self, subnet: Subnet) -> None:
        """Raise `UsageError` where caches of this engine would have to become others."""
        if subnet.bits.cache != self.cache_format:
            raise UsageError(
                f"The cut asked for holds its cache as {subnet.bits.cache}, this engine as "
                f"{self.cache_format}; open an engine of its own for it, or one that is told its "
                "cache (cache_type, --kv-bits), which then holds for all cuts."
            )

    def screening(self) -> HeadScreening:
        """What `greedy` has read of the head since this subnet runs."""
        tokens, tiles, rescored = self._decoder.screening()
        spec, planes = self._subnet.spec, self._subnet.bits.head
        tile_planes = plane_bytes(TILE_ROWS, spec.hidden_size)
        screen = self._head_screen if 0 < self._head_screen < planes else planes
        scales = tiles * scale_bytes(TILE_ROWS, spec.hidden_size)
        return HeadScreening(
            tokens=tokens,
            unscreened_bytes=scales + tiles * planes * tile_planes,
            read_bytes=scales + (tiles * screen + rescored * (planes - screen)) * tile_planes,
        )

    def memory(self) -> dict[str, int]:
        """Bytes this engine uses.

        `mapped`: planes and scales it reads, shared with every engine of the artifact; `touched`:
        those of them that are in memory now (counted by the page, so at most `mapped`); `vectors`:
        norms and biases; `adapters`: factors folded for this shape; `cache`: reserved by its live
        caches; `scratch`: everything else.
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


def _check_caches(caches: Iterable[object]) -> None:
    """Raise `UsageError` for what is no cache of an engine."""
    for cache in caches:
        if not isinstance(cache, KVCache):
            raise UsageError(f"{cache!r} is no cache; make one with new_cache.")
